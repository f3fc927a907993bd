//! A dense layer packed for the processor's vectors.

use sparoa_kernels::gemm::{PackedB, gemm};
use sparoa_kernels::{Epilogue, Pool};

use crate::weights::{Weights, WeightsError};

/// y = epilogue(x W + b), W stored as inputs x outputs.
pub(crate) struct Dense {
    weight: PackedB,
    bias: Vec<f32>,
}

impl Dense {
    /// The tensors `name.weight` [inputs, outputs] and `name.bias` [outputs].
    pub(crate) fn from_weights(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Dense, WeightsError> {
        let weight = weights.tensor(&format!("{name}.weight"), &[inputs, outputs])?;
        let bias = weights.tensor(&format!("{name}.bias"), &[outputs])?.to_vec();
        Ok(Dense { weight: PackedB::new(inputs, outputs, weight, false), bias })
    }

    pub(crate) fn inputs(&self) -> usize {
        self.weight.k()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.weight.n()
    }

    /// `x`: rows x inputs; `y`: rows x outputs.
    pub(crate) fn apply(
        &self,
        rows: usize,
        x: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        pool: &Pool,
    ) {
        gemm(rows, x, self.inputs(), &self.weight, Some(&self.bias), epilogue, y, pool);
    }
}
