//! Convolution on AMX (see [`crate::gemm::tiled`]) without copies of patches.
//!
//! A block's part of the input is converted once, padded, to planes of which each tap reads
//! consecutive positions: with a step s of the window, input pixels are dealt to s x s planes
//! (only those that some tap reads), so that in each, neighbouring outputs read neighbouring
//! positions. Lines of a plane are as wide as the output and its taps' reach; the sums that fall
//! between the output's lines are dropped.
//!
//! Of few input channels, a run of k is a whole row of the kernel, and a position holds what an
//! output reads of a line: neighbours' positions overlap in the input.

use std::ops::Range;

use super::indirect::Geometry;
use super::{Conv2dParams, gather_filters};
use crate::activation::Epilogue;
use crate::aligned::{SharedMut, align_scratch};
use crate::amx::SIDE;
use crate::gemm::tiled::{
    A_BYTES, Block, Convert, PackedTiles, Product, Terms, part, wanted_tasks,
};
use crate::pool::Pool;
use crate::simd;

/// Output positions of a block below which there are better ways to keep threads busy.
const FEW_POSITIONS: usize = 256;
/// The most taps: beyond that, kernels are not worth a place for their offsets.
const MAX_TAPS: usize = 64;
/// Input channels below which a tap alone would leave most of a step empty.
const FEW_CHANNELS: usize = 16;

/// Of few input channels, products of an output below which f32 is as fast as three terms.
const THIN: usize = 192;
/// Output pixels below which Winograd's larger weights take longer than more products.
const FEW_PIXELS: usize = 1000;

#[derive(Clone, Debug)]
pub(super) struct Tiled {
    b: PackedTiles,
    /// Whether a tap is a whole row of the kernel.
    by_rows: bool,
    /// Planes that taps read: the input's offset within a step of the window.
    planes: Vec<[usize; 2]>,
    /// For each tap its plane, and how many lines and positions further it reads.
    taps: Vec<(usize, [usize; 2])>,
    /// The most of these.
    reach: [usize; 2],
}

/// A part of the output that one task computes, all or some of whose panels.
struct Cut {
    /// Images per block if it is of whole images.
    images: usize,
    /// Parts of an image's lines otherwise.
    bands: usize,
    panel_blocks: usize,
}

/// Whether runs of k are rows of the kernel.
fn by_rows(p: &Conv2dParams) -> bool {
    p.c_in < FEW_CHANNELS && p.dilation[1] == 1
}

impl Tiled {
    /// Whether this is for convolutions of that shape, with outputs of so many pixels.
    pub(super) fn fits(p: &Conv2dParams, pixels: usize) -> bool {
        let taps = if by_rows(p) { p.kernel[0] } else { p.taps() };
        let deep = p.c_in >= FEW_CHANNELS || by_rows(p) && p.kernel[1] * p.c_in >= FEW_CHANNELS;
        p.groups == 1 && deep && taps <= MAX_TAPS && pixels >= SIDE
    }

    /// Whether this is a good way, where [`Tiled::fits`], for outputs of so many pixels; and if
    /// there is also Winograd's.
    pub(super) fn pays(terms: Terms, p: &Conv2dParams, pixels: usize, winograd: bool) -> bool {
        let k = p.taps() * p.c_in;
        let thin = p.c_in < FEW_CHANNELS && k < THIN;
        terms != Terms::Three
            || PackedTiles::pays(terms, [pixels, k, p.c_out])
                && !thin
                && (!winograd || pixels < FEW_PIXELS)
    }

    /// Packs weights for outputs of about so many pixels.
    pub(super) fn new(terms: Terms, p: &Conv2dParams, pixels: usize, weight: &[f32]) -> Tiled {
        let (mut planes, mut taps, mut reach) = (Vec::new(), Vec::new(), [0, 0]);
        let by_rows = by_rows(p);
        let columns = if by_rows { 1 } else { p.kernel[1] };
        for ky in 0..p.kernel[0] {
            for kx in 0..columns {
                let at = [ky * p.dilation[0], kx * p.dilation[1]];
                let plane = [at[0] % p.stride[0], at[1] % p.stride[1]];
                let further = [at[0] / p.stride[0], at[1] / p.stride[1]];
                let known = planes.iter().position(|&known| known == plane);
                taps.push((known.unwrap_or(planes.len()), further));
                if known.is_none() {
                    planes.push(plane);
                }
                reach = [reach[0].max(further[0]), reach[1].max(further[1])];
            }
        }
        let (ci, n) = (p.c_in, p.taps());
        let size = [taps.len(), n * ci / taps.len(), p.c_out];
        let b = PackedTiles::from_columns(terms, pixels, size, |filters, columns| {
            gather_filters(&weight[filters.start * n * ci..filters.end * n * ci], ci, n, columns);
        });
        Tiled { b, by_rows, planes, taps, reach }
    }

    /// Elements between positions.
    fn stride(&self) -> usize {
        self.b.row_stride(self.b.steps())
    }

    pub(super) fn bytes(&self) -> usize {
        self.b.bytes()
    }

    /// Positions of one of the planes for so many lines of output.
    fn plane_len(&self, lines: usize, ow: usize) -> usize {
        (lines + self.reach[0]) * (ow + self.reach[1])
    }

    /// Elements for the planes of so many lines of an image.
    fn image_len(&self, lines: usize, ow: usize) -> usize {
        self.planes.len() * self.plane_len(lines, ow) * self.stride()
    }

    fn cut(&self, n: usize, oh: usize, ow: usize, threads: usize) -> Cut {
        let bytes = self.image_len(oh, ow) * size_of::<f32>();
        let wanted = wanted_tasks(n * oh * ow * self.b.k() * self.b.n(), threads);
        let mut bands = bytes.div_ceil(A_BYTES).min(oh);
        let mut images = 1;
        if bands == 1 {
            images = (A_BYTES / bytes.max(1)).clamp(1, n.div_ceil(wanted.min(n)));
        }
        let blocks = |bands, images| bands * n.div_ceil(images);
        if blocks(bands, images) < wanted {
            let most = (oh * ow / FEW_POSITIONS).clamp(1, oh);
            bands = bands.max(wanted.div_ceil(n).min(most));
            images = if bands > 1 { 1 } else { images };
        }
        let panel_blocks = wanted.div_ceil(blocks(bands, images)).min(self.b.panels());
        Cut { images, bands, panel_blocks }
    }

    /// Elements for a block of the cut.
    fn worker_scratch(&self, cut: &Cut, p: &Conv2dParams, oh: usize, ow: usize) -> usize {
        // The last tile of positions, and its last tap, read beyond the last plane.
        let beyond = (SIDE + self.reach[1]) * self.stride();
        let lines = oh.div_ceil(cut.bands);
        let line = self.line_len(p, ow).next_multiple_of(16);
        line + (cut.images * self.image_len(lines, ow) + beyond).next_multiple_of(16)
    }

    /// Elements of a padded line of input, of which neighbouring outputs read overlapping parts.
    fn line_len(&self, p: &Conv2dParams, ow: usize) -> usize {
        if self.by_rows { ((ow - 1) * p.stride[1] + p.kernel[1]) * p.c_in } else { 0 }
    }

    pub(super) fn scratch_len(&self, n: usize, g: &Geometry, threads: usize) -> usize {
        if n * g.oh * g.ow == 0 {
            return 0;
        }
        let cut = self.cut(n, g.oh, g.ow, threads);
        16 + threads * self.worker_scratch(&cut, &g.params, g.oh, g.ow)
    }

    pub(super) fn run(
        &self,
        n: usize,
        g: &Geometry,
        x: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let (oh, ow) = (g.oh, g.ow);
        let cut = self.cut(n, oh, ow, pool.threads());
        let per_worker = self.worker_scratch(&cut, &g.params, oh, ow);
        let stride = self.stride();
        let product =
            Product { b: &self.b, bias, epi: *epi, c: SharedMut::new(y), ldc: self.b.n() };
        let scratch = SharedMut::new(align_scratch(scratch));
        let image_blocks = n.div_ceil(cut.images);
        let width = ow + self.reach[1];
        pool.run_with_worker(image_blocks * cut.bands * cut.panel_blocks, &|task, worker| {
            let (block, panel_block) = (task / cut.panel_blocks, task % cut.panel_blocks);
            let (block, band) = (block / cut.bands, block % cut.bands);
            let images = part(n, image_blocks, block);
            let lines = part(oh, cut.bands, band);
            let panels = part(self.b.panels(), cut.panel_blocks, panel_block);
            if images.is_empty() || lines.is_empty() || panels.is_empty() {
                return;
            }
            // SAFETY: each worker has its own part, and runs one task at a time.
            let scratch = unsafe { scratch.slice(worker * per_worker, per_worker) };
            let line = self.line_len(&g.params, ow);
            let (line, scratch) = scratch.split_at_mut(line.next_multiple_of(16));
            let image_len = self.image_len(lines.len(), ow);
            let mut finite = true;
            for (image, out) in images.clone().zip(scratch.chunks_exact_mut(image_len)) {
                let x = &x[image * g.h * g.w * g.params.c_in..][..g.h * g.w * g.params.c_in];
                finite &= self.convert(g, x, lines.clone(), line, out);
            }
            let plane = self.plane_len(lines.len(), ow);
            let offset = |&(index, [down, right]): &(usize, [usize; 2])| {
                ((index * plane + down * width + right) * stride * size_of::<f32>()) as isize
            };
            let mut offsets = [0; MAX_TAPS];
            for (out, tap) in offsets.iter_mut().zip(&self.taps) {
                *out = offset(tap);
            }
            simd::dispatch_pairs(Block {
                product: &product,
                a: scratch.as_ptr(),
                finite,
                stride,
                offsets: &offsets[..self.taps.len()],
                images: images.len(),
                image_stride: image_len,
                positions: (lines.len() - 1) * width + ow,
                width,
                valid: ow,
                first_row: (images.start * oh + lines.start) * ow,
                panels,
                steps: 0..self.b.steps(),
                sums: None,
            });
        });
    }

    /// Converts what an image's output lines `lines` read; `padded` holds a line meanwhile.
    /// Returns whether all numbers are finite.
    fn convert(
        &self,
        g: &Geometry,
        x: &[f32],
        lines: Range<usize>,
        padded: &mut [f32],
        out: &mut [f32],
    ) -> bool {
        let mut finite = true;
        let p = &g.params;
        let stride = self.stride();
        let width = g.ow + self.reach[1];
        let plane_len = self.plane_len(lines.len(), g.ow);
        for (plane, out) in self.planes.iter().zip(out.chunks_exact_mut(plane_len * stride)) {
            // The positions of a line that lie inside the image, and the first one's column.
            let first = p.pads[1].saturating_sub(plane[1]).div_ceil(p.stride[1]).min(width);
            let column = (first * p.stride[1] + plane[1]).saturating_sub(p.pads[1]);
            let inside = g.w.saturating_sub(column).div_ceil(p.stride[1]).min(width - first);
            for (line, out) in (lines.start..).zip(out.chunks_exact_mut(width * stride)) {
                let row = (line * p.stride[0] + plane[0]).wrapping_sub(p.pads[0]);
                if row >= g.h || inside == 0 && !self.by_rows {
                    out.fill(0.0);
                    continue;
                }
                if self.by_rows {
                    let from = &x[row * g.w * p.c_in..][..g.w * p.c_in];
                    finite &= self.convert_line(g, from, padded, out);
                    continue;
                }
                out[..first * stride].fill(0.0);
                out[(first + inside) * stride..].fill(0.0);
                finite &= simd::dispatch_pairs(Convert {
                    terms: self.b.terms(),
                    from: &x[(row * g.w + column) * p.c_in..],
                    rows: inside,
                    columns: p.c_in,
                    stride: p.stride[1] * p.c_in,
                    out: &mut out[first * stride..],
                    out_stride: stride,
                });
            }
        }
        finite
    }

    /// Converts a line of input for rows of the kernel.
    fn convert_line(
        &self,
        g: &Geometry,
        from: &[f32],
        padded: &mut [f32],
        out: &mut [f32],
    ) -> bool {
        let p = &g.params;
        let padded = &mut padded[..self.line_len(p, g.ow)];
        let (left, rest) = padded.split_at_mut((p.pads[1] * p.c_in).min(padded.len()));
        let (inside, right) = rest.split_at_mut(from.len().min(rest.len()));
        left.fill(0.0);
        inside.copy_from_slice(&from[..inside.len()]);
        right.fill(0.0);
        simd::dispatch_pairs(Convert {
            terms: self.b.terms(),
            from: padded,
            rows: g.ow,
            columns: p.kernel[1] * p.c_in,
            stride: p.stride[1] * p.c_in,
            out,
            out_stride: self.stride(),
        })
    }
}

#[cfg(test)]
mod tests;
