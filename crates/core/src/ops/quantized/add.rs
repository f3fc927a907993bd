//! The sum of two quantised tensors of one shape, fused from DequantizeLinear, Add and
//! QuantizeLinear.

use std::sync::Arc;

use sparoa_kernels::quantized::{AddOperand, Requantize, add};

use super::{
    Bounds, bounds, bounds_attribute, bounds_within, check_bytes, check_one_scale, check_zero,
    zeros,
};
use crate::{
    ops::{
        AttributeValue, CpuKernel, Example, InputsExt, KernelIo, Op, OpError, OpSpec, Operand,
        Operands, Permuted, kernel, sample,
    },
    tensor::{DType, Tensor, TensorType},
};

pub(super) const SPEC: OpSpec = OpSpec {
    name: "QLinearAdd",
    domain: "ai.sparoa",
    since: 1,
    inputs: (8, 8),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(IntAdd { bounds: bounds(a)? })),
    examples: || {
        vec![
            Example::new("two types, bounds")
                .attribute("bounds", [95, 110])
                .input(sample(TensorType::new(DType::U8, [2, 3, 5]), 1))
                .constant(Tensor::scalar(0.1f32))
                .constant(Tensor::scalar(8u8))
                .input(sample(TensorType::new(DType::I8, [2, 3, 5]), 2))
                .constant(Tensor::scalar(0.2f32))
                .constant(Tensor::scalar(3i8))
                .constant(Tensor::scalar(0.15f32))
                .constant(Tensor::scalar(100u8)),
        ]
    },
};

/// A sum of 8-bit integers. Inputs: a, b and the output, each followed by scale and zero point
/// (the output is left out itself).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntAdd {
    /// Of the output, for an activation that clamps.
    pub bounds: Bounds,
}

impl Op for IntAdd {
    fn op_type(&self) -> &'static str {
        "QLinearAdd"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let (a, b) = (inputs.required(0, "A")?, inputs.required(3, "B")?);
        for (at, x, name) in [(0, a, "A"), (3, b, "B")] {
            check_bytes(x, name)?;
            check_one_scale(inputs.required(at + 1, "scale")?, "scale")?;
            check_zero(Some(inputs.required(at + 2, "zero_point")?), x, 1, "zero_point")?;
        }
        check_one_scale(inputs.required(6, "C_scale")?, "C_scale")?;
        let zero = inputs.required(7, "C_zero_point")?;
        check_bytes(zero, "C_zero_point")?;
        check_zero(Some(zero), zero, 1, "C_zero_point")?;
        if a.shape() != b.shape() {
            return Err(OpError::invalid(format!(
                "A has shape {:?}, B {:?}: both need the same",
                a.shape(),
                b.shape()
            )));
        }
        Ok(vec![TensorType::new(zero.ty.dtype, a.shape())])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        5 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let bounds = bounds_within(self.bounds, x.output(0).dtype);
        let signed = [0, 3].map(|at| x.input(at).ty.dtype == DType::I8);
        let grid = move |zero| Requantize { multipliers: vec![1.0], zero, bounds };
        // Scales are constants as good as always: nothing is made at run time then.
        let known = x.constant(7).map(|z| grid(zeros(Some(z.view()))[0]));
        Ok(kernel(move |io, pool| {
            let operand = |io: &KernelIo<'_, '_>, at: usize, signed| AddOperand {
                signed,
                zero: one_zero(io, at + 2),
                scale: io.input(at + 1).slice::<f32>()[0],
            };
            let (a, b) = (operand(io, 0, signed[0]), operand(io, 3, signed[1]));
            let y_scale = io.input(6).slice::<f32>()[0];
            let made;
            let grid = match &known {
                Some(grid) => grid,
                None => {
                    made = grid(one_zero(io, 7));
                    &made
                }
            };
            let (x, z) = (io.input(0).bytes, io.input(3).bytes);
            add((x, a), (z, b), io.outputs[0].bytes, y_scale, grid, pool);
            Ok(())
        }))
    }

    fn permuted(&self, _x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let mut inputs = vec![None; 8];
        inputs[0] = Some(perm.to_vec());
        inputs[3] = Some(perm.to_vec());
        Some(Permuted { op: Arc::new(self.clone()), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        bounds_attribute(self.bounds).into_iter().collect()
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}

/// The zero point at input `at`.
fn one_zero(io: &KernelIo<'_, '_>, at: usize) -> i32 {
    let zero = io.input(at);
    match zero.dtype {
        DType::I8 => zero.slice::<i8>()[0].into(),
        _ => zero.slice::<u8>()[0].into(),
    }
}
