//! Winograd's minimal filtering (Lavin and Gray 2015, arXiv:1509.09308). F(4x4, 3x3): a tile of 4x4
//! outputs takes 36 multiplications per channel instead of 144. F(2x2, 3x3): a tile of 2x2 takes 16
//! instead of 36, with less than half the transformed weights to read; it serves small images,
//! which few tiles cover.
//!
//! A block of tiles goes through three stages that stay in the second-level cache: the inputs'
//! transform V, for each panel of output channels 36 small matrix products M = V U, and the
//! products' transform with the epilogue.

use std::ops::Range;

use crate::activation::{Epilogue, Residual};
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;
use crate::gemm::driver::{call_tile, tiles};
use crate::gemm::micro::Tile;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};
use crate::vmath;

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

/// Bytes of weights that threads read one by one from a cache that they share.
const OWN_BYTES: usize = 4 << 20;

/// The sizes of one run.
#[derive(Clone, Copy)]
struct Blocking {
    /// Tiles in all.
    tiles: usize,
    /// Tiles in a block.
    block: usize,
    /// Tiles whose products one task computes at a time.
    group: usize,
    /// Whether threads share a block; otherwise each has blocks of its own.
    shared: bool,
}

/// Multiply-adds in the time that a weight takes to come from memory.
const READ: f64 = 11.0;

/// The transform that is defined for the shape and pays for `n` images of `oh` x `ow` outputs, if
/// any does.
pub(crate) fn choose(p: &Conv2dParams, n: usize, oh: usize, ow: usize) -> Option<Tiling> {
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
        .and_then(|(cost, tiling)| (cost < 0.85 * direct).then_some(tiling))
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
        let (_, mr, _) = simd::tile_of(self.isa);
        let side = self.tiling.side();
        let tiles = n * oh.div_ceil(side) * ow.div_ceil(side);
        let most = (V_LEN / (self.tiling.points() * self.c_in)).clamp(4, 8 * mr);
        let most = if most > mr { most / mr * mr } else { most };
        let blocks = tiles.div_ceil(most).max(1);
        // Small weights may be read by every thread, which then waits for no other.
        let own = tiles >= threads * mr && self.bytes() <= OWN_BYTES;
        if threads == 1 || blocks >= 2 * threads || own {
            // Whole rounds of blocks for the threads.
            let block = tiles.div_ceil(blocks.next_multiple_of(threads)).max(1);
            return Blocking { tiles, block, group: block, shared: false };
        }
        // All tiles at once. Groups of tiles and panels make the tasks: smaller groups where there
        // are not enough of them, but of whole micro-kernels.
        let wanted = (2 * threads).div_ceil(self.panels());
        let group = tiles.div_ceil(wanted).next_multiple_of(mr).clamp(mr, most.max(mr));
        Blocking { tiles, block: tiles, group: group.min(tiles), shared: true }
    }

    fn panels(&self) -> usize {
        let (lanes, _, vectors) = simd::tile_of(self.isa);
        self.c_out.div_ceil(lanes * vectors)
    }

    fn v_len(&self, block: usize) -> usize {
        (self.tiling.points() * block * self.c_in + MAX_LANES).next_multiple_of(16)
    }

    fn m_len(&self, block: usize) -> usize {
        let (lanes, _, vectors) = simd::tile_of(self.isa);
        self.tiling.points() * block * lanes * vectors
    }

    /// Elements of scratch that [`Winograd::run`] needs.
    pub(crate) fn scratch_len(&self, n: usize, oh: usize, ow: usize, threads: usize) -> usize {
        let b = self.blocking(n, oh, ow, threads);
        let v = if b.shared { 1 } else { threads };
        16 + v * self.v_len(b.block) + threads * self.m_len(b.group)
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
        let run = Run { weights: self, geometry, x, bias, epi, y: SharedMut::new(y) };
        match self.tiling {
            Tiling::Two => run.blocks(F2, n, scratch, pool),
            Tiling::Four => run.blocks(F4, n, scratch, pool),
        }
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

impl Run<'_> {
    /// A tile's image, and its first output row and column.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let side = self.weights.tiling.side();
        let (down, across) = (self.geometry.oh.div_ceil(side), self.geometry.ow.div_ceil(side));
        (tile / (down * across), tile / across % down * side, tile % across * side)
    }

    fn blocks<T: Transform<IN, OUT>, const IN: usize, const OUT: usize>(
        &self,
        transform: T,
        n: usize,
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let (w, threads) = (self.weights, pool.threads());
        let b = w.blocking(n, self.geometry.oh, self.geometry.ow, threads);
        let (v_len, m_len) = (w.v_len(b.block), w.m_len(b.group));
        let scratch = SharedMut::new(align_scratch(scratch));
        let m_start = v_len * if b.shared { 1 } else { threads };
        let panels = w.panels();
        let inputs = |block: Range<usize>, part: Range<usize>, v: &mut [f32]| {
            let v = SharedMut::new(v);
            simd::dispatch(w.isa, Inputs { transform, run: self, block, part, v });
        };
        let products = |[block, part, panels]: [Range<usize>; 3], v: &[f32], m: &mut [f32]| {
            simd::dispatch(w.isa, Products { transform, run: self, block, part, panels, v, m });
        };
        if !b.shared {
            pool.run_with_worker(b.tiles.div_ceil(b.block), &|block, worker| {
                // SAFETY: parts of the scratch by worker, which runs one task at a time.
                let (v, m) = unsafe {
                    (
                        scratch.slice(worker * v_len, v_len),
                        scratch.slice(m_start + worker * m_len, m_len),
                    )
                };
                let tiles = block * b.block..b.tiles.min((block + 1) * b.block);
                inputs(tiles.clone(), tiles.clone(), v);
                products([tiles.clone(), tiles, 0..panels], v, m);
            });
            return;
        }
        let parts = b.tiles.min(4 * threads);
        pool.run(parts, &|task| {
            let cut = |i: usize| i * b.tiles / parts;
            // SAFETY: each task writes the transforms of its own tiles.
            let v = unsafe { scratch.slice(0, v_len) };
            inputs(0..b.tiles, cut(task)..cut(task + 1), v);
        });
        let groups = b.tiles.div_ceil(b.group);
        pool.run_with_worker(groups * panels, &|task, worker| {
            // Neighbouring tasks share a panel's weights.
            let (panel, group) = (task / groups, task % groups);
            let cut = |i: usize| i * b.tiles / groups;
            // SAFETY: nobody writes V now; a worker's part of M is its own.
            let (v, m) = unsafe {
                (scratch.slice(0, v_len), scratch.slice(m_start + worker * m_len, m_len))
            };
            products([0..b.tiles, cut(group)..cut(group + 1), panel..panel + 1], v, m);
        });
    }
}

/// V = B^T d B of some tiles: V[point][tile of the block][channel].
struct Inputs<'a, T, const IN: usize, const OUT: usize> {
    transform: T,
    run: &'a Run<'a>,
    block: Range<usize>,
    part: Range<usize>,
    v: SharedMut,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel for Inputs<'_, T, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, g) = (self.run.weights, self.run.geometry);
        let (ci, pads) = (w.c_in, g.params.pads);
        let zeros = w.zeros.as_slice();
        assert!(zeros.len() >= ci);
        for tile in self.part.clone() {
            let (image, oy, ox) = self.run.place(tile);
            let mut rows = [[zeros.as_ptr(); IN]; IN];
            for (i, row) in rows.iter_mut().enumerate() {
                let iy = (oy + i).wrapping_sub(pads[0]);
                if iy >= g.h {
                    continue;
                }
                let line = &self.run.x[(image * g.h + iy) * g.w * ci..][..g.w * ci];
                for (j, pointer) in row.iter_mut().enumerate() {
                    let ix = (ox + j).wrapping_sub(pads[1]);
                    if ix < g.w {
                        *pointer = line[ix * ci..][..ci].as_ptr();
                    }
                }
            }
            let out = TileInput {
                transform: self.transform,
                rows: &rows,
                channels: ci,
                v: self.v.ptr().wrapping_add((tile - self.block.start) * ci),
                step: self.block.len() * ci,
            };
            s.call(out);
        }
    }
}

struct TileInput<'a, T, const IN: usize, const OUT: usize> {
    transform: T,
    rows: &'a [[*const f32; IN]; IN],
    channels: usize,
    v: *mut f32,
    /// From point to point.
    step: usize,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel
    for TileInput<'_, T, IN, OUT>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut c = 0;
        while c < self.channels {
            let lanes = S::LANES.min(self.channels - c);
            let full = lanes == S::LANES;
            let mut half = [[s.splat(0.0); IN]; IN];
            for j in 0..IN {
                let mut d = [s.splat(0.0); IN];
                for (i, d) in d.iter_mut().enumerate() {
                    // SAFETY: every pointer has `channels` elements.
                    *d = unsafe {
                        let x = self.rows[i][j].add(c);
                        if full { s.load(x) } else { s.load_partial(x, lanes) }
                    };
                }
                for (i, t) in self.transform.input(s, d).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, t) in self.transform.input(s, row).into_iter().enumerate() {
                    let v = self.v.wrapping_add((i * IN + j) * self.step + c);
                    // SAFETY: V has `channels` elements for each point of this tile.
                    unsafe {
                        if full {
                            s.store(v, t);
                        } else {
                            s.store_partial(v, lanes, t);
                        }
                    }
                }
            }
            c += lanes;
        }
    }
}

/// The products of some of a block's tiles with some panels, and what becomes of them.
struct Products<'a, T, const IN: usize, const OUT: usize> {
    transform: T,
    run: &'a Run<'a>,
    /// The tiles of V.
    block: Range<usize>,
    /// Those to compute.
    part: Range<usize>,
    panels: Range<usize>,
    v: &'a [f32],
    m: &'a mut [f32],
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel for Products<'_, T, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let w = self.run.weights;
        let (ci, count, points) = (w.c_in, self.part.len(), IN * IN);
        let first = self.part.start - self.block.start;
        let nr = S::TILE.1 * S::LANES;
        assert!(self.part.end <= self.block.end && self.m.len() >= points * count * nr);
        let m = self.m.as_mut_ptr();
        for panel in self.panels.clone() {
            let column = panel * nr;
            let columns = nr.min(w.c_out - column);
            let nv = columns.div_ceil(S::LANES);
            let width = nv * S::LANES;
            let u = &w.weight.as_slice()[column * points * ci..][..points * ci * width];
            for (point, u) in u.chunks_exact(ci * width).enumerate() {
                let v = &self.v[(point * self.block.len() + first) * ci..][..count * ci];
                for (row, mr) in tiles(count, S::TILE.0) {
                    let mut rows = [std::ptr::null(); 16];
                    for (r, pointer) in rows.iter_mut().enumerate().take(mr) {
                        *pointer = v[(row + r) * ci..][..ci].as_ptr();
                    }
                    let tile = Tile {
                        rows: rows.as_ptr(),
                        taps: 1,
                        run: ci,
                        offset: 0,
                        b: u.as_ptr(),
                        c: m.wrapping_add((point * count + row) * nr),
                        ldc: nr,
                        bias: std::ptr::null(),
                        residual: std::ptr::null(),
                        tail: S::LANES,
                        accumulate: false,
                        finish: None,
                    };
                    call_tile(s, mr, nv, tile);
                }
            }
            for tile in self.part.clone() {
                let (image, oy, ox) = self.run.place(tile);
                s.call(TileOutput {
                    transform: self.transform,
                    run: self.run,
                    m: m.wrapping_add((tile - self.part.start) * nr),
                    step: count * nr,
                    corner: [image, oy, ox],
                    column,
                    columns,
                });
            }
        }
    }
}

/// y = act(A^T m A + bias + before) + after of one tile and panel.
struct TileOutput<'a, T, const IN: usize, const OUT: usize> {
    transform: T,
    run: &'a Run<'a>,
    m: *const f32,
    step: usize,
    /// Image, first row, first column.
    corner: [usize; 3],
    column: usize,
    columns: usize,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel
    for TileOutput<'_, T, IN, OUT>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (run, g) = (self.run, self.run.geometry);
        let co = run.weights.c_out;
        let [image, oy, ox] = self.corner;
        let (before, after) = match run.epi.residual {
            Residual::None => (None, None),
            Residual::BeforeActivation(r) => (Some(r), None),
            Residual::AfterActivation(r) => (None, Some(r)),
        };
        let mut c = 0;
        while c < self.columns {
            let lanes = S::LANES.min(self.columns - c);
            let channel = self.column + c;
            let mut half = [[s.splat(0.0); IN]; OUT];
            for j in 0..IN {
                let mut points = [s.splat(0.0); IN];
                for (i, point) in points.iter_mut().enumerate() {
                    // SAFETY: M has whole vectors for each point of this tile.
                    *point = unsafe { s.load(self.m.add((i * IN + j) * self.step + c)) };
                }
                for (i, t) in self.transform.output(s, points).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            // SAFETY: bias has c_out elements, y and the residuals as many per pixel; `lanes`
            // from `channel` on exist. This task alone writes this tile's pixels and channels.
            unsafe {
                let bias = match run.bias {
                    Some(bias) => s.load_partial(bias.as_ptr().add(channel), lanes),
                    None => s.splat(0.0),
                };
                for (i, row) in half.into_iter().enumerate().take(g.oh - oy) {
                    for (j, t) in
                        self.transform.output(s, row).into_iter().enumerate().take(g.ow - ox)
                    {
                        let at = ((image * g.oh + oy + i) * g.ow + ox + j) * co + channel;
                        let mut t = s.add(t, bias);
                        if let Some(r) = before {
                            t = s.add(t, s.load_partial(r.as_ptr().add(at), lanes));
                        }
                        t = vmath::activate(s, run.epi.activation, t);
                        if let Some(r) = after {
                            t = s.add(t, s.load_partial(r.as_ptr().add(at), lanes));
                        }
                        s.store_partial(run.y.ptr().add(at), lanes, t);
                    }
                }
            }
            c += lanes;
        }
    }
}

mod transform;

#[cfg(test)]
mod tests;
