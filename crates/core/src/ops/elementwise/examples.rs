//! Small instances of the elementwise operators.

use crate::{
    ops::{AttributeValue, Example, ExampleInput},
    tensor::Tensor,
};

fn example(name: &'static str, inputs: impl IntoIterator<Item = (Tensor, bool)>) -> Vec<Example> {
    let inputs = inputs
        .into_iter()
        .map(|(value, constant)| Some(ExampleInput { value, constant }))
        .collect();
    vec![Example { name, attributes: Vec::new(), inputs, outputs: 1, opset: 0 }]
}

/// Distinct values from `low` to `high`.
fn ramp(shape: &[usize], low: f32, high: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let step = (high - low) / n.max(2) as f32;
    // 7 is coprime to the sizes used here, so this visits every value once, out of order.
    let data: Vec<f32> = (0..n).map(|i| low + step * ((i * 7) % n) as f32).collect();
    Tensor::from_slice(shape, &data)
}

fn integers(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_slice(shape, &(0..n).map(|i| (i * 5 % 11) as i32 - 4).collect::<Vec<_>>())
}

fn booleans(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_bools(shape, &(0..n).map(|i| i % 3 == 0).collect::<Vec<_>>())
}

pub(super) fn floats() -> Vec<Example> {
    example("from -3 to 3", [(ramp(&[2, 3, 5], -3.1, 3.3), false)])
}

pub(super) fn small() -> Vec<Example> {
    example("from -0.9 to 0.9", [(ramp(&[3, 5], -0.9, 0.9), false)])
}

pub(super) fn large() -> Vec<Example> {
    example("from 1 to 4", [(ramp(&[3, 5], 1.1, 4.0), false)])
}

pub(super) fn integer() -> Vec<Example> {
    example("i32", [(integers(&[3, 5]), false)])
}

pub(super) fn boolean() -> Vec<Example> {
    example("bool", [(booleans(&[3, 5]), false)])
}

pub(super) fn boolean_pair() -> Vec<Example> {
    example("bool, one row for all", [(booleans(&[2, 5]), false), (booleans(&[5]), false)])
}

pub(super) fn integer_pair() -> Vec<Example> {
    example("i32", [(integers(&[2, 5]), false), (integers(&[2, 5]), false)])
}

pub(super) fn shifts() -> Vec<Example> {
    let x = Tensor::from_slice([3], &[1u32, 5, 9]);
    let mut list = example("u32, left", [(x.clone(), false), (x, false)]);
    list[0].attributes.push(("direction", AttributeValue::String("LEFT".to_owned())));
    list
}

pub(super) fn powers() -> Vec<Example> {
    let x = || (ramp(&[2, 3, 5], 0.5, 2.5), false);
    let mut list = example("squared", [x(), (Tensor::scalar(2.0f32), true)]);
    list.extend(example("broadcast", [x(), (ramp(&[3, 1], -1.5, 1.5), false)]));
    list
}

pub(super) fn pairs() -> Vec<Example> {
    let x = || (ramp(&[2, 3, 5], -2.0, 2.5), false);
    let mut list = example("same shape", [x(), (ramp(&[2, 3, 5], 0.5, 3.0), false)]);
    list.extend(example("per channel", [x(), (ramp(&[3, 1], 0.5, 2.0), true)]));
    list.extend(example("last axis", [x(), (ramp(&[5], 0.5, 2.0), true)]));
    list
}

pub(super) fn bias() -> Vec<Example> {
    example("bias", [(ramp(&[2, 3, 5], -2.0, 2.5), false), (ramp(&[5], 0.5, 2.0), true)])
}

pub(super) fn triples() -> Vec<Example> {
    let x = (ramp(&[2, 3, 5], -2.0, 2.5), false);
    example("three", [x, (ramp(&[3, 1], -1.0, 1.0), false), (Tensor::scalar(0.3f32), true)])
}

pub(super) fn clips() -> Vec<Example> {
    let bound = |v: f32| (Tensor::scalar(v), true);
    example("both bounds", [(ramp(&[2, 3, 5], -3.0, 9.0), false), bound(0.0), bound(6.0)])
}

pub(super) fn selects() -> Vec<Example> {
    let (a, b) = (ramp(&[2, 3, 5], -1.0, 1.0), ramp(&[5], 2.0, 3.0));
    example("broadcast", [(booleans(&[3, 1]), false), (a, false), (b, false)])
}
