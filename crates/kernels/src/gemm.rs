//! Matrix multiplication in f32 with packed weights.

pub(crate) mod micro;
pub(crate) mod driver;
mod batched;
mod pack;
mod skip;
pub(crate) mod bf16;
pub(crate) mod tiled;

pub use batched::BatchedGemm;
pub use bf16::{PackedBf16, gemm_bf16};
pub(crate) use pack::pack_panels;
pub use tiled::{PackedTiles, Terms, gemm_tiled};

use std::ops::Range;

use crate::activation::Epilogue;
use crate::aligned::{AlignedBuffer, SharedMut};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel};
use driver::{Block, Product, Rows, Split};

/// The right-hand matrix, k x n, packed for one instruction set.
///
/// Panels of as many columns as the micro-kernel computes at once; in a panel, row after row. The
/// last panel is as wide as its columns need, in whole vectors.
#[derive(Clone, Debug)]
pub struct PackedB {
    isa: Isa,
    k: usize,
    n: usize,
    mr: usize,
    nr: usize,
    /// Whether elements are pairs of bf16 (see [`bf16`]).
    pairs: bool,
    /// Whether products may skip zeros of the left-hand matrix.
    skips: bool,
    data: AlignedBuffer,
}

impl PackedB {
    /// Packs `b`: k x n row-major, or n x k if `b_is_transposed`.
    pub fn new(k: usize, n: usize, b: &[f32], b_is_transposed: bool) -> PackedB {
        PackedB::new_with_isa(isa::best(), k, n, b, b_is_transposed)
    }

    /// [`PackedB::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(isa: Isa, k: usize, n: usize, b: &[f32], b_is_transposed: bool) -> PackedB {
        assert!(b.len() == k * n, "b has k * n elements");
        let mut packed = PackedB::empty(isa, k, n);
        packed.data = AlignedBuffer::zeroed(packed.packed_len());
        let stride = if b_is_transposed { k } else { n };
        let panels = 0..packed.panels();
        pack_panels(isa, k, n, b, stride, b_is_transposed, panels, packed.data.as_mut_slice());
        packed
    }

    /// Packs the matrix whose element (row, column) is `at(row, column)`.
    pub(crate) fn from_fn(
        isa: Isa,
        k: usize,
        n: usize,
        at: impl Fn(usize, usize) -> f32,
    ) -> PackedB {
        PackedB::from_columns(isa, k, n, |columns, out| {
            for (column, out) in columns.zip(out.chunks_exact_mut(k)) {
                for (row, out) in out.iter_mut().enumerate() {
                    *out = at(row, column);
                }
            }
        })
    }

    /// Packs the matrix whose columns `fill` writes one after the other, some at a time.
    pub(crate) fn from_columns(
        isa: Isa,
        k: usize,
        n: usize,
        mut fill: impl FnMut(Range<usize>, &mut [f32]),
    ) -> PackedB {
        let mut packed = PackedB::empty(isa, k, n);
        packed.data = AlignedBuffer::zeroed(packed.packed_len());
        if packed.data.as_slice().is_empty() {
            return packed;
        }
        let nr = packed.nr;
        let mut columns = vec![0.0; nr.min(n) * k];
        for (panel, out) in packed.data.as_mut_slice().chunks_exact_mut(nr * k).enumerate() {
            let range = panel * nr..n.min((panel + 1) * nr);
            let columns = &mut columns[..range.len() * k];
            fill(range.clone(), columns);
            pack_panels(isa, k, range.len(), columns, k, true, 0..1, out);
        }
        packed
    }

    /// The shape of a packed matrix without its data.
    pub(crate) fn empty(isa: Isa, k: usize, n: usize) -> PackedB {
        assert!(isa.is_available(), "the instruction set is available");
        let (lanes, mr, vectors) = simd::tile_of(isa);
        let data = AlignedBuffer::zeroed(0);
        PackedB { isa, k, n, mr, nr: lanes * vectors, pairs: false, skips: false, data }
    }

    /// Has products skip the zeros of the left-hand matrix where samples of it say that it pays
    /// (see docs/activation-sparsity.md). Sums then have their terms in another order at most.
    ///
    /// Nothing changes where a weight is infinite or no number: times zero it is no number.
    pub fn skipping_zeros(self) -> PackedB {
        let skips = !self.pairs && self.packed().iter().all(|w| w.is_finite());
        PackedB { skips, ..self }
    }

    /// Whether products look for zeros of the left-hand matrix.
    pub fn skips_zeros(&self) -> bool {
        self.skips
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The instruction set it is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Size in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(self.packed())
    }

    /// Runs a kernel on this matrix with the token that it is packed for.
    pub(crate) fn dispatch<K: Kernel>(&self, kernel: K) -> K::Output {
        if self.pairs { simd::dispatch_pairs(kernel) } else { simd::dispatch(self.isa, kernel) }
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(self.nr)
    }

    pub(crate) fn tile(&self) -> (usize, usize) {
        (self.mr, self.nr)
    }

    pub(crate) fn packed_len(&self) -> usize {
        // The last panel is stored in whole vectors; `nr` covers it.
        self.panels() * self.nr * self.k
    }

    pub(crate) fn packed(&self) -> &[f32] {
        self.data.as_slice()
    }
}

/// c = epilogue(a b + bias): `a` is m x k with rows `lda` apart, `c` m x n without gaps.
pub fn gemm(
    m: usize,
    a: &[f32],
    lda: usize,
    b: &PackedB,
    bias: Option<&[f32]>,
    epi: &Epilogue<'_>,
    c: &mut [f32],
    pool: &Pool,
) {
    let (k, n) = (b.k, b.n);
    check_product([m, k, n], a, lda, bias, epi, c);
    if m == 0 || n == 0 {
        return;
    }
    let product = Product::new(b, 1, bias, epi, SharedMut::new(c), n);
    run_dense(&product, m, a, lda, pool);
}

/// Checks the lengths of a product's operands: of m rows, depth k and n columns.
fn check_product(
    [m, k, n]: [usize; 3],
    a: &[f32],
    lda: usize,
    bias: Option<&[f32]>,
    epi: &Epilogue<'_>,
    c: &[f32],
) {
    assert!(c.len() == m * n, "c has m * n elements");
    assert!(m == 0 || a.len() >= (m - 1) * lda + k, "a has m rows of k elements");
    assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
    epi.check(c.len());
}

/// Runs a product whose A is a matrix of `m` checked rows.
pub(crate) fn run_dense(product: &Product<'_>, m: usize, a: &[f32], lda: usize, pool: &Pool) {
    let split = Split::new(m, product.b, pool.threads());
    pool.run(split.tasks(), &|task| {
        let (rows, panels) = split.part(task);
        let a = &a[rows.start * lda..];
        let block = Block {
            product,
            rows: Rows::Dense { a: a.as_ptr(), lda },
            m: rows.len(),
            first_row: rows.start,
            panels,
        };
        product.b.dispatch(block);
    });
}

#[cfg(test)]
mod tests;
