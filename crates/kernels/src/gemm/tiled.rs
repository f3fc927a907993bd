//! Products on AMX: operands as one bf16 or as the sum of two, in tiles; sums in f32.
//!
//! Of two terms, a number x is lead + rest: x rounded to bf16, and what is left rounded to bf16
//! again, which differs from x by at most 2^-18 |x|. A product a b becomes the three products
//! lead lead + lead rest + rest lead; with the fourth, of at most 2^-18 |a b|, left out, each
//! term of a sum errs by at most 3 * 2^-18 of itself (1.1e-5), in random directions: an error of
//! the size that sums of some thousand terms in f32 have anyway, and of Winograd's. (Henry, Tang,
//! Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", 2019.) Numbers beyond bf16's largest (3.39e38) and infinite ones give NaN.
//!
//! Rows of A are converted where they are used, to steps of 32 numbers: a line of the leading
//! terms, then one of the rests. B is converted once.

use std::ops::Range;

use crate::activation::{Epilogue, Residual};
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::amx::{DEPTH, SIDE, Sums, TILE, Tiles};
use crate::gemm::micro::{self, Finish, Tile};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// Columns of a panel of B: two tiles.
const PANEL: usize = 2 * SIDE;
/// The most steps of k that a matrix's rows are converted and multiplied at once: these and their
/// sums then stay in the second-level cache, for as many rows as it takes to make a panel's way
/// there worth it.
const STEPS: usize = 32;
/// Bytes of converted rows of A that should stay in the second-level cache; and in the first,
/// where B stays in the second.
const A_BYTES: usize = 640 * 1024;
const A_BYTES_OF_SMALL_B: usize = 32 * 1024;
const SMALL_B_BYTES: usize = 256 * 1024;
/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_MACS: usize = 256 * 1024;
/// Elements of a line of a step: pairs of bf16 in the size of an f32.
const LINE: usize = DEPTH / 2;

/// Of how many bf16 a number is the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Rounded to bf16.
    One = 1,
    /// Within 2^-18 of itself.
    Two = 2,
}

/// The right-hand matrix of [`gemm_tiled`], k x n, packed in tiles of bf16.
///
/// Rows come in runs of equal length (a matrix is one run, a convolution has one per tap), each
/// filled up to whole steps with zeros.
#[derive(Clone, Debug)]
pub struct PackedTiles {
    terms: Terms,
    runs: usize,
    run: usize,
    n: usize,
    data: AlignedBuffer,
}

impl PackedTiles {
    /// Packs `b`: k x n row-major, or n x k if `b_is_transposed`. Panics unless [`Isa::Amx`] is
    /// available.
    pub fn new(terms: Terms, k: usize, n: usize, b: &[f32], b_is_transposed: bool) -> PackedTiles {
        assert!(b.len() == k * n, "b has k * n elements");
        PackedTiles::from_columns(terms, [1, k, n], |columns, out| {
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
        [runs, run, n]: [usize; 3],
        mut fill: impl FnMut(Range<usize>, &mut [f32]),
    ) -> PackedTiles {
        assert!(Isa::Amx.is_available(), "AMX is available");
        let mut packed =
            PackedTiles { terms, runs, run, n, data: AlignedBuffer::zeroed(0) };
        let per_tile = runs * packed.steps() * terms as usize * TILE;
        packed.data = AlignedBuffer::zeroed(n.div_ceil(SIDE) * per_tile);
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
            let out = &mut packed.data.as_mut_slice()[start + tile % 2 * TILE..];
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

    /// Steps of a run; an empty one is one step of zeros.
    pub(crate) fn steps(&self) -> usize {
        self.run.div_ceil(DEPTH).max(1)
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    fn panel(&self, panel: usize) -> Panel {
        let tiles = (self.n - panel * PANEL).div_ceil(SIDE).min(2);
        Panel { start: self.panel_start(panel), tiles }
    }

    fn panel_start(&self, panel: usize) -> usize {
        panel * 2 * self.runs * self.steps() * self.terms as usize * TILE
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
        let bytes = if self.bytes() <= SMALL_B_BYTES { A_BYTES_OF_SMALL_B } else { A_BYTES };
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
        assert!(scratch.len() >= self.scratch_len_alone(), "scratch has scratch_len_alone elements");
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

/// Converts the columns of one tile, `runs` times `run` numbers each, for every step.
struct PackTile<'a> {
    from: &'a [f32],
    runs: usize,
    run: usize,
    terms: Terms,
    /// From this tile's first element on.
    out: &'a mut [f32],
    /// Tiles of the panel, between which steps alternate.
    tiles: usize,
}

impl Kernel for PackTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.from.len() / (self.runs * self.run);
        let mut places = self.out.chunks_mut(self.tiles * TILE);
        for run in 0..self.runs {
            for start in (0..self.run).step_by(DEPTH) {
                let len = DEPTH.min(self.run - start);
                let mut terms = [[s.splat(0.0); SIDE]; 2];
                for column in 0..columns {
                    let at = (column * self.runs + run) * self.run + start;
                    let [first, second] = load_step(s, &self.from[at..at + len]);
                    [terms[0][column], terms[1][column]] = s.to_terms(first, second);
                }
                for square in terms.iter_mut().take(self.terms as usize) {
                    s.transpose(square);
                    let out = &mut places.next().expect("a place for every tile")[..TILE];
                    for (vector, out) in square.iter().zip(out.chunks_exact_mut(LINE)) {
                        // SAFETY: a line has LANES elements.
                        unsafe { s.store(out.as_mut_ptr(), *vector) };
                    }
                }
            }
        }
    }
}

/// At most a step's numbers, as two vectors filled up with zeros.
#[inline(always)]
fn load_step<S: Simd>(s: S, from: &[f32]) -> [S::V; 2] {
    debug_assert!(from.len() <= DEPTH);
    let first = from.len().min(S::LANES);
    // SAFETY: both parts lie in the slice.
    unsafe {
        let second = from.as_ptr().add(first);
        [s.load_partial(from.as_ptr(), first), s.load_partial(second, from.len() - first)]
    }
}

/// Converts rows of numbers to steps of their terms, the last one filled up with zeros.
pub(crate) struct Convert<'a> {
    pub(crate) terms: Terms,
    pub(crate) from: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements between rows of `from`.
    pub(crate) stride: usize,
    pub(crate) out: &'a mut [f32],
    /// Elements between rows of `out`.
    pub(crate) out_stride: usize,
}

impl Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let terms = self.terms as usize;
        let whole = self.columns / DEPTH;
        let len = self.columns.div_ceil(DEPTH).max(1) * terms * LINE;
        if self.rows == 0 {
            return;
        }
        assert!(self.from.len() >= (self.rows - 1) * self.stride + self.columns);
        assert!(self.out.len() >= (self.rows - 1) * self.out_stride + len);
        for row in 0..self.rows {
            let from = &self.from[row * self.stride..][..self.columns];
            let out = &mut self.out[row * self.out_stride..][..len];
            for step in 0..whole {
                // SAFETY: the step has DEPTH elements, two vectors; its place `terms` lines.
                unsafe {
                    let from = from.as_ptr().add(step * DEPTH);
                    let pair = [s.load(from), s.load(from.add(LINE))];
                    store_terms(s, self.terms, pair, out.as_mut_ptr().add(step * terms * LINE));
                }
            }
            if whole * DEPTH < self.columns || self.columns == 0 {
                let pair = load_step(s, &from[whole * DEPTH..]);
                let out = &mut out[whole * terms * LINE..][..terms * LINE];
                // SAFETY: the place has `terms` lines.
                unsafe { store_terms(s, self.terms, pair, out.as_mut_ptr()) };
            }
        }
    }
}

/// # Safety
/// A line for each term is writable at `out`.
#[inline(always)]
unsafe fn store_terms<S: Simd>(s: S, terms: Terms, [first, second]: [S::V; 2], out: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        match terms {
            Terms::One => s.store(out, s.to_pairs(first, second)),
            Terms::Two => {
                let [leads, rests] = s.to_terms(first, second);
                s.store(out, leads);
                s.store(out.add(LINE), rests);
            }
        }
    }
}

/// A product whose B, output and epilogue are known.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) b: &'a PackedTiles,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) epi: Epilogue<'a>,
    pub(crate) c: SharedMut,
    /// Elements between rows of c.
    pub(crate) ldc: usize,
}

/// Some rows times some panels, on one thread.
///
/// Rows come as images of `positions` positions each, `stride` apart; every `width` of them are a
/// line, of which the first `valid` are rows of c, and lines follow each other in c. A matrix is
/// one image of one line. Positions up to the next multiple of SIDE are read.
pub(crate) struct Block<'a> {
    pub(crate) product: &'a Product<'a>,
    /// The first position of the first image, converted.
    pub(crate) a: *const f32,
    /// Elements between positions.
    pub(crate) stride: usize,
    /// Bytes from a position to its runs.
    pub(crate) offsets: &'a [isize],
    pub(crate) images: usize,
    /// Elements between images.
    pub(crate) image_stride: usize,
    pub(crate) positions: usize,
    pub(crate) width: usize,
    pub(crate) valid: usize,
    /// Where in c the first row goes.
    pub(crate) first_row: usize,
    pub(crate) panels: Range<usize>,
    /// The steps of each run to multiply: all, or those of a block of k.
    pub(crate) steps: Range<usize>,
    /// For blocks of k, the sums between them: two tiles for each panel and SIDE positions,
    /// aligned to lines.
    pub(crate) sums: Option<&'a mut [f32]>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.product;
        let terms = p.b.terms as usize;
        let per_image = self.positions.div_ceil(SIDE);
        let row_tiles = self.images * per_image;
        let last = self.steps.end == p.b.steps();
        let finish = Finish::new(1.0, p.bias.is_some(), &p.epi);
        let at = |tile: usize| {
            let (image, tile) = (tile / per_image, tile % per_image);
            let position = image * self.image_stride + tile * SIDE * self.stride;
            self.a.wrapping_add(position).cast::<u8>()
        };
        let mut own = Lines([0.0; 4 * TILE]);
        let tiles = Tiles::configure();
        for (index, panel) in self.panels.clone().enumerate() {
            let Panel { start, tiles: columns } = p.b.panel(panel);
            let step_len = terms * columns * TILE;
            let b = &p.b.data.as_slice()[start + self.steps.start * step_len..];
            let runs = self.offsets.len();
            assert!(self.steps.len() == p.b.steps() || runs == 1, "blocks of k are of a matrix");
            assert!(runs == p.b.runs && b.len() >= runs * self.steps.len() * step_len);
            // The next panel is asked for meanwhile, in equal shares.
            let next_len = match self.panels.clone().nth(index + 1) {
                Some(next) => runs * self.steps.len() * terms * p.b.panel(next).tiles * TILE / LINE,
                None => 0,
            };
            let next = p.b.data.as_slice().as_ptr().wrapping_add(
                p.b.panel_start(panel + 1) + self.steps.start * step_len,
            );
            let steps = runs * self.steps.len();
            let share = next_len.div_ceil(row_tiles.div_ceil(2) * steps);
            for tile in (0..row_tiles).step_by(2) {
                let asked = tile / 2 * share * steps;
                let rows = (row_tiles - tile).min(2);
                let c = match &self.sums {
                    None => own.0.as_mut_ptr(),
                    Some(sums) => {
                        let place = (index * row_tiles + tile) * 2 * TILE;
                        sums[place..][..rows * columns * TILE].as_ptr().cast_mut()
                    }
                };
                let sums = Sums {
                    a: [at(tile), at(tile + rows - 1)],
                    stride: self.stride * size_of::<f32>(),
                    offsets: self.offsets,
                    steps: self.steps.len(),
                    b: b.as_ptr(),
                    c,
                    accumulate: self.steps.start > 0,
                    next: next.wrapping_add(asked * LINE).cast(),
                    next_lines: if asked < next_len { share } else { 0 },
                };
                // SAFETY: whoever builds a block guarantees its rows; B was checked above.
                unsafe { tiles.multiply(terms, rows, columns, &sums) };
                if last {
                    for row in 0..rows {
                        let sums = c.wrapping_add(row * columns * TILE);
                        self.finish(s, &finish, panel, columns, tile + row, sums);
                    }
                }
            }
        }
    }
}

impl Block<'_> {
    /// Bias, residual and activation of a tile of rows, and the way to c.
    #[inline(always)]
    fn finish<S: Simd>(
        &self,
        s: S,
        finish: &Finish,
        panel: usize,
        tiles: usize,
        tile: usize,
        sums: *const f32,
    ) {
        let p = self.product;
        let per_image = self.positions.div_ceil(SIDE);
        let (image, tile) = (tile / per_image, tile % per_image);
        let lines = self.positions.div_ceil(self.width);
        let column = panel * PANEL;
        let columns = (p.b.n - column).min(PANEL);
        let bias = p.bias.map_or(std::ptr::null(), |bias| bias[column..][..columns].as_ptr());
        let residual = match p.epi.residual {
            Residual::None => None,
            Residual::BeforeActivation(r) | Residual::AfterActivation(r) => Some(r),
        };
        let first = tile * SIDE;
        let count = SIDE.min(self.positions - first);
        let (mut line, mut x) = (first / self.width, first % self.width);
        let mut row = 0;
        while row < count {
            // Rows of c that follow each other.
            let rows = self.valid.saturating_sub(x).min(count - row).min(GROUP);
            if rows == 0 {
                row += self.width - x;
                (line, x) = (line + 1, 0);
                continue;
            }
            let row_of_c = self.first_row + (image * lines + line) * self.valid + x;
            let at = row_of_c * p.ldc + column;
            let tile = Tile {
                rows: std::ptr::null(),
                taps: 0,
                run: 0,
                offset: 0,
                b: std::ptr::null(),
                // SAFETY: c has this row, and it is this block's.
                c: unsafe { p.c.ptr().add(at) },
                ldc: p.ldc,
                bias,
                residual: residual.map_or(std::ptr::null(), |r| r[at..].as_ptr()),
                tail: columns - (tiles - 1) * SIDE,
                accumulate: false,
                finish: Some(finish),
            };
            // SAFETY: the tiles' sums have these rows; c, bias and residual their columns.
            unsafe {
                let sums = sums.add(row * LINE);
                match (rows, tiles) {
                    (GROUP, 1) => store::<S, GROUP, 1>(s, &tile, sums),
                    (GROUP, _) => store::<S, GROUP, 2>(s, &tile, sums),
                    (rows, 1) => {
                        for row in 0..rows {
                            store::<S, 1, 1>(s, &tile.down(row), sums.add(row * LINE));
                        }
                    }
                    (rows, _) => {
                        for row in 0..rows {
                            store::<S, 1, 2>(s, &tile.down(row), sums.add(row * LINE));
                        }
                    }
                }
            }
            (row, x) = (row + rows, x + rows);
        }
    }
}

/// Rows of c that are finished together.
const GROUP: usize = 8;

/// Finishes and stores `R` rows of `NV` tiles' sums.
///
/// # Safety
/// The tiles have these rows from `sums` on; c, bias and residual have their columns.
#[inline(always)]
unsafe fn store<S: Simd, const R: usize, const NV: usize>(s: S, t: &Tile<'_>, sums: *const f32) {
    let mut acc = [[s.splat(0.0); NV]; R];
    for (row, acc) in acc.iter_mut().enumerate() {
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *acc = unsafe { s.load(sums.add(v * TILE + row * LINE)) };
        }
    }
    // SAFETY: the caller's contract.
    unsafe { micro::store::<S, R, NV>(s, t, acc) };
}

/// A tile's sums on the stack, on cache lines of their own.
#[repr(align(64))]
struct Lines([f32; 4 * TILE]);

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
        let wanted = match threads {
            1 => 1,
            _ => (4 * threads).min(m * b.k() * b.n() / TASK_MACS),
        };
        if row_blocks < wanted {
            panel_blocks = wanted.div_ceil(row_blocks).min(panels).max(1);
            row_blocks = row_blocks.max(wanted.div_ceil(panel_blocks).min(pairs));
        }
        let stride = if panel_blocks > 1 { b.row_stride(b.steps()) } else { depth_stride };
        Split { m, panels, row_blocks, panel_blocks, threads, depths, stride }
    }

    /// Rows of a block, but for the last.
    fn rows(&self, block: usize) -> Range<usize> {
        let pairs = self.m.div_ceil(2 * SIDE);
        let cut = |i: usize| (pairs * i / self.row_blocks * 2 * SIDE).min(self.m);
        cut(block)..cut(block + 1)
    }

    fn panels(&self, block: usize) -> Range<usize> {
        let cut = |i: usize| self.panels * i / self.panel_blocks;
        cut(block)..cut(block + 1)
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
    assert!(c.len() == m * n, "c has m * n elements");
    assert!(m == 0 || a.len() >= (m - 1) * lda + k, "a has m rows of k elements");
    assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
    assert!(scratch.len() >= b.scratch_len(m, pool.threads()), "scratch has scratch_len elements");
    epi.check(c.len());
    if m == 0 || n == 0 {
        return;
    }
    let split = Split::new(m, b, pool.threads());
    let product = Product { b, bias, epi: *epi, c: SharedMut::new(c), ldc: n };
    let run = Run::new(&product, split, a, lda, scratch);
    if split.shares() {
        let tiles = m.div_ceil(SIDE);
        let parts = pool.threads().min(tiles);
        pool.run(parts, &|part| {
            let cut = |i: usize| (tiles * i / parts * SIDE).min(m);
            run.convert(cut(part)..cut(part + 1), 0..k, cut(part));
        });
    }
    pool.run_with_worker(split.row_blocks * split.panel_blocks, &|task, worker| {
        let rows = split.rows(task / split.panel_blocks);
        run.block(rows, split.panels(task % split.panel_blocks), worker);
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
        Run { product, split, a, lda, rows, sums }
    }

    /// Converts columns of rows of A to the converted rows from `place` on, which no other thread
    /// touches.
    fn convert(&self, rows: Range<usize>, columns: Range<usize>, place: usize) {
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
        });
    }

    /// Some rows times some panels. No two threads are the same worker at a time.
    fn block(&self, rows: Range<usize>, panels: Range<usize>, worker: usize) {
        let (b, split) = (self.product.b, &self.split);
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        let sums_len = split.sums_len();
        for depth in 0..split.depths {
            let cut = |i: usize| b.steps() * i / split.depths;
            let steps = cut(depth)..cut(depth + 1);
            let from = if split.shares() {
                self.rows.at(rows.start * split.stride + steps.start * b.terms as usize * LINE)
            } else {
                let place = worker * split.block_rows();
                let columns = steps.start * DEPTH..b.run.min(steps.end * DEPTH);
                self.convert(rows.clone(), columns, place);
                self.rows.at(place * split.stride)
            };
            simd::dispatch_pairs(Block {
                product: self.product,
                a: from.ptr(),
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
mod tests;
