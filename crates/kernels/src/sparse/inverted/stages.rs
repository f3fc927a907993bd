//! The three stages over a strip, as kernels.

use std::ops::Range;

use super::{Cut, MAX_PLANES, PARTS, SparseInvertedResidual};
use crate::aligned::SharedMut;
use crate::simd::{Kernel, Simd};
use crate::sparse::grid::{TILE_VECTORS, even_width};
use crate::sparse::kernel::{GROUP, Output, Pixels, Start, one_row, store_group};
use crate::sparse::planes::{Fill, Strip};

/// What the tasks of a run share.
pub(super) struct Run<'a> {
    pub(super) block: &'a SparseInvertedResidual,
    pub(super) cut: Cut,
    pub(super) x: &'a [f32],
    pub(super) output: Output<'a>,
    pub(super) own: SharedMut,
    /// Sums of the parts of strips: [strip][part][output channel][vector].
    pub(super) partial: SharedMut,
}

impl Run<'_> {
    fn strip(&self, index: usize) -> Strip {
        let (oh, strips) = (self.block.planes.geometry.oh, self.cut.strips);
        let cut = |i: usize| i * oh / strips;
        let (image, i) = (index / strips, index % strips);
        Strip { image, first: cut(i), rows: cut(i + 1) - cut(i) }
    }

    /// A worker's input, expanded channel, filtered channels and sums.
    fn own(&self, worker: usize) -> [SharedMut; 4] {
        let mut at = worker * self.cut.own_len();
        self.cut.lens.map(|len| {
            at += len;
            self.own.at(at - len)
        })
    }

    /// Where the sums of a part of a strip begin.
    fn partial(&self, strip: usize, part: usize) -> SharedMut {
        self.partial.at((strip * self.cut.parts + part) * self.cut.partial_len)
    }
}

/// Where the tiles of C vectors begin that cover `vectors`, the last perhaps over the one before.
#[inline(always)]
fn tiles<const C: usize>(vectors: usize) -> impl Iterator<Item = usize> {
    (0..vectors).step_by(C).map(move |v| v.min(vectors.saturating_sub(C)))
}

/// Calls a kernel of so many vectors, with as many independent sums as hide an addition's delay.
macro_rules! by_width {
    ($s:expr, $width:expr, $kernel:ident, $task:expr) => {
        match $width {
            1 => $s.call($kernel::<1, 4>($task)),
            2 => $s.call($kernel::<2, 4>($task)),
            3 => $s.call($kernel::<3, 2>($task)),
            4 => $s.call($kernel::<4, 2>($task)),
            5 => $s.call($kernel::<5, 1>($task)),
            6 => $s.call($kernel::<6, 1>($task)),
            7 => $s.call($kernel::<7, 1>($task)),
            _ => $s.call($kernel::<TILE_VECTORS, 1>($task)),
        }
    };
}

/// A part of a strip's channels, through all three stages.
pub(super) struct Part<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) strip: usize,
    pub(super) part: usize,
    pub(super) worker: usize,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { run, strip: index, part, worker } = self;
        let (block, parts) = (run.block, run.cut.parts);
        let (planes, strip) = (&block.planes, run.strip(index));
        assert!(planes.lanes == S::LANES && strip.rows <= planes.rows);
        let [input, expanded, filtered, sums] = run.own(worker);
        s.call(Fill {
            planes,
            strip,
            x: run.x,
            zeros: block.zeros.as_slice(),
            step: block.input_step,
            ones: block.expand.is_some(),
            out: input,
        });
        let mut spans = [(0, 0); MAX_PLANES];
        for (plane, span) in spans.iter_mut().enumerate().take(planes.count()) {
            *span = planes.span(strip, plane);
        }
        let spans = &spans[..planes.count()];
        let vectors = planes.vectors(strip.rows);
        let widest = spans.iter().map(|span| span.1).fold(vectors, usize::max);
        if block.expand.is_some() {
            // SAFETY: the worker's own. What is never written is padding.
            unsafe { expanded.slice(0, run.cut.lens[1]) }.fill(0.0);
        }
        let channels = block.part(part, parts)..block.part(part + 1, parts);
        let task = Filtering { block, channels, spans, vectors, input, expanded, filtered };
        by_width!(s, even_width(widest, TILE_VECTORS), Filter, task);
        let partial = (parts > 1).then(|| run.partial(index, part));
        let task = Projecting { run, strip, part, vectors, filtered, sums, partial };
        by_width!(s, even_width(vectors, TILE_VECTORS), Project, task);
    }
}

struct Filtering<'a> {
    block: &'a SparseInvertedResidual,
    channels: Range<usize>,
    /// Of each plane the vectors that have pixels.
    spans: &'a [(usize, usize)],
    /// Of the strip's output.
    vectors: usize,
    input: SharedMut,
    expanded: SharedMut,
    filtered: SharedMut,
}

/// Expands and filters channels of a strip.
struct Filter<'a, const C: usize, const U: usize>(Filtering<'a>);

impl<const C: usize, const U: usize> Kernel for Filter<'_, C, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.0;
        let (block, planes) = (t.block, &t.block.planes);
        assert!(C <= planes.len && t.spans.len() <= planes.count());
        let finish = block.filter.finish();
        for channel in t.channels {
            let mut x = t.input.at(channel * block.input_step * S::LANES).ptr().cast_const();
            if let Some(stage) = &block.expand {
                x = t.expanded.ptr().cast_const();
                let (finish, weights) = (stage.finish(), stage.weights.row(0, channel));
                for (plane, &(start, vectors)) in t.spans.iter().enumerate() {
                    for tile in tiles::<C>(vectors) {
                        // Where a plane has fewer vectors than a tile, padding is computed: it is
                        // zero.
                        let at = plane * planes.len + (start + tile).min(planes.len - C);
                        // SAFETY: the plane has C vectors from there on in the input and the
                        // output, and a row's offsets are channels of the input.
                        unsafe {
                            let x = t.input.at(at * S::LANES).ptr().cast_const();
                            let out = t.expanded.at(at * S::LANES).ptr();
                            let start = Start::Bias(0.0);
                            let [sums] = one_row::<S, 1, C, U, false>(s, weights, x, 0, start);
                            for (v, &sum) in sums.iter().enumerate() {
                                s.store(out.add(v * S::LANES), finish.activate(s, sum));
                            }
                        }
                    }
                }
            }
            let (weights, bias) =
                (block.filter.weights.row(0, channel), block.filter.bias(channel));
            let out = t.filtered.at(channel * block.filtered_step * S::LANES);
            for tile in tiles::<C>(t.vectors) {
                // SAFETY: a channel's planes have each tap of the strip's vectors, and there is
                // room for what is filtered; where these are fewer than a tile, what follows a
                // plane is read, which is there for the last one, too.
                unsafe {
                    let x = x.add(tile * S::LANES);
                    let out = out.at(tile * S::LANES).ptr();
                    let start = Start::Bias(bias);
                    let [sums] = one_row::<S, 1, C, U, true>(s, weights, x, 0, start);
                    for (v, &sum) in sums.iter().enumerate() {
                        s.store(out.add(v * S::LANES), finish.activate(s, sum));
                    }
                }
            }
        }
    }
}

struct Projecting<'a> {
    run: &'a Run<'a>,
    strip: Strip,
    part: usize,
    vectors: usize,
    filtered: SharedMut,
    sums: SharedMut,
    /// Where a part's sums go, if it is one of several.
    partial: Option<SharedMut>,
}

/// The projection of a strip, or what a part of the filtered channels adds to it.
struct Project<'a, const C: usize, const U: usize>(Projecting<'a>);

impl<const C: usize, const U: usize> Kernel for Project<'_, C, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.0;
        let (block, parts) = (t.run.block, t.run.cut.parts);
        let (c_out, output) = (block.c_out(), &t.run.output);
        assert!(C <= t.vectors);
        for tile in tiles::<C>(t.vectors) {
            let pixels = t.partial.is_none().then(|| pixels::<S>(block, t.strip, tile, C));
            for group in (0..c_out).step_by(GROUP) {
                let rows = group..c_out.min(group + GROUP);
                for row in rows.clone() {
                    let (offsets, values) = block.project.weights.row(0, row);
                    let (weights, start, out) = match t.partial {
                        None => {
                            let bias = Start::Bias(block.project.bias(row));
                            let out = t.sums.at((row - group) * C * S::LANES);
                            ((offsets, values), bias, out)
                        }
                        Some(partial) => {
                            let cut = |part: usize| {
                                let at = row * (PARTS + 1) + part * (PARTS / parts);
                                usize::from(block.parts[at])
                            };
                            let some = cut(t.part)..cut(t.part + 1);
                            let out = partial.at((row * t.vectors + tile) * S::LANES);
                            ((&offsets[some.clone()], &values[some]), Start::Bias(0.0), out)
                        }
                    };
                    // SAFETY: the worker's filtered channels have the strip's vectors, the sums
                    // room for C of each row of a group, a part's for all vectors of each row.
                    unsafe {
                        let x = t.filtered.at(tile * S::LANES).ptr().cast_const();
                        let [sums] = one_row::<S, 1, C, U, false>(s, weights, x, 0, start);
                        for (v, mut sum) in sums.into_iter().enumerate() {
                            if t.partial.is_none() {
                                sum = output.activate(s, sum);
                            }
                            s.store(out.ptr().add(v * S::LANES), sum);
                        }
                    }
                }
                if let Some(pixels) = &pixels {
                    // SAFETY: the sums of a group's rows; the pixels are this task's.
                    unsafe { store_group(s, output, pixels, C, rows, t.sums.ptr()) };
                }
            }
        }
    }
}

/// The output pixels of a tile of `width` vectors.
#[inline(always)]
fn pixels<S: Simd>(
    block: &SparseInvertedResidual,
    strip: Strip,
    tile: usize,
    width: usize,
) -> Pixels {
    Pixels::new(S::LANES, width, |i| block.planes.output(strip, tile * S::LANES + i))
}

/// Adds up what the parts of a strip add to a group of output channels.
pub(super) struct Sum<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) strip: usize,
    pub(super) group: usize,
    pub(super) worker: usize,
}

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sum { run, strip: index, group, worker } = self;
        let (block, parts) = (run.block, run.cut.parts);
        let (strip, output) = (run.strip(index), &run.output);
        let vectors = block.planes.vectors(strip.rows);
        let [_, _, _, sums] = run.own(worker);
        let rows: Range<usize> = group * GROUP..block.c_out().min((group + 1) * GROUP);
        for tile in (0..vectors).step_by(TILE_VECTORS) {
            let width = TILE_VECTORS.min(vectors - tile);
            for row in rows.clone() {
                let bias = s.splat(block.project.bias(row));
                for v in 0..width {
                    let at = (row * vectors + tile + v) * S::LANES;
                    let mut sum = bias;
                    for part in 0..parts {
                        // SAFETY: each part has all vectors of each row.
                        sum = s.add(sum, unsafe { s.load(run.partial(index, part).at(at).ptr()) });
                    }
                    let out = sums.at(((row - rows.start) * width + v) * S::LANES).ptr();
                    // SAFETY: there is room for a group of rows.
                    unsafe { s.store(out, output.activate(s, sum)) };
                }
            }
            let pixels = pixels::<S>(block, strip, tile, width);
            // SAFETY: as above; the pixels' channels are this task's.
            unsafe { store_group(s, output, &pixels, width, rows.clone(), sums.ptr()) };
        }
    }
}
