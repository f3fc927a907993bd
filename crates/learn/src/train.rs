//! Training of both nets with burn's tensors and automatic differentiation (feature `train`).
//!
//! Everything runs on one thread in a fixed order and every draw comes from a seeded generator: the
//! same seed on the same machine gives the same bits. Parameters and optimiser moments live in plain
//! vectors; burn sees them as leaves of each step's graph, which keeps checkpoints plain too.

mod parameters;
mod adam;
mod mlp;
pub mod predictor;
pub mod sac;
pub mod curve;
pub mod recipe;

use crate::dataset::DatasetError;
use crate::weights::WeightsError;

pub use predictor::{Loss, PredictorConfig, PredictorRun, train_predictor};
pub use sac::{Progress, SacConfig, SacTrainer, Transition};

/// Why a training did not start, stopped or could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The data set will not do.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A weight file or checkpoint was not read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A setting is out of range.
    #[error("training setting `{name}` is {value}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// The loss is no longer finite.
    #[error(
        "the training diverged at update {update}; lower the learning rate or the reward scale"
    )]
    Diverged {
        /// The update.
        update: u64,
    },
    /// An environment or a pushed transition breaks its contract.
    #[error("environment {index}: {cause}")]
    Environment {
        /// Index of the environment; that of the pushed transition.
        index: usize,
        /// What is wrong.
        cause: String,
    },
    /// A checkpoint belongs to another training.
    #[error(
        "{file}: the checkpoint does not fit: {cause}; resume with the settings it was made with, or delete it to start anew"
    )]
    Checkpoint {
        /// The file.
        file: String,
        /// What differs.
        cause: String,
    },
    /// A chart could not be drawn.
    #[error("the learning curve was not drawn: {0}")]
    Curve(String),
}
