//! Transposes a strip's input into a slab: [channel][plane][position][lane].

use std::ops::Range;

use crate::aligned::SharedMut;
use crate::simd::{Kernel, MAX_LANES, Simd};
use crate::sparse::grid::{FAR_LEN, Grid};

/// How many pixels ahead of its use input is fetched.
const AHEAD: usize = 2 * MAX_LANES;

/// Fills the slab of some positions, for some of its channels.
pub(crate) struct Slab<'a> {
    pub(crate) grid: &'a Grid,
    pub(crate) n: usize,
    pub(crate) x: &'a [f32],
    /// Elements from pixel to pixel, and the first of this group's channels.
    pub(crate) stride: usize,
    pub(crate) channel: usize,
    /// As many zeros as the group has channels.
    pub(crate) zeros: &'a [f32],
    pub(crate) positions: Range<usize>,
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
        assert!(self.positions.len() <= grid.slab && grid.lanes == S::LANES);
        if grid.is_flat() {
            self.flat(s);
            return;
        }
        let corners = &grid.corners[..S::LANES];
        for plane in 0..planes {
            let mut place = grid.place(self.positions.start);
            for position in 0..self.positions.len() {
                let mut pixels = [self.zeros.as_ptr(); MAX_LANES];
                for (i, corner) in corners.iter().enumerate() {
                    if let Some(index) = grid.input(self.n, plane, &place, corner) {
                        pixels[i] = self.pixel(index);
                    }
                }
                grid.advance(&mut place);
                for c in self.channels.clone().step_by(S::LANES) {
                    // Volatile, or the compiler adds c to all pointers in vectors and takes them
                    // out again.
                    // SAFETY: a reference's target is readable.
                    let pixel = |i: usize| unsafe { std::ptr::read_volatile(&pixels[i]) };
                    // SAFETY: every pointer has channels.end elements.
                    unsafe { self.square(s, pixel, plane, position, c) };
                }
            }
        }
    }
}

impl Slab<'_> {
    /// Where pixels follow each other.
    #[inline(always)]
    fn flat<S: Simd>(self, s: S) {
        for position in 0..self.positions.len() {
            let first = (self.positions.start + position) * S::LANES;
            let there = self.n.saturating_sub(first);
            if there == 0 {
                // Nobody looks at the results.
                return;
            }
            let last = self.pixel(first + there.min(S::LANES) - 1);
            let start = self.pixel(first);
            for c in self.channels.clone().step_by(S::LANES) {
                let pixel =
                    |i: usize| if i < there { start.wrapping_add(i * self.stride) } else { last };
                // SAFETY: every pointer has channels.end elements.
                unsafe { self.square(s, pixel, 0, position, c) };
            }
        }
    }

    /// A pixel's channels.
    #[inline(always)]
    fn pixel(&self, index: usize) -> *const f32 {
        self.x[index * self.stride + self.channel..][..self.channels.end].as_ptr()
    }

    /// Transposes a square of pixels and channels from c on.
    #[inline(always)]
    unsafe fn square<S: Simd>(
        &self,
        s: S,
        pixel: impl Fn(usize) -> *const f32,
        plane: usize,
        position: usize,
        c: usize,
    ) {
        let lanes = S::LANES.min(self.channels.end - c);
        // Of pixels further on, which mostly follow.
        let ahead = (self.x.len() >= FAR_LEN).then_some(AHEAD * self.stride);
        let step = self.grid.planes.len() * self.grid.slab * S::LANES;
        let position = plane * self.grid.slab + position;
        // SAFETY: the caller's contract; the slab has these channels, each `grid.slab` long, and
        // no other task writes them.
        unsafe {
            let out = self.out.ptr().add(c * step + position * S::LANES);
            square(s, pixel, c, lanes, ahead, out, step);
        }
    }
}

/// Transposes a vector of pixels by `lanes` channels from c on; channels go `step` floats apart.
/// What lies `ahead` of a pixel is fetched.
///
/// # Safety
/// Every pixel has the channels, and `out` has room for them.
#[inline(always)]
pub(crate) unsafe fn square<S: Simd>(
    s: S,
    pixel: impl Fn(usize) -> *const f32,
    c: usize,
    lanes: usize,
    ahead: Option<usize>,
    out: *mut f32,
    step: usize,
) {
    let mut square = [s.splat(0.0); MAX_LANES];
    // SAFETY: the caller's contract.
    unsafe {
        if lanes == S::LANES {
            for i in 0..S::LANES {
                let x = pixel(i).add(c);
                if let Some(ahead) = ahead {
                    s.prefetch(x.wrapping_add(ahead));
                }
                square[i] = s.load(x);
            }
        } else {
            for i in 0..S::LANES {
                square[i] = s.load_partial(pixel(i).add(c), lanes);
            }
        }
        s.transpose(&mut square);
        if lanes == S::LANES {
            for i in 0..S::LANES {
                s.store(out.add(i * step), square[i]);
            }
        } else {
            for i in 0..lanes {
                s.store(out.add(i * step), square[i]);
            }
        }
    }
}
