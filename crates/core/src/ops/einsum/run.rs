//! How an Einsum is computed.

use sparoa_kernels::{activation::Epilogue, gemm::BatchedGemm, permute::permute};

use super::equation::Labels;
use crate::ops::{CpuKernel, Scratch, kernel, kernel_with, number::Number};

/// A loop over the output's indices, and inside over those summed.
pub(super) fn plain<T: Number>(labels: Labels) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        let operands: Vec<&[T]> =
            (0..labels.strides.len()).map(|i| io.input(i).slice::<T>()).collect();
        let (outer, inner) = labels.sizes.split_at(labels.output);
        let summed: usize = inner.iter().product();
        const PART: usize = 256;
        pool.run_parts(io.outputs[0].slice_mut::<T>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = T::ZERO;
                for j in 0..summed {
                    let mut product = T::ONE;
                    for (x, strides) in operands.iter().zip(&labels.strides) {
                        let (first, second) = strides.split_at(labels.output);
                        let at = offset(part * PART + i, outer, first) + offset(j, inner, second);
                        product = product.times(x[at]);
                    }
                    *y = y.plus(product);
                }
            }
        });
        Ok(())
    })
}

/// Offset of the `index`-th combination of labels with these sizes and strides.
fn offset(mut index: usize, sizes: &[usize], strides: &[usize]) -> usize {
    let mut at = 0;
    for (&size, &stride) in sizes.iter().zip(strides).rev() {
        at += index % size * stride;
        index /= size;
    }
    at
}

/// Two operands as one batched matrix product between transpositions.
pub(super) struct Product {
    /// Shape and permutation of each operand.
    operands: [(Vec<usize>, Vec<usize>); 2],
    /// Shape of the product and permutation to the output.
    result: (Vec<usize>, Vec<usize>),
    gemm: BatchedGemm,
}

impl Product {
    /// `None` when an operand has a label twice, sums one alone, or is broadcast.
    pub(super) fn new(labels: &Labels) -> Option<Product> {
        if labels.operands.len() != 2 || labels.repeats || labels.sizes.contains(&0) {
            return None;
        }
        for (shape, own) in labels.operands.iter().zip(&labels.of) {
            let broadcast = shape.iter().zip(own).any(|(&d, &label)| d != labels.sizes[label]);
            if broadcast {
                return None;
            }
        }
        let has = |operand: usize, label: &usize| labels.of[operand].contains(label);
        let (mut batch, mut rows, mut columns, mut inner) = (vec![], vec![], vec![], vec![]);
        for label in 0..labels.sizes.len() {
            let in_output = label < labels.output;
            match (has(0, &label), has(1, &label), in_output) {
                (true, true, true) => batch.push(label),
                (true, false, true) => rows.push(label),
                (false, true, true) => columns.push(label),
                (true, true, false) => inner.push(label),
                _ => return None,
            }
        }
        let count = |list: &[usize]| list.iter().map(|&l| labels.sizes[l]).product::<usize>();
        let order = |operand: usize, lists: [&Vec<usize>; 3]| {
            let own = &labels.of[operand];
            let perm = lists.into_iter().flatten().map(|l| own.iter().position(|o| o == l));
            Some((labels.operands[operand].clone(), perm.collect::<Option<Vec<usize>>>()?))
        };
        let made: Vec<usize> = [&batch, &rows, &columns].into_iter().flatten().copied().collect();
        let back = (0..labels.output).map(|label| made.iter().position(|&l| l == label));
        let (m, n, k, batches) = (count(&rows), count(&columns), count(&inner), count(&batch));
        Some(Product {
            operands: [order(0, [&batch, &rows, &inner])?, order(1, [&batch, &inner, &columns])?],
            result: (
                made.iter().map(|&l| labels.sizes[l]).collect(),
                back.collect::<Option<Vec<usize>>>()?,
            ),
            gemm: BatchedGemm {
                batch: [1, batches],
                m,
                n,
                k,
                a_batch_strides: [0, m * k],
                a_row_stride: k,
                b_batch_strides: [0, k * n],
                b_row_stride: n,
                b_is_transposed: false,
                alpha: 1.0,
            },
        })
    }

    /// Elements of a, b and the result.
    fn lens(&self) -> [usize; 3] {
        let BatchedGemm { batch, m, n, k, .. } = self.gemm;
        [batch[1] * m * k, batch[1] * k * n, batch[1] * m * n]
    }

    pub(super) fn kernel(self) -> Box<dyn CpuKernel> {
        let (lens, gemm) = (self.lens(), self.gemm);
        let scratch = move |threads| {
            let own = gemm.scratch_len(threads);
            lens.into_iter().chain([own]).map(Scratch::bytes::<f32>).sum()
        };
        kernel_with(0, scratch, move |io, pool| {
            let mut scratch = Scratch::new(&mut *io.scratch);
            let [a, b, c] = lens.map(|len| scratch.take::<f32>(len));
            let own = scratch.take::<f32>(gemm.scratch_len(pool.threads()));
            for (i, to) in [&mut *a, &mut *b].into_iter().enumerate() {
                let (shape, perm) = &self.operands[i];
                permute(
                    io.inputs[i].map_or(&[][..], |x| x.bytes),
                    4,
                    shape,
                    perm,
                    bytemuck::cast_slice_mut(to),
                    pool,
                );
            }
            gemm.run(a, b, None, &Epilogue::NONE, c, own, pool);
            let (shape, perm) = &self.result;
            let y = &mut *io.outputs[0].bytes;
            permute(bytemuck::cast_slice(c), 4, shape, perm, y, pool);
            Ok(())
        })
    }
}
