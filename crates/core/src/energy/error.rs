//! What can go wrong with energy sensors.

use std::path::PathBuf;

/// Why an energy is not known.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EnergyError {
    /// The sensor is there, and this user may not read it.
    #[error("{}: permission denied; {remedy}", path.display())]
    Denied {
        /// Its file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The file holds something else than a number.
    #[error("{}: '{text}' is not a number that can be an energy or a power", path.display())]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// The beginning of what it holds.
        text: String,
    },
    /// A counter fell, and where it starts again is not known.
    #[error(
        "{sensor}: the counter fell from {from_uj} to {to_uj} uJ, and max_energy_range_uj does not \
         say where it starts again"
    )]
    Fell {
        /// The sensor.
        sensor: String,
        /// Microjoules before.
        from_uj: u64,
        /// Microjoules now.
        to_uj: u64,
    },
    /// A driver's library refused.
    #[error("{sensor}: {reason}")]
    Device {
        /// The sensor.
        sensor: String,
        /// The library's reason.
        reason: String,
    },
    /// Nothing moved while it was measured.
    #[error(
        "{sensors} did not move in {seconds:.3} s (new figures come every {update_ms} ms): measure \
         for longer; if they never move, this machine does not count"
    )]
    Still {
        /// The sensors.
        sensors: String,
        /// How long.
        seconds: f64,
        /// The slowest one's update time.
        update_ms: u128,
    },
    /// Computing does not show in the power.
    #[error(
        "the machine draws {busy_w:.2} W while it computes and {idle_w:.2} W at rest: other work \
         hides the difference, or the sensors do not see it"
    )]
    Indistinct {
        /// At rest.
        idle_w: f64,
        /// While a processor computes.
        busy_w: f64,
    },
    /// There is no sensor that can be used.
    #[error("this machine has no energy sensor that can be read (sparoa devices lists them)")]
    NoSensor,
}
