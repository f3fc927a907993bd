//! Depthwise windows that slide along a row: each input vector is loaded once and serves every
//! horizontal tap. For undilated kernels 3 and 5 wide, steps 1 and 2, one output per channel.

use crate::conv::Conv2dParams;
use crate::conv::depthwise::Store;
use crate::conv::indirect::Geometry;
use crate::simd::{Kernel, Simd};

/// Input columns of the widest block: 8 outputs, step 2, 5 taps.
const MAX_SPAN: usize = 7 * 2 + 5;
/// Rows of the tallest kernel.
const MAX_ROWS: usize = 8;

/// Whether these kernels compute the shape.
pub(crate) fn fits(p: &Conv2dParams) -> bool {
    matches!(p.kernel[1], 3 | 5)
        && p.kernel[0] <= MAX_ROWS
        && matches!(p.stride[1], 1 | 2)
        && p.dilation[1] == 1
        && p.c_out == p.c_in
}

/// An output row cut into blocks of 8, 7, 4, 2 or 1 columns: (first, columns).
fn blocks(ow: usize) -> impl Iterator<Item = (usize, usize)> {
    let widest = if ow.is_multiple_of(7) && !ow.is_multiple_of(8) { 7 } else { 8 };
    let mut at = 0;
    std::iter::from_fn(move || {
        let width = [widest, 7, 4, 2, 1].into_iter().find(|&w| at + w <= ow)?;
        at += width;
        Some((at - width, width))
    })
}

/// One row of the output.
pub(crate) struct Row<'a> {
    pub(super) geometry: &'a Geometry,
    /// The input from row `first` on, rows of all images counted.
    pub(super) x: &'a [f32],
    pub(super) first: usize,
    /// For each tap a row of c_out weights, padded to whole vectors.
    pub(super) weights: &'a [f32],
    /// Distance between the weights of two taps.
    pub(super) stride: usize,
    /// c_in zeros.
    pub(super) zeros: &'a [f32],
    /// Its index: image times output height plus row.
    pub(super) row: usize,
    /// Its index in the store.
    pub(super) out: usize,
    pub(super) store: &'a Store<'a>,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = &self.geometry.params;
        match (p.kernel[1], p.stride[1]) {
            (3, 1) => self.slide::<S, 3, 1>(s),
            (3, _) => self.slide::<S, 3, 2>(s),
            (_, 1) => self.slide::<S, 5, 1>(s),
            _ => self.slide::<S, 5, 2>(s),
        }
    }
}

/// A row of the kernel over a block of columns.
#[derive(Clone, Copy)]
struct Line {
    /// The columns of the input, zeros outside the image; only the first where all lie inside.
    x: [*const f32; MAX_SPAN],
    weight: *const f32,
}

impl Row<'_> {
    #[inline(always)]
    fn slide<S: Simd, const KW: usize, const STEP: usize>(&self, s: S) {
        let g = self.geometry;
        let p = &g.params;
        let (image, oy) = (self.row / g.oh, self.row % g.oh);
        let empty = Line { x: [std::ptr::null(); MAX_SPAN], weight: std::ptr::null() };
        let mut lines = [empty; MAX_ROWS];
        let mut inputs: [&[f32]; MAX_ROWS] = [&[]; MAX_ROWS];
        let mut count = 0;
        for ky in 0..p.kernel[0] {
            let iy = (oy * p.stride[0] + ky * p.dilation[0]).wrapping_sub(p.pads[0]);
            if iy < g.h {
                let line = image * g.h + iy - self.first;
                inputs[count] = &self.x[line * g.w * p.c_in..][..g.w * p.c_in];
                lines[count].weight = self.weights[ky * KW * self.stride..].as_ptr();
                assert!(self.weights.len() >= (ky + 1) * KW * self.stride);
                count += 1;
            }
        }
        assert!(self.zeros.len() >= p.c_in);
        for (ox, columns) in blocks(g.ow) {
            let span = (columns - 1) * STEP + KW;
            let left = (ox * STEP).wrapping_sub(p.pads[1]);
            let inside = columns >= 4 && left < g.w && left + span <= g.w;
            for (line, input) in lines.iter_mut().zip(&inputs[..count]) {
                if inside {
                    line.x[0] = input[left * p.c_in..][..span * p.c_in].as_ptr();
                    continue;
                }
                for (i, x) in line.x[..span].iter_mut().enumerate() {
                    let column = left.wrapping_add(i);
                    *x = match column < g.w {
                        true => input[column * p.c_in..][..p.c_in].as_ptr(),
                        false => self.zeros.as_ptr(),
                    };
                }
            }
            let block = Block {
                lines: &lines[..count],
                channels: p.c_in,
                stride: self.stride,
                store: self.store,
                pixel: self.out * g.ow + ox,
            };
            match (columns, inside) {
                (8, true) => s.call(Columns::<KW, STEP, 8, true>(block)),
                (8, false) => s.call(Columns::<KW, STEP, 8, false>(block)),
                (7, true) => s.call(Columns::<KW, STEP, 7, true>(block)),
                (7, false) => s.call(Columns::<KW, STEP, 7, false>(block)),
                (4, true) => s.call(Columns::<KW, STEP, 4, true>(block)),
                (4, false) => s.call(Columns::<KW, STEP, 4, false>(block)),
                (2, _) => s.call(Columns::<KW, STEP, 2, false>(block)),
                _ => s.call(Columns::<KW, STEP, 1, false>(block)),
            }
        }
    }
}

struct Block<'a> {
    lines: &'a [Line],
    channels: usize,
    stride: usize,
    store: &'a Store<'a>,
    /// The first output pixel.
    pixel: usize,
}

struct Columns<'a, const KW: usize, const STEP: usize, const W: usize, const INSIDE: bool>(
    Block<'a>,
);

impl<const KW: usize, const STEP: usize, const W: usize, const INSIDE: bool> Kernel
    for Columns<'_, KW, STEP, W, INSIDE>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let b = &self.0;
        let mut c = 0;
        while c + S::LANES <= b.channels {
            self.vector::<S, true>(s, c, S::LANES);
            c += S::LANES;
        }
        if c < b.channels {
            self.vector::<S, false>(s, c, b.channels - c);
        }
        b.store.second_pass(s, b.pixel, W);
    }
}

impl<const KW: usize, const STEP: usize, const W: usize, const INSIDE: bool>
    Columns<'_, KW, STEP, W, INSIDE>
{
    /// One vector of channels, `lanes` of them there.
    #[inline(always)]
    fn vector<S: Simd, const FULL: bool>(&self, s: S, c: usize, lanes: usize) {
        let b = &self.0;
        let mut acc = [s.splat(0.0); W];
        for line in b.lines {
            let mut weight = [s.splat(0.0); KW];
            for (kx, weight) in weight.iter_mut().enumerate() {
                // SAFETY: a tap's weights are padded to whole vectors.
                *weight = unsafe { s.load(line.weight.add(kx * b.stride + c)) };
            }
            let load = |i: usize| {
                // SAFETY: every column of the block has `channels` elements: in the image, or
                // zeros.
                unsafe {
                    let x = match INSIDE {
                        true => line.x[0].add(i * b.channels + c),
                        false => line.x[i].add(c),
                    };
                    if FULL { s.load(x) } else { s.load_partial(x, lanes) }
                }
            };
            let mut window = [s.splat(0.0); KW];
            for (w, acc) in acc.iter_mut().enumerate() {
                for kx in 0..KW {
                    // What the window before this one has read already moves along.
                    window[kx] = match w > 0 && kx + STEP < KW {
                        true => window[kx + STEP],
                        false => load(w * STEP + kx),
                    };
                }
                for (x, weight) in window.iter().zip(weight) {
                    *acc = s.mul_add(*x, weight, *acc);
                }
            }
        }
        b.store.columns::<S, W, FULL>(s, b.pixel, c, lanes, acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_row_once() {
        for ow in 1..130 {
            let mut next = 0;
            for (first, columns) in blocks(ow) {
                assert_eq!(first, next);
                next += columns;
            }
            assert_eq!(next, ow);
        }
    }
}
