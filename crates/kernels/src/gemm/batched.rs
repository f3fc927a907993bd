//! Batched products of two run-time matrices.

use crate::activation::{Epilogue, Residual};
use crate::aligned::{SharedMut, align_scratch};
use crate::gemm::driver::{Block, Product, Rows};
use crate::gemm::{PackedB, pack_panels, run_dense};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;

/// A batched product of two run-time matrices: c[x][y] = alpha a[x][y] b[x][y].
///
/// Strides are in elements; a batch stride of 0 broadcasts. The output has no gaps:
/// batch[0] x batch[1] x m x n.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchedGemm {
    /// Two batch dimensions; use 1 for what is not needed.
    pub batch: [usize; 2],
    /// Rows of a and c.
    pub m: usize,
    /// Columns of b and c.
    pub n: usize,
    /// Columns of a, rows of b.
    pub k: usize,
    /// Distances between the batches' matrices of a.
    pub a_batch_strides: [usize; 2],
    /// Distance between rows of a.
    pub a_row_stride: usize,
    /// Distances between the batches' matrices of b.
    pub b_batch_strides: [usize; 2],
    /// Distance between rows of b as stored: k rows, or n rows if transposed.
    pub b_row_stride: usize,
    /// Whether b is stored n x k.
    pub b_is_transposed: bool,
    /// Factor of the product.
    pub alpha: f32,
}

impl BatchedGemm {
    /// How many elements of scratch [`BatchedGemm::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, threads: usize) -> usize {
        self.scratch_len_with_isa(isa::best(), threads)
    }

    /// [`BatchedGemm::scratch_len`] for a given instruction set.
    pub fn scratch_len_with_isa(&self, isa: Isa, threads: usize) -> usize {
        let one = PackedB::empty(isa, self.k, self.n).packed_len();
        16 + one * if self.by_batch(threads) { threads } else { 1 }
    }

    /// c = epilogue(alpha a b + bias), bias of n elements.
    pub fn run(
        &self,
        a: &[f32],
        b: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        c: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        self.run_with_isa(isa::best(), a, b, bias, epi, c, scratch, pool);
    }

    /// [`BatchedGemm::run`] for a given instruction set, which must be available.
    pub fn run_with_isa(
        &self,
        isa: Isa,
        a: &[f32],
        b: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        c: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let BatchedGemm { batch, m, n, k, alpha, .. } = *self;
        let batches = batch[0] * batch[1];
        assert!(c.len() == batches * m * n, "c has batch * m * n elements");
        assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
        epi.check(c.len());
        if c.is_empty() {
            return;
        }
        let (b_rows, b_columns) = if self.b_is_transposed { (n, k) } else { (k, n) };
        if k > 0 {
            let end = |strides: [usize; 2], row: usize, rows: usize, columns: usize| {
                let last = (batch[0] - 1) * strides[0] + (batch[1] - 1) * strides[1];
                last + (rows - 1) * row + columns
            };
            let a_end = end(self.a_batch_strides, self.a_row_stride, m, k);
            let b_end = end(self.b_batch_strides, self.b_row_stride, b_rows, b_columns);
            assert!(a.len() >= a_end, "a has all batches, rows and columns");
            assert!(b.len() >= b_end, "b has all batches, rows and columns");
        }
        let threads = pool.threads();
        assert!(
            scratch.len() >= self.scratch_len_with_isa(isa, threads),
            "scratch has scratch_len elements"
        );
        let scratch = align_scratch(scratch);
        let shape = PackedB::empty(isa, k, n);
        let packed_len = shape.packed_len();
        let start =
            |strides: [usize; 2], i: usize| i / batch[1] * strides[0] + i % batch[1] * strides[1];
        let out = SharedMut::new(c);
        let product = |packed, i: usize| {
            let part = |r| part_of(r, i * m * n, m * n);
            let residual = match epi.residual {
                Residual::None => Residual::None,
                Residual::BeforeActivation(r) => Residual::BeforeActivation(part(r)),
                Residual::AfterActivation(r) => Residual::AfterActivation(part(r)),
            };
            let epi = Epilogue { activation: epi.activation, residual };
            let c = out.at(i * m * n);
            let mut product = Product::new(&shape, 1, bias, &epi, c, n);
            product.packed = packed;
            product.finish.alpha = alpha;
            product
        };
        if self.by_batch(threads) {
            let scratch = SharedMut::new(scratch);
            pool.run_with_worker(batches, &|i, worker| {
                // SAFETY: one part of the scratch per worker, which runs one task at a time.
                let packed = unsafe { scratch.slice(worker * packed_len, packed_len) };
                let b = tail_of(b, start(self.b_batch_strides, i));
                let panels = 0..shape.panels();
                pack_panels(isa, k, n, b, self.b_row_stride, self.b_is_transposed, panels, packed);
                let a = tail_of(a, start(self.a_batch_strides, i));
                let product = product(packed, i);
                let rows = Rows::Dense { a: a.as_ptr(), lda: self.a_row_stride };
                let panels = 0..shape.panels();
                simd::dispatch(isa, Block { product: &product, rows, m, first_row: 0, panels });
            });
        } else {
            let shared = SharedMut::new(&mut scratch[..packed_len]);
            for i in 0..batches {
                let source = tail_of(b, start(self.b_batch_strides, i));
                let parts = shape.panels().min(2 * threads);
                pool.run(parts, &|part| {
                    let cut = |p: usize| p * shape.panels() / parts;
                    let (nr, panels) = (shape.tile().1, cut(part)..cut(part + 1));
                    // SAFETY: whole panels, each packed by one task.
                    let out = unsafe { shared.slice(panels.start * nr * k, panels.len() * nr * k) };
                    let column = panels.start * nr;
                    let from =
                        if self.b_is_transposed { column * self.b_row_stride } else { column };
                    let source = tail_of(source, from);
                    let columns = (n - column).min(panels.len() * nr);
                    pack_panels(
                        isa,
                        k,
                        columns,
                        source,
                        self.b_row_stride,
                        self.b_is_transposed,
                        0..panels.len(),
                        out,
                    );
                });
                let a = tail_of(a, start(self.a_batch_strides, i));
                // SAFETY: nothing writes the scratch until the next round packs.
                let packed = unsafe { shared.slice(0, packed_len) };
                run_dense(&product(packed, i), m, a, self.a_row_stride, pool);
            }
        }
    }

    /// Whether a batch is one task; otherwise the tasks are parts of a batch.
    fn by_batch(&self, threads: usize) -> bool {
        threads == 1 || self.batch[0] * self.batch[1] >= 2 * threads
    }
}

fn part_of(slice: &[f32], start: usize, len: usize) -> &[f32] {
    &slice[start..start + len]
}

/// `slice` from `start` on, empty if that lies beyond (matrices without elements).
fn tail_of(slice: &[f32], start: usize) -> &[f32] {
    slice.get(start..).unwrap_or(&[])
}
