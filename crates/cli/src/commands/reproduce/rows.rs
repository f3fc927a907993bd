//! A model on a board under every policy: what the tables are made of.

use serde::{Serialize, Serializer};
use sparoa::Policy;

/// Policies by name, in order.
#[derive(Clone, Debug, Default)]
pub struct Rows(pub Vec<(String, PolicyRow)>);

/// A policy on a model and a board: means over the states.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PolicyRow {
    /// As planned: once for the nominal state, or by `sac` in every state.
    pub latency_ms: f64,
    pub energy_j: Option<f64>,
    /// If it plans anew in every state, which it knows.
    pub replanned_latency_ms: f64,
    /// Median time of a decision, on the computer that simulates.
    pub decision_us: f64,
}

impl Rows {
    /// The row of a policy.
    pub fn get(&self, policy: Policy) -> Option<&PolicyRow> {
        self.named(policy.name())
    }

    /// The row of a policy or an ablation.
    pub fn named(&self, name: &str) -> Option<&PolicyRow> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, row)| row)
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, row)| (name, row)))
    }
}

/// A model on a board.
pub struct Played {
    /// The board.
    pub target: String,
    /// The model.
    pub model: String,
    /// Whether it belongs to the table of pruned models.
    pub pruned: bool,
    /// By [`Setting::ALL`].
    pub settings: Vec<Rows>,
}
