//! AdamW on plain vectors (Kingma and Ba 2015, arXiv 1412.6980; decoupled weight decay after
//! Loshchilov and Hutter 2019, arXiv 1711.05101).

use super::parameters::Parameters;
use crate::weights::{Weights, WeightsError};

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPS: f32 = 1e-8;

/// The moments of one net's parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Adam {
    steps: u64,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl Adam {
    pub(crate) fn new(parameters: &Parameters) -> Adam {
        let zeros = || parameters.list().iter().map(|p| vec![0.0; p.value.len()]).collect();
        Adam { steps: 0, first: zeros(), second: zeros() }
    }

    /// One step; only matrices decay.
    pub(crate) fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: &[Vec<f32>],
        rate: f32,
        decay: f32,
    ) {
        self.steps += 1;
        let t = self.steps.min(1 << 24) as i32;
        let correction_1 = 1.0 / (1.0 - BETA_1.powi(t));
        let correction_2 = 1.0 / (1.0 - BETA_2.powi(t));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, g), (m, v)) in parameters.list_mut().iter_mut().zip(gradients).zip(moments) {
            let keep = if p.shape.len() > 1 { 1.0 - rate * decay } else { 1.0 };
            let state = m.iter_mut().zip(v.iter_mut());
            for ((w, g), (m, v)) in p.value.iter_mut().zip(g).zip(state) {
                *m = BETA_1 * *m + (1.0 - BETA_1) * g;
                *v = BETA_2 * *v + (1.0 - BETA_2) * g * g;
                let update = (*m * correction_1) / ((*v * correction_2).sqrt() + EPS);
                *w = *w * keep - rate * update;
            }
        }
    }

    /// Adds the moments to a checkpoint.
    pub(crate) fn store(&self, prefix: &str, weights: &mut Weights) {
        for (i, (m, v)) in self.first.iter().zip(&self.second).enumerate() {
            weights.insert(&format!("{prefix}{i}.first"), &[m.len()], m.clone());
            weights.insert(&format!("{prefix}{i}.second"), &[v.len()], v.clone());
        }
        weights.set_note(&format!("{prefix}steps"), &self.steps.to_string());
    }

    /// Reads them back.
    pub(crate) fn restore(&mut self, prefix: &str, weights: &Weights) -> Result<(), WeightsError> {
        for (i, (m, v)) in self.first.iter_mut().zip(&mut self.second).enumerate() {
            *m = weights.tensor(&format!("{prefix}{i}.first"), &[m.len()])?.to_vec();
            *v = weights.tensor(&format!("{prefix}{i}.second"), &[v.len()])?.to_vec();
        }
        self.steps = weights.number(&format!("{prefix}steps"), 0..=usize::MAX)? as u64;
        Ok(())
    }
}

/// Scales gradients down to a Euclidean norm of at most `limit`.
pub(crate) fn clip(gradients: &mut [Vec<f32>], limit: f32) {
    let squares: f64 = gradients.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum();
    let norm = squares.sqrt() as f32;
    if norm > limit {
        let scale = limit / norm;
        gradients.iter_mut().flatten().for_each(|g| *g *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_bottom_of_a_bowl() {
        let mut p = Parameters::default();
        p.push("x", &[2], vec![3.0, -4.0]);
        let mut adam = Adam::new(&p);
        for _ in 0..2000 {
            let gradient = p.list()[0].value.iter().map(|x| 2.0 * (x - 1.0)).collect();
            adam.step(&mut p, &[gradient], 0.02, 0.0);
        }
        assert!(p.list()[0].value.iter().all(|x| (x - 1.0).abs() < 1e-3));
    }

    #[test]
    fn the_first_step_is_the_rate_and_matrices_decay() {
        let mut p = Parameters::default();
        p.push("w", &[1, 1], vec![2.0]);
        p.push("b", &[1], vec![2.0]);
        let mut adam = Adam::new(&p);
        adam.step(&mut p, &[vec![5.0], vec![-5.0]], 0.1, 0.5);
        assert!((p.list()[0].value[0] - (2.0 * 0.95 - 0.1)).abs() < 1e-6);
        assert!((p.list()[1].value[0] - 2.1).abs() < 1e-6);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut g = vec![vec![3.0], vec![4.0]];
        clip(&mut g, 1.0);
        assert!((g[0][0] - 0.6).abs() < 1e-6 && (g[1][0] - 0.8).abs() < 1e-6);
        clip(&mut g, 10.0);
        assert!((g[0][0] - 0.6).abs() < 1e-6);
    }
}
