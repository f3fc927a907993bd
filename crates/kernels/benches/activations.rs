//! Time against the share of zeros in a product's left-hand matrix, per layer shape: the dense
//! kernel beside the one that skips zeros where samples say that it pays.
//!
//! `cargo bench -p sparoa-kernels --bench activations [-- FILTER]`; `SPAROA_ISA` caps the
//! instruction set. Both kernels take turns; the shortest times are compared.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sparoa_kernels::gemm::{PackedB, gemm};
use sparoa_kernels::{Activation, Epilogue, Pool, isa};

/// Rows (pixels), input and output channels.
const SHAPES: [[usize; 3]; 22] = [
    [3136, 64, 64],
    [3136, 32, 128],
    [3136, 128, 32],
    [784, 64, 256],
    [784, 256, 64],
    [784, 192, 32],
    [196, 128, 512],
    [196, 512, 128],
    [196, 384, 64],
    [49, 256, 1024],
    [49, 1024, 256],
    [49, 960, 160],
    [16, 128, 128],
    [8, 960, 320],
    [4, 512, 1000],
    [2, 512, 1000],
    [1, 64, 240],
    [1, 144, 576],
    [1, 512, 1000],
    [1, 1280, 1000],
    [1, 2048, 1000],
    [1, 1024, 2],
];
const SHARES: [f64; 10] = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Reproducible values in 0 .. 1 without a pattern.
fn dice(len: usize, seed: u64) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(|_| next()).collect()
}

/// The shortest times of two computations that take turns.
fn best_seconds(mut first: impl FnMut(), mut second: impl FnMut()) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        let one = Instant::now();
        first();
        let two = Instant::now();
        second();
        best[1] = best[1].min(two.elapsed().as_secs_f64());
        best[0] = best[0].min((two - one).as_secs_f64());
    }
    best
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    println!("{}: dense time, then dense over skipping time by share of zeros", isa::best());
    println!("{:16} {:>10} {}", "", "", SHARES.map(|share| format!(" {share:5.2}")).concat());
    let pool = Pool::single();
    for [m, k, n] in SHAPES {
        let name = format!("{m}x{k}x{n}");
        if !name.contains(&filter) {
            continue;
        }
        let weight: Vec<f32> = dice(k * n, 1).iter().map(|&d| d as f32 - 0.5).collect();
        let bias: Vec<f32> = dice(n, 2).iter().map(|&d| d as f32).collect();
        let dense = PackedB::new(k, n, &weight, false);
        let skipping = dense.clone().skipping_zeros();
        let (mut y, mut z) = (vec![0.0; m * n], vec![0.0; m * n]);
        let epi = Epilogue::activation(Activation::Relu);
        for (i, share) in SHARES.into_iter().enumerate() {
            let a = dice(m * k, 3).into_iter().zip(dice(m * k, 4));
            let a: Vec<f32> =
                a.map(|(die, x)| if die < share { 0.0 } else { x as f32 + 0.01 }).collect();
            let [dense, skipping] = best_seconds(
                || gemm(m, black_box(&a), k, &dense, Some(&bias), &epi, &mut y, &pool),
                || gemm(m, black_box(&a), k, &skipping, Some(&bias), &epi, &mut z, &pool),
            );
            if i == 0 {
                print!("{name:16} {:7.1} us ", dense * 1e6);
            }
            print!(" {:5.2}", dense / skipping);
        }
        println!();
    }
}
