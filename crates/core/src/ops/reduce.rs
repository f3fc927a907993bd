//! Reductions over any axes: sums, means, extremes, products, norms and logarithms of sums.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{
    permute::permute,
    reduce::{ReduceOp, reduce},
};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput, Permuted, Scratch, axes, floats, gpu, integers,
    kernel_with,
    number::{Number, for_dtype},
    sample,
};
use crate::tensor::{DType, TensorType};

const SUM: OpSpec = OpSpec {
    name: "ReduceSum",
    domain: "",
    since: 1,
    inputs: (1, 2),
    outputs: (1, 1),
    parse: |a| Reduce::parse(a, ReduceKind::Sum),
    examples: sum_examples,
};

/// The registration of a reduction other than the sum.
const fn spec(
    name: &'static str,
    parse: fn(&Attributes) -> Result<Arc<dyn Op>, OpError>,
) -> OpSpec {
    OpSpec { name, parse, examples, ..SUM }
}

pub(super) const SPECS: &[OpSpec] = &[
    SUM,
    spec("ReduceMean", |a| Reduce::parse(a, ReduceKind::Mean)),
    spec("ReduceMax", |a| Reduce::parse(a, ReduceKind::Max)),
    spec("ReduceMin", |a| Reduce::parse(a, ReduceKind::Min)),
    spec("ReduceProd", |a| Reduce::parse(a, ReduceKind::Prod)),
    spec("ReduceSumSquare", |a| Reduce::parse(a, ReduceKind::SumSquare)),
    spec("ReduceL1", |a| Reduce::parse(a, ReduceKind::L1)),
    spec("ReduceL2", |a| Reduce::parse(a, ReduceKind::L2)),
    OpSpec {
        examples: || {
            // The logarithm wants a positive sum.
            let x = crate::tensor::Tensor::from_slice([2, 3], &[0.5f32, 1.0, 2.0, 3.0, 0.25, 7.0]);
            vec![Example::new("rows").input(x).constant(integers(&[1]))]
        },
        ..spec("ReduceLogSum", |a| Reduce::parse(a, ReduceKind::LogSum))
    },
    spec("ReduceLogSumExp", |a| Reduce::parse(a, ReduceKind::LogSumExp)),
];

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ReduceKind {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    /// Sum of squares.
    SumSquare,
    /// Sum of magnitudes.
    L1,
    /// Root of the sum of squares.
    L2,
    /// Logarithm of the sum.
    LogSum,
    /// Logarithm of the sum of exponentials.
    LogSumExp,
}

/// A reduction. Inputs: data, optional axes (i64, constant). Output: data's type, the reduced
/// axes of size 1 or gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// What is computed.
    pub kind: ReduceKind,
    /// The axes, negative from the end; `None` if input 1 gives them, or all are reduced.
    pub axes: Option<Vec<i64>>,
    /// Reduced axes stay, of size 1.
    pub keep_dims: bool,
    /// Without axes, nothing is reduced instead of everything.
    pub noop_without_axes: bool,
}

/// How a reduction is laid out in memory.
struct Plan {
    /// Dimensions and permutation that bring the reduced axes together, where they are apart.
    gather: Option<(Vec<usize>, Vec<usize>)>,
    outer: usize,
    len: usize,
    inner: usize,
}

impl Reduce {
    /// A reduction over these axes.
    pub fn new(kind: ReduceKind, axes: &[i64], keep_dims: bool) -> Reduce {
        Reduce { kind, axes: Some(axes.to_vec()), keep_dims, noop_without_axes: false }
    }

    fn parse(attributes: &Attributes, kind: ReduceKind) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(Reduce {
            kind,
            axes: attributes.ints("axes")?,
            keep_dims: attributes.flag("keepdims", true)?,
            noop_without_axes: attributes.flag("noop_with_empty_axes", false)?,
        }))
    }

    /// The reduced axes, sorted.
    ///
    /// # Errors
    /// When an axis is out of range or given twice; [`OpError::DataDependent`] when the axes are
    /// computed at run time.
    pub fn resolve(&self, inputs: &[Option<Operand>]) -> Result<Vec<usize>, OpError> {
        let rank = inputs.required(0, "data")?.shape().len();
        let given = match &self.axes {
            Some(axes) => Some(axes.clone()),
            None => inputs.integers(1, "axes")?,
        };
        let mut resolved = match given {
            Some(list) if !list.is_empty() => axes::axes(&list, rank)?,
            _ if self.noop_without_axes => Vec::new(),
            _ => (0..rank).collect(),
        };
        resolved.sort_unstable();
        Ok(resolved)
    }
}

impl Plan {
    fn new(shape: &[usize], reduced: &[usize]) -> Plan {
        // Runs of kept and of reduced axes; axes of size 1 belong to either.
        let mut runs: Vec<(usize, bool)> = Vec::new();
        for (axis, &size) in shape.iter().enumerate() {
            let is_reduced = reduced.contains(&axis);
            match runs.last_mut() {
                _ if size == 1 => {}
                Some(last) if last.1 == is_reduced => last.0 *= size,
                _ => runs.push((size, is_reduced)),
            }
        }
        match runs[..] {
            [] => Plan { gather: None, outer: 1, len: 1, inner: 1 },
            [(outer, false)] => Plan { gather: None, outer, len: 1, inner: 1 },
            [(len, true)] => Plan { gather: None, outer: 1, len, inner: 1 },
            [(outer, false), (len, true)] => Plan { gather: None, outer, len, inner: 1 },
            [(len, true), (inner, false)] => Plan { gather: None, outer: 1, len, inner },
            [(outer, false), (len, true), (inner, false)] => {
                Plan { gather: None, outer, len, inner }
            }
            _ => {
                let (mut perm, mut last) = (Vec::new(), Vec::new());
                let (mut outer, mut len) = (1, 1);
                for (i, &(size, is_reduced)) in runs.iter().enumerate() {
                    if is_reduced {
                        last.push(i);
                        len *= size;
                    } else {
                        perm.push(i);
                        outer *= size;
                    }
                }
                perm.extend(last);
                let dims = runs.iter().map(|r| r.0).collect();
                Plan { gather: Some((dims, perm)), outer, len, inner: 1 }
            }
        }
    }
}

impl Op for Reduce {
    fn op_type(&self) -> &'static str {
        match self.kind {
            ReduceKind::Sum => "ReduceSum",
            ReduceKind::Mean => "ReduceMean",
            ReduceKind::Max => "ReduceMax",
            ReduceKind::Min => "ReduceMin",
            ReduceKind::Prod => "ReduceProd",
            ReduceKind::SumSquare => "ReduceSumSquare",
            ReduceKind::L1 => "ReduceL1",
            ReduceKind::L2 => "ReduceL2",
            ReduceKind::LogSum => "ReduceLogSum",
            ReduceKind::LogSumExp => "ReduceLogSumExp",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let reduced = self.resolve(inputs)?;
        let data = inputs.required(0, "data")?;
        let dims = data.shape().iter().enumerate();
        let shape: Vec<usize> = if self.keep_dims {
            dims.map(|(i, &d)| if reduced.contains(&i) { 1 } else { d }).collect()
        } else {
            dims.filter(|(i, _)| !reduced.contains(i)).map(|(_, &d)| d).collect()
        };
        Ok(vec![TensorType::new(data.ty.dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let per_element = match self.kind {
            ReduceKind::SumSquare | ReduceKind::L1 | ReduceKind::L2 => 2,
            ReduceKind::LogSumExp => 3,
            _ => 1,
        };
        per_element * x.input(0).ty.len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (dtype, kind) = (x.output(0).dtype, self.kind);
        let extreme = matches!(kind, ReduceKind::Max | ReduceKind::Min);
        let plan = Plan::new(x.input(0).shape(), &self.resolve(x.inputs)?);
        if dtype == DType::F32 && kind != ReduceKind::LogSumExp {
            return Ok(single(kind, plan));
        }
        if dtype == DType::Bool && extreme {
            return Ok(generic::<u8>(kind, plan));
        }
        Ok(for_dtype!(dtype, T in [F32, F64, I32, I64, U32, U64, I8, U8] => {
            generic::<T>(kind, plan)
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let plan = Plan::new(x.input(0).shape(), &self.resolve(x.inputs).ok()?);
        match plan.gather {
            Some(_) => None,
            None => gpu::reduce(self.kind, [plan.outer, plan.len, plan.inner], x, caps),
        }
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let axis = axes::first_long(&x.output(0).shape)?;
        let from = self.input_axis(x, axis)?;
        x.input(0).shape()[..from].iter().all(|&d| d == 1).then_some(axis)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.input_axis(x, self.split_axis(x)?)?;
        let mut inputs = vec![PartInput::Range { axis, range }];
        inputs.resize(x.inputs.len(), PartInput::Whole);
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        if !self.keep_dims {
            return None;
        }
        let reduced = self.resolve(x.inputs).ok()?;
        let moved = |axis: &usize| i64::try_from(perm.iter().position(|p| p == axis)?).ok();
        let moved: Vec<i64> = reduced.iter().map(moved).collect::<Option<_>>()?;
        // No axes at all would mean something else.
        let axes = if moved.is_empty() { self.axes.clone() } else { Some(moved) };
        let mut inputs = vec![Some(perm.to_vec())];
        inputs.resize(x.inputs.len(), None);
        Some(Permuted { op: Arc::new(Reduce { axes, ..self.clone() }), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("keepdims", self.keep_dims.into())];
        if let Some(axes) = &self.axes {
            list.push(("axes", axes.clone().into()));
        }
        if self.noop_without_axes {
            list.push(("noop_with_empty_axes", 1i64.into()));
        }
        list
    }
}

impl Reduce {
    /// The input axis that becomes output axis `axis`.
    fn input_axis(&self, x: &Operands<'_>, axis: usize) -> Option<usize> {
        if self.keep_dims {
            return Some(axis);
        }
        let reduced = self.resolve(x.inputs).ok()?;
        (0..x.input(0).shape().len()).filter(|d| !reduced.contains(d)).nth(axis)
    }
}

/// Bytes of scratch that bringing the reduced axes together takes.
fn gather_bytes(plan: &Plan, size: usize) -> usize {
    if plan.gather.is_some() { Scratch::bytes::<u8>(plan.outer * plan.len * size) } else { 0 }
}

/// The f32 kernel.
fn single(kind: ReduceKind, plan: Plan) -> Box<dyn CpuKernel> {
    let op = match kind {
        ReduceKind::Sum | ReduceKind::LogSum => ReduceOp::Sum,
        ReduceKind::Mean => ReduceOp::Mean,
        ReduceKind::Max => ReduceOp::Max,
        ReduceKind::Min => ReduceOp::Min,
        ReduceKind::Prod => ReduceOp::Prod,
        ReduceKind::L1 => ReduceOp::L1,
        _ => ReduceOp::SumSquare,
    };
    let scratch = gather_bytes(&plan, size_of::<f32>());
    kernel_with(
        0,
        move |_| scratch,
        move |io, pool| {
            let mut x = io.input(0).slice::<f32>();
            let y = io.outputs[0].slice_mut::<f32>();
            if let Some((dims, perm)) = &plan.gather {
                let to = Scratch::new(io.scratch).take::<f32>(x.len());
                permute(bytemuck::cast_slice(x), 4, dims, perm, bytemuck::cast_slice_mut(to), pool);
                x = to;
            }
            reduce(op, plan.outer, plan.len, plan.inner, x, y, pool);
            match kind {
                ReduceKind::L2 => y.iter_mut().for_each(|y| *y = y.sqrt()),
                ReduceKind::LogSum => y.iter_mut().for_each(|y| *y = y.ln()),
                _ => {}
            }
            Ok(())
        },
    )
}

/// The kernel of any element type.
fn generic<T: Number>(kind: ReduceKind, plan: Plan) -> Box<dyn CpuKernel> {
    let scratch = gather_bytes(&plan, size_of::<T>());
    kernel_with(
        0,
        move |_| scratch,
        move |io, pool| {
            // Booleans are read as bytes.
            let mut x: &[T] = bytemuck::cast_slice(io.input(0).bytes);
            let y: &mut [T] = bytemuck::cast_slice_mut(io.outputs[0].bytes);
            if let Some((dims, perm)) = &plan.gather {
                let to = Scratch::new(io.scratch).take::<T>(x.len());
                let bytes = bytemuck::cast_slice_mut(&mut *to);
                permute(bytemuck::cast_slice(x), size_of::<T>(), dims, perm, bytes, pool);
                x = to;
            }
            let (len, inner) = (plan.len, plan.inner);
            pool.run_parts(y, inner.max(1), &|outer, y| {
                for (i, y) in y.iter_mut().enumerate() {
                    *y = fold(kind, len, |l| x[(outer * len + l) * inner + i]);
                }
            });
            Ok(())
        },
    )
}

fn fold<T: Number>(kind: ReduceKind, len: usize, at: impl Fn(usize) -> T) -> T {
    let values = || (0..len).map(&at);
    let sum = |f: fn(T) -> T| values().fold(T::ZERO, |acc, v| acc.plus(f(v)));
    let pick = |start: T, better: fn(&T, &T) -> bool| {
        values().fold(start, |best, v| if better(&v, &best) || v.is_nan() { v } else { best })
    };
    match kind {
        ReduceKind::Sum => sum(|v| v),
        ReduceKind::Mean if len == 0 => T::from_f64(f64::NAN),
        ReduceKind::Mean => sum(|v| v).over(len),
        ReduceKind::Max => pick(T::LEAST, T::gt),
        ReduceKind::Min => pick(T::GREATEST, T::lt),
        ReduceKind::Prod => values().fold(T::ONE, T::times),
        ReduceKind::SumSquare => sum(|v| v.times(v)),
        ReduceKind::L1 => sum(T::magnitude),
        ReduceKind::L2 => T::from_f64(values().map(|v| v.to_f64().powi(2)).sum::<f64>().sqrt()),
        ReduceKind::LogSum => T::from_f64(values().map(T::to_f64).sum::<f64>().ln()),
        ReduceKind::LogSumExp => {
            let max = values().map(T::to_f64).fold(f64::NEG_INFINITY, f64::max);
            let shift = if max.is_finite() { max } else { 0.0 };
            let sum: f64 = values().map(|v| (v.to_f64() - shift).exp()).sum();
            T::from_f64(sum.ln() + shift)
        }
    }
}

fn examples() -> Vec<Example> {
    vec![
        Example::new("pixels of an image, axes as an attribute")
            .opset(13)
            .attribute("axes", [2, 3])
            .input(floats([2, 3, 4, 5], 1)),
        Example::new("axes apart, dropped")
            .attribute("keepdims", 0i64)
            .input(floats([2, 3, 4, 5], 2))
            .constant(integers(&[0, -2])),
        Example::new("everything").attribute("keepdims", 0i64).input(floats([3, 4], 3)),
        Example::new("first axis").input(floats([5, 3], 4)).constant(integers(&[0])),
        Example::new("double precision")
            .input(sample(TensorType::new(DType::F64, [2, 3]), 5))
            .constant(integers(&[1])),
    ]
}

fn sum_examples() -> Vec<Example> {
    let mut list = examples();
    list.extend([
        Example::new("no axes, nothing reduced")
            .attribute("noop_with_empty_axes", 1i64)
            .input(floats([2, 3], 1))
            .constant(integers(&[])),
        Example::new("nothing to add up").input(floats([2, 0], 1)).constant(integers(&[1])),
        Example::new("integers, rows")
            .attribute("keepdims", 0i64)
            .input(sample(TensorType::new(DType::I64, [4, 3]), 2))
            .constant(integers(&[-1])),
    ]);
    list
}
