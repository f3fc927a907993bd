//! Convolutions in bf16 against double precision on the rounded operands.

use super::super::tests::{epilogue, params, reference};
use super::*;
use crate::isa;
use crate::testing::{close, epilogue_reference, random, rounded};
use proptest::prelude::*;

fn check(p: Conv2dParams, size: [usize; 3], bias: bool, kind: u8, threads: usize) {
    if isa::bf16().is_err() {
        eprintln!("skipped: bf16 is not available");
        return;
    }
    let [n, h, w] = size;
    let x = random(n * h * w * p.c_in, 1);
    let weight = random(p.c_out * (p.c_in / p.groups) * p.taps(), 2);
    let bias = bias.then(|| random(p.c_out, 3));
    let pool = Pool::new(threads);
    let conv = Conv2dBf16::new(p, &weight, bias.as_deref());
    let out = conv.output_size(h, w);
    let sums = match conv.method {
        Method::Plain(_) => reference(&p, false, size, out, &x, &weight),
        _ => reference(&p, false, size, out, &rounded(&x), &rounded(&weight)),
    };
    let residual = random(sums.len(), 4);
    let epi = epilogue(kind, &residual);
    let mut y = vec![f32::NAN; sums.len()];
    let mut scratch = vec![f32::NAN; conv.scratch_len(n, h, w, threads)];
    conv.run(n, h, w, &x, &epi, &mut y, &mut scratch, &pool);
    for (i, &y) in y.iter().enumerate() {
        let want = epilogue_reference(sums[i], bias.as_ref().map(|b| b[i % p.c_out]), &epi, i);
        assert!(close(y, want), "{} at {i}: {y}, {want:?}, {p:?}", conv.algorithm());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn conv2d_matches_double_precision(
        p in params(),
        size in [1usize..3, 1usize..12, 1usize..20],
        bias in any::<bool>(),
        kind in 0u8..9,
        threads in 1usize..4,
    ) {
        check(p, size, bias, kind, threads);
    }
}

#[test]
fn every_method_is_chosen() {
    if isa::bf16().is_err() {
        eprintln!("skipped: bf16 is not available");
        return;
    }
    let on = |c_in: usize, groups: usize, k: usize, side: usize| {
        let weight = vec![1.0; 32 * c_in / groups * k * k];
        let (kernel, stride, dilation) = ([k, k], [1, 1], [1, 1]);
        let p = Conv2dParams { c_in, c_out: 32, groups, kernel, stride, dilation, pads: [0; 4] };
        Conv2dBf16::for_images(p, [1, side, side], &weight, None).algorithm()
    };
    let of = |c_in: usize, groups: usize, k: usize| on(c_in, groups, k, 8);
    assert_eq!(of(32, 1, 1), "bf16 pointwise");
    let tiles = isa::best() == Isa::Amx;
    assert_eq!(of(32, 1, 3), if tiles { "bf16 amx" } else { "bf16 indirect" });
    assert_eq!(on(128, 1, 3, 34), if tiles { "bf16 amx" } else { "winograd" });
    assert_eq!(of(3, 1, 3), "lines");
    assert_eq!(of(32, 32, 3), "depthwise");
}

#[test]
fn deep_convolution_blocks_k() {
    for c_in in [1203, 41] {
        let p = Conv2dParams {
            c_in,
            c_out: 19,
            groups: 1,
            kernel: [5, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [1; 4],
        };
        check(p, [1, 6, 7], false, 0, 2);
    }
}
