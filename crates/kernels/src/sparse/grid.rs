//! Positions: pixels of all images laid out in one line such that each tap of a convolution is a
//! constant distance away.
//!
//! Images lie below each other, rows one after the other, padding between them where the
//! convolution reads it; then output position f reads position f + shift of a plane for each tap.
//! With step 1 there is one plane, the padded input, and neighbours share their padding. With
//! larger steps there is a plane for each remainder of the input's rows and columns that taps use.

use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;

/// The most vectors in a tile: as many independent sums of a row of weights.
pub(crate) const TILE_VECTORS: usize = 8;
/// Floats of an input or output that the caches near a processor do not hold.
pub(crate) const FAR_LEN: usize = 1 << 20;
/// Floats of a slab that should stay in the second-level cache.
const SLAB_LEN: usize = 64 * 1024;
/// Floats that a tile reads of a block of channels: they should stay in the first-level cache..
const BLOCK_LEN: usize = 8 * 1024;
/// ..but with a single tap the second-level cache is the lesser evil, up to a point: short rows of
/// weights cost more.
const POINTWISE_BLOCK_LEN: usize = 32 * 1024;

/// What a tap is on the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tap {
    pub(crate) plane: usize,
    pub(crate) shift: usize,
}

/// Positions of a convolution over images of one size, and how they are cut into tiles.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    pub(crate) geometry: Geometry,
    /// Positions of a row, and rows of an image, on every plane.
    pub(crate) pitch: usize,
    pub(crate) rows: usize,
    /// Row and column remainders of each plane.
    pub(crate) planes: Vec<[usize; 2]>,
    pub(crate) taps: Vec<Tap>,
    /// Positions of a tile.
    pub(crate) tile: usize,
    /// The most tiles of a strip, and how many positions of each channel and plane a slab has.
    pub(crate) strip: usize,
    pub(crate) slab: usize,
}

impl Grid {
    /// For convolutions of `images` (number, height, width; the number is a hint) with vectors of
    /// `lanes`. `None` if offsets within a channel do not fit 16 bits.
    pub(crate) fn new(params: &Conv2dParams, [n, h, w]: [usize; 3], lanes: usize) -> Option<Grid> {
        let [oh, ow] = params.output_size(h, w);
        let geometry = Geometry { params: *params, h, w, oh, ow };
        let [sy, sx] = params.stride;
        let last = [0, 1].map(|i| (params.kernel[i] - 1) * params.dilation[i] / params.stride[i]);
        let size = |step: usize, input: usize, output: usize, before: usize, after: usize, last| {
            // A row's padding behind it is the next one's before it.
            if step == 1 { output.max(input + before.max(after)) } else { output + last }
        };
        let [top, left, bottom, right] = params.pads;
        let pitch = size(sx, w, ow, left, right, last[1]);
        let rows = size(sy, h, oh, top, bottom, last[0]);
        let mut planes = Vec::new();
        let mut taps = Vec::new();
        for ky in 0..params.kernel[0] {
            for kx in 0..params.kernel[1] {
                let (dy, dx) = (ky * params.dilation[0], kx * params.dilation[1]);
                let remainder = [dy % sy, dx % sx];
                let known = planes.iter().position(|&p| p == remainder);
                let plane = known.unwrap_or_else(|| {
                    planes.push(remainder);
                    planes.len() - 1
                });
                let shift = (dy / sy).checked_mul(pitch)?.checked_add(dx / sx)?;
                taps.push(Tap { plane, shift });
            }
        }
        let mut grid = Grid { geometry, pitch, rows, planes, taps, tile: 0, strip: 1, slab: 0 };
        let vectors = grid.positions(n.max(1)).div_ceil(lanes).max(1);
        let tiles = vectors.div_ceil(TILE_VECTORS);
        grid.tile = vectors.div_ceil(tiles) * lanes;
        let halo = grid.taps.iter().map(|t| t.shift).max().unwrap_or(0);
        let channels = params.c_in / params.groups * grid.planes.len();
        let slab_of = |tiles: usize| {
            let slab = (tiles * grid.tile + halo).next_multiple_of(16);
            // An odd number of cache lines: channels spread over the cache's sets.
            if halo > 0 && slab.is_multiple_of(32) { slab + 16 } else { slab }
        };
        let mut strip = 1;
        while halo > 0 && strip < tiles && slab_of(strip + 1) * channels <= SLAB_LEN {
            strip += 1;
        }
        (grid.strip, grid.slab) = (strip, slab_of(strip));
        (grid.slab * grid.planes.len() <= 1 << 16).then_some(grid)
    }

    /// Whether a position is a pixel of input and of output at once.
    pub(crate) fn is_flat(&self) -> bool {
        self.pitch == 1 && self.rows == 1 && self.taps.len() == 1 && self.geometry.w == 1
    }

    /// Positions from the first image's first pixel to the last one's last.
    pub(crate) fn positions(&self, n: usize) -> usize {
        let g = &self.geometry;
        match n * g.oh * g.ow {
            0 => 0,
            _ => ((n - 1) * self.rows + g.oh - 1) * self.pitch + g.ow,
        }
    }

    /// How many channels go into a block.
    pub(crate) fn block_channels(&self) -> usize {
        let mut rows: Vec<(usize, usize)> =
            self.taps.iter().map(|t| (t.plane, t.shift / self.pitch.max(1))).collect();
        rows.dedup();
        // Rows of taps read overlapping runs where a tile has several rows.
        let read = (rows.len() * (self.tile + 16)).min(self.planes.len() * self.slab);
        let budget = if self.taps.len() == 1 { POINTWISE_BLOCK_LEN } else { BLOCK_LEN };
        (budget / read).clamp(1, (1 << 16) / (self.planes.len() * self.slab))
    }

    /// The position's image, and row and column on the grid.
    pub(crate) fn place(&self, position: usize) -> Place {
        let (row, column) = (position / self.pitch, position % self.pitch);
        Place { image: row / self.rows, row: row % self.rows, column }
    }

    /// Moves to the next position.
    #[inline(always)]
    pub(crate) fn advance(&self, place: &mut Place) {
        place.column += 1;
        if place.column == self.pitch {
            place.column = 0;
            place.row += 1;
            if place.row == self.rows {
                place.row = 0;
                place.image += 1;
            }
        }
    }

    /// The input pixel at a place of a plane, unless it is padding.
    #[inline(always)]
    pub(crate) fn input(&self, n: usize, plane: usize, place: &Place) -> Option<usize> {
        let (g, [ry, rx]) = (&self.geometry, self.planes[plane]);
        let y = (place.row * g.params.stride[0] + ry).wrapping_sub(g.params.pads[0]);
        let x = (place.column * g.params.stride[1] + rx).wrapping_sub(g.params.pads[1]);
        let there = place.image < n && y < g.h && x < g.w;
        there.then(|| (place.image * g.h + y) * g.w + x)
    }

    /// The output pixel at a place, unless there is none.
    #[inline(always)]
    pub(crate) fn output(&self, n: usize, place: &Place) -> Option<usize> {
        let g = &self.geometry;
        let there = place.image < n && place.row < g.oh && place.column < g.ow;
        there.then(|| (place.image * g.oh + place.row) * g.ow + place.column)
    }
}

/// A position, taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) image: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}
