//! A block of output pixels as rows of a matrix: by pointers to the input, or by copies.

use std::ops::Range;

use crate::conv::Conv2dParams;
use crate::gemm::driver::tiles;
use crate::simd::{Kernel, Simd};

/// A convolution over images of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) params: Conv2dParams,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) oh: usize,
    pub(crate) ow: usize,
}

/// An output pixel: its image, and the input position of its first tap, padding included.
#[derive(Clone, Copy)]
struct Pixel {
    image: usize,
    top: usize,
    left: usize,
}

impl Geometry {
    #[inline(always)]
    fn pixel(&self, index: usize) -> Pixel {
        let (ox, rest) = (index % self.ow, index / self.ow);
        let (oy, image) = (rest % self.oh, rest / self.oh);
        Pixel { image, top: oy * self.params.stride[0], left: ox * self.params.stride[1] }
    }

    /// For each tile of the output pixels `rows` and each tap, pointers to the pixels' input at
    /// `channel`, or to `zeros` where the tap lies in the padding. The table is in `scratch`,
    /// which is aligned to 64 bytes.
    pub(crate) fn pointers(
        &self,
        x: &[f32],
        channel: usize,
        zeros: &[f32],
        rows: Range<usize>,
        mr: usize,
        scratch: &mut [f32],
    ) -> *const *const f32 {
        let p = &self.params;
        let taps = p.kernel[0] * p.kernel[1];
        let len = rows.len() * taps;
        assert!(size_of_val(scratch) >= len * size_of::<*const f32>());
        let table = scratch.as_mut_ptr().cast::<*const f32>();
        assert!(table.is_aligned(), "scratch is aligned");
        assert!(channel < p.c_in && x.len().is_multiple_of(self.h * self.w * p.c_in));
        for (row, height) in tiles(rows.len(), mr) {
            for r in 0..height {
                let pixel = self.pixel(rows.start + row + r);
                assert!((pixel.image + 1) * self.h * self.w * p.c_in <= x.len());
                let mut at = row * taps + r;
                for ky in 0..p.kernel[0] {
                    let y = (pixel.top + ky * p.dilation[0]).wrapping_sub(p.pads[0]);
                    for kx in 0..p.kernel[1] {
                        let column = (pixel.left + kx * p.dilation[1]).wrapping_sub(p.pads[1]);
                        let pointer = if y < self.h && column < self.w {
                            let pixel = (pixel.image * self.h + y) * self.w + column;
                            // SAFETY: the image, row, column and channel exist in x.
                            unsafe { x.as_ptr().add(pixel * p.c_in + channel) }
                        } else {
                            zeros.as_ptr()
                        };
                        // SAFETY: at < len, which scratch holds, aligned.
                        unsafe { table.add(at).write(pointer) };
                        at += height;
                    }
                }
            }
        }
        table
    }
}

/// Copies the patches of the output pixels `rows` into `scratch`, one row each, without gaps.
pub(crate) struct CopyRows<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) x: &'a [f32],
    /// The first input channel of the group.
    pub(crate) channel: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) scratch: &'a mut [f32],
}

impl Kernel for CopyRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = self.geometry;
        let p = &g.params;
        let ci = p.c_in / p.groups;
        let [kh, kw] = p.kernel;
        // Taps of one kernel row lie side by side.
        let joined = p.groups == 1 && p.dilation[1] == 1;
        let len = kh * kw * ci;
        for (row, index) in self.rows.clone().enumerate() {
            let pixel = g.pixel(index);
            let out = &mut self.scratch[row * len..][..len];
            for ky in 0..kh {
                let out = &mut out[ky * kw * ci..][..kw * ci];
                let y = (pixel.top + ky * p.dilation[0]).wrapping_sub(p.pads[0]);
                if y >= g.h {
                    out.fill(0.0);
                    continue;
                }
                let line = &self.x[(pixel.image * g.h + y) * g.w * p.c_in..][..g.w * p.c_in];
                let inside = pixel.left >= p.pads[1] && pixel.left - p.pads[1] + kw <= g.w;
                if joined && inside {
                    let from = &line[(pixel.left - p.pads[1]) * ci..][..kw * ci];
                    copy(s, from, out);
                    continue;
                }
                for (kx, out) in out.chunks_exact_mut(ci).enumerate() {
                    let column = (pixel.left + kx * p.dilation[1]).wrapping_sub(p.pads[1]);
                    if column < g.w {
                        let from = &line[column * p.c_in + self.channel..][..ci];
                        for (out, &x) in out.iter_mut().zip(from) {
                            *out = x;
                        }
                    } else {
                        out.fill(0.0);
                    }
                }
            }
        }
    }
}

/// A short copy: whole vectors, the last one overlapping.
#[inline(always)]
fn copy<S: Simd>(s: S, from: &[f32], to: &mut [f32]) {
    let len = from.len();
    assert!(to.len() == len);
    if len < S::LANES {
        for (to, &x) in to.iter_mut().zip(from) {
            *to = x;
        }
        return;
    }
    let mut i = 0;
    while i + S::LANES < len {
        // SAFETY: i + LANES <= len.
        unsafe { s.store(to.as_mut_ptr().add(i), s.load(from.as_ptr().add(i))) };
        i += S::LANES;
    }
    let last = len - S::LANES;
    // SAFETY: last + LANES = len.
    unsafe { s.store(to.as_mut_ptr().add(last), s.load(from.as_ptr().add(last))) };
}
