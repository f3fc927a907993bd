//! Multi-layer perceptrons with ReLUs: actor and critics.

use burn_tensor::Tensor;
use burn_tensor::activation::relu;
use rand::Rng;

use super::parameters::{Leaves, Parameters};

/// Parameters `layers.0.weight`, ... of a net with these layer sizes, inputs first. The last layer
/// starts small, so that first outputs are near zero.
pub(crate) fn mlp_parameters(sizes: &[usize], rng: &mut dyn Rng) -> Parameters {
    let mut parameters = Parameters::default();
    for (i, pair) in sizes.windows(2).enumerate() {
        parameters.push_dense(&format!("layers.{i}"), pair[0], pair[1], rng);
    }
    for last in parameters.list_mut().iter_mut().rev().take(2) {
        last.value.iter_mut().for_each(|v| *v *= 0.1);
    }
    parameters
}

/// The net's outputs, [rows, outputs].
pub(crate) fn mlp(leaves: &Leaves, layers: usize, mut x: Tensor<2>) -> Tensor<2> {
    for i in 0..layers {
        x = leaves.dense(&format!("layers.{i}"), x);
        if i + 1 < layers {
            x = relu(x);
        }
    }
    x
}
