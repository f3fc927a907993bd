//! Transposed convolution: the outputs of one phase of the stride are an ordinary product.

use crate::activation::Epilogue;
use crate::aligned::{SharedMut, align_scratch};
use crate::conv::{Conv2dParams, check_images, offset};
use crate::gemm::PackedB;
use crate::gemm::driver::{Block, Product, Rows, tiles};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;

/// A transposed convolution with its weights packed; `pads` crop the output.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    params: Conv2dParams,
    output_padding: [usize; 2],
    isa: Isa,
    /// By vertical phase, horizontal phase, group.
    phases: Vec<Phase>,
    zeros: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// The taps that reach the outputs at one offset modulo the stride.
#[derive(Clone, Debug)]
struct Phase {
    taps: Vec<[usize; 2]>,
    groups: Vec<PackedB>,
}

impl ConvTranspose2d {
    /// Packs `weight` (ONNX order: c_in, c_out / groups, kernel height, kernel width).
    pub fn new(
        params: Conv2dParams,
        output_padding: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> ConvTranspose2d {
        ConvTranspose2d::new_with_isa(isa::best(), params, output_padding, weight, bias)
    }

    /// [`ConvTranspose2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        output_padding: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> ConvTranspose2d {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[f32]>::len));
        let p = &params;
        let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
        let phase = |i: usize| {
            let at = [i / p.stride[1], i % p.stride[1]];
            let reaches = |d: usize, k: &usize| k * p.dilation[d] % p.stride[d] == at[d];
            let mut taps = Vec::new();
            for ky in (0..p.kernel[0]).filter(|k| reaches(0, k)) {
                taps.extend((0..p.kernel[1]).filter(|k| reaches(1, k)).map(|kx| [ky, kx]));
            }
            let pack = |group: usize| {
                PackedB::from_fn(isa, taps.len() * ci, co, |k, j| {
                    let ([ky, kx], c) = (taps[k / ci], group * ci + k % ci);
                    weight[((c * co + j) * p.kernel[0] + ky) * p.kernel[1] + kx]
                })
            };
            let groups = (0..p.groups).map(pack).collect();
            Phase { taps, groups }
        };
        let phases = (0..p.stride[0] * p.stride[1]).map(phase).collect();
        let zeros = vec![0.0; ci];
        let bias = bias.map(<[f32]>::to_vec);
        ConvTranspose2d { params, output_padding, isa, phases, zeros, bias }
    }

    /// The shape.
    pub fn params(&self) -> &Conv2dParams {
        &self.params
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.phases.iter().flat_map(|p| &p.groups).map(PackedB::bytes).sum()
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        let p = &self.params;
        let one = |i: usize, size: usize, pad: usize| {
            let span = p.dilation[i] * (p.kernel[i] - 1) + 1;
            (((size.max(1) - 1) * p.stride[i]) + span + self.output_padding[i]).saturating_sub(pad)
        };
        [one(0, h, p.pads[0] + p.pads[2]), one(1, w, p.pads[1] + p.pads[3])]
    }

    /// How many elements of scratch [`ConvTranspose2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let _ = n;
        16 + threads * self.worker_scratch(self.output_size(h, w)[1])
    }

    fn worker_scratch(&self, ow: usize) -> usize {
        let most = self.phases.iter().map(|p| p.taps.len()).max().unwrap_or(0).max(1);
        (2 * most * ow.div_ceil(self.params.stride[1])).next_multiple_of(16)
    }

    /// y = epilogue(conv_transpose(x) + bias), x: n, h, w, c_in; y: n, out h, out w, c_out.
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
        let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
        let per_worker = self.worker_scratch(ow);
        let scratch = SharedMut::new(align_scratch(scratch));
        let y = SharedMut::new(y);
        pool.run_with_worker(n * oh * p.groups, &|task, worker| {
            let (group, row) = (task % p.groups, task / p.groups);
            let (image, oy) = (row / oh, row % oh);
            // SAFETY: each worker has its own part, and runs one task at a time.
            let table = unsafe { scratch.slice(worker * per_worker, per_worker) };
            let table = table.as_mut_ptr().cast::<*const f32>();
            let vertical = (oy + p.pads[0]) % p.stride[0];
            for ox in 0..p.stride[1].min(ow) {
                let horizontal = (ox + p.pads[1]) % p.stride[1];
                let phase = &self.phases[vertical * p.stride[1] + horizontal];
                let b = &phase.groups[group];
                let m = (ow - ox).div_ceil(p.stride[1]);
                let taps = phase.taps.len();
                for (row, mr) in tiles(m, b.tile().0) {
                    for (tap, [ky, kx]) in phase.taps.iter().enumerate() {
                        let iy = (oy + p.pads[0]).wrapping_sub(ky * p.dilation[0]);
                        for r in 0..mr {
                            let ox = ox + (row + r) * p.stride[1];
                            let ix = (ox + p.pads[1]).wrapping_sub(kx * p.dilation[1]);
                            // Below zero these wrap to huge values, outside the image too.
                            let (iy, ix) = (iy / p.stride[0], ix / p.stride[1]);
                            let from = if iy < h && ix < w {
                                &x[((image * h + iy) * w + ix) * p.c_in + group * ci..]
                            } else {
                                &self.zeros[..]
                            };
                            // SAFETY: the table has room for taps times m pointers, aligned.
                            unsafe { table.add(row * taps + tap * mr + r).write(from.as_ptr()) };
                        }
                    }
                }
                let start = (row * ow + ox) * p.c_out + group * co;
                let epi = offset(epi, start);
                let bias = self.bias.as_deref().map(|bias| &bias[group * co..][..co]);
                let c = y.at(start);
                let ldc = p.stride[1] * p.c_out;
                let product = Product::new(b, taps.max(1), bias, &epi, c, ldc);
                let rows = if taps > 0 {
                    Rows::Table(table)
                } else {
                    Rows::Dense { a: self.zeros.as_ptr(), lda: 0 }
                };
                let panels = 0..b.panels();
                simd::dispatch(
                    self.isa,
                    Block { product: &product, rows, m, first_row: 0, panels },
                );
            }
        });
    }
}
