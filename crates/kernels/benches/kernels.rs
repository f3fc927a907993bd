//! Times of the kernels on layer shapes, against this core's measured multiply-add peak.
//!
//! `cargo bench -p sparoa-kernels [-- FILTER [THREADS]]`; `SPAROA_ISA` caps the instruction set.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sparoa_kernels::gemm::{PackedB, gemm};
use sparoa_kernels::isa;
use sparoa_kernels::{Activation, Epilogue, Pool};

/// The shortest of the times of `f`, over at least 0.3 s.
fn best_seconds(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed() < Duration::from_millis(300) {
        let one = Instant::now();
        f();
        best = best.min(one.elapsed().as_secs_f64());
    }
    best
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

struct Bench {
    filter: String,
    pool: Pool,
    peak: f64,
}

impl Bench {
    fn report(&self, name: &str, flops: f64, bytes: f64, f: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let seconds = best_seconds(f);
        println!(
            "{name:44} {:10.1} us {:8.2} GFLOP/s {:5.1} % of peak {:7.2} GB/s",
            seconds * 1e6,
            flops / seconds * 1e-9,
            flops / seconds / self.peak * 100.0,
            bytes / seconds * 1e-9
        );
    }

    fn gemm(&self, name: &str, m: usize, n: usize, k: usize) {
        let a = values(m * k);
        let b = PackedB::new(k, n, &values(k * n), false);
        let bias = values(n);
        let mut c = vec![0.0; m * n];
        let epi = Epilogue::activation(Activation::Relu);
        let bytes = 4.0 * (m * k + k * n + m * n) as f64;
        self.report(&format!("gemm {name} {m}x{n}x{k}"), 2.0 * (m * n * k) as f64, bytes, || {
            gemm(m, black_box(&a), k, &b, Some(&bias), &epi, &mut c, &self.pool);
        });
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let filter = args.first().cloned().unwrap_or_default();
    let threads = args.get(1).map_or(1, |t| t.parse().expect("THREADS is a number"));
    let peak = sparoa_kernels::math::fma_peak_flops() * threads as f64;
    println!("{}, {threads} threads, peak {:.1} GFLOP/s", isa::best(), peak * 1e-9);
    let b = Bench { filter, pool: Pool::new(threads), peak };
    for size in [256, 512, 1024] {
        b.gemm("square", size, size, size);
    }
    b.gemm("vit qkv", 197, 2304, 768);
    b.gemm("vit proj", 197, 768, 768);
    b.gemm("vit mlp1", 197, 3072, 768);
    b.gemm("vit mlp2", 197, 768, 3072);
    b.gemm("mobilenet expand", 12544, 96, 16);
    b.gemm("mobilenet project", 3136, 24, 144);
    b.gemm("mobilenet last", 49, 1280, 320);
    b.gemm("resnet fc", 1, 1000, 512);
}
