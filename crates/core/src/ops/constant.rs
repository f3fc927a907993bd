//! Constant, ConstantOfShape, Range, OneHot, EyeLike: operators that make tensors from a few
//! numbers.

use std::sync::Arc;

use bytemuck::{Pod, cast_slice_mut};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, axes, cast, floats, integers, kernel, runs,
};
use crate::{
    ir::Expansion,
    tensor::{DType, Element, Tensor, TensorType},
};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Constant",
        domain: "",
        since: 1,
        inputs: (0, 0),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Constant { value: constant_value(a)? })),
        examples: || {
            vec![
                Example::new("tensor").attribute("value", floats([2, 3], 1)),
                Example::new("integers").attribute("value_ints", [3, -1]),
            ]
        },
    },
    OpSpec {
        name: "ConstantOfShape",
        domain: "",
        since: 9,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| {
            let value = a.tensor("value")?.unwrap_or_else(|| Arc::new(Tensor::scalar(0.0f32)));
            if value.ty().len() != 1 {
                return Err(OpError::invalid(format!("value has the type {}", value.ty())));
            }
            Ok(Arc::new(ConstantOfShape { value }))
        },
        examples: || {
            let seven = Tensor::from_slice([1], &[7i64]);
            let e = Example::new("i64").attribute("value", seven);
            vec![e.constant(integers(&[2, 3])), Example::new("zeros").constant(integers(&[5]))]
        },
    },
    OpSpec {
        name: "Range",
        domain: "",
        since: 11,
        inputs: (3, 3),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(Range)),
        examples: || {
            let s = |v: i64| Tensor::scalar(v);
            let e = Example::new("downwards");
            vec![e.constant(s(7)).constant(s(-4)).constant(s(-3))]
        },
    },
    OpSpec {
        name: "OneHot",
        domain: "",
        since: 9,
        inputs: (3, 3),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(OneHot { axis: a.int_or("axis", -1)? })),
        examples: || {
            let e = Example::new("last axis").input(integers(&[0, 3, -1]));
            let values = Tensor::from_slice([2], &[0.0f32, 1.0]);
            vec![e.constant(Tensor::scalar(4i64)).constant(values)]
        },
    },
    OpSpec {
        name: "EyeLike",
        domain: "",
        since: 9,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| {
            Ok(Arc::new(EyeLike { dtype: cast::optional_type(a, "dtype")?, k: a.int_or("k", 0)? }))
        },
        examples: || {
            vec![Example::new("above the diagonal").attribute("k", 1).input(floats([3, 5], 1))]
        },
    },
];

fn constant_value(a: &Attributes) -> Result<Arc<Tensor>, OpError> {
    if let Some(value) = a.tensor("value")? {
        return Ok(value);
    }
    if let Some(v) = a.int("value_int")? {
        return Ok(Arc::new(Tensor::scalar(v)));
    }
    if let Some(v) = a.float("value_float")? {
        return Ok(Arc::new(Tensor::scalar(v)));
    }
    if let Some(v) = a.ints("value_ints")? {
        return Ok(Arc::new(Tensor::from_slice([v.len()], &v)));
    }
    if let Some(v) = a.floats("value_floats")? {
        return Ok(Arc::new(Tensor::from_slice([v.len()], &v)));
    }
    Err(OpError::unsupported(
        "a constant without value, value_int(s) or value_float(s) (strings and sparse tensors are \
         not supported)",
    ))
}

/// A tensor.
#[derive(Clone, PartialEq)]
pub struct Constant {
    /// It.
    pub value: Arc<Tensor>,
}

impl std::fmt::Debug for Constant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constant({})", self.value.ty())
    }
}

impl Op for Constant {
    fn op_type(&self) -> &'static str {
        "Constant"
    }

    fn infer(&self, _: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![self.value.ty().clone()])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, _: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let value = self.value.clone();
        Ok(kernel(move |io, pool| {
            runs::copy(value.bytes(), io.outputs[0].bytes, pool);
            Ok(())
        }))
    }

    fn expand(&self, _: &[Option<Operand>]) -> Option<Expansion> {
        Some(Expansion::constant(self.value.clone()))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("value", AttributeValue::Tensor(self.value.clone()))]
    }
}

/// A tensor of the shape that input 0 holds, one value throughout.
#[derive(Clone, Debug)]
pub struct ConstantOfShape {
    /// One element.
    pub value: Arc<Tensor>,
}

impl Op for ConstantOfShape {
    fn op_type(&self) -> &'static str {
        "ConstantOfShape"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        inputs.required(0, "input")?;
        let dims = inputs.integers(0, "input")?.unwrap_or_default();
        let shape: Vec<usize> = dims.into_iter().map(axes::dim).collect::<Result<_, _>>()?;
        Ok(vec![TensorType::new(self.value.dtype(), shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, _: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let value = self.value.clone();
        let size = value.dtype().size();
        Ok(kernel(move |io, pool| {
            let len = io.outputs[0].bytes.len() / size;
            let fill = runs::Strided::new(&[len], &[0], 0, size);
            fill.run(value.bytes(), io.outputs[0].bytes, pool);
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("value", AttributeValue::Tensor(self.value.clone()))]
    }
}

/// start, start + delta, ... below limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Range;

impl Range {
    fn count(inputs: &[Option<Operand>]) -> Result<usize, OpError> {
        let first = inputs.required(0, "start")?.ty.dtype;
        let mut values = Vec::new();
        for (i, name) in ["start", "limit", "delta"].into_iter().enumerate() {
            let operand = inputs.required(i, name)?;
            if operand.ty.len() != 1 || operand.ty.dtype != first {
                return Err(OpError::invalid(format!(
                    "{name} has the type {}, must be one element of {first}",
                    operand.ty
                )));
            }
            let value = operand.constant.as_ref().ok_or(OpError::DataDependent { input: i })?;
            values.push(value.clone());
        }
        let float: Vec<f64> = values.iter().filter_map(|v| one_float(v)).collect();
        let integer: Vec<i64> =
            values.iter().filter_map(|v| v.to_i64s()?.first().copied()).collect();
        let count = match (float.as_slice(), integer.as_slice()) {
            (&[start, limit, delta], _) => ((limit - start) / delta).ceil().max(0.0),
            (_, &[_, _, 0]) => f64::NAN,
            (_, &[start, limit, delta]) => {
                let (distance, delta) = (i128::from(limit) - i128::from(start), i128::from(delta));
                ceil_count(distance, delta)
            }
            _ => {
                return Err(OpError::dtype(
                    first,
                    &[DType::F32, DType::F64, DType::I32, DType::I64],
                ));
            }
        };
        if count.is_nan() || count >= isize::MAX as f64 {
            return Err(OpError::invalid(format!("a range of {count} elements")));
        }
        Ok(count as usize)
    }
}

/// ceil(distance / delta), or 0 when delta leads away.
fn ceil_count(distance: i128, delta: i128) -> f64 {
    if distance.signum() * delta.signum() <= 0 {
        return 0.0;
    }
    distance.unsigned_abs().div_ceil(delta.unsigned_abs()) as f64
}

fn one_float(value: &Tensor) -> Option<f64> {
    match value.dtype() {
        DType::F32 => value.as_slice::<f32>()?.first().map(|&v| v.into()),
        DType::F64 => value.as_slice::<f64>()?.first().copied(),
        _ => None,
    }
}

impl Op for Range {
    fn op_type(&self) -> &'static str {
        "Range"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let n = Range::count(inputs)?;
        Ok(vec![TensorType::new(inputs.required(0, "start")?.ty.dtype, [n])])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        fn fill<T: Element>(
            step: impl Fn(T, T) -> T + Send + Sync + 'static,
        ) -> Box<dyn CpuKernel> {
            kernel(move |io, _| {
                let delta = io.input(2).slice::<T>()[0];
                let mut value = io.input(0).slice::<T>()[0];
                for y in io.outputs[0].slice_mut::<T>() {
                    *y = value;
                    value = step(value, delta);
                }
                Ok(())
            })
        }
        match x.output(0).dtype {
            // Repeated addition, as ONNX Runtime does, rounding included.
            DType::F32 => Ok(fill::<f32>(|v, d| v + d)),
            DType::F64 => Ok(fill::<f64>(|v, d| v + d)),
            DType::I16 => Ok(fill::<i16>(i16::wrapping_add)),
            DType::I32 => Ok(fill::<i32>(i32::wrapping_add)),
            DType::I64 => Ok(fill::<i64>(i64::wrapping_add)),
            other => Err(OpError::dtype(
                other,
                &[DType::F32, DType::F64, DType::I16, DType::I32, DType::I64],
            )),
        }
    }
}

/// A new axis of size `depth` with one value at the index and another elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct OneHot {
    /// Where the new axis lies in the output; may count from the end.
    pub axis: i64,
}

impl Op for OneHot {
    fn op_type(&self) -> &'static str {
        "OneHot"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let indices = inputs.required(0, "indices")?;
        let depth = inputs.required(1, "depth")?;
        let values = inputs.required(2, "values")?;
        if values.ty.len() != 2 || depth.ty.len() != 1 {
            return Err(OpError::invalid(format!(
                "depth has the type {} and values {}, must be one and two elements",
                depth.ty, values.ty
            )));
        }
        let value = depth.constant.as_ref().ok_or(OpError::DataDependent { input: 1 })?;
        let depth = match (value.to_i64s(), one_float(value)) {
            (Some(v), _) => v[0],
            (None, Some(v)) => v as i64,
            _ => return Err(OpError::dtype(value.dtype(), &[DType::I64, DType::I32, DType::F32])),
        };
        if depth < 1 {
            return Err(OpError::invalid(format!("depth is {depth}, must be at least 1")));
        }
        let mut shape = indices.shape().to_vec();
        shape.insert(axes::axis(self.axis, shape.len() + 1)?, axes::dim(depth)?);
        Ok(vec![TensorType::new(values.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let output = x.output(0);
        let axis = axes::axis(self.axis, output.rank())?;
        let depth = output.shape[axis];
        let inner: usize = output.shape[axis + 1..].iter().product();
        let size = output.dtype.size();
        let as_i64 = match x.input(0).ty.dtype {
            DType::I64 => |b: &[u8]| bytemuck::pod_read_unaligned::<i64>(b),
            DType::I32 => |b: &[u8]| bytemuck::pod_read_unaligned::<i32>(b).into(),
            DType::U8 => |b: &[u8]| b[0].into(),
            DType::F32 => |b: &[u8]| bytemuck::pod_read_unaligned::<f32>(b) as i64,
            other => {
                return Err(OpError::dtype(
                    other,
                    &[DType::I64, DType::I32, DType::U8, DType::F32],
                ));
            }
        };
        let index_size = x.input(0).ty.dtype.size();
        Ok(kernel(move |io, _| {
            let (indices, values) = (io.input(0).bytes, io.input(2).bytes);
            let (off, on) = values.split_at(size);
            let y = &mut *io.outputs[0].bytes;
            for element in y.chunks_exact_mut(size) {
                element.copy_from_slice(off);
            }
            for (i, index) in indices.chunks_exact(index_size).enumerate() {
                let index = as_i64(index);
                let index = if index < 0 { index.saturating_add(depth as i64) } else { index };
                // An index outside the range leaves its column off.
                if let Some(index) = usize::try_from(index).ok().filter(|&i| i < depth) {
                    let at = ((i / inner * depth + index) * inner + i % inner) * size;
                    y[at..at + size].copy_from_slice(on);
                }
            }
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", AttributeValue::Int(self.axis))]
    }
}

/// A matrix of its input's shape with ones on one diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct EyeLike {
    /// Element type; the input's when `None`.
    pub dtype: Option<DType>,
    /// Which diagonal: above the main one when positive.
    pub k: i64,
}

impl Op for EyeLike {
    fn op_type(&self) -> &'static str {
        "EyeLike"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        if x.ty.rank() != 2 {
            return Err(OpError::invalid(format!("the input must be a matrix, is {}", x.ty)));
        }
        Ok(vec![TensorType::new(self.dtype.unwrap_or(x.ty.dtype), x.shape())])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        fn eye<T: Pod + Send + Sync>(columns: usize, k: i64, one: T) -> Box<dyn CpuKernel> {
            kernel(move |io, _| {
                let y: &mut [T] = cast_slice_mut(io.outputs[0].bytes);
                y.fill(T::zeroed());
                for (i, row) in y.chunks_exact_mut(columns.max(1)).enumerate() {
                    let column = k.checked_add(i as i64).and_then(|c| usize::try_from(c).ok());
                    if let Some(y) = column.and_then(|c| row.get_mut(c)) {
                        *y = one;
                    }
                }
                Ok(())
            })
        }
        let output = x.output(0);
        let (columns, k) = (output.shape[1], self.k);
        Ok(match output.dtype {
            DType::F32 => eye(columns, k, 1.0f32),
            DType::F64 => eye(columns, k, 1.0f64),
            DType::F16 => eye(columns, k, half::f16::ONE),
            DType::I8 | DType::U8 | DType::Bool => eye(columns, k, 1u8),
            DType::I16 | DType::U16 => eye(columns, k, 1u16),
            DType::I32 | DType::U32 => eye(columns, k, 1u32),
            DType::I64 | DType::U64 => eye(columns, k, 1u64),
        })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("k", AttributeValue::Int(self.k))];
        list.extend(self.dtype.map(|d| ("dtype", cast::type_code(d))));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::evaluate;
    use sparoa_kernels::pool::Pool;

    fn run(op: &dyn Op, inputs: &[&Tensor]) -> Result<Tensor, OpError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        evaluate(op, &inputs, &Pool::single()).map(|mut t| t.remove(0))
    }

    #[test]
    fn ranges() {
        fn range<T: Element>(a: T, b: T, c: T) -> Result<Vec<T>, OpError> {
            run(&Range, &[&Tensor::scalar(a), &Tensor::scalar(b), &Tensor::scalar(c)])
                .map(|t| t.as_slice::<T>().unwrap().to_vec())
        }
        assert_eq!(range(2i64, 9, 3), Ok(vec![2, 5, 8]));
        assert_eq!(range(7i32, -4, -3), Ok(vec![7, 4, 1, -2]));
        assert_eq!(range(0i64, -4, 1), Ok(vec![]));
        assert_eq!(range(1.0f32, 2.0, 0.4), Ok(vec![1.0, 1.4, 1.8]));
        assert!(range(0i64, 1, 0).is_err());
        assert!(range(0.0f32, 1.0, 0.0).is_err());
        assert!(range(0.0f32, f32::INFINITY, 1.0).is_err());
        let dynamic = vec![Some(Operand::dynamic(TensorType::new(DType::I64, []))); 3];
        assert_eq!(Range.infer(&dynamic), Err(OpError::DataDependent { input: 0 }));
    }

    #[test]
    fn fills_and_diagonals() {
        let of = |value: Tensor, shape: &[i64]| {
            run(&ConstantOfShape { value: Arc::new(value) }, &[&integers(shape)])
        };
        assert_eq!(
            of(Tensor::scalar(7u8), &[2, 2]).unwrap(),
            Tensor::from_slice([2, 2], &[7u8; 4])
        );
        assert_eq!(of(Tensor::scalar(7i64), &[]).unwrap(), Tensor::scalar(7i64));
        assert_eq!(of(Tensor::scalar(7i64), &[0]).unwrap().shape(), [0]);
        assert!(of(Tensor::scalar(7i64), &[-1]).is_err());
        let eye = EyeLike { dtype: Some(DType::I32), k: -1 };
        let y = run(&eye, &[&floats([3, 2], 1)]).unwrap();
        assert_eq!(y, Tensor::from_slice([3, 2], &[0i32, 0, 1, 0, 0, 1]));
    }

    #[test]
    fn one_hot_on_either_side() {
        let values = Tensor::from_slice([2], &[1i32, 5]);
        let (indices, depth) = (integers(&[0, -1, 9]), Tensor::scalar(2i64));
        let y = run(&OneHot { axis: -1 }, &[&indices, &depth, &values]).unwrap();
        assert_eq!(y, Tensor::from_slice([3, 2], &[5i32, 1, 1, 5, 1, 1]));
        let y = run(&OneHot { axis: 0 }, &[&indices, &depth, &values]).unwrap();
        assert_eq!(y, Tensor::from_slice([2, 3], &[5i32, 1, 1, 1, 5, 1]));
        let zero = Tensor::scalar(0i64);
        assert!(run(&OneHot { axis: 0 }, &[&indices, &zero, &values]).is_err());
    }
}
