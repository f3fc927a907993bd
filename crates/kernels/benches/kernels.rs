//! Times of the kernels on layer shapes, against this core's measured multiply-add peak.
//!
//! `cargo bench -p sparoa-kernels [-- FILTER [THREADS]]`; `SPAROA_ISA` caps the instruction set.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sparoa_kernels::Isa;
use sparoa_kernels::attention::{self, AttentionBias, AttentionShape, Strides, attention};
use sparoa_kernels::conv::{
    Conv2d, Conv2dBf16, Conv2dOptions, Conv2dParams, InvertedResidual, Pointwise,
};
use sparoa_kernels::gemm::{PackedB, PackedBf16, PackedTiles, Terms, gemm, gemm_bf16, gemm_tiled};
use sparoa_kernels::isa;
use sparoa_kernels::permute::permute_f32;
use sparoa_kernels::pooling::{Nhwc, Pool2dParams, max_pool2d};
use sparoa_kernels::sparse::{SparseConv2d, SparseInvertedResidual, SparsePooledConv2d};
use sparoa_kernels::{Activation, Epilogue, Pool};

/// The shortest of the times of `f`, over at least 0.3 s.
///
/// On one thread it is the thread's processor time: other processes then disturb it less.
fn best_seconds(threads: usize, mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let now = || if threads == 1 { thread_seconds() } else { start.elapsed().as_secs_f64() };
    let mut best = f64::INFINITY;
    while start.elapsed() < Duration::from_millis(300) {
        let one = now();
        f();
        best = best.min(now() - one);
    }
    best
}

#[cfg(target_os = "linux")]
fn thread_seconds() -> f64 {
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: 3 is CLOCK_THREAD_CPUTIME_ID; the structure is the 64-bit ABI's.
    unsafe { clock_gettime(3, &mut time) };
    time.seconds as f64 + time.nanoseconds as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn thread_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

/// Reproducible values in 0 .. 1 without a pattern.
fn dice(len: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(|_| next()).collect()
}

/// A convolution with a square window of k and step s, padded to keep the size.
fn square([c_in, c_out]: [usize; 2], [k, s]: [usize; 2]) -> Conv2dParams {
    Conv2dParams {
        c_in,
        c_out,
        groups: 1,
        kernel: [k, k],
        stride: [s, s],
        dilation: [1, 1],
        pads: [k / 2; 4],
    }
}

struct Bench {
    filter: String,
    pool: Pool,
    peak: f64,
    /// Where the CPU has bf16.
    bf16_peak: Option<f64>,
}

impl Bench {
    fn report(&self, name: &str, flops: f64, bytes: f64, f: impl FnMut()) {
        self.report_of(self.peak, name, flops, bytes, f);
    }

    /// Of f32 on AMX: three products of bf16 for one.
    fn report_amx(&self, name: &str, flops: f64, bytes: f64, f: impl FnMut()) {
        self.report_of(self.bf16_peak.map_or(self.peak, |p| p / 3.0), name, flops, bytes, f);
    }

    /// The same for bf16.
    fn report_bf16(&self, name: &str, flops: f64, bytes: f64, f: impl FnMut()) {
        self.report_of(self.bf16_peak.unwrap_or(self.peak), name, flops, bytes, f);
    }

    fn report_of(&self, peak: f64, name: &str, flops: f64, bytes: f64, f: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let seconds = best_seconds(self.pool.threads(), f);
        println!(
            "{name:49} {:10.1} us {:8.2} GFLOP/s {:5.1} % of peak {:7.2} GB/s",
            seconds * 1e6,
            flops / seconds * 1e-9,
            flops / seconds / peak * 100.0,
            bytes / seconds * 1e-9
        );
    }

    fn gemm(&self, name: &str, m: usize, n: usize, k: usize) {
        let a = values(m * k);
        let weight = values(k * n);
        let b = PackedB::new(k, n, &weight, false);
        let bias = values(n);
        let mut c = vec![0.0; m * n];
        let epi = Epilogue::activation(Activation::Relu);
        let bytes = 4.0 * (m * k + k * n + m * n) as f64;
        self.report(&format!("gemm {name} {m}x{n}x{k}"), 2.0 * (m * n * k) as f64, bytes, || {
            gemm(m, black_box(&a), k, &b, Some(&bias), &epi, &mut c, &self.pool);
        });
        if isa::best() == Isa::Amx {
            for terms in [Terms::Two, Terms::Three] {
                let b = PackedTiles::new(terms, [m, k, n], &weight, false);
                let mut scratch = vec![0.0; b.scratch_len(m, self.pool.threads())];
                let title = format!("amx {terms:?} gemm {name} {m}x{n}x{k}");
                self.report_amx(&title, 2.0 * (m * n * k) as f64, bytes, || {
                    let (bias, a) = (Some(bias.as_slice()), black_box(&a));
                    gemm_tiled(m, a, k, &b, bias, &epi, &mut c, &mut scratch, &self.pool);
                });
            }
        }
        if self.bf16_peak.is_none() {
            return;
        }
        let b = PackedBf16::new(k, n, &weight, false);
        let mut scratch = vec![0.0; b.scratch_len(m, self.pool.threads())];
        let bytes = bytes - 2.0 * (k * n) as f64;
        let title = format!("bf16 gemm {name} {m}x{n}x{k}");
        self.report_bf16(&title, 2.0 * (m * n * k) as f64, bytes, || {
            let (bias, a) = (Some(bias.as_slice()), black_box(&a));
            gemm_bf16(m, a, k, &b, bias, &epi, &mut c, &mut scratch, &self.pool);
        });
    }

    /// Attention with a bias per head, heads side by side in a row.
    fn attention(&self, name: &str, batch: usize, heads: usize, len: usize, dim: usize) {
        let shape =
            AttentionShape { batch, heads, q_len: len, kv_len: len, head_dim: dim, v_dim: dim };
        let row = heads * dim;
        let strides = Strides { batch: len * row, head: dim, row };
        let [q, k, v] = [1, 2, 3].map(|i| values(batch * len * row + i)[i..].to_vec());
        let (mut out, bias) = (vec![0.0; batch * len * row], values(heads * len * len));
        let mut scratch = vec![0.0; attention::scratch_len(&shape, self.pool.threads())];
        let flops = 4.0 * (batch * heads * len * len * dim) as f64;
        let title = format!("attention {name} {batch}x{heads}x{len}x{dim}");
        self.report(&title, flops, 16.0 * q.len() as f64, || {
            let bias = AttentionBias {
                data: &bias,
                batch_modulo: 1,
                batch_stride: 0,
                head_stride: len * len,
                row_stride: len,
            };
            let (q, k, v) = ((black_box(&q[..]), strides), (&k[..], strides), (&v[..], strides));
            let out = (&mut out[..], strides);
            let bias = Some(bias);
            attention(&shape, q, k, v, 0.125, bias, false, out, &mut scratch, &self.pool);
        });
    }

    fn planes_to_pixels(&self, pixels: usize, channels: usize) {
        let x = values(pixels * channels);
        let mut y = vec![0.0; x.len()];
        let name = format!("transpose {channels}x{pixels}");
        self.report(&name, 0.0, 8.0 * x.len() as f64, || {
            permute_f32(black_box(&x), &[channels, pixels], &[1, 0], &mut y, &self.pool);
        });
    }

    /// The dense kernel and the sparse one at several sparsities, GFLOP/s counting zeros too.
    fn sparse(&self, name: &str, n: usize, size: usize, [ci, co]: [usize; 2], [k, s]: [usize; 2]) {
        let title = format!("sparse {name} x{n} {ci}->{co} {size} k{k} s{s}");
        if !title.contains(&self.filter) {
            return;
        }
        let params = square([ci, co], [k, s]);
        let (bias, weight, dice) = (values(co), values(co * ci * k * k), dice(co * ci * k * k));
        let threads = self.pool.threads();
        let options = Conv2dOptions { images: Some([n, size, size]), ..Conv2dOptions::default() };
        let conv = Conv2d::for_images(params, &weight, Some(&bias), options);
        let [oh, ow] = conv.output_size(size, size);
        let x = values(n * size * size * ci);
        let mut y = vec![0.0; n * oh * ow * co];
        let mut scratch = vec![0.0; conv.scratch_len(n, size, size, threads)];
        let epi = Epilogue::activation(Activation::Relu);
        let flops = 2.0 * (y.len() * ci * k * k) as f64;
        let dense = best_seconds(threads, || {
            conv.run(n, size, size, black_box(&x), &epi, &mut y, &mut scratch, &self.pool);
        });
        print!(
            "{title:42} {} {:6.1} us {:4.0};",
            conv.algorithm(),
            dense * 1e6,
            flops / dense * 1e-9
        );
        for sparsity in [0.5, 0.6, 0.7, 0.8, 0.9, 0.95] {
            let pruned = weight.iter().zip(&dice);
            let pruned: Vec<f32> =
                pruned.map(|(&w, &d)| if d < sparsity { 0.0 } else { w + 2.0 }).collect();
            let conv = SparseConv2d::new(params, [n, size, size], &pruned, Some(&bias));
            let conv = conv.expect("the image is narrow");
            scratch.resize(conv.scratch_len(n, threads), 0.0);
            let seconds = best_seconds(threads, || {
                conv.run(n, black_box(&x), &epi, &mut y, &mut scratch, &self.pool);
            });
            let gflops = flops / seconds * 1e-9;
            print!(" {sparsity:.2} {:5.1} us {gflops:4.0} ({:.2})", seconds * 1e6, seconds / dense);
        }
        println!();
    }

    /// A first layer with the maximum of its result, 3 x 3 with step 2, dense and with zeros.
    fn pooled(&self, n: usize, size: usize, [ci, co]: [usize; 2], [k, s]: [usize; 2]) {
        let title = format!("pooled x{n} {ci}->{co} {size} k{k} s{s}");
        if !title.contains(&self.filter) {
            return;
        }
        let params = square([ci, co], [k, s]);
        let windows =
            Pool2dParams { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], pads: [1; 4] };
        let (bias, weight, dice) = (values(co), values(co * ci * k * k), dice(co * ci * k * k));
        let threads = self.pool.threads();
        let options = Conv2dOptions { images: Some([n, size, size]), ..Conv2dOptions::default() };
        let conv = Conv2d::for_images(params, &weight, Some(&bias), options);
        let [h, w] = conv.output_size(size, size);
        let out = [h, w].map(|d| (d - 1) / 2 + 1);
        let x = values(n * size * size * ci);
        let (mut z, mut y) = (vec![0.0; n * h * w * co], vec![0.0; n * out[0] * out[1] * co]);
        let mut scratch = vec![0.0; conv.scratch_len(n, size, size, threads)];
        let epi = Epilogue::activation(Activation::Relu);
        let dense = best_seconds(threads, || {
            conv.run(n, size, size, black_box(&x), &epi, &mut z, &mut scratch, &self.pool);
            max_pool2d(&windows, Nhwc { n, h, w, c: co }, out, &z, &mut y, &self.pool);
        });
        print!("{title:42} {} and pool {:6.1} us;", conv.algorithm(), dense * 1e6);
        for sparsity in [0.5, 0.6, 0.7, 0.8, 0.9, 0.95] {
            let pruned = weight.iter().zip(&dice);
            let pruned: Vec<f32> =
                pruned.map(|(&w, &d)| if d < sparsity { 0.0 } else { w + 2.0 }).collect();
            let (size, relu) = ([size, size], Activation::Relu);
            let conv =
                SparsePooledConv2d::new(params, size, &windows, out, &pruned, Some(&bias), relu);
            let conv = conv.expect("the windows are known");
            scratch.resize(conv.scratch_len(threads), 0.0);
            let seconds = best_seconds(threads, || {
                conv.run(n, black_box(&x), &mut y, &mut scratch, &self.pool);
            });
            print!(" {sparsity:.2} {:5.1} us ({:.2})", seconds * 1e6, seconds / dense);
        }
        println!();
    }

    /// An inverted residual with dense and with sparse pointwise stages, 90 % zeros in all stages.
    fn inverted(&self, size: usize, [ci, mid, co]: [usize; 3], s: usize) {
        let title = format!("inverted {ci}->{mid}->{co} {size} s{s}");
        let params = Conv2dParams {
            c_in: mid,
            c_out: mid,
            groups: mid,
            kernel: [3, 3],
            stride: [s, s],
            dilation: [1, 1],
            pads: [1; 4],
        };
        let pruned = |len: usize| -> Vec<f32> {
            values(len).iter().zip(dice(len)).map(|(v, d)| if d < 0.9 { 0.0 } else { *v }).collect()
        };
        let (first, last, own) = (pruned(ci * mid), pruned(mid * co), pruned(9 * mid));
        let (wide, narrow) = (values(mid), values(co));
        let relu = Activation::Clip { min: 0.0, max: 6.0 };
        let [oh, ow] = params.output_size(size, size);
        let x = values(size * size * ci);
        let mut y = vec![0.0; oh * ow * co];
        let pixels = (size * size * mid * ci + oh * ow * mid * (9 + co)) as f64;
        let choices = [[false; 2], [true, false], [false, true], [true; 2]];
        let choices = choices.map(|sparse| (sparse, None)).into_iter();
        let tiles = [Terms::Two, Terms::Three].map(|terms| ([false; 2], Some(terms)));
        let stages = |sparse: [bool; 2], terms| {
            let stage = |weight, bias, sparse| Pointwise {
                weight,
                bias: Some(bias),
                activation: relu,
                sparse,
                terms,
            };
            [stage(&first[..], &wide[..], sparse[0]), stage(&last[..], &narrow[..], sparse[1])]
        };
        for (sparse, terms) in choices.chain(tiles) {
            let [expand, project] = stages(sparse, terms).map(Some);
            let kernel = InvertedResidual::new(expand, params, &own, Some(&wide), relu, project);
            let mut scratch = vec![0.0; kernel.scratch_len(1, size, size, self.pool.threads())];
            let title = format!("{title} {sparse:?} {terms:?}");
            self.report(&title, 2.0 * pixels, 4.0 * (x.len() + y.len()) as f64, || {
                let x = black_box(&x);
                kernel.run(1, size, size, x, &Epilogue::NONE, &mut y, &mut scratch, &self.pool);
            });
        }
        let [expand, project] = stages([true; 2], None);
        let (image, bias) = ([size; 2], Some(&wide[..]));
        let kernel =
            SparseInvertedResidual::new(image, Some(expand), params, &own, bias, relu, project);
        let kernel = kernel.expect("the image is narrow");
        let mut scratch = vec![0.0; kernel.scratch_len(1, self.pool.threads())];
        let title = format!("{title} in planes");
        self.report(&title, 2.0 * pixels, 4.0 * (x.len() + y.len()) as f64, || {
            kernel.run(1, black_box(&x), &Epilogue::NONE, &mut y, &mut scratch, &self.pool);
        });
    }

    /// A square image and kernel, same padding; channels `ci` to `co`.
    fn conv(&self, name: &str, size: usize, channels: [usize; 2], [k, s]: [usize; 2], g: usize) {
        self.conv_padded(name, size, channels, [k, s, k / 2], g);
    }

    /// A square image cut into square patches.
    fn patches(&self, name: &str, size: usize, channels: [usize; 2], k: usize) {
        self.conv_padded(name, size, channels, [k, k, 0], 1);
    }

    fn conv_padded(
        &self,
        name: &str,
        size: usize,
        [ci, co]: [usize; 2],
        [k, s, pad]: [usize; 3],
        g: usize,
    ) {
        let params = Conv2dParams {
            c_in: ci,
            c_out: co,
            groups: g,
            kernel: [k, k],
            stride: [s, s],
            dilation: [1, 1],
            pads: [pad; 4],
        };
        for tiles in [None, Some(Terms::Two), Some(Terms::Three)] {
            self.conv_of(name, size, params, tiles);
        }
    }

    fn conv_of(&self, name: &str, size: usize, params: Conv2dParams, tiles: Option<Terms>) {
        let Conv2dParams { c_in: ci, c_out: co, groups: g, kernel: [k, _], stride: [s, _], .. } =
            params;
        let bias = values(co);
        let options = Conv2dOptions { images: Some([1, size, size]), exact: false, tiles };
        let weight = values(co * ci / g * k * k);
        let conv = Conv2d::for_images(params, &weight, Some(&bias), options);
        let [oh, ow] = conv.output_size(size, size);
        let x = values(size * size * ci);
        let mut y = vec![0.0; oh * ow * co];
        let mut scratch = vec![0.0; conv.scratch_len(1, size, size, self.pool.threads())];
        let epi = Epilogue::activation(Activation::Relu);
        let flops = 2.0 * (y.len() * ci / g * k * k) as f64;
        let bytes = 4.0 * (x.len() + y.len() + co * ci / g * k * k) as f64;
        let method = conv.algorithm();
        if tiles.is_some() != method.starts_with("amx") {
            return;
        }
        let title = format!("conv {name} {ci}->{co} {size} k{k} s{s} g{g} {method} {tiles:?}");
        let mut run = || {
            conv.run(1, size, size, black_box(&x), &epi, &mut y, &mut scratch, &self.pool);
        };
        match method.starts_with("amx") {
            true => self.report_amx(&title, flops, bytes, &mut run),
            false => self.report(&title, flops, bytes, &mut run),
        }
        if self.bf16_peak.is_none() || (g == ci && g > 1) || tiles.is_some() {
            return;
        }
        let conv = Conv2dBf16::new(params, &weight, Some(&bias));
        scratch.resize(conv.scratch_len(1, size, size, self.pool.threads()), 0.0);
        let bytes = bytes - 2.0 * weight.len() as f64;
        self.report_bf16(&format!("bf16 {title}"), flops, bytes, || {
            conv.run(1, size, size, black_box(&x), &epi, &mut y, &mut scratch, &self.pool);
        });
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let filter = args.first().cloned().unwrap_or_default();
    let threads = args.get(1).map_or(1, |t| t.parse().expect("THREADS is a number"));
    let peak = sparoa_kernels::peaks::fma_peak_flops() * threads as f64;
    let bf16_peak = sparoa_kernels::peaks::bf16_peak_flops().map(|p| p * threads as f64);
    println!("{}, {threads} threads, peak {:.1} GFLOP/s", isa::best(), peak * 1e-9);
    if let Some(peak) = bf16_peak {
        println!("bf16 peak {:.1} GFLOP/s", peak * 1e-9);
    }
    let b = Bench { filter, pool: Pool::new(threads), peak, bf16_peak };
    for size in [256, 512, 1024] {
        b.gemm("square", size, size, size);
    }
    b.gemm("vit qkv", 197, 2304, 768);
    b.gemm("vit proj", 197, 768, 768);
    b.gemm("vit mlp1", 197, 3072, 768);
    b.gemm("vit mlp2", 197, 768, 3072);
    b.gemm("vit mlp1 x8", 1576, 3072, 768);
    b.gemm("vit mlp2 x8", 1576, 768, 3072);
    b.gemm("swin mlp1", 3136, 384, 96);
    b.gemm("swin mlp2", 3136, 96, 384);
    b.gemm("swin mlp1", 49, 3072, 768);
    b.gemm("swin mlp2", 49, 768, 3072);
    b.gemm("mobilenet expand", 12544, 96, 16);
    b.gemm("mobilenet project", 3136, 24, 144);
    b.gemm("mobilenet last", 49, 1280, 320);
    b.gemm("resnet fc", 1, 1000, 512);
    b.attention("vit", 1, 12, 197, 64);
    b.attention("swin", 64, 3, 49, 32);
    b.planes_to_pixels(224 * 224, 3);
    b.conv("resnet", 224, [3, 64], [7, 2], 1);
    b.conv("resnet", 56, [64, 64], [3, 1], 1);
    b.conv("resnet", 56, [64, 128], [3, 2], 1);
    b.conv("resnet", 56, [64, 128], [1, 2], 1);
    b.conv("resnet", 28, [128, 128], [3, 1], 1);
    b.conv("resnet", 14, [256, 256], [3, 1], 1);
    b.conv("resnet", 7, [512, 512], [3, 1], 1);
    b.conv("mobilenet", 224, [3, 16], [3, 2], 1);
    b.conv("mobilenet", 224, [3, 32], [3, 2], 1);
    b.conv("mobilenet", 112, [32, 16], [1, 1], 1);
    b.conv("mobilenet", 112, [16, 96], [1, 1], 1);
    b.conv("mobilenet", 56, [24, 144], [1, 1], 1);
    b.conv("mobilenet", 14, [64, 384], [1, 1], 1);
    b.conv("mobilenet", 7, [160, 960], [1, 1], 1);
    for (size, channels) in [
        (28, [24, 88]),
        (28, [88, 24]),
        (14, [40, 240]),
        (14, [240, 40]),
        (14, [120, 48]),
        (14, [48, 144]),
        (14, [144, 48]),
        (7, [288, 96]),
        (7, [96, 576]),
        (7, [576, 96]),
    ] {
        b.conv("mobilenetv3", size, channels, [1, 1], 1);
    }
    b.conv("mobilenet", 112, [32, 32], [3, 1], 32);
    b.conv("mobilenet", 112, [96, 96], [3, 2], 96);
    b.conv("mobilenet", 56, [144, 144], [3, 1], 144);
    b.conv("mobilenet", 14, [576, 576], [3, 2], 576);
    b.conv("mobilenet", 14, [240, 240], [5, 1], 240);
    b.conv("mobilenet", 28, [96, 96], [5, 2], 96);
    b.conv("mobilenet", 56, [72, 72], [3, 2], 72);
    b.conv("mobilenet", 14, [384, 384], [3, 1], 384);
    b.conv("mobilenet", 7, [960, 960], [3, 1], 960);
    b.patches("convnext", 224, [3, 96], 4);
    b.conv("lenet", 28, [1, 8], [5, 1], 1);
    b.conv("vgg", 224, [3, 64], [3, 1], 1);
    b.conv("grouped", 28, [128, 128], [3, 1], 32);
    b.inverted(112, [16, 96, 24], 2);
    b.inverted(56, [24, 144, 24], 1);
    b.inverted(28, [32, 192, 32], 1);
    b.inverted(14, [64, 384, 64], 1);
    b.inverted(14, [96, 576, 96], 1);
    b.inverted(7, [160, 960, 160], 1);
    for n in [1, 8] {
        b.sparse("resnet", n, 224, [3, 64], [7, 2]);
        b.pooled(n, 224, [3, 64], [7, 2]);
        b.sparse("resnet", n, 56, [64, 64], [3, 1]);
        b.sparse("resnet", n, 56, [64, 128], [3, 2]);
        b.sparse("resnet", n, 56, [64, 128], [1, 2]);
        b.sparse("resnet", n, 28, [128, 128], [3, 1]);
        b.sparse("resnet", n, 14, [256, 256], [3, 1]);
        b.sparse("resnet", n, 7, [512, 512], [3, 1]);
        b.sparse("resnet fc", n, 1, [512, 1000], [1, 1]);
        b.sparse("mobilenet", n, 224, [3, 32], [3, 2]);
        b.sparse("mobilenet", n, 112, [32, 16], [1, 1]);
        b.sparse("mobilenet", n, 112, [16, 96], [1, 1]);
        b.sparse("mobilenet", n, 56, [24, 144], [1, 1]);
        b.sparse("mobilenet", n, 56, [144, 24], [1, 1]);
        b.sparse("mobilenet", n, 28, [192, 32], [1, 1]);
        b.sparse("mobilenet", n, 14, [64, 384], [1, 1]);
        b.sparse("mobilenet", n, 14, [384, 64], [1, 1]);
        b.sparse("mobilenet", n, 14, [96, 576], [1, 1]);
        b.sparse("mobilenet", n, 7, [160, 960], [1, 1]);
        b.sparse("mobilenet", n, 7, [960, 160], [1, 1]);
        b.sparse("mobilenet", n, 7, [320, 1280], [1, 1]);
    }
}
