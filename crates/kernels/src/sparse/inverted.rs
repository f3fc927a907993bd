//! Inverted residuals whose pointwise stages are sparse: the lanes keep their pixels through all
//! three stages, so that only the block's input and its output are transposed.
//!
//! A strip's input lies in a slab (see [`crate::sparse::grid`]). One after the other the expanded
//! channels are summed over all its positions, set to zero where the depthwise convolution pads,
//! and filtered; what is filtered lies tile by tile, and is projected as pointwise weights are.

use std::ops::Range;

use crate::activation::{Activation, Epilogue};
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::conv::{Conv2dParams, Pointwise, check_images};
use crate::gemm::micro::Finish;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};
use crate::sparse::compressed::Compressed;
use crate::sparse::conv::{chunk_of, cut_evenly};
use crate::sparse::grid::{
    Grid, LIKELY_NONZERO, Load, OFFSETS, Strips, TILE_VECTORS, TRANSPOSE_COST,
};
use crate::sparse::kernel::{GROUP, Output, Start, Tile, one_row, sums_len};
use crate::sparse::slab::{Padding, Slab, padded};

/// A stage whose results stay in the lanes.
#[derive(Clone, Debug)]
struct Stage {
    weights: Compressed,
    bias: Option<Vec<f32>>,
    activation: Activation,
}

impl Stage {
    fn bias(&self, channel: usize) -> f32 {
        self.bias.as_ref().map_or(0.0, |b| b[channel])
    }

    fn finish(&self) -> Finish {
        finish(self.activation)
    }
}

fn finish(activation: Activation) -> Finish {
    Finish::new(1.0, true, &Epilogue::activation(activation))
}

/// An inverted residual over images of one size, the nonzero weights of all its stages compressed.
/// The expansion may be absent.
#[derive(Clone, Debug)]
pub struct SparseInvertedResidual {
    isa: Isa,
    /// Of the depthwise convolution.
    params: Conv2dParams,
    size: [usize; 2],
    c_in: usize,
    grid: Grid,
    expand: Option<Stage>,
    filter: Stage,
    project: Stage,
    zeros: AlignedBuffer,
    /// Vectors from channel to channel of what is filtered.
    step: usize,
}

/// How a run is cut.
#[derive(Clone, Copy)]
struct Cut {
    strips: Strips,
    /// Whether the strips are too few for the threads: then stage by stage.
    shared: bool,
    /// Strips that exist at once, and floats of their parts: slab, filtered channels, padding.
    slabs: usize,
    slab_len: usize,
    filtered_len: usize,
    padding_len: usize,
    /// Floats of a worker's own: an expanded channel, sums.
    expanded_len: usize,
    sums_len: usize,
}

impl Cut {
    fn strip_len(&self) -> usize {
        self.slab_len + self.filtered_len + self.padding_len
    }

    fn own_len(&self) -> usize {
        self.expanded_len + self.sums_len
    }

    fn scratch_len(&self, threads: usize) -> usize {
        16 + self.slabs * self.strip_len() + threads * self.own_len()
    }
}

impl SparseInvertedResidual {
    /// Compresses the weights for images of a height and width, the last of `images`; how many
    /// there will be, its first, is a hint. `weight` and `bias` are the depthwise convolution's.
    /// `None` where the images are too wide for the compressed form, or an activation between the
    /// stages is none of the simple ones.
    pub fn new(
        images: [usize; 3],
        expand: Option<Pointwise<'_>>,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        project: Pointwise<'_>,
    ) -> Option<SparseInvertedResidual> {
        let isa = isa::best();
        let stages = (expand, activation, project);
        SparseInvertedResidual::new_with_isa(isa, images, stages, params, weight, bias)
    }

    /// [`SparseInvertedResidual::new`] for a given instruction set, which must be available.
    pub(crate) fn new_with_isa(
        isa: Isa,
        images: [usize; 3],
        (expand, activation, project): (Option<Pointwise<'_>>, Activation, Pointwise<'_>),
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Option<SparseInvertedResidual> {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[f32]>::len));
        assert!(
            params.groups == params.c_in && params.c_out == params.c_in,
            "one filter a channel"
        );
        let between = [expand.map(|e| e.activation), Some(activation)];
        if between.into_iter().flatten().any(|a| finish(a).slow.is_some()) {
            return None;
        }
        let (mid, taps) = (params.c_in, params.taps());
        let c_in = expand.map_or(mid, |e| e.weight.len() / mid);
        let c_out = project.weight.len() / mid;
        let (lanes, _, _) = simd::tile_of(isa);
        // A position's input, its share of a filtered channel for each, and the one that is expanded.
        let planes = params.stride[0] * params.stride[1];
        let load = Load {
            channels: c_in + 1 + mid.div_ceil(planes),
            // Filters are mostly dense.
            weights: mid * (taps * 16 / LIKELY_NONZERO + c_out),
            position: TRANSPOSE_COST * c_in
                + expand.map_or(0, |_| mid * (3 + c_in * LIKELY_NONZERO / 16)),
        };
        let grid = Grid::new(&params, images, lanes, load)?;
        if grid.is_flat() {
            return None;
        }
        let channel = grid.planes.len() * grid.slab;
        // Odd, as the slab's.
        let step = grid.strip_tiles() * grid.tile[0] * grid.tile[1] / 2 * 2 + 1;
        if step > OFFSETS {
            return None;
        }
        let pointwise = |p: &Pointwise<'_>, [k, n]: [usize; 2], step: usize| {
            assert!(p.bias.is_none_or(|b| b.len() == n), "bias has an element per channel");
            let blocks = cut_evenly(k, OFFSETS / step);
            let weights = Compressed::new(n, blocks, |channels, row, out| {
                let row = &p.weight[row * k..][channels.clone()];
                for (i, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                    let offset = u16::try_from(i * step);
                    out.push((offset.expect("a block fits 16 bits"), value));
                }
            });
            let (bias, activation) = (p.bias.map(<[f32]>::to_vec), p.activation);
            Stage { weights, bias, activation }
        };
        let filter = Compressed::new(mid, vec![0..1], |_, row, out| {
            for (tap, &value) in grid.taps.iter().zip(&weight[row * taps..][..taps]) {
                if value != 0.0 {
                    let offset = u16::try_from(tap.plane * grid.slab + tap.shift);
                    out.push((offset.expect("a channel fits 16 bits"), value));
                }
            }
        });
        let filter = Stage { weights: filter, bias: bias.map(<[f32]>::to_vec), activation };
        Some(SparseInvertedResidual {
            isa,
            params,
            size: [images[1], images[2]],
            c_in,
            expand: expand.map(|e| pointwise(&e, [c_in, mid], channel)),
            project: pointwise(&project, [mid, c_out], step),
            filter,
            zeros: AlignedBuffer::zeroed(c_in),
            step,
            grid,
        })
    }

    /// Size of the compressed weights in memory.
    pub fn bytes(&self) -> usize {
        let stages = [self.expand.as_ref(), Some(&self.filter), Some(&self.project)];
        stages.into_iter().flatten().map(|s| s.weights.bytes()).sum()
    }

    /// How many elements of scratch [`SparseInvertedResidual::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, threads: usize) -> usize {
        self.cut(n, threads).scratch_len(threads)
    }

    fn c_out(&self) -> usize {
        self.project.weights.rows()
    }

    fn cut(&self, n: usize, threads: usize) -> Cut {
        let grid = &self.grid;
        let (bands, mut strips) = (grid.all_bands(n), grid.strips(n));
        let shared = threads > 1 && strips < threads && bands < 2 * threads;
        if threads > 1 && !shared {
            strips = strips.next_multiple_of(threads).min(bands.max(1));
        }
        let channel = grid.planes.len() * grid.slab;
        let whole = |len: usize| len.next_multiple_of(16);
        Cut {
            strips: Strips { bands, count: strips },
            shared,
            slabs: if shared { strips } else { threads },
            slab_len: whole(self.c_in * channel * grid.lanes),
            filtered_len: whole(self.params.c_in * self.step * grid.lanes),
            padding_len: match self.expand {
                Some(_) => whole(Padding::len(channel, grid.lanes)),
                None => 0,
            },
            expanded_len: if self.expand.is_some() { whole(channel * grid.lanes) } else { 0 },
            sums_len: whole(sums_len(grid, &self.project.weights, self.c_out())),
        }
    }

    /// y = epilogue(project(act(depthwise(act(expand(x)))))), x and y channels last; the epilogue
    /// is the projection's, whose own activation does not count.
    pub fn run(
        &self,
        n: usize,
        x: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let [h, w] = self.size;
        let [oh, ow] = self.params.output_size(h, w);
        check_images(n, [h, w, self.c_in], [oh, ow, self.c_out()], x.len(), y.len());
        epi.check(y.len());
        if y.is_empty() {
            return;
        }
        let threads = pool.threads();
        let cut = self.cut(n, threads);
        assert!(scratch.len() >= cut.scratch_len(threads), "scratch has scratch_len elements");
        let (strips, own) = align_scratch(scratch).split_at_mut(cut.slabs * cut.strip_len());
        let (strips, own) = (SharedMut::new(strips), SharedMut::new(own));
        let run = Run { block: self, cut, n, x, epi, y: SharedMut::new(y), strips, own };
        if !cut.shared {
            pool.run_with_worker(cut.strips.count, &|strip, worker| {
                run.fill(strip, worker, 0..self.c_in);
                run.channels(strip, worker, 0..self.params.c_in, worker);
                let (bands, tiles) = (cut.strips.bands_of(strip), self.grid.tiles);
                for tile in bands.start * tiles..bands.end * tiles {
                    run.project(strip, worker, tile, worker);
                }
            });
            return;
        }
        let chunks = |channels: usize| (2 * threads).min(channels.div_ceil(GROUP)).max(1);
        let count = chunks(self.c_in);
        pool.run(cut.strips.count * count, &|task| {
            run.fill(task / count, task / count, chunk_of(self.c_in, count, task % count));
        });
        let (mid, count) = (self.params.c_in, chunks(self.params.c_in));
        pool.run_with_worker(cut.strips.count * count, &|task, worker| {
            run.channels(task / count, task / count, chunk_of(mid, count, task % count), worker);
        });
        pool.run_with_worker(cut.strips.bands * self.grid.tiles, &|tile, worker| {
            let strip = cut.strips.with(tile / self.grid.tiles);
            run.project(strip, strip, tile, worker);
        });
    }
}

struct Run<'a> {
    block: &'a SparseInvertedResidual,
    cut: Cut,
    n: usize,
    x: &'a [f32],
    epi: &'a Epilogue<'a>,
    y: SharedMut,
    strips: SharedMut,
    own: SharedMut,
}

impl Run<'_> {
    /// The slab, the filtered channels and the padding at a place.
    fn parts(&self, place: usize) -> [SharedMut; 3] {
        let at = place * self.cut.strip_len();
        let filtered = at + self.cut.slab_len;
        [at, filtered, filtered + self.cut.filtered_len].map(|at| self.strips.at(at))
    }

    /// Makes some channels of a strip's slab at a place; the first make the padding, too.
    fn fill(&self, strip: usize, place: usize, channels: Range<usize>) {
        let (block, bands) = (self.block, self.cut.strips.bands_of(strip));
        if bands.is_empty() || channels.is_empty() {
            return;
        }
        let [out, _, padding] = self.parts(place);
        let wanted = block.expand.is_some() && channels.start == 0;
        let slab = Slab {
            grid: &block.grid,
            n: self.n,
            x: self.x,
            stride: block.c_in,
            channel: 0,
            zeros: block.zeros.as_slice(),
            positions: block.grid.span(&bands),
            channels,
            out,
            // SAFETY: only one task of a strip has its first channel.
            padding: wanted.then(|| Padding(unsafe { padding.slice(0, self.cut.padding_len) })),
        };
        simd::dispatch(block.isa, slab);
    }

    /// Expands and filters some channels.
    fn channels(&self, strip: usize, place: usize, channels: Range<usize>, worker: usize) {
        let (block, bands) = (self.block, self.cut.strips.bands_of(strip));
        if bands.is_empty() {
            return;
        }
        let [slab, filtered, padding] = self.parts(place);
        // SAFETY: each worker has its own, and runs one task at a time; nobody writes the padding.
        let (own, padding) = unsafe {
            let own = self.own.slice(worker * self.cut.own_len(), self.cut.expanded_len);
            (own, &*padding.slice(0, self.cut.padding_len))
        };
        let expanded = own.as_mut_ptr();
        let slab = slab.ptr().cast_const();
        simd::dispatch(
            block.isa,
            Channels { block, bands, slab, padding, expanded, filtered, channels },
        );
    }

    /// Projects a tile.
    fn project(&self, strip: usize, place: usize, tile: usize, worker: usize) {
        let block = self.block;
        let grid = &block.grid;
        let (band, index) = (tile / grid.tiles, tile % grid.tiles);
        let own = worker * self.cut.own_len() + self.cut.expanded_len;
        // SAFETY: each worker has its own, and runs one task at a time.
        let sums = unsafe { self.own.slice(own, self.cut.sums_len) };
        let bias = block.project.bias.as_deref();
        let output = Output::new(bias, self.epi, self.y, false, block.c_out(), 0);
        let [_, filtered, _] = self.parts(place);
        let at = (tile - self.cut.strips.bands_of(strip).start * grid.tiles) * grid.tile_len();
        let tile = Tile {
            grid,
            n: self.n,
            weights: &block.project.weights,
            rows: 0..block.c_out(),
            band,
            index,
            x: filtered.at(at).ptr(),
            line: grid.tile[1] * grid.lanes,
            channel_len: block.step * grid.lanes,
            sums,
            output: &output,
        };
        simd::dispatch(block.isa, tile);
    }
}

/// Some channels of a strip.
struct Channels<'a> {
    block: &'a SparseInvertedResidual,
    bands: Range<usize>,
    slab: *const f32,
    padding: &'a [f32],
    /// Space for an expanded channel.
    expanded: *mut f32,
    filtered: SharedMut,
    channels: Range<usize>,
}

impl Kernel for Channels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let grid = &self.block.grid;
        let channel_len = grid.planes.len() * grid.slab * S::LANES;
        assert!(grid.lanes == S::LANES);
        for channel in self.channels.clone() {
            let x = match &self.block.expand {
                None => self.slab.wrapping_add(channel * channel_len),
                Some(stage) => {
                    // SAFETY: the slab has all channels, and there is space for one.
                    unsafe { self.expand(s, stage, channel, channel_len) };
                    self.expanded.cast_const()
                }
            };
            let c = &self;
            match (grid.tile[0], grid.tile[1]) {
                (1, 1) => s.call(Filter::<1, 1, 4> { c, channel, x }),
                (1, 2) => s.call(Filter::<1, 2, 2> { c, channel, x }),
                (1, 3) => s.call(Filter::<1, 3, 2> { c, channel, x }),
                (1, 4) => s.call(Filter::<1, 4, 1> { c, channel, x }),
                (1, 5) => s.call(Filter::<1, 5, 1> { c, channel, x }),
                (1, 6) => s.call(Filter::<1, 6, 1> { c, channel, x }),
                (1, 7) => s.call(Filter::<1, 7, 1> { c, channel, x }),
                (1, 8) => s.call(Filter::<1, 8, 1> { c, channel, x }),
                (2, 1) => s.call(Filter::<2, 1, 2> { c, channel, x }),
                (2, 2) => s.call(Filter::<2, 2, 1> { c, channel, x }),
                (2, 3) => s.call(Filter::<2, 3, 1> { c, channel, x }),
                (2, 4) => s.call(Filter::<2, 4, 1> { c, channel, x }),
                _ => unreachable!("a tile has 1 to TILE_VECTORS vectors in 1 or 2 rows"),
            }
        }
    }
}

impl Channels<'_> {
    /// An expanded channel over all positions of the strip.
    #[inline(always)]
    unsafe fn expand<S: Simd>(&self, s: S, stage: &Stage, channel: usize, channel_len: usize) {
        let grid = &self.block.grid;
        let (finish, positions) = (stage.finish(), grid.span(&self.bands).len());
        let blocks = stage.weights.blocks();
        for plane in 0..grid.planes.len() {
            for position in (0..positions).step_by(TILE_VECTORS) {
                let at = (plane * grid.slab + position) * S::LANES;
                // SAFETY: planes have room for whole tiles, and a block's offsets lie in its
                // channels.
                unsafe {
                    let out = self.expanded.add(at);
                    for (block, channels) in blocks.iter().enumerate() {
                        let x = self.slab.add(channels.start * channel_len + at);
                        let weights = stage.weights.row(block, channel);
                        let start = match block {
                            0 => Start::Bias(stage.bias(channel)),
                            _ => Start::Sums,
                        };
                        let [sums] = one_row::<S, 1, TILE_VECTORS, 1>(s, weights, x, 0, out, start);
                        for (v, mut sum) in sums.into_iter().enumerate() {
                            if block + 1 == blocks.len() {
                                sum = finish.activate(s, sum);
                            }
                            s.store(out.add(v * S::LANES), sum);
                        }
                    }
                }
            }
        }
        let zero = s.splat(0.0);
        for (position, there) in padded(self.padding, S::LANES) {
            // SAFETY: a position of the channel, and a vector for its lanes.
            unsafe {
                let p = self.expanded.add(position * S::LANES);
                let there = s.lt(zero, s.load(there.as_ptr()));
                s.store(p, s.select(there, s.load(p), zero));
            }
        }
    }
}

/// The depthwise convolution of a channel, over a strip's tiles of R rows of C vectors.
struct Filter<'a, const R: usize, const C: usize, const U: usize> {
    c: &'a Channels<'a>,
    channel: usize,
    x: *const f32,
}

impl<const R: usize, const C: usize, const U: usize> Kernel for Filter<'_, R, C, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (block, bands) = (self.c.block, &self.c.bands);
        let (grid, filter) = (&block.grid, &block.filter);
        let (weights, finish) = (filter.weights.row(0, self.channel), filter.finish());
        let bias = Start::Bias(filter.bias(self.channel));
        let first = grid.start(bands.start);
        let line = grid.pitch * S::LANES;
        let mut out = self.c.filtered.at(self.channel * block.step * S::LANES).ptr();
        for band in bands.clone() {
            let start = grid.start(band) - first;
            for tile in 0..grid.tiles {
                let at = start + tile * C;
                // SAFETY: the channel has the tile's positions and each tap's shift beyond, and
                // `step` vectors for what is filtered, as many as a strip's tiles have.
                unsafe {
                    let x = self.x.add(at * S::LANES);
                    let sums = one_row::<S, R, C, U>(s, weights, x, line, x, bias);
                    for &sum in sums.as_flattened() {
                        s.store(out, finish.activate(s, sum));
                        out = out.add(S::LANES);
                    }
                }
            }
        }
    }
}
