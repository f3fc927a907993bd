//! Concat, Split.

use std::{ops::Range, sync::Arc};

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec,
    Operand, Operands, Part, PartInput, Permuted, axes, floats, gpu, integers, kernel, runs,
};
use crate::tensor::TensorType;

/// Rows are joined input by input in blocks of so many bytes, which stay in the first-level cache.
const BLOCK: usize = 8 << 10;

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Concat",
        domain: "",
        since: 4,
        inputs: (1, i32::MAX as usize),
        outputs: (1, 1),
        parse: |a| {
            let axis = a.int("axis")?.ok_or_else(|| OpError::invalid("axis is missing"))?;
            Ok(Arc::new(Concat { axis }))
        },
        examples: || {
            let e = |name, axis: i64| {
                Example::new(name).attribute("axis", axis).input(floats([2, 3, 5], 1))
            };
            vec![
                e("channels", 1).input(floats([2, 4, 5], 2)),
                e("last axis, one constant", -1).constant(floats([2, 3, 1], 2)),
            ]
        },
    },
    OpSpec {
        name: "Split",
        domain: "",
        since: 2,
        inputs: (1, 2),
        outputs: (1, i32::MAX as usize),
        parse: |a| {
            let outputs = match a.int("num_outputs")? {
                None => a.outputs,
                Some(n) => axes::dim(n)?,
            };
            if outputs > a.outputs {
                return Err(OpError::invalid(format!(
                    "num_outputs is {outputs}, the node has {} outputs",
                    a.outputs
                )));
            }
            let sizes = if a.opset < 13 { a.ints("split")? } else { None };
            Ok(Arc::new(Split { axis: a.int_or("axis", 0)?, sizes, outputs }))
        },
        examples: || {
            let e = |name, n| {
                let x = floats([2, 7, 3], 1);
                Example::new(name).attribute("axis", 1).input(x).outputs(n)
            };
            vec![
                e("given sizes", 3).constant(integers(&[1, 4, 2])),
                e("unequal halves", 2).attribute("num_outputs", 2),
            ]
        },
    },
];

/// Bytes of one index of the axes before `axis`, summed over the axes from `axis` on.
fn row_bytes(ty: &TensorType, axis: usize) -> usize {
    ty.shape[axis..].iter().product::<usize>() * ty.dtype.size()
}

/// Where an axis goes when dimension `i` becomes dimension `perm[i]`.
pub(super) fn moved_axis(axis: usize, perm: &[usize]) -> Option<i64> {
    perm.iter().position(|&a| a == axis).map(|a| a as i64)
}

/// Joins its inputs along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// The axis; may count from the end.
    pub axis: i64,
}

impl Op for Concat {
    fn op_type(&self) -> &'static str {
        "Concat"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let first = &inputs.required(0, "inputs")?.ty;
        let axis = axes::axis(self.axis, first.rank())?;
        let mut out = first.clone();
        for i in 1..inputs.len() {
            let ty = &inputs.required(i, "inputs")?.ty;
            let fits = ty.rank() == first.rank()
                && (0..ty.rank()).all(|d| d == axis || ty.shape[d] == first.shape[d]);
            if !fits || ty.dtype != first.dtype {
                return Err(OpError::invalid(format!(
                    "{first} and {ty} cannot be joined along axis {axis}"
                )));
            }
            out.shape[axis] = out.shape[axis]
                .checked_add(ty.shape[axis])
                .ok_or_else(|| OpError::invalid("the joined axis is too long"))?;
        }
        Ok(vec![out])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let output = x.output(0);
        let axis = axes::axis(self.axis, output.rank())?;
        let rows: Vec<usize> = x.inputs.iter().flatten().map(|o| row_bytes(&o.ty, axis)).collect();
        let row = row_bytes(output, axis);
        let outer: usize = output.shape[..axis].iter().product();
        Ok(kernel(move |io, pool| {
            if outer <= 1 {
                let mut rest = &mut io.outputs[0].bytes[..];
                for (x, &bytes) in io.inputs.iter().flatten().zip(&rows) {
                    let (target, after) = rest.split_at_mut(bytes.min(rest.len()));
                    runs::copy(x.bytes, target, pool);
                    rest = after;
                }
                return Ok(());
            }
            let inputs = io.inputs;
            let out = &mut io.outputs[0].bytes;
            let part = runs::part_bytes(out.len(), row, pool);
            pool.run_parts(out, part, &|i, out| {
                let mut before = i * part / row;
                for out in out.chunks_mut(BLOCK.next_multiple_of(row)) {
                    let mut offset = 0;
                    for (x, &bytes) in inputs.iter().flatten().zip(&rows) {
                        if bytes > 0 {
                            let from = (before * bytes) as isize;
                            let next = bytes as isize;
                            runs::copy_runs(x.bytes, (from, next), &mut out[offset..], row, bytes);
                        }
                        offset += bytes;
                    }
                    before += out.len() / row;
                }
            });
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::concat(x, caps, axes::axis(self.axis, x.output(0).rank()).ok()?)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        // Along the joined axis itself a part would drop whole inputs: leave that alone.
        let first = axes::first_long(&x.output(0).shape)?;
        let axis = axes::axis(self.axis, x.output(0).rank()).ok()?;
        (first < axis).then_some(first)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let part = PartInput::Range { axis, range };
        Some(Part { op: Arc::new(self.clone()), inputs: vec![part; x.inputs.len()] })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let axis = axes::axis(self.axis, x.output(0).rank()).ok()?;
        let op = Concat { axis: moved_axis(axis, perm)? };
        Some(Permuted { op: Arc::new(op), inputs: vec![Some(perm.to_vec()); x.inputs.len()] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", AttributeValue::Int(self.axis))]
    }
}

/// Cuts its input along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The axis; may count from the end.
    pub axis: i64,
    /// Sizes of the pieces, in models before opset 13; later ones may give them as input 1.
    pub sizes: Option<Vec<i64>>,
    /// Number of pieces: of equal size, the last one smaller if need be, when no sizes are given.
    pub outputs: usize,
}

impl Split {
    fn sizes(&self, inputs: &[Option<Operand>], dim: usize) -> Result<Vec<usize>, OpError> {
        let given = match &self.sizes {
            Some(sizes) => Some(sizes.clone()),
            None => inputs.integers(1, "split")?,
        };
        let wrong = |sizes: &dyn std::fmt::Debug| {
            OpError::invalid(format!(
                "an axis of size {dim} cannot be split into {sizes:?} for {} outputs",
                self.outputs
            ))
        };
        if let Some(given) = given {
            let sizes: Vec<usize> =
                given.iter().map(|&n| axes::dim(n)).collect::<Result<_, _>>()?;
            let sum = sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s));
            if sum != Some(dim) || sizes.len() != self.outputs {
                return Err(wrong(&given));
            }
            return Ok(sizes);
        }
        let piece = dim.div_ceil(self.outputs.max(1));
        let mut rest = dim;
        let mut sizes = Vec::with_capacity(self.outputs);
        for _ in 0..self.outputs {
            let size = piece.min(rest);
            rest -= size;
            sizes.push(size);
        }
        Ok(sizes)
    }
}

impl Op for Split {
    fn op_type(&self) -> &'static str {
        "Split"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = &inputs.required(0, "input")?.ty;
        let axis = axes::axis(self.axis, x.rank())?;
        let types = self.sizes(inputs, x.shape[axis])?.into_iter().map(|size| {
            let mut ty = x.clone();
            ty.shape[axis] = size;
            ty
        });
        Ok(types.collect())
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let input = &x.input(0).ty;
        let axis = axes::axis(self.axis, input.rank())?;
        let row = row_bytes(input, axis);
        let rows: Vec<usize> = x.outputs.iter().map(|ty| row_bytes(ty, axis)).collect();
        Ok(kernel(move |io, pool| {
            let x = io.input(0).bytes;
            let mut offset = 0;
            for (y, &bytes) in io.outputs.iter_mut().zip(&rows) {
                if y.bytes.is_empty() {
                    continue;
                }
                if y.bytes.len() == bytes {
                    runs::copy(&x[offset..offset + bytes], y.bytes, pool);
                } else {
                    let part = runs::part_bytes(y.bytes.len(), bytes, pool);
                    pool.run_parts(y.bytes, part, &|i, y| {
                        let from = i * part / bytes * row + offset;
                        runs::copy_runs(x, (from as isize, row as isize), y, bytes, bytes);
                    });
                }
                offset += bytes;
            }
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::split(x, caps, axes::axis(self.axis, x.input(0).ty.rank()).ok()?)
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let axis = axes::axis(self.axis, x.input(0).ty.rank()).ok()?;
        let op = Split { axis: moved_axis(axis, perm)?, ..self.clone() };
        let mut inputs = vec![None; x.inputs.len()];
        inputs[0] = Some(perm.to_vec());
        Some(Permuted { op: Arc::new(op), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("axis", AttributeValue::Int(self.axis))];
        list.extend(self.sizes.clone().map(|s| ("split", AttributeValue::Ints(s))));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ops::evaluate, tensor::Tensor};
    use sparoa_kernels::pool::Pool;

    fn t(shape: &[usize], data: &[i32]) -> Tensor {
        Tensor::from_slice(shape, data)
    }

    #[test]
    fn concat_and_split_are_inverse() {
        let (a, b) = (t(&[2, 1, 2], &[1, 2, 3, 4]), t(&[2, 2, 2], &[5, 6, 7, 8, 9, 10, 11, 12]));
        let pool = Pool::single();
        let y = evaluate(&Concat { axis: -2 }, &[Some(&a), Some(&b)], &pool).unwrap().remove(0);
        assert_eq!(y, t(&[2, 3, 2], &[1, 2, 5, 6, 7, 8, 3, 4, 9, 10, 11, 12]));
        let split = Split { axis: 1, sizes: None, outputs: 2 };
        let back = evaluate(&split, &[Some(&y), Some(&integers(&[1, 2]))], &pool).unwrap();
        assert_eq!(back, [a.clone(), b.clone()]);
        let y = evaluate(&Concat { axis: 0 }, &[Some(&b), Some(&b)], &pool).unwrap().remove(0);
        assert_eq!(y.shape(), [4, 2, 2]);
        assert_eq!(y.as_slice::<i32>().unwrap()[8..10], [5, 6]);
        assert!(evaluate(&Concat { axis: 0 }, &[Some(&a), Some(&b)], &pool).is_err());
    }

    #[test]
    fn many_short_rows_and_back() {
        let (rows, sizes) = (9001, [2, 0, 1, 5, 40]);
        let part = |size: usize, at: usize| {
            let row = |r: usize| (0..size).map(move |i| (r * 48 + at + i) as i32);
            t(&[rows, size], &(0..rows).flat_map(row).collect::<Vec<_>>())
        };
        let starts = [0, 2, 2, 3, 8];
        let parts: Vec<Tensor> = sizes.iter().zip(starts).map(|(&n, at)| part(n, at)).collect();
        let pool = Pool::new(3);
        let inputs: Vec<_> = parts.iter().map(Some).collect();
        let y = evaluate(&Concat { axis: 1 }, &inputs, &pool).unwrap().remove(0);
        assert_eq!(y, t(&[rows, 48], &(0..rows as i32 * 48).collect::<Vec<_>>()));
        let sizes = Some(sizes.map(|n| n as i64).to_vec());
        let split = Split { axis: 1, sizes, outputs: 5 };
        assert_eq!(evaluate(&split, &[Some(&y)], &pool).unwrap(), parts);
    }

    #[test]
    fn split_sizes() {
        let x = [Some(Operand::dynamic(TensorType::f32([7])))];
        let sizes = |outputs, sizes| {
            let split = Split { axis: 0, sizes, outputs };
            split.infer(&x).map(|t| t.iter().map(|t| t.shape[0]).collect::<Vec<_>>())
        };
        assert_eq!(sizes(3, None), Ok(vec![3, 3, 1]));
        assert_eq!(sizes(2, Some(vec![0, 7])), Ok(vec![0, 7]));
        assert!(sizes(2, Some(vec![-1, 8])).is_err());
        assert!(sizes(2, Some(vec![3, 3])).is_err());
        assert!(sizes(3, Some(vec![3, 4])).is_err());
    }

    #[test]
    fn transposes_move_the_axis() {
        let inputs = vec![Some(Operand::dynamic(TensorType::f32([2, 3, 4, 5]))); 2];
        let op = Concat { axis: 1 };
        let outputs = op.infer(&inputs).unwrap();
        let x = Operands { inputs: &inputs, outputs: &outputs };
        let p = op.permuted(&x, &[0, 2, 3, 1]).unwrap();
        assert_eq!(p.op.downcast::<Concat>(), Some(&Concat { axis: 3 }));
        assert_eq!(op.split_axis(&x), Some(0));
    }
}
