//! Gather, GatherElements, GatherND.

use std::sync::Arc;

use sparoa_kernels::pool::Pool;

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, KernelIo, Op, OpError,
    OpSpec, Operand, Operands, axes, floats, gpu, integers, kernel, runs,
};
use crate::tensor::{DType, Tensor, TensorRef, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Gather",
        domain: "",
        since: 1,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Gather { axis: a.int_or("axis", 0)? })),
        examples: || {
            let e = |name| Example::new(name).input(floats([3, 5, 2], 1));
            vec![
                e("rows").constant(integers(&[2, 0, -1, 2])),
                e("one column").attribute("axis", 1).constant(Tensor::scalar(3i64)),
            ]
        },
    },
    OpSpec {
        name: "GatherElements",
        domain: "",
        since: 11,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(GatherElements { axis: a.int_or("axis", 0)? })),
        examples: || {
            let indices = Tensor::from_slice([2, 2], &[0i64, -1, 2, 1]);
            let e = Example::new("last axis").attribute("axis", 1);
            vec![e.input(floats([3, 3], 1)).input(indices)]
        },
    },
    OpSpec {
        name: "GatherND",
        domain: "",
        since: 11,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(GatherNd { batch_dims: axes::dim(a.int_or("batch_dims", 0)?)? })),
        examples: || {
            let x = || floats([2, 3, 5], 1);
            let rows = Tensor::from_slice([2, 2], &[0i64, -1, 1, 0]);
            let batch = Tensor::from_slice([2, 1], &[2i64, 0]);
            vec![
                Example::new("rows").input(x()).input(rows),
                Example::new("batched").attribute("batch_dims", 1).input(x()).input(batch),
            ]
        },
    },
];

/// Index `i` of an index tensor, of an integer type that [`check_index_type`] accepts.
pub(super) fn index_at(indices: &TensorRef<'_>, i: usize) -> i64 {
    match indices.dtype {
        DType::I32 => indices.slice::<i32>()[i].into(),
        _ => indices.slice::<i64>()[i],
    }
}

pub(super) fn check_index_type(operand: &Operand) -> Result<(), OpError> {
    match operand.ty.dtype {
        DType::I32 | DType::I64 => Ok(()),
        other => Err(OpError::dtype(other, &[DType::I32, DType::I64])),
    }
}

/// The position that an index means on an axis of `dim`.
pub(super) fn resolve(index: i64, dim: usize) -> Result<usize, OpError> {
    let signed = i64::try_from(dim).unwrap_or(i64::MAX);
    let from_start = if index < 0 { index.saturating_add(signed) } else { index };
    usize::try_from(from_start)
        .ok()
        .filter(|&i| i < dim)
        .ok_or_else(|| OpError::Value(format!("index {index} is outside an axis of size {dim}")))
}

/// Takes slices along an axis by index.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// The axis; may count from the end.
    pub axis: i64,
}

impl Op for Gather {
    fn op_type(&self) -> &'static str {
        "Gather"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let indices = inputs.required(1, "indices")?;
        check_index_type(indices)?;
        let axis = axes::axis(self.axis, x.ty.rank())?;
        let (outer, inner) = (&x.shape()[..axis], &x.shape()[axis + 1..]);
        let shape = [outer, indices.shape(), inner].concat();
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let ty = &x.input(0).ty;
        let axis = axes::axis(self.axis, ty.rank())?;
        let dim = ty.shape[axis];
        let run = ty.shape[axis + 1..].iter().product::<usize>() * ty.dtype.size();
        let count = x.input(1).ty.len();
        Ok(kernel(move |io, pool| {
            let indices = io.input(1);
            for i in 0..count {
                resolve(index_at(&indices, i), dim)?;
            }
            gather_runs(io, pool, run, |row| {
                let index = resolve(index_at(&indices, row % count), dim);
                (row / count * dim + index.unwrap_or(0)) * run
            });
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::gather(x, caps, axes::axis(self.axis, x.input(0).ty.rank()).ok()?)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", AttributeValue::Int(self.axis))]
    }
}

/// Output 0 made of runs of `run` bytes; run `i` comes from byte `from(i)` of input 0.
fn gather_runs(
    io: &mut KernelIo<'_, '_>,
    pool: &Pool,
    run: usize,
    from: impl Fn(usize) -> usize + Sync,
) {
    let x = io.input(0).bytes;
    let y = &mut *io.outputs[0].bytes;
    let part = runs::part_bytes(y.len(), run, pool);
    pool.run_parts(y, part, &|i, y| {
        let first = i * part / run;
        let copy = |size: usize, y: &mut [u8]| {
            for (row, y) in y.chunks_exact_mut(size).enumerate() {
                let from = from(first + row);
                y.copy_from_slice(&x[from..from + size]);
            }
        };
        // Constant sizes compile to plain loads and stores.
        match run {
            1 => copy(1, y),
            4 => copy(4, y),
            8 => copy(8, y),
            _ => copy(run, y),
        }
    });
}

/// Takes single elements along an axis, one for each index.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherElements {
    /// The axis; may count from the end.
    pub axis: i64,
}

impl Op for GatherElements {
    fn op_type(&self) -> &'static str {
        "GatherElements"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let indices = inputs.required(1, "indices")?;
        check_index_type(indices)?;
        let axis = axes::axis(self.axis, x.ty.rank())?;
        check_element_indices(x.shape(), indices.shape(), axis)?;
        Ok(vec![TensorType::new(x.ty.dtype, indices.shape())])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let place = ElementPlace::new(x.input(0).shape(), x.input(1).shape(), self.axis)?;
        let (dim, size) = (place.dim, x.input(0).ty.dtype.size());
        let count = x.input(1).ty.len();
        Ok(kernel(move |io, pool| {
            let indices = io.input(1);
            for i in 0..count {
                resolve(index_at(&indices, i), dim)?;
            }
            gather_runs(io, pool, size, |i| {
                let index = resolve(index_at(&indices, i), dim);
                place.at(i, index.unwrap_or(0)) * size
            });
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", AttributeValue::Int(self.axis))]
    }
}

/// The indices of GatherElements and ScatterElements have the data's rank and exceed it nowhere
/// but on the axis.
pub(super) fn check_element_indices(
    data: &[usize],
    indices: &[usize],
    axis: usize,
) -> Result<(), OpError> {
    let fits =
        data.len() == indices.len() && (0..data.len()).all(|d| d == axis || indices[d] <= data[d]);
    fits.then_some(()).ok_or_else(|| {
        OpError::invalid(format!("indices of shape {indices:?} for data of shape {data:?}"))
    })
}

/// Where in the data the element of an index lies, for GatherElements and ScatterElements.
#[derive(Clone, Debug)]
pub(super) struct ElementPlace {
    /// Size of the axis.
    pub dim: usize,
    /// Index dimensions, and data strides with 0 for the axis.
    dims: Vec<(usize, usize)>,
    axis_stride: usize,
}

impl ElementPlace {
    pub fn new(data: &[usize], indices: &[usize], axis: i64) -> Result<ElementPlace, OpError> {
        let axis = axes::axis(axis, data.len())?;
        let strides = axes::strides(data);
        let dims = (0..data.len()).map(|d| (indices[d], if d == axis { 0 } else { strides[d] }));
        Ok(ElementPlace { dim: data[axis], dims: dims.collect(), axis_stride: strides[axis] })
    }

    /// The element for index number `i`, whose value is `index`.
    pub fn at(&self, mut i: usize, index: usize) -> usize {
        let mut at = index * self.axis_stride;
        for &(dim, stride) in self.dims.iter().rev() {
            at += i % dim * stride;
            i /= dim;
        }
        at
    }
}

/// Takes slices by tuples of indices.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherNd {
    /// Leading dimensions that data and indices share.
    pub batch_dims: usize,
}

impl Op for GatherNd {
    fn op_type(&self) -> &'static str {
        "GatherND"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let indices = inputs.required(1, "indices")?;
        if indices.ty.dtype != DType::I64 {
            return Err(OpError::dtype(indices.ty.dtype, &[DType::I64]));
        }
        let (data, batch) = (x.shape(), self.batch_dims);
        let tuple = indices.shape().last().copied();
        let fits = tuple.is_some_and(|k| k >= 1 && batch.saturating_add(k) <= data.len())
            && batch < indices.ty.rank()
            && data[..batch] == indices.shape()[..batch];
        let Some(k) = tuple.filter(|_| fits) else {
            return Err(OpError::invalid(format!(
                "indices of shape {:?} with {batch} batch dimensions for data of shape {data:?}",
                indices.shape()
            )));
        };
        let outer = &indices.shape()[..indices.ty.rank() - 1];
        Ok(vec![TensorType::new(x.ty.dtype, [outer, &data[batch + k..]].concat())])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (data, indices) = (x.input(0), x.input(1));
        let tuples = Tuples::new(data.shape(), indices.shape(), self.batch_dims);
        let run = tuples.run * data.ty.dtype.size();
        Ok(kernel(move |io, pool| {
            let indices = io.input(1);
            let indices = indices.slice::<i64>();
            for i in 0..tuples.count {
                tuples.at(indices, i)?;
            }
            let size = run / tuples.run.max(1);
            gather_runs(io, pool, run, |i| tuples.at(indices, i).unwrap_or(0) * size);
            Ok(())
        }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("batch_dims", AttributeValue::Int(self.batch_dims as i64))]
    }
}

/// Index tuples of GatherND and ScatterND.
#[derive(Clone, Debug)]
pub(super) struct Tuples {
    /// Number of tuples.
    pub count: usize,
    /// Elements that one tuple names.
    pub run: usize,
    /// Dimension and stride of each indexed axis.
    axes: Vec<(usize, usize)>,
    /// Tuples per batch entry, and elements of a batch entry.
    batch: (usize, usize),
}

impl Tuples {
    /// For shapes that were found to fit.
    pub fn new(data: &[usize], indices: &[usize], batch_dims: usize) -> Tuples {
        let (&k, outer) = indices.split_last().expect("the indices were found to have a rank");
        let strides = axes::strides(data);
        let indexed = batch_dims..batch_dims + k;
        Tuples {
            count: outer.iter().product(),
            run: data[batch_dims + k..].iter().product(),
            axes: indexed.map(|a| (data[a], strides[a])).collect(),
            batch: (outer[batch_dims..].iter().product(), data[batch_dims..].iter().product()),
        }
    }

    /// First element that tuple `i` names.
    pub fn at(&self, indices: &[i64], i: usize) -> Result<usize, OpError> {
        let k = self.axes.len();
        let mut at = i / self.batch.0 * self.batch.1;
        for (&index, &(dim, stride)) in indices[i * k..(i + 1) * k].iter().zip(&self.axes) {
            at += resolve(index, dim)? * stride;
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::evaluate;

    fn run(op: &dyn Op, x: &Tensor, i: &Tensor) -> Result<Tensor, OpError> {
        evaluate(op, &[Some(x), Some(i)], &Pool::single()).map(|mut t| t.remove(0))
    }

    fn t(shape: &[usize], data: &[i32]) -> Tensor {
        Tensor::from_slice(shape, data)
    }

    #[test]
    fn gather_on_both_ends() {
        let x = t(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        let y = run(&Gather { axis: 1 }, &x, &integers(&[-1, 0])).unwrap();
        assert_eq!(y, t(&[2, 2], &[3, 1, 6, 4]));
        let y = run(&Gather { axis: 0 }, &x, &Tensor::scalar(1i32)).unwrap();
        assert_eq!(y, t(&[3], &[4, 5, 6]));
        for wrong in [2, -3, i64::MIN, i64::MAX] {
            let e = run(&Gather { axis: 0 }, &x, &integers(&[wrong]));
            assert!(matches!(e, Err(OpError::Value(_))), "{wrong}");
        }
        let none = run(&Gather { axis: 1 }, &t(&[0, 3], &[]), &integers(&[1])).unwrap();
        assert_eq!(none.shape(), [0, 1]);
        assert!(run(&Gather { axis: 1 }, &t(&[2, 0], &[]), &integers(&[0])).is_err());
    }

    #[test]
    fn gather_elements_and_nd() {
        let x = t(&[2, 2], &[1, 2, 3, 4]);
        let i = Tensor::from_slice([2, 2], &[0i64, 0, 1, -2]);
        assert_eq!(run(&GatherElements { axis: 1 }, &x, &i).unwrap(), t(&[2, 2], &[1, 1, 4, 3]));
        let i = Tensor::from_slice([2, 2], &[0i64, 0, 1, -1]);
        assert_eq!(run(&GatherNd { batch_dims: 0 }, &x, &i).unwrap(), t(&[2], &[1, 4]));
        let x = t(&[2, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 7]);
        let i = Tensor::from_slice([2, 1], &[1i64, 0]);
        let y = run(&GatherNd { batch_dims: 1 }, &x, &i).unwrap();
        assert_eq!(y, t(&[2, 2], &[2, 3, 4, 5]));
        let wrong = Tensor::from_slice([1, 1], &[2i64]);
        assert!(matches!(run(&GatherNd { batch_dims: 0 }, &x, &wrong), Err(OpError::Value(_))));
        assert!(run(&GatherNd { batch_dims: 9 }, &x, &wrong).is_err());
    }
}
