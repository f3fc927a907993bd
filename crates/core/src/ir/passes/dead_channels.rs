//! Pruning leaves depthwise convolutions with filters that are zeros throughout, and projections
//! that never look at some channel. Such a channel carries a constant or is not needed at all: it
//! is taken out of the three convolutions, the constant added to the last one's bias.

use std::sync::Arc;

use super::editor::Editor;
use crate::{
    ir::{NodeId, ValueId},
    ops::conv::{Conv, ResidualKind},
    tensor::{DType, Tensor, TensorType},
};

/// Channels come in multiples of this, for kernels that work on vectors of them: some dead ones
/// stay to fill up the last.
const MULTIPLE: usize = 16;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() {
            shrink(e, id);
        }
    }
}

/// A convolution of f32 with constant weight and bias, which are made again for others.
struct Constant {
    conv: Conv,
    weight: Arc<Tensor>,
    bias: Option<Arc<Tensor>>,
}

impl Constant {
    fn of(e: &Editor, id: NodeId) -> Option<Constant> {
        let conv = e.node(id).op.downcast::<Conv>()?.clone();
        let f32 = e.ty(e.input(id, 0)?).dtype == DType::F32;
        let bias = match e.input(id, 2) {
            None => None,
            Some(bias) => Some(e.constant(bias)?.reader()),
        };
        let weight = e.constant_input(id, 1)?.reader();
        f32.then_some(Constant { conv, weight, bias })
    }

    fn weight(&self) -> &[f32] {
        self.weight.as_slice().unwrap_or_default()
    }

    fn bias(&self, channel: usize) -> f32 {
        let bias = self.bias.as_deref().and_then(Tensor::as_slice::<f32>);
        bias.map_or(0.0, |b| b[channel])
    }
}

/// Those of a tensor's channels along `axis` that are kept.
fn kept_rows(tensor: &Tensor, axis: usize, kept: &Arc<[usize]>) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let (count, len) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    shape[axis] = kept.len();
    let (ty, kept) = (TensorType::f32(shape), kept.clone());
    let made = ty.clone();
    tensor.clone().made(ty, move |all| {
        let all = all.as_slice::<f32>().unwrap_or_default();
        let outer = all.chunks_exact((count * len).max(1));
        let rows = outer.flat_map(|o| kept.iter().flat_map(move |&c| &o[c * len..][..len]));
        Tensor::from_slice(made.shape.clone(), &rows.copied().collect::<Vec<f32>>())
    })
}

/// A convolution's weight, whose contents are not looked at.
fn weight_shape(e: &Editor, id: NodeId) -> Option<&[usize]> {
    e.node(id).op.downcast::<Conv>()?;
    Some(e.constant_input(id, 1)?.shape())
}

/// Takes the dead channels out of a depthwise convolution and those before and after it.
fn shrink(e: &mut Editor, id: NodeId) -> Option<()> {
    // Most graphs have no such filter: only depthwise weights, which are few, are read to see that.
    let &[channels, 1, ..] = weight_shape(e, id)? else { return None };
    let filter = Constant::of(e, id)?;
    let taps = filter.weight().len().checked_div(channels)?;
    let zeros = |row: &[f32]| row.iter().all(|&v| v == 0.0);
    let mut dead: Vec<bool> = filter.weight().chunks_exact(taps.max(1)).map(zeros).collect();
    if filter.conv.group != channels || !dead.contains(&true) {
        return None;
    }
    let (input, output) = (e.input(id, 0)?, e.output(id)?);
    let (before, after) = (e.producer(input)?, e.only_user(output)?);
    let alone = e.only_user(input) == Some(id) && e.input(after, 0) == Some(output);
    let reads = e.node(after).inputs.iter().filter(|&&i| i == Some(output)).count();
    if !alone || reads != 1 || !pads_nothing(e, after)? {
        return None;
    }
    let (first, last) = (Constant::of(e, before)?, Constant::of(e, after)?);
    let plain = [&first, &filter].iter().all(|c| c.conv.residual == ResidualKind::None);
    if !plain || first.conv.group.max(1) != 1 || last.conv.group.max(1) != 1 {
        return None;
    }
    let &[outputs, reading, ..] = last.weight.shape() else { return None };
    let last_taps = last.weight().len().checked_div(outputs * channels)?;
    if reading != channels {
        return None;
    }
    let column = |o: usize, c: usize| &last.weight()[(o * channels + c) * last_taps..][..last_taps];
    for (c, dead) in dead.iter_mut().enumerate() {
        *dead = *dead || (0..outputs).all(|o| zeros(column(o, c)));
    }
    let alive = dead.iter().filter(|&&d| !d).count();
    let mut spare = 0..alive.next_multiple_of(MULTIPLE).max(MULTIPLE) - alive;
    let kept: Arc<[usize]> =
        (0..channels).filter(|&c| !dead[c] || spare.next().is_some()).collect();
    if kept.len() == channels {
        return None;
    }
    // What the others add to every result.
    let left_out: Vec<usize> = (0..channels).filter(|c| kept.binary_search(c).is_err()).collect();
    let bias = (0..outputs).map(|o| {
        let weight = |c: usize| column(o, c).iter().map(|&w| f64::from(w)).sum::<f64>();
        let value = |c: usize| f64::from(filter.conv.activation.apply(filter.bias(c)));
        let constants: f64 = left_out.iter().map(|&c| value(c) * weight(c)).sum();
        (f64::from(last.bias(o)) + constants) as f32
    });
    let bias = Tensor::from_slice([outputs], &bias.collect::<Vec<f32>>());

    let group = kept.len();
    let ops = [first.conv.clone(), Conv { group, ..filter.conv.clone() }];
    let mut x = e.input(before, 0)?;
    for ((id, op), stage) in [before, id].into_iter().zip(ops).zip([&first, &filter]) {
        let weight = kept_rows(e.constant_input(id, 1)?, 0, &kept);
        let mut inputs = vec![Some(x), Some(add(e, id, "weight", weight))];
        if let Some(bias) = &stage.bias {
            inputs.push(Some(add(e, id, "bias", kept_rows(bias, 0, &kept))));
        }
        let made = e.rewrite(id, Arc::new(op), inputs).expect("fewer channels fit as all did");
        x = made.first()?.1;
    }
    let mut inputs = e.node(after).inputs.clone();
    inputs.resize(inputs.len().max(3), None);
    inputs[0] = Some(x);
    let weight = kept_rows(e.constant_input(after, 1)?, 1, &kept);
    inputs[1] = Some(add(e, after, "weight", weight));
    inputs[2] = Some(add(e, after, "bias", bias));
    e.replace_op(after, e.node(after).op.clone(), inputs);
    Some(())
}

fn add(e: &mut Editor, id: NodeId, what: &str, tensor: Tensor) -> ValueId {
    let name = format!("{}/{what}", e.node(id).name);
    e.add_constant(name, tensor)
}

/// Whether a convolution reads nothing but its input.
fn pads_nothing(e: &Editor, id: NodeId) -> Option<bool> {
    let conv = e.node(id).op.downcast::<Conv>()?;
    let shape = conv.shape(&e.operands(&e.node(id).inputs)).ok()?;
    Some(shape.geometry.two_dimensional()?.pads == [0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{
            Graph,
            passes::testing::{Build, check},
        },
        ops::AttributeValue,
    };

    /// Three convolutions; `zero` says which filters are zeros, and which inputs of the last are.
    fn block(channels: usize, zero: impl Fn(usize) -> [bool; 2], last_pads: i64) -> Graph {
        let mut b = Build::new();
        let x = b.input(&[1, 3, 6, 5]);
        let random = |b: &mut Build, shape: &[usize]| b.weights(shape);
        let (first, bias) = (random(&mut b, &[channels, 3, 1, 1]), random(&mut b, &[channels]));
        let values = |len: usize, dead: &dyn Fn(usize) -> bool| -> Vec<f32> {
            (0..len).map(|i| if dead(i) { 0.0 } else { (i % 7) as f32 / 7.0 - 0.4 }).collect()
        };
        let filter = values(channels * 9, &|i| zero(i / 9)[0]);
        let filter = b.constant(Tensor::from_slice([channels, 1, 3, 3], &filter));
        let own = random(&mut b, &[channels]);
        let last = values(4 * channels, &|i| zero(i % channels)[1]);
        let last = b.constant(Tensor::from_slice([4, channels, 1, 1], &last));
        let y = b.node("Conv", &[x, first, bias], &[]);
        let pads = AttributeValue::Ints(vec![1; 4]);
        let group = AttributeValue::Int(channels as i64);
        let y = b.node("Conv", &[y, filter, own], &[("group", group), ("pads", pads)]);
        let pads = AttributeValue::Ints(vec![last_pads; 4]);
        let y = b.node("Conv", &[y, last], &[("pads", pads)]);
        b.graph(&[y])
    }

    fn channels_of(graph: &Graph) -> Vec<usize> {
        let weights = graph.nodes.iter().map(|n| n.inputs[1].expect("a weight"));
        weights.map(|w| graph.value(w).ty.shape[0]).collect()
    }

    #[test]
    fn zero_filters_and_channels_that_nobody_reads_go() {
        let graph = block(70, |c| [c % 3 == 0, c % 5 == 0], 0);
        // 37 of 70 carry something; sums of 70 in another order.
        let after = check(&graph, &[run], 70.0 * f32::EPSILON);
        assert_eq!(channels_of(&after), [48, 48, 4]);
    }

    #[test]
    fn all_dead_leaves_a_vector() {
        let after = check(&block(40, |_| [true, false], 0), &[run], 40.0 * f32::EPSILON);
        assert_eq!(channels_of(&after), [16, 16, 4]);
    }

    #[test]
    fn constants_do_not_pass_padding_and_few_dead_channels_stay() {
        let after = check(&block(64, |c| [c % 2 == 0; 2], 1), &[run], 0.0);
        assert_eq!(channels_of(&after), [64, 64, 4]);
        let after = check(&block(64, |c| [c < 8; 2], 0), &[run], 0.0);
        assert_eq!(channels_of(&after), [64, 64, 4]);
    }
}
