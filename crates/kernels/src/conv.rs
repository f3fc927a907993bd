//! Two-dimensional convolution, channels last, with packed weights.

mod bf16;
mod depthwise;
pub(crate) mod indirect;
mod inverted;
mod lines;
mod tiled;
mod transpose;
mod winograd;

pub use bf16::Conv2dBf16;
pub use inverted::{InvertedResidual, Pointwise};
pub use transpose::ConvTranspose2d;

use crate::activation::{Epilogue, Residual};
use crate::aligned::{SharedMut, align_scratch};
use crate::gemm::driver::{Block, Product, Rows, Split};
use crate::gemm::run_dense;
use crate::gemm::{PackedB, PackedTiles, Terms, gemm_tiled};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;
use depthwise::Depthwise;
use indirect::{CopyRows, Geometry};
use tiled::Tiled;
use winograd::{Tiling, Winograd};

/// The shape of a two-dimensional convolution, height before width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Groups: both channel counts are multiples of it.
    pub groups: usize,
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Zeros around the input: top, left, bottom, right.
    pub pads: [usize; 4],
}

impl Conv2dParams {
    pub(crate) fn check(&self, weight_len: usize, bias_len: Option<usize>) {
        assert!(
            self.groups > 0
                && self.c_in.is_multiple_of(self.groups)
                && self.c_out.is_multiple_of(self.groups),
            "channels are multiples of groups"
        );
        assert!(
            self.kernel.iter().chain(&self.stride).chain(&self.dilation).all(|&d| d > 0),
            "kernel, stride and dilation are positive"
        );
        assert!(
            weight_len == self.c_out * (self.c_in / self.groups) * self.taps(),
            "weight has channels times kernel elements"
        );
        assert!(bias_len.is_none_or(|len| len == self.c_out), "bias has c_out elements");
    }

    /// Whether the input is the left-hand matrix of a product as it is.
    fn is_product(&self) -> bool {
        self.taps() == 1 && self.stride == [1, 1] && self.pads == [0; 4] && self.groups == 1
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        let one = |i: usize, size: usize, pad: usize| {
            let span = self.dilation[i] * (self.kernel[i] - 1) + 1;
            if size + pad < span { 0 } else { (size + pad - span) / self.stride[i] + 1 }
        };
        [one(0, h, self.pads[0] + self.pads[2]), one(1, w, self.pads[1] + self.pads[3])]
    }
}

#[derive(Clone, Debug)]
enum Algorithm {
    /// One tap, step 1, no padding: the input is the matrix.
    Pointwise(PackedB),
    /// Pointers to each tap's pixel, a matrix of weights per group.
    Indirect { groups: Vec<PackedB>, zeros: Vec<f32> },
    /// A first layer's few input channels: pixels in registers over padded lines of the input.
    Lines(PackedB),
    /// Few input channels: a tap is a whole row of the kernel.
    KernelRows { b: PackedB, zeros: Vec<f32> },
    /// Few input channels per group: a block's patches are copied into rows first.
    Copied(Vec<PackedB>),
    /// One input channel per group.
    Depthwise(Depthwise),
    /// Fewer multiplications, larger rounding errors.
    Winograd(Winograd),
    /// [`Algorithm::Pointwise`] on AMX, numbers as sums of bf16.
    PointwiseTiles(PackedTiles),
    /// Any other window on AMX.
    Tiled(Tiled),
}

impl Algorithm {
    fn on_tiles(terms: Terms, p: &Conv2dParams, pixels: usize, weight: &[f32]) -> Algorithm {
        if p.is_product() {
            let size = [pixels, p.c_in, p.c_out];
            Algorithm::PointwiseTiles(PackedTiles::new(terms, size, weight, true))
        } else {
            Algorithm::Tiled(Tiled::new(terms, p, pixels, weight))
        }
    }
}

/// What else decides how a convolution is computed, besides its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Images, and the height and width of the inputs to come, where the choice may depend on
    /// them. Others still work.
    pub images: Option<[usize; 3]>,
    /// Only methods that add up all products as they are: no Winograd, no zeros skipped.
    pub exact: bool,
    /// Numbers as sums of bf16 where that is faster: on AMX.
    pub tiles: Option<Terms>,
}

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// As computed: with groups merged.
    params: Conv2dParams,
    /// As asked for.
    given: Conv2dParams,
    isa: Isa,
    algorithm: Algorithm,
    bias: Option<Vec<f32>>,
}

impl Conv2d {
    /// Packs `weight` (ONNX order: c_out, c_in / groups, kernel height, kernel width).
    pub fn new(params: Conv2dParams, weight: &[f32], bias: Option<&[f32]>) -> Conv2d {
        Conv2d::new_with_isa(isa::best(), params, weight, bias)
    }

    /// [`Conv2d::new`] with the method chosen for the images to come.
    ///
    /// Winograd's F(4x4, 3x3) is taken where it pays; its rounding errors are a few times those of
    /// the direct sum (some 1e-6 of the largest output). `options.exact` excludes it.
    pub fn for_images(
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
        options: Conv2dOptions,
    ) -> Conv2d {
        Conv2d::for_images_with_isa(isa::best(), params, weight, bias, options)
    }

    /// [`Conv2d::for_images`] for a given instruction set, which must be available.
    pub fn for_images_with_isa(
        isa: Isa,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
        options: Conv2dOptions,
    ) -> Conv2d {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[f32]>::len));
        let with = |algorithm| {
            let bias = bias.map(<[f32]>::to_vec);
            Conv2d { params, given: params, isa, algorithm, bias }
        };
        if let Some([n, h, w]) = options.images {
            let [oh, ow] = params.output_size(h, w);
            let pixels = n * oh * ow;
            let tiling = match options.exact {
                true => None,
                false => winograd::choose(&params, [n, oh, ow], 0.85),
            };
            if let Some(terms) = options.tiles
                && Tiled::fits(&params, pixels)
                && Tiled::pays(terms, &params, pixels, tiling.is_some())
                && PackedTiles::fits(isa, weight)
            {
                return with(Algorithm::on_tiles(terms, &params, pixels, weight));
            }
            if let Some(tiling) = tiling {
                return Conv2d::by_winograd(isa, tiling, params, weight, bias);
            }
        }
        let conv = Conv2d::new_with_isa(isa, params, weight, bias);
        if options.exact { conv } else { conv.skipping_zeros() }
    }

    fn by_winograd(
        isa: Isa,
        tiling: Tiling,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Conv2d {
        let algorithm = Algorithm::Winograd(Winograd::new(isa, tiling, &params, weight));
        Conv2d { params, given: params, isa, algorithm, bias: bias.map(<[f32]>::to_vec) }
    }

    /// Has products skip zeros of the input where they can and it pays.
    fn skipping_zeros(mut self) -> Conv2d {
        self.algorithm = match self.algorithm {
            Algorithm::Pointwise(b) => Algorithm::Pointwise(b.skipping_zeros()),
            Algorithm::Indirect { groups, zeros } if self.params.taps() == 1 => {
                let groups = groups.into_iter().map(PackedB::skipping_zeros).collect();
                Algorithm::Indirect { groups, zeros }
            }
            other => other,
        };
        self
    }

    /// [`Conv2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Conv2d {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[f32]>::len));
        let p = &params;
        let (ci, co, taps) = (p.c_in / p.groups, p.c_out / p.groups, p.taps());
        let merged = if ci > 1 || taps > depthwise::MAX_TAPS { merge_groups(isa, p) } else { 1 };
        if merged > 1 {
            let dense = block_diagonal(p, merged, weight);
            let params = Conv2dParams { groups: p.groups / merged, ..params };
            return Conv2d { given: *p, ..Conv2d::new_with_isa(isa, params, &dense, bias) };
        }
        let pack = |group: usize| {
            let weight = &weight[group * co * ci * taps..][..co * ci * taps];
            pack_filters(isa, co, ci, taps, weight)
        };
        let algorithm = if p.is_product() {
            Algorithm::Pointwise(pack(0))
        } else if ci == 1 && p.groups > 1 && taps <= depthwise::MAX_TAPS {
            Algorithm::Depthwise(Depthwise::new(p, weight))
        } else if taps > 1 && lines::fits(p) {
            Algorithm::Lines(pack(0))
        } else if ci < 16 && taps > 1 && p.groups == 1 && p.dilation[1] == 1 {
            Algorithm::KernelRows { b: pack(0), zeros: vec![0.0; p.kernel[1] * ci] }
        } else if ci < 16 && taps > 1 {
            Algorithm::Copied((0..p.groups).map(pack).collect())
        } else {
            let groups = (0..p.groups).map(pack).collect();
            Algorithm::Indirect { groups, zeros: vec![0.0; ci] }
        };
        Conv2d { params, given: params, isa, algorithm, bias: bias.map(<[f32]>::to_vec) }
    }

    /// The shape.
    #[expect(clippy::misnamed_getters, reason = "`params` holds the merged groups")]
    pub fn params(&self) -> &Conv2dParams {
        &self.given
    }

    /// The name of the method chosen for this shape.
    pub fn algorithm(&self) -> &'static str {
        match &self.algorithm {
            Algorithm::Pointwise(b) if b.skips_zeros() => "skipping pointwise",
            Algorithm::Pointwise(_) => "pointwise",
            Algorithm::Indirect { groups, .. } if groups.iter().any(PackedB::skips_zeros) => {
                "skipping indirect"
            }
            Algorithm::Indirect { .. } => "indirect",
            Algorithm::Lines(_) => "lines",
            Algorithm::KernelRows { .. } => "kernel rows",
            Algorithm::Copied(_) => "copied",
            Algorithm::Depthwise(_) => "depthwise",
            Algorithm::Winograd(_) => "winograd",
            Algorithm::PointwiseTiles(_) => "amx pointwise",
            Algorithm::Tiled(_) => "amx",
        }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        match &self.algorithm {
            Algorithm::Pointwise(b) | Algorithm::Lines(b) | Algorithm::KernelRows { b, .. } => {
                b.bytes()
            }
            Algorithm::Indirect { groups, .. } | Algorithm::Copied(groups) => {
                groups.iter().map(PackedB::bytes).sum()
            }
            Algorithm::Depthwise(d) => d.bytes(),
            Algorithm::Winograd(w) => w.bytes(),
            Algorithm::PointwiseTiles(b) => b.bytes(),
            Algorithm::Tiled(t) => t.bytes(),
        }
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        self.params.output_size(h, w)
    }

    /// How many elements of scratch [`Conv2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let [oh, ow] = self.output_size(h, w);
        match &self.algorithm {
            Algorithm::Pointwise(_) | Algorithm::Depthwise(_) => 0,
            Algorithm::Indirect { groups, .. } | Algorithm::Copied(groups) => {
                let split = self.split(n * oh * ow, &groups[0], threads);
                16 + threads * self.worker_scratch(&split)
            }
            Algorithm::Winograd(winograd) => winograd.scratch_len(n, oh, ow, threads),
            Algorithm::PointwiseTiles(b) => b.scratch_len(n * h * w, threads),
            Algorithm::Tiled(tiled) => tiled.scratch_len(n, &self.geometry(h, w), threads),
            Algorithm::Lines(_) => lines::scratch_len(&self.geometry(h, w), threads),
            Algorithm::KernelRows { b, .. } => {
                16 + threads * self.worker_scratch(&self.split(n * oh * ow, b, threads))
            }
        }
    }

    fn geometry(&self, h: usize, w: usize) -> Geometry {
        let [oh, ow] = self.output_size(h, w);
        Geometry { params: self.params, h, w, oh, ow }
    }

    fn split(&self, m: usize, b: &PackedB, threads: usize) -> Split {
        // Groups are tasks already.
        Split::new(m, b, if self.params.groups >= 4 * threads { 1 } else { threads })
    }

    /// Elements of scratch for one block of rows, in whole cache lines.
    fn worker_scratch(&self, split: &Split) -> usize {
        let p = &self.params;
        let per_row = match &self.algorithm {
            // A pointer is two elements of f32.
            Algorithm::Indirect { .. } => 2 * p.taps(),
            // A pointer per row of the kernel, and copies where it crosses the border.
            Algorithm::KernelRows { .. } => 2 * p.kernel[0] + p.taps() * p.c_in,
            _ => p.taps() * p.c_in / p.groups,
        };
        (split.block_rows() * per_row + 2 * simd::MAX_LANES).next_multiple_of(16)
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
        let bias = self.bias.as_deref();
        let geometry = self.geometry(h, w);
        match &self.algorithm {
            Algorithm::Pointwise(b) => {
                let product = Product::new(b, 1, bias, epi, SharedMut::new(y), p.c_out);
                run_dense(&product, n * h * w, x, p.c_in, pool);
            }
            Algorithm::Winograd(winograd) => {
                winograd.run(n, &geometry, x, bias, epi, y, scratch, pool);
            }
            Algorithm::PointwiseTiles(b) => {
                gemm_tiled(n * h * w, x, p.c_in, b, bias, epi, y, scratch, pool);
            }
            Algorithm::Tiled(tiled) => {
                tiled.run(n, &geometry, x, bias, epi, y, scratch, pool);
            }
            Algorithm::Lines(b) => {
                lines::run(b, n, &geometry, x, bias, epi, y, scratch, pool);
            }
            Algorithm::Depthwise(d) => d.run(self.isa, n, &geometry, x, bias, epi, y, pool),
            Algorithm::Indirect { groups, zeros } => {
                self.run_blocks(n, &geometry, x, groups, zeros, epi, y, scratch, pool);
            }
            Algorithm::KernelRows { b, zeros } => {
                let groups = std::slice::from_ref(b);
                self.run_blocks(n, &geometry, x, groups, zeros, epi, y, scratch, pool);
            }
            Algorithm::Copied(groups) => {
                self.run_blocks(n, &geometry, x, groups, &[], epi, y, scratch, pool);
            }
        }
    }

    /// Blocks of output pixels as tasks.
    fn run_blocks(
        &self,
        n: usize,
        geometry: &Geometry,
        x: &[f32],
        groups: &[PackedB],
        zeros: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let p = &self.params;
        let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
        let m = n * geometry.oh * geometry.ow;
        let split = self.split(m, &groups[0], pool.threads());
        let per_worker = self.worker_scratch(&split);
        let scratch = SharedMut::new(align_scratch(scratch));
        let y = SharedMut::new(y);
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
            let c = y.at(group * co);
            let taps = match self.algorithm {
                Algorithm::Indirect { .. } => p.taps(),
                Algorithm::KernelRows { .. } => p.kernel[0],
                _ => 1,
            };
            let product = Product::new(b, taps, bias, &epi, c, p.c_out);
            let (first_row, m, mr) = (rows.start, rows.len(), b.tile().0);
            let channel = group * ci;
            let rows = match self.algorithm {
                Algorithm::Indirect { .. } => {
                    Rows::Table(geometry.pointers(x, channel, zeros, rows, mr, scratch))
                }
                Algorithm::KernelRows { .. } => {
                    Rows::Table(geometry.kernel_rows(x, zeros, rows, mr, scratch))
                }
                _ => {
                    let a = scratch.as_ptr();
                    simd::dispatch(self.isa, CopyRows { geometry, x, channel, rows, scratch });
                    Rows::Dense { a, lda: b.k() }
                }
            };
            let block = Block { product: &product, rows, m, first_row, panels };
            simd::dispatch(self.isa, block);
        });
    }
}

/// How many groups to treat as one, so that a group's outputs fill the vectors of a tile.
fn merge_groups(isa: Isa, p: &Conv2dParams) -> usize {
    let (lanes, _, vectors) = simd::tile_of(isa);
    let most = (lanes * vectors).min(16) / (p.c_out / p.groups).max(1);
    (1..=most.max(1)).rev().find(|&f| p.groups.is_multiple_of(f)).unwrap_or(1)
}

/// The weights of `merged` groups as those of one, zeros between them. (An infinite input so
/// spreads NaN over the merged groups' outputs.)
fn block_diagonal(p: &Conv2dParams, merged: usize, weight: &[f32]) -> Vec<f32> {
    let (ci, co, taps) = (p.c_in / p.groups, p.c_out / p.groups, p.taps());
    let mut dense = vec![0.0; p.c_out * ci * merged * taps];
    for (o, row) in dense.chunks_exact_mut((ci * merged * taps).max(1)).enumerate() {
        let start = o / co % merged * ci * taps;
        row[start..start + ci * taps].copy_from_slice(&weight[o * ci * taps..][..ci * taps]);
    }
    dense
}

/// The epilogue of the output from element `start` on.
fn offset<'a>(epi: &Epilogue<'a>, start: usize) -> Epilogue<'a> {
    let residual = match epi.residual {
        Residual::None => Residual::None,
        Residual::BeforeActivation(r) => Residual::BeforeActivation(&r[start..]),
        Residual::AfterActivation(r) => Residual::AfterActivation(&r[start..]),
    };
    Epilogue { activation: epi.activation, residual }
}

/// Checks the lengths of a run's input and output, of `n` images of height, width and channels.
pub(crate) fn check_images(
    n: usize,
    [h, w, c_in]: [usize; 3],
    [oh, ow, c_out]: [usize; 3],
    x_len: usize,
    y_len: usize,
) {
    assert!(x_len == n * h * w * c_in, "x has n * h * w * c_in elements");
    assert!(y_len == n * oh * ow * c_out, "y has n * oh * ow * c_out elements");
}

/// Filters (c_out, c, tap) as a matrix of rows (tap, c) and columns c_out.
fn pack_filters(isa: Isa, c_out: usize, ci: usize, taps: usize, weight: &[f32]) -> PackedB {
    let k = ci * taps;
    if ci == 1 || taps == 1 {
        return PackedB::new_with_isa(isa, k, c_out, weight, true);
    }
    PackedB::from_columns(isa, k, c_out, |filters, columns| {
        gather_filters(&weight[filters.start * k..filters.end * k], ci, taps, columns);
    })
}

/// Filters (c, tap) as columns of rows (tap, c).
fn gather_filters(filters: &[f32], ci: usize, taps: usize, columns: &mut [f32]) {
    let k = ci * taps;
    for (column, filter) in columns.chunks_exact_mut(k).zip(filters.chunks_exact(k)) {
        for (c, filter) in filter.chunks_exact(taps).enumerate() {
            for (out, &w) in column[c..].iter_mut().step_by(ci).zip(filter) {
                *out = w;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
