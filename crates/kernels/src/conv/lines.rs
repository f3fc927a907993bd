//! Convolutions of few input channels: neighbouring output pixels in registers, over padded lines
//! of the input.
//!
//! Without gaps between horizontal taps, a kernel row's elements are a run of an input line, and
//! the runs of neighbouring pixels start a fixed step apart. So a tile needs no pointers but one
//! per line, and where the step is known to the compiler, no address but one.

use std::ops::Range;

use crate::activation::{Epilogue, Residual};
use crate::aligned::{SharedMut, align_scratch};
use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;
use crate::gemm::PackedB;
use crate::gemm::micro::{Finish, SecondPass};
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};

/// Rows of the tallest kernel.
const MAX_ROWS: usize = 16;
/// Lines between its first row and its last: all of them are kept.
const MAX_SPAN: usize = 64;
/// Pixels of the tiles that are compiled, as far as the registers allow: few, for each is compiled
/// for all widths, steps and instruction sets.
const TILES: [usize; 6] = [24, 16, 12, 8, 6, 4];
/// The most that a tile reaches beyond an output row.
const OVERHANG: usize = 7;
/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_MACS: usize = 32 * 1024;
/// Beyond these, tiles by [`Geometry::kernel_rows`] may be faster: with more input channels in
/// narrow images, with more products for an output (large patches) in all.
const MAX_CHANNELS: usize = 4;
const MAX_DEPTH: usize = 256;
/// Bytes of weights that are read again for every output row.
const MAX_WEIGHT_BYTES: usize = 256 * 1024;

/// Whether [`run`] computes the shape, and well.
pub(crate) fn fits(p: &Conv2dParams) -> bool {
    p.groups == 1
        && p.dilation[1] == 1
        && p.c_in <= MAX_CHANNELS
        && p.kernel[0] <= MAX_ROWS
        && (p.kernel[0] - 1).saturating_mul(p.dilation[0]) <= MAX_SPAN
        && p.taps() * p.c_in <= MAX_DEPTH
        && 4 * p.taps() * p.c_in * p.c_out <= MAX_WEIGHT_BYTES
}

/// How many elements of scratch [`run`] needs on `threads` threads.
pub(crate) fn scratch_len(geometry: &Geometry, threads: usize) -> usize {
    16 + threads * Ring::of(geometry).scratch_len()
}

/// The convolution by filters packed as a matrix of rows (tap, channel) and columns c_out.
pub(crate) fn run(
    b: &PackedB,
    n: usize,
    geometry: &Geometry,
    x: &[f32],
    bias: Option<&[f32]>,
    epi: &Epilogue<'_>,
    y: &mut [f32],
    scratch: &mut [f32],
    pool: &Pool,
) {
    let p = &geometry.params;
    let rows = n * geometry.oh;
    assert!(fits(p) && b.k() == p.taps() * p.c_in && b.n() == p.c_out);
    assert!(x.len() == n * geometry.h * geometry.w * p.c_in);
    assert!(y.len() == rows * geometry.ow * p.c_out);
    assert!(bias.is_none_or(|bias| bias.len() == p.c_out));
    epi.check(y.len());
    let wanted = match pool.threads() {
        1 => 1,
        threads => (4 * threads).min(y.len() * b.k() / TASK_MACS),
    };
    let tasks = wanted.clamp(1, rows);
    let ring = Ring::of(geometry);
    let per_worker = ring.scratch_len();
    let scratch = align_scratch(scratch);
    assert!(scratch.len() >= pool.threads() * per_worker);
    let (scratch, y) = (SharedMut::new(scratch), SharedMut::new(y));
    let residual = match epi.residual {
        Residual::None => None,
        Residual::BeforeActivation(r) | Residual::AfterActivation(r) => Some(r),
    };
    let finish = Finish::new(1.0, bias.is_some(), epi);
    pool.run_with_worker(tasks, &|task, worker| {
        let rows = task * rows / tasks..(task + 1) * rows / tasks;
        // SAFETY: each worker has its own part, and runs one task at a time.
        let scratch = unsafe { scratch.slice(worker * per_worker, per_worker) };
        let finish = &finish;
        let band = Band { b, geometry, ring, x, bias, residual, finish, y, rows, scratch };
        // Not `PackedB::dispatch`: that would compile it for words of bf16 too, which it never has.
        simd::dispatch(b.isa(), band);
    });
}

/// Lines of the input with their padding, of which the kernel's height is kept; one more is zeros.
#[derive(Clone, Copy)]
struct Ring {
    /// Lines from the kernel's first row to its last.
    span: usize,
    /// Elements of a line, and before the image's first.
    line: usize,
    left: usize,
}

impl Ring {
    fn of(geometry: &Geometry) -> Ring {
        let p = &geometry.params;
        let left = p.pads[1] * p.c_in;
        let image = left + geometry.w * p.c_in;
        let last = geometry.ow.max(1) - 1 + OVERHANG;
        let read = (last * p.stride[1] + p.kernel[1]) * p.c_in;
        let span = (p.kernel[0] - 1) * p.dilation[0] + 1;
        Ring { span, line: image.max(read).next_multiple_of(16), left }
    }

    fn scratch_len(&self) -> usize {
        (self.span + 1) * self.line
    }
}

/// Some rows of the output, those of all images counted.
struct Band<'a> {
    b: &'a PackedB,
    geometry: &'a Geometry,
    ring: Ring,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    finish: &'a Finish,
    y: SharedMut,
    rows: Range<usize>,
    scratch: &'a mut [f32],
}

impl Kernel for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Ring { span, line, left } = self.ring;
        let g = self.geometry;
        let p = &g.params;
        let width = g.w * p.c_in;
        self.scratch.fill(0.0);
        let (zeros, ring) = self.scratch.split_at_mut(line);
        // The next line to copy, the padding's counted.
        let mut next = 0;
        for row in self.rows.clone() {
            let (image, oy) = (row / g.oh, row % g.oh);
            let top = oy * p.stride[0];
            if oy == 0 || row == self.rows.start {
                next = top;
            }
            for padded in next.max(top)..top + span {
                let iy = padded.wrapping_sub(p.pads[0]);
                if iy < g.h {
                    ring[padded % span * line + left..][..width]
                        .copy_from_slice(&self.x[(image * g.h + iy) * width..][..width]);
                }
            }
            next = top + span;
            let mut lines: [&[f32]; MAX_ROWS] = [&[]; MAX_ROWS];
            for (ky, pointer) in lines[..p.kernel[0]].iter_mut().enumerate() {
                let padded = top + ky * p.dilation[0];
                *pointer = match padded.wrapping_sub(p.pads[0]) < g.h {
                    true => &ring[padded % span * line..][..line],
                    false => zeros,
                };
            }
            let nr = S::TILE.1 * S::LANES;
            for panel in 0..self.b.panels() {
                let first = panel * nr;
                let columns = first..p.c_out.min(first + nr);
                let vectors = columns.len().div_ceil(S::LANES);
                let at = row * g.ow * p.c_out + first;
                let len = (g.ow - 1) * p.c_out + columns.len();
                call_vectors(
                    s,
                    Panel {
                        lines: &lines[..p.kernel[0]],
                        run: p.kernel[1] * p.c_in,
                        step: p.stride[1] * p.c_in,
                        weights: &self.b.packed()[first * self.b.k()..],
                        vectors,
                        tail: columns.len() - (vectors - 1) * S::LANES,
                        bias: self.bias.map(|bias| &bias[columns]),
                        residual: self.residual.map(|r| &r[at..][..len]),
                        finish: self.finish,
                        // SAFETY: the row is this task's alone, and of it a panel's columns are
                        // written only here.
                        y: unsafe { self.y.ptr().add(at) },
                        pixels: g.ow,
                        distance: p.c_out,
                    },
                );
            }
        }
    }
}

/// A panel of output channels of an output row.
#[derive(Clone, Copy)]
struct Panel<'a> {
    /// Lines of the input, one per kernel row.
    lines: &'a [&'a [f32]],
    /// Elements of a kernel row.
    run: usize,
    /// Elements between neighbouring pixels' runs.
    step: usize,
    /// Rows of `vectors` vectors.
    weights: &'a [f32],
    /// Vectors of channels, and how many lanes of the last there are.
    vectors: usize,
    tail: usize,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    finish: &'a Finish,
    /// The panel's first channel of the first pixel, and the distance between pixels; the residual
    /// lies alike.
    y: *mut f32,
    pixels: usize,
    distance: usize,
}

// Conditions on the instruction set are `const`: where they are false, nothing is compiled.
#[inline(always)]
fn call_vectors<S: Simd>(s: S, panel: Panel<'_>) {
    match panel.vectors {
        1 => call_step::<S, 1>(s, panel),
        2 if const { S::TILE.1 >= 2 } => call_step::<S, 2>(s, panel),
        3 if const { S::TILE.1 >= 3 } => call_step::<S, 3>(s, panel),
        4 if const { S::TILE.1 >= 4 } => call_step::<S, 4>(s, panel),
        _ => unreachable!("a panel has at most TILE.1 vectors"),
    }
}

#[inline(always)]
fn call_step<S: Simd, const NV: usize>(s: S, panel: Panel<'_>) {
    // One and three channels, at steps of 1, 2 and 4 pixels. Instruction sets for old machines
    // only are not worth the time to compile them for.
    match panel.step {
        1 if const { knows_steps::<S>() } => call_tiles::<S, NV, 1>(s, panel),
        3 if const { knows_steps::<S>() } => call_tiles::<S, NV, 3>(s, panel),
        6 if const { knows_steps::<S>() } => call_tiles::<S, NV, 6>(s, panel),
        12 if const { knows_steps::<S>() } => call_tiles::<S, NV, 12>(s, panel),
        _ => call_tiles::<S, NV, 0>(s, panel),
    }
}

const fn knows_steps<S: Simd>() -> bool {
    S::LANES > 4 || cfg!(target_arch = "aarch64")
}

/// The most pixels of a tile of NV vectors.
const fn most<S: Simd, const NV: usize>() -> usize {
    S::TILE.0 * S::TILE.1 / NV
}

/// The largest tiles as long as they fit, then the smallest that covers the rest.
#[inline(always)]
fn call_tiles<S: Simd, const NV: usize, const STEP: usize>(s: S, panel: Panel<'_>) {
    let most = const { most::<S, NV>() };
    // Six only where it is the largest.
    let tiles = || TILES.into_iter().filter(|&tile| tile <= most && (tile != 6 || most < 8));
    let largest = tiles().next().expect("the smallest tile fits the registers");
    let whole = panel.pixels / largest * largest;
    if whole > 0 {
        call_tile::<S, NV, STEP>(s, largest, panel, 0..whole);
    }
    let rest = panel.pixels - whole;
    if rest > 0 {
        let tile = tiles().rfind(|&tile| tile >= rest).unwrap_or(largest);
        call_tile::<S, NV, STEP>(s, tile, panel, whole..panel.pixels);
    }
}

#[inline(always)]
fn call_tile<S: Simd, const NV: usize, const STEP: usize>(
    s: S,
    tile: usize,
    panel: Panel<'_>,
    pixels: Range<usize>,
) {
    match tile {
        4 => s.call(Tiles::<4, NV, STEP> { panel, pixels }),
        6 if const { most::<S, NV>() / 2 == 3 } => s.call(Tiles::<6, NV, STEP> { panel, pixels }),
        8 if const { most::<S, NV>() >= 8 } => s.call(Tiles::<8, NV, STEP> { panel, pixels }),
        12 if const { most::<S, NV>() >= 12 } => s.call(Tiles::<12, NV, STEP> { panel, pixels }),
        16 if const { most::<S, NV>() >= 16 } => s.call(Tiles::<16, NV, STEP> { panel, pixels }),
        24 if const { most::<S, NV>() >= 24 } => s.call(Tiles::<24, NV, STEP> { panel, pixels }),
        _ => unreachable!("a tile fits the registers"),
    }
}

/// Tiles of P pixels and NV vectors of channels, the last of perhaps fewer pixels. STEP is the
/// panel's step, or 0 for any.
struct Tiles<'a, const P: usize, const NV: usize, const STEP: usize> {
    panel: Panel<'a>,
    pixels: Range<usize>,
}

impl<const P: usize, const NV: usize, const STEP: usize> Kernel for Tiles<'_, P, NV, STEP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = &self.panel;
        let step = if STEP > 0 { STEP } else { t.step };
        let width = NV * S::LANES;
        let tiles = self.pixels.len().div_ceil(P);
        let reach = (self.pixels.start + tiles * P - 1) * step + t.run;
        assert!(t.lines.iter().all(|line| line.len() >= reach), "lines hold the tiles' input");
        assert!(t.weights.len() >= t.lines.len() * t.run * width, "a panel has its weights");
        assert!(self.pixels.end <= t.pixels && !t.lines.is_empty() && t.run > 0);
        let mut bias = [s.splat(0.0); NV];
        if let Some(b) = t.bias {
            assert!(b.len() == (NV - 1) * S::LANES + t.tail);
            for (v, bias) in bias.iter_mut().enumerate() {
                let lanes = if v + 1 < NV { S::LANES } else { t.tail };
                // SAFETY: the panel's columns are NV vectors, `tail` lanes of the last.
                *bias = unsafe { s.load_partial(b.as_ptr().add(v * S::LANES), lanes) };
            }
        }
        let mut first = self.pixels.start;
        while first < self.pixels.end {
            let mut acc = [bias; P];
            let mut w = t.weights.as_ptr();
            for line in t.lines {
                // SAFETY: below `reach`.
                let mut x = unsafe { line.as_ptr().add(first * step) };
                for _ in 0..t.run {
                    let mut weight = [s.splat(0.0); NV];
                    for (v, weight) in weight.iter_mut().enumerate() {
                        // SAFETY: weights have `width` elements for each line and element.
                        *weight = unsafe { s.load(w.add(v * S::LANES)) };
                    }
                    for (p, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: below `reach`, where pixel first + P - 1 ends at the latest.
                        let x = s.splat(unsafe { *x.add(p * step) });
                        for (acc, weight) in acc.iter_mut().zip(weight) {
                            *acc = s.mul_add(x, weight, *acc);
                        }
                    }
                    // SAFETY: at most one past what the asserts allow.
                    (w, x) = unsafe { (w.add(width), x.add(1)) };
                }
            }
            self.store(s, first, P.min(self.pixels.end - first), acc);
            first += P;
        }
    }
}

impl<const P: usize, const NV: usize, const STEP: usize> Tiles<'_, P, NV, STEP> {
    /// Finishes and stores the sums of `pixels` pixels.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, first: usize, pixels: usize, mut acc: [[S::V; NV]; P]) {
        let t = &self.panel;
        let f = t.finish;
        if pixels < P || f.before || f.after || f.slow.is_some() {
            let mut sums = [[[0.0; MAX_LANES]; NV]; P];
            for (sums, acc) in sums.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
                // SAFETY: a vector has at most MAX_LANES lanes.
                unsafe { s.store(sums.as_mut_ptr(), *acc) };
            }
            let sums = &sums.as_flattened()[..pixels * NV];
            return s.call(Finishing { panel: t, first, vectors: NV, sums });
        }
        f.activate_all(s, &mut acc);
        // SAFETY: y has the panel's columns of each pixel of the row: NV vectors, `tail` lanes of
        // the last.
        unsafe {
            let y = t.y.add(first * t.distance);
            for p in 0..P {
                for v in 0..NV - 1 {
                    s.store(y.add(p * t.distance + v * S::LANES), acc[p][v]);
                }
            }
            let y = y.add((NV - 1) * S::LANES);
            if t.tail == S::LANES {
                for p in 0..P {
                    s.store(y.add(p * t.distance), acc[p][NV - 1]);
                }
            } else {
                for p in 0..P {
                    s.store_partial(y.add(p * t.distance), t.tail, acc[p][NV - 1]);
                }
            }
        }
    }
}

/// The sums of a tile that is not full, or whose epilogue is one that first layers seldom have:
/// compiled once for all tiles, and slower.
struct Finishing<'a> {
    panel: &'a Panel<'a>,
    /// The first pixel.
    first: usize,
    /// Vectors of each pixel.
    vectors: usize,
    sums: &'a [[f32; MAX_LANES]],
}

impl Kernel for Finishing<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.panel;
        let f = t.finish;
        let residual = |at: usize| t.residual.map_or(std::ptr::null(), |r| r[at..].as_ptr());
        for (p, sums) in self.sums.chunks_exact(self.vectors).enumerate() {
            for (v, sums) in sums.iter().enumerate() {
                let lanes = if v + 1 < self.vectors { S::LANES } else { t.tail };
                let at = (self.first + p) * t.distance + v * S::LANES;
                // SAFETY: y, and the residual where the finish adds one, have the panel's columns
                // of each pixel of the row.
                unsafe {
                    let mut sum = s.load(sums.as_ptr());
                    if f.before {
                        sum = s.add(sum, s.load_partial(residual(at), lanes));
                    }
                    sum = f.activate(s, sum);
                    if f.after && f.slow.is_none() {
                        sum = s.add(sum, s.load_partial(residual(at), lanes));
                    }
                    s.store_partial(t.y.add(at), lanes, sum);
                }
            }
        }
        if let Some(act) = f.slow {
            let at = self.first * t.distance;
            s.call(SecondPass {
                act,
                c: t.y.wrapping_add(at),
                residual: if f.after { residual(at) } else { std::ptr::null() },
                ldc: t.distance,
                rows: self.sums.len() / self.vectors,
                columns: (self.vectors - 1) * S::LANES + t.tail,
            });
        }
    }
}
