//! Eight-bit integer matrix multiplication and quantisation.

use crate::pool::Pool;

/// A slice of unsigned or signed bytes.
#[derive(Clone, Copy, Debug)]
pub enum Bytes<'a> {
    /// Unsigned.
    U8(&'a [u8]),
    /// Signed.
    I8(&'a [i8]),
}

impl Bytes<'_> {
    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Bytes::U8(s) => s.len(),
            Bytes::I8(s) => s.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, i: usize) -> i32 {
        match self {
            Bytes::U8(s) => s[i].into(),
            Bytes::I8(s) => s[i].into(),
        }
    }
}

/// The right-hand matrix of an integer product, zero points subtracted, packed.
#[derive(Clone, Debug)]
pub struct IntGemm {
    k: usize,
    n: usize,
    b: Vec<i16>,
}

impl IntGemm {
    /// Packs `b`: k x n row-major, or n x k if transposed; one zero point, or one per column.
    pub fn new(k: usize, n: usize, b: Bytes<'_>, b_is_transposed: bool, b_zero: &[i32]) -> IntGemm {
        assert!(b.len() == k * n, "b has k * n elements");
        assert!(b_zero.len() == 1 || b_zero.len() == n, "one zero point, or one per column");
        let zero = |j: usize| if b_zero.len() == 1 { b_zero[0] } else { b_zero[j] };
        let data = (0..k * n)
            .map(|i| {
                let (p, j) = (i / n, i % n);
                (b.get(if b_is_transposed { j * k + p } else { i }) - zero(j)) as i16
            })
            .collect();
        IntGemm { k, n, b: data }
    }

    /// Rows of b.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of b.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Size in memory.
    pub fn bytes(&self) -> usize {
        self.b.len() * 2
    }

    /// c = (a - a_zero) (b - b_zero), a: m x k with rows `lda` apart; `bias` is added where given.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        m: usize,
        a: Bytes<'_>,
        lda: usize,
        a_zero: i32,
        bias: Option<&[i32]>,
        c: &mut [i32],
        pool: &Pool,
    ) {
        let _ = pool;
        assert!(c.len() == m * self.n, "c has m * n elements");
        for i in 0..m {
            for j in 0..self.n {
                let mut acc = bias.map_or(0, |b| b[j]);
                for p in 0..self.k {
                    acc += (a.get(i * lda + p) - a_zero) * i32::from(self.b[p * self.n + j]);
                }
                c[i * self.n + j] = acc;
            }
        }
    }
}

/// y = round_half_even(x / scale) + zero, saturated to 0 ..= 255.
pub fn quantize_u8(x: &[f32], scale: f32, zero: u8, y: &mut [u8]) {
    assert!(x.len() == y.len(), "input and output have one length");
    for (y, x) in y.iter_mut().zip(x) {
        *y = ((x / scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0) as u8;
    }
}

/// y = round_half_even(x / scale) + zero, saturated to -128 ..= 127.
pub fn quantize_i8(x: &[f32], scale: f32, zero: i8, y: &mut [i8]) {
    assert!(x.len() == y.len(), "input and output have one length");
    for (y, x) in y.iter_mut().zip(x) {
        *y = ((x / scale).round_ties_even() + f32::from(zero)).clamp(-128.0, 127.0) as i8;
    }
}

/// y = (x - zero) * scale.
pub fn dequantize(x: Bytes<'_>, scale: f32, zero: i32, y: &mut [f32]) {
    assert!(x.len() == y.len(), "input and output have one length");
    for (i, y) in y.iter_mut().enumerate() {
        *y = (x.get(i) - zero) as f32 * scale;
    }
}
