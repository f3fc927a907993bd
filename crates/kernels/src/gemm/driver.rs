//! Blocks a product for the caches and the threads, and hands tiles to the micro-kernel.

use std::cell::RefCell;
use std::ops::Range;

use crate::activation::{Epilogue, Residual};
use crate::aligned::{AlignedBuffer, SharedMut};
use crate::gemm::PackedB;
use crate::gemm::micro::{Destination, Finish, Micro, Tile};
use crate::gemm::skip::{self, Skipping};
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

/// Bytes of a block of rows of A that should stay in the second-level cache.
const A_BLOCK_BYTES: usize = 384 * 1024;
/// Bytes of B that each thread may well keep in its own second-level cache.
pub(super) const SHARED_B_BYTES: usize = 256 * 1024;
/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_MACS: usize = 48 * 1024;
/// The fewest tiles of rows among which the way of the next panel of B is shared out.
const FETCH_TILES: usize = 4;
/// Threads that a system mostly gives cores of the same kind.
const FEW_THREADS: usize = 4;

/// A product whose B, output and epilogue are known; A comes block by block.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) b: &'a PackedB,
    pub(crate) packed: &'a [f32],
    /// k = taps * run.
    pub(crate) taps: usize,
    pub(crate) run: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) finish: Finish,
    pub(crate) c: SharedMut,
    pub(crate) ldc: usize,
    /// Whether to add to c instead of overwriting it.
    pub(crate) accumulate: bool,
}

impl<'a> Product<'a> {
    pub(crate) fn new(
        b: &'a PackedB,
        taps: usize,
        bias: Option<&'a [f32]>,
        epi: &Epilogue<'a>,
        c: SharedMut,
        ldc: usize,
    ) -> Product<'a> {
        let residual = match epi.residual {
            Residual::None => None,
            Residual::BeforeActivation(r) | Residual::AfterActivation(r) => Some(r),
        };
        let finish = Finish::new(1.0, bias.is_some(), epi);
        let run = b.k() / taps;
        Product {
            b,
            packed: b.packed(),
            taps,
            run,
            bias,
            residual,
            finish,
            c,
            ldc,
            accumulate: false,
        }
    }
}

/// Where a block's rows of A are.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    /// Row i is at `a + i * lda`; one tap.
    Dense { a: *const f32, lda: usize },
    /// For each tile, `taps` times its rows' pointers: tile by tile as [`tiles`] cuts them.
    Table(*const *const f32),
}

/// `m` rows cut into tiles of nearly equal height, at most `mr`: (first row, rows).
#[inline(always)]
pub(crate) fn tiles(m: usize, mr: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = m.div_ceil(mr).max(1);
    let (height, taller) = (m / count, m % count);
    (0..count).map(move |i| (i * height + i.min(taller), height + usize::from(i < taller)))
}

/// How a product of `m` rows is cut into tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    m: usize,
    panels: usize,
    row_blocks: usize,
    panel_blocks: usize,
}

impl Split {
    pub(crate) fn new(m: usize, b: &PackedB, threads: usize) -> Split {
        let (mr, _) = b.tile();
        let panels = b.panels();
        let depth = b.k().clamp(1, kc(b.isa()));
        let most = (A_BLOCK_BYTES / (4 * depth) / mr * mr).clamp(mr, 32 * mr);
        let mut row_blocks = m.div_ceil(most).max(1);
        let mut panel_blocks = 1;
        let macs = m * b.n() * b.k();
        // Many threads are seldom equally fast: with more tasks they end together. Where rows are few,
        // all of them would be read again too often.
        let each = if threads > FEW_THREADS && m >= 8 * threads * mr { 8 } else { 4 };
        let wanted = if threads == 1 { 1 } else { (each * threads).min(macs / TASK_MACS) };
        if row_blocks < wanted && b.skips && b.bytes() <= SHARED_B_BYTES {
            // Rows first: rows that skip zeros should meet many columns.
            row_blocks = row_blocks.max(wanted.min(m / (2 * mr)));
        }
        if row_blocks < wanted {
            // Columns first: it keeps each thread on its own part of B. Then rows.
            panel_blocks = wanted.div_ceil(row_blocks).min(panels).max(1);
            let rows = wanted.div_ceil(panel_blocks);
            row_blocks = row_blocks.max(rows.min(m.div_ceil(mr)));
        }
        Split { m, panels, row_blocks, panel_blocks }
    }

    pub(crate) fn tasks(&self) -> usize {
        self.row_blocks * self.panel_blocks
    }

    /// The most rows of any task.
    pub(crate) fn block_rows(&self) -> usize {
        self.m.div_ceil(self.row_blocks)
    }

    /// The rows and panels of a task.
    pub(crate) fn part(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let cut = |len: usize, parts: usize, i: usize| {
            let (each, more) = (len / parts, len % parts);
            let start = i * each + i.min(more);
            start..start + each + usize::from(i < more)
        };
        let (row, panel) = (task / self.panel_blocks, task % self.panel_blocks);
        (cut(self.m, self.row_blocks, row), cut(self.panels, self.panel_blocks, panel))
    }
}

/// Depth of a block of K. A panel of B that deep stays in the first-level cache or just outgrows
/// it: it is read in order, so that it comes from the second level in time, and deeper blocks
/// load and store the output less often.
fn kc(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Amx | Isa::Avx2 | Isa::Avx2Vnni => 384,
        _ => 512,
    }
}

/// Some rows times some panels, on one thread.
pub(crate) struct Block<'a> {
    pub(crate) product: &'a Product<'a>,
    pub(crate) rows: Rows,
    /// How many rows, and where in c the first goes.
    pub(crate) m: usize,
    pub(crate) first_row: usize,
    pub(crate) panels: Range<usize>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.product;
        let depth = kc(p.b.isa());
        if self.m == 0 {
            return;
        }
        if p.b.skips && skip::pays(s, &self) {
            return s.call(Skipping(&self));
        }
        if p.run > depth {
            let parts = p.run.div_ceil(depth);
            let each = p.run.div_ceil(parts).next_multiple_of(8);
            for tap in 0..p.taps {
                let mut start = 0;
                while start < p.run {
                    let end = p.run.min(start + each);
                    self.depth_block(s, tap..tap + 1, start..end);
                    start = end;
                }
            }
        } else {
            let most = (depth / p.run.max(1)).max(1);
            let each = p.taps.div_ceil(p.taps.div_ceil(most).max(1)).max(1);
            let mut tap = 0;
            while tap < p.taps {
                let end = p.taps.min(tap + each);
                self.depth_block(s, tap..end, 0..p.run);
                tap = end;
            }
        }
    }
}

/// Of a panel of `rows` rows of B, how many each of the tiles of `m` rows asks for while the panel
/// before is multiplied. None if the tiles are too few to keep requests apart.
pub(crate) fn fetched(m: usize, mr: usize, rows: usize) -> usize {
    let tiles = m.div_ceil(mr);
    if tiles < FETCH_TILES { 0 } else { rows.div_ceil(tiles) }
}

/// Whether rows so far apart share their places in the first-level cache: a tile's rows, of which
/// each step reads an element, then drive each other out.
fn collide(lda: usize) -> bool {
    (lda * size_of::<f32>()).is_multiple_of(2048)
}

thread_local! {
    /// The copy of a block's rows. Kept for the thread's life: no product allocates twice.
    static COPY: RefCell<AlignedBuffer> = RefCell::new(AlignedBuffer::zeroed(0));
}

/// Copies elements `run` of `m` rows into a buffer of this thread, at a distance that does not
/// [`collide`]. The copy lives until this thread's next one.
///
/// # Safety
/// The rows `lda` apart from `a` on have these elements.
unsafe fn copy_rows(a: *const f32, lda: usize, m: usize, run: Range<usize>) -> Rows {
    let distance = run.len().next_multiple_of(16) + 16;
    let copy = COPY.with_borrow_mut(|copy| {
        if copy.as_slice().len() < m * distance {
            *copy = AlignedBuffer::zeroed(m * distance);
        }
        copy.as_mut_slice().as_mut_ptr()
    });
    for row in 0..m {
        // SAFETY: the caller's contract; the copy has `distance` elements per row.
        unsafe {
            let from = a.add(row * lda + run.start);
            std::ptr::copy_nonoverlapping(from, copy.add(row * distance), run.len());
        }
    }
    Rows::Dense { a: copy, lda: distance }
}

impl Block<'_> {
    #[inline(always)]
    fn depth_block<S: Simd>(&self, s: S, taps: Range<usize>, run: Range<usize>) {
        let p = self.product;
        let nr = S::TILE.1 * S::LANES;
        let n = p.b.n();
        let finishes = taps.end == p.taps && run.end == p.run;
        // Where the copy of the rows, if there is one, has this depth.
        let (rows, offset) = match self.rows {
            Rows::Dense { a, lda } if self.m > 1 && self.panels.len() > 3 && collide(lda) => {
                // SAFETY: the block has these rows, each with elements `run`.
                (unsafe { copy_rows(a, lda, self.m, run.clone()) }, 0)
            }
            rows => (rows, run.start),
        };
        // A smaller B stays in the second-level cache.
        let large = p.b.bytes() > SHARED_B_BYTES;
        for panel in self.panels.clone() {
            let column = panel * nr;
            let columns = nr.min(n - column);
            let nv = columns.div_ceil(S::LANES);
            let depth = taps.start * p.run + run.start;
            let b = &p.packed[panel * nr * p.b.k() + depth * nv * S::LANES..];
            assert!(b.len() >= (taps.len() - 1) * p.run * nv * S::LANES);
            let bias = p.bias.map_or(std::ptr::null(), |bias| bias[column..][..columns].as_ptr());
            let (following, its_depth) = match panel + 1 < self.panels.end {
                true => (panel + 1, depth),
                false => (self.panels.start, depth + taps.len() * run.len()),
            };
            let its_width = nr.min((n - following * nr).next_multiple_of(S::LANES));
            let next = following * nr * p.b.k() + its_depth * its_width;
            let next = p.packed.as_ptr().wrapping_add(next);
            let fetches = large && its_depth < p.b.k();
            let fetched = if fetches { fetched(self.m, S::TILE.0, run.len()) } else { 0 };
            for (index, (row, mr)) in tiles(self.m, S::TILE.0).enumerate() {
                let at = (self.first_row + row) * p.ldc + column;
                let mut dense = [std::ptr::null(); 16];
                let rows = match rows {
                    Rows::Dense { a, lda } => {
                        for (r, pointer) in dense.iter_mut().enumerate().take(mr) {
                            // SAFETY: the block has these rows.
                            *pointer = unsafe { a.add((row + r) * lda) };
                        }
                        dense.as_ptr()
                    }
                    // SAFETY: the table has taps pointers for each row, tile by tile.
                    Rows::Table(table) => unsafe { table.add(row * p.taps + taps.start * mr) },
                };
                let tile = Tile {
                    rows,
                    taps: taps.len(),
                    run: run.len(),
                    offset,
                    b: b.as_ptr(),
                    next: next.wrapping_add(index * taps.len() * fetched * nv * S::LANES),
                    fetched,
                    to: Destination {
                        // SAFETY: rows first_row .. first_row + m of c exist and are this block's.
                        c: unsafe { p.c.ptr().add(at) },
                        ldc: p.ldc,
                        bias,
                        residual: p.residual.map_or(std::ptr::null(), |r| r[at..].as_ptr()),
                        tail: columns - (nv - 1) * S::LANES,
                        accumulate: depth > 0 || p.accumulate,
                        finish: finishes.then_some(&p.finish),
                    },
                };
                call_tile(s, mr, nv, tile);
            }
        }
    }
}

// Conditions on the instruction set are `const`: where they are false, nothing is compiled.
#[inline(always)]
pub(crate) fn call_tile<S: Simd>(s: S, mr: usize, nv: usize, tile: Tile<'_>) {
    match nv {
        1 => call_height::<S, 1>(s, mr, tile),
        2 => call_height::<S, 2>(s, mr, tile),
        3 if const { S::TILE.1 >= 3 } => call_height::<S, 3>(s, mr, tile),
        _ if const { S::TILE.1 >= 4 } => call_height::<S, 4>(s, mr, tile),
        _ => unreachable!("a panel has at most TILE.1 vectors"),
    }
}

#[inline(always)]
fn call_height<S: Simd, const NV: usize>(s: S, mr: usize, tile: Tile<'_>) {
    match mr {
        1 => s.call(Micro::<1, NV, 4, false>(tile)),
        2 => s.call(Micro::<2, NV, 2, false>(tile)),
        3 => s.call(Micro::<3, NV, 2, false>(tile)),
        4 => call_fetching::<S, 4, NV>(s, tile),
        5 if const { S::TILE.0 >= 5 } => call_fetching::<S, 5, NV>(s, tile),
        6 if const { S::TILE.0 >= 6 } => call_fetching::<S, 6, NV>(s, tile),
        7 if const { S::TILE.0 >= 7 } => call_fetching::<S, 7, NV>(s, tile),
        8 if const { S::TILE.0 >= 8 } => call_fetching::<S, 8, NV>(s, tile),
        9 if const { S::TILE.0 >= 9 } => call_fetching::<S, 9, NV>(s, tile),
        10 if const { S::TILE.0 >= 10 } => call_fetching::<S, 10, NV>(s, tile),
        11 if const { S::TILE.0 >= 11 } => call_fetching::<S, 11, NV>(s, tile),
        12 if const { S::TILE.0 >= 12 } => call_fetching::<S, 12, NV>(s, tile),
        _ => unreachable!("a tile has 1 to TILE.0 rows"),
    }
}

/// A tile that asks for the next panel of B meanwhile, or does not.
#[inline(always)]
fn call_fetching<S: Simd, const MR: usize, const NV: usize>(s: S, tile: Tile<'_>) {
    // Of several tiles (see `FETCH_TILES`), none is much lower than the highest.
    if const { S::PREFETCHES && 3 * MR >= 2 * S::TILE.0 } && tile.fetched > 0 {
        s.call(Micro::<MR, NV, 1, true>(tile));
    } else {
        s.call(Micro::<MR, NV, 1, false>(tile));
    }
}
