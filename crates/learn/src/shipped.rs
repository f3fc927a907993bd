//! The weights that come with the crate, and those in a folder of one's own.

use std::{path::Path, sync::Arc};

use crate::{
    actor::Actor,
    policy::{LearnedThresholds, SacPolicy},
    predictor::{Architecture, Predictor},
    rollout::Blinders,
    weights::{Weights, WeightsError},
};

/// Name of the scheduler's weight file.
pub const ACTOR_FILE: &str = "actor.safetensors";

/// Name of a predictor's weight file.
pub fn predictor_file(architecture: Architecture) -> String {
    format!("predictor-{}.safetensors", architecture.name())
}

const ACTOR: &[u8] = include_bytes!("../weights/actor.safetensors");
const PREDICTORS: [(Architecture, &[u8]); 4] = [
    (Architecture::Linear, include_bytes!("../weights/predictor-linear.safetensors")),
    (Architecture::Lstm, include_bytes!("../weights/predictor-lstm.safetensors")),
    (Architecture::Transformer, include_bytes!("../weights/predictor-transformer.safetensors")),
    (
        Architecture::TransformerLstm,
        include_bytes!("../weights/predictor-transformer+lstm.safetensors"),
    ),
];

/// A trained predictor and a trained policy.
#[derive(Clone)]
pub struct Learned {
    /// Predicts thresholds.
    pub thresholds: Arc<LearnedThresholds>,
    /// Places operators.
    pub policy: Arc<SacPolicy>,
    actor: Weights,
}

impl Learned {
    /// The weights that come with the crate.
    ///
    /// # Errors
    /// When they are broken or were trained for other inputs: a defect of the build.
    pub fn shipped() -> Result<Learned, WeightsError> {
        let thresholds = shipped_predictor(Architecture::TransformerLstm)?;
        Learned::of(thresholds, Weights::from_bytes(ACTOR_FILE, ACTOR)?)
    }

    /// The weights that a training left in a folder.
    ///
    /// # Errors
    /// See [`WeightsError`].
    pub fn from_folder(folder: &Path) -> Result<Learned, WeightsError> {
        let predictor = folder.join(predictor_file(Architecture::TransformerLstm));
        let thresholds = LearnedThresholds::new(Predictor::load(&predictor)?)?;
        Learned::of(thresholds, Weights::load(&folder.join(ACTOR_FILE))?)
    }

    fn of(thresholds: LearnedThresholds, actor: Weights) -> Result<Learned, WeightsError> {
        let policy = SacPolicy::new(Actor::from_weights(actor.clone())?)?;
        Ok(Learned { thresholds: Arc::new(thresholds), policy: Arc::new(policy), actor })
    }

    /// The policy without some of what it sees. It was trained with everything.
    ///
    /// # Errors
    /// None in practice: the weights have been read before.
    pub fn with_blinders(&self, blinders: Blinders) -> Result<SacPolicy, WeightsError> {
        Ok(SacPolicy::new(Actor::from_weights(self.actor.clone())?)?.with_blinders(blinders))
    }
}

/// A predictor that comes with the crate: the one that is used, or one to compare it with.
///
/// # Errors
/// As [`Learned::shipped`].
pub fn shipped_predictor(architecture: Architecture) -> Result<LearnedThresholds, WeightsError> {
    let (_, bytes) =
        PREDICTORS.iter().find(|(own, _)| *own == architecture).expect("every architecture ships");
    LearnedThresholds::new(Predictor::from_bytes(&predictor_file(architecture), bytes)?)
}
