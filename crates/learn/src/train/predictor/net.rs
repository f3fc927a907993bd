//! The predictor as a graph of tensors: what surrounds the LSTM.

use burn_tensor::activation::{gelu, relu, sigmoid, softmax};
use burn_tensor::{Device, Tensor, TensorData};
use rand::Rng;

use super::batch::Batch;
use super::{Loss, PredictorConfig};
use crate::predictor::{Architecture, NORM_EPS, OUTPUTS, position_encoding, window_shift};
use crate::train::parameters::{Leaves, Parameters, matrix};

/// Added to the scores of padding: its weight becomes exactly 0.
const HIDDEN: f32 = -1e9;

/// Fresh parameters, under the names of weight files.
pub(super) fn parameters(c: &PredictorConfig, features: usize, rng: &mut dyn Rng) -> Parameters {
    let mut p = Parameters::default();
    let mut width = features;
    if c.architecture != Architecture::Linear {
        p.push_dense("embed", features, c.width, rng);
        width = c.width;
    }
    let norm = |p: &mut Parameters, name: &str| {
        p.push(&format!("{name}.scale"), &[c.width], vec![1.0; c.width]);
        p.push(&format!("{name}.offset"), &[c.width], vec![0.0; c.width]);
    };
    if c.architecture.has_encoder() {
        for i in 0..c.layers {
            let part = |part: &str| format!("layers.{i}.{part}");
            norm(&mut p, &part("attention_norm"));
            p.push_dense(&part("qkv"), c.width, 3 * c.width, rng);
            p.push_dense(&part("out"), c.width, c.width, rng);
            norm(&mut p, &part("feed_norm"));
            p.push_dense(&part("feed_in"), c.width, c.feed, rng);
            p.push_dense(&part("feed_out"), c.feed, c.width, rng);
        }
        norm(&mut p, "final_norm");
    }
    if c.architecture.has_lstm() {
        super::lstm::parameters(&mut p, c.width, c.lstm, rng);
        width = 2 * c.lstm;
    }
    p.push_dense("head", width, OUTPUTS, rng);
    p
}

/// Everything before LSTM and head, [rows * steps, width].
pub(super) fn encode(
    c: &PredictorConfig,
    leaves: &Leaves,
    batch: &Batch,
    device: &Device,
) -> Tensor<2> {
    let n = batch.rows * batch.steps;
    let x = matrix(batch.features.clone(), n, batch.features.len() / n, device);
    if c.architecture == Architecture::Linear {
        return x;
    }
    let mut x = leaves.dense("embed", x);
    if !c.architecture.has_encoder() {
        return x;
    }
    let position = position_encoding(batch.steps, c.width).repeat(batch.rows);
    x = x + matrix(position, n, c.width, device);
    for i in 0..c.layers {
        let part = |part: &str| format!("layers.{i}.{part}");
        let normed = norm(leaves, &part("attention_norm"), x.clone());
        let qkv = leaves.dense(&part("qkv"), normed);
        let mixed = attend(c, qkv, batch, window_shift(c.window, i), device);
        x = x + leaves.dense(&part("out"), mixed);
        let normed = norm(leaves, &part("feed_norm"), x.clone());
        let hidden = gelu(leaves.dense(&part("feed_in"), normed));
        x = x + leaves.dense(&part("feed_out"), hidden);
    }
    norm(leaves, "final_norm", x)
}

/// The thresholds, [rows * steps, 2].
pub(super) fn head(leaves: &Leaves, x: Tensor<2>) -> Tensor<2> {
    sigmoid(leaves.dense("head", x))
}

/// The weighted mean loss, [1].
pub(super) fn loss(loss: Loss, found: Tensor<2>, batch: &Batch, device: &Device) -> Tensor<1> {
    let n = batch.rows * batch.steps;
    let tensor = |list: &[f32]| matrix(list.to_vec(), n, OUTPUTS, device);
    let size = (found - tensor(&batch.targets)).abs();
    let losses = match loss {
        Loss::L1 => size,
        Loss::Huber { delta } => {
            let near = size.clone() - relu(size.clone() - delta);
            near.clone() * near.clone() * 0.5 + (size - near) * delta
        }
    };
    (losses * tensor(&batch.weights)).sum() / batch.weight
}

fn norm(leaves: &Leaves, name: &str, x: Tensor<2>) -> Tensor<2> {
    let scale = leaves.vector(&format!("{name}.scale")).unsqueeze::<2>();
    let offset = leaves.vector(&format!("{name}.offset")).unsqueeze::<2>();
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    centred / (variance + NORM_EPS).sqrt() * scale + offset
}

/// Attention inside windows, [rows * steps, 3 width] to [rows * steps, width]. Sequences are padded
/// by `shift` in front and to whole windows behind; padding is never attended to.
fn attend(
    c: &PredictorConfig,
    qkv: Tensor<2>,
    batch: &Batch,
    shift: usize,
    device: &Device,
) -> Tensor<2> {
    let (rows, steps, width) = (batch.rows, batch.steps, c.width);
    // What fits one window needs no padding.
    let (shift, window) = if steps + shift <= c.window { (0, steps) } else { (shift, c.window) };
    let padded = (steps + shift).next_multiple_of(window);
    let count = rows * padded / window;
    let mut hidden = vec![HIDDEN; rows * padded];
    for row in 0..rows {
        for step in 0..steps {
            if batch.mask[row * steps + step] == 1.0 {
                hidden[row * padded + shift + step] = 0.0;
            }
        }
    }
    let hidden = TensorData::new(hidden, [count, 1, 1, window]);
    let hidden = Tensor::<4>::from_data(hidden, device);
    let mut x = qkv.reshape([rows, steps, 3 * width]);
    if padded > steps {
        let zeros = |n: usize| Tensor::<3>::zeros([rows, n, 3 * width], device);
        let mut parts = vec![x];
        if shift > 0 {
            parts.insert(0, zeros(shift));
        }
        if padded > steps + shift {
            parts.push(zeros(padded - steps - shift));
        }
        x = Tensor::cat(parts, 1);
    }
    let head_dim = width / c.heads;
    let part = |i: usize| {
        let columns = i * width..(i + 1) * width;
        let part = x.clone().slice([0..rows, 0..padded, columns]);
        part.reshape([count, window, c.heads, head_dim]).swap_dims(1, 2)
    };
    let scores = part(0).matmul(part(1).swap_dims(2, 3)) * (1.0 / (head_dim as f32).sqrt());
    let mixed = softmax(scores + hidden, 3).matmul(part(2)).swap_dims(1, 2);
    let mixed = mixed.reshape([rows, padded, width]);
    mixed.slice([0..rows, shift..shift + steps, 0..width]).reshape([rows * steps, width])
}
