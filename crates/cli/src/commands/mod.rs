//! One file per subcommand: from arguments to a printed result.

pub mod bench;
pub mod devices;
pub mod doctor;
pub mod evaluate;
pub mod inspect;
pub mod plan;
pub mod profile;
pub mod prune;
pub mod reproduce;
pub mod run;
pub mod train;
pub mod verify;
pub mod zoo;
