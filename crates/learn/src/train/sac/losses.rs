//! The losses of soft actor-critic and one actor update.

use burn_tensor::activation::{relu, tanh};
use burn_tensor::{Device, Tensor};
use rand::Rng;

use super::replay::Batch;
use super::{SacTrainer, clip};
use crate::actor::{LOG_STD_RANGE, standard_normal};
use crate::train::TrainError;
use crate::train::mlp::mlp;
use crate::train::parameters::{Leaves, Parameters, matrix, values};

/// Actions drawn by an actor, and their log-probabilities.
pub(super) struct Draw {
    /// [rows, actions], in [-1, 1].
    pub(super) actions: Tensor<2>,
    /// [rows, 1]
    pub(super) log_probability: Tensor<2>,
}

/// Means and logarithms of the spread before squashing, [rows, actions] each.
pub(super) fn distribution(
    leaves: &Leaves,
    layers: usize,
    observations: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let output = mlp(leaves, layers, observations);
    let [rows, width] = output.dims();
    let actions = width / 2;
    let mean = output.clone().slice([0..rows, 0..actions]);
    let raw = output.slice([0..rows, actions..width]);
    let (low, high) = LOG_STD_RANGE;
    let half = (high - low) / 2.0;
    (mean, tanh(raw) * half + (low + half))
}

/// Reparametrised draws: tanh(mean + spread * noise), `noise` [rows, actions] standard normal.
pub(super) fn draw(
    leaves: &Leaves,
    layers: usize,
    observations: Tensor<2>,
    noise: Tensor<2>,
) -> Draw {
    let (mean, log_std) = distribution(leaves, layers, observations);
    let u = mean + log_std.clone().exp() * noise.clone();
    // ln(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2u)), and softplus(x) without overflow (appendix C
    // of the paper leaves the first form, which is -inf from |u| = 9 on).
    let x = u.clone() * -2.0;
    let softplus = relu(x.clone()) + (x.abs() * -1.0).exp().log1p();
    let squash = (u.clone() + softplus) * -2.0 + 2.0 * std::f32::consts::LN_2;
    let constant = 0.5 * std::f32::consts::TAU.ln();
    let log_probability = noise.powf_scalar(2.0) * -0.5 - log_std - constant - squash;
    Draw { actions: tanh(u), log_probability: log_probability.sum_dim(1) }
}

/// A critic's values, [rows, 1].
pub(super) fn value(
    critic: &Leaves,
    layers: usize,
    observations: Tensor<2>,
    actions: Tensor<2>,
) -> Tensor<2> {
    mlp(critic, layers, Tensor::cat(vec![observations, actions], 1))
}

/// Half the mean squared error of a critic, and its gradients.
pub(super) fn critic(
    critic: &Parameters,
    layers: usize,
    batch: &Batch,
    wanted: &[f32],
    device: &Device,
) -> (f32, Vec<Vec<f32>>) {
    let leaves = critic.leaves(device, true);
    let tensor = |list: &[f32]| matrix(list.to_vec(), batch.rows, list.len() / batch.rows, device);
    let found = value(&leaves, layers, tensor(&batch.observations), tensor(&batch.actions));
    let error = found - tensor(wanted);
    let loss = (error.clone() * error).mean() * 0.5;
    let gradients = leaves.gradients(&loss.backward());
    (values(loss)[0], gradients)
}

pub(super) fn noise(n: usize, rng: &mut dyn Rng) -> Vec<f32> {
    (0..n).map(|_| standard_normal(rng)).collect()
}

impl SacTrainer {
    /// What the critics should say: rewards plus the discounted soft value of what follows, by the
    /// target critics and the current actor.
    pub(super) fn wanted_values(&mut self, batch: &Batch) -> Vec<f32> {
        let device = Device::flex();
        let (rows, layers) = (batch.rows, self.layers());
        let next = matrix(batch.next_observations.clone(), rows, self.observation_len, &device);
        let noise = noise(rows * self.action_len, &mut self.rng);
        let noise = matrix(noise, rows, self.action_len, &device);
        let drawn = draw(&self.actor.leaves(&device, false), layers, next.clone(), noise);
        let [a, b] = &self.targets;
        let [a, b] = [a, b].map(|target| {
            let leaves = target.leaves(&device, false);
            values(value(&leaves, layers, next.clone(), drawn.actions.clone()))
        });
        let log_probability = values(drawn.log_probability);
        let alpha = self.alpha();
        let soft = a.iter().zip(&b).zip(&log_probability).map(|((a, b), l)| a.min(*b) - alpha * l);
        let known = batch.returns.iter().zip(&batch.discounts);
        known.zip(soft).map(|((sum, d), v)| sum + d * v).collect()
    }

    /// One step of the actor and of the temperature.
    pub(super) fn update_actor(&mut self, batch: &Batch) -> Result<(), TrainError> {
        let device = Device::flex().autodiff();
        let (rows, layers) = (batch.rows, self.layers());
        let noise = noise(rows * self.action_len, &mut self.rng);
        let noise = matrix(noise, rows, self.action_len, &device);
        let seen = matrix(batch.observations.clone(), rows, self.observation_len, &device);
        let leaves = self.actor.leaves(&device, true);
        let drawn = draw(&leaves, layers, seen.clone(), noise);
        let [a, b] = &self.critics;
        let [a, b] = [a, b].map(|critic| {
            value(&critic.leaves(&device, false), layers, seen.clone(), drawn.actions.clone())
        });
        // min(a, b) = b - relu(b - a)
        let worst = b.clone() - relu(b - a);
        let alpha = self.alpha();
        let loss = (drawn.log_probability.clone() * alpha - worst).mean();
        let mut gradients = leaves.gradients(&loss.backward());
        clip(&mut gradients, self.config.clip);
        self.actor_adam.step(&mut self.actor, &gradients, self.config.actor_rate, 0.0);
        let log_probability = values(drawn.log_probability.mean())[0];
        let loss = values(loss)[0];
        if !(loss.is_finite() && log_probability.is_finite() && self.actor.is_finite()) {
            return Err(TrainError::Diverged { update: self.updates + 1 });
        }
        if self.config.temperature_rate > 0.0 {
            let target = self.config.target_entropy.unwrap_or(-(self.action_len as f32));
            // The derivative of -ln(alpha) (log_probability + target) by ln(alpha).
            let gradient = vec![vec![-(log_probability + target)]];
            let rate = self.config.temperature_rate;
            self.temperature_adam.step(&mut self.temperature, &gradient, rate, 0.0);
        }
        self.sums.actor_loss += f64::from(loss);
        self.sums.entropy -= f64::from(log_probability);
        self.sums.actor_updates += 1;
        Ok(())
    }
}
