//! Winograd's convolution against direct sums in double precision.

use proptest::prelude::*;

use super::*;
use crate::activation::{Activation, Residual};
use crate::testing::{close, epilogue_reference, random};

/// B^T and A^T of F(2x2, 3x3).
const TWO: ([[f64; 4]; 4], [[f64; 4]; 2]) = (
    [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0]],
    [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, 1.0]],
);
/// B^T and A^T of F(4x4, 3x3).
const FOUR: ([[f64; 6]; 6], [[f64; 6]; 4]) = (B, A);
const B: [[f64; 6]; 6] = [
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
];
const A: [[f64; 6]; 4] = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
];

/// m t m^T with the matrix's magnitudes.
fn magnitudes<const R: usize, const C: usize>(m: &[[f64; C]; R], t: &[f64]) -> Vec<f64> {
    let at = |i: usize, j: usize| -> f64 {
        let sum = |k: usize| (0..C).map(|l| t[k * C + l] * m[j][l].abs()).sum::<f64>();
        (0..C).map(|k| m[i][k].abs() * sum(k)).sum()
    };
    (0..R * R).map(|i| at(i / R, i % R)).collect()
}

/// The direct sums in double precision, and bounds: what roundings of the transforms and of
/// the sums over channels can amount to at most.
fn reference<T: Transform<IN, OUT>, const IN: usize, const OUT: usize>(
    _: T,
    (input, output): &([[f64; IN]; IN], [[f64; IN]; OUT]),
    p: &Conv2dParams,
    [n, h, w]: [usize; 3],
    [oh, ow]: [usize; 2],
    x: &[f32],
    weight: &[f32],
) -> Vec<(f64, f64)> {
    let pixel = |b: usize, y: usize, x_: usize, c: usize| {
        let (y, x_) = (y.wrapping_sub(p.pads[0]), x_.wrapping_sub(p.pads[1]));
        if y < h && x_ < w { f64::from(x[((b * h + y) * w + x_) * p.c_in + c]) } else { 0.0 }
    };
    let filter = |o: usize, c: usize| &weight[(o * p.c_in + c) * 9..][..9];
    let mut out = vec![(0.0, 0.0); n * oh * ow * p.c_out];
    let u: Vec<Vec<f64>> = (0..p.c_out * p.c_in)
        .map(|i| {
            let g: Vec<f64> = weight[i * 9..][..9].iter().map(|v| f64::from(v.abs())).collect();
            magnitudes(&T::G, &g)
        })
        .collect();
    for (b, ty, tx) in (0..n).flat_map(|b| {
        let down = (0..oh).step_by(OUT);
        down.flat_map(move |y| (0..ow).step_by(OUT).map(move |x| (b, y, x)))
    }) {
        let v: Vec<Vec<f64>> = (0..p.c_in)
            .map(|c| {
                let d: Vec<f64> =
                    (0..IN * IN).map(|i| pixel(b, ty + i / IN, tx + i % IN, c).abs()).collect();
                magnitudes(input, &d)
            })
            .collect();
        for o in 0..p.c_out {
            let m: Vec<f64> = (0..IN * IN)
                .map(|i| (0..p.c_in).map(|c| u[o * p.c_in + c][i] * v[c][i]).sum())
                .collect();
            let bounds = magnitudes(output, &m);
            for (i, bound) in bounds.iter().enumerate() {
                let (y, x_) = (ty + i / OUT, tx + i % OUT);
                if y >= oh || x_ >= ow {
                    continue;
                }
                let sum: f64 = (0..p.c_in * 9)
                    .map(|k| {
                        let (c, ky, kx) = (k / 9, k % 9 / 3, k % 3);
                        pixel(b, y + ky, x_ + kx, c) * f64::from(filter(o, c)[ky * 3 + kx])
                    })
                    .sum();
                let roundings = p.c_in as f64 + 24.0;
                out[((b * oh + y) * ow + x_) * p.c_out + o] =
                    (sum, roundings * f64::from(f32::EPSILON) * bound);
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn matches_double_precision(
        channels in [1usize..40, 1usize..70],
        size in [1usize..3, 2usize..15, 2usize..15],
        pads in [0usize..2, 0usize..2, 0usize..2, 0usize..2],
        kind in 0u8..3,
        threads in 1usize..8,
        four: bool,
    ) {
        let ([c_in, c_out], [n, h, w]) = (channels, size);
        let (kernel, one) = ([3, 3], [1, 1]);
        let p =
            Conv2dParams { c_in, c_out, groups: 1, kernel, stride: one, dilation: one, pads };
        let [oh, ow] = p.output_size(h, w);
        prop_assume!(oh > 0 && ow > 0);
        let x = random(n * h * w * c_in, 1);
        let weight = random(c_out * c_in * 9, 2);
        let bias = random(c_out, 3);
        let (tiling, sums) = if four {
            (Tiling::Four, reference(F4, &FOUR, &p, size, [oh, ow], &x, &weight))
        } else {
            (Tiling::Two, reference(F2, &TWO, &p, size, [oh, ow], &x, &weight))
        };
        let extra = random(sums.len(), 4);
        let epi = match kind {
            0 => Epilogue::NONE,
            1 => Epilogue {
                activation: Activation::Relu,
                residual: Residual::BeforeActivation(&extra),
            },
            _ => Epilogue {
                activation: Activation::HardSwish,
                residual: Residual::AfterActivation(&extra),
            },
        };
        let pool = Pool::new(threads);
        let geometry = Geometry { params: p, h, w, oh, ow };
        for isa in Isa::available() {
            let winograd = Winograd::new(isa, tiling, &p, &weight);
            let chosen = winograd.blocking(n, oh, ow, threads);
            let mut blockings = winograd.blockings(chosen.tiles, threads).to_vec();
            // Several blocks one after the other.
            blockings.push(Blocking { group: chosen.tiles.div_ceil(3), ..blockings[2] });
            for blocking in blockings {
                let mut y = vec![f32::NAN; sums.len()];
                let mut scratch = vec![f32::NAN; blocking.scratch_len(&winograd, threads)];
                let (weights, y_) = (&winograd, SharedMut::new(&mut y));
                let run =
                    Run { weights, geometry: &geometry, x: &x, bias: Some(&bias), epi: &epi, y: y_ };
                run.tiles(blocking, &mut scratch, &pool);
                for (i, &y) in y.iter().enumerate() {
                    let want = epilogue_reference(sums[i], Some(bias[i % c_out]), &epi, i);
                    prop_assert!(close(y, want), "{isa} {blocking:?} at {i}: {y}, {want:?}");
                }
            }
        }
    }
}

#[test]
fn large_maps_go_by_blocks_and_errors_stay_small() {
    let (c_in, c_out, size) = (128, 48, 34);
    let one = [1, 1];
    let p = Conv2dParams {
        c_in,
        c_out,
        groups: 1,
        kernel: [3, 3],
        stride: one,
        dilation: one,
        pads: [1; 4],
    };
    assert_eq!(choose(&p, [1, size, size], 0.85), Some(Tiling::Four));
    let x = random(size * size * c_in, 1);
    let weight = random(c_out * c_in * 9, 2);
    let geometry = Geometry { params: p, h: size, w: size, oh: size, ow: size };
    let isa = crate::isa::best();
    let mut results = Vec::new();
    for threads in [1, 2, 3, 16] {
        let winograd = Winograd::new(isa, Tiling::Four, &p, &weight);
        let blocking = winograd.blocking(1, size, size, threads);
        assert!(blocking.group < 81);
        let tasks = 81usize.div_ceil(blocking.group) * winograd.panels();
        assert!(threads == 1 || tasks >= threads.min(81 / 12), "threads have work");
        let mut y = vec![f32::NAN; size * size * c_out];
        let mut scratch = vec![0.0; winograd.scratch_len(1, size, size, threads)];
        let pool = Pool::new(threads);
        winograd.run(1, &geometry, &x, None, &Epilogue::NONE, &mut y, &mut scratch, &pool);
        results.push(y);
    }
    assert!(results.iter().all(|r| *r == results[0]));
    // Against the direct sum in f32: 1152 products of numbers below 1.
    let direct = crate::conv::Conv2d::new(p, &weight, None);
    let mut y = vec![0.0; size * size * c_out];
    let mut scratch = vec![0.0; direct.scratch_len(1, size, size, 1)];
    let pool = Pool::single();
    direct.run(1, size, size, &x, &Epilogue::NONE, &mut y, &mut scratch, &pool);
    let largest = y.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (a, b) in results[0].iter().zip(&y) {
        assert!((a - b).abs() < 2e-5 * largest, "{a} {b} {largest}");
    }
}
