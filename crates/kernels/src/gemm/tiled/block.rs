//! Rows of converted numbers times panels of B, on one thread.

use std::ops::Range;

use super::{LINE, PANEL, PackedTiles, Panel};
use crate::activation::{Epilogue, Residual};
use crate::aligned::SharedMut;
use crate::amx::{SIDE, Sums, TILE, Tiles};
use crate::gemm::micro::{self, Finish, Tile};
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
        let runs = self.offsets.len();
        let steps = runs * self.steps.len();
        assert!(self.steps.len() == p.b.steps() || runs == 1, "blocks of k are of a matrix");
        assert!(runs == p.b.runs, "an offset for each run");
        // What of a panel is multiplied, and the panel's width in tiles.
        let part = |panel: usize| {
            let Panel { start, tiles } = p.b.panel(panel);
            let step_len = terms * tiles * TILE;
            let b = &p.b.data.as_slice()[start + self.steps.start * step_len..];
            (&b[..steps * step_len], tiles)
        };
        for (index, panel) in self.panels.clone().enumerate() {
            let (b, columns) = part(panel);
            // The next panel is asked for meanwhile, in equal shares.
            let next = if panel + 1 < self.panels.end { part(panel + 1).0 } else { &[] };
            let next_lines = next.len() / LINE;
            let share = next_lines.div_ceil(row_tiles.div_ceil(2) * steps);
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
                    next: next.as_ptr().wrapping_add(asked * LINE).cast(),
                    next_lines: if asked < next_lines { share } else { 0 },
                };
                // SAFETY: whoever builds a block guarantees its rows; `b` has these steps.
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
