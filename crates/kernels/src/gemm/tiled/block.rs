//! Rows of converted numbers times panels of B, on one thread.

use std::cell::RefCell;
use std::ops::Range;

use super::convert::split_panel;
use super::{LINE, PANEL, PackedTiles, Panel, Terms};
use crate::activation::{Epilogue, Residual};
use crate::aligned::{AlignedBuffer, SharedMut};
use crate::amx::{SIDE, Sums, TILE, Tiles};
use crate::gemm::micro::{self, Destination, Finish};
use crate::simd::{Kernel, Simd};

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
    /// Whether all converted numbers are finite.
    pub(crate) finite: bool,
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

thread_local! {
    /// The terms of a panel that is kept as numbers, or nothing while they are in use. Kept for the
    /// thread's life: no product allocates twice.
    static TERMS: RefCell<AlignedBuffer> = RefCell::new(AlignedBuffer::zeroed(0));
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if !self.product.b.compact {
            return self.multiply(s, &mut []);
        }
        let mut terms = TERMS.replace(AlignedBuffer::zeroed(0));
        let b = self.product.b;
        let len = self.offsets.len() * self.steps.len() * b.terms as usize * 2 * TILE;
        if terms.as_slice().len() < len {
            terms = AlignedBuffer::zeroed(len);
        }
        self.multiply(s, terms.as_mut_slice());
        TERMS.set(terms);
    }
}

impl Block<'_> {
    /// `split` has room for the terms of a panel that is kept as numbers.
    #[inline(always)]
    fn multiply<S: Simd>(mut self, s: S, split: &mut [f32]) {
        let mut sums = self.sums.take();
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
        let runs = self.offsets.len();
        let steps = runs * self.steps.len();
        assert!(self.steps.len() == p.b.steps() || runs == 1, "blocks of k are of a matrix");
        assert!(runs == p.b.runs, "an offset for each run");
        // What of a panel is multiplied, and the panel's width in tiles.
        let part = |panel: usize| {
            let Panel { start, tiles } = p.b.panel(panel);
            let step_len = tiles * p.b.per_tile();
            let b = &p.b.data.as_slice()[start + self.steps.start * step_len..];
            (&b[..steps * step_len], tiles)
        };
        for (index, panel) in self.panels.clone().enumerate() {
            let (b, columns) = part(panel);
            let b = match p.b.compact {
                false => b,
                true => {
                    split_panel(s, p.b.terms, columns, b, split);
                    &split[..steps * terms * columns * TILE]
                }
            };
            // The next panel is asked for meanwhile, in equal shares.
            let next = if panel + 1 < self.panels.end { part(panel + 1).0 } else { &[] };
            let next_lines = next.len() / LINE;
            let share = next_lines.div_ceil(row_tiles.div_ceil(2) * steps);
            for tile in (0..row_tiles).step_by(2) {
                let asked = tile / 2 * share * steps;
                let rows = (row_tiles - tile).min(2);
                let task = Sums {
                    a: [at(tile), at(tile + rows - 1)],
                    stride: self.stride * size_of::<f32>(),
                    offsets: self.offsets,
                    steps: self.steps.len(),
                    b: b.as_ptr(),
                    c: own.0.as_mut_ptr(),
                    next: next.as_ptr().wrapping_add(asked * LINE).cast(),
                    next_lines: if asked < next_lines { share } else { 0 },
                };
                // SAFETY: whoever builds a block guarantees its rows; `b` has these steps.
                unsafe {
                    match self.finite || p.b.terms == Terms::One {
                        true => tiles.multiply(terms, rows, columns, &task),
                        false => multiply_numbers(s, terms, rows, columns, &task),
                    }
                }
                let len = rows * columns * TILE;
                let c = match &mut sums {
                    None => own.0.as_ptr(),
                    Some(sums) => {
                        let sums = &mut sums[(index * row_tiles + tile) * 2 * TILE..][..len];
                        match self.steps.start {
                            0 => sums.copy_from_slice(&own.0[..len]),
                            // Sums of sums err less than one long sum.
                            _ => add(s, &own.0[..len], sums),
                        }
                        sums.as_ptr()
                    }
                };
                if last {
                    for row in 0..rows {
                        let sums = c.wrapping_add(row * columns * TILE);
                        self.finish(s, &finish, panel, columns, tile + row, sums);
                    }
                }
            }
        }
    }

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
            let to = Destination {
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
                    (GROUP, 1) => store::<S, GROUP, 1>(s, &to, sums),
                    (GROUP, _) => store::<S, GROUP, 2>(s, &to, sums),
                    (rows, 1) => {
                        for row in 0..rows {
                            store::<S, 1, 1>(s, &to.down(row), sums.add(row * LINE));
                        }
                    }
                    (rows, _) => {
                        for row in 0..rows {
                            store::<S, 1, 2>(s, &to.down(row), sums.add(row * LINE));
                        }
                    }
                }
            }
            (row, x) = (row + rows, x + rows);
        }
    }
}

/// Adds whole lines of `more` to `sums`.
#[inline(always)]
fn add<S: Simd>(s: S, more: &[f32], sums: &mut [f32]) {
    for (sums, more) in sums.chunks_exact_mut(LINE).zip(more.chunks_exact(LINE)) {
        // SAFETY: a line has LANES elements.
        unsafe {
            let sum = s.add(s.load(sums.as_ptr()), s.load(more.as_ptr()));
            s.store(sums.as_mut_ptr(), sum);
        }
    }
}

/// [`Tiles::multiply`] for rows with infinite numbers: a number that is one in a term is none in
/// another's product, so terms are added up again first.
///
/// # Safety
/// As [`Tiles::multiply`].
#[inline(never)]
unsafe fn multiply_numbers<S: Simd>(s: S, terms: usize, rows: usize, columns: usize, t: &Sums<'_>) {
    // The numbers of a word, from its terms `apart` elements from each other.
    let numbers = |at: *const f32, apart: usize, load: &dyn Fn(*const f32) -> S::V| {
        let mut sums = s.widen(load(at));
        for term in 1..terms {
            let more = s.widen(load(at.wrapping_add(term * apart)));
            sums = [s.add(sums[0], more[0]), s.add(sums[1], more[1])];
        }
        sums
    };
    for row in 0..rows * SIDE {
        for column in 0..columns {
            let c = t.c.wrapping_add((row / SIDE * columns + column) * TILE + row % SIDE * LINE);
            // SAFETY: the caller's contract: A has these rows, B and c these tiles.
            unsafe {
                let mut sum = s.splat(0.0);
                for (run, &offset) in t.offsets.iter().enumerate() {
                    let a = t.a[row / SIDE].wrapping_add(row % SIDE * t.stride);
                    let a = a.wrapping_offset(offset).cast::<f32>();
                    for step in 0..t.steps {
                        let a = a.wrapping_add(step * terms * LINE);
                        let b = (run * t.steps + step) * terms * columns * TILE + column * TILE;
                        for i in 0..SIDE {
                            let a = numbers(a.wrapping_add(i), LINE, &|a| s.splat(*a));
                            let at = t.b.wrapping_add(b + i * LINE);
                            let b = numbers(at, columns * TILE, &|b| s.load(b));
                            sum = s.mul_add(a[0], b[0], s.mul_add(a[1], b[1], sum));
                        }
                    }
                }
                s.store(c, sum);
            }
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
unsafe fn store<S: Simd, const R: usize, const NV: usize>(
    s: S,
    to: &Destination<'_>,
    sums: *const f32,
) {
    let mut acc = [[s.splat(0.0); NV]; R];
    for (row, acc) in acc.iter_mut().enumerate() {
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *acc = unsafe { s.load(sums.add(v * TILE + row * LINE)) };
        }
    }
    // SAFETY: the caller's contract.
    unsafe { micro::store::<S, R, NV>(s, to, acc) };
}

/// A tile's sums on the stack, on cache lines of their own.
#[repr(align(64))]
struct Lines([f32; 4 * TILE]);
