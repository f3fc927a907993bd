//! Winograd's minimal filtering (Lavin and Gray 2015, arXiv:1509.09308). F(4x4, 3x3): a tile of 4x4
//! outputs takes 36 multiplications per channel instead of 144. F(2x2, 3x3): a tile of 2x2 takes 16
//! instead of 36, with less than half the transformed weights to read; it serves small images,
//! which few tiles cover.
//!
//! A block of tiles goes through three stages: the inputs' transform V, for each point of the
//! transform a matrix product M = V U, and the products' transform with the epilogue. Which of them
//! stay in a core's cache, and what is read again and again instead, is a matter of [`Order`].

use std::ops::Range;

use crate::activation::Epilogue;
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;
use crate::isa::Isa;
use crate::pool::{Pool, part_of};
use crate::simd::{self, MAX_LANES};

use stages::{Inputs, Outputs, Products};
pub(crate) use transform::Tiling;
use transform::{F2, F4, Filters, Transform};

/// Floats that a block's transformed inputs may have: they stay in the second-level cache.
const V_LEN: usize = 150 * 1024;

/// Transformed weights: panel by panel of output channels, in a panel point by point, of each
/// point c_in rows as wide as the panel.
#[derive(Clone, Debug)]
pub(crate) struct Winograd {
    isa: Isa,
    tiling: Tiling,
    c_in: usize,
    c_out: usize,
    weight: AlignedBuffer,
    zeros: AlignedBuffer,
}

/// Floats that V and M of a block may have together where the products go point by point.
const BLOCK_LEN: usize = 6 << 20;

/// Bytes of weights that threads read one by one from a cache that they share.
const OWN_BYTES: usize = 4 << 20;

/// Bytes of weights that a cache of all cores holds: reading them again then hides behind the
/// products, which passing V and M through it does not.
const CACHED_BYTES: usize = 16 << 20;

/// In which order the products of a run are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// Each thread takes blocks of its own through all stages, in its second-level cache. All
    /// weights are read for every block.
    Blocks,
    /// All tiles are transformed, then tasks compute a panel of output channels for a group of
    /// tiles. All weights are read for every group.
    Panels,
    /// All tiles of a large block are transformed, multiplied point by point, and transformed back.
    /// All weights are read once, but the products pass through memory.
    Points,
}

/// The sizes of one run.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    order: Order,
    /// Tiles in all.
    tiles: usize,
    /// Tiles whose products are there at a time.
    group: usize,
}

impl Blocking {
    /// Tiles whose transformed inputs are there at a time.
    fn block(&self) -> usize {
        if self.order == Order::Panels { self.tiles } else { self.group }
    }

    /// Products of a tile and point that are kept at a time.
    fn width(&self, w: &Winograd) -> usize {
        if self.order == Order::Points { w.panels() * w.panel() } else { w.panel() }
    }

    /// Floats of V and of M from point to point. Not a power of two, at which distance all points
    /// of a tile would share few places of a cache.
    fn steps(&self, w: &Winograd) -> [usize; 2] {
        [self.block() * w.c_in + MAX_LANES, self.group * self.width(w) + MAX_LANES]
    }

    fn lens(&self, w: &Winograd) -> [usize; 2] {
        self.steps(w).map(|step| (w.tiling.points() * step).next_multiple_of(MAX_LANES))
    }

    fn v_and_m(&self, w: &Winograd) -> usize {
        self.lens(w).iter().sum()
    }

    /// How many V and M there are.
    fn counts(&self, threads: usize) -> [usize; 2] {
        match self.order {
            Order::Blocks => [threads, threads],
            Order::Panels => [1, threads],
            Order::Points => [1, 1],
        }
    }

    fn scratch_len(&self, w: &Winograd, threads: usize) -> usize {
        let ([v, m], [vs, ms]) = (self.lens(w), self.counts(threads));
        MAX_LANES + vs * v + ms * m
    }
}

/// Multiply-adds in the time that a weight takes to come from memory.
const READ: f64 = 11.0;

/// The transform that is defined for the shape and takes less than `share` of the direct sum's time
/// for `n` images of `oh` x `ow` outputs, if any does.
pub(crate) fn choose(p: &Conv2dParams, [n, oh, ow]: [usize; 3], share: f64) -> Option<Tiling> {
    let defined = p.kernel == [3, 3] && p.stride == [1, 1] && p.dilation == [1, 1] && p.groups == 1;
    if !defined || p.c_in < 16 || p.c_out < 16 {
        return None;
    }
    let (ci, co) = (p.c_in as f64, p.c_out as f64);
    // In multiply-adds: the products, reading the weights, the transforms' operations per channel.
    let direct = ((n * oh * ow) as f64 + READ) * 9.0 * ci * co;
    let cost = |tiling: Tiling| {
        let tiles = (n * oh.div_ceil(tiling.side()) * ow.div_ceil(tiling.side())) as f64;
        let [input, output] = match tiling {
            Tiling::Two => [80.0, 60.0],
            Tiling::Four => [216.0, 170.0],
        };
        (tiles + READ) * tiling.points() as f64 * ci * co + tiles * (input * ci + output * co)
    };
    [Tiling::Four, Tiling::Two]
        .map(|tiling| (cost(tiling), tiling))
        .into_iter()
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .and_then(|(cost, tiling)| (cost < share * direct).then_some(tiling))
}

impl Winograd {
    pub(crate) fn new(isa: Isa, tiling: Tiling, p: &Conv2dParams, weight: &[f32]) -> Winograd {
        let (lanes, _, vectors) = simd::tile_of(isa);
        let nr = lanes * vectors;
        let (ci, co) = (p.c_in, p.c_out);
        let points = tiling.points();
        let mut packed = AlignedBuffer::zeroed(points * ci * co.next_multiple_of(lanes));
        let panels = packed.as_mut_slice().chunks_mut(points * ci * nr);
        for (panel, out) in panels.enumerate() {
            let columns = (co - panel * nr).min(nr);
            let width = columns.next_multiple_of(lanes);
            let weight = &weight[panel * nr * ci * 9..];
            let filters = Filters { weight, c_in: ci, columns, width, out };
            match tiling {
                Tiling::Two => filters.transform(isa, F2),
                Tiling::Four => filters.transform(isa, F4),
            }
        }
        let zeros = AlignedBuffer::zeroed(ci.next_multiple_of(MAX_LANES));
        Winograd { isa, tiling, c_in: ci, c_out: co, weight: packed, zeros }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    fn blocking(&self, n: usize, oh: usize, ow: usize, threads: usize) -> Blocking {
        let side = self.tiling.side();
        let tiles = n * oh.div_ceil(side) * ow.div_ceil(side);
        let [blocks, panels, points] = self.blockings(tiles, threads);
        let (_, mr, _) = simd::tile_of(self.isa);
        // Small weights may be read by every thread, which then waits for no other.
        let own = tiles >= threads * mr && self.bytes() <= OWN_BYTES;
        let enough = tiles.div_ceil(blocks.group) >= 2 * threads;
        let in_parts = if threads == 1 || enough || own { blocks } else { panels };
        if self.bytes() <= CACHED_BYTES {
            return in_parts;
        }
        // What comes from memory: all weights for each part, or what is written and read again.
        let weights = |parts: usize| parts * self.weight.as_slice().len();
        let between = 3 * (points.v_and_m(self) / points.group * tiles);
        let by_points = weights(tiles.div_ceil(points.group)) + between;
        if by_points < weights(tiles.div_ceil(in_parts.group)) { points } else { in_parts }
    }

    /// Ways to compute so many tiles, in the order of [`Order`].
    fn blockings(&self, tiles: usize, threads: usize) -> [Blocking; 3] {
        let (_, mr, _) = simd::tile_of(self.isa);
        let most = (V_LEN / (self.tiling.points() * self.c_in)).clamp(4, 8 * mr);
        let most = if most > mr { most / mr * mr } else { most };
        // Whole rounds of blocks for the threads.
        let rounds = tiles.div_ceil(most).max(1).next_multiple_of(threads);
        let block = tiles.div_ceil(rounds).max(1);
        // Smaller groups where there are not enough tasks, but of whole micro-kernels.
        let wanted = (2 * threads).div_ceil(self.panels());
        let group = tiles.div_ceil(wanted).next_multiple_of(mr).clamp(mr, most.max(mr));
        let blocking = |order, group| Blocking { order, tiles, group };
        let all = blocking(Order::Points, tiles);
        let part = tiles.div_ceil(all.v_and_m(self).div_ceil(BLOCK_LEN).max(1)).max(1);
        [
            blocking(Order::Blocks, block),
            blocking(Order::Panels, group.min(tiles).max(1)),
            blocking(Order::Points, part),
        ]
    }

    /// Output channels of a micro-kernel.
    fn panel(&self) -> usize {
        let (lanes, _, vectors) = simd::tile_of(self.isa);
        lanes * vectors
    }

    fn panels(&self) -> usize {
        self.c_out.div_ceil(self.panel())
    }

    /// Elements of scratch that [`Winograd::run`] needs.
    pub(crate) fn scratch_len(&self, n: usize, oh: usize, ow: usize, threads: usize) -> usize {
        self.blocking(n, oh, ow, threads).scratch_len(self, threads)
    }

    pub(crate) fn run(
        &self,
        n: usize,
        geometry: &Geometry,
        x: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let b = self.blocking(n, geometry.oh, geometry.ow, pool.threads());
        let run = Run { weights: self, geometry, x, bias, epi, y: SharedMut::new(y) };
        run.tiles(b, scratch, pool);
    }
}

struct Run<'a> {
    weights: &'a Winograd,
    geometry: &'a Geometry,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    epi: &'a Epilogue<'a>,
    y: SharedMut,
}

/// V and M of a block, or of some of its tiles.
#[derive(Clone, Copy)]
struct Buffers {
    /// V[point][tile][channel].
    v: SharedMut,
    v_step: usize,
    /// M[point][tile][output channel], so many channels wide.
    m: SharedMut,
    m_step: usize,
    width: usize,
}

impl Buffers {
    /// From a later tile on.
    fn from(self, tile: usize, c_in: usize) -> Buffers {
        Buffers { v: self.v.at(tile * c_in), m: self.m.at(tile * self.width), ..self }
    }
}

impl Run<'_> {
    /// A tile's image, and its first output row and column.
    fn place(&self, tile: usize) -> [usize; 3] {
        let side = self.weights.tiling.side();
        let (down, across) = (self.geometry.oh.div_ceil(side), self.geometry.ow.div_ceil(side));
        [tile / (down * across), tile / across % down * side, tile % across * side]
    }

    fn tiles(&self, b: Blocking, scratch: &mut [f32], pool: &Pool) {
        match self.weights.tiling {
            Tiling::Two => self.stages(F2, b, scratch, pool),
            Tiling::Four => self.stages(F4, b, scratch, pool),
        }
    }

    fn stages<T: Transform<IN, OUT>, const IN: usize, const OUT: usize>(
        &self,
        transform: T,
        b: Blocking,
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let (w, threads) = (self.weights, pool.threads());
        let (panels, points) = (w.panels(), IN * IN);
        let ([v_len, m_len], [v_step, m_step]) = (b.lens(w), b.steps(w));
        assert!(scratch.len() >= b.scratch_len(w, threads), "scratch_len says how much");
        let v = SharedMut::new(align_scratch(scratch));
        let m = v.at(v_len * b.counts(threads)[0]);
        let buffers = |i: usize, j: usize| Buffers {
            v: v.at(i * v_len),
            v_step,
            m: m.at(j * m_len),
            m_step,
            width: b.width(w),
        };
        // What a task writes of V, M and the outputs is its own, and nobody writes meanwhile what
        // it reads: in the order of blocks V and M are a worker's, which runs one task at a time.
        // In that of panels M is; stages that the pool runs one after the other divide the rest.
        let inputs = |tiles: Range<usize>, to: Buffers| {
            simd::dispatch(w.isa, Inputs { transform, run: self, tiles, to });
        };
        let products = |tiles: usize, point: usize, panel: usize, of: Buffers| {
            simd::dispatch(w.isa, Products { weights: w, tiles, point, panel, of });
        };
        let outputs = |tiles: Range<usize>, channels: Range<usize>, of: Buffers| {
            simd::dispatch(w.isa, Outputs { transform, run: self, tiles, channels, of });
        };
        let by_panels = |tiles: Range<usize>, panels: Range<usize>, of: Buffers| {
            for panel in panels {
                (0..points).for_each(|point| products(tiles.len(), point, panel, of));
                let first = panel * w.panel();
                outputs(tiles.clone(), first..w.c_out.min(first + w.panel()), of);
            }
        };
        match b.order {
            Order::Blocks => pool.run_with_worker(b.tiles.div_ceil(b.group), &|block, worker| {
                let tiles = block * b.group..b.tiles.min((block + 1) * b.group);
                let own = buffers(worker, worker);
                inputs(tiles.clone(), own);
                by_panels(tiles, 0..panels, own);
            }),
            Order::Panels => {
                let parts = b.tiles.min(8 * threads);
                pool.run(parts, &|i| {
                    let part = part_of(0..b.tiles, parts, i);
                    inputs(part.clone(), buffers(0, 0).from(part.start, w.c_in));
                });
                let groups = b.tiles.div_ceil(b.group);
                pool.run_with_worker(groups * panels, &|task, worker| {
                    // Neighbouring tasks share a panel's weights.
                    let (panel, tiles) =
                        (task / groups, part_of(0..b.tiles, groups, task % groups));
                    let of = buffers(0, worker);
                    let v = of.v.at(tiles.start * w.c_in);
                    by_panels(tiles, panel..panel + 1, Buffers { v, ..of });
                });
            }
            Order::Points => {
                let chunks = (8 * threads).div_ceil(points).min(panels);
                for first in (0..b.tiles).step_by(b.group) {
                    let block = first..b.tiles.min(first + b.group);
                    let (parts, all) = (block.len().min(8 * threads), buffers(0, 0));
                    let part = |i| {
                        let part = part_of(block.clone(), parts, i);
                        let of = all.from(part.start - first, w.c_in);
                        (part, of)
                    };
                    pool.run(parts, &|i| {
                        let (part, to) = part(i);
                        inputs(part, to);
                    });
                    pool.run(points * chunks, &|task| {
                        for panel in part_of(0..panels, chunks, task % chunks) {
                            let m = all.m.at(panel * w.panel());
                            products(block.len(), task / chunks, panel, Buffers { m, ..all });
                        }
                    });
                    pool.run(parts, &|i| {
                        let (part, of) = part(i);
                        outputs(part, 0..w.c_out, of);
                    });
                }
            }
        }
    }
}

mod stages;
mod transform;

#[cfg(test)]
mod tests;
