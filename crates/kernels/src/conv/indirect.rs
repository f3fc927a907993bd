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
pub(super) struct Pixel {
    pub(super) image: usize,
    pub(super) top: usize,
    pub(super) left: usize,
}

impl Geometry {
    #[inline(always)]
    pub(super) fn pixel(&self, index: usize) -> Pixel {
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

impl Geometry {
    /// For each tile of the output pixels `rows` and each row of the kernel, pointers to the
    /// kernel row's elements in the input: into `x` where they lie inside the image, to copies in
    /// `scratch` where they cross its border, to `zeros` above and below it. One group, no gaps
    /// between horizontal taps. The table is in `scratch`, which is aligned to 64 bytes.
    pub(crate) fn kernel_rows(
        &self,
        x: &[f32],
        zeros: &[f32],
        rows: Range<usize>,
        mr: usize,
        scratch: &mut [f32],
    ) -> *const *const f32 {
        let p = &self.params;
        let [kh, kw] = p.kernel;
        let run = kw * p.c_in;
        assert!(p.groups == 1 && p.dilation[1] == 1 && zeros.len() >= run);
        let (table, mut patches) = scratch.split_at_mut((2 * rows.len() * kh).next_multiple_of(16));
        let table = table.as_mut_ptr().cast::<*const f32>();
        assert!(table.is_aligned(), "scratch is aligned");
        for (row, height) in tiles(rows.len(), mr) {
            for r in 0..height {
                let pixel = self.pixel(rows.start + row + r);
                let inside = pixel.left >= p.pads[1] && pixel.left - p.pads[1] + kw <= self.w;
                for ky in 0..kh {
                    let y = (pixel.top + ky * p.dilation[0]).wrapping_sub(p.pads[0]);
                    let pointer = if y >= self.h {
                        zeros.as_ptr()
                    } else {
                        let line = (pixel.image * self.h + y) * self.w * p.c_in;
                        let line = &x[line..line + self.w * p.c_in];
                        if inside {
                            line[(pixel.left - p.pads[1]) * p.c_in..][..run].as_ptr()
                        } else {
                            let (patch, rest) = patches.split_at_mut(run);
                            patches = rest;
                            for (kx, out) in patch.chunks_exact_mut(p.c_in).enumerate() {
                                let column = (pixel.left + kx).wrapping_sub(p.pads[1]);
                                match line.get(column.saturating_mul(p.c_in)..) {
                                    Some(from) if column < self.w => {
                                        out.copy_from_slice(&from[..p.c_in]);
                                    }
                                    _ => out.fill(0.0),
                                }
                            }
                            patch.as_ptr()
                        }
                    };
                    // SAFETY: the table has rows.len() * kh entries, aligned.
                    unsafe { table.add(row * kh + ky * height + r).write(pointer) };
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
    fn run<S: Simd>(self, _: S) {
        let g = self.geometry;
        let p = &g.params;
        let ci = p.c_in / p.groups;
        let [kh, kw] = p.kernel;
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
