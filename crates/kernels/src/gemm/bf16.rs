//! Products of operands rounded to bf16, with sums in f32.
//!
//! Two neighbours along k are one word, a pair of bf16 in the bits of an f32, so that a product
//! of depth k is the f32 product of depth k / 2 with another multiply-add: blocking, tiles and
//! epilogues are the same code. Rows of A are rounded block by block, where they are used.

use std::ops::Range;

use crate::activation::Epilogue;
use crate::aligned::{SharedMut, align_scratch};
use crate::gemm::driver::{Block, Product, Rows, Split};
use crate::gemm::{PackedB, PackedTiles, Terms, gemm_tiled};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// The right-hand matrix of [`gemm_bf16`], k x n, rounded to bf16 and packed.
#[derive(Clone, Debug)]
pub struct PackedBf16(Packed);

#[derive(Clone, Debug)]
enum Packed {
    Words {
        k: usize,
        words: PackedB,
    },
    /// Where the CPU has AMX.
    Tiles(PackedTiles),
}

impl PackedBf16 {
    /// Packs `b`: k x n row-major, or n x k if `b_is_transposed`. Panics unless
    /// [`isa::bf16`] says that bf16 can be used.
    pub fn new(k: usize, n: usize, b: &[f32], b_is_transposed: bool) -> PackedBf16 {
        assert!(b.len() == k * n, "b has k * n elements");
        if isa::best() == Isa::Amx {
            return PackedBf16(Packed::Tiles(PackedTiles::new(
                Terms::One,
                [1, k, n],
                b,
                b_is_transposed,
            )));
        }
        let at =
            |row, column| if b_is_transposed { b[column * k + row] } else { b[row * n + column] };
        PackedBf16(Packed::Words { k, words: pack_words(1, k, n, at) })
    }

    /// Rows.
    pub fn k(&self) -> usize {
        match &self.0 {
            Packed::Words { k, .. } => *k,
            Packed::Tiles(tiles) => tiles.k(),
        }
    }

    /// Columns.
    pub fn n(&self) -> usize {
        match &self.0 {
            Packed::Words { words, .. } => words.n(),
            Packed::Tiles(tiles) => tiles.n(),
        }
    }

    /// Size in memory.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Packed::Words { words, .. } => words.bytes(),
            Packed::Tiles(tiles) => tiles.bytes(),
        }
    }

    /// How many elements of scratch [`gemm_bf16`] needs for `m` rows on a pool of `threads`.
    pub fn scratch_len(&self, m: usize, threads: usize) -> usize {
        match &self.0 {
            Packed::Words { words, .. } => {
                let split = Split::new(m, words, threads);
                16 + threads * worker_scratch(words, &split)
            }
            Packed::Tiles(tiles) => tiles.scratch_len(m, threads),
        }
    }

    /// How many elements of scratch [`PackedBf16::run_alone`] needs, for any number of rows.
    pub(crate) fn scratch_len_alone(&self) -> usize {
        match &self.0 {
            Packed::Words { words, .. } => 16 + rows_alone(words) * row_stride(words.k()),
            Packed::Tiles(tiles) => tiles.scratch_len_alone(),
        }
    }

    /// [`gemm_bf16`] on the calling thread, for rows without gaps.
    pub(crate) fn run_alone(
        &self,
        m: usize,
        a: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        c: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (k, words) = match &self.0 {
            Packed::Words { k, words } => (*k, words),
            Packed::Tiles(b) => return b.run_alone(m, a, bias, epi, c, scratch),
        };
        super::check_product([m, k, words.n()], a, k, bias, epi, c);
        assert!(
            scratch.len() >= self.scratch_len_alone(),
            "scratch has scratch_len_alone elements"
        );
        let out = align_scratch(scratch);
        let product = Product::new(words, 1, bias, epi, SharedMut::new(c), words.n());
        let each = rows_alone(words);
        for start in (0..m).step_by(each) {
            multiply(&product, k, a, k, start..m.min(start + each), 0..words.panels(), out);
        }
    }
}

/// Words of rounded rows that stay in the nearest caches.
const ALONE_WORDS: usize = 16 * 1024;

/// Rows that are rounded at a time on one thread, whole tiles.
fn rows_alone(words: &PackedB) -> usize {
    let (mr, _) = words.tile();
    (ALONE_WORDS / row_stride(words.k())).max(1).next_multiple_of(mr)
}

fn worker_scratch(words: &PackedB, split: &Split) -> usize {
    split.block_rows() * row_stride(words.k()).max(words.k())
}

/// The matrix whose element (row, column) is `at(row, column)`, in `runs` runs of `run` rows;
/// each run is filled up to whole words with zeros.
pub(crate) fn pack_words(
    runs: usize,
    run: usize,
    n: usize,
    at: impl Fn(usize, usize) -> f32,
) -> PackedB {
    isa::bf16().expect("bf16 is available");
    let words = run.div_ceil(2);
    let word = |k: usize, column| {
        let (tap, first) = (k / words, k % words * 2);
        let half = |i: usize| if i < run { round(at(tap * run + i, column)) } else { 0 };
        f32::from_bits(u32::from(half(first)) | u32::from(half(first + 1)) << 16)
    };
    PackedB { pairs: true, ..PackedB::from_fn(Isa::Avx512, runs * words, n, word) }
}

/// The nearest bf16, ties to even; subnormal numbers are zero, as the hardware has them.
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    if bits & 0x7f80_0000 == 0 {
        return (bits >> 16) as u16 & 0x8000;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Words between rounded rows: an odd number of cache lines, lest rows share cache sets.
pub(crate) fn row_stride(words: usize) -> usize {
    words.next_multiple_of(16) | 16
}

/// c = epilogue(a b + bias) as [`super::gemm`], with `a` and `b` rounded to bf16.
pub fn gemm_bf16(
    m: usize,
    a: &[f32],
    lda: usize,
    b: &PackedBf16,
    bias: Option<&[f32]>,
    epi: &Epilogue<'_>,
    c: &mut [f32],
    scratch: &mut [f32],
    pool: &Pool,
) {
    let (k, words) = match &b.0 {
        Packed::Words { k, words } => (*k, words),
        Packed::Tiles(b) => return gemm_tiled(m, a, lda, b, bias, epi, c, scratch, pool),
    };
    let n = words.n();
    super::check_product([m, k, n], a, lda, bias, epi, c);
    assert!(scratch.len() >= b.scratch_len(m, pool.threads()), "scratch has scratch_len elements");
    if m == 0 || n == 0 {
        return;
    }
    let product = Product::new(words, 1, bias, epi, SharedMut::new(c), n);
    let split = Split::new(m, words, pool.threads());
    let per_worker = worker_scratch(words, &split);
    let scratch = SharedMut::new(align_scratch(scratch));
    pool.run_with_worker(split.tasks(), &|task, worker| {
        let (rows, panels) = split.part(task);
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        // SAFETY: each worker has its own part, and runs one task at a time.
        let out = unsafe { scratch.slice(worker * per_worker, per_worker) };
        multiply(&product, k, a, lda, rows, panels, out);
    });
}

/// Rounds some rows of `a`, of `k` elements, and multiplies them with some panels.
fn multiply(
    product: &Product<'_>,
    k: usize,
    a: &[f32],
    lda: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    out: &mut [f32],
) {
    let words = product.b;
    let from = &a[rows.start * lda..];
    // Short rows without gaps are rounded as one.
    let one_row = k == lda && k.is_multiple_of(2) && words.k() < 64;
    let lda_words = if one_row { words.k() } else { row_stride(words.k()) };
    let block = if one_row {
        Round { from, rows: 1, columns: rows.len() * k, stride: 0, out, out_stride: 0 }
    } else {
        let (rows, stride) = (rows.len(), lda);
        Round { from, rows, columns: k, stride, out, out_stride: lda_words }
    };
    let a = block.out.as_ptr();
    simd::dispatch_pairs(block);
    let (m, first_row) = (rows.len(), rows.start);
    let rows = Rows::Dense { a, lda: lda_words };
    words.dispatch(Block { product, rows, m, first_row, panels });
}

/// Rounds rows to bf16, each to whole words; an odd row ends in a zero.
pub(crate) struct Round<'a> {
    pub(crate) from: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements between rows of `from`.
    pub(crate) stride: usize,
    pub(crate) out: &'a mut [f32],
    /// Words between rows of `out`.
    pub(crate) out_stride: usize,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let words = self.columns.div_ceil(2);
        if self.rows == 0 || self.columns == 0 {
            return;
        }
        assert!(self.from.len() >= (self.rows - 1) * self.stride + self.columns);
        assert!(self.out.len() >= (self.rows - 1) * self.out_stride + words);
        for row in 0..self.rows {
            // SAFETY: the row lies inside both slices, as asserted.
            unsafe {
                let from = self.from.as_ptr().add(row * self.stride);
                let out = self.out.as_mut_ptr().add(row * self.out_stride);
                round_row(s, from, self.columns, out.cast::<u16>());
            }
        }
    }
}

/// # Safety
/// `columns` elements at `from` are readable, as many halves at `out` writable; if they are odd,
/// one more.
#[inline(always)]
unsafe fn round_row<S: Simd>(s: S, from: *const f32, columns: usize, out: *mut u16) {
    let mut i = 0;
    // SAFETY: i stays below columns.
    unsafe {
        while i + 2 * S::LANES <= columns {
            let pairs = s.to_pairs(s.load(from.add(i)), s.load(from.add(i + S::LANES)));
            s.store(out.add(i).cast(), pairs);
            i += 2 * S::LANES;
        }
        if i < columns {
            let rest = columns - i;
            let first = s.load_partial(from.add(i), rest.min(S::LANES));
            let second = if rest > S::LANES {
                s.load_partial(from.add(i + S::LANES), rest - S::LANES)
            } else {
                s.splat(0.0)
            };
            s.store_partial(out.add(i).cast(), rest.div_ceil(2), s.to_pairs(first, second));
        }
    }
}

#[cfg(test)]
mod tests;
