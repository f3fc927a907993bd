//! The learned parts: the policy behind `sac` and the model of thresholds.

use std::sync::Arc;

use sparoa::{FixedThresholds, Scheduler, ThresholdModel};

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
    /// Its thresholds.
    pub thresholds: Arc<dyn ThresholdModel>,
}

/// What this build has.
pub fn learned() -> Learned {
    Learned {
        policy: None,
        thresholds: Arc::new(FixedThresholds::default()),
        ablations: Vec::new(),
    }
}

/// What stands behind `sac` when there is no learned policy.
pub const STAND_IN: &str = "heft stands in: this build has no learned policy";
