//! LayerNormalization written out as means, differences and a root.

use super::{
    editor::Editor,
    pattern::{self, made_by},
};
use crate::{
    ir::{NodeId, ValueId},
    ops::{AttributeValue, InputsExt},
    tensor::{DType, Tensor},
};

pub(super) fn run(e: &mut Editor) {
    let ids: Vec<NodeId> = e.ids().collect();
    for id in ids.into_iter().rev() {
        if e.get(id).is_some() {
            rewrite(e, id);
        }
    }
}

/// The normalisation whose last node is the division, and what follows it.
struct Found {
    x: ValueId,
    axis: usize,
    epsilon: f32,
    nodes: Vec<NodeId>,
}

fn rewrite(e: &mut Editor, id: NodeId) -> Option<()> {
    let found = normalised(e, id)?;
    let shape = e.shape(found.x).to_vec();
    let features = &shape[found.axis..];
    let (mut last, mut inner) = (id, found.nodes.clone());
    let mut gamma = None;
    let mut beta = None;
    if let Some((next, value)) = with_features(e, last, "Mul", features) {
        (last, gamma) = (next, Some(value));
        inner.push(id);
    }
    if let Some((next, value)) = with_features(e, last, "Add", features) {
        inner.push(last);
        (last, beta) = (next, Some(value));
    }
    // The inner values vanish, so nobody else may want them.
    let whole: Vec<NodeId> = inner.iter().copied().chain([last]).collect();
    let closed = inner.iter().filter_map(|n| e.output(*n)).all(|v| e.used_only_by(v, &whole));
    if !closed || e.ty(found.x).dtype != DType::F32 || e.ty(e.output(last)?) != e.ty(found.x) {
        return None;
    }
    let op = pattern::make(
        "",
        "LayerNormalization",
        &[
            ("axis", AttributeValue::Int(found.axis as i64)),
            ("epsilon", AttributeValue::Float(found.epsilon)),
        ],
    )?;
    let name = e.node(last).name.clone();
    let count: usize = features.iter().product();
    let scale = gamma.unwrap_or_else(|| vec![1.0; count]);
    let scale = Tensor::from_slice(features, &scale);
    let scale = e.add_constant(format!("{name}/scale"), scale);
    let mut inputs = vec![Some(found.x), Some(scale)];
    if let Some(beta) = beta {
        let beta = Tensor::from_slice(features, &beta);
        inputs.push(Some(e.add_constant(format!("{name}/bias"), beta)));
    }
    e.fuse(last, &inner, last, op, inputs);
    Some(())
}

/// The only reader of the node's output if it combines it with a constant of the normalised
/// dimensions, and the constant.
fn with_features(
    e: &Editor,
    id: NodeId,
    op_type: &str,
    features: &[usize],
) -> Option<(NodeId, Vec<f32>)> {
    let x = e.output(id)?;
    let next = e.only_user(x)?;
    let (a, b) = pattern::binary(e, next, op_type)?;
    let constant = e.constant(if a == x { b } else { a })?;
    let values = constant.as_slice::<f32>()?;
    let count: usize = features.iter().product();
    let shape = &constant.ty().shape;
    let lead = shape.len().checked_sub(features.len())?;
    let fits = values.len() == count
        && shape[..lead].iter().all(|&d| d == 1)
        && shape[lead..] == *features
        && shape.len() <= e.shape(x).len();
    fits.then(|| (next, values.to_vec()))
}

/// (x - mean) / sqrt(variance + epsilon), ending in node `id`.
fn normalised(e: &Editor, id: NodeId) -> Option<Found> {
    let mut nodes = Vec::new();
    let (centred, deviation, inverted) = if let Some((a, b)) = pattern::binary(e, id, "Div") {
        (a, b, false)
    } else {
        let (a, b) = pattern::binary(e, id, "Mul")?;
        if is_centred(e, a).is_some() { (a, b, true) } else { (b, a, true) }
    };
    let (x, mean) = is_centred(e, centred)?;
    let axis = mean_axis(e, mean)?;
    if e.input(mean, 0) != Some(x) {
        return None;
    }
    nodes.extend([e.producer(centred)?, mean]);
    // 1/sqrt(v) as Reciprocal(Sqrt), Div(1, Sqrt) or Pow(v, -1/2); sqrt(v) as Sqrt or Pow(v, 1/2).
    let mut root = e.producer(deviation)?;
    let mut wants_inverse = inverted;
    if inverted && let Some(inner) = reciprocal(e, root) {
        nodes.push(root);
        root = e.producer(inner)?;
        wants_inverse = false;
    }
    let shifted = match (pattern::unary(e, root, "Sqrt"), pattern::power(e, root)) {
        (Some(v), _) if !wants_inverse => v,
        (_, Some((v, 0.5))) if !wants_inverse => v,
        (_, Some((v, -0.5))) if wants_inverse => v,
        _ => return None,
    };
    let sum = e.producer(shifted)?;
    let (variance, epsilon) = pattern::with_scalar(e, sum, "Add")?;
    let mean_square = made_by(e, variance, "ReduceMean")?;
    let square = e.producer(e.input(mean_square, 0)?)?;
    let (squared, exponent) = pattern::power(e, square)?;
    let same = squared == centred || is_centred(e, squared) == Some((x, mean));
    if exponent != 2.0 || !same || mean_axis(e, mean_square)? != axis {
        return None;
    }
    nodes.extend([root, sum, mean_square, square, e.producer(squared)?]);
    nodes.sort();
    nodes.dedup();
    Some(Found { x, axis, epsilon, nodes })
}

fn reciprocal(e: &Editor, id: NodeId) -> Option<ValueId> {
    pattern::unary(e, id, "Reciprocal").or_else(|| {
        let (one, v) = pattern::binary(e, id, "Div")?;
        (pattern::scalar(e, one)? == 1.0).then_some(v)
    })
}

/// x and the node of its mean, if the value is their difference.
fn is_centred(e: &Editor, value: ValueId) -> Option<(ValueId, NodeId)> {
    let (x, mean) = pattern::binary(e, e.producer(value)?, "Sub")?;
    Some((x, made_by(e, mean, "ReduceMean")?))
}

/// The first of the trailing axes that a ReduceMean averages, kept as size 1.
fn mean_axis(e: &Editor, id: NodeId) -> Option<usize> {
    let node = e.node(id);
    let rank = e.shape(e.input(id, 0)?).len();
    let listed = match pattern::ints(&*node.op, "axes") {
        Some(axes) => axes,
        None => e.operands(&node.inputs).integers(1, "axes").ok()??,
    };
    let mut axes: Vec<i64> =
        listed.into_iter().map(|a| if a < 0 { a + rank as i64 } else { a }).collect();
    axes.sort_unstable();
    let first = usize::try_from(*axes.first()?).ok()?;
    let trailing = axes.iter().enumerate().all(|(i, &a)| a == (first + i) as i64)
        && first + axes.len() == rank;
    (trailing && e.shape(e.output(id)?).len() == rank).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{
        ModelValueId,
        passes::testing::{Build, check, summary},
    };

    fn mean(b: &mut Build, x: ModelValueId) -> ModelValueId {
        let axes = b.ints(&[-1]);
        b.op("ReduceMean", &[x, axes])
    }

    fn deviation(b: &mut Build, square: ModelValueId) -> ModelValueId {
        let (variance, epsilon) = (mean(b, square), b.scalar(1e-5));
        let sum = b.op("Add", &[variance, epsilon]);
        b.op("Sqrt", &[sum])
    }

    #[test]
    fn divided_by_the_root_of_a_power() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 8]);
        let (gamma, beta, two) = (b.weights(&[8]), b.weights(&[1, 1, 8]), b.scalar(2.0));
        let m = mean(&mut b, x);
        let centred = b.op("Sub", &[x, m]);
        let square = b.op("Pow", &[centred, two]);
        let root = deviation(&mut b, square);
        let y = b.op("Div", &[centred, root]);
        let y = b.op("Mul", &[y, gamma]);
        let y = b.op("Add", &[beta, y]);
        let after = check(&b.graph(&[y]), &[run], 1e-5);
        assert_eq!(summary(&after), "LayerNormalization 1");
        assert_eq!(after.nodes[0].origin.len(), 9);
    }

    #[test]
    fn times_the_reciprocal_root_of_a_product_without_affine_part() {
        let mut b = Build::new();
        let x = b.input(&[2, 8]);
        let one = b.scalar(1.0);
        let m = mean(&mut b, x);
        let (centred, again) = (b.op("Sub", &[x, m]), b.op("Sub", &[x, m]));
        let square = b.op("Mul", &[again, again]);
        let root = deviation(&mut b, square);
        let inverse = b.op("Div", &[one, root]);
        let y = b.op("Mul", &[inverse, centred]);
        let after = check(&b.graph(&[y]), &[run], 1e-5);
        assert_eq!(summary(&after), "LayerNormalization 1");
    }

    #[test]
    fn statistics_wanted_elsewhere_stay() {
        let mut b = Build::new();
        let x = b.input(&[2, 8]);
        let m = mean(&mut b, x);
        let centred = b.op("Sub", &[x, m]);
        let square = b.op("Mul", &[centred, centred]);
        let root = deviation(&mut b, square);
        let y = b.op("Div", &[centred, root]);
        let after = check(&b.graph(&[y, root]), &[run], 1e-5);
        assert!(summary(&after).contains("ReduceMean 2"));
    }
}
