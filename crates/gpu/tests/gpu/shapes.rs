//! Products and convolutions of sizes that no tile divides.

use std::{cell::Cell, sync::Arc};

use proptest::{prelude::*, test_runner::TestRunner};
use sparoa_core::{
    backend::Accelerator,
    ops::{
        Op,
        attention::{Attention, HeadLayout},
        conv::{Conv, Layout, ResidualKind, Window},
        gemm::Linear,
        matmul::MatMul,
        pooling::{GlobalPooling, PoolKind},
    },
    tensor::Tensor,
};
use sparoa_kernels::Activation;

use crate::device::{Case, gpus, values};

fn case(op: impl Op, inputs: Vec<Option<Tensor>>, constants: &[usize]) -> Case {
    let constant = (0..inputs.len()).map(|i| constants.contains(&i)).collect();
    Case { op: Arc::new(op), inputs, constant }
}

/// Runs `check` on a few random samples of `strategy` and the GPUs that each is for: a software
/// adapter takes long to compile what large GPUs get, which every third sample is enough for.
fn samples<S: Strategy>(
    cases: u32,
    strategy: S,
    check: impl Fn(&[Arc<dyn Accelerator>], S::Value),
) {
    let (gpus, count) = (gpus(), Cell::new(0));
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
            let all = count.replace(count.get() + 1) % 3 == 0;
            check(&gpus[..if all { gpus.len() } else { gpus.len().min(1) }], sample);
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
    samples(8, (1usize..70, 1usize..50, 1usize..70, 0usize..24), |gpus, (m, k, n, kind)| {
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
        let name = format!("linear {m}x{k}x{n} kind {kind}");
        let case = case(op, inputs, &[1, 2]);
        gpus.iter().for_each(|gpu| case.check(&**gpu, &name, lead));
    });
}

#[test]
fn matmul() {
    samples(6, (1usize..4, 1usize..40, 1usize..40, 1usize..40), |gpus, (batch, m, k, n)| {
        let inputs = vec![Some(values(&[batch, m, k], 1)), Some(values(&[batch, k, n], 2))];
        let case = case(MatMul::default(), inputs, &[]);
        gpus.iter().for_each(|gpu| case.check(&**gpu, &format!("{batch}: {m}x{k}x{n}"), 0));
    });
}

#[test]
fn convolutions() {
    let sizes = (1usize..3, 1usize..5, 1usize..5, 5usize..12, 5usize..12);
    let window = (1usize..4, 1usize..4, 1usize..3, 1usize..3, 0usize..2, 0usize..24);
    samples(
        10,
        (sizes, window),
        |gpus, ((batch, ci, co, h, w), (kh, kw, stride, step, pad, kind))| {
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
            gpus.iter().for_each(|gpu| test.check(&**gpu, &name, 0));
        },
    );
}

#[test]
fn larger_products() {
    let gpus = gpus();
    let check = |case: Case, name: &str| gpus.iter().for_each(|gpu| case.check(&**gpu, name, 0));
    let op = Linear { activation: Activation::Relu, ..Linear::default() };
    let inputs = vec![Some(values(&[197, 132], 1)), Some(values(&[132, 200], 2))];
    check(case(op, inputs, &[1]), "linear 197x132x200");
    let op = Conv {
        window: Window::new(&[7, 7], &[2, 2], &[3, 3, 3, 3]),
        group: 1,
        layout: Layout::Nhwc,
        ..Conv::default()
    };
    let inputs = vec![Some(values(&[1, 33, 31, 3], 1)), Some(values(&[24, 3, 7, 7], 2))];
    check(case(op, inputs, &[1]), "first layer");
}

/// Long inner dimensions, which large GPUs cut into parts, and few rows.
#[test]
fn long_products() {
    let gpus = gpus();
    let shapes = [
        (49, 1153, 37, ResidualKind::BeforeActivation),
        (33, 640, 130, ResidualKind::AfterActivation),
        (9, 2000, 12, ResidualKind::None),
        (1, 1284, 1001, ResidualKind::None),
        (3, 71, 70, ResidualKind::AfterActivation),
        (8, 576, 100, ResidualKind::BeforeActivation),
    ];
    for (i, (m, k, n, residual)) in shapes.into_iter().enumerate() {
        let op = Linear { activation: Activation::Silu, residual, ..Linear::default() };
        let mut inputs =
            vec![Some(values(&[m, k], 1)), Some(values(&[k, n], 2)), Some(values(&[n], 3))];
        if residual != ResidualKind::None {
            inputs.push(Some(values(&[m, n], 4)));
        }
        let case = case(op, inputs, &[1, 2]);
        // Aligned and not, cut into parts and thin alike.
        let lead = if [0, 3, 4].contains(&i) { 4 } else { 0 };
        gpus.iter().for_each(|gpu| case.check(&**gpu, &format!("linear {m}x{k}x{n}"), lead));
    }
    let inputs = vec![Some(values(&[2, 20, 900], 1)), Some(values(&[2, 900, 18], 2))];
    let case_of = case(MatMul::default(), inputs, &[]);
    gpus.iter().for_each(|gpu| case_of.check(&**gpu, "two products of 900", 0));
}

/// Windows over many channels, at the image's edges, strided, dilated and in groups.
#[test]
fn long_convolutions() {
    let gpus = gpus();
    for (channels, filters, group, kernel, stride, dilation) in [
        (64, 48, 1, [3, 3], 1, 1),
        (40, 20, 2, [3, 3], 2, 1),
        (36, 24, 1, [3, 2], 1, 2),
        (30, 33, 1, [5, 5], 2, 1),
        (96, 16, 1, [1, 1], 2, 1),
    ] {
        let mut window = Window::new(&kernel, &[stride, stride], &[1, 1, 1, 1]);
        window.dilations = vec![1, dilation];
        let op = Conv {
            window,
            group,
            layout: Layout::Nhwc,
            activation: Activation::Relu,
            residual: ResidualKind::None,
            ..Conv::default()
        };
        let weight = values(&[filters, channels / group, kernel[0], kernel[1]], 2);
        let inputs =
            vec![Some(values(&[2, 9, 7, channels], 1)), Some(weight), Some(values(&[filters], 3))];
        let name = format!("conv {channels}->{filters} in {group} of {kernel:?} step {dilation}");
        let case = case(op, inputs, &[1, 2]);
        gpus.iter().for_each(|gpu| case.check(&**gpu, &name, 0));
    }
}

/// Rows whose keys are shared out among invocations.
#[test]
fn attention() {
    let gpus = gpus();
    for (rows, keys, head, causal) in [(50, 50, 32, false), (19, 77, 64, true), (9, 40, 128, false)]
    {
        let op = Attention {
            heads: 2,
            q_layout: HeadLayout::Bshd,
            k_layout: HeadLayout::Bshd,
            v_layout: HeadLayout::Bshd,
            out_layout: HeadLayout::Bshd,
            packed: false,
            scale: 0.2,
            causal,
        };
        let of = |rows: usize, seed| Some(values(&[1, rows, 2, head], seed));
        let inputs = vec![of(rows, 1), of(keys, 2), of(keys, 3)];
        let case = case(op, inputs, &[]);
        let name = format!("attention {rows}x{keys} of {head}");
        gpus.iter().for_each(|gpu| case.check(&**gpu, &name, 0));
    }
}

/// Channels of an image reduced side by side.
#[test]
fn global_pools() {
    let gpus = gpus();
    for (channels, kind) in [
        (16, PoolKind::Average { count_include_pad: false }),
        (7, PoolKind::Max),
        (132, PoolKind::Average { count_include_pad: false }),
    ] {
        let op = GlobalPooling { kind, layout: Layout::Nhwc };
        let case = case(op, vec![Some(values(&[3, 9, 31, channels], 1))], &[]);
        gpus.iter().for_each(|gpu| case.check(&**gpu, &format!("pool of {channels}"), 0));
    }
}
