//! The learned parts: the policy behind `sac` and the model of thresholds.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use sparoa::{
    Decides, FixedThresholds, Scheduler, ThresholdModel,
    learn::{self, rollout::Blinders},
};

/// What decides by learning, where this build has it.
pub struct Learned {
    /// The policy that `sac` stands for; without one HEFT stands in.
    pub policy: Option<Arc<dyn Scheduler>>,
    /// Predicts each operator's thresholds.
    pub thresholds: Arc<dyn ThresholdModel>,
}

/// The learned policy without one of its parts.
pub struct Ablation {
    /// The row's name: `no sparsity axis`.
    pub name: &'static str,
    /// The policy, crippled.
    pub policy: Arc<dyn Scheduler>,
    /// When it decides: once, where it does not see the state.
    pub decides: Decides,
}

/// Where weights of one's own are, if the user has said so.
pub const WEIGHTS: &str = "SPAROA_WEIGHTS";

/// The weights of the folder that the environment names, else those that come with the program.
///
/// # Errors
/// When they cannot be read.
pub fn weights() -> Result<learn::Learned, learn::WeightsError> {
    match std::env::var_os(WEIGHTS) {
        Some(folder) => learn::Learned::from_folder(Path::new(&folder)),
        None => learn::Learned::shipped(),
    }
}

/// The learned parts, read once. Where they cannot be read the classical parts stand in, and a warning
/// says why.
pub fn learned() -> &'static Learned {
    static LEARNED: OnceLock<Learned> = OnceLock::new();
    LEARNED.get_or_init(|| match weights() {
        Ok(l) => Learned { policy: Some(l.policy), thresholds: l.thresholds },
        Err(e) => {
            tracing::warn!("{e}; fixed thresholds and heft stand in for the learned parts");
            Learned { policy: None, thresholds: Arc::new(FixedThresholds::default()) }
        }
    })
}

/// The policy without one of its parts each, for further rows of `reproduce`; it was trained with all of
/// them. None where there is no learned policy.
pub fn ablations() -> Vec<Ablation> {
    let Ok(l) = weights() else { return Vec::new() };
    let all = Blinders::default();
    let parts = [
        ("no predictor", Blinders { predictor: true, ..all }),
        ("no sparsity axis", Blinders { sparsity: true, ..all }),
        ("no intensity axis", Blinders { intensity: true, ..all }),
        ("no hardware state", Blinders { hardware: true, ..all }),
        ("no split", Blinders { split: true, ..all }),
        ("no second look", Blinders { second_look: true, ..all }),
    ];
    parts
        .into_iter()
        .filter_map(|(name, blinders)| {
            Some(Ablation {
                name,
                policy: Arc::new(l.with_blinders(blinders).ok()?),
                decides: if blinders.hardware { Decides::Once } else { Decides::Always },
            })
        })
        .collect()
}

/// What stands behind `sac` when there is no learned policy.
pub const STAND_IN: &str = "heft stands in: this build has no learned policy";
