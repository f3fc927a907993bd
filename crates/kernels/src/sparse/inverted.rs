//! Inverted residuals whose stages are sparse: pixels keep their places in padded planes (see
//! [`crate::sparse::planes`]) through all three stages, so that only the block's input and its
//! output are transposed.
//!
//! One after the other the expanded channels of a strip are summed over all its pixels and
//! filtered. A channel of ones, which are zeros where the depthwise convolution pads, carries the
//! expansion's bias: so what is expanded is zero there by itself. What is filtered is projected as
//! pointwise weights are.

mod stages;

use crate::activation::{Activation, Epilogue};
use crate::aligned::{AlignedBuffer, SharedMut, align_scratch};
use crate::conv::{Conv2dParams, Pointwise, check_images};
use crate::gemm::micro::Finish;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;
use crate::sparse::compressed::Compressed;
use crate::sparse::grid::{OFFSETS, TILE_VECTORS};
use crate::sparse::kernel::{GROUP, Output};
use crate::sparse::planes::Planes;
use stages::{Part, Run, Sum};

/// Floats of a strip that should stay in the second-level cache.
const STRIP_LEN: usize = 256 * 1024;
/// The most planes of a channel.
const MAX_PLANES: usize = 16;
/// Into how many parts the filtered channels can be cut, each of which is projected by itself.
const PARTS: usize = 8;
/// What beginning a row of weights costs, and what it costs that threads wait for each other, in
/// products of a weight and a vector.
const ROW_COST: usize = 24;
const WAIT_COST: usize = 8192;

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
    planes: Planes,
    c_in: usize,
    /// With its bias as the weight of a last input channel.
    expand: Option<Stage>,
    filter: Stage,
    project: Stage,
    /// Of each output channel how many weights lie before each of [`PARTS`] parts of the filtered
    /// channels, and how many there are.
    parts: Vec<u16>,
    zeros: AlignedBuffer,
    /// Vectors from channel to channel of the input, and of what is filtered.
    input_step: usize,
    filtered_step: usize,
}

/// How a run is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Strips of each image.
    strips: usize,
    /// Parts of the filtered channels that different threads project: 1, or a divisor of
    /// [`PARTS`].
    parts: usize,
    /// Floats of a worker's parts: input, an expanded channel, filtered channels, sums.
    lens: [usize; 4],
    /// Floats of a part's sums of one strip.
    partial_len: usize,
}

impl Cut {
    fn own_len(&self) -> usize {
        self.lens.iter().sum()
    }

    fn partials_len(&self, n: usize) -> usize {
        if self.parts == 1 { 0 } else { n * self.strips * self.parts * self.partial_len }
    }

    fn scratch_len(&self, n: usize, threads: usize) -> usize {
        16 + threads * self.own_len() + self.partials_len(n)
    }
}

/// Steps from channel to channel of the input and of what is filtered: odd, so that channels
/// spread over the cache's sets. What is filtered has room for any tile.
fn steps(planes: &Planes) -> [usize; 2] {
    [(planes.count() * planes.len) | 1, planes.len | 1]
}

impl SparseInvertedResidual {
    /// Compresses the weights for images of a height and width. `weight` and `bias` are the
    /// depthwise convolution's. `None` where the images are too wide for the compressed form, or
    /// an activation between the stages is none of the simple ones.
    pub fn new(
        size: [usize; 2],
        expand: Option<Pointwise<'_>>,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        project: Pointwise<'_>,
    ) -> Option<SparseInvertedResidual> {
        let isa = isa::best();
        let stages = (expand, activation, project);
        SparseInvertedResidual::new_with_isa(isa, size, stages, params, weight, bias)
    }

    /// [`SparseInvertedResidual::new`] for a given instruction set, which must be available.
    pub(crate) fn new_with_isa(
        isa: Isa,
        size: [usize; 2],
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
        let slow = between.into_iter().flatten().any(|a| finish(a).slow.is_some());
        // What is expanded of padding has to be zero.
        if slow || expand.is_some_and(|e| e.activation.apply(0.0) != 0.0) {
            return None;
        }
        let (mid, taps) = (params.c_in, params.taps());
        let c_in = expand.map_or(mid, |e| e.weight.len() / mid);
        let c_out = project.weight.len() / mid;
        let (lanes, _, _) = simd::tile_of(isa);
        let inputs = c_in + usize::from(expand.is_some());
        let fits = |planes: &Planes, budget: usize| {
            let [input, filtered] = steps(planes);
            let vectors = [inputs * input, mid * filtered];
            planes.count() <= MAX_PLANES
                && vectors.iter().all(|&v| v <= OFFSETS)
                && vectors.iter().sum::<usize>() * lanes <= budget
        };
        let layout = |rows: usize| Planes::new(&params, size, lanes, rows);
        let [rows, _] = params.output_size(size[0], size[1]);
        let near = (1..=rows).rev().filter_map(layout).find(|planes| fits(planes, STRIP_LEN));
        let planes = near.or_else(|| layout(1).filter(|planes| fits(planes, usize::MAX)))?;
        let [input_step, filtered_step] = steps(&planes);

        let pointwise = |p: &Pointwise<'_>, k: usize, step: usize, ones: bool| {
            let n = p.weight.len() / k;
            assert!(p.bias.is_none_or(|b| b.len() == n), "bias has an element per channel");
            let weights = Compressed::new(n, vec![0..k], |_, row, out| {
                let bias = p.bias.filter(|_| ones).map(|b| &b[row]);
                let row = p.weight[row * k..][..k].iter().chain(bias);
                for (i, &value) in row.enumerate().filter(|(_, v)| **v != 0.0) {
                    let offset = u16::try_from(i * step);
                    out.push((offset.expect("a strip's channels fit 16 bits"), value));
                }
            });
            let bias = p.bias.filter(|_| !ones).map(<[f32]>::to_vec);
            Stage { weights, bias, activation: p.activation }
        };
        let filter = Compressed::new(mid, vec![0..1], |_, row, out| {
            for (&tap, &value) in planes.taps.iter().zip(&weight[row * taps..][..taps]) {
                if value != 0.0 {
                    let offset = u16::try_from(tap);
                    out.push((offset.expect("a channel's elements fit 16 bits"), value));
                }
            }
        });
        let filter = Stage { weights: filter, bias: bias.map(<[f32]>::to_vec), activation };
        let project = pointwise(&project, mid, filtered_step, false);
        let parts = (0..c_out).flat_map(|row| {
            let (offsets, _) = project.weights.row(0, row);
            (0..=PARTS).map(|part| {
                let first = part * mid / PARTS * filtered_step;
                let before = offsets.partition_point(|&o| usize::from(o) < first);
                u16::try_from(before).expect("a row's weights fit 16 bits")
            })
        });
        Some(SparseInvertedResidual {
            isa,
            c_in,
            expand: expand.map(|e| pointwise(&e, c_in, input_step, true)),
            filter,
            parts: parts.collect(),
            project,
            zeros: AlignedBuffer::zeroed(c_in),
            input_step,
            filtered_step,
            planes,
        })
    }

    /// Size of the compressed weights in memory.
    pub fn bytes(&self) -> usize {
        let stages = [self.expand.as_ref(), Some(&self.filter), Some(&self.project)];
        let weights = stages.into_iter().flatten().map(|s| s.weights.bytes()).sum::<usize>();
        weights + size_of_val(&self.parts[..])
    }

    /// How many elements of scratch [`SparseInvertedResidual::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, threads: usize) -> usize {
        self.cut(n, threads).scratch_len(n, threads)
    }

    fn mid(&self) -> usize {
        self.filter.weights.rows()
    }

    fn c_out(&self) -> usize {
        self.project.weights.rows()
    }

    /// The first of the filtered channels of a part.
    fn part(&self, part: usize, parts: usize) -> usize {
        part * (PARTS / parts) * self.mid() / PARTS
    }

    /// About what a thread has to do if images are cut so.
    fn cost(&self, n: usize, threads: usize, strips: usize, parts: usize) -> usize {
        let planes = &self.planes;
        let rows = planes.geometry.oh.div_ceil(strips);
        let tasks = (n * strips * parts).div_ceil(threads);
        let stage = |stage: &Stage, vectors: usize| {
            let begun = stage.weights.rows() * vectors.div_ceil(TILE_VECTORS) * ROW_COST;
            begun + stage.weights.nonzeros() * vectors
        };
        let vectors = planes.vectors(rows);
        let expanded = planes.len - planes.vectors(planes.rows) + vectors;
        let expand = self.expand.as_ref().map_or(0, |s| stage(s, planes.count() * expanded));
        let all = expand + stage(&self.filter, vectors) + stage(&self.project, vectors);
        let sums = match parts {
            1 => 0,
            _ => WAIT_COST + self.c_out() * vectors * (parts + n * strips * parts / threads),
        };
        tasks * all / parts + sums
    }

    fn cut(&self, n: usize, threads: usize) -> Cut {
        let planes = &self.planes;
        let oh = planes.geometry.oh.max(1);
        let least = oh.div_ceil(planes.rows.max(1));
        let (mut strips, mut parts) = (least, 1);
        if threads > 1 {
            let more = (least..=oh.min(least + 2 * threads)).map(|strips| (strips, 1));
            let shared = [2, 4, PARTS].map(|parts| (least, parts));
            let choices = more.chain(shared);
            let best = choices.min_by_key(|&(s, p)| self.cost(n, threads, s, p));
            (strips, parts) = best.expect("there is a choice");
        }
        let lanes = planes.lanes;
        let inputs = self.c_in + usize::from(self.expand.is_some());
        // With room for a tile that goes beyond the last plane.
        let expanded = self.expand.as_ref().map_or(0, |_| planes.count() * planes.len + planes.len);
        let vectors = planes.vectors(oh.div_ceil(strips));
        let lens = [
            inputs * self.input_step + planes.len,
            expanded,
            self.mid() * self.filtered_step,
            GROUP * TILE_VECTORS,
        ];
        Cut {
            strips,
            parts,
            lens: lens.map(|vectors| (vectors * lanes).next_multiple_of(16)),
            partial_len: (self.c_out() * vectors * lanes).next_multiple_of(16),
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
        let g = &self.planes.geometry;
        check_images(n, [g.h, g.w, self.c_in], [g.oh, g.ow, self.c_out()], x.len(), y.len());
        epi.check(y.len());
        if y.is_empty() {
            return;
        }
        let threads = pool.threads();
        let cut = self.cut(n, threads);
        assert!(scratch.len() >= cut.scratch_len(n, threads), "scratch has scratch_len elements");
        let (own, partial) = align_scratch(scratch).split_at_mut(threads * cut.own_len());
        let (own, partial) = (SharedMut::new(own), SharedMut::new(partial));
        let output = Output::new(
            self.project.bias.as_deref(),
            epi,
            SharedMut::new(y),
            false,
            self.c_out(),
            0,
        );
        let run = Run { block: self, cut, x, output, own, partial };
        pool.run_with_worker(n * cut.strips * cut.parts, &|task, worker| {
            let (strip, part) = (task / cut.parts, task % cut.parts);
            simd::dispatch(self.isa, Part { run: &run, strip, part, worker });
        });
        if cut.parts == 1 {
            return;
        }
        let groups = self.c_out().div_ceil(GROUP);
        pool.run_with_worker(n * cut.strips * groups, &|task, worker| {
            let (strip, group) = (task / groups, task % groups);
            simd::dispatch(self.isa, Sum { run: &run, strip, group, worker });
        });
    }
}
