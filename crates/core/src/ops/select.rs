//! ArgMax, ArgMin and TopK: where the largest or smallest elements along an axis are.

use std::{cmp::Ordering, sync::Arc};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, Permuted, axes, floats, integers, kernel,
    number::{Number, for_dtype},
    sample,
};
use crate::tensor::{DType, TensorType};

const ARG_MAX: OpSpec = OpSpec {
    name: "ArgMax",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| ArgExtreme::parse(a, true),
    examples: arg_examples,
};

pub(super) const SPECS: &[OpSpec] = &[
    ARG_MAX,
    OpSpec { name: "ArgMin", parse: |a| ArgExtreme::parse(a, false), ..ARG_MAX },
    OpSpec {
        name: "TopK",
        inputs: (1, 2),
        outputs: (1, 2),
        parse: |a| TopK::parse(a),
        examples: top_examples,
        ..ARG_MAX
    },
];

/// Index of the largest or smallest element along one axis. Input: data. Output: i64.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgExtreme {
    /// Largest, not smallest.
    pub largest: bool,
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// The axis stays, of size 1.
    pub keep_dims: bool,
    /// Of equal elements, the last counts.
    pub last: bool,
}

impl ArgExtreme {
    fn parse(attributes: &Attributes, largest: bool) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(ArgExtreme {
            largest,
            axis: attributes.int_or("axis", 0)?,
            keep_dims: attributes.flag("keepdims", true)?,
            last: attributes.flag("select_last_index", false)?,
        }))
    }
}

impl Op for ArgExtreme {
    fn op_type(&self) -> &'static str {
        if self.largest { "ArgMax" } else { "ArgMin" }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let mut shape = inputs.required(0, "data")?.shape().to_vec();
        let axis = axes::axis(self.axis, shape.len())?;
        if shape[axis] == 0 {
            return Err(OpError::invalid(format!("axis {} has no elements", self.axis)));
        }
        if self.keep_dims {
            shape[axis] = 1;
        } else {
            shape.remove(axis);
        }
        Ok(vec![TensorType::new(DType::I64, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.input(0).ty.len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let shape = x.input(0).shape();
        let axis = axes::axis(self.axis, shape.len())?;
        let (len, inner) = (shape[axis], shape[axis + 1..].iter().product());
        let dtype = x.input(0).ty.dtype;
        Ok(for_dtype!(dtype, T in [F32, F64, I32, I64, U32, U64, I8, U8] => {
            self.kernel::<T>(len, inner)
        }))
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        if !self.keep_dims {
            return None;
        }
        let axis = axes::axis(self.axis, x.output(0).rank()).ok()?;
        let axis = i64::try_from(perm.iter().position(|&p| p == axis)?).ok()?;
        let op = Arc::new(ArgExtreme { axis, ..self.clone() });
        Some(Permuted { op, inputs: vec![Some(perm.to_vec())] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("axis", self.axis.into()), ("keepdims", self.keep_dims.into())];
        if self.last {
            list.push(("select_last_index", 1i64.into()));
        }
        list
    }
}

impl ArgExtreme {
    fn kernel<T: Number>(&self, len: usize, inner: usize) -> Box<dyn CpuKernel> {
        let ArgExtreme { largest, last, .. } = *self;
        kernel(move |io, pool| {
            let x = io.input(0).slice::<T>();
            pool.run_parts(io.outputs[0].slice_mut::<i64>(), inner.max(1), &|outer, y| {
                for (i, y) in y.iter_mut().enumerate() {
                    let at = |l: usize| x[(outer * len + l) * inner + i];
                    let (mut best, mut index) = (at(0), 0i64);
                    for (l, n) in (1..len).zip(1i64..) {
                        let v = at(l);
                        let better = if largest { v > best } else { v < best };
                        if better || (last && v == best) {
                            (best, index) = (v, n);
                        }
                    }
                    *y = index;
                }
            });
            Ok(())
        })
    }
}

/// The k largest or smallest elements along one axis. Inputs: x, k (i64, constant). Outputs:
/// values, indices (i64).
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// Largest, not smallest.
    pub largest: bool,
    /// Results are in order; else they may be in any, and are all the same.
    pub sorted: bool,
    /// How many, where the node says so itself (opset 9 and older).
    pub k: Option<i64>,
    /// Number of outputs.
    pub outputs: usize,
}

impl TopK {
    fn parse(attributes: &Attributes) -> Result<Arc<dyn Op>, OpError> {
        Ok(Arc::new(TopK {
            axis: attributes.int_or("axis", -1)?,
            largest: attributes.flag("largest", true)?,
            sorted: attributes.flag("sorted", true)?,
            k: attributes.int("k")?,
            outputs: attributes.outputs.max(1),
        }))
    }

    /// The axis and k.
    fn resolve(&self, inputs: &[Option<Operand>]) -> Result<(usize, usize), OpError> {
        let shape = inputs.required(0, "X")?.shape();
        let axis = axes::axis(self.axis, shape.len())?;
        let k = match self.k {
            Some(k) => k,
            None => {
                inputs.required(1, "K")?;
                let list = inputs.integers(1, "K")?.unwrap_or_default();
                match list[..] {
                    [k] => k,
                    _ => return Err(OpError::invalid("input K must hold one number")),
                }
            }
        };
        let fits = usize::try_from(k).ok().filter(|&k| k <= shape[axis]);
        fits.map(|k| (axis, k)).ok_or_else(|| {
            OpError::invalid(format!("K is {k}, the axis has {} elements", shape[axis]))
        })
    }
}

impl Op for TopK {
    fn op_type(&self) -> &'static str {
        "TopK"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let (axis, k) = self.resolve(inputs)?;
        let x = inputs.required(0, "X")?;
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        let mut types = vec![TensorType::new(x.ty.dtype, shape.clone())];
        if self.outputs > 1 {
            types.push(TensorType::new(DType::I64, shape));
        }
        Ok(types)
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let len = x.input(0).ty.len() as u64;
        len.saturating_mul(u64::from(len.max(2).ilog2()))
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (axis, k) = self.resolve(x.inputs)?;
        let shape = x.input(0).shape();
        let (len, inner) = (shape[axis], shape[axis + 1..].iter().product());
        let dtype = x.output(0).dtype;
        Ok(for_dtype!(dtype, T in [F32, F64, I32, I64, U32, U64, I8, U8] => {
            top_kernel::<T>(len, inner, k, self.largest)
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![
            ("axis", self.axis.into()),
            ("largest", self.largest.into()),
            ("sorted", self.sorted.into()),
        ];
        list.extend(self.k.map(|k| ("k", k.into())));
        list
    }
}

fn top_kernel<T: Number>(len: usize, inner: usize, k: usize, largest: bool) -> Box<dyn CpuKernel> {
    kernel(move |io, _| {
        let x = io.input(0).slice::<T>();
        if k == 0 || x.is_empty() {
            return Ok(());
        }
        let mut order: Vec<usize> = Vec::with_capacity(len);
        for column in 0..x.len() / len {
            let (outer, i) = (column / inner, column % inner);
            let at = |l: usize| x[(outer * len + l) * inner + i];
            // Of equal elements, the first counts.
            let compare = |a: &usize, b: &usize| {
                let (va, vb) = (at(*a), at(*b));
                let order = va.partial_cmp(&vb).unwrap_or_else(|| nan_last(va, vb));
                if largest { order.reverse() } else { order }.then(a.cmp(b))
            };
            order.clear();
            order.extend(0..len);
            if k < len {
                order.select_nth_unstable_by(k - 1, compare);
            }
            order[..k].sort_unstable_by(compare);
            for (n, &l) in order[..k].iter().enumerate() {
                let to = (outer * k + n) * inner + i;
                io.outputs[0].slice_mut::<T>()[to] = at(l);
                if let Some(indices) = io.outputs.get_mut(1) {
                    indices.slice_mut::<i64>()[to] = i64::try_from(l).unwrap_or(i64::MAX);
                }
            }
        }
        Ok(())
    })
}

/// NaN counts as larger than everything.
fn nan_last<T: Number>(a: T, b: T) -> Ordering {
    a.is_nan().cmp(&b.is_nan())
}

fn arg_examples() -> Vec<Example> {
    vec![
        Example::new("middle axis, dropped")
            .attribute("axis", 1i64)
            .attribute("keepdims", 0i64)
            .input(floats([2, 5, 3], 1)),
        Example::new("last of equal elements, integers")
            .attribute("axis", -1i64)
            .attribute("select_last_index", 1i64)
            .input(sample(TensorType::new(DType::I32, [3, 9]), 2)),
    ]
}

fn top_examples() -> Vec<Example> {
    vec![
        Example::new("three largest of rows")
            .input(floats([2, 7], 1))
            .constant(integers(&[3]))
            .outputs(2),
        Example::new("two smallest along the first axis, integers")
            .attribute("axis", 0i64)
            .attribute("largest", 0i64)
            .input(sample(TensorType::new(DType::I64, [5, 3]), 2))
            .constant(integers(&[2]))
            .outputs(2),
        Example::new("old form").opset(9).attribute("k", 2i64).input(floats([1, 4], 3)).outputs(2),
    ]
}
