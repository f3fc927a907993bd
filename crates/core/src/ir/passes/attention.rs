//! Attention written out: a product of queries and keys, scale, additive bias, softmax, a product
//! with values. Queries, keys and values are traced through whatever reshapes, transpositions and
//! slices an exporter puts around them, so that the operator reads the projections in place.

use std::sync::Arc;

use super::{
    attention_bias::{Addend, Bias, Sizes, combined},
    editor::Editor,
    pattern,
    strided::{self, Axis, Kind},
};
use crate::{
    ir::{NodeId, ValueId},
    ops::attention::{Attention, HeadLayout},
    tensor::DType,
};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some_and(|n| n.op.op_type() == "Softmax") {
            rewrite(e, id);
        }
    }
}

/// The way from the softmax down to the first product.
struct Scores {
    product: NodeId,
    scale: f32,
    biases: Vec<Bias>,
}

fn rewrite(e: &mut Editor, softmax: NodeId) -> Option<()> {
    let weights = e.output(softmax)?;
    let rank = e.shape(weights).len();
    let axis = pattern::int(&*e.node(softmax).op, "axis").unwrap_or(-1);
    if (axis != -1 && axis != rank as i64 - 1) || e.ty(weights).dtype != DType::F32 || rank < 3 {
        return None;
    }
    let second = e.only_user(weights)?;
    let (left, v) = pattern::binary(e, second, "MatMul")?;
    if left != weights || v == weights {
        return None;
    }
    let mut scores = Scores { product: softmax, scale: 1.0, biases: Vec::new() };
    descend(e, e.input(softmax, 0)?, &mut scores, 8)?;
    let (q, k) = pattern::binary(e, scores.product, "MatMul")?;
    let output = e.output(second)?;
    let sizes = sizes(e, q, k, v, weights)?;

    let bias = combined(e, &scores.biases, sizes)?;
    let name = e.node(second).name.clone();
    let (operands, layouts, packed, factor) = operands(e, &name, sizes, [q, k, v])?;
    let v_dim = *e.shape(v).last()?;
    let mut inputs: Vec<Option<ValueId>> = operands.into_iter().map(Some).collect();
    let mut causal = false;
    match bias {
        Addend::None => {}
        Addend::Causal => causal = true,
        Addend::Constant(tensor) => {
            inputs.resize(3, None);
            inputs.push(Some(e.add_constant(format!("{name}/bias"), tensor)));
        }
        Addend::Value(value) => {
            inputs.resize(3, None);
            inputs.push(Some(value));
        }
    }
    let [q_layout, k_layout, v_layout] = layouts;
    let op = Arc::new(Attention {
        heads: sizes.heads,
        q_layout,
        k_layout,
        v_layout,
        out_layout: HeadLayout::Bshd,
        packed,
        scale: scores.scale * factor,
        causal,
    });
    let shape = e.shape(output).to_vec();
    let origin = e.origins(&[scores.product, softmax]);
    let (_, result) = *e.rewrite(second, op, inputs).ok()?.first()?;
    e.add_origin(second, origin);
    let Sizes { batch, heads, q_len, .. } = sizes;
    debug_assert_eq!(e.ty(result).len(), batch * heads * q_len * v_dim);
    let split = pattern::reshape(
        e,
        &format!("{name}/heads"),
        result,
        &[batch, q_len, heads, v_dim],
        vec![],
    );
    let back = pattern::transpose(e, &format!("{name}/back"), split, &[0, 2, 1, 3], vec![]);
    let back = pattern::reshape(e, &format!("{name}/shape"), back, &shape, vec![]);
    e.replace_value(output, back);
    Some(())
}

/// Walks from the softmax's argument to the product of queries and keys.
fn descend(e: &Editor, value: ValueId, out: &mut Scores, depth: usize) -> Option<()> {
    let id = e.producer(value)?;
    if depth == 0 || e.is_output(value) || e.users(value).len() != 1 {
        return None;
    }
    let shape = e.shape(value);
    match e.node(id).op.op_type() {
        "MatMul" => {
            out.product = id;
            Some(())
        }
        "Mul" => {
            let (x, s) = pattern::with_scalar(e, id, "Mul")?;
            out.scale *= s;
            descend(e, x, out, depth - 1)
        }
        "Div" => {
            let (x, s) = pattern::binary(e, id, "Div")?;
            out.scale /= pattern::scalar(e, s)?;
            (e.shape(x) == shape).then_some(())?;
            descend(e, x, out, depth - 1)
        }
        "Add" => {
            let (a, b) = pattern::binary(e, id, "Add")?;
            [(a, b), (b, a)].into_iter().find_map(|(x, bias)| {
                if e.constant(x).is_some() || e.shape(x) != shape {
                    return None;
                }
                let mut inner = Scores { product: id, scale: out.scale, biases: Vec::new() };
                let leading = shape[..shape.len() - 2].to_vec();
                inner.biases.push(Bias { value: bias, factor: out.scale, leading });
                descend(e, x, &mut inner, depth - 1)?;
                out.product = inner.product;
                out.scale = inner.scale;
                out.biases.append(&mut inner.biases);
                Some(())
            })
        }
        _ if strided::kind(e, id) == Some(strided::Kind::Reshape) => {
            let x = e.input(id, 0)?;
            let source = e.shape(x);
            let same_rows = source.len() >= 2
                && shape.len() >= 2
                && source[source.len() - 2..] == shape[shape.len() - 2..];
            same_rows.then_some(())?;
            descend(e, x, out, depth - 1)
        }
        _ => None,
    }
}

/// Batch and heads from the leading dimensions: the last of them counts heads.
fn sizes(e: &Editor, q: ValueId, k: ValueId, v: ValueId, weights: ValueId) -> Option<Sizes> {
    let split = |x: ValueId| {
        let shape = e.shape(x);
        shape.len().checked_sub(2).map(|n| shape.split_at(n))
    };
    let ((q_lead, q_rows), (k_lead, k_rows)) = (split(q)?, split(k)?);
    let ((v_lead, v_rows), (w_lead, w_rows)) = (split(v)?, split(weights)?);
    let heads = *q_lead.last()?;
    let total: usize = q_lead.iter().product();
    let consistent = q_lead == k_lead
        && v_lead == w_lead
        && w_lead.last() == q_lead.last()
        && w_lead.iter().product::<usize>() == total
        && q_rows[1] == k_rows[0]
        && v_rows[0] == k_rows[1]
        && w_rows == [q_rows[0], k_rows[1]]
        && total > 0;
    consistent.then_some(Sizes {
        batch: total / heads.max(1),
        heads,
        q_len: q_rows[0],
        kv_len: k_rows[1],
    })
}

type Traced = (Vec<ValueId>, [HeadLayout; 3], bool, f32);

/// The operator's inputs: the projections in place where their strides allow, else the values as
/// they are.
fn operands(e: &mut Editor, name: &str, s: Sizes, [q, k, v]: [ValueId; 3]) -> Option<Traced> {
    let (head, v_head) = (*e.shape(q).last()?, *e.shape(v).last()?);
    let dims = |rows: usize, d: usize| [s.batch, s.heads, rows, d];
    let traced = [
        (strided::trace(e, q, true, true), dims(s.q_len, head), false),
        (strided::trace(e, k, true, true), dims(s.kv_len, head), true),
        (strided::trace(e, v, true, false), dims(s.kv_len, v_head), false),
    ]
    .map(|(view, dims, swapped)| {
        let mut axes = view.axes.clone();
        let rank = axes.len();
        if swapped {
            axes.swap(rank - 2, rank - 1);
        }
        let axes = strided::reshaped(&axes, &dims);
        (view, axes, dims)
    });
    let factors: Vec<f32> = traced.iter().map(|(view, ..)| strided::factor(e, view)).collect();

    let base = traced[0].0.base;
    let packed_row = 3 * s.heads * head;
    let packed = v_head == head
        && s.q_len == s.kv_len
        && e.ty(base).len() == s.batch * s.q_len * packed_row
        && traced.iter().enumerate().all(|(i, (view, axes, dims))| {
            let strides = [s.q_len * packed_row, head, packed_row, 1];
            view.base == base
                && view.offset == i * s.heads * head
                && axes.as_ref().is_some_and(|axes| has_strides(axes, dims, strides))
        });
    if packed {
        let shape = [s.batch, s.q_len, 3, s.heads, head];
        let base = pattern::reshape(e, &format!("{name}/packed"), base, &shape, vec![]);
        return Some((vec![base], [HeadLayout::Bshd; 3], true, factors[0] * factors[1]));
    }
    let mut values = Vec::new();
    let mut layouts = [HeadLayout::Bhsd; 3];
    let mut factor = 1.0;
    for (i, (view, axes, dims)) in traced.into_iter().enumerate() {
        let [b, h, rows, d] = dims;
        let whole = view.offset == 0 && e.ty(view.base).len() == b * h * rows * d;
        let is = |strides| axes.as_ref().is_some_and(|a| whole && has_strides(a, &dims, strides));
        let (value, layout, shape) = if is([h * rows * d, rows * d, d, 1]) {
            (view.base, HeadLayout::Bhsd, dims)
        } else if is([rows * h * d, d, h * d, 1]) {
            (view.base, HeadLayout::Bshd, [b, rows, h, d])
        } else {
            let value = if i == 1 { untransposed(e, name, k) } else { [q, k, v][i] };
            values.push(pattern::reshape(e, &format!("{name}/input"), value, &dims, vec![]));
            continue;
        };
        factor *= factors[i];
        layouts[i] = layout;
        values.push(pattern::reshape(e, &format!("{name}/input"), value, &shape, vec![]));
    }
    Some((values, layouts, false, factor))
}

fn has_strides(axes: &[Axis], dims: &[usize; 4], strides: [usize; 4]) -> bool {
    axes.iter()
        .zip(dims)
        .zip(strides)
        .all(|((axis, &size), stride)| axis.size == size && (size == 1 || axis.stride == stride))
}

/// Keys as rows again.
fn untransposed(e: &mut Editor, name: &str, k: ValueId) -> ValueId {
    let rank = e.shape(k).len();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    pattern::transpose(e, &format!("{name}/keys"), k, &perm, vec![])
}

/// Where the transposition behind an attention could not be removed, the operator writes in that
/// order itself.
pub(super) fn settle(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() {
            settle_one(e, id);
        }
    }
}

fn settle_one(e: &mut Editor, id: NodeId) -> Option<()> {
    let op = e.node(id).op.downcast::<Attention>()?.clone();
    // The end of the chain of views behind the operator.
    let mut end = e.output(id)?;
    while let Some(next) = e.only_user(end)
        && strided::kind(e, next).is_some_and(|k| k != Kind::Select)
    {
        end = e.output(next)?;
    }
    let output = e.output(id)?;
    let view = strided::trace(e, end, false, false);
    let &[batch, second, third, d] = e.shape(output) else { return None };
    let swapped = [batch, third, second, d];
    let axes = strided::reshaped(&view.axes, &swapped).filter(|_| view.base == output)?;
    let strides = [second * third * d, d, third * d, 1];
    // Nothing moves: a reshape, if anything.
    if view.merged().len() <= 1 || !has_strides(&axes, &swapped, strides) {
        return None;
    }
    let out_layout = match op.out_layout {
        HeadLayout::Bhsd => HeadLayout::Bshd,
        HeadLayout::Bshd => HeadLayout::Bhsd,
    };
    let (inputs, name) = (e.node(id).inputs.clone(), e.node(id).name.clone());
    let shape = e.shape(end).to_vec();
    let moved = e.rewrite(id, Arc::new(Attention { out_layout, ..op }), inputs).ok()?;
    let (_, new) = *moved.first()?;
    let new = pattern::reshape(e, &format!("{name}/shape"), new, &shape, vec![]);
    let last = e.producer(end)?;
    e.replace_value(end, new);
    e.remove(last);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{
            ModelValueId,
            passes::{
                cse, linear,
                testing::{Build, check, summary},
                views,
            },
        },
        ops::AttributeValue,
        tensor::{Tensor, TensorType},
    };

    const PASSES: &[fn(&mut Editor)] = &[linear::run, cse::run, run, views::run, settle];
    const HEADS: i64 = 2;
    const HEAD: i64 = 4;

    fn softmax(b: &mut Build, x: ModelValueId) -> ModelValueId {
        b.node("Softmax", &[x], &[("axis", AttributeValue::Int(-1))])
    }

    fn part(b: &mut Build, x: ModelValueId, i: i64) -> ModelValueId {
        let index = b.constant(Tensor::scalar(i));
        b.node("Gather", &[x, index], &[("axis", AttributeValue::Int(0))])
    }

    /// softmax(q k^T) v with the heads put side by side again.
    fn attend(
        b: &mut Build,
        [q, k, v]: [ModelValueId; 3],
        scores: impl Fn(&mut Build, ModelValueId) -> ModelValueId,
    ) -> ModelValueId {
        let k = b.transpose(k, &[0, 1, 3, 2]);
        let s = b.op("MatMul", &[q, k]);
        let s = scores(b, s);
        let s = softmax(b, s);
        let y = b.op("MatMul", &[s, v]);
        let y = b.transpose(y, &[0, 2, 1, 3]);
        b.reshape(y, &[0, 0, -1])
    }

    /// Queries, keys and values from one projection.
    fn packed(b: &mut Build, x: ModelValueId) -> [ModelValueId; 3] {
        let w = b.weights(&[8, 3 * 8]);
        let qkv = b.op("MatMul", &[x, w]);
        let qkv = b.reshape(qkv, &[0, 0, 3, HEADS, HEAD]);
        let qkv = b.transpose(qkv, &[2, 0, 3, 1, 4]);
        [0, 1, 2].map(|i| part(b, qkv, i))
    }

    #[test]
    fn one_projection_is_read_in_place() {
        let mut b = Build::new();
        let x = b.input(&[2, 5, 8]);
        let [q, k, v] = packed(&mut b, x);
        let scale = b.scalar(0.5);
        let q = b.op("Mul", &[q, scale]);
        let y = attend(&mut b, [q, k, v], |_, s| s);
        let after = check(&b.graph(&[y]), PASSES, 1e-5);
        assert_eq!(summary(&after), "Attention 1, Linear 1");
        let op = after.nodes.iter().find_map(|n| n.op.downcast::<Attention>()).unwrap();
        assert!(op.packed && op.scale == 0.5, "{op:?}");
    }

    #[test]
    fn three_projections_scaled_scores_and_a_mask() {
        let mut b = Build::new();
        let x = b.input(&[2, 5, 8]);
        let mask = b.input(&[2, 1, 1, 5]);
        let heads = [0, 1, 2].map(|_| {
            let w = b.weights(&[8, 8]);
            let p = b.op("MatMul", &[x, w]);
            let p = b.reshape(p, &[0, 0, HEADS, HEAD]);
            b.transpose(p, &[0, 2, 1, 3])
        });
        let y = attend(&mut b, heads, |b, s| {
            let two = b.scalar(2.0);
            let s = b.op("Div", &[s, two]);
            b.op("Add", &[s, mask])
        });
        let after = check(&b.graph(&[y]), PASSES, 1e-5);
        assert_eq!(summary(&after), "Attention 1, Linear 3");
    }

    #[test]
    fn windows_with_position_bias_and_mask() {
        let mut b = Build::new();
        // Three windows in each of two images.
        let x = b.input(&[6, 5, 8]);
        let heads = packed(&mut b, x);
        let (bias, mask) = (b.weights(&[1, HEADS as usize, 5, 5]), b.weights(&[1, 3, 1, 5, 5]));
        let y = attend(&mut b, heads, |b, s| {
            let s = b.op("Add", &[s, bias]);
            let s = b.reshape(s, &[2, 3, HEADS, 5, 5]);
            let s = b.op("Add", &[s, mask]);
            b.reshape(s, &[-1, HEADS, 5, 5])
        });
        let after = check(&b.graph(&[y]), PASSES, 1e-5);
        assert_eq!(summary(&after), "Attention 1, Linear 1");
    }

    #[test]
    fn causal_mask() {
        let mut b = Build::new();
        let x = b.input(&[1, 4, 8]);
        let heads = packed(&mut b, x);
        let mask: Vec<f32> =
            (0..16).map(|i| if i % 4 <= i / 4 { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mask = b.constant(Tensor::from_slice([4, 4], &mask));
        let y = attend(&mut b, heads, |b, s| b.op("Add", &[mask, s]));
        let after = check(&b.graph(&[y]), PASSES, 1e-5);
        assert_eq!(summary(&after), "Attention 1, Linear 1");
        let op = after.nodes.iter().find_map(|n| n.op.downcast::<Attention>()).unwrap();
        assert!(op.causal);
    }

    #[test]
    fn plain_operands_and_wanted_scores() {
        let mut b = Build::new();
        let [q, k, v] = [0, 1, 2].map(|_| b.input(&[3, 4, 8]));
        let k = b.transpose(k, &[0, 2, 1]);
        let s = b.op("MatMul", &[q, k]);
        let s = softmax(&mut b, s);
        let y = b.op("MatMul", &[s, v]);
        let t = b.op("MatMul", &[v, k]);
        let t = b.op("Tanh", &[t]);
        let t = softmax(&mut b, t);
        let z = b.op("MatMul", &[t, v]);
        let after = check(&b.graph(&[y, z, t]), PASSES, 1e-5);
        // The one transposition is of the keys of the second product.
        let expected = "Attention 1, MatMul 2, Softmax 1, Tanh 1, Transpose 1";
        assert_eq!(summary(&after), expected, "{after}");
        assert_eq!(after.value(after.outputs[0]).ty, TensorType::f32([3, 4, 8]));
    }
}
