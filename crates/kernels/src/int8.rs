//! Eight-bit integer matrix multiplication and quantisation.
//!
//! Zero points are subtracted up front, which leaves nine-bit values: pairs of 16-bit products
//! are then summed exactly in 32 bits, two multiply-adds per lane and instruction.

use std::ops::Range;

use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// Rows of a tile.
const ROWS: usize = 4;
/// Vectors of a tile.
const VECTORS: usize = 2;
/// Pairs of K whose A is widened at a time.
const PAIRS: usize = 256;

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

    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> i32 {
        match self {
            Bytes::U8(s) => s[i].into(),
            Bytes::I8(s) => s[i].into(),
        }
    }
}

/// The right-hand matrix of an integer product, zero points subtracted, packed.
#[derive(Clone, Debug)]
pub struct IntGemm {
    isa: Isa,
    k: usize,
    n: usize,
    nr: usize,
    /// By panel of `nr` columns, pair of rows, column, row of the pair.
    b: Vec<i16>,
}

impl IntGemm {
    /// Packs `b`: k x n row-major, or n x k if transposed; one zero point, or one per column.
    pub fn new(k: usize, n: usize, b: Bytes<'_>, b_is_transposed: bool, b_zero: &[i32]) -> IntGemm {
        IntGemm::new_with_isa(isa::best(), k, n, b, b_is_transposed, b_zero)
    }

    /// [`IntGemm::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        k: usize,
        n: usize,
        b: Bytes<'_>,
        b_is_transposed: bool,
        b_zero: &[i32],
    ) -> IntGemm {
        assert!(isa.is_available(), "the instruction set is available");
        assert!(b.len() == k * n, "b has k * n elements");
        assert!(b_zero.len() == 1 || b_zero.len() == n, "one zero point, or one per column");
        assert!(b_zero.iter().all(|z| (-128..256).contains(z)), "zero points are bytes");
        let nr = VECTORS * simd::tile_of(isa).0;
        let pairs = k.div_ceil(2);
        let mut packed = vec![0i16; n.div_ceil(nr) * pairs * nr * 2];
        for j in 0..n {
            let zero = if b_zero.len() == 1 { b_zero[0] } else { b_zero[j] };
            for p in 0..k {
                let at = ((j / nr * pairs + p / 2) * nr + j % nr) * 2 + p % 2;
                let value = b.get(if b_is_transposed { j * k + p } else { p * n + j });
                packed[at] = (value - zero) as i16;
            }
        }
        IntGemm { isa, k, n, nr, b: packed }
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
        size_of_val(&self.b[..])
    }

    /// c = (a - a_zero) (b - b_zero) + bias, a: m x k with rows `lda` apart, c without gaps.
    ///
    /// Sums wrap beyond 32 bits, as ONNX's int32 output does (k above 32 000).
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
        assert!(c.len() == m * self.n, "c has m * n elements");
        assert!(m == 0 || a.len() >= (m - 1) * lda + self.k, "a has m rows of k elements");
        assert!(bias.is_none_or(|b| b.len() == self.n), "bias has n elements");
        assert!((-128..256).contains(&a_zero), "the zero point is a byte");
        if c.is_empty() {
            return;
        }
        let c = SharedRows(c.as_mut_ptr());
        let tiles = m.div_ceil(ROWS);
        let macs = ROWS * self.n * self.k;
        pool.run_ranges(tiles, (64 * 1024) / macs.max(1), &|tiles| {
            let rows = tiles.start * ROWS..m.min(tiles.end * ROWS);
            // SAFETY: these rows of c are this task's alone.
            let c = unsafe {
                std::slice::from_raw_parts_mut(c.at(rows.start * self.n), rows.len() * self.n)
            };
            simd::dispatch(self.isa, Rows { b: self, rows, a, lda, a_zero, bias, c });
        });
    }
}

struct SharedRows(*mut i32);
// SAFETY: tasks write disjoint rows through it.
unsafe impl Sync for SharedRows {}

impl SharedRows {
    fn at(&self, start: usize) -> *mut i32 {
        self.0.wrapping_add(start)
    }
}

struct Rows<'a> {
    b: &'a IntGemm,
    rows: Range<usize>,
    a: Bytes<'a>,
    lda: usize,
    a_zero: i32,
    bias: Option<&'a [i32]>,
    c: &'a mut [i32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, nr, k) = (self.b.n, self.b.nr, self.b.k);
        let pairs = k.div_ceil(2);
        for row in self.c.chunks_exact_mut(n) {
            match self.bias {
                Some(bias) => row.copy_from_slice(bias),
                None => row.fill(0),
            }
        }
        let mut first = 0;
        while first < self.rows.len() {
            let height = ROWS.min(self.rows.len() - first);
            for start in (0..pairs).step_by(PAIRS) {
                let count = PAIRS.min(pairs - start);
                let mut wide = [[0i32; PAIRS]; ROWS];
                for (r, wide) in wide.iter_mut().enumerate().take(height) {
                    let at = (self.rows.start + first + r) * self.lda + 2 * start;
                    let len = (2 * count).min(k - 2 * start);
                    match self.a {
                        Bytes::U8(a) => widen(&a[at..at + len], self.a_zero, wide),
                        Bytes::I8(a) => widen(&a[at..at + len], self.a_zero, wide),
                    }
                }
                for panel in 0..n.div_ceil(nr) {
                    let b = &self.b.b[(panel * pairs + start) * nr * 2..][..count * nr * 2];
                    let sums = tile(s, &wide, b);
                    let columns = panel * nr..n.min((panel + 1) * nr);
                    for (r, sums) in sums.iter().enumerate().take(height) {
                        let c = &mut self.c[(first + r) * n..][..n][columns.clone()];
                        for (c, sum) in c.iter_mut().zip(sums) {
                            *c = c.wrapping_add(*sum);
                        }
                    }
                }
            }
            first += height;
        }
    }
}

/// Pairs of (x - zero) as two i16 in an i32, the first low.
#[inline(always)]
fn widen<T: Copy + Into<i32>>(x: &[T], zero: i32, out: &mut [i32; PAIRS]) {
    let pair = |low: i32, high: i32| ((low - zero) & 0xffff) | ((high - zero) << 16);
    let chunks = x.chunks_exact(2);
    if let [last] = chunks.remainder() {
        // The missing element meets a zero of b.
        out[x.len() / 2] = pair((*last).into(), zero);
    }
    for (out, x) in out.iter_mut().zip(chunks) {
        *out = pair(x[0].into(), x[1].into());
    }
}

const MAX_COLUMNS: usize = VECTORS * simd::MAX_LANES;

/// ROWS rows times a panel of packed b.
#[inline(always)]
fn tile<S: Simd>(s: S, a: &[[i32; PAIRS]; ROWS], b: &[i16]) -> [[i32; MAX_COLUMNS]; ROWS] {
    let width = 2 * VECTORS * S::LANES;
    let mut acc = [[s.zero_i32(); VECTORS]; ROWS];
    let count = b.len() / width;
    assert!(count <= PAIRS);
    for p in 0..count {
        for r in 0..ROWS {
            for v in 0..VECTORS {
                // SAFETY: pair p < count has `width` elements of b.
                acc[r][v] = unsafe {
                    s.dot_pairs(acc[r][v], a[r][p], b.as_ptr().add(p * width + 2 * v * S::LANES))
                };
            }
        }
    }
    let mut out = [[0; MAX_COLUMNS]; ROWS];
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: VECTORS vectors fit in a row.
            unsafe { s.store_i32(out[r].as_mut_ptr().add(v * S::LANES), acc[r][v]) };
        }
    }
    out
}

/// y = round_half_even(x / scale) + zero, saturated to 0 ..= 255; NaN becomes 0.
pub fn quantize_u8(x: &[f32], scale: f32, zero: u8, y: &mut [u8]) {
    assert!(x.len() == y.len(), "input and output have one length");
    let bounds = [0.0, 255.0];
    simd::dispatch(isa::best(), Quantize { x, scale, zero: zero.into(), bounds, y });
}

/// y = round_half_even(x / scale) + zero, saturated to -128 ..= 127; NaN becomes 0.
pub fn quantize_i8(x: &[f32], scale: f32, zero: i8, y: &mut [i8]) {
    assert!(x.len() == y.len(), "input and output have one length");
    let (y, bounds) = (bytemuck::cast_slice_mut(y), [-128.0, 127.0]);
    simd::dispatch(isa::best(), Quantize { x, scale, zero: zero.into(), bounds, y });
}

struct Quantize<'a> {
    x: &'a [f32],
    scale: f32,
    zero: i32,
    bounds: [f32; 2],
    y: &'a mut [u8],
}

impl Kernel for Quantize<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = self.zero as f32;
        let zeros = [self.zero; simd::MAX_LANES];
        let scale = s.splat(self.scale);
        // Clamped before they are rounded: the bounds are whole numbers.
        let [low, high] = self.bounds.map(|b| s.splat(b - zero));
        let nothing = s.splat(-zero);
        let len = self.y.len();
        for i in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - i);
            // SAFETY: n elements from i on exist in x and y.
            unsafe {
                let at = self.x.as_ptr().add(i);
                let x = if n == S::LANES { s.load(at) } else { s.load_partial(at, n) };
                let x = s.div(x, scale);
                let x = s.select(s.is_nan(x), nothing, s.min(s.max(x, low), high));
                let y = s.add_i32(s.to_i32(x), s.load_i32(zeros.as_ptr()));
                s.store_low_bytes(self.y.as_mut_ptr().add(i), n, y);
            }
        }
    }
}

/// y = (x - zero) * scale.
pub fn dequantize(x: Bytes<'_>, scale: f32, zero: i32, y: &mut [f32]) {
    assert!(x.len() == y.len(), "input and output have one length");
    simd::dispatch(isa::best(), Dequantize { x, scale, zero, y });
}

struct Dequantize<'a> {
    x: Bytes<'a>,
    scale: f32,
    zero: i32,
    y: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.x {
            Bytes::U8(x) => {
                for (y, &x) in self.y.iter_mut().zip(x) {
                    *y = (i32::from(x) - self.zero) as f32 * self.scale;
                }
            }
            Bytes::I8(x) => {
                for (y, &x) in self.y.iter_mut().zip(x) {
                    *y = (i32::from(x) - self.zero) as f32 * self.scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn products_are_exact(
            m in 1usize..20,
            n in 1usize..70,
            k in prop_oneof![0usize..9, 500usize..1200],
            transposed in any::<bool>(),
            signed in any::<bool>(),
            a_zero in 0i32..128,
            per_column in any::<bool>(),
            bias in any::<bool>(),
        ) {
            let a: Vec<u8> = (0..m * (k + 1)).map(|i| (i * 37 + i / 7) as u8).collect();
            let b: Vec<i8> = (0..k * n).map(|i| (i * 53 + i / 11) as u8 as i8).collect();
            let a_signed: Vec<i8> = a.iter().map(|&x| x as i8).collect();
            let zeros: Vec<i32> =
                if per_column { (0..n as i32).map(|j| j % 9 - 4).collect() } else { vec![3] };
            let bias = bias.then(|| (0..n as i32).map(|j| j * 1000).collect::<Vec<_>>());
            let a = if signed { Bytes::I8(&a_signed) } else { Bytes::U8(&a) };
            let pool = Pool::new(2);
            for isa in Isa::available() {
                let g = IntGemm::new_with_isa(isa, k, n, Bytes::I8(&b), transposed, &zeros);
                let mut c = vec![-1; m * n];
                g.run(m, a, k + 1, a_zero, bias.as_deref(), &mut c, &pool);
                for (at, &c) in c.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let zero = zeros[if per_column { j } else { 0 }];
                    let mut want = bias.as_ref().map_or(0, |b| b[j]);
                    for p in 0..k {
                        let b = b[if transposed { j * k + p } else { p * n + j }];
                        want += (a.get(i * (k + 1) + p) - a_zero) * (i32::from(b) - zero);
                    }
                    prop_assert_eq!(c, want, "{} at {}", isa, at);
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_quantizes_alike() {
        let mut x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.0625).collect();
        x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, -0.0]);
        for (scale, zero) in [(0.25f32, 3i8), (0.1, -128), (1e-40, 0), (0.0, 5)] {
            let want: Vec<u8> = x
                .iter()
                .map(|x| {
                    let y = (x / scale).round_ties_even() + f32::from(zero);
                    y.clamp(-128.0, 127.0) as i8 as u8
                })
                .collect();
            for isa in Isa::available() {
                let mut y = vec![0u8; x.len()];
                let (zero, bounds) = (zero.into(), [-128.0, 127.0]);
                simd::dispatch(isa, Quantize { x: &x, scale, zero, bounds, y: &mut y });
                assert_eq!(y, want, "{isa}, scale {scale}");
            }
        }
    }

    #[test]
    fn quantisation_rounds_to_even_and_saturates() {
        let x = [0.25, 0.75, 1.25, -0.25, 1000.0, -1000.0, f32::NAN];
        let mut y = [0u8; 7];
        quantize_u8(&x, 0.5, 10, &mut y);
        assert_eq!(y, [10, 12, 12, 10, 255, 0, 0]);
        let mut z = [0i8; 7];
        quantize_i8(&x, 0.5, -1, &mut z);
        assert_eq!(z, [-1, 1, 1, -1, 127, -128, 0]);
        let mut f = [0.0; 7];
        dequantize(Bytes::I8(&z), 0.5, -1, &mut f);
        assert_eq!(f[..4], [0.0, 1.0, 1.0, 0.0]);
        dequantize(Bytes::U8(&y), 0.5, 10, &mut f);
        assert_eq!(f[4..6], [122.5, -5.0]);
    }
}
