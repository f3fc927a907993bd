//! Convolutions on AMX against double precision.

use super::super::tests::{epilogue, reference};
use super::*;
use crate::gemm::tiled::tests::{bound, terms};
use crate::isa::Isa;
use crate::testing::{close, epilogue_reference, random, rounded};
use proptest::prelude::*;

fn check(terms: Terms, p: Conv2dParams, size: [usize; 3], bias: bool, kind: u8, threads: usize) {
    if !Isa::Amx.is_available() {
        eprintln!("skipped: AMX is not available");
        return;
    }
    let [n, h, w] = size;
    let [oh, ow] = p.output_size(h, w);
    if oh * ow == 0 {
        return;
    }
    let x = random(n * h * w * p.c_in, 1);
    let weight = random(p.c_out * p.c_in * p.taps(), 2);
    let bias = bias.then(|| random(p.c_out, 3));
    let sums = match terms {
        Terms::One => reference(&p, false, size, [oh, ow], &rounded(&x), &rounded(&weight)),
        Terms::Two | Terms::Three => reference(&p, false, size, [oh, ow], &x, &weight),
    };
    let residual = random(sums.len(), 4);
    let epi = epilogue(kind, &residual);
    let pool = Pool::new(threads);
    let conv = Tiled::new(terms, &p, n * oh * ow, &weight);
    let geometry = Geometry { params: p, h, w, oh, ow };
    let mut y = vec![f32::NAN; sums.len()];
    let mut scratch = vec![f32::NAN; conv.scratch_len(n, &geometry, threads)];
    conv.run(n, &geometry, &x, bias.as_deref(), &epi, &mut y, &mut scratch, &pool);
    for (i, &y) in y.iter().enumerate() {
        let sum = bound(terms, p.taps() * p.c_in, sums[i]);
        let bias = bias.as_ref().map(|b| b[i % p.c_out]);
        let want = epilogue_reference(sum, bias, &epi, i);
        assert!(close(y, want), "{terms:?} at {i}: {y}, {want:?}, {p:?}, {size:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn matches_double_precision(
        channels in [1usize..70, 1usize..70],
        kernel in [1usize..5, 1usize..5],
        stride in [1usize..4, 1usize..4],
        dilation in [1usize..4, 1usize..4],
        pads in [0usize..4, 0..4, 0..4, 0..4],
        size in [1usize..4, 1usize..14, 1usize..24],
        bias in any::<bool>(),
        terms in terms(),
        kind in 0u8..9,
        threads in 1usize..4,
    ) {
        let [c_in, c_out] = channels;
        let p = Conv2dParams { c_in, c_out, groups: 1, kernel, stride, dilation, pads };
        check(terms, p, size, bias, kind, threads);
    }
}

/// Bands of lines, several images per block, steps that run across taps.
#[test]
fn at_the_size_of_networks() {
    let of = |channels: [usize; 2], k: usize, step: usize| {
        let [c_in, c_out] = channels;
        let (kernel, stride, pads) = ([k; 2], [step; 2], [k / 2; 4]);
        Conv2dParams { c_in, c_out, groups: 1, kernel, stride, dilation: [1; 2], pads }
    };
    for (threads, terms) in [(1, Terms::Two), (2, Terms::Three)] {
        check(terms, of([64, 33], 3, 1), [1, 56, 56], true, 1, threads);
        check(terms, of([64, 40], 3, 2), [2, 56, 56], true, 4, threads);
        check(terms, of([64, 40], 1, 2), [1, 56, 56], true, 0, threads);
        check(terms, of([512, 24], 3, 1), [5, 7, 7], false, 2, threads);
        check(terms, of([3, 40], 7, 2), [1, 60, 224], true, 1, threads);
        // Patches that do not overlap.
        check(Terms::One, of([3, 24], 16, 16), [2, 64, 48], true, 0, threads);
    }
}
