//! Named parameters in plain vectors, and their life as leaves of one step's graph.

use burn_tensor::{Device, Gradients, Tensor, TensorData};
use rand::{Rng, RngExt};

use crate::weights::{Weights, WeightsError};

/// One trainable tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) value: Vec<f32>,
}

/// The trainable tensors of a net, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parameters {
    list: Vec<Parameter>,
}

impl Parameters {
    pub(crate) fn push(&mut self, name: &str, shape: &[usize], value: Vec<f32>) {
        assert!(shape.iter().product::<usize>() == value.len(), "the shape holds the value");
        self.list.push(Parameter { name: name.to_owned(), shape: shape.to_vec(), value });
    }

    /// `name.weight` [inputs, outputs] and `name.bias`, uniform within 1 / sqrt(inputs), as PyTorch's
    /// linear layers are.
    pub(crate) fn push_dense(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        rng: &mut dyn Rng,
    ) {
        let bound = 1.0 / (inputs as f32).sqrt();
        let weight = uniform(inputs * outputs, bound, rng);
        self.push(&format!("{name}.weight"), &[inputs, outputs], weight);
        self.push(&format!("{name}.bias"), &[outputs], uniform(outputs, bound, rng));
    }

    pub(crate) fn list(&self) -> &[Parameter] {
        &self.list
    }

    pub(crate) fn list_mut(&mut self) -> &mut [Parameter] {
        &mut self.list
    }

    pub(crate) fn is_finite(&self) -> bool {
        self.list.iter().all(|p| p.value.iter().all(|v| v.is_finite()))
    }

    /// Adds all tensors to `weights`, their names prefixed.
    pub(crate) fn store(&self, prefix: &str, weights: &mut Weights) {
        for p in &self.list {
            weights.insert(&format!("{prefix}{}", p.name), &p.shape, p.value.clone());
        }
    }

    /// Overwrites all values with those under the same names.
    pub(crate) fn restore(&mut self, prefix: &str, weights: &Weights) -> Result<(), WeightsError> {
        for p in &mut self.list {
            p.value = weights.tensor(&format!("{prefix}{}", p.name), &p.shape)?.to_vec();
        }
        Ok(())
    }

    /// Moves every value the fraction `tau` of the way to `other`'s (Polyak averaging).
    pub(crate) fn follow(&mut self, other: &Parameters, tau: f32) {
        for (p, q) in self.list.iter_mut().zip(&other.list) {
            for (a, b) in p.value.iter_mut().zip(&q.value) {
                *a += tau * (b - *a);
            }
        }
    }

    /// The parameters as tensors; with gradients on an autodiff device if `trainable`.
    pub(crate) fn leaves(&self, device: &Device, trainable: bool) -> Leaves {
        let leaf = |p: &Parameter| {
            let n = p.value.len();
            let tensor = Tensor::<1>::from_data(TensorData::new(p.value.clone(), [n]), device);
            Leaf {
                name: p.name.clone(),
                shape: p.shape.clone(),
                tensor: if trainable { tensor.require_grad() } else { tensor },
            }
        };
        Leaves { list: self.list.iter().map(leaf).collect() }
    }
}

struct Leaf {
    name: String,
    shape: Vec<usize>,
    tensor: Tensor<1>,
}

/// Parameters inside one graph.
pub(crate) struct Leaves {
    list: Vec<Leaf>,
}

impl Leaves {
    fn find(&self, name: &str) -> &Leaf {
        self.list.iter().find(|l| l.name == name).expect("the net has the parameter")
    }

    pub(crate) fn vector(&self, name: &str) -> Tensor<1> {
        self.find(name).tensor.clone()
    }

    pub(crate) fn matrix(&self, name: &str) -> Tensor<2> {
        let leaf = self.find(name);
        leaf.tensor.clone().reshape([leaf.shape[0], leaf.shape[1]])
    }

    /// x W + b with the tensors `name.weight` and `name.bias`.
    pub(crate) fn dense(&self, name: &str, x: Tensor<2>) -> Tensor<2> {
        let bias = self.vector(&format!("{name}.bias"));
        x.matmul(self.matrix(&format!("{name}.weight"))) + bias.unsqueeze::<2>()
    }

    /// The gradients in the parameters' order; zeros where a parameter had no part.
    pub(crate) fn gradients(&self, gradients: &Gradients) -> Vec<Vec<f32>> {
        let of = |leaf: &Leaf| match leaf.tensor.grad(gradients) {
            Some(g) => values(g),
            None => vec![0.0; leaf.shape.iter().product()],
        };
        self.list.iter().map(of).collect()
    }
}

/// A tensor's elements, row-major.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("tensors here are f32")
}

/// A matrix from row-major elements.
pub(crate) fn matrix(data: Vec<f32>, rows: usize, columns: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(data, [rows, columns]), device)
}

fn uniform(n: usize, bound: f32, rng: &mut dyn Rng) -> Vec<f32> {
    (0..n).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect()
}
