//! Products with a sparse right-hand side.

use crate::activation::Epilogue;
use crate::conv::Conv2dParams;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::sparse::SparseConv2d;

/// The right-hand matrix of a product, k x n, with its nonzero elements compressed.
///
/// It is a convolution with one tap: rows are pixels.
#[derive(Clone, Debug)]
pub struct SparseMatrix {
    conv: SparseConv2d,
}

impl SparseMatrix {
    /// Compresses `b`: k x n row-major, or n x k if `b_is_transposed`. About how many rows there
    /// will be on the left decides its layout; any number works. `None` where k or n is 0.
    pub fn new(
        rows: usize,
        [k, n]: [usize; 2],
        b: &[f32],
        b_is_transposed: bool,
    ) -> Option<SparseMatrix> {
        SparseMatrix::new_with_isa(isa::best(), rows, [k, n], b, b_is_transposed)
    }

    /// [`SparseMatrix::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        rows: usize,
        [k, n]: [usize; 2],
        b: &[f32],
        b_is_transposed: bool,
    ) -> Option<SparseMatrix> {
        assert!(b.len() == k * n, "b has k * n elements");
        if k == 0 || n == 0 {
            return None;
        }
        let params = Conv2dParams {
            c_in: k,
            c_out: n,
            groups: 1,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
        };
        let images = [rows.max(1), 1, 1];
        let conv = if b_is_transposed {
            SparseConv2d::new_with_isa(isa, params, images, b, None)
        } else {
            let columns: Vec<f32> = (0..k * n).map(|i| b[i % k * n + i / k]).collect();
            SparseConv2d::new_with_isa(isa, params, images, &columns, None)
        };
        conv.map(|conv| SparseMatrix { conv })
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.conv.params().c_in
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.conv.params().c_out
    }

    /// Size in memory.
    pub fn bytes(&self) -> usize {
        self.conv.bytes()
    }

    /// How many elements of scratch [`SparseMatrix::run`] needs for `m` rows on a pool of
    /// `threads`.
    pub fn scratch_len(&self, m: usize, threads: usize) -> usize {
        self.conv.scratch_len(m, threads)
    }

    /// c = epilogue(a b + bias): `a` is m x k with rows `lda` apart, `c` m x n without gaps.
    pub fn run(
        &self,
        m: usize,
        a: &[f32],
        lda: usize,
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        c: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        self.check(m, a, lda, bias, c);
        self.conv.run_strided(m, a, lda, bias, epi, c, scratch, pool);
    }

    /// [`SparseMatrix::run`] on the calling thread, rows of a without gaps; the scratch's size
    /// does not depend on `m`.
    pub(crate) fn run_alone(
        &self,
        m: usize,
        a: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        c: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.check(m, a, self.k(), bias, c);
        epi.check(c.len());
        if !c.is_empty() {
            self.conv.run_alone(m, a, self.k(), bias, epi, c, scratch);
        }
    }

    fn check(&self, m: usize, a: &[f32], lda: usize, bias: Option<&[f32]>, c: &[f32]) {
        let (k, n) = (self.k(), self.n());
        assert!(c.len() == m * n, "c has m * n elements");
        assert!(lda >= k, "rows of a do not overlap");
        assert!(m == 0 || a.len() >= (m - 1) * lda + k, "a has m rows of k elements");
        assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
    }
}
