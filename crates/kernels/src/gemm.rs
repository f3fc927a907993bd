//! Matrix multiplication in f32.

use crate::activation::{Epilogue, Residual};
use crate::isa::{self, Isa};
use crate::pool::Pool;

/// The right-hand matrix, k x n, packed for one instruction set.
#[derive(Clone, Debug)]
pub struct PackedB {
    isa: Isa,
    k: usize,
    n: usize,
    data: Vec<f32>,
}

impl PackedB {
    /// Packs `b`: k x n row-major, or n x k if `b_is_transposed`.
    pub fn new(k: usize, n: usize, b: &[f32], b_is_transposed: bool) -> PackedB {
        PackedB::new_with_isa(isa::best(), k, n, b, b_is_transposed)
    }

    /// [`PackedB::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(isa: Isa, k: usize, n: usize, b: &[f32], b_is_transposed: bool) -> PackedB {
        assert!(isa.is_available(), "the instruction set is available");
        assert!(b.len() == k * n, "b has k * n elements");
        let data = if b_is_transposed {
            (0..k * n).map(|i| b[i % n * k + i / n]).collect()
        } else {
            b.to_vec()
        };
        PackedB { isa, k, n, data }
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
        self.data.len() * size_of::<f32>()
    }
}

pub(crate) fn finish(acc: f32, bias: Option<f32>, epi: &Epilogue<'_>, i: usize) -> f32 {
    let mut v = acc + bias.unwrap_or(0.0);
    if let Residual::BeforeActivation(r) = epi.residual {
        v += r[i];
    }
    v = epi.activation.apply(v);
    if let Residual::AfterActivation(r) = epi.residual {
        v += r[i];
    }
    v
}

/// c = epilogue(a b + bias): `a` is m x k with rows `lda` apart, `c` m x n without gaps.
#[allow(clippy::too_many_arguments)]
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
    let _ = pool;
    let (k, n) = (b.k, b.n);
    assert!(c.len() == m * n, "c has m * n elements");
    assert!(m == 0 || a.len() >= (m - 1) * lda + k, "a has m rows of k elements");
    assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
    epi.check(c.len());
    for i in 0..m {
        for j in 0..n {
            let mut acc = 0.0;
            for p in 0..k {
                acc += a[i * lda + p] * b.data[p * n + j];
            }
            c[i * n + j] = finish(acc, bias.map(|b| b[j]), epi, i * n + j);
        }
    }
}

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
    /// How many elements of scratch [`BatchedGemm::run`] needs.
    pub fn scratch_len(&self, threads: usize) -> usize {
        let _ = threads;
        0
    }

    /// c = epilogue(alpha a b + bias).
    #[allow(clippy::too_many_arguments)]
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
        let _ = (scratch, pool);
        let BatchedGemm { batch, m, n, k, alpha, .. } = *self;
        assert!(c.len() == batch[0] * batch[1] * m * n, "c has batch * m * n elements");
        for x in 0..batch[0] {
            for y in 0..batch[1] {
                let a = &a[x * self.a_batch_strides[0] + y * self.a_batch_strides[1]..];
                let b = &b[x * self.b_batch_strides[0] + y * self.b_batch_strides[1]..];
                for i in 0..m {
                    for j in 0..n {
                        let mut acc = 0.0;
                        for p in 0..k {
                            let b = if self.b_is_transposed {
                                b[j * self.b_row_stride + p]
                            } else {
                                b[p * self.b_row_stride + j]
                            };
                            acc += a[i * self.a_row_stride + p] * b;
                        }
                        let at = ((x * batch[1] + y) * m + i) * n + j;
                        c[at] = finish(alpha * acc, bias.map(|b| b[j]), epi, at);
                    }
                }
            }
        }
    }
}
