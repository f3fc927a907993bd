//! The actor of soft actor-critic at run time: one observation in, shares of work out.
//!
//! A multi-layer perceptron with ReLUs whose last layer gives a mean and a spread per action
//! (Haarnoja et al. 2018, arXiv 1812.05905, section 4 and appendix C). Actions leave squashed to
//! (0, 1): share = (tanh(mean) + 1) / 2.

use std::path::Path;

use rand::{Rng, RngExt};
use sparoa_kernels::{Activation, Epilogue, Pool};

use crate::dense::Dense;
use crate::weights::{Weights, WeightsError};

/// The kind of its weight files.
pub const KIND: &str = "actor";
/// Bounds of the logarithm of the spread; between them it follows a tanh.
pub(crate) const LOG_STD_RANGE: (f32, f32) = (-5.0, 2.0);
/// More layers than any actor has: a bound for what a file may say.
const MAX_LAYERS: usize = 16;

/// The policy net. It owns its scratch memory: a step allocates nothing.
pub struct Actor {
    layers: Vec<Dense>,
    weights: Weights,
    hidden: [Vec<f32>; 2],
    output: Vec<f32>,
    action: Vec<f32>,
    pool: Pool,
}

impl Actor {
    /// Reads a weight file.
    ///
    /// # Errors
    /// Every [`WeightsError`] of reading; each names the file.
    pub fn load(path: &Path) -> Result<Actor, WeightsError> {
        Actor::from_weights(Weights::load(path)?)
    }

    /// Reads embedded weights; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Actor::load`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Actor, WeightsError> {
        Actor::from_weights(Weights::from_bytes(name, bytes)?)
    }

    /// Builds the net from weights in memory: `layers.0.weight` [observation, hidden], ..., the last
    /// layer's outputs being the means and then the log-spreads.
    ///
    /// # Errors
    /// As [`Actor::load`].
    pub fn from_weights(weights: Weights) -> Result<Actor, WeightsError> {
        weights.expect("kind", KIND)?;
        let count = weights.number("layers", 1..=MAX_LAYERS)?;
        let (mut inputs, _) = weights.matrix_shape("layers.0.weight")?;
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            let name = format!("layers.{i}");
            let (_, outputs) = weights.matrix_shape(&format!("{name}.weight"))?;
            layers.push(Dense::from_weights(&weights, &name, inputs, outputs)?);
            inputs = outputs;
        }
        if inputs % 2 != 0 {
            let name = format!("layers.{}.weight", count - 1);
            // An odd width cannot be means and spreads; the nearest even shape is what is missing.
            weights.tensor(&name, &[layers[count - 1].inputs(), inputs + 1])?;
        }
        let widest = layers[..count - 1].iter().map(Dense::outputs).max().unwrap_or(0);
        Ok(Actor {
            layers,
            weights,
            hidden: [vec![0.0; widest], vec![0.0; widest]],
            output: vec![0.0; inputs],
            action: vec![0.0; inputs / 2],
            pool: Pool::single(),
        })
    }

    /// Elements of an observation.
    pub fn observation_len(&self) -> usize {
        self.layers[0].inputs()
    }

    /// Actions per step.
    pub fn outputs(&self) -> usize {
        self.action.len()
    }

    /// The weights it was built from, with the trainer's notes.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The most likely actions for an observation, each in [0, 1].
    ///
    /// Panics unless `observation` has [`Actor::observation_len`] elements. A NaN in gives NaN out.
    pub fn act(&mut self, observation: &[f32]) -> &[f32] {
        self.forward(observation);
        for (action, mean) in self.action.iter_mut().zip(&self.output) {
            *action = share(*mean);
        }
        &self.action
    }

    /// Actions drawn from the policy's distribution, each in [0, 1].
    ///
    /// Panics unless `observation` has [`Actor::observation_len`] elements.
    pub fn sample(&mut self, observation: &[f32], rng: &mut dyn Rng) -> &[f32] {
        self.forward(observation);
        let (means, spreads) = self.output.split_at(self.action.len());
        for ((action, mean), spread) in self.action.iter_mut().zip(means).zip(spreads) {
            *action = share(mean + log_std(*spread).exp() * standard_normal(rng));
        }
        &self.action
    }

    fn forward(&mut self, observation: &[f32]) {
        assert!(
            observation.len() == self.observation_len(),
            "the observation has the net's length"
        );
        let relu = Epilogue::activation(Activation::Relu);
        let [current, next] = &mut self.hidden;
        let (mut current, mut next) = (current, next);
        let mut input = observation;
        let (last, hidden) = self.layers.split_last().expect("an actor has a layer");
        for layer in hidden {
            layer.apply(1, input, &relu, &mut next[..layer.outputs()], &self.pool);
            std::mem::swap(&mut current, &mut next);
            input = &current[..layer.outputs()];
        }
        last.apply(1, input, &Epilogue::NONE, &mut self.output, &self.pool);
    }
}

/// The squashed action in [0, 1].
fn share(x: f32) -> f32 {
    (x.tanh() + 1.0) / 2.0
}

/// The log of the spread from the net's raw output.
fn log_std(raw: f32) -> f32 {
    let (low, high) = LOG_STD_RANGE;
    low + (high - low) * share(raw)
}

/// A draw from the standard normal distribution (Box and Muller 1958).
pub(crate) fn standard_normal(rng: &mut dyn Rng) -> f32 {
    // 1 - u is in (0, 1]: its logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    fn net(sizes: &[usize], seed: u64) -> Weights {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut w = Weights::new(KIND);
        w.set_note("layers", &(sizes.len() - 1).to_string());
        for (i, pair) in sizes.windows(2).enumerate() {
            let scale = 1.0 / (pair[0] as f32).sqrt();
            let mut draw =
                |n: usize| (0..n).map(|_| scale * standard_normal(&mut rng)).collect::<Vec<f32>>();
            w.insert(&format!("layers.{i}.weight"), &[pair[0], pair[1]], draw(pair[0] * pair[1]));
            w.insert(&format!("layers.{i}.bias"), &[pair[1]], draw(pair[1]));
        }
        w
    }

    /// The means and log-spreads in double precision.
    fn reference(w: &Weights, layers: usize, observation: &[f32]) -> Vec<f64> {
        let mut x: Vec<f64> = observation.iter().map(|v| f64::from(*v)).collect();
        for i in 0..layers {
            let weight = w.array(&format!("layers.{i}.weight")).unwrap();
            let bias = &w.array(&format!("layers.{i}.bias")).unwrap().data;
            let columns = weight.shape[1];
            x = (0..columns)
                .map(|c| {
                    let products = x.iter().enumerate();
                    let sum: f64 =
                        products.map(|(r, v)| v * f64::from(weight.data[r * columns + c])).sum();
                    let y = sum + f64::from(bias[c]);
                    if i + 1 < layers { y.max(0.0) } else { y }
                })
                .collect();
        }
        x
    }

    #[test]
    fn actions_are_those_of_double_precision() {
        for sizes in [&[64, 128, 128, 2][..], &[7, 33, 4], &[5, 2]] {
            let weights = net(sizes, 3);
            let mut actor = Actor::from_weights(weights.clone()).unwrap();
            let mut rng = Pcg64::seed_from_u64(4);
            let observation: Vec<f32> = (0..sizes[0]).map(|_| standard_normal(&mut rng)).collect();
            let expected = reference(&weights, sizes.len() - 1, &observation);
            let action = actor.act(&observation);
            for (a, e) in action.iter().zip(&expected) {
                let e = (e.tanh() + 1.0) / 2.0;
                assert!((f64::from(*a) - e).abs() < 1e-5, "{a} {e}");
            }
        }
    }

    #[test]
    fn draws_have_the_distribution_of_the_net() {
        let weights = net(&[8, 16, 4], 5);
        let mut actor = Actor::from_weights(weights.clone()).unwrap();
        let observation = [0.3; 8];
        let raw = reference(&weights, 2, &observation);
        let mut rng = Pcg64::seed_from_u64(6);
        let n = 20_000;
        let (mut sum, mut squares) = ([0.0; 2], [0.0; 2]);
        for _ in 0..n {
            for (i, a) in actor.sample(&observation, &mut rng).iter().enumerate() {
                let x = f64::from(2.0 * a - 1.0).clamp(-0.999_999, 0.999_999).atanh();
                sum[i] += x;
                squares[i] += x * x;
            }
        }
        for i in 0..2 {
            let mean = sum[i] / f64::from(n);
            let std = (squares[i] / f64::from(n) - mean * mean).sqrt();
            let expected = f64::from(log_std(raw[2 + i] as f32)).exp();
            // Six standard errors; large draws saturate, hence the spread's margin.
            assert!((mean - raw[i]).abs() < 6.0 * expected / 141.0 + 0.02, "{mean} {}", raw[i]);
            assert!((std / expected - 1.0).abs() < 0.1, "{std} {expected}");
        }
    }

    #[test]
    fn files_that_are_no_actor_are_refused() {
        let mut w = net(&[4, 8, 2], 1);
        w.insert("layers.1.weight", &[9, 2], vec![0.0; 18]);
        assert!(matches!(Actor::from_weights(w), Err(WeightsError::WrongShape { .. })));
        let odd = net(&[4, 8, 3], 1);
        assert!(matches!(Actor::from_weights(odd), Err(WeightsError::WrongShape { .. })));
        let mut deep = net(&[4, 8, 2], 1);
        deep.set_note("layers", "3");
        assert!(matches!(Actor::from_weights(deep), Err(WeightsError::MissingTensor { .. })));
        let other = Weights::new("predictor");
        assert!(matches!(Actor::from_weights(other), Err(WeightsError::Setting { .. })));
    }
}
