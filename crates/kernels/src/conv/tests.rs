//! Convolutions against double precision, on every instruction set of the machine.

use proptest::prelude::*;

use super::{Conv2d, Conv2dParams, ConvTranspose2d};
use crate::activation::{Activation, Epilogue, Residual};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::testing::{close, epilogue_reference, random};

pub(crate) fn params() -> impl Strategy<Value = Conv2dParams> {
    let groups_and_channels = prop_oneof![
        // Dense, depthwise with multipliers, grouped.
        (1usize..40, 1usize..40).prop_map(|(ci, co)| (1, ci, co)),
        (2usize..40, 1usize..3).prop_map(|(g, m)| (g, g, g * m)),
        (2usize..4, 1usize..20, 1usize..20).prop_map(|(g, ci, co)| (g, g * ci, g * co)),
    ];
    let two = |range: std::ops::Range<usize>| [range.clone(), range];
    (groups_and_channels, two(1..6), two(1..4), two(1..3), [0usize..3, 0..3, 0..3, 0..3]).prop_map(
        |((groups, c_in, c_out), kernel, stride, dilation, pads)| Conv2dParams {
            c_in,
            c_out,
            groups,
            kernel,
            stride,
            dilation,
            pads,
        },
    )
}

pub(crate) fn epilogue(kind: u8, residual: &[f32]) -> Epilogue<'_> {
    let residual = match kind % 3 {
        0 => Residual::None,
        1 => Residual::BeforeActivation(residual),
        _ => Residual::AfterActivation(residual),
    };
    let activation = match kind / 3 {
        0 => Activation::None,
        1 => Activation::Relu,
        2 => Activation::HardSwish,
        // Left to a second pass.
        _ => Activation::Silu,
    };
    Epilogue { activation, residual }
}

/// Sums and bounds of the convolution (forward), or of its transpose.
pub(crate) fn reference(
    p: &Conv2dParams,
    transpose: bool,
    [n, h, w]: [usize; 3],
    [oh, ow]: [usize; 2],
    x: &[f32],
    weight: &[f32],
) -> Vec<(f64, f64)> {
    let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
    let mut out = vec![(0.0, 0.0); n * oh * ow * p.c_out];
    // Position o of the wide side meets position i of the narrow one in tap k.
    let meets = |d: usize, narrow: usize, wide: usize, k: usize| {
        wide + p.pads[d] == narrow * p.stride[d] + k * p.dilation[d]
    };
    for b in 0..n {
        // The taps' rows that meet, then the columns in them.
        let cross = |a: usize, b: usize, taps: usize| {
            (0..a).flat_map(move |a| (0..b).flat_map(move |b| (0..taps).map(move |k| (a, b, k))))
        };
        let hit = |d: usize, o: usize, i: usize, k: usize| {
            if transpose { meets(d, i, o, k) } else { meets(d, o, i, k) }
        };
        let columns: Vec<_> =
            cross(ow, w, p.kernel[1]).filter(|&(o, i, k)| hit(1, o, i, k)).collect();
        for (oy, iy, ky) in cross(oh, h, p.kernel[0]).filter(|&(o, i, k)| hit(0, o, i, k)) {
            for &(ox, ix, kx) in &columns {
                let tap = ky * p.kernel[1] + kx;
                for o in 0..p.c_out {
                    for i in 0..ci {
                        let c = o / co * ci + i;
                        let at = if transpose { c * co + o % co } else { o * ci + i };
                        let x = x[((b * h + iy) * w + ix) * p.c_in + c];
                        let weight = weight[at * p.taps() + tap];
                        let term = f64::from(x) * f64::from(weight);
                        let slot = &mut out[((b * oh + oy) * ow + ox) * p.c_out + o];
                        slot.0 += term;
                        slot.1 += term.abs();
                    }
                }
            }
        }
    }
    let terms = (ci * p.kernel[0] * p.kernel[1]) as f64 + 8.0;
    out.iter().map(|&(sum, size)| (sum, terms * f64::from(f32::EPSILON) * size)).collect()
}

/// Checks a convolution that is computed by lines, unless it has one tap.
fn few_channels(p: Conv2dParams, size: [usize; 3], bias: bool, kind: u8, threads: usize) {
    let [n, h, w] = size;
    let x = random(n * h * w * p.c_in, 1);
    let weight = random(p.c_out * p.c_in * p.taps(), 2);
    let bias = bias.then(|| random(p.c_out, 3));
    let pool = Pool::new(threads);
    let sums = reference(&p, false, size, p.output_size(h, w), &x, &weight);
    let residual = random(sums.len(), 4);
    let epi = epilogue(kind, &residual);
    for isa in Isa::available() {
        let conv = Conv2d::new_with_isa(isa, p, &weight, bias.as_deref());
        assert_eq!(conv.algorithm() == "lines", p.taps() > 1, "{p:?}");
        let mut y = vec![f32::NAN; sums.len()];
        let mut scratch = vec![f32::NAN; conv.scratch_len(n, h, w, threads)];
        conv.run(n, h, w, &x, &epi, &mut y, &mut scratch, &pool);
        for (i, &y) in y.iter().enumerate() {
            let want = epilogue_reference(sums[i], bias.as_ref().map(|b| b[i % p.c_out]), &epi, i);
            assert!(close(y, want), "{isa} at {i}: {y}, {want:?}, {p:?}, {size:?}");
        }
    }
}

#[test]
fn first_layers_at_their_size() {
    // Every compiled step between pixels, and another; rows of many whole tiles.
    for (c_in, c_out, k, step, pad) in [
        (3, 16, 3, 2, 1),
        (3, 64, 7, 2, 3),
        (3, 96, 4, 4, 0),
        (3, 40, 3, 1, 1),
        (1, 8, 5, 1, 2),
        (2, 24, 3, 1, 1),
        (4, 33, 3, 2, 1),
    ] {
        let (kernel, stride, dilation) = ([k; 2], [step; 2], [1; 2]);
        let p = Conv2dParams { c_in, c_out, groups: 1, kernel, stride, dilation, pads: [pad; 4] };
        few_channels(p, [1, 12, 224], true, 3, 2);
        few_channels(p, [2, 17, 101], false, 11, 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn conv2d_matches_double_precision(
        p in params(),
        size in [1usize..3, 1usize..12, 1usize..20],
        bias in any::<bool>(),
        kind in 0u8..9,
        threads in 1usize..4,
    ) {
        let [n, h, w] = size;
        let x = random(n * h * w * p.c_in, 1);
        let weight = random(p.c_out * (p.c_in / p.groups) * p.kernel[0] * p.kernel[1], 2);
        let bias = bias.then(|| random(p.c_out, 3));
        let pool = Pool::new(threads);
        let out = Conv2d::new(p, &weight, None).output_size(h, w);
        let sums = reference(&p, false, size, out, &x, &weight);
        let residual = random(sums.len(), 4);
        let epi = epilogue(kind, &residual);
        for isa in Isa::available() {
            let conv = Conv2d::new_with_isa(isa, p, &weight, bias.as_deref());
            let mut y = vec![f32::NAN; sums.len()];
            let mut scratch = vec![f32::NAN; conv.scratch_len(n, h, w, threads)];
            conv.run(n, h, w, &x, &epi, &mut y, &mut scratch, &pool);
            for (i, &y) in y.iter().enumerate() {
                let bias = bias.as_ref().map(|b| b[i % p.c_out]);
                let want = epilogue_reference(sums[i], bias, &epi, i);
                prop_assert!(close(y, want), "{isa} {} at {i}: {y}, {want:?}", conv.algorithm());
            }
        }
    }

    #[test]
    fn few_channels_match_double_precision(
        channels in [1usize..5, 1usize..70],
        kernel in [1usize..8, 1usize..8],
        stride in [1usize..6, 1usize..6],
        rows_apart in 1usize..4,
        pads in [0usize..4, 0..4, 0..4, 0..4],
        size in [1usize..4, 1usize..14, 1usize..130],
        bias in any::<bool>(),
        kind in 0u8..12,
        threads in 1usize..4,
    ) {
        let [c_in, c_out] = channels;
        let dilation = [rows_apart, 1];
        let p = Conv2dParams { c_in, c_out, groups: 1, kernel, stride, dilation, pads };
        few_channels(p, size, bias, kind, threads);
    }

    #[test]
    fn conv_transpose2d_matches_double_precision(
        p in params(),
        size in [1usize..3, 1usize..8, 1usize..9],
        padding in [0usize..2, 0usize..2],
        kind in 0u8..9,
        threads in 1usize..4,
    ) {
        let [n, h, w] = size;
        let x = random(n * h * w * p.c_in, 1);
        let weight = random(p.c_in * (p.c_out / p.groups) * p.kernel[0] * p.kernel[1], 2);
        let bias = random(p.c_out, 3);
        let pool = Pool::new(threads);
        let out = ConvTranspose2d::new(p, padding, &weight, None).output_size(h, w);
        let sums = reference(&p, true, size, out, &x, &weight);
        let residual = random(sums.len(), 4);
        let epi = epilogue(kind, &residual);
        for isa in Isa::available() {
            let conv = ConvTranspose2d::new_with_isa(isa, p, padding, &weight, Some(&bias));
            let mut y = vec![f32::NAN; sums.len()];
            let mut scratch = vec![f32::NAN; conv.scratch_len(n, h, w, threads)];
            conv.run(n, h, w, &x, &epi, &mut y, &mut scratch, &pool);
            for (i, &y) in y.iter().enumerate() {
                let want = epilogue_reference(sums[i], Some(bias[i % p.c_out]), &epi, i);
                prop_assert!(close(y, want), "{isa} at {i}: {y}, {want:?}");
            }
        }
    }
}

#[test]
fn deep_convolution_blocks_k() {
    // 9 taps of 600 channels: K is cut inside a tap; 40 channels: between taps.
    for c_in in [600, 40] {
        let p = Conv2dParams {
            c_in,
            c_out: 19,
            groups: 1,
            kernel: [5, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [1; 4],
        };
        let x = random(6 * 7 * c_in, 1);
        let weight = random(19 * c_in * 15, 2);
        let pool = Pool::new(2);
        for isa in Isa::available() {
            let conv = Conv2d::new_with_isa(isa, p, &weight, None);
            let out = conv.output_size(6, 7);
            let sums = reference(&p, false, [1, 6, 7], out, &x, &weight);
            let mut y = vec![f32::NAN; sums.len()];
            let mut scratch = vec![f32::NAN; conv.scratch_len(1, 6, 7, 2)];
            conv.run(1, 6, 7, &x, &Epilogue::NONE, &mut y, &mut scratch, &pool);
            for (i, &y) in y.iter().enumerate() {
                let want = epilogue_reference(sums[i], None, &Epilogue::NONE, i);
                assert!(close(y, want), "{isa} at {i}: {y}, {want:?}");
            }
        }
    }
}
