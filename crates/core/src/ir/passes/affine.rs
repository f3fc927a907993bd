//! Products and sums with constants per channel are folded into the weights and bias of the
//! convolution or linear operator before them: batch normalisation, bias, layer scale.

use super::{editor::Editor, pattern};
use crate::{
    ir::{NodeId, ValueId},
    ops::{
        conv::{Conv, Layout, ResidualKind},
        gemm::Linear,
    },
    tensor::{DType, Tensor},
};
use sparoa_kernels::Activation;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        while e.get(id).is_some() && fold(e, id).is_some() {}
    }
}

/// y * scale + shift, per output channel.
struct Affine {
    scale: Option<Vec<f32>>,
    shift: Option<Vec<f32>>,
}

/// Which dimension of a weight is the output channel.
struct Weights {
    axis: usize,
    /// Dimension of the output that counts channels.
    channel_axis: usize,
}

fn fold(e: &mut Editor, id: NodeId) -> Option<()> {
    let weights = weights(e, id)?;
    let output = e.output(id)?;
    let next = e.only_user(output)?;
    let weight = e.constant_input(id, 1)?.clone();
    let channels = weight.ty().shape[weights.axis];
    let bias = match e.input(id, 2) {
        None => None,
        Some(v) => Some(pattern::floats(e.constant(v)?)?.to_vec()),
    };
    let affine = affine(e, next, output, weights.channel_axis, channels)?;
    if e.shape(e.output(next)?) != e.shape(output) {
        return None;
    }
    let mut inputs = e.node(id).inputs.clone();
    let name = e.node(id).name.clone();
    let mut bias = bias.unwrap_or_else(|| vec![0.0; channels]);
    if let Some(scale) = &affine.scale {
        let scaled = scale_weights(&weight, weights.axis, scale.clone())?;
        inputs[1] = Some(e.add_constant(format!("{name}/weight"), scaled));
        bias.iter_mut().zip(scale).for_each(|(b, s)| *b *= s);
    }
    if let Some(shift) = &affine.shift {
        bias.iter_mut().zip(shift).for_each(|(b, s)| *b += s);
    }
    inputs.resize(inputs.len().max(3), None);
    inputs[2] = Some(e.add_constant(format!("{name}/bias"), Tensor::from_slice([channels], &bias)));
    let op = e.node(id).op.clone();
    e.fuse(id, &[next], next, op, inputs);
    Some(())
}

/// Where the channels are, for an operator without an epilogue yet.
fn weights(e: &Editor, id: NodeId) -> Option<Weights> {
    let op = &*e.node(id).op;
    let rank = e.shape(e.output(id)?).len();
    if let Some(conv) = op.downcast::<Conv>() {
        let plain = conv.activation == Activation::None && conv.residual == ResidualKind::None;
        let channel_axis = if conv.layout == Layout::Nchw { 1 } else { rank - 1 };
        return plain.then_some(Weights { axis: 0, channel_axis });
    }
    let linear = op.downcast::<Linear>()?;
    let plain = linear.activation == Activation::None && linear.residual == ResidualKind::None;
    plain.then_some(Weights { axis: usize::from(!linear.trans_b), channel_axis: rank - 1 })
}

/// What node `next` does to `x`, if it is a product or sum with a constant per channel.
fn affine(e: &Editor, next: NodeId, x: ValueId, axis: usize, channels: usize) -> Option<Affine> {
    let rank = e.shape(x).len();
    let channel_values = |v: ValueId| per_channel(e.constant(v)?, rank, axis, channels);
    let name = pattern::name(e, next);
    let (a, b) = pattern::binary(e, next, name)?;
    let (constant, reversed) = if a == x { (b, false) } else { (a, true) };
    let values = channel_values(constant)?;
    let negated = |v: Vec<f32>| v.into_iter().map(|v| -v).collect();
    Some(match (name, reversed) {
        ("Add", _) => Affine { scale: None, shift: Some(values) },
        ("Mul", _) => Affine { scale: Some(values), shift: None },
        ("Sub", false) => Affine { scale: None, shift: Some(negated(values)) },
        ("Sub", true) => Affine { scale: Some(vec![-1.0; channels]), shift: Some(values) },
        ("Div", false) if values.iter().all(|v| v.is_normal()) => {
            let inverted = values.into_iter().map(|v| 1.0 / v).collect();
            Affine { scale: Some(inverted), shift: None }
        }
        _ => return None,
    })
}

/// A constant that broadcasts along all axes but `axis`, as one value per channel.
fn per_channel(tensor: &Tensor, rank: usize, axis: usize, channels: usize) -> Option<Vec<f32>> {
    let values = pattern::floats(tensor)?;
    let shape = &tensor.ty().shape;
    if values.len() == 1 && shape.len() <= rank {
        return Some(vec![values[0]; channels]);
    }
    let lead = rank.checked_sub(shape.len())?;
    let fits = shape.iter().enumerate().all(|(i, &d)| d == 1 || lead + i == axis);
    (fits && values.len() == channels).then(|| values.to_vec())
}

/// The weights times a factor per channel of `axis`, or one for all, computed when they are read: packing needs them
/// for a moment only.
pub(super) fn scale_weights(weight: &Tensor, axis: usize, scale: Vec<f32>) -> Option<Tensor> {
    let inner: usize = weight.ty().shape[axis + 1..].iter().product();
    let weight = (weight.dtype() == DType::F32).then(|| weight.clone())?;
    let ty = weight.ty().clone();
    Some(weight.made(ty, move |mut scaled| {
        let data = scaled.as_slice_mut::<f32>().expect("f32, as was checked");
        for (i, row) in data.chunks_exact_mut(inner.max(1)).enumerate() {
            let s = scale[i % scale.len()];
            row.iter_mut().for_each(|w| *w *= s);
        }
        scaled
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::{
        linear,
        testing::{Build, check, counts},
    };

    #[test]
    fn products_and_sums_fold_into_weights() {
        let mut b = Build::new();
        let x = b.input(&[1, 2, 5, 5]);
        let y = b.conv(x, [2, 3], 3);
        let (scale, shift, half) = (b.weights(&[3, 1, 1]), b.weights(&[1, 3, 1, 1]), b.scalar(0.5));
        let y = b.op("Mul", &[scale, y]);
        let y = b.op("Sub", &[shift, y]);
        let y = b.op("Div", &[y, half]);
        let after = check(&b.graph(&[y]), &[run], 1e-6);
        assert_eq!(counts(&after), [("Conv", 1)].into());
    }

    #[test]
    fn biases_of_matrix_products() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 4]);
        let (w, bias, scale) = (b.weights(&[4, 5]), b.weights(&[5]), b.weights(&[5]));
        let y = b.op("MatMul", &[x, w]);
        let y = b.op("Add", &[bias, y]);
        let y = b.op("Mul", &[y, scale]);
        let after = check(&b.graph(&[y]), &[linear::run, run], 1e-6);
        assert_eq!(counts(&after), [("Linear", 1)].into());
    }

    #[test]
    fn shared_or_wanted_results_stay() {
        let mut b = Build::new();
        let x = b.input(&[1, 2, 4, 4]);
        let y = b.conv(x, [2, 2], 1);
        let (scale, rows) = (b.weights(&[2, 1, 1]), b.weights(&[4, 1]));
        let z = b.op("Mul", &[y, scale]);
        let w = b.conv(x, [2, 2], 1);
        let w = b.op("Add", &[w, rows]);
        let after = check(&b.graph(&[y, z, w]), &[run], 1e-6);
        assert_eq!(counts(&after), [("Add", 1), ("Conv", 2), ("Mul", 1)].into());
    }
}
