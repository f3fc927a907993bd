//! Products on AMX: operands as one bf16 or as sums of two or three, in tiles; sums in f32.
//!
//! Of several terms, a number is its rounding to bf16, what is left rounded to bf16, and so on
//! (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations", 2019; oneMKL's bf16x2 and bf16x3):
//!
//! - Two terms differ from a number x by at most 2^-17 |x|. A product a b becomes three, lead lead
//!   and lead rest and rest lead; with the fourth, of at most 2^-16 |a b|, left out, each term of a
//!   sum errs by at most 2^-15 of itself (3.1e-5), in random directions, and mostly by far less.
//! - Three terms are the number itself. Six products are added up; those left out are at most
//!   2^-24 |a b| together, about what f32 rounds a product by.
//!
//! Rows with numbers beyond bf16's largest (3.39e38), infinite ones or NaN are multiplied without
//! tiles.
//!
//! Rows of A are converted where they are used, to steps of 32 numbers: a line of the leading
//! terms, then one of each of the others. B is converted once; or, of three terms that would take
//! half as much memory again as the numbers, with enough rows of A, panel by panel where it is
//! used.

mod block;
mod convert;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use block::{Block, Product};
pub(crate) use convert::Convert;

use crate::activation::Epilogue;
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::amx::{DEPTH, SIDE, TILE};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd;
use convert::{NUMBERS, PackTile};

/// Columns of a panel of B: two tiles.
const PANEL: usize = 2 * SIDE;
/// The most steps of k that a matrix's rows are converted and multiplied at once: these and their
/// sums then stay in the second-level cache, for as many rows as it takes to make a panel's way
/// there worth it.
const STEPS: usize = 32;
/// Bytes of converted rows of A that should stay in the second-level cache; and in the first,
/// where B stays in the second.
pub(crate) const A_BYTES: usize = 640 * 1024;
const A_BYTES_OF_SMALL_B: usize = 32 * 1024;
const SMALL_B_BYTES: usize = 256 * 1024;
/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_MACS: usize = 256 * 1024;
/// Elements of a line of a step: pairs of bf16 in the size of an f32.
const LINE: usize = DEPTH / 2;

/// How many tasks are worth it for so many multiply-adds: one alone, or some for every thread.
pub(crate) fn wanted_tasks(macs: usize, threads: usize) -> usize {
    if threads == 1 { 1 } else { (4 * threads).min(macs / TASK_MACS).max(1) }
}

/// Part `i` of `parts` nearly equal ones of 0 .. `len`.
pub(crate) fn part(len: usize, parts: usize, i: usize) -> Range<usize> {
    len * i / parts..len * (i + 1) / parts
}

/// Rows of A from which a B of so many elements is kept as numbers: terms are then made of them in
/// a fraction of the time that they multiply, for as many rows as [`A_BYTES`] allows.
const COMPACT_ROWS: usize = 128;
const COMPACT_LEN: usize = 128 * 1024;
/// The fewest rows that are for tiles: fewer leave most of one empty.
const FEWEST_ROWS: usize = 12;
/// The fewest columns of B, and elements, for which six products on tiles are faster than one of
/// f32: converting A, and what is done with sums, take as long for any B.
const FEWEST_COLUMNS: usize = 64;
const FEWEST_LEN: usize = 3 * 1024;

/// Of how many bf16 a number is the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Rounded to bf16.
    One = 1,
    /// Within 2^-17 of itself.
    Two = 2,
    /// The number itself.
    Three = 3,
}

/// The right-hand matrix of [`gemm_tiled`], k x n, packed in tiles of bf16.
///
/// Rows come in runs of equal length (a matrix is one run, a convolution has one per tap), each
/// filled up to whole steps with zeros.
#[derive(Clone, Debug)]
pub struct PackedTiles {
    terms: Terms,
    /// Whether tiles are of numbers, which become terms where they are used.
    compact: bool,
    runs: usize,
    run: usize,
    n: usize,
    data: AlignedBuffer,
}

impl PackedTiles {
    /// Whether `isa` multiplies on tiles, and can these weights: infinite ones have no terms.
    pub fn fits(isa: Isa, weights: &[f32]) -> bool {
        isa == Isa::Amx && weights.iter().all(|w| w.is_finite())
    }

    /// Whether tiles are a good way to multiply `m` rows by matrices of k x n.
    pub fn pays(terms: Terms, [m, k, n]: [usize; 3]) -> bool {
        let large = n >= FEWEST_COLUMNS && k * n >= FEWEST_LEN;
        m >= FEWEST_ROWS && (large || terms != Terms::Three)
    }

    /// Packs `b`, k x n row-major, or n x k if `b_is_transposed`, for left-hand matrices of about
    /// `m` rows. Panics unless [`Isa::Amx`] is available.
    pub fn new(
        terms: Terms,
        [m, k, n]: [usize; 3],
        b: &[f32],
        b_is_transposed: bool,
    ) -> PackedTiles {
        assert!(b.len() == k * n, "b has k * n elements");
        PackedTiles::from_columns(terms, m, [1, k, n], |columns, out| {
            if b_is_transposed {
                return out.copy_from_slice(&b[columns.start * k..columns.end * k]);
            }
            for (row, b) in b.chunks_exact(n).enumerate() {
                for (out, &b) in out[row..].iter_mut().step_by(k).zip(&b[columns.clone()]) {
                    *out = b;
                }
            }
        })
    }

    /// Packs the matrix of `runs` times `run` rows whose `n` columns `fill` writes one after the
    /// other, some at a time.
    pub(crate) fn from_columns(
        terms: Terms,
        m: usize,
        [runs, run, n]: [usize; 3],
        mut fill: impl FnMut(Range<usize>, &mut [f32]),
    ) -> PackedTiles {
        assert!(Isa::Amx.is_available(), "AMX is available");
        let large = runs * run * n >= COMPACT_LEN;
        let compact = terms == Terms::Three && m >= COMPACT_ROWS && large;
        let data = AlignedBuffer::zeroed(0);
        let mut packed = PackedTiles { terms, compact, runs, run, n, data };
        let len = n.div_ceil(SIDE) * runs * packed.steps() * packed.per_tile();
        packed.data = AlignedBuffer::zeroed(len);
        let k = runs * run;
        if k == 0 {
            return packed;
        }
        let mut columns = vec![0.0; SIDE.min(n) * k];
        for tile in 0..n.div_ceil(SIDE) {
            let range = tile * SIDE..n.min((tile + 1) * SIDE);
            let from = &mut columns[..range.len() * k];
            fill(range, from);
            let panel = &packed.panel(tile / 2);
            let (start, tiles) = (panel.start, panel.tiles);
            let first = if compact { NUMBERS } else { TILE };
            let out = &mut packed.data.as_mut_slice()[start + tile % 2 * first..];
            let terms = (!compact).then_some(terms);
            simd::dispatch_pairs(PackTile { from, runs, run, terms, out, tiles });
        }
        packed
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.runs * self.run
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Size in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }

    /// Of how many bf16 a number is the sum.
    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    /// Steps of a run; an empty one is one step of zeros.
    pub(crate) fn steps(&self) -> usize {
        self.run.div_ceil(DEPTH).max(1)
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    fn panel(&self, panel: usize) -> Panel {
        let tiles = (self.n - panel * PANEL).div_ceil(SIDE).min(2);
        Panel { start: panel * 2 * self.runs * self.steps() * self.per_tile(), tiles }
    }

    /// Elements of a step of a tile.
    fn per_tile(&self) -> usize {
        if self.compact { NUMBERS } else { self.terms as usize * TILE }
    }

    /// How many elements of scratch [`gemm_tiled`] needs for `m` rows on a pool of `threads`.
    pub fn scratch_len(&self, m: usize, threads: usize) -> usize {
        let split = Split::new(m, self, threads);
        LINE + split.converted_rows() * split.stride + threads * split.sums_len()
    }

    /// Elements between converted rows of `steps` steps: whole lines, and not so many that rows
    /// share cache sets.
    pub(crate) fn row_stride(&self, steps: usize) -> usize {
        let len = steps * self.terms as usize * LINE;
        if len.is_multiple_of(256) { len + 2 * LINE } else { len }
    }

    /// The most pairs of tiles of rows that should be converted at once.
    fn most_pairs(&self) -> usize {
        let bytes = match self.compact {
            // Each block of rows makes the terms of all of B anew.
            true => 2 * A_BYTES,
            false if self.bytes() <= SMALL_B_BYTES => A_BYTES_OF_SMALL_B,
            false => A_BYTES,
        };
        let stride = self.row_stride(self.steps().div_ceil(self.depths()));
        (bytes / (size_of::<f32>() * stride * 2 * SIDE)).max(1)
    }

    /// How many elements of scratch [`PackedTiles::run_alone`] needs, for any number of rows.
    pub(crate) fn scratch_len_alone(&self) -> usize {
        self.scratch_len(self.most_pairs() * 2 * SIDE, 1)
    }

    /// [`gemm_tiled`] on the calling thread, for rows without gaps.
    pub(crate) fn run_alone(
        &self,
        m: usize,
        a: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        c: &mut [f32],
        scratch: &mut [f32],
    ) {
        assert!(
            scratch.len() >= self.scratch_len_alone(),
            "scratch has scratch_len_alone elements"
        );
        let split = Split::new(m, self, 1);
        let c = SharedMut::new(c);
        let product = Product { b: self, bias, epi: *epi, c, ldc: self.n };
        let run = Run::new(&product, split, a, self.k(), scratch);
        for block in 0..split.row_blocks {
            run.block(split.rows(block), 0..split.panels, 0);
        }
    }

    /// Blocks of k of a matrix, of at most [`STEPS`] steps.
    fn depths(&self) -> usize {
        self.steps().div_ceil(STEPS)
    }
}

struct Panel {
    start: usize,
    tiles: usize,
}

/// How a product of `m` rows is cut into tasks.
#[derive(Clone, Copy, Debug)]
struct Split {
    m: usize,
    panels: usize,
    row_blocks: usize,
    panel_blocks: usize,
    threads: usize,
    depths: usize,
    /// Elements between converted rows: of a block of k, or, if tasks share them, of all of it.
    stride: usize,
}

impl Split {
    fn new(m: usize, b: &PackedTiles, threads: usize) -> Split {
        let panels = b.panels();
        let pairs = m.div_ceil(2 * SIDE).max(1);
        let depths = b.depths();
        let depth_stride = b.row_stride(b.steps().div_ceil(depths));
        let most = b.most_pairs();
        let mut row_blocks = pairs.div_ceil(most);
        let mut panel_blocks = 1;
        let wanted = wanted_tasks(m * b.k() * b.n(), threads);
        if row_blocks < wanted {
            panel_blocks = wanted.div_ceil(row_blocks).min(panels).max(1);
            row_blocks = row_blocks.max(wanted.div_ceil(panel_blocks).min(pairs));
        }
        let stride = if panel_blocks > 1 { b.row_stride(b.steps()) } else { depth_stride };
        Split { m, panels, row_blocks, panel_blocks, threads, depths, stride }
    }

    /// The rows of a block: whole pairs of tiles, but for the last.
    fn rows(&self, block: usize) -> Range<usize> {
        let pairs = part(self.m.div_ceil(2 * SIDE), self.row_blocks, block);
        (pairs.start * 2 * SIDE).min(self.m)..(pairs.end * 2 * SIDE).min(self.m)
    }

    fn block_rows(&self) -> usize {
        self.m.div_ceil(2 * SIDE).div_ceil(self.row_blocks) * 2 * SIDE
    }

    /// Whether all rows are converted before any are multiplied: tasks share them.
    fn shares(&self) -> bool {
        self.panel_blocks > 1
    }

    /// Elements of a worker for sums between blocks of k.
    fn sums_len(&self) -> usize {
        if self.depths == 1 {
            return 0;
        }
        self.block_rows() * self.panels.div_ceil(self.panel_blocks) * PANEL
    }

    /// How many rows are in memory at once.
    fn converted_rows(&self) -> usize {
        if self.shares() { self.m.next_multiple_of(SIDE) } else { self.threads * self.block_rows() }
    }
}

/// c = epilogue(a b + bias) as [`super::gemm`], on AMX.
pub fn gemm_tiled(
    m: usize,
    a: &[f32],
    lda: usize,
    b: &PackedTiles,
    bias: Option<&[f32]>,
    epi: &Epilogue<'_>,
    c: &mut [f32],
    scratch: &mut [f32],
    pool: &Pool,
) {
    let (k, n) = (b.k(), b.n());
    assert!(b.runs == 1, "b is a matrix");
    super::check_product([m, k, n], a, lda, bias, epi, c);
    assert!(scratch.len() >= b.scratch_len(m, pool.threads()), "scratch has scratch_len elements");
    if m == 0 || n == 0 {
        return;
    }
    let split = Split::new(m, b, pool.threads());
    let product = Product { b, bias, epi: *epi, c: SharedMut::new(c), ldc: n };
    let run = Run::new(&product, split, a, lda, scratch);
    if split.shares() {
        let tiles = m.div_ceil(SIDE);
        let parts = pool.threads().min(tiles);
        pool.run(parts, &|i| {
            let tiles = part(tiles, parts, i);
            let rows = (tiles.start * SIDE).min(m)..(tiles.end * SIDE).min(m);
            if !run.convert(rows.clone(), 0..k, rows.start) {
                // The pool's end of this run orders it before the products.
                run.finite.store(false, Ordering::Relaxed);
            }
        });
    }
    pool.run_with_worker(split.row_blocks * split.panel_blocks, &|task, worker| {
        let rows = split.rows(task / split.panel_blocks);
        let panels = part(split.panels, split.panel_blocks, task % split.panel_blocks);
        run.block(rows, panels, worker);
    });
}

/// A product with its A and scratch.
struct Run<'a> {
    product: &'a Product<'a>,
    split: Split,
    a: &'a [f32],
    lda: usize,
    /// Converted rows, then what each worker needs for sums.
    rows: SharedMut,
    sums: SharedMut,
    /// Of rows that tasks share, whether all numbers are finite.
    finite: AtomicBool,
}

impl<'a> Run<'a> {
    fn new(
        product: &'a Product<'a>,
        split: Split,
        a: &'a [f32],
        lda: usize,
        scratch: &mut [f32],
    ) -> Run<'a> {
        let (rows, sums) =
            align_scratch(scratch).split_at_mut(split.converted_rows() * split.stride);
        assert!(sums.len() >= split.threads * split.sums_len(), "scratch has room for sums");
        let (rows, sums) = (SharedMut::new(rows), SharedMut::new(sums));
        Run { product, split, a, lda, rows, sums, finite: AtomicBool::new(true) }
    }

    /// Converts columns of rows of A to the converted rows from `place` on, which no other thread
    /// touches. Returns whether all are finite.
    fn convert(&self, rows: Range<usize>, columns: Range<usize>, place: usize) -> bool {
        let stride = self.split.stride;
        // SAFETY: there are these rows in the scratch; and the caller's contract.
        let out = unsafe { self.rows.slice(place * stride, rows.len() * stride) };
        simd::dispatch_pairs(Convert {
            terms: self.product.b.terms,
            from: self.a.get(rows.start * self.lda + columns.start..).unwrap_or_default(),
            rows: rows.len(),
            columns: columns.len(),
            stride: self.lda,
            out,
            out_stride: stride,
        })
    }

    /// Some rows times some panels. No two threads are the same worker at a time.
    fn block(&self, rows: Range<usize>, panels: Range<usize>, worker: usize) {
        let (b, split) = (self.product.b, &self.split);
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        let sums_len = split.sums_len();
        for depth in 0..split.depths {
            let steps = part(b.steps(), split.depths, depth);
            let (finite, from) = if split.shares() {
                let finite = self.finite.load(Ordering::Relaxed);
                let first = rows.start * split.stride + steps.start * b.terms as usize * LINE;
                (finite, self.rows.at(first))
            } else {
                let place = worker * split.block_rows();
                let columns = steps.start * DEPTH..b.run.min(steps.end * DEPTH);
                let finite = self.convert(rows.clone(), columns, place);
                (finite, self.rows.at(place * split.stride))
            };
            simd::dispatch_pairs(Block {
                product: self.product,
                a: from.ptr(),
                finite,
                stride: split.stride,
                offsets: &[0],
                images: 1,
                image_stride: 0,
                positions: rows.len(),
                width: rows.len(),
                valid: rows.len(),
                first_row: rows.start,
                panels: panels.clone(),
                steps,
                // SAFETY: each worker has its own part.
                sums: (split.depths > 1)
                    .then(|| unsafe { self.sums.slice(worker * sums_len, sums_len) }),
            });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
