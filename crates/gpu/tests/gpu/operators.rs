//! Every example of every registered operator that has a GPU kernel: GPU result = CPU result.

use sparoa_core::{
    ops::{self, Example, OpSpec},
    tensor::Tensor,
};

use crate::device::{Case, gpu, print_once};

/// The example as it stands and, for operators on channels, its NHWC twin.
fn cases(spec: &OpSpec, example: &Example) -> Vec<Case> {
    let Ok(op) = example.op(spec) else { return Vec::new() };
    let inputs: Vec<Option<Tensor>> =
        example.inputs.iter().map(|i| i.as_ref().map(|i| i.value.clone())).collect();
    let constant: Vec<bool> =
        example.inputs.iter().map(|i| i.as_ref().is_some_and(|i| i.constant)).collect();
    let mut cases = Vec::new();
    if let Some(op) = op.channels_last() {
        let inputs = inputs
            .iter()
            .zip(&constant)
            .map(|(value, &constant)| {
                value.as_ref().map(|v| if constant { v.clone() } else { channels_last(v) })
            })
            .collect();
        cases.push(Case { op, inputs, constant: constant.clone() });
    }
    cases.push(Case { op, inputs, constant });
    cases
}

/// An f32 tensor with dimension 1 moved to the end; others as they are.
fn channels_last(t: &Tensor) -> Tensor {
    let (Some(data), [n, c, spatial @ ..]) = (t.as_slice::<f32>(), t.shape()) else {
        return t.clone();
    };
    let pixels: usize = spatial.iter().product();
    let mut shape = vec![*n];
    shape.extend(spatial);
    shape.push(*c);
    let moved: Vec<f32> = (0..data.len())
        .map(|i| (i / (pixels * c), i / c % pixels, i % c))
        .map(|(n, pixel, channel)| data[(n * c + channel) * pixels + pixel])
        .collect();
    Tensor::from_slice(shape, &moved)
}

#[test]
fn examples_equal_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let mut ran = 0;
    for spec in ops::specs() {
        for example in (spec.examples)() {
            let name = format!("{} ({})", spec.name, example.name);
            for case in cases(spec, &example) {
                if case.outputs().is_none() {
                    continue;
                }
                if let Some(reason) = case.unsupported(&*gpu) {
                    print_once(format!("CPU only: {name}: {reason}"));
                    continue;
                }
                // Once at the start of its slots, once 4 bytes in, where vec4 loads are illegal.
                case.check(&*gpu, &name, 0);
                case.check(&*gpu, &name, 4);
                ran += 1;
            }
        }
    }
    println!("{ran} examples on the GPU");
    assert!(ran > 0);
}
