//! Supervised training of the threshold predictor, in any of its architectures.
//!
//! AdamW with a linear warm-up and a cosine to zero (Loshchilov and Hutter 2017, arXiv 1608.03983)
//! over minibatches of padded sequences. What is validated and kept is a running average of the
//! weights (Polyak and Juditsky 1992), of the epoch where it is best; in a trial it was as good as the
//! best single weights. Validation runs the run-time net itself.

mod batch;
mod lstm;
mod net;

use std::ops::ControlFlow;

use burn_tensor::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::TrainError;
use super::adam::{Adam, clip};
use super::parameters::Parameters;
use crate::dataset::{Dataset, DatasetError};
use crate::predictor::{Architecture, KIND, OUTPUTS, Predictor};
use crate::weights::Weights;
use batch::{Batch, batches};

/// What is minimised, per threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// |error|
    L1,
    /// error^2 / 2 up to `delta`, linear beyond (Huber 1964).
    Huber {
        /// Where it becomes linear.
        delta: f32,
    },
}

impl Loss {
    /// Of one error.
    pub fn of(self, error: f32) -> f32 {
        let size = error.abs();
        match self {
            Loss::L1 => size,
            Loss::Huber { delta } if size < delta => 0.5 * size * size,
            Loss::Huber { delta } => delta * (size - 0.5 * delta),
        }
    }
}

/// Settings of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictorConfig {
    /// The parts of the net.
    pub architecture: Architecture,
    /// Width of embeddings.
    pub width: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Hidden width of the encoder's feed-forward nets.
    pub feed: usize,
    /// Operators that attend to each other.
    pub window: usize,
    /// Hidden width of the LSTM, per direction.
    pub lstm: usize,
    /// Passes over the training set.
    pub epochs: usize,
    /// Sequences per update.
    pub batch: usize,
    /// Learning rate after the warm-up.
    pub learning_rate: f32,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f32,
    /// What is minimised.
    pub loss: Loss,
    /// Updates that the average of the weights looks back on; 1: none.
    pub average: f32,
    /// Limit of the gradient's norm.
    pub clip: f32,
    /// Epochs without a better validation loss until the training stops; 0: never.
    pub patience: usize,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for PredictorConfig {
    fn default() -> PredictorConfig {
        PredictorConfig {
            architecture: Architecture::TransformerLstm,
            width: 64,
            heads: 4,
            layers: 2,
            feed: 128,
            window: 128,
            lstm: 64,
            epochs: 60,
            batch: 16,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            loss: Loss::Huber { delta: 0.1 },
            average: 500.0,
            clip: 1.0,
            patience: 15,
            seed: 0,
        }
    }
}

impl PredictorConfig {
    fn check(&self) -> Result<(), TrainError> {
        let rates = self.learning_rate > 0.0
            && self.learning_rate.is_finite()
            && (0.0..=1.0).contains(&(self.learning_rate * self.weight_decay))
            && self.clip > 0.0;
        let heads = self.heads > 0 && self.width.is_multiple_of(self.heads);
        let delta = match self.loss {
            Loss::L1 => 1.0,
            Loss::Huber { delta } => delta,
        };
        let settings: [(&'static str, bool, String, &'static str); 9] = [
            ("width", self.width > 0, self.width.to_string(), "at least 1"),
            ("heads", heads && self.heads <= 64, self.heads.to_string(), "a divisor of the width"),
            ("layers", (1..=16).contains(&self.layers), self.layers.to_string(), "1 to 16"),
            ("feed", self.feed > 0 && self.lstm > 0, self.feed.to_string(), "at least 1"),
            ("window", (2..=4096).contains(&self.window), self.window.to_string(), "2 to 4096"),
            (
                "epochs, batch",
                self.epochs > 0 && self.batch > 0,
                format!("{}, {}", self.epochs, self.batch),
                "at least 1",
            ),
            (
                "learning_rate, weight_decay, clip",
                rates,
                format!("{}, {}, {}", self.learning_rate, self.weight_decay, self.clip),
                "above 0, at least 0, above 0",
            ),
            (
                "average",
                self.average >= 1.0 && self.average.is_finite(),
                self.average.to_string(),
                "at least 1",
            ),
            ("loss", delta > 0.0 && delta.is_finite(), format!("{:?}", self.loss), "delta above 0"),
        ];
        match settings.into_iter().find(|(_, good, _, _)| !good) {
            Some((name, _, value, expected)) => Err(TrainError::Setting { name, value, expected }),
            None => Ok(()),
        }
    }
}

/// One entry of the learning curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// From 1.
    pub epoch: usize,
    /// Mean training loss during the epoch.
    pub train_loss: f64,
    /// Validation loss after it.
    pub validation_loss: f64,
    /// Mean absolute validation error after it.
    pub validation_error: f64,
}

/// The result of a training.
#[derive(Clone, Debug)]
pub struct PredictorRun {
    /// The weights of the best epoch; for [`Predictor::from_weights`] or [`Weights::save`].
    pub weights: Weights,
    /// The learning curve.
    pub epochs: Vec<Epoch>,
    /// The epoch the weights are from, from 1.
    pub best_epoch: usize,
}

/// Part of the updates that warm up.
const WARM_UP: f32 = 0.05;

/// Trains a predictor. `on_epoch` sees every entry of the curve and may end the training.
///
/// # Errors
/// [`TrainError::Dataset`], [`TrainError::Setting`] or [`TrainError::Diverged`].
pub fn train_predictor(
    config: &PredictorConfig,
    train: &Dataset,
    validation: &Dataset,
    on_epoch: &mut dyn FnMut(&Epoch) -> ControlFlow<()>,
) -> Result<PredictorRun, TrainError> {
    config.check()?;
    train.check()?;
    validation.check()?;
    if train.features != validation.features {
        return Err(TrainError::Dataset(DatasetError::Length {
            sequence: 0,
            what: "an operator of the validation set",
            found: validation.features,
            expected: train.features,
        }));
    }
    let mut rng = Pcg64::seed_from_u64(config.seed);
    let statistics = Statistics::of(train);
    let mut parameters = net::parameters(config, train.features, &mut rng);
    let mut average = parameters.clone();
    let mut adam = Adam::new(&parameters);
    let per_epoch = train.sequences.iter().filter(|s| !s.is_empty()).count().div_ceil(config.batch);
    let total = (per_epoch * config.epochs) as f32;
    let mut run: Option<PredictorRun> = None;
    let mut epochs = Vec::new();
    let mut update = 0u64;
    for epoch in 1..=config.epochs {
        let (mut loss_sum, mut weight_sum) = (0.0, 0.0);
        let order = shuffled(train.sequences.len(), &mut rng);
        for batch in batches(train, &order, config.batch, &statistics, &mut rng) {
            let (loss, mut gradients) = gradients(config, &parameters, &batch);
            update += 1;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { update });
            }
            clip(&mut gradients, config.clip);
            let rate = config.learning_rate * schedule(update as f32 / total);
            adam.step(&mut parameters, &gradients, rate, config.weight_decay);
            // The first weights are random: the average does not begin with them.
            average.follow(&parameters, 1.0 / config.average.min(update as f32));
            loss_sum += f64::from(loss) * f64::from(batch.weight);
            weight_sum += f64::from(batch.weight);
        }
        if !parameters.is_finite() {
            return Err(TrainError::Diverged { update });
        }
        let weights = export(config, &statistics, &average);
        let (validation_loss, validation_error) = validate(config.loss, &weights, validation)?;
        let entry =
            Epoch { epoch, train_loss: loss_sum / weight_sum, validation_loss, validation_error };
        epochs.push(entry);
        let best =
            run.as_ref().map_or(f64::INFINITY, |r| r.epochs[r.best_epoch - 1].validation_loss);
        if run.is_none() || validation_loss < best {
            run = Some(PredictorRun { weights, epochs: epochs.clone(), best_epoch: epoch });
        }
        let since = epoch - run.as_ref().map_or(epoch, |r| r.best_epoch);
        if on_epoch(&entry).is_break() || (config.patience > 0 && since >= config.patience) {
            break;
        }
    }
    let run = run.expect("there is at least one epoch");
    Ok(PredictorRun { epochs, ..run })
}

/// The loss and mean absolute error of a net over a data set, weighted.
///
/// # Errors
/// [`TrainError::Weights`] if the weights are no predictor, [`TrainError::Dataset`] if the data set
/// does not fit it.
pub fn validate(loss: Loss, weights: &Weights, data: &Dataset) -> Result<(f64, f64), TrainError> {
    let predictor = Predictor::from_weights(weights.clone())?;
    let (mut losses, mut errors, mut total) = (0.0, 0.0, 0.0);
    for (sequence, s) in data.sequences.iter().enumerate() {
        let found = predictor.predict(&s.features).map_err(|_| DatasetError::Length {
            sequence,
            what: "features",
            found: s.features.len(),
            expected: s.len() * predictor.features(),
        })?;
        for ((y, t), w) in found.iter().zip(&s.targets).zip(&s.weights) {
            losses += f64::from(w * loss.of(y - t));
            errors += f64::from(w * (y - t).abs());
            total += f64::from(*w);
        }
    }
    Ok((losses / total, errors / total))
}

/// The mean loss of a batch and the gradients of all parameters.
fn gradients(config: &PredictorConfig, p: &Parameters, batch: &Batch) -> (f32, Vec<Vec<f32>>) {
    let device = Device::flex().autodiff();
    let leaves = p.leaves(&device, true);
    let encoded = net::encode(config, &leaves, batch, &device);
    if !config.architecture.has_lstm() {
        let loss = net::loss(config.loss, net::head(&leaves, encoded), batch, &device);
        let gradients = leaves.gradients(&loss.backward());
        return (super::parameters::values(loss)[0], gradients);
    }
    // The LSTM is outside the graph: its steps are differentiated by hand (see `lstm`).
    let x = super::parameters::values(encoded.clone());
    let tape = lstm::forward(p, &x, batch.rows, batch.steps, &batch.mask);
    let n = batch.rows * batch.steps;
    let states = tape.states();
    let width = states.len() / n;
    let states = super::parameters::matrix(states, n, width, &device).require_grad();
    let loss = net::loss(config.loss, net::head(&leaves, states.clone()), batch, &device);
    let after = loss.backward();
    let wanted = states.grad(&after).expect("the head uses the states");
    let back = lstm::backward(p, &tape, &super::parameters::values(wanted));
    // A sum whose derivative by the encoder's output is what came back from the LSTM.
    let columns = x.len() / n;
    let through: Tensor<2> = super::parameters::matrix(back.inputs, n, columns, &device);
    let before = (encoded * through).sum().backward();
    let mut all = leaves.gradients(&after);
    for (sum, part) in all.iter_mut().zip(leaves.gradients(&before)) {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    for (sum, parameter) in all.iter_mut().zip(p.list()) {
        if let Some((_, gradient)) = back.parameters.iter().find(|(n, _)| *n == parameter.name) {
            sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
        }
    }
    (super::parameters::values(loss)[0], all)
}

/// The learning rate's factor after a part of all updates.
fn schedule(part: f32) -> f32 {
    let cosine = 0.5 * (1.0 + (std::f32::consts::PI * part.min(1.0)).cos());
    (part / WARM_UP).min(1.0) * cosine
}

fn shuffled(n: usize, rng: &mut Pcg64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}

/// Mean and deviation of every feature over the training set's operators.
struct Statistics {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Statistics {
    fn of(data: &Dataset) -> Statistics {
        let rows = || data.sequences.iter().flat_map(|s| s.features.chunks_exact(data.features));
        let n = rows().count() as f64;
        let (mut mean, mut square) = (vec![0.0; data.features], vec![0.0; data.features]);
        for row in rows() {
            for (m, v) in mean.iter_mut().zip(row) {
                *m += f64::from(*v) / n;
            }
        }
        for row in rows() {
            for ((s, v), m) in square.iter_mut().zip(row).zip(&mean) {
                *s += (f64::from(*v) - m).powi(2) / n;
            }
        }
        // A constant feature says nothing, and must not be divided by nothing.
        let deviation = |s: &f64| if *s > 1e-12 { s.sqrt() as f32 } else { 1.0 };
        Statistics {
            mean: mean.iter().map(|m| *m as f32).collect(),
            deviation: square.iter().map(deviation).collect(),
        }
    }
}

fn export(config: &PredictorConfig, s: &Statistics, parameters: &Parameters) -> Weights {
    let mut w = Weights::new(KIND);
    w.set_note("architecture", config.architecture.name());
    if config.architecture.has_encoder() {
        let numbers =
            [("heads", config.heads), ("layers", config.layers), ("window", config.window)];
        for (key, value) in numbers {
            w.set_note(key, &value.to_string());
        }
    }
    w.insert("input.mean", &[s.mean.len()], s.mean.clone());
    w.insert("input.deviation", &[s.deviation.len()], s.deviation.clone());
    parameters.store("", &mut w);
    debug_assert!(w.tensor("head.bias", &[OUTPUTS]).is_ok());
    w
}

#[cfg(test)]
mod tests;
