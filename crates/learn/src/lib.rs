//! SparOA's learned parts: the predictor of thresholds and the actor that places operators.
//!
//! Running them needs nothing but the CPU kernels: [`predictor`] and [`actor`] read [`weights`] from
//! a file or from embedded bytes. Training them is behind the cargo feature `train` (burn's tensors
//! and automatic differentiation). The crate knows no graph: callers bring features as slices, and
//! tasks as [`environment::Environment`].

mod atomic_file;
pub mod weights;
mod dense;
pub mod actor;
pub mod predictor;
pub mod environment;
pub mod dataset;
#[cfg(feature = "train")]
pub mod train;

pub use actor::Actor;
pub use dataset::{Dataset, Sequence};
pub use environment::{Environment, Step};
pub use predictor::{Architecture, Predictor};
pub use weights::{Weights, WeightsError};
