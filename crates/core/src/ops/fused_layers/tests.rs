//! Slices against the layers one after the other.

use sparoa_kernels::Pool;

use super::{kernel::Slices, *};
use crate::{
    ops::{KernelIo, evaluate},
    tensor::{Storage, Tensor},
};

/// A fused operator's slices of about `slice_bytes`, against its layers one after the other.
fn check(layers: &[&str], inputs: &[(Tensor, bool)], slice_bytes: usize, slices: usize) {
    let texts = AttributeValue::Strings(layers.iter().map(|l| (*l).to_owned()).collect());
    let attributes = Attributes::new(1, 1, [("layers".to_owned(), texts)]);
    let fused = FusedLayers::parse(&attributes).unwrap();
    let operands: Vec<_> = inputs
        .iter()
        .map(|(tensor, constant)| {
            Some(match constant {
                true => Operand::constant(Arc::new(tensor.clone())),
                false => Operand::dynamic(tensor.ty().clone()),
            })
        })
        .collect();
    let mut want: Option<Tensor> = None;
    for layer in &fused.layers {
        let previous =
            |shape: &Vec<usize>| want.as_ref().map(|t| t.clone().reshaped(shape.clone()).unwrap());
        let own: Vec<Option<Tensor>> = layer
            .inputs
            .iter()
            .map(|source| match source {
                Source::Absent => None,
                Source::Input(i) => Some(inputs[*i].0.clone()),
                Source::Previous(shape) => previous(shape),
            })
            .collect();
        let own: Vec<_> = own.iter().map(Option::as_ref).collect();
        want = Some(evaluate(&*layer.op, &own, &Pool::single()).unwrap().remove(0));
    }
    let want = want.unwrap();
    let kernel = Slices::new(&fused.links(&operands).unwrap(), slice_bytes).unwrap();
    assert!(kernel.count() >= slices, "{layers:?}: {} slices", kernel.count());
    for threads in [1, 3] {
        let pool = Pool::new(threads);
        let mut got = Tensor::zeros(want.ty().clone());
        let mut scratch = Storage::zeroed(kernel.scratch_bytes(threads));
        let views: Vec<_> = inputs.iter().map(|(tensor, _)| Some(tensor.view())).collect();
        let outputs = &mut [got.view_mut()];
        let mut io = KernelIo { inputs: &views, outputs, scratch: scratch.bytes_mut() };
        kernel.run(&mut io, &pool).unwrap();
        let (got, want) = (got.as_slice::<f32>().unwrap(), want.as_slice::<f32>().unwrap());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            // Sums of at most 150 terms within [-1, 1], in another order where slices have
            // another algorithm.
            assert!((got - want).abs() <= 150.0 * f32::EPSILON * want.abs().max(4.0), "{i}");
        }
    }
    // Halves of it, as on two processors.
    let types = fused.infer(&operands).unwrap();
    let x = Operands { inputs: &operands, outputs: &types };
    let (axis, unit) = (fused.split_axis(&x).unwrap(), fused.split_unit(&x));
    let middle = types[0].shape[axis] / unit / 2 * unit;
    let mut halves: Vec<f32> = Vec::new();
    for range in [0..middle, middle..types[0].shape[axis]] {
        let part = fused.split(&x, range).unwrap();
        let own: Vec<Option<Tensor>> = inputs
            .iter()
            .zip(&part.inputs)
            .map(|((tensor, _), wanted)| {
                Some(match wanted {
                    PartInput::Whole => tensor.clone(),
                    PartInput::Range { axis, range } => {
                        crate::plan::slice_tensor(tensor, *axis, range.clone())
                    }
                })
            })
            .collect();
        let own: Vec<_> = own.iter().map(Option::as_ref).collect();
        halves.extend(
            evaluate(&*part.op, &own, &Pool::single()).unwrap()[0].as_slice::<f32>().unwrap(),
        );
    }
    for (got, want) in halves.iter().zip(want.as_slice::<f32>().unwrap()) {
        assert!((got - want).abs() <= 150.0 * f32::EPSILON * want.abs().max(4.0));
    }
}

#[test]
fn a_perceptron_by_rows() {
    for (batch, rows) in [(1, 24), (3, 8), (2, 7)] {
        check(
            &[
                "LayerNormalization(0,1,2) axis=i:-1 epsilon=f:0.00001",
                &format!("ai.sparoa.Linear(@{batch}x{rows}x5x12,3,4) activation=s:Gelu"),
                &format!("ai.sparoa.Linear(@{batch}x{rows}x5x30,5,,0) residual=s:after_activation"),
            ],
            &[
                (floats([batch, rows, 5, 12], 1), false),
                (floats([12], 2), true),
                (floats([12], 3), true),
                (floats([12, 30], 4), true),
                (floats([30], 5), true),
                (floats([30, 12], 6), true),
            ],
            4 * (12 + 30) * 5 * 2,
            7,
        );
    }
}

#[test]
fn attention_by_windows() {
    // Four windows an image: a bias of one for each, or of one for all.
    for (windows, bias) in [(4, 4), (4, 1), (8, 4)] {
        check(
            &[
                "ai.sparoa.Linear(0,1,2)",
                &format!(
                    "ai.sparoa.Attention(@{windows}x9x3x2x8,,,3) heads=i:2 packed=i:1 \
                     scale=f:0.5 out_layout=s:BSHD"
                ),
                &format!("ai.sparoa.Linear(@{}x16,4)", windows * 9),
            ],
            &[
                (floats([windows, 9, 16], 1), false),
                (floats([16, 48], 2), true),
                (floats([48], 3), true),
                (floats([bias, 2, 9, 9], 4), true),
                (floats([16, 16], 5), true),
            ],
            4 * (48 + 16) * 9,
            windows,
        );
    }
}

#[test]
fn a_convolution_and_its_pooling_by_rows() {
    for (batch, height) in [(1, 24usize), (3, 24), (2, 17)] {
        let out = [batch, height.div_ceil(2), 10, 16].map(|d: usize| d.to_string()).join("x");
        check(
            &[
                "ai.sparoa.Conv(0,1,2) kernel_shape=is:7,7 pads=is:3,3,3,3 strides=is:2,2 \
                 activation=s:Relu layout=s:NHWC",
                &format!(
                    "ai.sparoa.MaxPool(@{out}) kernel_shape=is:3,3 pads=is:1,1,1,1 \
                     strides=is:2,2 layout=s:NHWC"
                ),
            ],
            &[
                (floats([batch, height, 20, 3], 1), false),
                (floats([16, 3, 7, 7], 2), true),
                (floats([16], 3), true),
            ],
            4 * 16 * 10 * 5,
            batch,
        );
    }
}

#[test]
fn texts_that_are_no_layers_are_refused() {
    for (text, error) in [
        ("Relu", "lacks its inputs"),
        ("Reul(0)", "is no known operator"),
        ("Relu(a)", "neither numbers nor shapes"),
        ("Relu(0) alpha", "is not name=kind:value"),
        ("Relu(0) alpha=f:1", "has the attribute alpha, which it does not know"),
    ] {
        let found = text::parse(text).unwrap_err().to_string();
        assert!(found.contains(error), "{text}: {found}");
    }
}

#[test]
fn a_pruned_convolution_and_its_maximum_are_one_kernel() {
    let weight = floats([20, 3, 5, 5], 2);
    let pruned: Vec<f32> = (weight.as_slice::<f32>().unwrap().iter().enumerate())
        .map(|(i, &w)| if i % 10 == 3 { w } else { 0.0 })
        .collect();
    let tensors =
        [floats([2, 21, 37, 3], 1), Tensor::from_slice(weight.shape(), &pruned), floats([20], 3)];
    // (pads of the windows, whether the sparse kernel knows them)
    for (pads, known) in [("1,1,1,1", true), ("0,0,0,0", false)] {
        let texts = vec![
            "ai.sparoa.Conv(0,1,2) kernel_shape=is:5,5 pads=is:2,2,2,2 strides=is:2,2 \
             layout=s:NHWC activation=s:Relu"
                .to_owned(),
            format!(
                "ai.sparoa.MaxPool(@2x11x19x20) kernel_shape=is:3,3 pads=is:{pads} \
                 strides=is:2,2 layout=s:NHWC"
            ),
        ];
        let texts = AttributeValue::Strings(texts);
        let attributes = Attributes::new(1, 1, [("layers".to_owned(), texts)]);
        let fused = FusedLayers::parse(&attributes).unwrap();
        let operands: Vec<_> = (tensors.iter().enumerate())
            .map(|(i, tensor)| match i {
                0 => Some(Operand::dynamic(tensor.ty().clone())),
                _ => Some(Operand::constant(Arc::new(tensor.clone()))),
            })
            .collect();
        let outputs = fused.infer(&operands).unwrap();
        let x = Operands { inputs: &operands, outputs: &outputs };
        let run = |variant| {
            let kernel = fused.with_variant(variant).unwrap().cpu(&x).unwrap();
            let (mut y, pool) = (Tensor::zeros(outputs[0].clone()), Pool::new(2));
            let mut scratch = Storage::zeroed(kernel.scratch_bytes(2));
            // What the kernel holds has no bytes.
            let inputs: Vec<_> = (tensors.iter().enumerate())
                .map(|(i, tensor)| {
                    let mut view = tensor.view();
                    if kernel.holds(i) {
                        view.bytes = &[];
                    }
                    Some(view)
                })
                .collect();
            let outputs = &mut [y.view_mut()];
            let mut io = KernelIo { inputs: &inputs, outputs, scratch: scratch.bytes_mut() };
            kernel.run(&mut io, &pool).unwrap();
            (kernel.method(), kernel.holds(1), y)
        };
        let (sparse, held, got) = run(Variant::Sparse);
        assert_eq!((sparse == crate::ops::variant::SPARSE, held), (known, true));
        let (dense, _, want) = run(Variant::Dense);
        assert_ne!(dense, crate::ops::variant::SPARSE);
        for (got, want) in
            got.as_slice::<f32>().unwrap().iter().zip(want.as_slice::<f32>().unwrap())
        {
            assert!((got - want).abs() <= 150.0 * f32::EPSILON * want.abs().max(4.0));
        }
    }
}
