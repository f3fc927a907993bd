//! Inverted residuals (Sandler et al. 2018, arXiv:1801.04381): pointwise expansion, depthwise
//! convolution and pointwise projection, strip by strip of output rows, so that the expanded
//! tensor never leaves the second-level cache. The pointwise stages may be sparse.

mod weights;

use crate::activation::{Activation, Epilogue, Residual};
use crate::aligned::{SharedMut, align_scratch};
use crate::conv::depthwise::{Depthwise, Store, sliding};
use crate::conv::indirect::Geometry;
use crate::conv::{Conv2dParams, check_images};
use crate::gemm::Terms;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;
use weights::Weights;

/// Floats of a strip's expanded and filtered rows: they stay in the second-level cache.
const STRIP_LEN: usize = 96 * 1024;
/// Output rows below which a task recomputes too much of its neighbour's expansion.
const TASK_ROWS: usize = 7;

/// A pointwise convolution to pack: weight (c_out, c_in), bias and activation.
#[derive(Clone, Copy, Debug)]
pub struct Pointwise<'a> {
    /// Output channels times input channels.
    pub weight: &'a [f32],
    /// One per output channel.
    pub bias: Option<&'a [f32]>,
    /// Applied to the result; of a projection, the epilogue's counts instead.
    pub activation: Activation,
    /// Whether to compress the weights and skip zeros.
    pub sparse: bool,
    /// On AMX, of how many bf16 a number is the sum; [`Terms::One`] also where pairs of bf16 multiply.
    /// Otherwise, and without, f32 multiplies f32.
    pub terms: Option<Terms>,
}

#[derive(Clone, Debug)]
struct Packed {
    b: Weights,
    bias: Option<Vec<f32>>,
    activation: Activation,
}

/// The three stages, weights packed; the first or the last may be absent.
#[derive(Clone, Debug)]
pub struct InvertedResidual {
    isa: Isa,
    /// Of the depthwise convolution.
    params: Conv2dParams,
    expand: Option<Packed>,
    depthwise: Depthwise,
    bias: Option<Vec<f32>>,
    activation: Activation,
    project: Option<Packed>,
}

/// How a run is cut.
#[derive(Clone, Copy)]
struct Strips {
    /// Too few rows for the threads: stage after stage instead, each over all of them.
    staged: bool,
    /// Output rows of a strip.
    rows: usize,
    /// Tasks per image.
    parts: usize,
    /// Floats of the expanded rows, of the filtered ones, and that the stages need for themselves.
    expanded: usize,
    filtered: usize,
    own: usize,
}

impl InvertedResidual {
    /// Whether the depthwise convolution is of a shape that this computes.
    pub fn fits(depthwise: &Conv2dParams) -> bool {
        depthwise.groups == depthwise.c_in
            && depthwise.groups > 1
            && depthwise.dilation[0] == 1
            && sliding::fits(depthwise)
    }

    /// Packs the weights; `weight` and `bias` are the depthwise convolution's.
    pub fn new(
        expand: Option<Pointwise<'_>>,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        project: Option<Pointwise<'_>>,
    ) -> InvertedResidual {
        let isa = isa::best();
        InvertedResidual::new_with_isa(isa, expand, params, weight, bias, activation, project)
    }

    /// [`InvertedResidual::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        expand: Option<Pointwise<'_>>,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        project: Option<Pointwise<'_>>,
    ) -> InvertedResidual {
        params.check(weight.len(), bias.map(<[f32]>::len));
        assert!(InvertedResidual::fits(&params), "the depthwise convolution fits");
        let channels = params.c_in;
        let pack = |p: Pointwise<'_>, k: usize, n: usize| {
            assert!(p.bias.is_none_or(|b| b.len() == n), "bias has an element per channel");
            Packed {
                b: Weights::new(isa, [k, n], &p),
                bias: p.bias.map(<[f32]>::to_vec),
                activation: p.activation,
            }
        };
        InvertedResidual {
            isa,
            params,
            expand: expand.map(|p| pack(p, p.weight.len() / channels, channels)),
            depthwise: Depthwise::new(&params, weight),
            bias: bias.map(<[f32]>::to_vec),
            activation,
            project: project.map(|p| pack(p, channels, p.weight.len() / channels)),
        }
    }

    /// Whether a stage skips zero weights.
    pub fn is_sparse(&self) -> bool {
        self.pointwise().any(|p| p.b.is_sparse())
    }

    /// Whether a stage multiplies on AMX.
    pub fn is_tiled(&self) -> bool {
        self.pointwise().any(|p| p.b.is_tiled())
    }

    /// Whether a stage multiplies pairs of bf16.
    pub fn is_paired(&self) -> bool {
        self.pointwise().any(|p| p.b.is_paired())
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.depthwise.bytes() + self.pointwise().map(|p| p.b.bytes()).sum::<usize>()
    }

    /// The pointwise stages that there are.
    fn pointwise(&self) -> impl Iterator<Item = &Packed> {
        [&self.expand, &self.project].into_iter().flatten()
    }

    fn strips(&self, n: usize, h: usize, w: usize, threads: usize) -> Strips {
        let p = &self.params;
        let [oh, ow] = p.output_size(h, w);
        let (wide, narrow) = (w * p.c_in, ow * p.c_in);
        let span = |rows: usize| ((rows - 1) * p.stride[0] + p.kernel[0]).min(h);
        let mut rows = 1;
        while rows < oh && span(rows + 1) * wide + (rows + 1) * narrow <= STRIP_LEN {
            rows += 1;
        }
        let own = |m: usize, threads: usize| {
            self.pointwise().map(|p| p.b.scratch_len(m, threads)).max().unwrap_or(0)
        };
        let alone = self.pointwise().map(|p| p.b.scratch_len_alone()).max().unwrap_or(0);
        let parts = match threads {
            1 => 1,
            _ => (4 * threads).div_ceil(n.max(1)).min(oh / TASK_ROWS).max(1),
        };
        if n * parts < threads && n * oh > 0 {
            return Strips {
                staged: true,
                rows: oh,
                parts: 1,
                expanded: if self.expand.is_some() { n * h * wide } else { 0 },
                filtered: if self.project.is_some() { n * oh * narrow } else { 0 },
                own: own(n * h * w, threads).max(own(n * oh * ow, threads)),
            };
        }
        let rows = rows.min(oh.div_ceil(parts)).max(1);
        // Even strips.
        let rows = oh.div_ceil(parts).div_ceil(oh.div_ceil(parts).div_ceil(rows));
        Strips {
            staged: false,
            rows,
            parts,
            expanded: if self.expand.is_some() { span(rows) * wide } else { 0 },
            filtered: if self.project.is_some() { rows * narrow } else { 0 },
            own: alone,
        }
    }

    /// How many elements of scratch [`InvertedResidual::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let s = self.strips(n, h, w, threads);
        let parts = if s.staged { 1 } else { threads };
        16 + parts * (s.expanded + s.filtered + s.own).next_multiple_of(16)
    }

    /// y = epilogue(project(act(depthwise(act(expand(x)))))), x and y channels last; the epilogue
    /// is the last stage's.
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
        let [oh, ow] = p.output_size(h, w);
        let c_in = self.expand.as_ref().map_or(p.c_in, |e| e.b.k());
        let c_out = self.project.as_ref().map_or(p.c_in, |e| e.b.n());
        let threads = pool.threads();
        check_images(n, [h, w, c_in], [oh, ow, c_out], x.len(), y.len());
        assert!(
            scratch.len() >= self.scratch_len(n, h, w, threads),
            "scratch has scratch_len elements"
        );
        epi.check(y.len());
        if y.is_empty() {
            return;
        }
        let strips = self.strips(n, h, w, threads);
        let per_worker = (strips.expanded + strips.filtered + strips.own).next_multiple_of(16);
        let geometry = Geometry { params: *p, h, w, oh, ow };
        if strips.staged {
            let (expanded, rest) = align_scratch(scratch).split_at_mut(strips.expanded);
            let (filtered, own) = rest.split_at_mut(strips.filtered);
            self.by_stages(n, &geometry, x, epi, y, expanded, filtered, own, pool);
            return;
        }
        let scratch = SharedMut::new(align_scratch(scratch));
        let run = Run { stages: self, geometry: &geometry, x, c_in, epi, y: SharedMut::new(y) };
        pool.run_with_worker(n * strips.parts, &|task, worker| {
            let (image, part) = (task / strips.parts, task % strips.parts);
            // SAFETY: each worker has its own part, and runs one task at a time.
            let scratch = unsafe { scratch.slice(worker * per_worker, per_worker) };
            let (expanded, rest) = scratch.split_at_mut(strips.expanded);
            let (filtered, own) = rest.split_at_mut(strips.filtered);
            let mut next = part * oh / strips.parts;
            let end = (part + 1) * oh / strips.parts;
            let mut held = 0..0;
            while next < end {
                let rows = next..end.min(next + strips.rows);
                next = rows.end;
                held = run.strip(image, rows, held, expanded, filtered, own);
            }
        });
    }

    /// Every stage over all threads; `expanded` and `filtered` hold what lies between them, the
    /// stages use `scratch`.
    fn by_stages(
        &self,
        n: usize,
        g: &Geometry,
        x: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        expanded: &mut [f32],
        filtered: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let input = match &self.expand {
            None => x,
            Some(e) => {
                let m = n * g.h * g.w;
                let own = Epilogue::activation(e.activation);
                let out = &mut expanded[..m * e.b.n()];
                e.b.run(m, x, e.bias.as_deref(), &own, out, scratch, pool);
                &*out
            }
        };
        let bias = self.bias.as_deref();
        let Some(project) = &self.project else {
            self.depthwise.run(self.isa, n, g, input, bias, epi, y, pool);
            return;
        };
        let m = n * g.oh * g.ow;
        let own = Epilogue::activation(self.activation);
        let between = &mut filtered[..m * project.b.k()];
        self.depthwise.run(self.isa, n, g, input, bias, &own, between, pool);
        let bias = project.bias.as_deref();
        project.b.run(m, between, bias, epi, y, scratch, pool);
    }
}

struct Run<'a> {
    stages: &'a InvertedResidual,
    geometry: &'a Geometry,
    x: &'a [f32],
    c_in: usize,
    epi: &'a Epilogue<'a>,
    y: SharedMut,
}

impl Run<'_> {
    /// Output rows `rows` of an image. `held` are the input rows that `expanded` holds; returned
    /// is what it holds afterwards.
    fn strip(
        &self,
        image: usize,
        rows: std::ops::Range<usize>,
        held: std::ops::Range<usize>,
        expanded: &mut [f32],
        filtered: &mut [f32],
        scratch: &mut [f32],
    ) -> std::ops::Range<usize> {
        let (s, g, p) = (self.stages, self.geometry, &self.geometry.params);
        let first = (rows.start * p.stride[0]).saturating_sub(p.pads[0]);
        let last = ((rows.end - 1) * p.stride[0] + p.kernel[0]).saturating_sub(p.pads[0]);
        let wanted = first.min(g.h)..last.min(g.h);
        let (input, from) = match &s.expand {
            None => (self.x, 0),
            Some(expand) => {
                let wide = g.w * p.c_in;
                // The rows above that the last strip has expanded already move to the front.
                let kept = match held.contains(&wanted.start) {
                    true => held.end - wanted.start,
                    false => 0,
                };
                if kept > 0 {
                    let at = (wanted.start - held.start) * wide;
                    expanded.copy_within(at..at + kept * wide, 0);
                }
                let epi = Epilogue::activation(expand.activation);
                let bias = expand.bias.as_deref();
                let new = wanted.start + kept..wanted.end;
                let a = &self.x[(image * g.h + new.start) * g.w * self.c_in..];
                let a = &a[..new.len() * g.w * self.c_in];
                let out = &mut expanded[kept * wide..wanted.len() * wide];
                expand.b.run_alone(new.len() * g.w, a, bias, &epi, out, scratch);
                (&*expanded, image * g.h + wanted.start)
            }
        };
        let own = Epilogue::activation(s.activation);
        let bias = s.bias.as_deref();
        let store = match &s.project {
            None => Store::new(p.c_in, bias, self.epi, self.y),
            Some(_) => Store::new(p.c_in, bias, &own, SharedMut::new(filtered)),
        };
        for row in rows.clone() {
            // A row of the strip's own buffer, or of y.
            let out = if s.project.is_some() { row - rows.start } else { image * g.oh + row };
            let line = s.depthwise.row(g, input, from, image * g.oh + row, out, &store);
            simd::dispatch(s.isa, line);
        }
        if let Some(project) = &s.project {
            let bias = project.bias.as_deref();
            let (m, n) = (rows.len() * g.ow, project.b.n());
            let (at, len) = ((image * g.oh + rows.start) * g.ow * n, m * n);
            let residual = match self.epi.residual {
                Residual::None => Residual::None,
                Residual::BeforeActivation(r) => Residual::BeforeActivation(&r[at..][..len]),
                Residual::AfterActivation(r) => Residual::AfterActivation(&r[at..][..len]),
            };
            let epi = Epilogue { residual, ..*self.epi };
            // SAFETY: y has these rows of this image, and no other task writes them.
            let y = unsafe { self.y.slice(at, len) };
            project.b.run_alone(m, &filtered[..m * p.c_in], bias, &epi, y, scratch);
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conv::{Conv2d, Conv2dBf16};
    use crate::sparse::SparseInvertedResidual;
    use crate::testing::random;

    fn params(
        c_in: usize,
        c_out: usize,
        groups: usize,
        kernel: usize,
        stride: usize,
        pads: [usize; 4],
    ) -> Conv2dParams {
        let (kernel, stride, dilation) = ([kernel; 2], [stride; 2], [1; 2]);
        Conv2dParams { c_in, c_out, groups, kernel, stride, dilation, pads }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_its_three_convolutions(
            channels in [1usize..20, 2usize..40, 1usize..20],
            size in [1usize..3, 3usize..40, 3usize..30],
            kernel in prop_oneof![Just(3usize), Just(5)],
            stride in 1usize..3,
            pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
            stages in 0u8..3,
            sparse in any::<[bool; 2]>(),
            tiles in any::<bool>(),
            threads in 1usize..8,
        ) {
            let ([c_in, mid, c_out], [n, h, w]) = (channels, size);
            let (c_in, c_out) = match stages {
                0 => (c_in, c_out),
                1 => (mid, c_out),
                _ => (c_in, mid),
            };
            let dw = params(mid, mid, mid, kernel, stride, pads);
            let [oh, ow] = dw.output_size(h, w);
            prop_assume!(oh > 0 && ow > 0);
            let mut weights =
                [random(mid * c_in, 1), random(mid * kernel * kernel, 2), random(c_out * mid, 3)];
            for i in [0, 2] {
                if sparse[i / 2] {
                    weights[i].iter_mut().filter(|w| w.abs() < 0.7).for_each(|w| *w = 0.0);
                }
            }
            let biases = [random(mid, 4), random(mid, 5), random(c_out, 6)];
            let x = random(n * h * w * c_in, 7);
            let pool = Pool::new(threads);
            let run = |isa, p: Conv2dParams, i: usize, act, size: [usize; 2], x: &[f32]| {
                let conv = Conv2d::new_with_isa(isa, p, &weights[i], Some(&biases[i]));
                let [oh, ow] = conv.output_size(size[0], size[1]);
                let mut y = vec![0.0; n * oh * ow * p.c_out];
                let mut scratch = vec![0.0; conv.scratch_len(n, size[0], size[1], threads)];
                let epi = Epilogue::activation(act);
                conv.run(n, size[0], size[1], x, &epi, &mut y, &mut scratch, &pool);
                y
            };
            let one = |c_in, c_out| params(c_in, c_out, 1, 1, 1, [0; 4]);
            for isa in Isa::available() {
                let mut want = x.clone();
                let mut last = Activation::HardSwish;
                if stages != 1 {
                    want = run(isa, one(c_in, mid), 0, Activation::Relu, [h, w], &want);
                }
                want = run(isa, dw, 1, last, [h, w], &want);
                if stages != 2 {
                    last = Activation::None;
                    want = run(isa, one(mid, c_out), 2, last, [oh, ow], &want);
                }
                let stage = |i: usize| Pointwise {
                    weight: &weights[i],
                    bias: Some(&biases[i]),
                    activation: Activation::Relu,
                    sparse: sparse[i / 2],
                    terms: tiles.then_some(Terms::Two),
                };
                let fused = InvertedResidual::new_with_isa(
                    isa,
                    (stages != 1).then(|| stage(0)),
                    dw,
                    &weights[1],
                    Some(&biases[1]),
                    Activation::HardSwish,
                    (stages != 2).then(|| stage(2)),
                );
                let mut y = vec![f32::NAN; want.len()];
                let mut scratch = vec![f32::NAN; fused.scratch_len(n, h, w, threads)];
                let epi = Epilogue::activation(last);
                fused.run(n, h, w, &x, &epi, &mut y, &mut scratch, &pool);
                // The same sums; low tiles of a product add them up in another order. Each is of
                // at most 40 terms, in three stages. Terms of bf16 leave out some 3 * 2^-18 of every
                // product, whose sizes sum up to no more than 40 times the largest of a stage.
                let largest = want.iter().fold(1f32, |m, v| m.max(v.abs()));
                let left_out = if fused.is_tiled() { 2.0 * 40.0 * 3.0 * 32.0 } else { 0.0 };
                for (a, b) in y.iter().zip(&want) {
                    let bound = (120.0 + left_out) * f32::EPSILON * largest;
                    prop_assert!((a - b).abs() <= bound, "{a} {b}");
                }
                if stages == 2 {
                    continue;
                }
                let expand = (stages != 1).then(|| stage(0));
                let block = SparseInvertedResidual::new_with_isa(
                    isa,
                    [h, w],
                    (expand, Activation::HardSwish, stage(2)),
                    dw,
                    &weights[1],
                    Some(&biases[1]),
                );
                let block = block.expect("the images are narrow");
                let mut y = vec![f32::NAN; want.len()];
                let mut scratch = vec![f32::NAN; block.scratch_len(n, threads)];
                block.run(n, &x, &epi, &mut y, &mut scratch, &pool);
                for (a, b) in y.iter().zip(&want) {
                    let bound = 120.0 * f32::EPSILON * largest;
                    prop_assert!((a - b).abs() <= bound, "in planes: {a} {b}");
                }
            }
        }
    }
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Stages multiply as convolutions in bf16 do. Their sums may be added up in another order, so that
        /// now and then one between two stages is rounded to the bf16 next to the other's.
        #[test]
        fn pairs_of_bf16_equal_convolutions_in_bf16(
            channels in [1usize..40, 2usize..70, 1usize..40],
            size in [1usize..3, 3usize..30, 3usize..40],
            stride in 1usize..3,
            stages in 0u8..3,
            threads in 1usize..4,
        ) {
            if isa::bf16().is_err() || isa::best() == Isa::Amx {
                eprintln!("skipped: no products of pairs");
                return Ok(());
            }
            let ([c_in, mid, c_out], [n, h, w]) = (channels, size);
            let dw = params(mid, mid, mid, 3, stride, [1; 4]);
            let (expands, projects) = (stages != 1, stages != 2);
            let weights = [random(mid * c_in, 1), random(mid * 9, 2), random(c_out * mid, 3)];
            let x = random(n * h * w * if expands { c_in } else { mid }, 4);
            let pool = Pool::new(threads);
            let run = |p: Conv2dParams, i: usize, size: [usize; 2], act, x: &[f32]| {
                let conv = Conv2dBf16::new(p, &weights[i], None);
                let [oh, ow] = conv.output_size(size[0], size[1]);
                let mut y = vec![0.0; n * oh * ow * p.c_out];
                let mut scratch = vec![0.0; conv.scratch_len(n, size[0], size[1], threads)];
                let epi = Epilogue::activation(act);
                conv.run(n, size[0], size[1], x, &epi, &mut y, &mut scratch, &pool);
                y
            };
            let relu = Activation::Relu;
            let mut want = x.clone();
            if expands {
                want = run(params(c_in, mid, 1, 1, 1, [0; 4]), 0, [h, w], relu, &want);
            }
            let last = if projects { relu } else { Activation::None };
            want = run(dw, 1, [h, w], last, &want);
            if projects {
                let p = params(mid, c_out, 1, 1, 1, [0; 4]);
                want = run(p, 2, dw.output_size(h, w), Activation::None, &want);
            }
            let stage = |i: usize| Pointwise {
                weight: &weights[i],
                bias: None,
                activation: relu,
                sparse: false,
                terms: Some(Terms::One),
            };
            let (first, second) = (expands.then(|| stage(0)), projects.then(|| stage(2)));
            let fused = InvertedResidual::new(first, dw, &weights[1], None, last, second);
            let mut y = vec![f32::NAN; want.len()];
            let mut scratch = vec![f32::NAN; fused.scratch_len(n, h, w, threads)];
            fused.run(n, h, w, &x, &Epilogue::NONE, &mut y, &mut scratch, &pool);
            let largest = want.iter().fold(1f32, |m, v| m.max(v.abs()));
            let off = |bound: f32| {
                let near = |(a, b): &(&f32, &f32)| (*a - *b).abs() <= bound * largest;
                y.len() - y.iter().zip(&want).filter(near).count()
            };
            prop_assert!(off(2f32.powi(-8)) == 0, "{} of {}", off(2f32.powi(-8)), y.len());
            let rounded_apart = off(120.0 * f32::EPSILON);
            prop_assert!(rounded_apart <= 2 + y.len() / 50, "{rounded_apart} of {}", y.len());
        }
    }
}
