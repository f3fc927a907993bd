//! Sparse convolutions and products against double precision and against the dense kernels, on
//! every instruction set of the machine.

use proptest::prelude::*;

use super::{SparseConv2d, SparseMatrix, SparsePooledConv2d};
use crate::activation::{Activation, Epilogue};
use crate::conv::tests::{epilogue, params, reference};
use crate::conv::{Conv2d, Conv2dParams};
use crate::gemm::{PackedB, gemm};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::pooling::Pool2dParams;
use crate::testing::{close, epilogue_reference, random};

/// Where the nonzero weights of a matrix of rows are.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// That many of 16.
    Random(usize),
    EmptyRows,
    FullRows,
    /// The same in all rows.
    Column,
    /// Squares of four.
    Blocks,
    Nothing,
    Everything,
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        (0usize..17).prop_map(Pattern::Random),
        Just(Pattern::EmptyRows),
        Just(Pattern::FullRows),
        Just(Pattern::Column),
        Just(Pattern::Blocks),
        Just(Pattern::Nothing),
        Just(Pattern::Everything),
    ]
}

/// Weights of rows of `columns`, with zeros.
fn weights(pattern: Pattern, columns: usize, len: usize) -> Vec<f32> {
    let (mut weight, dice) = (random(len, 2), random(len, 9));
    for (i, weight) in weight.iter_mut().enumerate() {
        let (row, column) = (i / columns, i % columns);
        let some = (dice[i] + 1.0) * 8.0 < 2.0;
        let kept = match pattern {
            Pattern::Random(sixteenths) => (dice[i] + 1.0) * 8.0 < sixteenths as f32,
            Pattern::EmptyRows => !row.is_multiple_of(3) && some,
            Pattern::FullRows => row.is_multiple_of(3) || some,
            Pattern::Column => column == columns / 2,
            Pattern::Blocks => (row / 4 + column / 4).is_multiple_of(5),
            Pattern::Nothing => false,
            Pattern::Everything => true,
        };
        if !kept {
            *weight = 0.0;
        }
    }
    weight
}

fn check_conv(
    p: Conv2dParams,
    [n, h, w]: [usize; 3],
    pattern: Pattern,
    bias: bool,
    kind: u8,
    threads: usize,
) -> Result<(), TestCaseError> {
    let x = random(n * h * w * p.c_in, 1);
    let row = p.c_in / p.groups * p.kernel[0] * p.kernel[1];
    let weight = weights(pattern, row, p.c_out * row);
    let bias = bias.then(|| random(p.c_out, 3));
    let pool = Pool::new(threads);
    let sums = reference(&p, false, [n, h, w], p.output_size(h, w), &x, &weight);
    let residual = random(sums.len(), 4);
    let epi = epilogue(kind, &residual);
    for isa in Isa::available() {
        // The number of images is a hint.
        for images in [n, n + 3] {
            let images = [images, h, w];
            let conv = SparseConv2d::new_with_isa(isa, p, images, &weight, bias.as_deref());
            let conv = conv.expect("the images are narrow");
            let mut y = vec![f32::NAN; sums.len()];
            let mut scratch = vec![f32::NAN; conv.scratch_len(n, threads)];
            conv.run(n, &x, &epi, &mut y, &mut scratch, &pool);
            let dense = Conv2d::new_with_isa(isa, p, &weight, bias.as_deref());
            let mut z = vec![f32::NAN; sums.len()];
            let mut scratch = vec![f32::NAN; dense.scratch_len(n, h, w, threads)];
            dense.run(n, h, w, &x, &epi, &mut z, &mut scratch, &pool);
            for (i, (&y, &z)) in y.iter().zip(&z).enumerate() {
                let want =
                    epilogue_reference(sums[i], bias.as_ref().map(|b| b[i % p.c_out]), &epi, i);
                prop_assert!(close(y, want), "{isa} at {i}: {y}, {want:?}");
                let bound = 2.0 * want.1;
                prop_assert!(close(y, (f64::from(z), bound)), "{isa} at {i}: {y}, dense {z}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolution_matches_double_precision(
        p in params(),
        size in [1usize..4, 1usize..12, 1usize..20],
        pattern in pattern(),
        bias in any::<bool>(),
        kind in 0u8..9,
        threads in 1usize..7,
    ) {
        check_conv(p, size, pattern, bias, kind, threads)?;
    }

    #[test]
    fn matrix_matches_double_precision(
        (m, n, k) in (prop_oneof![1usize..30, 100usize..300], 1usize..80, 1usize..200),
        hint in 1usize..200,
        transposed in any::<bool>(),
        pattern in pattern(),
        bias in any::<bool>(),
        kind in 0u8..9,
        threads in 1usize..4,
    ) {
        let lda = k + 3;
        let a = random(m * lda, 1);
        let b = weights(pattern, if transposed { k } else { n }, k * n);
        let bias = bias.then(|| random(n, 3));
        let residual = random(m * n, 4);
        let epi = epilogue(kind, &residual);
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            let matrix = SparseMatrix::new_with_isa(isa, hint, [k, n], &b, transposed).unwrap();
            let mut y = vec![f32::NAN; m * n];
            let mut scratch = vec![f32::NAN; matrix.scratch_len(m, threads)];
            matrix.run(m, &a, lda, bias.as_deref(), &epi, &mut y, &mut scratch, &pool);
            let dense = PackedB::new_with_isa(isa, k, n, &b, transposed);
            let mut z = vec![f32::NAN; m * n];
            gemm(m, &a, lda, &dense, bias.as_deref(), &epi, &mut z, &pool);
            for (i, (&y, &z)) in y.iter().zip(&z).enumerate() {
                let (row, column) = (i / n, i % n);
                let (mut sum, mut size) = (0.0, 0.0);
                for p in 0..k {
                    let b = if transposed { b[column * k + p] } else { b[p * n + column] };
                    let term = f64::from(a[row * lda + p]) * f64::from(b);
                    sum += term;
                    size += term.abs();
                }
                let sum = (sum, (k as f64 + 8.0) * f64::from(f32::EPSILON) * size);
                let want = epilogue_reference(sum, bias.as_ref().map(|b| b[column]), &epi, i);
                prop_assert!(close(y, want), "{isa} at {i}: {y}, {want:?}");
                let bound = 2.0 * want.1;
                prop_assert!(close(y, (f64::from(z), bound)), "{isa} at {i}: {y}, dense {z}");
            }
        }
    }
}

fn square(c: [usize; 2], kernel: usize, stride: usize) -> Conv2dParams {
    Conv2dParams {
        c_in: c[0],
        c_out: c[1],
        groups: 1,
        kernel: [kernel, kernel],
        stride: [stride, stride],
        dilation: [1, 1],
        pads: [kernel / 2; 4],
    }
}

#[test]
fn blocks_of_channels_and_several_strips() {
    for (p, images) in [
        (square([200, 35], 3, 1), [1, 14, 14]),
        (square([70, 20], 3, 2), [2, 30, 31]),
        (square([600, 40], 1, 1), [1, 9, 15]),
        (square([90, 33], 1, 2), [1, 16, 16]),
        (square([3, 16], 7, 2), [1, 60, 64]),
    ] {
        for threads in 1..7 {
            check_conv(p, images, Pattern::Random(2), true, 5, threads).unwrap();
        }
    }
}

#[test]
fn slow_activations_and_both_residuals() {
    use crate::activation::{Activation, Epilogue, Residual};
    let p = square([20, 37], 3, 1);
    let x = random(10 * 11 * 20, 1);
    let weight = weights(Pattern::Random(3), 180, 37 * 180);
    let residual = random(10 * 11 * 37, 4);
    let pool = Pool::new(2);
    for isa in Isa::available() {
        for residual in [
            Residual::None,
            Residual::BeforeActivation(&residual),
            Residual::AfterActivation(&residual),
        ] {
            let epi = Epilogue { activation: Activation::Silu, residual };
            let conv = SparseConv2d::new_with_isa(isa, p, [1, 10, 11], &weight, None).unwrap();
            let mut y = vec![f32::NAN; 10 * 11 * 37];
            let mut scratch = vec![f32::NAN; conv.scratch_len(1, 2)];
            conv.run(1, &x, &epi, &mut y, &mut scratch, &pool);
            let sums = reference(&p, false, [1, 10, 11], [10, 11], &x, &weight);
            for (i, &y) in y.iter().enumerate() {
                let want = epilogue_reference(sums[i], None, &epi, i);
                assert!(close(y, want), "{isa} at {i}: {y}, {want:?}");
            }
        }
    }
}

#[test]
fn memory_falls_with_the_weights() {
    let p = square([128, 128], 3, 1);
    let weight = weights(Pattern::Random(1), 1152, 128 * 1152);
    let sparse = SparseConv2d::new(p, [1, 28, 28], &weight, None).unwrap();
    let dense = Conv2d::new(p, &weight, None);
    assert!(sparse.bytes() * 8 < dense.bytes(), "{} of {}", sparse.bytes(), dense.bytes());
}

#[test]
fn images_too_wide_are_refused() {
    let p = square([4, 4], 3, 1);
    assert!(SparseConv2d::new(p, [1, 8, 1 << 20], &vec![1.0; 144], None).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pooled_convolution_matches_double_precision(
        (c_in, c_out) in (1usize..6, 1usize..36),
        kernel in [1usize..5, 1usize..5],
        stride in [1usize..4, 1usize..4],
        dilation in [1usize..3, 1usize..3],
        pads in [0usize..4, 0usize..4, 0usize..3, 0usize..3],
        size in [1usize..4, 1usize..50, 1usize..90],
        windows in [1usize..5, 1usize..5, 0usize..3, 0usize..3],
        more in [0usize..2, 0usize..2],
        pattern in pattern(),
        bias in any::<bool>(),
        relu in any::<bool>(),
        threads in 1usize..5,
    ) {
        let p = Conv2dParams { c_in, c_out, groups: 1, kernel, stride, dilation, pads };
        let [n, h, w] = size;
        let between = p.output_size(h, w);
        let [step_y, step_x, top, left] = windows;
        let (top, left) = (top.min(step_y), left.min(step_x));
        let windows = Pool2dParams {
            kernel: [step_y + top, step_x + left],
            stride: [step_y, step_x],
            dilation: [1, 1],
            pads: [top, left, 0, 0],
        };
        // Whole windows, or one that reaches beyond the end as those of rounded-up sizes do.
        let out = [0, 1].map(|i| between[i] / windows.stride[i] + more[i]);
        let starts = |i: usize| (out[i].max(1) - 1) * windows.stride[i] < between[i] + windows.pads[i];
        prop_assume!(out[0] > 0 && out[1] > 0 && between[0] > 0 && between[1] > 0);
        prop_assume!(starts(0) && starts(1));
        let x = random(n * h * w * c_in, 1);
        let row = c_in * kernel[0] * kernel[1];
        let weight = weights(pattern, row, c_out * row);
        let bias = bias.then(|| random(c_out, 3));
        let activation = if relu { Activation::Relu } else { Activation::None };
        let epi = Epilogue::activation(activation);
        let sums = reference(&p, false, size, between, &x, &weight);
        let bias_of = |i: usize| bias.as_ref().map(|b| b[i % c_out]);
        let values: Vec<_> =
            (0..sums.len()).map(|i| epilogue_reference(sums[i], bias_of(i), &epi, i)).collect();
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            let bias = bias.as_deref();
            let conv = SparsePooledConv2d::new_with_isa(
                isa, p, [h, w], &windows, out, &weight, bias, activation,
            );
            prop_assert_eq!(conv.is_some(), step_y != 3);
            let Some(conv) = conv else { continue };
            let mut y = vec![f32::NAN; n * out[0] * out[1] * c_out];
            let mut scratch = vec![f32::NAN; conv.scratch_len(threads)];
            conv.run(n, &x, &mut y, &mut scratch, &pool);
            for (i, &y) in y.iter().enumerate() {
                let (channel, pixel) = (i % c_out, i / c_out);
                let (image, oy, ox) = (pixel / out[1] / out[0], pixel / out[1] % out[0], pixel % out[1]);
                let inside = |o: usize, axis: usize| {
                    let first = o * windows.stride[axis];
                    first.saturating_sub(windows.pads[axis])
                        ..(first + windows.stride[axis]).min(between[axis])
                };
                let mut want = (f64::NEG_INFINITY, 0.0f64);
                for by in inside(oy, 0) {
                    for bx in inside(ox, 1) {
                        let at = ((image * between[0] + by) * between[1] + bx) * c_out + channel;
                        want = (want.0.max(values[at].0), want.1.max(values[at].1));
                    }
                }
                let same = f64::from(y) == want.0;
                prop_assert!(same || close(y, want), "{isa} at {i}: {y}, {want:?}");
            }
        }
    }
}

#[test]
fn windows_with_nan_are_nan() {
    let p = Conv2dParams {
        c_in: 1,
        c_out: 1,
        groups: 1,
        kernel: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
        pads: [0; 4],
    };
    let windows =
        Pool2dParams { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], pads: [1, 1, 1, 1] };
    let (size, out) = ([20, 70], [10, 35]);
    let pool = Pool::new(2);
    for at in [0, 1, 70 * 9 + 33, 70 * 19 + 69] {
        let mut x = random(20 * 70, 5);
        x[at] = f32::NAN;
        for isa in Isa::available() {
            let conv = SparsePooledConv2d::new_with_isa(
                isa,
                p,
                size,
                &windows,
                out,
                &[1.0],
                None,
                Activation::Relu,
            );
            let conv = conv.unwrap();
            let mut y = vec![0.0; 10 * 35];
            let mut scratch = vec![f32::NAN; conv.scratch_len(2)];
            conv.run(1, &x, &mut y, &mut scratch, &pool);
            for (i, y) in y.iter().enumerate() {
                let near = |o: usize, at: usize| (2 * o).abs_diff(at) <= 1;
                let hit = near(i / 35, at / 70) && near(i % 35, at % 70);
                assert_eq!(y.is_nan(), hit, "{isa}: {at}, {i}");
            }
        }
    }
}
