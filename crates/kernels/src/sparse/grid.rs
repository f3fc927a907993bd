//! Positions: where the pixels of all images lie so that each tap of a convolution is a constant
//! number of whole vectors away.
//!
//! Every lane has a part of the images for itself: some of them, and a rectangle of each, with the
//! pixels around it that the convolution reads. A *position* is a place in these rectangles, one
//! vector for all lanes: a tap's input lies at position + shift of a plane, never astride two
//! vectors as that of neighbours in one vector would. With step 1 there is one plane, the padded
//! input. With larger steps there is a plane for each remainder of the input's rows and columns
//! that taps use.
//!
//! A *band* is one row of tiles of one rectangle; strips are cut between bands. Where the lanes share
//! out one image, all of them may finish its upper half before they begin the lower one: a thread
//! that has one half then reads what it wrote itself in the operator before.

use std::ops::Range;

use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;

/// The most vectors in a tile: as many independent sums of a row of weights..
pub(crate) const TILE_VECTORS: usize = 8;
/// ..and where there are registers for more.
pub(crate) const WIDE_VECTORS: usize = 16;
/// Floats of an input or output that the caches near a processor do not hold.
pub(crate) const FAR_LEN: usize = 1 << 20;
/// Floats of a slab that should stay in the second-level cache.
const SLAB_LEN: usize = 256 * 1024;
/// Floats that a tile reads of a block of channels: they should stay in the first-level cache..
const BLOCK_LEN: usize = 12 * 1024;
/// ..but with a single tap the second-level cache is the lesser evil, up to a point: short rows of
/// weights cost more.
const POINTWISE_BLOCK_LEN: usize = 32 * 1024;
/// Offsets in vectors, which are kept in 16 bits, are below this.
pub(crate) const OFFSETS: usize = 1 << 16;
/// Of 16 weights, those that a layout is chosen for.
const LIKELY_NONZERO: usize = 2;
/// Of the cost of a grid, the part that whole images cost more where halves would keep two threads
/// apart.
const WHOLE_COST: usize = 24;
/// Floats of sums that stay in the first-level cache beside a block.
const SUMS_LEN: usize = 8 * 1024;
/// What beginning a row of weights costs in units of loading a vector.
const ROW_COST: usize = 40;
/// What transposing a vector costs in units of loading one.
pub(crate) const TRANSPOSE_COST: usize = 16;

/// What a tap is on the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tap {
    pub(crate) plane: usize,
    pub(crate) shift: usize,
}

/// Rows below and columns beside an output's place that its taps reach.
pub(crate) fn reach(params: &Conv2dParams) -> [usize; 2] {
    [0, 1].map(|i| (params.kernel[i] - 1) * params.dilation[i] / params.stride[i])
}

/// The remainders of the input's rows and columns that taps use, each a plane, and where the taps
/// are on planes with rows of `pitch`.
pub(crate) fn planes_and_taps(
    params: &Conv2dParams,
    pitch: usize,
) -> Option<(Vec<[usize; 2]>, Vec<Tap>)> {
    let [sy, sx] = params.stride;
    let (mut planes, mut taps) = (Vec::new(), Vec::new());
    for ky in 0..params.kernel[0] {
        for kx in 0..params.kernel[1] {
            let (dy, dx) = (ky * params.dilation[0], kx * params.dilation[1]);
            let remainder = [dy % sy, dx % sx];
            let known = planes.iter().position(|&p| p == remainder);
            let plane = known.unwrap_or_else(|| {
                planes.push(remainder);
                planes.len() - 1
            });
            taps.push(Tap { plane, shift: (dy / sy).checked_mul(pitch)? + dx / sx });
        }
    }
    Some((planes, taps))
}

/// How wide tiles of at most `most` are that share out `len` evenly.
pub(crate) fn even_width(len: usize, most: usize) -> usize {
    len.div_ceil(len.div_ceil(most).max(1)).max(1)
}

/// What a layout is chosen for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Floats of each position of a strip and its lanes.
    pub(crate) channels: usize,
    /// Weights that a tile meets, zeros included, and the rows they are in.
    pub(crate) weights: usize,
    pub(crate) rows: usize,
    /// What a position of a strip costs in loads of a vector.
    pub(crate) position: usize,
}

/// Positions of a convolution over images of one size, and how they are cut into tiles.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    pub(crate) geometry: Geometry,
    pub(crate) lanes: usize,
    /// How many lanes share out the images, the rows and the columns.
    across: [usize; 3],
    /// Into how many parts of its height an image is cut, as a power of two.
    cuts: u32,
    /// Output rows and columns of a lane's rectangle.
    rectangle: [usize; 2],
    /// Where the lanes' first rectangles begin: image, output row and column.
    pub(crate) corners: Vec<Place>,
    /// Rows and columns of a tile: a vector for each.
    pub(crate) tile: [usize; 2],
    /// Bands of a rectangle, and tiles of a band.
    bands: usize,
    pub(crate) tiles: usize,
    /// Rows below and columns beside a tile that taps reach.
    reach: [usize; 2],
    /// Whether a position is a pixel of input and of output at once: lanes are then neighbours, and
    /// tiles follow each other.
    flat: bool,
    /// Positions of a row, and rows of a rectangle, on every plane.
    pub(crate) pitch: usize,
    rows: usize,
    /// Row and column remainders of each plane.
    pub(crate) planes: Vec<[usize; 2]>,
    pub(crate) taps: Vec<Tap>,
    /// The most bands of a strip, and how many positions of each channel and plane a slab has.
    pub(crate) strip: usize,
    pub(crate) slab: usize,
}

impl Grid {
    /// For convolutions of `images` (number, height, width; the number is a hint) with vectors of
    /// `lanes`, of which a tile has `most`. `None` if positions of a channel do not fit 16 bits.
    pub(crate) fn new(
        params: &Conv2dParams,
        images: [usize; 3],
        [lanes, most]: [usize; 2],
        load: Load,
    ) -> Option<Grid> {
        let [n, h, w] = images;
        let [oh, ow] = params.output_size(h, w);
        let geometry = Geometry { params: *params, h, w, oh, ow };
        if params.taps() == 1 && [h, w, oh, ow] == [1; 4] && params.pads == [0; 4] {
            let vectors = n.div_ceil(lanes).max(1);
            let width = even_width(vectors, most);
            let across = [lanes, 1, 1];
            return Grid::cut(geometry, lanes, across, 0, [1, width], n, load.channels, true);
        }
        let powers = || (0..=lanes.ilog2()).map(|p| 1usize << p);
        let mut best: Option<(usize, Grid)> = None;
        for images in powers().filter(|&i| i < 2 * n.max(1)) {
            for columns in powers().filter(|&c| images * c <= lanes) {
                let across = [images, lanes / images / columns, columns];
                let wide = ow.div_ceil(columns).max(1);
                for (cuts, rows) in [0, 1].into_iter().flat_map(|c| [1, 2, 4].map(|t| (c, t))) {
                    // Four rows only of wide tiles.
                    if most / rows < 4 {
                        continue;
                    }
                    let tile = [rows, even_width(wide, most / rows)];
                    let channels = load.channels;
                    let Some(grid) =
                        Grid::cut(geometry, lanes, across, cuts, tile, n, channels, false)
                    else {
                        continue;
                    };
                    let mut cost = grid.cost(n, load);
                    if n <= across[0] && cuts == 0 {
                        cost += cost / WHOLE_COST;
                    }
                    if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                        best = Some((cost, grid));
                    }
                }
            }
        }
        best.map(|(_, grid)| grid)
    }

    /// Makes strips as long as fit `floats` of a slab of so many channels, and the slab for them; at
    /// most `most` bands, at least one.
    pub(crate) fn cut_strips(&mut self, most: usize, channels: usize, floats: usize) {
        let position = channels * self.planes.len() * self.lanes;
        let fits = |&strip: &usize| self.longest_slab(strip) * position <= floats;
        self.strip = (2..=most).rev().find(fits).unwrap_or(1);
        self.slab = self.longest_slab(self.strip);
        if !self.flat {
            // An odd number of cache lines: channels spread over the cache's sets.
            self.slab |= 1;
        }
    }

    /// The grid whose lanes share out the images so, and whose tiles have these rows and columns.
    pub(crate) fn cut(
        geometry: Geometry,
        lanes: usize,
        across: [usize; 3],
        cuts: u32,
        tile: [usize; 2],
        n: usize,
        channels: usize,
        flat: bool,
    ) -> Option<Grid> {
        let Geometry { params, oh, ow, .. } = geometry;
        let reach = reach(&params);
        let rectangle = [oh.div_ceil(1 << cuts).div_ceil(across[1]), ow.div_ceil(across[2])];
        let [_, down, right] = across;
        let corner = |lane: usize| Place {
            image: lane / (down * right),
            row: lane / right % down * rectangle[0],
            column: lane % right * rectangle[1],
        };
        let corners = (0..lanes).map(corner).collect();
        let bands = rectangle[0].div_ceil(tile[0]).max(1);
        let tiles = if flat { 1 } else { rectangle[1].div_ceil(tile[1]).max(1) };
        let pitch = if flat { 1 } else { tiles.checked_mul(tile[1])?.checked_add(reach[1])? };
        let rows = (bands * tile[0]).checked_add(reach[0])?;
        let (planes, taps) = planes_and_taps(&params, pitch)?;
        let mut grid = Grid {
            geometry,
            lanes,
            across,
            cuts,
            rectangle,
            corners,
            tile,
            bands,
            tiles,
            reach,
            flat,
            pitch,
            rows,
            planes,
            taps,
            strip: 1,
            slab: 0,
        };
        let most = if flat { 1 } else { grid.all_bands(n.max(1)) };
        grid.cut_strips(most, channels, SLAB_LEN);
        (grid.slab.checked_mul(grid.planes.len())? <= OFFSETS).then_some(grid)
    }

    /// About what a run costs, in loads of a vector.
    fn cost(&self, n: usize, load: Load) -> usize {
        let bands = self.all_bands(n.max(1));
        let vectors = self.tile[0] * self.tile[1];
        let blocks = load.channels.div_ceil(self.block_channels());
        // Sums of several blocks are fetched and stored again, maybe in the second-level cache.
        let far = if load.rows * self.tile_len() > SUMS_LEN { 3 } else { 1 };
        let row = ROW_COST + if blocks > 1 { 2 * far * vectors } else { 0 };
        let tile = (vectors + 2) * load.weights * LIKELY_NONZERO / 16 + load.rows * blocks * row;
        let positions = bands.div_ceil(self.strip) * self.slab * self.planes.len();
        bands * self.tiles * tile + positions * load.position
    }

    /// Whether pixels stand for themselves alone, one after the other.
    pub(crate) fn is_flat(&self) -> bool {
        self.flat
    }

    /// Bands of n images.
    pub(crate) fn all_bands(&self, n: usize) -> usize {
        let g = &self.geometry;
        let each = n.div_ceil(self.across[0]);
        match g.oh * g.ow {
            0 => 0,
            _ if self.flat => each.div_ceil(self.tile[1]),
            _ => (each * self.bands) << self.cuts,
        }
    }

    /// Strips of n images, at least.
    pub(crate) fn strips(&self, n: usize) -> usize {
        self.all_bands(n).div_ceil(self.strip).max(1)
    }

    /// The position of a band's first vector.
    pub(crate) fn start(&self, band: usize) -> usize {
        if self.flat {
            return band * self.tile[1];
        }
        (band / self.bands * self.rows + band % self.bands * self.tile[0]) * self.pitch
    }

    /// All positions that some bands read.
    pub(crate) fn span(&self, bands: &Range<usize>) -> Range<usize> {
        let last = bands.end.max(bands.start + 1) - 1;
        let len =
            if self.flat { self.tile[1] } else { (self.tile[0] + self.reach[0]) * self.pitch };
        self.start(bands.start)..self.start(last) + len
    }

    /// Positions that `strip` bands read at most: those that begin with a rectangle's last.
    fn longest_slab(&self, strip: usize) -> usize {
        let first = self.bands - 1;
        self.span(&(first..first + strip)).len()
    }

    /// The most positions of a tile's sums.
    pub(crate) fn tile_len(&self) -> usize {
        self.tile[0] * self.tile[1] * self.lanes
    }

    /// How many channels of the slab go into a block.
    pub(crate) fn block_channels(&self) -> usize {
        let [rows, columns] = [0, 1].map(|i| self.tile[i] + self.reach[i]);
        let read = rows * columns * self.planes.len();
        let budget = if self.taps.len() == 1 { POINTWISE_BLOCK_LEN } else { BLOCK_LEN };
        let most = OFFSETS / (self.planes.len() * self.slab);
        (budget / (read * self.lanes)).clamp(1, most.max(1))
    }

    /// The position's place in a lane's rectangles.
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

    /// Output rows of a part of an image.
    #[inline(always)]
    fn part_rows(&self) -> usize {
        self.geometry.oh.div_ceil(1 << self.cuts)
    }

    /// The image at a place of a lane's rectangles, and the first output row of its part.
    #[inline(always)]
    fn part(&self, place: &Place, corner: &Place) -> (usize, usize) {
        let image = (place.image >> self.cuts) * self.across[0] + corner.image;
        (image, (place.image & ((1 << self.cuts) - 1)) * self.part_rows())
    }

    /// The input pixel at a place of a lane's rectangle on a plane, unless it is padding.
    #[inline(always)]
    pub(crate) fn input(
        &self,
        n: usize,
        plane: usize,
        place: &Place,
        corner: &Place,
    ) -> Option<usize> {
        let (g, [ry, rx]) = (&self.geometry, self.planes[plane]);
        let [sy, sx] = g.params.stride;
        let (image, first) = self.part(place, corner);
        let y = ((first + corner.row + place.row) * sy + ry).wrapping_sub(g.params.pads[0]);
        let x = ((corner.column + place.column) * sx + rx).wrapping_sub(g.params.pads[1]);
        let there = image < n && y < g.h && x < g.w;
        there.then(|| (image * g.h + y) * g.w + x)
    }

    /// The output pixel at a place of a lane's rectangle, unless there is none.
    #[inline(always)]
    pub(crate) fn output(&self, n: usize, place: &Place, corner: &Place) -> Option<usize> {
        let g = &self.geometry;
        let (image, first) = self.part(place, corner);
        let (row, x) = (corner.row + place.row, corner.column + place.column);
        let y = first + row;
        let inside = place.row < self.rectangle[0]
            && place.column < self.rectangle[1]
            && row < self.part_rows();
        let there = inside && image < n && y < g.oh && x < g.ow;
        there.then(|| (image * g.oh + y) * g.ow + x)
    }
}

/// How strips share out the bands of a run, whole or in parts of their output channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strips {
    /// Bands in all.
    pub(crate) bands: usize,
    /// Parts of each.
    pub(crate) parts: usize,
    /// Strips.
    pub(crate) count: usize,
}

impl Strips {
    /// Where a strip begins, in parts.
    fn start(&self, strip: usize) -> usize {
        strip * self.bands * self.parts / self.count
    }

    /// The bands that a strip has parts of.
    pub(crate) fn bands_of(&self, strip: usize) -> Range<usize> {
        self.start(strip) / self.parts..self.start(strip + 1).div_ceil(self.parts)
    }

    /// Which parts of a band a strip has.
    pub(crate) fn parts_of(&self, strip: usize, band: usize) -> Range<usize> {
        let within = |part: usize| part.saturating_sub(band * self.parts).min(self.parts);
        within(self.start(strip))..within(self.start(strip + 1))
    }

    /// The most of a band's `groups` of channels that a strip has.
    pub(crate) fn most_of(&self, groups: usize) -> usize {
        let parts = (self.bands * self.parts).div_ceil(self.count).min(self.parts);
        groups.div_ceil(self.parts) * parts
    }

    /// The strip that has a band.
    pub(crate) fn with(&self, band: usize) -> usize {
        (0..self.count)
            .find(|&strip| self.bands_of(strip).contains(&band))
            .expect("strips have all bands")
    }
}

/// An image (of a lane's rectangles, a part of one), a row and a column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) image: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}
