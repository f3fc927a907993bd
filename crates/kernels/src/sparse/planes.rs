//! Padded planes: an image's rows one after the other with the pixels around them that a
//! convolution reads, lanes being neighbours.
//!
//! A *strip* is some output rows of an image. An output pixel's *element* is its row in the strip
//! times `pitch` plus its column; each tap's input lies a constant number of elements further, in
//! the plane of its remainder where steps are larger than 1. Rows are as long as the padded input,
//! so that a few elements of each stand for no output pixel: nobody looks at their results.

use crate::aligned::SharedMut;
use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;
use crate::simd::{Kernel, MAX_LANES, Simd};
use crate::sparse::grid::{OFFSETS, planes_and_taps, reach};
use crate::sparse::slab::square;

/// No column of the image.
const NONE: u32 = u32::MAX;

/// The layout of a convolution over images of one size.
#[derive(Clone, Debug)]
pub(crate) struct Planes {
    pub(crate) geometry: Geometry,
    pub(crate) lanes: usize,
    /// The most output rows of a strip.
    pub(crate) rows: usize,
    /// Elements from row to row.
    pub(crate) pitch: usize,
    /// Rows below an output's that its taps reach.
    reach: usize,
    /// Row and column remainders of each plane.
    remainders: Vec<[usize; 2]>,
    /// Elements from an output's to each tap's input, planes one after the other.
    pub(crate) taps: Vec<usize>,
    /// Vectors of a plane.
    pub(crate) len: usize,
    /// Of each plane and element of a row the image's column, or [`NONE`].
    columns: Vec<u32>,
}

/// Output rows of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip {
    pub(crate) image: usize,
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

impl Planes {
    /// For strips of at most `rows` output rows; `None` where a tap is too far for 16 bits.
    pub(crate) fn new(
        params: &Conv2dParams,
        [h, w]: [usize; 2],
        lanes: usize,
        rows: usize,
    ) -> Option<Planes> {
        let [oh, ow] = params.output_size(h, w);
        let geometry = Geometry { params: *params, h, w, oh, ow };
        let [reach, beside] = reach(params);
        let pitch = ow.checked_add(beside)?;
        let (remainders, taps) = planes_and_taps(params, pitch)?;
        let outputs = rows.checked_mul(pitch)?.next_multiple_of(lanes);
        let len = (outputs + reach.checked_mul(pitch)? + beside).div_ceil(lanes);
        if remainders.len().checked_mul(len)?.checked_mul(lanes)? > OFFSETS {
            return None;
        }
        let column = |[_, remainder]: &[usize; 2], i: usize| {
            let column = (i * params.stride[1] + remainder).wrapping_sub(params.pads[1]);
            if column < w { column as u32 } else { NONE }
        };
        let columns = remainders.iter().flat_map(|r| (0..pitch).map(|i| column(r, i))).collect();
        let taps = taps.into_iter().map(|tap| tap.plane * len * lanes + tap.shift).collect();
        Some(Planes { geometry, lanes, rows, pitch, reach, remainders, taps, len, columns })
    }

    /// Planes of a channel.
    pub(crate) fn count(&self) -> usize {
        self.remainders.len()
    }

    /// Vectors that `rows` output rows fill.
    pub(crate) fn vectors(&self, rows: usize) -> usize {
        (rows * self.pitch).div_ceil(self.lanes)
    }

    /// The first of the vectors of a strip's plane that have pixels of the image, and their number.
    pub(crate) fn span(&self, strip: Strip, plane: usize) -> (usize, usize) {
        let rows = strip.rows + self.reach;
        let there = |row: &usize| self.line(strip, plane, *row).is_some();
        let first = (0..rows).find(there).unwrap_or(rows);
        let last = (first..rows).rev().find(there).map_or(first, |row| row + 1);
        let start = first * self.pitch / self.lanes;
        (start, (last * self.pitch).div_ceil(self.lanes).saturating_sub(start))
    }

    /// The first pixel of the image's row that is row `row` of a strip's plane.
    fn line(&self, strip: Strip, plane: usize, row: usize) -> Option<usize> {
        let g = &self.geometry;
        let y = (strip.first + row) * g.params.stride[0] + self.remainders[plane][0];
        let y = y.wrapping_sub(g.params.pads[0]);
        (row < strip.rows + self.reach && y < g.h).then(|| (strip.image * g.h + y) * g.w)
    }

    /// The output pixel that an element of a strip stands for.
    #[inline(always)]
    pub(crate) fn output(&self, strip: Strip, element: usize) -> Option<usize> {
        let g = &self.geometry;
        let (row, column) = (element / self.pitch, element % self.pitch);
        let there = row < strip.rows && column < g.ow;
        there.then(|| (strip.image * g.oh + strip.first + row) * g.ow + column)
    }
}

/// Transposes a strip's input into planes: [channel][plane][element].
pub(crate) struct Fill<'a> {
    pub(crate) planes: &'a Planes,
    pub(crate) strip: Strip,
    pub(crate) x: &'a [f32],
    /// As many zeros as there are channels.
    pub(crate) zeros: &'a [f32],
    /// Vectors from channel to channel.
    pub(crate) step: usize,
    /// Whether one more channel is wanted, which is 1 where there is a pixel and 0 where padding.
    pub(crate) ones: bool,
    pub(crate) out: SharedMut,
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.planes;
        let channels = self.zeros.len();
        let last = channels + usize::from(self.ones);
        assert!(p.lanes == S::LANES && self.step >= p.count() * p.len && last > 0);
        for plane in 0..p.count() {
            let columns = &p.columns[plane * p.pitch..][..p.pitch];
            let (mut row, mut column) = (0, 0);
            let mut line = p.line(self.strip, plane, row);
            for vector in 0..p.len {
                let mut pixels = [self.zeros.as_ptr(); MAX_LANES];
                let mut there = [0.0; MAX_LANES];
                for i in 0..S::LANES {
                    if let (Some(line), true) = (line, columns[column] != NONE) {
                        let pixel = line + columns[column] as usize;
                        pixels[i] = self.x[pixel * channels..][..channels].as_ptr();
                        there[i] = 1.0;
                    }
                    column += 1;
                    if column == p.pitch {
                        (row, column) = (row + 1, 0);
                        line = p.line(self.strip, plane, row);
                    }
                }
                let out = self.out.at((plane * p.len + vector) * S::LANES);
                let step = self.step * S::LANES;
                for c in (0..channels).step_by(S::LANES) {
                    // Volatile, or the compiler adds c to all pointers in vectors and takes them
                    // out again.
                    // SAFETY: a reference's target is readable.
                    let pixel = |i: usize| unsafe { std::ptr::read_volatile(&pixels[i]) };
                    let lanes = S::LANES.min(channels - c);
                    // SAFETY: every pointer has all channels, and `out` room for them, `step`
                    // vectors each.
                    unsafe { square(s, pixel, c, lanes, None, out.ptr().add(c * step), step) };
                }
                if self.ones {
                    // SAFETY: as above, for one more.
                    unsafe { s.store(out.ptr().add(channels * step), s.load(there.as_ptr())) };
                }
            }
        }
    }
}
