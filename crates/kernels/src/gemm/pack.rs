//! Packing of B into panels.

use std::ops::Range;

use crate::isa::Isa;
use crate::simd::{self, Kernel, MAX_LANES, Simd};

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
    fn run<S: Simd>(self, s: S) {
        let nr = S::TILE.1 * S::LANES;
        for panel in self.panels {
            let column = panel * nr;
            let columns = nr.min(self.n - column);
            let width = columns.next_multiple_of(S::LANES);
            let out = &mut self.out[panel * nr * self.k..][..width * self.k];
            if self.transposed {
                for j in (0..width).step_by(S::LANES) {
                    let sources = S::LANES.min(columns - j);
                    for row in (0..self.k).step_by(S::LANES) {
                        let rows = S::LANES.min(self.k - row);
                        let mut square = [s.splat(0.0); MAX_LANES];
                        for (i, vector) in square.iter_mut().enumerate().take(sources) {
                            let from = &self.b[(column + j + i) * self.stride + row..][..rows];
                            // SAFETY: the slice has `rows` elements.
                            *vector = unsafe { s.load_partial(from.as_ptr(), rows) };
                        }
                        s.transpose(&mut square);
                        for (i, vector) in square.iter().enumerate().take(rows) {
                            let out = &mut out[(row + i) * width + j..][..S::LANES];
                            // SAFETY: the slice has LANES elements.
                            unsafe { s.store(out.as_mut_ptr(), *vector) };
                        }
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
