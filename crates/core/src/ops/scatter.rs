//! ScatterND, ScatterElements.

use std::sync::Arc;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::f16;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, axes, floats,
    gather::{ElementPlace, Tuples, check_element_indices, check_index_type, index_at, resolve},
    kernel, runs,
};
use crate::tensor::{DType, Tensor, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "ScatterND",
        domain: "",
        since: 11,
        inputs: (3, 3),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(ScatterNd { reduction: Reduction::parse(a)? })),
        examples: || {
            let indices = Tensor::from_slice([2, 1], &[2i64, -4]);
            let e = |name| Example::new(name).input(floats([4, 3], 1)).input(indices.clone());
            vec![
                e("rows").input(floats([2, 3], 2)),
                e("adding").attribute("reduction", "add").input(floats([2, 3], 2)),
            ]
        },
    },
    OpSpec {
        name: "ScatterElements",
        domain: "",
        since: 11,
        inputs: (3, 3),
        outputs: (1, 1),
        parse: |a| {
            let reduction = Reduction::parse(a)?;
            Ok(Arc::new(ScatterElements { axis: a.int_or("axis", 0)?, reduction }))
        },
        examples: || {
            let indices = Tensor::from_slice([2, 2], &[0i64, 2, -1, 1]);
            let e = Example::new("last axis").attribute("axis", 1).input(floats([2, 3], 1));
            vec![e.input(indices).input(floats([2, 2], 2))]
        },
    },
    OpSpec {
        name: "Scatter",
        domain: "",
        since: 9,
        inputs: (3, 3),
        outputs: (1, 1),
        parse: |a| {
            let reduction = Reduction::None;
            Ok(Arc::new(ScatterElements { axis: a.int_or("axis", 0)?, reduction }))
        },
        examples: || {
            let indices = Tensor::from_slice([1, 2], &[0i64, 1]);
            let e = Example::new("first axis").input(floats([2, 3], 1));
            vec![e.input(indices).input(floats([1, 2], 2))]
        },
    },
];

/// How an update meets what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reduction {
    /// It replaces it.
    None,
    Add,
    Mul,
    Min,
    Max,
}

impl Reduction {
    fn parse(a: &Attributes) -> Result<Reduction, OpError> {
        Ok(match a.string("reduction")?.as_deref() {
            None | Some("none") => Reduction::None,
            Some("add") => Reduction::Add,
            Some("mul") => Reduction::Mul,
            Some("min") => Reduction::Min,
            Some("max") => Reduction::Max,
            Some(other) => {
                return Err(OpError::invalid(format!(
                    "reduction '{other}' (one of none, add, mul, min, max)"
                )));
            }
        })
    }

    fn attributes(self) -> Vec<(&'static str, AttributeValue)> {
        let name = match self {
            Reduction::None => return Vec::new(),
            Reduction::Add => "add",
            Reduction::Mul => "mul",
            Reduction::Min => "min",
            Reduction::Max => "max",
        };
        vec![("reduction", AttributeValue::String(name.to_owned()))]
    }

    /// Combines runs of elements of this type.
    fn function(self, dtype: DType) -> Result<fn(&mut [u8], &[u8]), OpError> {
        fn each<T: Pod>(y: &mut [u8], x: &[u8], f: impl Fn(T, T) -> T) {
            for (y, &x) in cast_slice_mut::<u8, T>(y).iter_mut().zip(cast_slice::<u8, T>(x)) {
                *y = f(*y, x);
            }
        }
        macro_rules! integers {
            ($t:ty) => {
                match self {
                    Reduction::Add => |y, x| each::<$t>(y, x, <$t>::wrapping_add),
                    Reduction::Mul => |y, x| each::<$t>(y, x, <$t>::wrapping_mul),
                    Reduction::Min => |y, x| each::<$t>(y, x, Ord::min),
                    _ => |y, x| each::<$t>(y, x, Ord::max),
                }
            };
        }
        macro_rules! floats {
            ($t:ty) => {
                match self {
                    Reduction::Add => |y, x| each::<$t>(y, x, |a, b| a + b),
                    Reduction::Mul => |y, x| each::<$t>(y, x, |a, b| a * b),
                    Reduction::Min => |y, x| each::<$t>(y, x, |a, b| if b < a { b } else { a }),
                    _ => |y, x| each::<$t>(y, x, |a, b| if b > a { b } else { a }),
                }
            };
        }
        Ok(match dtype {
            _ if self == Reduction::None => |y, x| y.copy_from_slice(x),
            DType::F32 => floats!(f32),
            DType::F64 => floats!(f64),
            DType::F16 => floats!(f16),
            DType::I8 => integers!(i8),
            DType::U8 => integers!(u8),
            DType::I16 => integers!(i16),
            DType::U16 => integers!(u16),
            DType::I32 => integers!(i32),
            DType::U32 => integers!(u32),
            DType::I64 => integers!(i64),
            DType::U64 => integers!(u64),
            DType::Bool => {
                return Err(OpError::unsupported("reduction of booleans (supported: none)"));
            }
        })
    }
}

/// Data, indices and updates of one element type.
fn check_types(inputs: &[Option<Operand>]) -> Result<[&Operand; 3], OpError> {
    let data = inputs.required(0, "data")?;
    let indices = inputs.required(1, "indices")?;
    let updates = inputs.required(2, "updates")?;
    if data.ty.dtype != updates.ty.dtype {
        return Err(OpError::invalid(format!("updates of {} for data of {}", updates.ty, data.ty)));
    }
    Ok([data, indices, updates])
}

/// Writes slices at tuples of indices.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterNd {
    /// How updates meet the data.
    pub reduction: Reduction,
}

impl Op for ScatterNd {
    fn op_type(&self) -> &'static str {
        "ScatterND"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let [data, indices, updates] = check_types(inputs)?;
        if indices.ty.dtype != DType::I64 {
            return Err(OpError::dtype(indices.ty.dtype, &[DType::I64]));
        }
        let split = indices.shape().split_last().filter(|(k, _)| **k <= data.ty.rank());
        let fits = split
            .is_some_and(|(&k, outer)| updates.shape() == [outer, &data.shape()[k..]].concat());
        if !fits {
            return Err(OpError::invalid(format!(
                "indices of shape {:?} and updates of shape {:?} for data of shape {:?}",
                indices.shape(),
                updates.shape(),
                data.shape()
            )));
        }
        Ok(vec![data.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        if self.reduction == Reduction::None { 0 } else { x.input(2).ty.len() as u64 }
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let data = &x.input(0).ty;
        let tuples = Tuples::new(&data.shape, x.input(1).shape(), 0);
        let size = data.dtype.size();
        let combine = self.reduction.function(data.dtype)?;
        Ok(kernel(move |io, pool| {
            let (indices, updates) = (io.input(1), io.input(2).bytes);
            let indices = indices.slice::<i64>();
            runs::copy(io.input(0).bytes, io.outputs[0].bytes, pool);
            let run = tuples.run * size;
            for i in 0..tuples.count {
                let at = tuples.at(indices, i)? * size;
                combine(&mut io.outputs[0].bytes[at..at + run], &updates[i * run..(i + 1) * run]);
            }
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        self.reduction.attributes()
    }
}

/// Writes single elements along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterElements {
    /// The axis; may count from the end.
    pub axis: i64,
    /// How updates meet the data.
    pub reduction: Reduction,
}

impl Op for ScatterElements {
    fn op_type(&self) -> &'static str {
        "ScatterElements"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let [data, indices, updates] = check_types(inputs)?;
        check_index_type(indices)?;
        let axis = axes::axis(self.axis, data.ty.rank())?;
        check_element_indices(data.shape(), indices.shape(), axis)?;
        if updates.shape() != indices.shape() {
            return Err(OpError::invalid(format!(
                "updates of shape {:?} for indices of shape {:?}",
                updates.shape(),
                indices.shape()
            )));
        }
        Ok(vec![data.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        if self.reduction == Reduction::None { 0 } else { x.input(2).ty.len() as u64 }
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let data = &x.input(0).ty;
        let place = ElementPlace::new(&data.shape, x.input(1).shape(), self.axis)?;
        let count = x.input(1).ty.len();
        let size = data.dtype.size();
        let combine = self.reduction.function(data.dtype)?;
        Ok(kernel(move |io, pool| {
            let (indices, updates) = (io.input(1), io.input(2).bytes);
            runs::copy(io.input(0).bytes, io.outputs[0].bytes, pool);
            for i in 0..count {
                let index = resolve(index_at(&indices, i), place.dim)?;
                let at = place.at(i, index) * size;
                combine(&mut io.outputs[0].bytes[at..at + size], &updates[i * size..][..size]);
            }
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("axis", AttributeValue::Int(self.axis))];
        list.extend(self.reduction.attributes());
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{evaluate, integers};
    use sparoa_kernels::pool::Pool;

    fn run(op: &dyn Op, inputs: [&Tensor; 3]) -> Result<Tensor, OpError> {
        evaluate(op, &inputs.map(Some), &Pool::single()).map(|mut t| t.remove(0))
    }

    #[test]
    fn scatters_rows_and_elements() {
        let x = integers(&[1, 2, 3, 4]);
        let indices = Tensor::from_slice([3, 1], &[3i64, -4, 3]);
        let nd = |reduction| run(&ScatterNd { reduction }, [&x, &indices, &integers(&[9, 8, 7])]);
        assert_eq!(nd(Reduction::None), Ok(integers(&[8, 2, 3, 7])));
        assert_eq!(nd(Reduction::Add), Ok(integers(&[9, 2, 3, 20])));
        assert_eq!(nd(Reduction::Mul), Ok(integers(&[8, 2, 3, 252])));
        assert_eq!(nd(Reduction::Max), Ok(integers(&[8, 2, 3, 9])));
        assert_eq!(nd(Reduction::Min), Ok(integers(&[1, 2, 3, 4])));
        let x = Tensor::from_slice([2, 3], &[0i32; 6]);
        let i = Tensor::from_slice([2, 2], &[0i64, -1, 1, 0]);
        let u = Tensor::from_slice([2, 2], &[1i32, 2, 3, 4]);
        let op = ScatterElements { axis: 1, reduction: Reduction::None };
        assert_eq!(run(&op, [&x, &i, &u]), Ok(Tensor::from_slice([2, 3], &[1, 0, 2, 4, 3, 0])));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let nd = ScatterNd { reduction: Reduction::None };
        let x = integers(&[1, 2]);
        let at = |i: i64| Tensor::from_slice([1, 1], &[i]);
        assert!(matches!(run(&nd, [&x, &at(2), &integers(&[1])]), Err(OpError::Value(_))));
        assert!(run(&nd, [&x, &at(0), &integers(&[1, 2])]).is_err());
        assert!(run(&nd, [&x, &Tensor::scalar(0i64), &integers(&[1])]).is_err());
    }
}
