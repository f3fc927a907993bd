//! Quantised models as integers. Scales are powers of two, so float sums are exact and nothing may
//! move at all.

use super::{
    editor::Editor,
    global_pool, layout, quantized,
    testing::{Build, check, random, summary},
    views,
};
use crate::{
    ir::ModelValueId,
    ops::AttributeValue,
    tensor::{DType, Tensor, TensorType},
};

const PASSES: &[fn(&mut Editor)] =
    &[global_pool::run, quantized::run, layout::run, views::run, layout::sink, views::run];

/// Bytes from -8 to 7.
fn bytes(shape: &[usize], seed: u64) -> Tensor {
    let floats = random(&TensorType::f32(shape), seed);
    let values: Vec<i8> =
        floats.as_slice::<f32>().unwrap().iter().map(|v| (v * 8.0).floor() as i8).collect();
    Tensor::from_slice(shape, &values)
}

/// The result, quantised and dequantised.
fn requantized(b: &mut Build, x: ModelValueId, scale: f32, zero: i8) -> ModelValueId {
    let (scale, zero) = (b.scalar(scale), b.constant(Tensor::scalar(zero)));
    let x = b.op("QuantizeLinear", &[x, scale, zero]);
    b.op("DequantizeLinear", &[x, scale, zero])
}

/// Quantised weights with a scale per index of axis 0.
fn weights(b: &mut Build, shape: &[usize], seed: u64) -> ModelValueId {
    let scales: Vec<f32> = (0..shape[0]).map(|i| [0.125, 0.25, 0.0625][i % 3]).collect();
    let w = b.constant(bytes(shape, seed));
    let scale = b.constant(Tensor::from_slice([shape[0]], &scales));
    b.node("DequantizeLinear", &[w, scale], &[("axis", AttributeValue::Int(0))])
}

/// A quantised bias: steps of the products of an input with scale 1/16.
fn bias(b: &mut Build, n: usize) -> ModelValueId {
    let steps: Vec<i32> = (0..n as i32).map(|i| i * 37 - 90).collect();
    let scales: Vec<f32> = (0..n).map(|i| [0.125, 0.25, 0.0625][i % 3] / 16.0).collect();
    let steps = b.constant(Tensor::from_slice([n], &steps));
    let scales = b.constant(Tensor::from_slice([n], &scales));
    b.node("DequantizeLinear", &[steps, scales], &[("axis", AttributeValue::Int(0))])
}

#[test]
fn a_residual_network_is_integers_throughout() {
    let mut b = Build::new();
    let x = b.input(&[1, 3, 9, 8]);
    let x = requantized(&mut b, x, 0.0625, -3);
    let pads = ("pads", AttributeValue::Ints(vec![1; 4]));
    let (w, c) = (weights(&mut b, &[8, 3, 3, 3], 1), bias(&mut b, 8));
    let y = b.node("Conv", &[x, w, c], std::slice::from_ref(&pads));
    let y = b.op("Relu", &[y]);
    let y = requantized(&mut b, y, 0.0625, -128);
    let (w, c) = (weights(&mut b, &[8, 1, 3, 3], 2), bias(&mut b, 8));
    let z = b.node("Conv", &[y, w, c], &[pads, ("group", AttributeValue::Int(8))]);
    let (low, high) = (b.scalar(0.0), b.scalar(6.0));
    let z = b.op("Clip", &[z, low, high]);
    let z = requantized(&mut b, z, 0.0625, -128);
    let sum = b.op("Add", &[y, z]);
    let sum = requantized(&mut b, sum, 0.125, 5);
    let mean = b.node(
        "ReduceMean",
        &[sum],
        &[("axes", AttributeValue::Ints(vec![2, 3])), ("keepdims", AttributeValue::Int(0))],
    );
    let mean = requantized(&mut b, mean, 0.0625, 0);
    let (w, c) = (weights(&mut b, &[5, 8], 3), bias(&mut b, 5));
    let y = b.node("Gemm", &[mean, w, c], &[("transB", AttributeValue::Int(1))]);
    let y = requantized(&mut b, y, 0.0625, 7);
    let after = check(&b.graph(&[y]), PASSES, 0.0);
    let expected = "DequantizeLinear 1, QLinearAdd 1, QLinearConv 2, QLinearGlobalAveragePool 1, \
                    QLinearMatMul 1, QuantizeLinear 1, Transpose 1";
    assert_eq!(summary(&after), expected);
}

#[test]
fn what_moves_elements_moves_bytes() {
    let mut b = Build::new();
    let (x, y) = (b.input(&[1, 2, 6, 6]), b.input(&[1, 2, 6, 6]));
    let x = requantized(&mut b, x, 0.0625, 3);
    let x = b.node("MaxPool", &[x], &[("kernel_shape", AttributeValue::Ints(vec![2, 2]))]);
    let x = b.transpose(x, &[0, 1, 3, 2]);
    let x = requantized(&mut b, x, 0.0625, 3);
    let y = b.node("MaxPool", &[y], &[("kernel_shape", AttributeValue::Ints(vec![2, 2]))]);
    let y = requantized(&mut b, y, 0.0625, 3);
    let z = b.node("Concat", &[x, y], &[("axis", AttributeValue::Int(1))]);
    let z = requantized(&mut b, z, 0.0625, 3);
    let z = b.reshape(z, &[1, -1]);
    let graph = b.graph(&[z]);
    let after = check(&graph, &[quantized::run], 0.0);
    let expected = "Concat 1, DequantizeLinear 1, MaxPool 2, QuantizeLinear 2, Transpose 1";
    assert_eq!(summary(&after), expected);
    let float_moves = after.nodes.iter().filter(|n| {
        let ty = |v: &Option<crate::ir::ValueId>| after.value(v.unwrap()).ty.dtype;
        !n.op.op_type().ends_with("Linear") && ty(&n.inputs[0]) == DType::F32
    });
    assert_eq!(float_moves.count(), 0, "{after}");
}

#[test]
fn products_of_two_activations_and_other_grids() {
    let mut b = Build::new();
    let (x, y) = (b.input(&[2, 3, 4]), b.input(&[2, 4, 5]));
    let x = requantized(&mut b, x, 0.0625, 3);
    let y = requantized(&mut b, y, 0.03125, -2);
    let z = b.op("MatMul", &[x, y]);
    let z = requantized(&mut b, z, 0.125, 1);
    // Another grid than before: a calculation, which stays.
    let z = requantized(&mut b, z, 0.25, 0);
    // Weights as columns, transposed as floats.
    let w = weights_without_axis(&mut b, &[6, 5]);
    let w = b.transpose(w, &[1, 0]);
    let z = b.op("MatMul", &[z, w]);
    let z = requantized(&mut b, z, 0.5, -1);
    let after = check(&b.graph(&[z]), &[quantized::run], 0.0);
    let expected = "DequantizeLinear 2, QLinearMatMul 2, QuantizeLinear 3";
    assert_eq!(summary(&after), expected);
}

fn weights_without_axis(b: &mut Build, shape: &[usize]) -> ModelValueId {
    let (w, scale) = (b.constant(bytes(shape, 9)), b.scalar(0.125));
    b.op("DequantizeLinear", &[w, scale])
}

#[test]
fn a_float_that_others_read_stays() {
    let mut b = Build::new();
    let x = b.input(&[1, 2, 4, 4]);
    let x = requantized(&mut b, x, 0.0625, 0);
    let w = weights(&mut b, &[3, 2, 1, 1], 1);
    let y = b.op("Conv", &[x, w]);
    let z = requantized(&mut b, y, 0.0625, 0);
    let after = check(&b.graph(&[y, z]), &[quantized::run], 0.0);
    assert!(summary(&after).starts_with("Conv 1,"), "{after}");
}

#[test]
fn a_bias_that_fills_32_bits_is_clamped_where_that_does_not_show() {
    for (scale, fits) in [(1e-9f32, true), (0.5, false)] {
        let mut b = Build::new();
        let x = b.input(&[1, 1, 2, 2]);
        let x = requantized(&mut b, x, 0.0625, 0);
        let w = b.constant(Tensor::from_slice([1, 1, 1, 1], &[127i8]));
        let w_scale = b.constant(Tensor::scalar(scale));
        let w = b.op("DequantizeLinear", &[w, w_scale]);
        let steps = b.constant(Tensor::from_slice([1], &[i32::MIN + 1]));
        let step = b.scalar(scale * 0.0625);
        let bias = b.op("DequantizeLinear", &[steps, step]);
        let y = b.op("Conv", &[x, w, bias]);
        let y = requantized(&mut b, y, 0.0625, 0);
        let after = check(&b.graph(&[y]), &[quantized::run], 0.0);
        assert_eq!(summary(&after).contains("QLinearConv 1"), fits, "{after}");
    }
}
