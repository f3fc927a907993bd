//! The weights of a pointwise stage: dense in f32, in tiles or in pairs of bf16, or sparse.

use super::Pointwise;
use crate::activation::Epilogue;
use crate::aligned::SharedMut;
use crate::gemm::driver::{Block, Product, Rows};
use crate::gemm::{PackedB, PackedBf16, PackedTiles, Terms, gemm, gemm_bf16, gemm_tiled};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::sparse::SparseMatrix;

/// Rows of a strip, about: decides the layout of sparse weights.
const STRIP_ROWS: usize = 1024;

#[derive(Clone, Debug)]
pub(super) enum Weights {
    Dense(PackedB),
    Sparse(Box<SparseMatrix>),
    Tiles(PackedTiles),
    Bf16(PackedBf16),
}

impl Weights {
    /// Packs a stage's weight, n x k.
    pub(super) fn new(isa: Isa, [k, n]: [usize; 2], stage: &Pointwise<'_>) -> Weights {
        let weight = stage.weight;
        if stage.sparse
            && let Some(m) = SparseMatrix::new_with_isa(isa, STRIP_ROWS, [k, n], weight, true)
        {
            return Weights::Sparse(Box::new(m));
        }
        match stage.terms {
            Some(terms)
                if PackedTiles::pays(terms, [STRIP_ROWS, k, n])
                    && PackedTiles::fits(isa, weight) =>
            {
                // Strips are too short for weights to become terms in each.
                Weights::Tiles(PackedTiles::new(terms, [1, k, n], weight, true))
            }
            // On AMX what does not pay in tiles is left to f32.
            Some(Terms::One) if isa == isa::best() && isa < Isa::Amx && isa::bf16().is_ok() => {
                Weights::Bf16(PackedBf16::new(k, n, weight, true))
            }
            _ => Weights::Dense(PackedB::new_with_isa(isa, k, n, weight, true)),
        }
    }

    pub(super) fn k(&self) -> usize {
        match self {
            Weights::Dense(b) => b.k(),
            Weights::Sparse(b) => b.k(),
            Weights::Tiles(b) => b.k(),
            Weights::Bf16(b) => b.k(),
        }
    }

    pub(super) fn n(&self) -> usize {
        match self {
            Weights::Dense(b) => b.n(),
            Weights::Sparse(b) => b.n(),
            Weights::Tiles(b) => b.n(),
            Weights::Bf16(b) => b.n(),
        }
    }

    pub(super) fn is_sparse(&self) -> bool {
        matches!(self, Weights::Sparse(_))
    }

    pub(super) fn is_tiled(&self) -> bool {
        matches!(self, Weights::Tiles(_))
    }

    pub(super) fn is_paired(&self) -> bool {
        matches!(self, Weights::Bf16(_))
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Weights::Dense(b) => b.bytes(),
            Weights::Sparse(b) => b.bytes(),
            Weights::Tiles(b) => b.bytes(),
            Weights::Bf16(b) => b.bytes(),
        }
    }

    /// Floats of scratch for `m` rows on so many threads.
    pub(super) fn scratch_len(&self, m: usize, threads: usize) -> usize {
        match self {
            Weights::Dense(_) => 0,
            Weights::Sparse(b) => b.scratch_len(m, threads),
            Weights::Tiles(b) => b.scratch_len(m, threads),
            Weights::Bf16(b) => b.scratch_len(m, threads),
        }
    }

    /// Floats of scratch for any number of rows on the calling thread.
    pub(super) fn scratch_len_alone(&self) -> usize {
        match self {
            Weights::Dense(_) => 0,
            Weights::Sparse(b) => b.scratch_len(1, 1),
            Weights::Tiles(b) => b.scratch_len_alone(),
            Weights::Bf16(b) => b.scratch_len_alone(),
        }
    }

    /// y = epilogue(a b + bias) over all threads.
    pub(super) fn run(
        &self,
        m: usize,
        a: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        match self {
            Weights::Dense(b) => gemm(m, a, b.k(), b, bias, epi, y, pool),
            Weights::Sparse(b) => b.run(m, a, b.k(), bias, epi, y, scratch, pool),
            Weights::Tiles(b) => gemm_tiled(m, a, b.k(), b, bias, epi, y, scratch, pool),
            Weights::Bf16(b) => gemm_bf16(m, a, b.k(), b, bias, epi, y, scratch, pool),
        }
    }

    /// The same on the calling thread.
    pub(super) fn run_alone(
        &self,
        m: usize,
        a: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (k, n) = (self.k(), self.n());
        assert!(a.len() == m * k && y.len() == m * n, "m rows of k and n elements");
        assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
        epi.check(y.len());
        match self {
            Weights::Dense(b) => {
                let product = Product::new(b, 1, bias, epi, SharedMut::new(y), n);
                let rows = Rows::Dense { a: a.as_ptr(), lda: k };
                let panels = 0..b.panels();
                b.dispatch(Block { product: &product, rows, m, first_row: 0, panels });
            }
            Weights::Sparse(b) => b.run_alone(m, a, bias, epi, y, scratch),
            Weights::Tiles(b) => b.run_alone(m, a, bias, epi, y, scratch),
            Weights::Bf16(b) => b.run_alone(m, a, bias, epi, y, scratch),
        }
    }
}
