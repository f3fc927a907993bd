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
    /// Takes down which positions are padding, if anyone wants to know.
    pub(crate) padding: Option<Padding<'a>>,
}

/// The positions of which some lanes are padding: of each its index in a channel's planes, as bits,
/// and for every lane whether there is a pixel, 1 or 0. The first element is their number.
pub(crate) struct Padding<'a>(pub(crate) &'a mut [f32]);

impl Padding<'_> {
    /// Elements for `positions` of so many lanes.
    pub(crate) fn len(positions: usize, lanes: usize) -> usize {
        1 + positions * (1 + lanes)
    }

    fn clear(&mut self) {
        self.0[0] = f32::from_bits(0);
    }

    #[inline(always)]
    fn add(&mut self, position: usize, there: &[bool]) {
        let count = self.0[0].to_bits();
        let entry = &mut self.0[1 + count as usize * (1 + there.len())..][..1 + there.len()];
        entry[0] = f32::from_bits(position as u32);
        for (slot, &there) in entry[1..].iter_mut().zip(there) {
            *slot = f32::from(u8::from(there));
        }
        self.0[0] = f32::from_bits(count + 1);
    }
}

/// What [`Padding`] took down: positions and their lanes.
pub(crate) fn padded(list: &[f32], lanes: usize) -> impl Iterator<Item = (usize, &[f32])> {
    let count = list[0].to_bits() as usize;
    list[1..].chunks_exact(1 + lanes).take(count).map(|e| (e[0].to_bits() as usize, &e[1..]))
}

impl Kernel for Slab<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (grid, planes) = (self.grid, self.grid.planes.len());
        let end = self.channel + self.channels.end;
        assert!(end <= self.stride && self.zeros.len() >= self.channels.end);
        assert!(self.positions.len() <= grid.slab && grid.lanes == S::LANES);
        if grid.is_flat() {
            self.flat(s);
            return;
        }
        let mut padding = self.padding.take();
        if let Some(padding) = &mut padding {
            padding.clear();
        }
        let corners = &grid.corners[..S::LANES];
        for plane in 0..planes {
            let mut place = grid.place(self.positions.start);
            for position in 0..self.positions.len() {
                let mut pixels = [self.zeros.as_ptr(); MAX_LANES];
                let mut there = [false; MAX_LANES];
                for (i, corner) in corners.iter().enumerate() {
                    if let Some(index) = grid.input(self.n, plane, &place, corner) {
                        (pixels[i], there[i]) = (self.pixel(index), true);
                    }
                }
                if let Some(padding) = &mut padding
                    && there[..S::LANES].contains(&false)
                {
                    padding.add(plane * grid.slab + position, &there[..S::LANES]);
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
        let far = self.x.len() >= FAR_LEN;
        let mut square = [s.splat(0.0); MAX_LANES];
        // SAFETY: the caller's contract; the slab has these channels, each `grid.slab` long, and
        // no other task writes them.
        unsafe {
            if lanes == S::LANES {
                for i in 0..S::LANES {
                    let x = pixel(i).add(c);
                    if far {
                        // Of pixels further on, which mostly follow.
                        s.prefetch(x.wrapping_add(AHEAD * self.stride));
                    }
                    square[i] = s.load(x);
                }
            } else {
                for i in 0..S::LANES {
                    square[i] = s.load_partial(pixel(i).add(c), lanes);
                }
            }
            s.transpose(&mut square);
            let step = self.grid.planes.len() * self.grid.slab * S::LANES;
            let position = plane * self.grid.slab + position;
            let out = self.out.ptr().add(c * step + position * S::LANES);
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
}
