//! A warm start: the actor learns a teacher's actions before it learns from rewards.

use burn_tensor::Device;
use burn_tensor::activation::tanh;
use rand::RngExt;

use super::losses::distribution;
use super::{SacTrainer, clip};
use crate::train::TrainError;
use crate::train::adam::Adam;
use crate::train::parameters::{matrix, values};

/// Settings of the warm start.
#[derive(Clone, Debug, PartialEq)]
pub struct CloneConfig {
    /// Updates.
    pub steps: u64,
    /// Observations per update.
    pub batch: usize,
    /// Learning rate.
    pub learning_rate: f32,
    /// The spread (before squashing) that the actor keeps for exploring around the teacher.
    pub spread: f32,
}

impl Default for CloneConfig {
    fn default() -> CloneConfig {
        CloneConfig { steps: 2000, batch: 256, learning_rate: 1e-3, spread: 0.2 }
    }
}

/// How much the spread counts beside the actions.
const SPREAD_WEIGHT: f32 = 0.01;

impl SacTrainer {
    /// Fits the actor's mean actions to a teacher's by least squares; the loss of each update comes
    /// back. `observations`: [n, observation]; `actions`: [n, action], each in [0, 1].
    ///
    /// # Errors
    /// [`TrainError::Environment`] if lengths disagree or a value is not finite,
    /// [`TrainError::Diverged`].
    pub fn pretrain(
        &mut self,
        observations: &[f32],
        actions: &[f32],
        config: &CloneConfig,
    ) -> Result<Vec<f32>, TrainError> {
        let (o, a) = (self.observation_len, self.action_len);
        let n = actions.len() / a;
        let bad = |cause: &str| TrainError::Environment { index: 0, cause: cause.to_owned() };
        if n == 0 || n * a != actions.len() || n * o != observations.len() {
            return Err(bad("the teacher's observations and actions disagree in length"));
        }
        if !observations.iter().all(|v| v.is_finite())
            || !actions.iter().all(|v| (0.0..=1.0).contains(v))
        {
            return Err(bad("the teacher's observations are not finite or actions not in [0, 1]"));
        }
        if config.batch == 0 || !(config.spread > 0.0 && config.spread.is_finite()) {
            let value = format!("batch {}, spread {}", config.batch, config.spread);
            return Err(TrainError::Setting { name: "clone", value, expected: "both above 0" });
        }
        let device = Device::flex().autodiff();
        let mut adam = Adam::new(&self.actor);
        let mut losses = Vec::new();
        for step in 0..config.steps {
            let rows: Vec<usize> = (0..config.batch).map(|_| self.rng.random_range(0..n)).collect();
            let seen = rows.iter().flat_map(|r| &observations[r * o..(r + 1) * o]).copied();
            let seen = matrix(seen.collect(), config.batch, o, &device);
            let wanted = rows.iter().flat_map(|r| &actions[r * a..(r + 1) * a]);
            let wanted = wanted.map(|v| 2.0 * v - 1.0).collect();
            let wanted = matrix(wanted, config.batch, a, &device);
            let leaves = self.actor.leaves(&device, true);
            let (mean, log_std) = distribution(&leaves, self.layers(), seen);
            let error = tanh(mean) - wanted;
            let spread = log_std - config.spread.ln();
            let loss =
                (error.clone() * error).mean() + (spread.clone() * spread).mean() * SPREAD_WEIGHT;
            let mut gradients = leaves.gradients(&loss.backward());
            clip(&mut gradients, self.config.clip);
            adam.step(&mut self.actor, &gradients, config.learning_rate, 0.0);
            let loss = values(loss)[0];
            if !loss.is_finite() {
                return Err(TrainError::Diverged { update: step + 1 });
            }
            losses.push(loss);
        }
        Ok(losses)
    }
}
