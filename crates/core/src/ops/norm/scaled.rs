//! LpNormalization and MeanVarianceNormalization: normalisations without learned parameters.

use std::sync::Arc;

use crate::{
    ops::{
        AttributeValue, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands,
        Permuted, axes, floats, kernel,
        number::{Number, for_dtype},
    },
    tensor::TensorType,
};

pub(super) const LP: OpSpec = OpSpec {
    name: "LpNormalization",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| {
        let p = a.int_or("p", 2)?;
        if p != 1 && p != 2 {
            return Err(OpError::invalid(format!("attribute p is {p}, must be 1 or 2")));
        }
        Ok(Arc::new(LpNorm { axis: a.int_or("axis", -1)?, p }))
    },
    examples: || {
        vec![
            Example::new("2-norm of rows").input(floats([3, 4], 1)),
            Example::new("1-norm along the first axis")
                .attribute("axis", 0i64)
                .attribute("p", 1i64)
                .input(floats([3, 4], 1)),
        ]
    },
};

pub(super) const MEAN_VARIANCE: OpSpec = OpSpec {
    name: "MeanVarianceNormalization",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| {
        Ok(Arc::new(MeanVarianceNorm { axes: a.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]) }))
    },
    examples: || {
        vec![
            Example::new("per channel").input(floats([2, 3, 4, 2], 1)),
            Example::new("per row").attribute("axes", [1]).input(floats([3, 5], 1)),
        ]
    },
};

/// x divided by its p-norm along one axis. Input: x. Output: as x.
#[derive(Clone, Debug, PartialEq)]
pub struct LpNorm {
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// Order of the norm, 1 or 2.
    pub p: i64,
}

impl Op for LpNorm {
    fn op_type(&self) -> &'static str {
        "LpNormalization"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        axes::axis(self.axis, x.shape().len())?;
        Ok(vec![x.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        3 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let shape = x.input(0).shape();
        let at = axes::axis(self.axis, shape.len())?;
        let (len, inner) = (shape[at], shape[at + 1..].iter().product());
        let p = self.p;
        Ok(for_dtype!(x.output(0).dtype, T in [F32, F64] => lp_kernel::<T>(p, len, inner)))
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let at = axes::axis(self.axis, x.output(0).rank()).ok()?;
        let axis = i64::try_from(perm.iter().position(|&p| p == at)?).ok()?;
        Some(Permuted { op: Arc::new(LpNorm { axis, ..*self }), inputs: vec![Some(perm.to_vec())] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", self.axis.into()), ("p", self.p.into())]
    }
}

fn lp_kernel<T: Number>(p: i64, len: usize, inner: usize) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        let x = io.input(0).slice::<T>();
        pool.run_parts(io.outputs[0].slice_mut::<T>(), (len * inner).max(1), &|outer, y| {
            let x = &x[outer * len * inner..][..y.len()];
            for i in 0..inner {
                let column = || (i..x.len()).step_by(inner);
                let norm = if p == 1 {
                    column().map(|at| x[at].to_f64().abs()).sum::<f64>()
                } else {
                    column().map(|at| x[at].to_f64().powi(2)).sum::<f64>().sqrt()
                };
                for at in column() {
                    // ONNX Runtime makes zeros of a vector of zeros.
                    let v = if norm == 0.0 { 0.0 } else { x[at].to_f64() / norm };
                    y[at] = T::from_f64(v);
                }
            }
        });
        Ok(())
    })
}

/// (x - mean) / (deviation + 1e-9) over the given axes together. Input: x. Output: as x.
#[derive(Clone, Debug, PartialEq)]
pub struct MeanVarianceNorm {
    /// The axes over which statistics are taken; negative counts from the end.
    pub axes: Vec<i64>,
}

impl Op for MeanVarianceNorm {
    fn op_type(&self) -> &'static str {
        "MeanVarianceNormalization"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        axes::axes(&self.axes, x.shape().len())?;
        Ok(vec![x.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        7 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let shape = x.input(0).shape().to_vec();
        let reduced = axes::axes(&self.axes, shape.len())?;
        let strides = axes::strides(&shape);
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !reduced.contains(d)).collect();
        let groups: usize = kept.iter().map(|&d| shape[d]).product();
        Ok(for_dtype!(x.output(0).dtype, T in [F32, F64] => kernel(move |io, _| {
            // Which group an element belongs to, counted over the kept axes.
            let group = |at: usize| {
                kept.iter().fold(0, |g, &d| g * shape[d] + at / strides[d] % shape[d])
            };
            let x = io.input(0).slice::<T>();
            let y = io.outputs[0].slice_mut::<T>();
            let mut sums = vec![(0.0f64, 0.0f64); groups];
            for (at, v) in x.iter().enumerate() {
                sums[group(at)].0 += v.to_f64();
            }
            let count = (x.len() / groups.max(1)) as f64;
            for (at, v) in x.iter().enumerate() {
                let sum = &mut sums[group(at)];
                sum.1 += (v.to_f64() - sum.0 / count).powi(2);
            }
            for (at, v) in x.iter().enumerate() {
                let (sum, squares) = sums[group(at)];
                let deviation = (squares / count).sqrt();
                y[at] = T::from_f64((v.to_f64() - sum / count) / (deviation + 1e-9));
            }
            Ok(())
        })))
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let reduced = axes::axes(&self.axes, x.output(0).rank()).ok()?;
        let moved = |axis: &usize| i64::try_from(perm.iter().position(|p| p == axis)?).ok();
        let axes = reduced.iter().map(moved).collect::<Option<_>>()?;
        Some(Permuted {
            op: Arc::new(MeanVarianceNorm { axes }),
            inputs: vec![Some(perm.to_vec())],
        })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axes", self.axes.clone().into())]
    }
}
