//! The learned parts: the policy behind `sac` and the model of thresholds.

use std::{path::Path, sync::Arc};

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
    /// Policies that `reproduce` shows as further rows; each decides anew in every state.
    pub ablations: Vec<Ablation>,
}

/// The learned policy without one of its parts.
pub struct Ablation {
    /// The row's name: `no sparsity axis`.
    pub name: &'static str,
    /// The policy, crippled.
    pub policy: Arc<dyn Scheduler>,
    /// When it decides: once, where it does not see the state.
    pub decides: Decides,
    /// Its thresholds.
    pub thresholds: Arc<dyn ThresholdModel>,
}

/// Where weights of one's own are, if the user has said so.
pub const WEIGHTS: &str = "SPAROA_WEIGHTS";

/// The learned parts: those of the folder that the environment names, else those that come with the
/// program. Where they cannot be read the classical parts stand in, and a warning says why.
pub fn learned() -> Learned {
    let own = std::env::var_os(WEIGHTS);
    let read = match &own {
        Some(folder) => learn::Learned::from_folder(Path::new(folder)),
        None => learn::Learned::shipped(),
    };
    let classical = || Learned {
        policy: None,
        thresholds: Arc::new(FixedThresholds::default()),
        ablations: Vec::new(),
    };
    match read.and_then(|l| Ok((ablations(&l)?, l))) {
        Ok((ablations, l)) => {
            Learned { policy: Some(l.policy), thresholds: l.thresholds, ablations }
        }
        Err(e) => {
            let from = if own.is_some() { WEIGHTS } else { "shipped weights" };
            tracing::warn!("{from}: {e}; fixed thresholds and heft stand in");
            classical()
        }
    }
}

/// The policy as it is without one of its parts. It was trained with all of them.
fn ablations(l: &learn::Learned) -> Result<Vec<Ablation>, learn::WeightsError> {
    let all = Blinders::default();
    let parts = [
        ("no predictor", Blinders { predictor: true, ..all }),
        ("no sparsity axis", Blinders { sparsity: true, ..all }),
        ("no intensity axis", Blinders { intensity: true, ..all }),
        ("no hardware state", Blinders { hardware: true, ..all }),
        ("no split", Blinders { split: true, ..all }),
    ];
    parts
        .into_iter()
        .map(|(name, blinders)| {
            Ok(Ablation {
                name,
                policy: Arc::new(l.with_blinders(blinders)?),
                decides: if blinders.hardware { Decides::Once } else { Decides::Always },
                thresholds: l.thresholds.clone(),
            })
        })
        .collect()
}

/// What stands behind `sac` when there is no learned policy.
pub const STAND_IN: &str = "heft stands in: this build has no learned policy";
