//! Two-dimensional convolution with sparse weights, channels last.

use std::ops::Range;

use crate::activation::Epilogue;
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::conv::{Conv2dParams, check_images};
use crate::isa::{self, Isa};
use crate::pool::{Pool, part_of};
use crate::simd;
use crate::sparse::compressed::Compressed;
use crate::sparse::grid::{FAR_LEN, Grid, Load, Strips, TRANSPOSE_COST};
use crate::sparse::kernel::{GROUP, Output, Tile, most_vectors, sums_len};
use crate::sparse::slab::Slab;

/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_MACS: usize = 48 * 1024;

/// So few threads each make a slab for themselves sooner than they fetch it from one another.
const FEW_THREADS: usize = 4;

/// Weights per output channel that take longer than fetching the output does.
const FAR_WEIGHTS: usize = 32;

/// A convolution of images of one size with its nonzero weights compressed.
#[derive(Clone, Debug)]
pub struct SparseConv2d {
    params: Conv2dParams,
    isa: Isa,
    /// Height and width of the images.
    size: [usize; 2],
    grid: Grid,
    groups: Vec<Compressed>,
    bias: Option<Vec<f32>>,
    zeros: AlignedBuffer,
}

/// How a run is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    strips: Strips,
    /// Whether all slabs are made first, by all threads.
    shared: bool,
    /// Parts of the output channels that tasks have on shared slabs.
    parts: usize,
    /// Slabs that exist at once.
    slabs: usize,
    slab_len: usize,
    sums_len: usize,
}

impl Cut {
    /// Elements of scratch for all slabs and the threads' sums.
    fn scratch_len(&self, threads: usize) -> usize {
        16 + self.slabs * self.slab_len + threads * self.sums_len
    }
}

impl SparseConv2d {
    /// Compresses `weight` (ONNX order: c_out, c_in / groups, kernel height, kernel width) for
    /// images of a height and width, the last of `images`; how many there will be, its first, is a
    /// hint. `None` where images are too wide for the compressed form.
    pub fn new(
        params: Conv2dParams,
        images: [usize; 3],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Option<SparseConv2d> {
        SparseConv2d::new_with_isa(isa::best(), params, images, weight, bias)
    }

    /// [`SparseConv2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        images: [usize; 3],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Option<SparseConv2d> {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[f32]>::len));
        let p = &params;
        let [n, h, w] = images;
        // Each pixel on its own: as many images.
        let flat = p.taps() == 1 && p.stride == [1, 1] && p.pads == [0; 4];
        let images = if flat { [n.checked_mul(h)?.checked_mul(w)?, 1, 1] } else { images };
        // A single pixel fills no vector.
        let isa = if images == [1, 1, 1] { Isa::Scalar } else { isa };
        let (lanes, _, _) = simd::tile_of(isa);
        let (ci, co, taps) = (p.c_in / p.groups, p.c_out / p.groups, p.taps());
        let (weights, position) = (co * taps * ci, TRANSPOSE_COST * ci);
        let load = Load { channels: ci, weights, rows: co, position };
        let grid = Grid::new(p, images, [lanes, most_vectors(isa)], load)?;
        let groups = weight.chunks_exact((co * ci * taps).max(1)).take(p.groups);
        let groups = groups.map(|weight| compress(&grid, [co, ci], weight)).collect();
        Some(SparseConv2d {
            params,
            isa,
            size: [h, w],
            groups,
            grid,
            bias: bias.map(<[f32]>::to_vec),
            zeros: AlignedBuffer::zeroed(ci),
        })
    }

    /// The shape.
    pub fn params(&self) -> &Conv2dParams {
        &self.params
    }

    /// Size of the compressed weights in memory.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(Compressed::bytes).sum()
    }

    /// Output height and width.
    pub fn output_size(&self) -> [usize; 2] {
        self.params.output_size(self.size[0], self.size[1])
    }

    /// How many elements of scratch [`SparseConv2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, threads: usize) -> usize {
        self.cut(self.images(n), threads).scratch_len(threads)
    }

    fn nonzeros(&self) -> usize {
        self.groups.iter().map(Compressed::nonzeros).sum()
    }

    /// Whether an output so large is worth fetching before it is written.
    fn is_far(&self, len: usize) -> bool {
        len >= FAR_LEN && self.nonzeros() >= FAR_WEIGHTS * self.params.c_out
    }

    /// The number of images on the grid.
    fn images(&self, n: usize) -> usize {
        if self.grid.is_flat() { n * self.size[0] * self.size[1] } else { n }
    }

    fn cut(&self, images: usize, threads: usize) -> Cut {
        let p = &self.params;
        let (ci, co, groups) = (p.c_in / p.groups, p.c_out / p.groups, p.groups);
        let bands = self.grid.all_bands(images);
        let tiles = bands * self.grid.tiles;
        let sums = tiles * self.grid.tile_len();
        let wanted = match threads {
            1 => 1,
            _ => (4 * threads).min(self.nonzeros().saturating_mul(sums) / TASK_MACS).max(1),
        };
        let strips = self.grid.strips(images);
        let whole = co.div_ceil(GROUP);
        let busy = threads.min(wanted);
        let even = bands.next_multiple_of(busy);
        // Strips keep what they read with one processor; but each should have as much to do.
        let uneven = match groups {
            1 => wanted > 1 && even * 4 > bands * 5,
            _ => strips * groups < wanted.min(2 * threads),
        };
        let shared = uneven && threads > FEW_THREADS;
        let mut cut = Strips { bands, parts: 1, count: strips };
        let mut parts = 1;
        if shared {
            parts = wanted.div_ceil((tiles * groups).max(1)).min(whole).max(1);
        } else if groups > 1 && uneven {
            cut.parts = wanted.div_ceil(strips * groups).min(threads).min(whole);
            cut.count = strips * cut.parts;
        } else if groups == 1 && wanted > 1 && even * 50 > bands * 51 && whole >= busy {
            // Threads share out a band's channels where they cannot have as many bands each.
            cut = Strips { bands, parts: busy, count: busy };
        } else if groups == 1 && wanted > 1 {
            cut.count = strips.next_multiple_of(busy).min(bands.max(1));
        }
        let most = if shared { whole.div_ceil(parts) } else { cut.most_of(whole) };
        Cut {
            strips: cut,
            shared,
            parts,
            slabs: if shared { strips * groups } else { threads },
            slab_len: (ci * self.grid.planes.len() * self.grid.slab * self.grid.lanes)
                .next_multiple_of(16),
            sums_len: sums_len(&self.grid, &self.groups[0], co.min(most * GROUP))
                .next_multiple_of(16),
        }
    }

    /// y = epilogue(conv(x) + bias), x: n, h, w, c_in; y: n, out h, out w, c_out.
    pub fn run(
        &self,
        n: usize,
        x: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let p = &self.params;
        let [h, w] = self.size;
        let [oh, ow] = self.output_size();
        check_images(n, [h, w, p.c_in], [oh, ow, p.c_out], x.len(), y.len());
        let bias = self.bias.as_deref();
        self.run_strided(self.images(n), x, p.c_in, bias, epi, y, scratch, pool);
    }

    /// [`SparseConv2d::run`] of `images` on the grid with input pixels `stride` elements apart.
    pub(crate) fn run_strided(
        &self,
        images: usize,
        x: &[f32],
        stride: usize,
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        epi.check(y.len());
        if y.is_empty() {
            return;
        }
        let threads = pool.threads();
        if threads == 1 {
            self.run_alone(images, x, stride, bias, epi, y, scratch);
            return;
        }
        let cut = self.cut(images, threads);
        assert!(scratch.len() >= cut.scratch_len(threads), "scratch has scratch_len elements");
        let (slabs, sums) = align_scratch(scratch).split_at_mut(cut.slabs * cut.slab_len);
        let (slabs, sums) = (SharedMut::new(slabs), SharedMut::new(sums));
        let far = self.is_far(y.len());
        let y = SharedMut::new(y);
        let run = Run { conv: self, cut, images, x, stride, bias, epi, y, far };
        let count = self.groups.len();
        let channels = self.params.c_in / self.params.groups;
        if !cut.shared {
            pool.run_with_worker(cut.strips.count * count, &|task, worker| {
                // SAFETY: each worker has its own part, and runs one task at a time.
                let sums = unsafe { sums.slice(worker * cut.sums_len, cut.sums_len) };
                let slab = slabs.at(worker * cut.slab_len);
                run.strip(task / count, task % count, slab, sums);
            });
            return;
        }
        let chunks =
            (2 * threads).div_ceil(cut.strips.count * count).min(channels.div_ceil(GROUP)).max(1);
        pool.run(cut.strips.count * count * chunks, &|task| {
            let (which, chunk) = (task / chunks, task % chunks);
            let part = chunk_of(channels, chunks, chunk);
            let bands = cut.strips.bands_of(which / count);
            run.fill(bands, which % count, part, slabs.at(which * cut.slab_len));
        });
        let tiles = cut.strips.bands * self.grid.tiles;
        pool.run_with_worker(count * cut.parts * tiles, &|task, worker| {
            // Neighbouring tasks share weights.
            let (rest, tile) = (task / tiles, task % tiles);
            let (group, part) = (rest / cut.parts, rest % cut.parts);
            let strip = cut.strips.with(tile / self.grid.tiles);
            let slab = slabs.at((strip * count + group) * cut.slab_len);
            let first = cut.strips.bands_of(strip).start;
            let rows = run.rows(part..part + 1, cut.parts);
            // SAFETY: each worker has its own part, and runs one task at a time.
            let sums = unsafe { sums.slice(worker * cut.sums_len, cut.sums_len) };
            run.tile(group, first, tile, rows, slab, sums);
        });
    }

    /// [`SparseConv2d::run_strided`] on the calling thread.
    pub(crate) fn run_alone(
        &self,
        images: usize,
        x: &[f32],
        stride: usize,
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let cut = self.cut(images, 1);
        assert!(scratch.len() >= cut.scratch_len(1), "scratch has scratch_len elements");
        let (slab, sums) = align_scratch(scratch).split_at_mut(cut.slab_len);
        let slab = SharedMut::new(slab);
        let far = self.is_far(y.len());
        let y = SharedMut::new(y);
        let run = Run { conv: self, cut, images, x, stride, bias, epi, y, far };
        for task in 0..cut.strips.count * self.groups.len() {
            run.strip(task / self.groups.len(), task % self.groups.len(), slab, sums);
        }
    }
}

struct Run<'a> {
    conv: &'a SparseConv2d,
    cut: Cut,
    images: usize,
    x: &'a [f32],
    stride: usize,
    bias: Option<&'a [f32]>,
    epi: &'a Epilogue<'a>,
    y: SharedMut,
    /// See [`Output`].
    far: bool,
}

impl Run<'_> {
    /// All of a strip for a group.
    fn strip(&self, strip: usize, group: usize, slab: SharedMut, sums: &mut [f32]) {
        let (grid, strips) = (&self.conv.grid, &self.cut.strips);
        let channels = self.conv.params.c_in / self.conv.params.groups;
        let all = strips.bands_of(strip);
        for first in all.clone().step_by(grid.strip) {
            let bands = first..all.end.min(first + grid.strip);
            self.fill(bands.clone(), group, 0..channels, slab);
            for tile in first * grid.tiles..bands.end * grid.tiles {
                let parts = strips.parts_of(strip, tile / grid.tiles);
                let rows = self.rows(parts, strips.parts);
                self.tile(group, first, tile, rows, slab, sums);
            }
        }
    }

    /// Some of `count` parts of a group's output channels.
    fn rows(&self, parts: Range<usize>, count: usize) -> Range<usize> {
        let co = self.conv.params.c_out / self.conv.params.groups;
        let cut = |i: usize| (i * co.div_ceil(GROUP) / count * GROUP).min(co);
        cut(parts.start)..cut(parts.end)
    }

    /// Makes some channels of the slab of some bands.
    fn fill(&self, bands: Range<usize>, group: usize, channels: Range<usize>, out: SharedMut) {
        let conv = self.conv;
        let grid = &conv.grid;
        if channels.is_empty() || bands.is_empty() {
            return;
        }
        let slab = Slab {
            grid,
            n: self.images,
            x: self.x,
            stride: self.stride,
            channel: group * (conv.params.c_in / conv.params.groups),
            zeros: conv.zeros.as_slice(),
            positions: grid.span(&bands),
            channels,
            out,
        };
        simd::dispatch(conv.isa, slab);
    }

    /// A tile times some of a group's output channels; the slab begins with band `first`.
    fn tile(
        &self,
        group: usize,
        first: usize,
        tile: usize,
        rows: Range<usize>,
        slab: SharedMut,
        sums: &mut [f32],
    ) {
        let conv = self.conv;
        let co = conv.params.c_out / conv.params.groups;
        let stride = conv.params.c_out;
        let output = Output::new(self.bias, self.epi, self.y, self.far, stride, group * co);
        let grid = &conv.grid;
        let (band, index) = (tile / grid.tiles, tile % grid.tiles);
        let at = grid.start(band) - grid.start(first) + index * grid.tile[1];
        let tile = Tile {
            grid,
            n: self.images,
            weights: &conv.groups[group],
            rows,
            band,
            index,
            x: slab.at(at * grid.lanes).ptr(),
            line: grid.pitch * grid.lanes,
            channel_len: grid.planes.len() * grid.slab * grid.lanes,
            sums,
            keeps_sums: false,
            output: &output,
        };
        simd::dispatch(conv.isa, tile);
    }
}

/// Compresses the weights (c_out, c_in, tap) of a group.
pub(crate) fn compress(grid: &Grid, [co, ci]: [usize; 2], weight: &[f32]) -> Compressed {
    let (planes, taps) = (grid.planes.len(), grid.taps.len());
    let blocks = cut_evenly(ci, grid.block_channels());
    Compressed::new(co, blocks, |channels, row, list| {
        let row = &weight[row * ci * taps..][..ci * taps];
        for c in channels.clone() {
            for (tap, &value) in grid.taps.iter().zip(&row[c * taps..][..taps]) {
                if value != 0.0 {
                    let at = (c - channels.start) * planes + tap.plane;
                    let offset = u16::try_from(at * grid.slab + tap.shift);
                    list.push((offset.expect("a block fits 16 bits"), value));
                }
            }
        }
    })
}

/// `len` cut into ranges of nearly equal length, at most `most`.
pub(crate) fn cut_evenly(len: usize, most: usize) -> Vec<Range<usize>> {
    let parts = len.div_ceil(most).max(1);
    (0..parts).map(|i| part_of(0..len, parts, i)).collect()
}

/// The channels of one of `chunks`, in whole groups.
pub(crate) fn chunk_of(channels: usize, chunks: usize, chunk: usize) -> Range<usize> {
    let each = channels.div_ceil(chunks).next_multiple_of(GROUP);
    (chunk * each).min(channels)..((chunk + 1) * each).min(channels)
}
