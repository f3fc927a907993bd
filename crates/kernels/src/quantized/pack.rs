//! Packed weights of one product, and all that is known of its sums beforehand.

use super::{Activations, Requantize};
use crate::aligned::AlignedBuffer;
use crate::isa::Isa;
use crate::simd::{self, ByteGrid, Kernel, MAX_LANES, Simd};

/// The right-hand side of a product of quantised matrices, packed for one instruction set.
///
/// A row of the left-hand side is `segments` runs of `segment` bytes: one for a matrix, one per
/// tap or kernel row for a convolution.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub(super) isa: Isa,
    pub(super) segments: usize,
    pub(super) segment: usize,
    pub(super) n: usize,
    /// Rows and columns of a tile.
    pub(super) tile: (usize, usize),
    /// Weights by fours as i8, not by twos as i16.
    pub(super) quads: bool,
    /// By panel of columns, segment, step (4 or 2 bytes of the segment), column, byte of the step.
    /// The last four bytes of a segment are a step even if the step before has some of them
    /// already: those meet zeros here.
    weights: AlignedBuffer,
    /// What a column's sum starts with: the bias, less what zero point and flipped bits add.
    /// Padded to whole panels, as the multipliers.
    pub(super) start: Vec<i32>,
    pub(super) multipliers: Vec<f32>,
    pub(super) x: Activations,
    pub(super) zero: i32,
    pub(super) relative: [f32; 2],
    pub(super) grid: ByteGrid,
    /// `Requantize::shrinks`.
    pub(super) shrinks: bool,
    /// Not known to be equal words, so that the compiler xors vectors, not every scalar.
    pub(super) flip: [i32; MAX_LANES],
}

/// What an instruction set has for bytes.
pub(super) struct Shape {
    pub(super) lanes: usize,
    /// Rows and vectors.
    tile: (usize, usize),
    pub(super) quads: bool,
    /// Quads of the left-hand side are signed.
    pub(super) signed: bool,
}

pub(super) fn shape_of(isa: Isa) -> Shape {
    struct Ask;
    impl Kernel for Ask {
        type Output = Shape;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Shape {
            Shape { lanes: S::LANES, tile: S::TILE, quads: S::QUADS, signed: S::SIGNED_QUADS }
        }
    }
    simd::dispatch_bytes(isa, Ask)
}

impl Product {
    /// Packs weights: `weight(segment, byte, column)`, zero point subtracted.
    pub(super) fn new(
        isa: Isa,
        [segments, segment, n]: [usize; 3],
        x: Activations,
        bias: Option<&[i32]>,
        requantize: &Requantize,
        weight: impl Fn(usize, usize, usize) -> i32,
    ) -> Product {
        assert!(isa.is_available(), "the instruction set is available");
        x.check();
        requantize.check(n);
        assert!(bias.is_none_or(|b| b.len() == n), "bias has n elements");
        let Shape { lanes, tile: (rows, vectors), mut quads, signed } = shape_of(isa);
        let each = |f: &mut dyn FnMut(usize, usize, usize, i32)| {
            for j in 0..n {
                for s in 0..segments {
                    for i in 0..segment {
                        f(s, i, j, weight(s, i, j));
                    }
                }
            }
        };
        let mut sums = vec![0i32; n];
        each(&mut |_, _, j, w| {
            assert!((-255..256).contains(&w), "weights less zero point are nine bits");
            sums[j] = sums[j].wrapping_add(w);
            quads &= (-128..128).contains(&w);
        });
        let columns = lanes * vectors;
        let panels = n.div_ceil(columns);
        let (step, size) = if quads { (4, 1) } else { (2, 2) };
        let steps = segment.div_ceil(step);
        let count = panels * segments * steps * columns * step;
        let mut weights = AlignedBuffer::zeroed((count * size).div_ceil(4));
        let at = |s: usize, i: usize, j: usize| {
            let panel = j / columns;
            let byte = if quads && segment >= 4 && i >= segment / 4 * 4 {
                i + 4 - segment
            } else {
                i % step
            };
            (((panel * segments + s) * steps + i / step) * columns + j % columns) * step + byte
        };
        if quads {
            let out: &mut [i8] = bytemuck::cast_slice_mut(weights.as_mut_slice());
            each(&mut |s, i, j, w| out[at(s, i, j)] = w as i8);
        } else {
            let out: &mut [i16] = bytemuck::cast_slice_mut(weights.as_mut_slice());
            each(&mut |s, i, j, w| out[at(s, i, j)] = w as i16);
        }
        let (flip, x_zero) = x.of_quads(signed && quads);
        let mut start = vec![0i32; panels * columns];
        let mut multipliers = vec![0.0f32; panels * columns];
        for j in 0..n {
            let bias = bias.map_or(0, |b| b[j]);
            start[j] = bias.wrapping_sub(x_zero.wrapping_mul(sums[j]));
            multipliers[j] = requantize.multiplier(j);
        }
        Product {
            isa,
            segments,
            segment,
            n,
            tile: (rows, columns),
            quads,
            weights,
            start,
            multipliers,
            x,
            zero: requantize.zero,
            relative: requantize.relative(),
            grid: requantize.byte_grid(),
            shrinks: requantize.shrinks(),
            flip: [i32::from_ne_bytes([flip; 4]); MAX_LANES],
        }
    }

    /// Bytes of the left-hand side that a step takes from a segment.
    pub(super) fn step(&self) -> usize {
        if self.quads { 4 } else { 2 }
    }

    /// Steps of a whole row.
    pub(super) fn steps(&self) -> usize {
        self.segments * self.segment.div_ceil(self.step())
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(self.tile.1)
    }

    /// The first weight of a panel, and the bytes of a step.
    pub(super) fn panel(&self, panel: usize) -> (*const u8, usize) {
        let step = self.tile.1 * 4;
        let all = self.weights.as_slice();
        let start = panel * self.steps() * self.tile.1;
        // A step is four bytes of a column either way: as many as an f32 has.
        assert!(start + self.steps() * self.tile.1 <= all.len(), "the panel exists");
        (all[start..].as_ptr().cast(), step)
    }

    /// Size in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.weights.as_slice()) + 8 * self.start.len()
    }

    /// Elements of i32 that a task needs to widen a tile of rows.
    pub(super) fn wide_len(&self) -> usize {
        if self.quads { 0 } else { self.tile.0 * self.steps() }
    }
}
