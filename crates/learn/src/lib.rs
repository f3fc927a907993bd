//! SparOA's learned parts: the predictor of thresholds and the actor that places operators.
//!
//! Running them needs nothing but the CPU kernels: [`predictor`] and [`actor`] read [`weights`] from
//! a file or from embedded bytes. Training them is behind the cargo feature `train` (burn's tensors
//! and automatic differentiation). The nets know no graph: [`features`] and [`rollout`] turn graphs
//! and machines into numbers, [`policy`] turns numbers into what the core asks for, [`task`] is what
//! the trainer plays, [`machines`] and [`sweep`] what it plays on and learns from, [`evaluate`] the
//! figures on what neither net has seen.

mod atomic_file;
pub mod weights;
mod dense;
pub mod actor;
pub mod predictor;
pub mod environment;
pub mod dataset;
pub mod features;
pub mod sweep;
pub mod machines;
pub mod rollout;
pub mod policy;
pub mod task;
pub mod evaluate;
pub mod shipped;
#[cfg(feature = "train")]
pub mod train;

pub use actor::Actor;
pub use dataset::{Dataset, Sequence};
pub use environment::{Environment, Step};
pub use policy::{LearnedThresholds, SacPolicy};
pub use predictor::{Architecture, Predictor};
pub use shipped::Learned;
pub use weights::{Weights, WeightsError};
