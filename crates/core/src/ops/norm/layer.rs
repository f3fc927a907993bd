//! LayerNormalization and RMSNormalization over the last axes, and `com.microsoft`'s forms that
//! add a skip connection first.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{
    math::{self, BinaryOp},
    norm::{layer_norm, rms_norm},
};

use super::check_len;
use crate::{
    ops::{
        AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError,
        OpSpec, Operand, Operands, Part, PartInput, Scratch, axes, conv::same_dtype, floats, gpu,
        kernel_with,
    },
    tensor::{DType, TensorType},
};

pub(super) const LAYER: OpSpec = OpSpec {
    name: "LayerNormalization",
    domain: "",
    since: 1,
    inputs: (2, 3),
    outputs: (1, 3),
    parse: |a| Ok(Arc::new(LayerNorm::parse(a, false)?)),
    examples: || {
        vec![
            Example::new("rows")
                .input(floats([2, 3, 7], 1))
                .constant(floats([7], 2))
                .constant(floats([7], 3)),
            Example::new("two axes, no shift, statistics")
                .attribute("axis", 1i64)
                .attribute("epsilon", 0.01f32)
                .input(floats([2, 3, 4], 1))
                .constant(floats([3, 4], 2))
                .outputs(1),
            Example::new("mean and deviation")
                .input(floats([2, 5], 1))
                .constant(floats([5], 2))
                .constant(floats([5], 3))
                .outputs(3),
        ]
    },
};

pub(super) const RMS: OpSpec = OpSpec {
    name: "RMSNormalization",
    inputs: (2, 2),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(LayerNorm::parse(a, true)?)),
    examples: || vec![Example::new("rows").input(floats([2, 3, 7], 1)).constant(floats([7], 2))],
    ..LAYER
};

/// The name under which exporters for ONNX Runtime write RMSNormalization.
pub(super) const SIMPLIFIED: OpSpec = OpSpec { name: "SimplifiedLayerNormalization", ..RMS };

pub(super) const SKIP: OpSpec = OpSpec {
    name: "SkipLayerNormalization",
    domain: "com.microsoft",
    inputs: (3, 5),
    outputs: (1, 4),
    parse: |a| Ok(Arc::new(LayerNorm::parse_skip(a, false)?)),
    examples: || {
        vec![
            Example::new("shift and bias")
                .attribute("epsilon", 1e-5f32)
                .input(floats([2, 3, 6], 1))
                .input(floats([2, 3, 6], 2))
                .constant(floats([6], 3))
                .constant(floats([6], 4))
                .constant(floats([6], 5)),
        ]
    },
    ..LAYER
};

pub(super) const SKIP_SIMPLIFIED: OpSpec = OpSpec {
    name: "SkipSimplifiedLayerNormalization",
    inputs: (3, 4),
    parse: |a| Ok(Arc::new(LayerNorm::parse_skip(a, true)?)),
    examples: || {
        vec![
            Example::new("bias, sum wanted too")
                .input(floats([2, 6], 1))
                .input(floats([2, 6], 2))
                .constant(floats([6], 3))
                .constant(floats([6], 4))
                .outputs(4),
        ]
    },
    ..SKIP
};

/// Normalisation of rows. Inputs: x, scale, optional shift; with `skip`: x, skip, scale, shift
/// (not for RMS), bias, of which x + skip + bias is normalised. Outputs: y; as wanted, mean and
/// 1 / deviation of each row (not for RMS); with `skip`, output 3 is the sum.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// First of the normalised axes; negative counts from the end.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
    /// Divides by the root of the mean square, without subtracting the mean.
    pub rms: bool,
    /// Adds two tensors first.
    pub skip: bool,
    /// Number of outputs.
    pub outputs: usize,
}

impl LayerNorm {
    /// A normalisation over the axes from `axis` on, with one output.
    pub fn new(axis: i64, epsilon: f32) -> LayerNorm {
        LayerNorm { axis, epsilon, rms: false, skip: false, outputs: 1 }
    }

    fn parse(attributes: &Attributes, rms: bool) -> Result<LayerNorm, OpError> {
        // Statistics are computed in f32 at least.
        attributes.ignore(&["stash_type"]);
        Ok(LayerNorm {
            axis: attributes.int_or("axis", -1)?,
            epsilon: attributes.float_or("epsilon", 1e-5)?,
            rms,
            skip: false,
            outputs: attributes.outputs.max(1),
        })
    }

    fn parse_skip(attributes: &Attributes, rms: bool) -> Result<LayerNorm, OpError> {
        let epsilon = attributes.float_or("epsilon", 1e-12)?;
        let outputs = attributes.outputs.max(1);
        Ok(LayerNorm { axis: -1, epsilon, rms, skip: true, outputs })
    }

    /// Index of the scale among the inputs.
    fn scale_at(&self) -> usize {
        if self.skip { 2 } else { 1 }
    }

    /// Indices of the shift and of the bias.
    fn shift_and_bias(&self) -> (Option<usize>, Option<usize>) {
        match (self.skip, self.rms) {
            (false, false) => (Some(2), None),
            (false, true) => (None, None),
            (true, false) => (Some(3), Some(4)),
            (true, true) => (None, Some(3)),
        }
    }

    /// Rows and their length.
    fn sizes(&self, shape: &[usize]) -> Result<[usize; 2], OpError> {
        let at = axes::axis(self.axis, shape.len())?;
        Ok([axes::product(&shape[..at])?, axes::product(&shape[at..])?])
    }
}

impl Op for LayerNorm {
    fn op_type(&self) -> &'static str {
        match (self.skip, self.rms) {
            (false, false) => "LayerNormalization",
            (false, true) => "SimplifiedLayerNormalization",
            (true, false) => "SkipLayerNormalization",
            (true, true) => "SkipSimplifiedLayerNormalization",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        let at = axes::axis(self.axis, x.shape().len())?;
        let [_, len] = self.sizes(x.shape())?;
        check_len(inputs.required(self.scale_at(), "scale")?, len, "scale")?;
        let (shift, bias) = self.shift_and_bias();
        for (at, name) in [(shift, "B"), (bias, "bias")] {
            if let Some(parameter) = at.and_then(|at| inputs.optional(at)) {
                same_dtype(x, parameter, name)?;
                check_len(parameter, len, name)?;
            }
        }
        if self.skip {
            let skip = inputs.required(1, "skip")?;
            if skip.ty != x.ty {
                return Err(OpError::unsupported(format!(
                    "skip is {}, x is {} (nearest: both of one type)",
                    skip.ty, x.ty
                )));
            }
        }
        let mut rows = x.shape().to_vec();
        rows[at..].fill(1);
        // Statistics are f32 whatever x is.
        let statistics = TensorType::new(DType::F32, rows);
        let mut types = vec![x.ty.clone(), statistics.clone(), statistics, x.ty.clone()];
        types.truncate(self.outputs);
        Ok(types)
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        8 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let [rows, len] = self.sizes(x.input(0).shape())?;
        let op = self.clone();
        let sum_len = if self.skip && self.outputs < 4 { rows * len } else { 0 };
        Ok(kernel_with(
            0,
            move |_| Scratch::bytes::<f32>(sum_len),
            move |io, pool| {
                let mut x = io.input(0).slice::<f32>();
                if x.is_empty() {
                    return Ok(());
                }
                let (shift_at, bias_at) = op.shift_and_bias();
                let parameter =
                    |at: Option<usize>| at.and_then(|at| io.get(at)).map(|p| p.slice::<f32>());
                let (shift, bias) = (parameter(shift_at), parameter(bias_at));
                let gamma = io.input(op.scale_at()).slice::<f32>();
                let skip = io.get(1).map(|skip| skip.slice::<f32>());
                let (y, more) = io.outputs.split_first_mut().expect("a node has an output");
                let y = y.slice_mut::<f32>();
                let (wanted, sum) = more.split_at_mut(more.len().min(2));
                if op.skip
                    && let Some(skip) = skip
                {
                    let sum = match sum.first_mut() {
                        Some(sum) => sum.slice_mut::<f32>(),
                        None => Scratch::new(io.scratch).take::<f32>(sum_len),
                    };
                    pool.run_parts(sum, len, &|row, sum| {
                        let at = row * len..(row + 1) * len;
                        sum.copy_from_slice(&x[at.clone()]);
                        math::binary_in_place(BinaryOp::Add, sum, math::Operand::Slice(&skip[at]));
                        if let Some(bias) = bias {
                            math::binary_in_place(BinaryOp::Add, sum, math::Operand::Slice(bias));
                        }
                    });
                    x = sum;
                }
                statistics(x, len, op.epsilon, wanted);
                if op.rms {
                    rms_norm(rows, len, Some(gamma), op.epsilon, x, y, pool);
                } else {
                    layer_norm(rows, len, Some(gamma), shift, op.epsilon, x, y, pool);
                }
                Ok(())
            },
        ))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::layer_norm(self, self.sizes(x.input(0).shape()).ok()?, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = &x.output(0).shape;
        let at = axes::axis(self.axis, shape.len()).ok()?;
        axes::first_long(shape).filter(|&axis| axis < at && self.outputs == 1)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let rows = PartInput::Range { axis, range };
        let mut inputs = vec![rows.clone()];
        if self.skip {
            inputs.push(rows);
        }
        inputs.resize(x.inputs.len(), PartInput::Whole);
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("epsilon", self.epsilon.into())];
        if !self.skip {
            list.push(("axis", self.axis.into()));
        }
        list
    }

    fn domain(&self) -> &'static str {
        if self.skip { "com.microsoft" } else { "" }
    }
}

/// Mean and 1 / deviation of each row, as far as they are wanted.
fn statistics(x: &[f32], len: usize, epsilon: f32, wanted: &mut [crate::tensor::TensorMut<'_>]) {
    for (which, output) in wanted.iter_mut().enumerate() {
        for (x, out) in x.chunks_exact(len).zip(output.slice_mut::<f32>()) {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
            let variance =
                x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len as f64;
            let deviation = (variance + f64::from(epsilon)).sqrt();
            *out = if which == 0 { mean as f32 } else { (1.0 / deviation) as f32 };
        }
    }
}
