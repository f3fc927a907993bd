//! Packing of B into panels.

use std::ops::Range;

use crate::isa::Isa;
use crate::simd::{self, Kernel, Simd};

/// Packs the given panels of `b` (k x n with rows `stride` apart, or n x k if `transposed`) into
/// `out`, which starts with panel 0.
pub(crate) fn pack_panels(
    isa: Isa,
    k: usize,
    n: usize,
    b: &[f32],
    stride: usize,
    transposed: bool,
    panels: Range<usize>,
    out: &mut [f32],
) {
    simd::dispatch(isa, Pack { k, n, b, stride, transposed, panels, out });
}

struct Pack<'a> {
    k: usize,
    n: usize,
    b: &'a [f32],
    stride: usize,
    transposed: bool,
    panels: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let nr = S::TILE.1 * S::LANES;
        for panel in self.panels {
            let column = panel * nr;
            let columns = nr.min(self.n - column);
            let width = columns.next_multiple_of(S::LANES);
            let out = &mut self.out[panel * nr * self.k..][..width * self.k];
            if self.transposed {
                // A few rows at a time, so that the panel's part stays in the first-level cache.
                for (block, out) in out.chunks_mut(64 * width).enumerate() {
                    for j in 0..columns {
                        let source = &self.b[(column + j) * self.stride..][..self.k];
                        for (out, &x) in out.chunks_exact_mut(width).zip(&source[64 * block..]) {
                            out[j] = x;
                        }
                    }
                    for out in out.chunks_exact_mut(width) {
                        out[columns..].fill(0.0);
                    }
                }
            } else if columns == nr {
                for (row, out) in out.chunks_exact_mut(nr).enumerate() {
                    out.copy_from_slice(&self.b[row * self.stride + column..][..nr]);
                }
            } else {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    out[..columns]
                        .copy_from_slice(&self.b[row * self.stride + column..][..columns]);
                    out[columns..].fill(0.0);
                }
            }
        }
    }
}
