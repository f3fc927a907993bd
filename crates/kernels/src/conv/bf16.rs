//! Convolution of operands rounded to bf16, with sums in f32.
//!
//! The input is rounded once, to words of two channels each (see [`crate::gemm::bf16`]); then it
//! is the f32 convolution on words.

use super::indirect::Geometry;
use super::tiled::Tiled;
use super::{
    Algorithm, Conv2d, Conv2dParams, block_diagonal, check_images, merge_groups, offset, winograd,
};
use crate::activation::Epilogue;
use crate::aligned::{SharedMut, align_scratch};
use crate::gemm::bf16::{Round, pack_words};
use crate::gemm::driver::{Block, Product, Rows, Split};
use crate::gemm::{PackedB, PackedBf16, Terms, gemm_bf16};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;

#[derive(Clone, Debug)]
enum Method {
    /// One tap, step 1, no padding, one group: a matrix product.
    Pointwise(PackedBf16),
    /// Pointers to each tap's pixel in the rounded input, a matrix of weights per group.
    Indirect(Vec<PackedB>),
    /// On AMX.
    Tiled(Tiled),
    /// In f32: few input channels per group, bound by moving them, or Winograd's convolution.
    Plain(Box<Conv2d>),
}

/// A convolution with its weights rounded to bf16 and packed; its input is rounded too, sums are
/// f32. Convolutions of few input channels (a network's first, depthwise ones) stay f32.
#[derive(Clone, Debug)]
pub struct Conv2dBf16 {
    /// As computed: with groups merged.
    params: Conv2dParams,
    method: Method,
    bias: Option<Vec<f32>>,
    /// Words of zeros, for taps in the padding.
    zeros: Vec<f32>,
}

impl Conv2dBf16 {
    /// Packs `weight` (ONNX order: c_out, c_in / groups, kernel height, kernel width). Panics
    /// unless [`crate::isa::bf16`] says that bf16 can be used.
    pub fn new(params: Conv2dParams, weight: &[f32], bias: Option<&[f32]>) -> Conv2dBf16 {
        params.check(weight.len(), bias.map(<[f32]>::len));
        let p = &params;
        let (ci, co, taps) = (p.c_in / p.groups, p.c_out / p.groups, p.taps());
        if isa::best() == Isa::Amx && !p.is_product() && Tiled::fits(p, usize::MAX) {
            let method = Method::Tiled(Tiled::new(Terms::One, p, 1, weight));
            let bias = bias.map(<[f32]>::to_vec);
            return Conv2dBf16 { params, method, bias, zeros: Vec::new() };
        }
        if ci < 16 && taps > 1 {
            let conv = Conv2d::new_with_isa(Isa::Avx512, params, weight, bias);
            if matches!(
                conv.algorithm,
                Algorithm::Depthwise(_) | Algorithm::Lines(_) | Algorithm::KernelRows { .. }
            ) {
                let (zeros, method) = (Vec::new(), Method::Plain(Box::new(conv)));
                return Conv2dBf16 { params, method, bias: None, zeros };
            }
        }
        let merged = merge_groups(Isa::Avx512, p);
        if merged > 1 {
            let dense = block_diagonal(p, merged, weight);
            let params = Conv2dParams { groups: p.groups / merged, ..params };
            return Conv2dBf16::new(params, &dense, bias);
        }
        let at = |group: usize, k: usize, j: usize| {
            weight[((group * co + j) * ci + k % ci) * taps + k / ci]
        };
        let (method, zeros) = if p.is_product() {
            (Method::Pointwise(PackedBf16::new(ci, co, weight, true)), 0)
        } else {
            let pack = |group| pack_words(taps, ci, co, |k, j| at(group, k, j));
            (Method::Indirect((0..p.groups).map(pack).collect()), ci)
        };
        let (bias, zeros) = (bias.map(<[f32]>::to_vec), vec![0.0; zeros.div_ceil(2)]);
        Conv2dBf16 { params, method, bias, zeros }
    }

    /// [`Conv2dBf16::new`] with the method chosen for the images (number, height, width) to come:
    /// where nothing but twice as many products an instruction speaks for bf16, Winograd's
    /// convolution in f32 is faster if it saves more than half of them.
    pub fn for_images(
        params: Conv2dParams,
        [n, h, w]: [usize; 3],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Conv2dBf16 {
        let [oh, ow] = params.output_size(h, w);
        let tiling = winograd::choose(&params, [n, oh, ow], 0.5);
        let Some(tiling) = tiling.filter(|_| isa::best() != Isa::Amx) else {
            return Conv2dBf16::new(params, weight, bias);
        };
        params.check(weight.len(), bias.map(<[f32]>::len));
        let conv = Conv2d::by_winograd(Isa::Avx512, tiling, params, weight, bias);
        let (zeros, method) = (Vec::new(), Method::Plain(Box::new(conv)));
        Conv2dBf16 { params, method, bias: None, zeros }
    }

    /// The name of the method chosen for this shape.
    pub fn algorithm(&self) -> &'static str {
        match &self.method {
            Method::Pointwise(_) => "bf16 pointwise",
            Method::Indirect(_) => "bf16 indirect",
            Method::Tiled(_) => "bf16 amx",
            Method::Plain(conv) => conv.algorithm(),
        }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        match &self.method {
            Method::Pointwise(b) => b.bytes(),
            Method::Indirect(groups) => groups.iter().map(PackedB::bytes).sum(),
            Method::Tiled(tiled) => tiled.bytes(),
            Method::Plain(conv) => conv.bytes(),
        }
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        self.params.output_size(h, w)
    }

    /// How many elements of scratch [`Conv2dBf16::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let [oh, ow] = self.output_size(h, w);
        let blocks = |b: &PackedB| {
            let split = self.split(n * oh * ow, b, threads);
            16 + self.image_words(n, h, w) + threads * self.worker_scratch(&split)
        };
        match &self.method {
            Method::Pointwise(b) => b.scratch_len(n * h * w, threads),
            Method::Indirect(groups) => blocks(&groups[0]),
            Method::Tiled(tiled) => {
                let geometry = Geometry { params: self.params, h, w, oh, ow };
                tiled.scratch_len(n, &geometry, threads)
            }
            Method::Plain(conv) => conv.scratch_len(n, h, w, threads),
        }
    }

    /// Words of a group's pixel.
    fn pixel_words(&self) -> usize {
        (self.params.c_in / self.params.groups).div_ceil(2)
    }

    /// Words of the rounded input, in whole cache lines.
    fn image_words(&self, n: usize, h: usize, w: usize) -> usize {
        (n * h * w * self.params.groups * self.pixel_words()).next_multiple_of(16)
    }

    fn split(&self, m: usize, b: &PackedB, threads: usize) -> Split {
        // Groups are tasks already.
        Split::new(m, b, if self.params.groups >= 4 * threads { 1 } else { threads })
    }

    /// Elements for a block of rows, in whole cache lines: pointers, of two elements each.
    fn worker_scratch(&self, split: &Split) -> usize {
        (split.block_rows() * 2 * self.params.taps()).next_multiple_of(16)
    }

    /// y = epilogue(conv(x) + bias), x: n, h, w, c_in; y: n, out h, out w, c_out.
    pub fn run(
        &self,
        n: usize,
        h: usize,
        w: usize,
        x: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let p = &self.params;
        let [oh, ow] = self.output_size(h, w);
        check_images(n, [h, w, p.c_in], [oh, ow, p.c_out], x.len(), y.len());
        assert!(
            scratch.len() >= self.scratch_len(n, h, w, pool.threads()),
            "scratch has scratch_len elements"
        );
        epi.check(y.len());
        if y.is_empty() {
            return;
        }
        let groups = match &self.method {
            Method::Plain(conv) => return conv.run(n, h, w, x, epi, y, scratch, pool),
            Method::Pointwise(b) => {
                let bias = self.bias.as_deref();
                return gemm_bf16(n * h * w, x, p.c_in, b, bias, epi, y, scratch, pool);
            }
            Method::Tiled(tiled) => {
                let (geometry, bias) =
                    (Geometry { params: *p, h, w, oh, ow }, self.bias.as_deref());
                return tiled.run(n, &geometry, x, bias, epi, y, scratch, pool);
            }
            Method::Indirect(groups) => groups.as_slice(),
        };
        let (image, scratch) = align_scratch(scratch).split_at_mut(self.image_words(n, h, w));
        self.round_image(n * h, w, x, image, pool);
        let image = &*image;
        let words = self.pixel_words() * p.groups;
        let geometry = Geometry { params: Conv2dParams { c_in: words, ..*p }, h, w, oh, ow };
        let co = p.c_out / p.groups;
        let split = self.split(n * oh * ow, &groups[0], pool.threads());
        let per_worker = self.worker_scratch(&split);
        let (scratch, y) = (SharedMut::new(scratch), SharedMut::new(y));
        pool.run_with_worker(groups.len() * split.tasks(), &|task, worker| {
            let (group, task) = (task / split.tasks(), task % split.tasks());
            let (rows, panels) = split.part(task);
            if rows.is_empty() || panels.is_empty() {
                return;
            }
            let b = &groups[group];
            // SAFETY: each worker has its own part, and runs one task at a time.
            let scratch = unsafe { scratch.slice(worker * per_worker, per_worker) };
            let bias = self.bias.as_deref().map(|bias| &bias[group * co..][..co]);
            let epi = offset(epi, group * co);
            let (first_row, m, mr) = (rows.start, rows.len(), b.tile().0);
            let (x, channel) = (&image[..n * h * w * words], group * self.pixel_words());
            let table = geometry.pointers(x, channel, &self.zeros, rows, mr, scratch);
            let rows = Rows::Table(table);
            let product = Product::new(b, p.taps(), bias, &epi, y.at(group * co), p.c_out);
            b.dispatch(Block { product: &product, rows, m, first_row, panels });
        });
    }

    /// Rounds `lines` lines of `w` pixels, as the method wants them.
    fn round_image(&self, lines: usize, w: usize, x: &[f32], image: &mut [f32], pool: &Pool) {
        let p = &self.params;
        let ci = p.c_in / p.groups;
        let image = SharedMut::new(image);
        let parts = if pool.threads() == 1 { 1 } else { lines.min(4 * pool.threads()) };
        pool.run(parts, &|part| {
            let lines = lines * part / parts..lines * (part + 1) / parts;
            let from = &x[lines.start * w * p.c_in..lines.end * w * p.c_in];
            let line = w * p.groups * self.pixel_words();
            // SAFETY: each part has lines of its own.
            let out = unsafe { image.slice(lines.start * line, lines.len() * line) };
            // Whole words: rounded as one row.
            let (rows, columns) = match ci.is_multiple_of(2) {
                true => (1, from.len()),
                false => (lines.len() * w * p.groups, ci),
            };
            let (stride, out_stride) = (ci, self.pixel_words());
            simd::dispatch_pairs(Round { from, rows, columns, stride, out, out_stride });
        });
    }
}

#[cfg(test)]
mod tests;
