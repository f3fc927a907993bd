//! Transposes a strip's input into a slab: [channel][plane][position].

use std::ops::Range;

use crate::aligned::SharedMut;
use crate::simd::{Kernel, MAX_LANES, Simd};
use crate::sparse::grid::Grid;

/// Fills the slab of the `count` positions from `first` on, for some of its channels.
pub(crate) struct Slab<'a> {
    pub(crate) grid: &'a Grid,
    pub(crate) n: usize,
    pub(crate) x: &'a [f32],
    /// Elements from pixel to pixel, and the first of this group's channels.
    pub(crate) stride: usize,
    pub(crate) channel: usize,
    /// As many zeros as the group has channels.
    pub(crate) zeros: &'a [f32],
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) channels: Range<usize>,
    pub(crate) out: SharedMut,
}

impl Kernel for Slab<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (grid, planes) = (self.grid, self.grid.planes.len());
        let end = self.channel + self.channels.end;
        assert!(end <= self.stride && self.zeros.len() >= self.channels.end);
        assert!(self.count.next_multiple_of(S::LANES) <= grid.slab);
        let flat = grid.is_flat();
        for plane in 0..planes {
            let mut place = grid.place(self.first);
            for position in (0..self.count).step_by(S::LANES) {
                let mut pixels = [self.zeros.as_ptr(); MAX_LANES];
                for (i, pixel) in pixels.iter_mut().enumerate().take(S::LANES) {
                    let index = if flat {
                        Some(self.first + position + i).filter(|&p| p < self.n)
                    } else {
                        let index = grid.input(self.n, plane, &place);
                        grid.advance(&mut place);
                        index
                    };
                    if let Some(index) = index {
                        *pixel = self.x[index * self.stride + self.channel..][..self.channels.end]
                            .as_ptr();
                    }
                }
                let mut c = self.channels.start;
                while c < self.channels.end {
                    let lanes = S::LANES.min(self.channels.end - c);
                    let mut square = [s.splat(0.0); MAX_LANES];
                    for i in 0..S::LANES {
                        // SAFETY: every pointer has channels.end elements. Volatile, or the
                        // compiler adds c to all pointers in vectors and takes them out again.
                        square[i] = unsafe {
                            let p = std::ptr::read_volatile(&pixels[i]).add(c);
                            if lanes == S::LANES { s.load(p) } else { s.load_partial(p, lanes) }
                        };
                    }
                    s.transpose(&mut square);
                    let out = |i: usize| {
                        self.out
                            .ptr()
                            .wrapping_add(((c + i) * planes + plane) * grid.slab + position)
                    };
                    // SAFETY: the slab has these channels, each `grid.slab` long; no other task
                    // writes them.
                    unsafe {
                        if lanes == S::LANES {
                            for i in 0..S::LANES {
                                s.store(out(i), square[i]);
                            }
                        } else {
                            for i in 0..lanes {
                                s.store(out(i), square[i]);
                            }
                        }
                    }
                    c += lanes;
                }
            }
        }
    }
}
