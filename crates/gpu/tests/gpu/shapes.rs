//! Products and convolutions of sizes that no tile divides.

use std::sync::Arc;

use proptest::{prelude::*, test_runner::TestRunner};
use sparoa_core::{
    ops::{
        Op,
        conv::{Conv, Layout, ResidualKind, Window},
        gemm::Linear,
        matmul::MatMul,
    },
    tensor::Tensor,
};
use sparoa_kernels::Activation;

use crate::device::{Case, gpu, values};

fn case(op: impl Op, inputs: Vec<Option<Tensor>>, constants: &[usize]) -> Case {
    let constant = (0..inputs.len()).map(|i| constants.contains(&i)).collect();
    Case { op: Arc::new(op), inputs, constant }
}

/// Runs `check` on a few random samples of `strategy`.
fn samples<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 8,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(Default::default()),
    );
    runner
        .run(&strategy, |sample| {
            check(sample);
            Ok(())
        })
        .unwrap();
}

fn activation(i: usize) -> Activation {
    [
        Activation::None,
        Activation::Relu,
        Activation::Clip { min: -0.5, max: 0.75 },
        Activation::HardSwish,
        Activation::Gelu,
        Activation::Silu,
    ][i % 6]
}

#[test]
fn linear() {
    let Some(gpu) = gpu() else { return };
    samples(8, (1usize..70, 1usize..50, 1usize..70, 0usize..24), |(m, k, n, kind)| {
        let residual =
            [ResidualKind::None, ResidualKind::BeforeActivation, ResidualKind::AfterActivation]
                [kind % 3];
        let trans_b = kind % 2 == 0;
        let activation = activation(kind / 2);
        let op = Linear { trans_b, activation, residual, ..Linear::default() };
        let w = if trans_b { [n, k] } else { [k, n] };
        let mut inputs = vec![
            Some(values(&[m, k], 1)),
            Some(values(&w, 2)),
            (kind < 16).then(|| values(&[n], 3)),
        ];
        if residual != ResidualKind::None {
            inputs.push(Some(values(&[m, n], 4)));
        }
        let lead = if kind % 5 == 0 { 4 } else { 0 };
        case(op, inputs, &[1, 2]).check(&*gpu, &format!("linear {m}x{k}x{n} kind {kind}"), lead);
    });
}

#[test]
fn matmul() {
    let Some(gpu) = gpu() else { return };
    samples(6, (1usize..4, 1usize..40, 1usize..40, 1usize..40), |(batch, m, k, n)| {
        let inputs = vec![Some(values(&[batch, m, k], 1)), Some(values(&[batch, k, n], 2))];
        case(MatMul::default(), inputs, &[]).check(&*gpu, &format!("{batch}: {m}x{k}x{n}"), 0);
    });
}

#[test]
fn convolutions() {
    let Some(gpu) = gpu() else { return };
    let sizes = (1usize..3, 1usize..5, 1usize..5, 5usize..12, 5usize..12);
    let window = (1usize..4, 1usize..4, 1usize..3, 1usize..3, 0usize..2, 0usize..24);
    samples(10, (sizes, window), |((batch, ci, co, h, w), (kh, kw, stride, step, pad, kind))| {
        // Groups of 1, of all (depthwise), and of two; channels both odd and multiples of 4.
        let wide = if kind % 2 == 0 { 4 } else { 1 };
        let (groups, c_in, c_out) = match kind % 3 {
            0 => (1, ci * wide, co * wide),
            1 => (ci * wide, ci * wide, ci * wide),
            _ => (2, 2 * ci * wide, 2 * co * wide),
        };
        let mut window = Window::new(&[kh, kw], &[stride, stride], &[pad, pad, 0, pad]);
        window.dilations = vec![step, 1];
        let residual =
            if kind % 4 == 0 { ResidualKind::BeforeActivation } else { ResidualKind::None };
        let op = Conv {
            window,
            group: groups,
            layout: Layout::Nhwc,
            activation: activation(kind),
            residual,
            ..Conv::default()
        };
        let mut inputs = vec![
            Some(values(&[batch, h, w, c_in], 1)),
            Some(values(&[c_out, c_in / groups, kh, kw], 2)),
            (kind < 16).then(|| values(&[c_out], 3)),
        ];
        let mut test = case(op.clone(), inputs.clone(), &[1, 2]);
        if residual != ResidualKind::None {
            let output = test.outputs().unwrap().remove(0);
            inputs.push(Some(values(&output.shape, 4)));
            test = case(op, inputs, &[1, 2]);
        }
        let name = format!("conv {c_in}->{c_out} in {groups} of {kh}x{kw} kind {kind}");
        test.check(&*gpu, &name, 0);
    });
}

#[test]
fn larger_products() {
    let Some(gpu) = gpu() else { return };
    let op = Linear { activation: Activation::Relu, ..Linear::default() };
    let inputs = vec![Some(values(&[197, 132], 1)), Some(values(&[132, 200], 2))];
    case(op, inputs, &[1]).check(&*gpu, "linear 197x132x200", 0);
    let op = Conv {
        window: Window::new(&[7, 7], &[2, 2], &[3, 3, 3, 3]),
        group: 1,
        layout: Layout::Nhwc,
        ..Conv::default()
    };
    let inputs = vec![Some(values(&[1, 33, 31, 3], 1)), Some(values(&[24, 3, 7, 7], 2))];
    case(op, inputs, &[1]).check(&*gpu, "first layer", 0);
}
