//! DynamicQuantizeLinear: f32 to u8 with the scale and zero point that its range asks for.

use std::sync::Arc;

use sparoa_kernels::int8;

use crate::{
    ops::{CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands, floats, kernel},
    tensor::{DType, TensorType},
};

pub(super) const SPEC: OpSpec = OpSpec {
    name: "DynamicQuantizeLinear",
    domain: "",
    since: 11,
    inputs: (1, 1),
    outputs: (3, 3),
    parse: |_| Ok(Arc::new(DynamicQuantizeLinear)),
    examples: || vec![Example::new("both signs").input(floats([3, 7], 1)).outputs(3)],
};

/// Inputs: x (f32). Outputs: y (u8), scale (f32), zero point (u8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicQuantizeLinear;

/// Scale and zero point with which all of `x`, and zero, fit into 0 ..= 255.
fn parameters_of(x: &[f32]) -> (f32, u8) {
    let max = x.iter().copied().fold(0.0, f32::max);
    let min = x.iter().copied().fold(0.0, f32::min);
    let scale = if max == min { 1.0 } else { (max - min) / 255.0 };
    (scale, (-min / scale).round_ties_even().clamp(0.0, 255.0) as u8)
}

impl Op for DynamicQuantizeLinear {
    fn op_type(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "x")?;
        Ok(vec![
            TensorType::new(DType::U8, x.shape()),
            TensorType::f32([]),
            TensorType::new(DType::U8, []),
        ])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        4 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.input(0).ty.dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        Ok(kernel(|io, pool| {
            let x = io.input(0).slice::<f32>();
            let (scale, zero) = parameters_of(x);
            const PART: usize = 8192;
            pool.run_parts(io.outputs[0].slice_mut::<u8>(), PART, &|part, y| {
                int8::quantize_u8(&x[part * PART..][..y.len()], scale, zero, y);
            });
            io.outputs[1].slice_mut::<f32>()[0] = scale;
            io.outputs[2].slice_mut::<u8>()[0] = zero;
            Ok(())
        }))
    }
}
