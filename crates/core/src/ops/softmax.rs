//! Softmax, LogSoftmax and Hardmax along one axis, or, before opset 13, along all axes from one on.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::softmax::{log_softmax, softmax};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput, Permuted, axes, floats, gpu, kernel,
};
use crate::tensor::{DType, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    SOFTMAX,
    OpSpec {
        name: "LogSoftmax",
        parse: |a| Ok(Arc::new(Softmax::parse(a, SoftmaxKind::LogSoftmax)?)),
        ..SOFTMAX
    },
    OpSpec {
        name: "Hardmax",
        parse: |a| Ok(Arc::new(Softmax::parse(a, SoftmaxKind::Hardmax)?)),
        ..SOFTMAX
    },
    FLATTENED,
    OpSpec {
        name: "LogSoftmax",
        parse: |a| Ok(Arc::new(Softmax::parse_flattened(a, SoftmaxKind::LogSoftmax)?)),
        ..FLATTENED
    },
    OpSpec {
        name: "Hardmax",
        parse: |a| Ok(Arc::new(Softmax::parse_flattened(a, SoftmaxKind::Hardmax)?)),
        ..FLATTENED
    },
];

const SOFTMAX: OpSpec = OpSpec {
    name: "Softmax",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(Softmax::parse(a, SoftmaxKind::Softmax)?)),
    examples,
};

/// The meaning of opset 12 and older, by itself, for graphs written as ONNX.
const FLATTENED: OpSpec = OpSpec {
    domain: "ai.sparoa",
    parse: |a| Ok(Arc::new(Softmax::parse_flattened(a, SoftmaxKind::Softmax)?)),
    examples: || {
        vec![Example::new("two axes as one").attribute("axis", 1i64).input(floats([2, 3, 4], 1))]
    },
    ..SOFTMAX
};

/// What is computed along the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SoftmaxKind {
    /// exp(x) over the sum of exp(x).
    Softmax,
    /// Its logarithm.
    LogSoftmax,
    /// 1 at the first largest element, 0 elsewhere.
    Hardmax,
}

/// Softmax and its kin. Input: x. Output: y, of x's type.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// What is computed.
    pub kind: SoftmaxKind,
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// All axes from `axis` on count as one (opset 12 and older).
    pub flatten: bool,
}

impl Softmax {
    fn parse(attributes: &Attributes, kind: SoftmaxKind) -> Result<Softmax, OpError> {
        if attributes.opset < 13 {
            return Softmax::parse_flattened(attributes, kind);
        }
        Ok(Softmax { kind, axis: attributes.int_or("axis", -1)?, flatten: false })
    }

    fn parse_flattened(attributes: &Attributes, kind: SoftmaxKind) -> Result<Softmax, OpError> {
        Ok(Softmax { kind, axis: attributes.int_or("axis", 1)?, flatten: true })
    }

    /// Outer, normalised and inner sizes.
    fn sizes(&self, shape: &[usize]) -> Result<[usize; 3], OpError> {
        if self.flatten {
            // The axis may be the rank: every element by itself.
            let at = if usize::try_from(self.axis) == Ok(shape.len()) {
                shape.len()
            } else {
                axes::axis(self.axis, shape.len())?
            };
            return Ok([axes::product(&shape[..at])?, axes::product(&shape[at..])?, 1]);
        }
        if shape.is_empty() && matches!(self.axis, 0 | -1) {
            return Ok([1, 1, 1]);
        }
        let at = axes::axis(self.axis, shape.len())?;
        Ok([axes::product(&shape[..at])?, shape[at], axes::product(&shape[at + 1..])?])
    }
}

impl Op for Softmax {
    fn op_type(&self) -> &'static str {
        match self.kind {
            SoftmaxKind::Softmax => "Softmax",
            SoftmaxKind::LogSoftmax => "LogSoftmax",
            SoftmaxKind::Hardmax => "Hardmax",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        self.sizes(x.shape())?;
        Ok(vec![x.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        // Maximum, subtraction, exponential, sum, division.
        5 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        let [outer, len, inner] = self.sizes(x.input(0).shape())?;
        let kind = self.kind;
        match dtype {
            DType::F32 => Ok(kernel(move |io, pool| {
                let x = io.input(0).slice::<f32>();
                let y = io.outputs[0].slice_mut::<f32>();
                if y.is_empty() {
                    return Ok(());
                }
                match kind {
                    SoftmaxKind::Softmax => softmax(outer, len, inner, x, y, pool),
                    SoftmaxKind::LogSoftmax => log_softmax(outer, len, inner, x, y, pool),
                    SoftmaxKind::Hardmax => pool.run_parts(y, len * inner, &|o, y| {
                        let x = &x[o * len * inner..][..y.len()];
                        hardmax(x, inner, y);
                    }),
                }
                Ok(())
            })),
            DType::F64 if kind != SoftmaxKind::Hardmax => Ok(kernel(move |io, pool| {
                let x = io.input(0).slice::<f64>();
                pool.run_parts(io.outputs[0].slice_mut::<f64>(), (len * inner).max(1), &|o, y| {
                    double(&x[o * len * inner..][..y.len()], inner, y, kind);
                });
                Ok(())
            })),
            other => Err(OpError::dtype(other, &[DType::F32, DType::F64])),
        }
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::softmax(self, self.sizes(x.input(0).shape()).ok()?, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = &x.output(0).shape;
        let at = axes::axis(self.axis, shape.len()).ok()?;
        axes::first_long(shape).filter(|&first| first < at || (first > at && !self.flatten))
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        Some(Part { op: Arc::new(self.clone()), inputs: vec![PartInput::Range { axis, range }] })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let rank = x.output(0).rank();
        let at = axes::axis(self.axis, rank).ok()?;
        // The last axis flattened is that axis alone.
        if self.flatten && at + 1 != rank {
            return None;
        }
        let axis = i64::try_from(perm.iter().position(|&p| p == at)?).ok()?;
        let op = Arc::new(Softmax { axis, flatten: false, ..*self });
        Some(Permuted { op, inputs: vec![Some(perm.to_vec())] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", self.axis.into())]
    }

    fn domain(&self) -> &'static str {
        if self.flatten { "ai.sparoa" } else { "" }
    }
}

/// One outer index: `x` is normalised x inner.
fn hardmax(x: &[f32], inner: usize, y: &mut [f32]) {
    y.fill(0.0);
    for i in 0..inner {
        let mut best = i;
        for at in (i..x.len()).step_by(inner) {
            if x[at] > x[best] {
                best = at;
            }
        }
        y[best] = 1.0;
    }
}

/// One outer index: `x` is normalised x inner.
fn double(x: &[f64], inner: usize, y: &mut [f64], kind: SoftmaxKind) {
    for i in 0..inner {
        let column = || (i..x.len()).step_by(inner);
        let max = column().fold(f64::NEG_INFINITY, |m, at| m.max(x[at]));
        let sum: f64 = column().map(|at| (x[at] - max).exp()).sum();
        for at in column() {
            let shifted = x[at] - max;
            y[at] = match kind {
                SoftmaxKind::LogSoftmax => shifted - sum.ln(),
                _ => shifted.exp() / sum,
            };
        }
    }
}

fn examples() -> Vec<Example> {
    vec![
        Example::new("rows").input(floats([3, 7], 1)),
        Example::new("middle axis").attribute("axis", 1i64).input(floats([2, 5, 3], 1)),
        Example::new("first axis").attribute("axis", 0i64).input(floats([4, 1, 3], 1)),
        Example::new("two axes as one, old opset")
            .opset(12)
            .attribute("axis", 1i64)
            .input(floats([2, 3, 4], 1)),
        Example::new("last axis, old opset")
            .opset(11)
            .attribute("axis", 2i64)
            .input(floats([1, 3, 4], 1)),
    ]
}
