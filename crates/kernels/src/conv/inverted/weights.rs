//! The weights of a pointwise stage, dense or sparse.

use crate::activation::Epilogue;
use crate::aligned::SharedMut;
use crate::gemm::driver::{Block, Product, Rows};
use crate::gemm::{PackedB, gemm};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::sparse::SparseMatrix;

/// Rows of a strip, about: decides the layout of sparse weights.
const STRIP_ROWS: usize = 1024;

#[derive(Clone, Debug)]
pub(super) enum Weights {
    Dense(PackedB),
    Sparse(Box<SparseMatrix>),
}

impl Weights {
    /// Packs `weight`, n x k.
    pub(super) fn new(isa: Isa, [k, n]: [usize; 2], weight: &[f32], sparse: bool) -> Weights {
        let matrix = match sparse {
            true => SparseMatrix::new_with_isa(isa, STRIP_ROWS, [k, n], weight, true),
            false => None,
        };
        match matrix {
            Some(matrix) => Weights::Sparse(Box::new(matrix)),
            None => Weights::Dense(PackedB::new_with_isa(isa, k, n, weight, true)),
        }
    }

    pub(super) fn k(&self) -> usize {
        match self {
            Weights::Dense(b) => b.k(),
            Weights::Sparse(b) => b.k(),
        }
    }

    pub(super) fn n(&self) -> usize {
        match self {
            Weights::Dense(b) => b.n(),
            Weights::Sparse(b) => b.n(),
        }
    }

    pub(super) fn is_sparse(&self) -> bool {
        matches!(self, Weights::Sparse(_))
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Weights::Dense(b) => b.bytes(),
            Weights::Sparse(b) => b.bytes(),
        }
    }

    /// Floats of scratch for `m` rows; of one thread, for any number of them.
    pub(super) fn scratch_len(&self, m: usize, threads: usize) -> usize {
        match self {
            Weights::Dense(_) => 0,
            Weights::Sparse(b) => b.scratch_len(m, threads),
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
        }
    }
}
