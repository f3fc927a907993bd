//! Skipped zeros against double precision, and against the dense kernel where they must agree.

use proptest::prelude::*;

use crate::activation::{Activation, Epilogue};
use crate::conv::{Conv2d, Conv2dOptions, Conv2dParams};
use crate::gemm::tests::{Case, case, reference};
use crate::gemm::{PackedB, gemm};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::testing::{close, epilogue_reference, random};

/// Zeros of a matrix of rows of `k`: none, all, whole columns, whole rows, or anywhere.
fn zeros(a: &mut [f32], k: usize, pattern: u8, share: f32) {
    let dice = random(a.len().max(1), 9);
    for (i, a) in a.iter_mut().enumerate() {
        let die = match pattern {
            0 => 1.0,
            1 => -1.0,
            2 => dice[i % k],
            3 => dice[i / k],
            _ => dice[i],
        };
        if die < 2.0 * share - 1.0 {
            // Either sign.
            *a = if i % 3 == 0 { -0.0 } else { 0.0 };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn skipping_matches_double_precision(
        c in case(), wide in 0usize..5, pattern in 0u8..6, share in 0.4f32..1.0,
    ) {
        let c = Case { k: c.k.max(1), n: c.n + 48 * wide, ..c };
        let mut a = random(c.m * c.k, 1);
        zeros(&mut a, c.k, pattern, share);
        let b = random(c.k * c.n, 2);
        let bias = c.bias.then(|| random(c.n, 3));
        let residual = random(c.m * c.n, 4);
        let epi = c.epilogue(&residual);
        let sums = reference(&c, 1.0, &a, c.k, &b);
        let pool = Pool::new(c.threads);
        for isa in Isa::available() {
            let packed = PackedB::new_with_isa(isa, c.k, c.n, &b, c.transposed).skipping_zeros();
            let mut y = vec![f32::NAN; c.m * c.n];
            gemm(c.m, &a, c.k, &packed, bias.as_deref(), &epi, &mut y, &pool);
            for (i, &y) in y.iter().enumerate() {
                let want = epilogue_reference(sums[i], bias.as_ref().map(|b| b[i % c.n]), &epi, i);
                prop_assert!(close(y, want), "{isa} at {i}: {y} instead of {want:?}");
            }
        }
    }
}

/// The product by the dense kernel and by the one that may skip zeros.
fn both(isa: Isa, [m, k, n]: [usize; 3], a: &[f32], b: &[f32]) -> [Vec<f32>; 2] {
    let dense = PackedB::new_with_isa(isa, k, n, b, false);
    [dense.clone(), dense.skipping_zeros()].map(|b| {
        let mut y = vec![0.0; m * n];
        gemm(m, a, k, &b, None, &Epilogue::NONE, &mut y, &Pool::single());
        y
    })
}

#[test]
fn what_is_no_number_is_not_lost() {
    let [m, k, n] = [40, 64, 96];
    let mut a = vec![0.0; m * k];
    a[5 * k + 17] = f32::NAN;
    a[7 * k + 63] = f32::INFINITY;
    a[9 * k] = f32::MIN_POSITIVE / 4.0;
    let b = vec![2.0; k * n];
    for isa in Isa::available() {
        let [dense, skipping] = both(isa, [m, k, n], &a, &b);
        for (i, (d, s)) in dense.iter().zip(&skipping).enumerate() {
            assert!(d == s || (d.is_nan() && s.is_nan()), "{isa} at {i}: {s} instead of {d}");
        }
        assert!(skipping[5 * n].is_nan() && skipping[7 * n] == f32::INFINITY && skipping[0] == 0.0);
    }
}

#[test]
fn weights_that_are_not_finite_are_never_skipped() {
    let [m, k, n] = [40, 64, 96];
    let mut b = vec![1.0; k * n];
    b[3 * n + 5] = f32::INFINITY;
    for isa in Isa::available() {
        let [dense, skipping] = both(isa, [m, k, n], &vec![0.0; m * k], &b);
        assert!(dense[5].is_nan() && skipping[5].is_nan() && skipping[4] == 0.0, "{isa}");
    }
}

#[test]
fn strided_convolutions_of_one_tap_skip_too() {
    let params = Conv2dParams {
        c_in: 70,
        c_out: 100,
        groups: 1,
        kernel: [1, 1],
        stride: [2, 2],
        dilation: [1, 1],
        pads: [0; 4],
    };
    let (weight, images) = (random(70 * 100, 1), [2, 9, 13]);
    let mut x = random(2 * 9 * 13 * 70, 2);
    zeros(&mut x, 70, 4, 0.8);
    let pool = Pool::new(2);
    for isa in Isa::available() {
        let [exact, fast] = [true, false].map(|exact| {
            let options = Conv2dOptions { images: Some(images), exact, tiles: None };
            let conv = Conv2d::for_images_with_isa(isa, params, &weight, None, options);
            let mut y = vec![f32::NAN; 2 * 5 * 7 * 100];
            let mut scratch = vec![0.0; conv.scratch_len(2, 9, 13, 2)];
            let epi = Epilogue::activation(Activation::Relu);
            conv.run(2, 9, 13, &x, &epi, &mut y, &mut scratch, &pool);
            y
        });
        assert!(exact.iter().zip(&fast).all(|(a, b)| (a - b).abs() < 1e-4), "{isa}");
    }
}
