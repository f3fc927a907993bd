//! Matrix products.

use super::pack::Product;
use super::tile::{Block, Rows};
use super::{Activations, Requantize, Shared, align};
use crate::int8::Bytes;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;

/// Multiply-adds below which a second thread does not pay.
const TASK_MACS: usize = 64 * 1024;

/// How a product is cut into tasks: blocks of rows, blocks of panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    m: usize,
    panels: usize,
    row_blocks: usize,
    panel_blocks: usize,
}

impl Split {
    pub(super) fn new(m: usize, p: &Product, threads: usize, most_rows: usize) -> Split {
        let tiles = m.div_ceil(p.tile.0).max(1);
        let mut row_blocks = m.div_ceil(most_rows).max(1);
        let mut panel_blocks = 1;
        let macs = m.saturating_mul(p.n).saturating_mul(p.segments * p.segment);
        let parts = (2 * threads).min(macs / TASK_MACS).max(1);
        if threads > 1 && row_blocks < parts {
            row_blocks = parts.min(tiles);
            // Narrow tiles waste work: cut columns where rows are few.
            if tiles < 2 * parts && p.panels() >= parts {
                (row_blocks, panel_blocks) = (m.div_ceil(most_rows).max(1), parts);
            }
        }
        Split { m, panels: p.panels(), row_blocks, panel_blocks }
    }

    pub(super) fn tasks(&self) -> usize {
        self.row_blocks * self.panel_blocks
    }

    /// Rows of the largest block.
    pub(super) fn block_rows(&self) -> usize {
        self.m.div_ceil(self.row_blocks)
    }

    /// Rows and panels of a task.
    pub(super) fn part(&self, task: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let cut = |len: usize, parts: usize, i: usize| len * i / parts..len * (i + 1) / parts;
        let (row, panel) = (task / self.panel_blocks, task % self.panel_blocks);
        (cut(self.m, self.row_blocks, row), cut(self.panels, self.panel_blocks, panel))
    }
}

/// A quantised matrix product with its right-hand side packed.
#[derive(Clone, Debug)]
pub struct QuantizedGemm {
    product: Product,
}

impl QuantizedGemm {
    /// Packs `b`: k x n row-major, or n x k if transposed; one zero point, or one per column.
    pub fn new(
        [k, n]: [usize; 2],
        a: Activations,
        b: Bytes<'_>,
        b_is_transposed: bool,
        b_zero: &[i32],
        bias: Option<&[i32]>,
        requantize: &Requantize,
    ) -> QuantizedGemm {
        let isa = isa::best();
        QuantizedGemm::new_with_isa(isa, [k, n], a, b, b_is_transposed, b_zero, bias, requantize)
    }

    /// [`QuantizedGemm::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        [k, n]: [usize; 2],
        a: Activations,
        b: Bytes<'_>,
        b_is_transposed: bool,
        b_zero: &[i32],
        bias: Option<&[i32]>,
        requantize: &Requantize,
    ) -> QuantizedGemm {
        assert!(b.len() == k * n, "b has k * n elements");
        assert!(b_zero.len() == 1 || b_zero.len() == n, "one zero point, or one per column");
        let weight = |_: usize, p: usize, j: usize| {
            let zero = b_zero[if b_zero.len() == 1 { 0 } else { j }];
            b.get(if b_is_transposed { j * k + p } else { p * n + j }) - zero
        };
        let product = Product::new(isa, [1, k, n], a, bias, requantize, weight);
        QuantizedGemm { product }
    }

    /// Size of the packed matrix in memory.
    pub fn bytes(&self) -> usize {
        self.product.bytes()
    }

    /// How many bytes of scratch [`QuantizedGemm::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, threads: usize) -> usize {
        64 + threads * self.worker_scratch()
    }

    fn worker_scratch(&self) -> usize {
        (4 * self.product.wide_len()).next_multiple_of(64)
    }

    /// c = requantised (a - zero) (b - zero) + bias; a: m x k, c: m x n, bytes of the types given
    /// to `new`, without gaps.
    pub fn run(&self, m: usize, a: &[u8], c: &mut [u8], scratch: &mut [u8], pool: &Pool) {
        let p = &self.product;
        let (k, n) = (p.segment, p.n);
        assert!(a.len() == m * k, "a has m * k elements");
        assert!(c.len() == m * n, "c has m * n elements");
        if c.is_empty() {
            return;
        }
        run_dense(p, m, a, c, scratch, self.worker_scratch(), pool);
    }
}

/// A product of a matrix without gaps.
pub(super) fn run_dense(
    p: &Product,
    m: usize,
    a: &[u8],
    c: &mut [u8],
    scratch: &mut [u8],
    per_worker: usize,
    pool: &Pool,
) {
    let split = Split::new(m, p, pool.threads(), 16 * p.tile.0);
    let scratch = align(scratch);
    assert!(scratch.len() >= pool.threads() * per_worker, "scratch has scratch_len bytes");
    let (c, scratch) = (Shared(c.as_mut_ptr()), Shared(scratch.as_mut_ptr()));
    let (c, scratch) = (&c, &scratch);
    let (lda, ldc) = (p.segment, p.n);
    pool.run_with_worker(split.tasks(), &|task, worker| {
        let (rows, panels) = split.part(task);
        // SAFETY: each worker has its own part, and runs one task at a time.
        let own = unsafe { scratch.slice(worker * per_worker, per_worker) };
        let block = Block {
            product: p,
            rows: Rows::Dense { a: a[rows.start * lda..rows.end * lda].as_ptr(), lda },
            m: rows.len(),
            panels,
            c: c.at(rows.start * ldc),
            ldc,
            wide: bytemuck::cast_slice_mut(&mut own[..4 * p.wide_len()]),
        };
        simd::dispatch_bytes(p.isa, block);
    });
}
