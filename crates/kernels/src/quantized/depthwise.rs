//! Depthwise convolution: every channel by itself, vectors along the channels.

use std::ops::Range;

use super::pack::{Shape, shape_of};
use super::tile::requantized;
use super::{Activations, Requantize, Shared};
use crate::aligned::AlignedBuffer;
use crate::conv::{Conv2dParams, indirect::Geometry};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{self, ByteGrid, Kernel, MAX_LANES, Simd, quad_column};

/// Taps of the largest kernel.
pub(super) const MAX_TAPS: usize = 28;
/// Vectors of a block of channels where there are quads.
const VECTORS: usize = 4;
/// Channels of a block elsewhere.
const CHANNELS: usize = 32;
/// Pixels of the largest group.
const MAX_GROUP: usize = 4;

/// Weights of a depthwise convolution, packed.
#[derive(Clone, Debug)]
pub(super) struct Depthwise {
    isa: Isa,
    channels: usize,
    taps: usize,
    quads: bool,
    /// Neighbouring pixels whose channels fill whole blocks together: weights are repeated for
    /// them.
    group: usize,
    /// Quads: i8 by block of channels, four taps, vector, lane, tap. Else i16 by pair of taps,
    /// channel, tap.
    weights: AlignedBuffer,
    /// Bias less what zero point and flipped bits add; in the weights' order.
    start: Vec<i32>,
    multipliers: Vec<f32>,
    zero: i32,
    relative: [f32; 2],
    grid: ByteGrid,
    shrinks: bool,
    flip: [i32; MAX_LANES],
}

impl Depthwise {
    pub(super) fn new(
        isa: Isa,
        p: &Conv2dParams,
        x: Activations,
        bias: Option<&[i32]>,
        requantize: &Requantize,
        weight: impl Fn(usize, usize) -> i32,
    ) -> Depthwise {
        x.check();
        let (channels, taps) = (p.c_out, p.taps());
        let all = || (0..channels).flat_map(|c| (0..taps).map(move |t| (c, t)));
        let Shape { lanes, quads, signed, .. } = shape_of(isa);
        let quads = quads && all().all(|(c, t)| (-128..128).contains(&weight(c, t)));
        let block = if quads { VECTORS * lanes } else { CHANNELS };
        let group = if quads {
            (1..=MAX_GROUP).find(|g| (g * channels).is_multiple_of(block)).unwrap_or(1)
        } else {
            1
        };
        let padded = (group * channels).next_multiple_of(block);
        let groups = taps.div_ceil(4);
        // Where the start and multiplier of channel c, counted through the group, lie.
        let place = |c: usize| {
            if !quads {
                return c;
            }
            let column = c % block;
            let (vector, lane) = (column % 16 / 4, column / 16 * 4 + column % 4);
            debug_assert_eq!(quad_column(vector, lane), column);
            c - column + vector * lanes + lane
        };
        let mut weights =
            AlignedBuffer::zeroed(if quads { padded * groups } else { padded * taps.div_ceil(2) });
        if quads {
            let out: &mut [i8] = bytemuck::cast_slice_mut(weights.as_mut_slice());
            for (c, t) in (0..group * channels).flat_map(|c| (0..taps).map(move |t| (c, t))) {
                let at = place(c) % block;
                let word = (place(c) - at) * groups + t / 4 * block + at;
                out[word * 4 + t % 4] = weight(c % channels, t) as i8;
            }
        } else {
            let out: &mut [i16] = bytemuck::cast_slice_mut(weights.as_mut_slice());
            all().for_each(|(c, t)| out[(t / 2 * padded + c) * 2 + t % 2] = weight(c, t) as i16);
        }
        let (flip, x_zero) = x.of_quads(signed && quads);
        let mut start = vec![0i32; padded];
        let mut multipliers = vec![0.0f32; padded];
        for at in 0..group * channels {
            let c = at % channels;
            let sum = (0..taps).map(|t| weight(c, t)).sum::<i32>();
            let bias = bias.map_or(0, |b| b[c]);
            start[place(at)] = bias.wrapping_sub(x_zero.wrapping_mul(sum));
            multipliers[place(at)] = requantize.multiplier(c);
        }
        Depthwise {
            isa,
            channels,
            taps,
            quads,
            weights,
            start,
            multipliers,
            zero: requantize.zero,
            relative: requantize.relative(),
            grid: requantize.byte_grid(),
            shrinks: requantize.shrinks(),
            group,
            flip: [i32::from_ne_bytes([flip; 4]); MAX_LANES],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.weights.as_slice()) + 8 * self.start.len()
    }

    /// Bytes that stand for zero, as [`Depthwise::run`] wants them.
    pub(super) fn zeros_len(&self) -> usize {
        self.group * self.channels
    }

    /// `zeros`: `zeros_len` bytes that stand for zero.
    pub(super) fn run(
        &self,
        n: usize,
        geometry: &Geometry,
        x: &[u8],
        zeros: &[u8],
        y: &mut [u8],
        pool: &Pool,
    ) {
        assert!(zeros.len() >= self.zeros_len(), "zeros fill a group of pixels");
        assert!(x.len() == n * geometry.h * geometry.w * self.channels, "x is the input");
        assert!(y.len() == n * geometry.oh * geometry.ow * self.channels, "y is the output");
        let lines = n * geometry.oh;
        let work = geometry.ow * self.channels * self.taps;
        let y = Shared(y.as_mut_ptr());
        let y = &y;
        pool.run_ranges(lines, (32 * 1024) / work.max(1), &|lines| {
            let y = y.at(lines.start * geometry.ow * self.channels);
            simd::dispatch_bytes(self.isa, Lines { d: self, geometry, x, zeros, lines, y });
        });
    }
}

/// Lines of the output, on one thread.
struct Lines<'a> {
    d: &'a Depthwise,
    geometry: &'a Geometry,
    x: &'a [u8],
    zeros: &'a [u8],
    lines: Range<usize>,
    y: *mut u8,
}

impl Kernel for Lines<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (g, d) = (self.geometry, self.d);
        let p = &g.params;
        let [kh, kw] = p.kernel;
        let channels = d.channels;
        // Taps as distances from the first one.
        let mut offsets = [0usize; MAX_TAPS];
        for (t, offset) in offsets.iter_mut().enumerate().take(d.taps) {
            *offset = (t / kw * p.dilation[0] * g.w + t % kw * p.dilation[1]) * channels;
        }
        let span = [p.dilation[0] * (kh - 1), p.dilation[1] * (kw - 1)];
        // Missing taps of the last quad meet weights of zero.
        let mut taps = [self.zeros.as_ptr(); MAX_TAPS];
        assert!(self.zeros.len() >= d.group * channels, "zeros fill a group of pixels");
        let mut y = self.y;
        for line in self.lines {
            let first = g.pixel(line * g.ow);
            let rows_inside = first.top >= p.pads[0] && first.top - p.pads[0] + span[0] < g.h;
            let mut ox = 0;
            while ox < g.ow {
                let left = ox * p.stride[1];
                let mut pixels = 1;
                if rows_inside && left >= p.pads[1] && left - p.pads[1] + span[1] < g.w {
                    let row = first.image * g.h + first.top - p.pads[0];
                    let base = (row * g.w + left - p.pads[1]) * channels;
                    for t in 0..d.taps {
                        taps[t] = self.x.as_ptr().wrapping_add(base + offsets[t]);
                    }
                    // Side by side, neighbours are one long pixel.
                    let last = left - p.pads[1] + span[1] + d.group - 1;
                    if p.stride[1] == 1 && last < g.w && ox + d.group <= g.ow {
                        pixels = d.group;
                    }
                } else {
                    for t in 0..d.taps {
                        let row = (first.top + t / kw * p.dilation[0]).wrapping_sub(p.pads[0]);
                        let column = (left + t % kw * p.dilation[1]).wrapping_sub(p.pads[1]);
                        taps[t] = if row < g.h && column < g.w {
                            let pixel = (first.image * g.h + row) * g.w + column;
                            self.x.as_ptr().wrapping_add(pixel * channels)
                        } else {
                            self.zeros.as_ptr()
                        };
                    }
                }
                let len = pixels * channels;
                // SAFETY: every tap points to as many pixels of `channels` bytes, each followed by
                // the next; so does y, which the caller of the kernel sized for all lines.
                unsafe {
                    if S::QUADS && d.quads {
                        quads(s, d, &taps, y, len);
                    } else {
                        pairs(s, d, &taps, y);
                    }
                }
                y = y.wrapping_add(len);
                ox += pixels;
            }
        }
    }
}

/// A pixel or a group of them, `len` bytes, four taps at a time.
///
/// # Safety
/// Taps and y point to `len` bytes each; so do missing taps of the last four, to no less than
/// `channels` bytes; `len` is one pixel or a group.
#[inline(always)]
unsafe fn quads<S: Simd>(
    s: S,
    d: &Depthwise,
    taps: &[*const u8; MAX_TAPS],
    y: *mut u8,
    len: usize,
) {
    let groups = d.taps.div_ceil(4);
    let [low, high] = d.relative.map(|x| s.splat(x));
    // SAFETY: the packed arrays are padded to whole blocks; rows and y have `n` bytes from `c` on.
    unsafe {
        let flip = s.load_i32(d.flip.as_ptr());
        let channels = VECTORS * S::LANES;
        for c in (0..len).step_by(channels) {
            let n = channels.min(len - c);
            let mut acc = [s.zero_i32(); VECTORS];
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = s.load_i32(d.start.as_ptr().add(c + i * S::LANES));
            }
            let block = d.weights.as_slice().as_ptr().add(c * groups).cast::<i8>();
            for group in 0..groups {
                let rows = [0, 1, 2, 3].map(|i| taps[4 * group + i].add(c));
                let x = s.interleave(rows, n, flip);
                let w = block.add(group * 4 * channels);
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = s.dot_quads(*acc, x[i], w.add(i * 4 * S::LANES));
                }
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let multiplier = s.load(d.multipliers.as_ptr().add(c + i * S::LANES));
                let x = s.mul(s.to_f32(*acc), multiplier);
                *acc = s.to_i32(if d.shrinks { x } else { s.min(s.max(x, low), high) });
            }
            s.store_bytes(y.add(c), n, s.narrow(acc, &d.grid));
        }
    }
}

/// One pixel, two taps at a time.
///
/// # Safety
/// Taps and y point to `channels` bytes each.
#[inline(always)]
unsafe fn pairs<S: Simd>(s: S, d: &Depthwise, taps: &[*const u8; MAX_TAPS], y: *mut u8) {
    let padded = d.start.len();
    let weights: &[i16] = bytemuck::cast_slice(d.weights.as_slice());
    let [low, high] = d.relative.map(|x| s.splat(x));
    let zeros = [d.zero; MAX_LANES];
    let vectors = CHANNELS / S::LANES;
    for c in (0..d.channels).step_by(CHANNELS) {
        let n = CHANNELS.min(d.channels - c);
        let mut acc = [s.zero_i32(); CHANNELS];
        let mut whole = [[0u8; CHANNELS]; 2];
        // SAFETY: the packed arrays are padded to whole blocks; taps and y have n bytes from c on.
        unsafe {
            let (zero, flip) = (s.load_i32(zeros.as_ptr()), s.load_i32(d.flip.as_ptr()));
            for (i, acc) in acc.iter_mut().enumerate().take(vectors) {
                *acc = s.load_i32(d.start.as_ptr().add(c + i * S::LANES));
            }
            for pair in 0..d.taps.div_ceil(2) {
                let w = weights[(pair * padded + c) * 2..][..2 * CHANNELS].as_ptr();
                // A missing tap meets weights of zero.
                let mut x = [2 * pair, (2 * pair + 1).min(d.taps - 1)].map(|t| taps[t].add(c));
                if n < CHANNELS {
                    for (x, whole) in x.iter_mut().zip(&mut whole) {
                        whole.as_mut_ptr().copy_from_nonoverlapping(*x, n);
                        *x = whole.as_ptr();
                    }
                }
                for (i, acc) in acc.iter_mut().enumerate().take(vectors) {
                    let at = i * S::LANES;
                    *acc = s.dot_bytes(*acc, x.map(|x| x.add(at)), flip, w.add(2 * at));
                }
            }
            if S::NARROWS && n == CHANNELS && vectors.is_multiple_of(VECTORS) {
                for first in (0..vectors).step_by(VECTORS) {
                    let at = [0, 1, 2, 3].map(|i| c + (first + i) * S::LANES);
                    let mut four = [acc[first]; VECTORS];
                    for (i, four) in four.iter_mut().enumerate() {
                        let multiplier = s.load(d.multipliers.as_ptr().add(at[i]));
                        let x = s.mul(s.to_f32(acc[first + i]), multiplier);
                        *four = s.to_i32(if d.shrinks { x } else { s.min(s.max(x, low), high) });
                    }
                    s.store_apart(at.map(|at| y.add(at)), s.narrow(four, &d.grid));
                }
                continue;
            }
            for (i, &acc) in acc.iter().enumerate().take(n.div_ceil(S::LANES)) {
                let at = c + i * S::LANES;
                let multiplier = s.load(d.multipliers.as_ptr().add(at));
                let v = requantized(s, acc, multiplier, [low, high], zero);
                s.store_low_bytes(y.add(at), S::LANES.min(n - i * S::LANES), v);
            }
        }
    }
}
