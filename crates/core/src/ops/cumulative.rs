//! CumSum, Trilu.

use std::sync::Arc;

use super::{
    AttributeValue, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands, axes,
    floats, kernel, runs,
};
use crate::tensor::{DType, Element, Tensor, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "CumSum",
        domain: "",
        since: 11,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| {
            let (exclusive, reverse) = (a.flag("exclusive", false)?, a.flag("reverse", false)?);
            Ok(Arc::new(CumSum { exclusive, reverse }))
        },
        examples: || {
            let e = |name| {
                let x = floats([2, 3, 5], 1);
                Example::new(name).input(x).constant(Tensor::scalar(1i64))
            };
            vec![
                e("plain"),
                e("from the end, exclusive").attribute("reverse", 1).attribute("exclusive", 1),
            ]
        },
    },
    OpSpec {
        name: "Trilu",
        domain: "",
        since: 14,
        inputs: (1, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Trilu { upper: a.flag("upper", true)? })),
        examples: || {
            let e = |name| Example::new(name).input(floats([2, 3, 4], 1));
            vec![
                e("upper"),
                e("lower, below the diagonal")
                    .attribute("upper", 0)
                    .constant(Tensor::scalar(-1i64)),
            ]
        },
    },
];

/// Running sums along the axis that input 1 names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CumSum {
    /// An element does not count itself.
    pub exclusive: bool,
    /// Sums run from the end.
    pub reverse: bool,
}

impl Op for CumSum {
    fn op_type(&self) -> &'static str {
        "CumSum"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "x")?;
        let axis = inputs.required(1, "axis")?;
        if axis.ty.len() != 1 || !matches!(axis.ty.dtype, DType::I32 | DType::I64) {
            return Err(OpError::invalid(format!("axis must be one integer, is {}", axis.ty)));
        }
        if let Some(value) = inputs.integers(1, "axis").ok().flatten() {
            axes::axis(value[0], x.ty.rank())?;
        }
        Ok(vec![x.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        match x.output(0).dtype {
            DType::F32 => Ok(self.kernel::<f32>(x, |a, b| a + b)),
            DType::F64 => Ok(self.kernel::<f64>(x, |a, b| a + b)),
            DType::F16 => Ok(self.kernel::<half::f16>(x, |a, b| a + b)),
            DType::I32 => Ok(self.kernel::<i32>(x, i32::wrapping_add)),
            DType::U32 => Ok(self.kernel::<u32>(x, u32::wrapping_add)),
            DType::I64 => Ok(self.kernel::<i64>(x, i64::wrapping_add)),
            DType::U64 => Ok(self.kernel::<u64>(x, u64::wrapping_add)),
            other => Err(OpError::dtype(
                other,
                &[
                    DType::F32,
                    DType::F64,
                    DType::F16,
                    DType::I32,
                    DType::U32,
                    DType::I64,
                    DType::U64,
                ],
            )),
        }
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("exclusive", self.exclusive.into()), ("reverse", self.reverse.into())]
    }
}

impl CumSum {
    fn kernel<T: Element>(&self, x: &Operands<'_>, add: fn(T, T) -> T) -> Box<dyn CpuKernel> {
        let shape = x.output(0).shape.clone();
        let CumSum { exclusive, reverse } = *self;
        kernel(move |io, pool| {
            let axis = super::gather::index_at(&io.input(1), 0);
            let axis = axes::axis(axis, shape.len())?;
            let dim = shape[axis];
            let inner: usize = shape[axis + 1..].iter().product();
            let x = io.input(0).slice::<T>();
            let y = io.outputs[0].slice_mut::<T>();
            let block = dim * inner;
            let part = block * runs::part_bytes(y.len(), block, pool).div_ceil(block.max(1));
            pool.run_parts(y, part, &|i, y| {
                for (b, y) in y.chunks_exact_mut(block).enumerate() {
                    let x = &x[i * part + b * block..][..block];
                    for step in 0..dim {
                        let at = |step: usize| if reverse { dim - 1 - step } else { step } * inner;
                        let here = at(step);
                        for j in 0..inner {
                            let previous = match step {
                                0 => T::zeroed(),
                                _ => y[at(step - 1) + j],
                            };
                            let added = match (exclusive, step) {
                                (false, _) => x[here + j],
                                (true, 0) => T::zeroed(),
                                (true, _) => x[at(step - 1) + j],
                            };
                            y[here + j] = add(previous, added);
                        }
                    }
                }
            });
            Ok(())
        })
    }
}

/// Keeps the upper or lower triangle of the last two dimensions, zeros elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Trilu {
    /// The upper one.
    pub upper: bool,
}

impl Op for Trilu {
    fn op_type(&self) -> &'static str {
        "Trilu"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        if x.ty.rank() < 2 {
            return Err(OpError::invalid(format!("the input must be a matrix, is {}", x.ty)));
        }
        match inputs.optional(1) {
            Some(k) if k.ty.dtype != DType::I64 || k.ty.len() != 1 => {
                Err(OpError::invalid(format!("k must be one i64, is {}", k.ty)))
            }
            _ => Ok(vec![x.ty.clone()]),
        }
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let ty = x.output(0);
        let (rows, columns) = (ty.shape[ty.rank() - 2], ty.shape[ty.rank() - 1]);
        let size = ty.dtype.size();
        let upper = self.upper;
        Ok(kernel(move |io, pool| {
            let k = io.get(1).map_or(0, |k| k.slice::<i64>()[0]);
            let x = io.input(0).bytes;
            let y = &mut *io.outputs[0].bytes;
            let row_bytes = columns * size;
            let part = runs::part_bytes(y.len(), row_bytes, pool);
            pool.run_parts(y, part, &|i, y| {
                let first = i * part / row_bytes;
                for (r, y) in (first..).zip(y.chunks_exact_mut(row_bytes)) {
                    // The diagonal's column in this row, moved to the first one after it for the
                    // lower triangle.
                    let column =
                        k.saturating_add((r % rows) as i64).saturating_add(i64::from(!upper));
                    let edge = column.clamp(0, columns as i64) as usize * size;
                    let x = &x[r * row_bytes..][..row_bytes];
                    y.copy_from_slice(x);
                    if upper { &mut y[..edge] } else { &mut y[edge..] }.fill(0);
                }
            });
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("upper", self.upper.into())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::evaluate;
    use sparoa_kernels::pool::Pool;

    fn run(op: &dyn Op, x: &Tensor, second: &Tensor) -> Result<Tensor, OpError> {
        evaluate(op, &[Some(x), Some(second)], &Pool::single()).map(|mut t| t.remove(0))
    }

    #[test]
    fn running_sums() {
        let x = Tensor::from_slice([2, 3], &[1i32, 2, 3, 4, 5, 6]);
        let sum = |exclusive, reverse, axis: i64| {
            run(&CumSum { exclusive, reverse }, &x, &Tensor::scalar(axis))
                .map(|t| t.as_slice::<i32>().unwrap().to_vec())
        };
        assert_eq!(sum(false, false, 1), Ok(vec![1, 3, 6, 4, 9, 15]));
        assert_eq!(sum(false, false, 0), Ok(vec![1, 2, 3, 5, 7, 9]));
        assert_eq!(sum(true, false, -1), Ok(vec![0, 1, 3, 0, 4, 9]));
        assert_eq!(sum(false, true, 1), Ok(vec![6, 5, 3, 15, 11, 6]));
        assert_eq!(sum(true, true, 1), Ok(vec![5, 3, 0, 11, 6, 0]));
        assert!(sum(false, false, 2).is_err());
    }

    #[test]
    fn triangles() {
        let x = Tensor::from_slice([2, 3], &[1i32, 2, 3, 4, 5, 6]);
        let t = |upper, k: i64| {
            let y = run(&Trilu { upper }, &x, &Tensor::scalar(k)).unwrap();
            y.as_slice::<i32>().unwrap().to_vec()
        };
        assert_eq!(t(true, 0), [1, 2, 3, 0, 5, 6]);
        assert_eq!(t(true, 1), [0, 2, 3, 0, 0, 6]);
        assert_eq!(t(true, i64::MIN), [1, 2, 3, 4, 5, 6]);
        assert_eq!(t(false, 0), [1, 0, 0, 4, 5, 0]);
        assert_eq!(t(false, -1), [0, 0, 0, 4, 0, 0]);
        assert_eq!(t(false, i64::MAX), [1, 2, 3, 4, 5, 6]);
    }
}
