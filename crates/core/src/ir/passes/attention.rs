//! Attention written out: a product of queries and keys, scale, additive bias, softmax, a product
//! with values. Queries, keys and values are traced through whatever reshapes, transpositions and
//! slices an exporter puts around them, so that the operator reads the projections in place.

use std::sync::Arc;

use super::{
    editor::Editor,
    pattern,
    strided::{self, Axis},
};
use crate::{
    ir::{NodeId, ValueId},
    ops::attention::{Attention, HeadLayout},
    tensor::{DType, Tensor},
};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some_and(|n| n.op.op_type() == "Softmax") {
            rewrite(e, id);
        }
    }
}

/// Batch, heads, query rows, key rows.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    heads: usize,
    q_len: usize,
    kv_len: usize,
}

/// The way from the softmax down to the first product.
struct Scores {
    product: NodeId,
    scale: f32,
    biases: Vec<Bias>,
}

/// An addend of the scores.
struct Bias {
    value: ValueId,
    factor: f32,
    /// Leading dimensions of the scores where it is added.
    leading: Vec<usize>,
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

    let bias = combined_bias(e, &scores.biases, sizes)?;
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
    let origin: Vec<String> = [scores.product, softmax, second]
        .iter()
        .flat_map(|id| e.node(*id).origin.clone())
        .collect();
    let result = e.add_node(&name, op, &inputs, origin).ok()?;
    let Sizes { batch, heads, q_len, .. } = sizes;
    debug_assert_eq!(e.ty(result).len(), batch * heads * q_len * v_dim);
    let split =
        pattern::reshape(e, &format!("{name}/heads"), result, &[batch, q_len, heads, v_dim], vec![]);
    let back = pattern::transpose(e, &format!("{name}/back"), split, &[0, 2, 1, 3], vec![]);
    let back = pattern::reshape(e, &format!("{name}/shape"), back, &shape, vec![]);
    e.replace_value(output, back);
    e.remove(second);
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

/// What is added to the scores, all together.
enum Addend {
    None,
    Causal,
    Constant(Tensor),
    Value(ValueId),
}

fn combined_bias(e: &mut Editor, biases: &[Bias], sizes: Sizes) -> Option<Addend> {
    if biases.is_empty() {
        return Some(Addend::None);
    }
    let constants: Option<Vec<Constant>> =
        biases.iter().map(|b| constant_bias(e, b, sizes)).collect();
    if let Some(constants) = constants {
        let total = sum(&constants, sizes);
        return Some(if is_causal(&total, sizes) { Addend::Causal } else { Addend::Constant(total) });
    }
    // One that is computed: it has to be in the operator's form already.
    let [bias] = biases else { return None };
    let shape = e.shape(bias.value).to_vec();
    let full = [sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len];
    let lead = 4usize.checked_sub(shape.len())?;
    let fits = bias.leading == full[..2]
        && bias.factor == 1.0
        && e.ty(bias.value).dtype == DType::F32
        && shape.last() == Some(&sizes.kv_len)
        && shape.iter().zip(&full[lead..]).all(|(&d, &f)| d == 1 || d == f);
    fits.then_some(())?;
    let mut ranked = vec![1; lead];
    ranked.extend(shape);
    let value = pattern::reshape(e, "attention/bias", bias.value, &ranked, vec![]);
    Some(Addend::Value(value))
}

/// A constant addend as [batch, heads, rows, kv_len], each of the first three possibly short.
struct Constant {
    dims: [usize; 3],
    values: Vec<f32>,
}

fn constant_bias(e: &Editor, bias: &Bias, sizes: Sizes) -> Option<Constant> {
    let tensor = e.constant(bias.value)?;
    let values = tensor.as_slice::<f32>()?;
    let rank = bias.leading.len() + 2;
    let own = &tensor.ty().shape;
    let mut shape = vec![1; rank.checked_sub(own.len())?];
    shape.extend(own);
    // Where the heads begin among the leading dimensions.
    let at = (0..=bias.leading.len())
        .rev()
        .find(|&i| bias.leading[i..].iter().product::<usize>() == sizes.heads)?;
    let lead = &bias.leading;
    let from = (0..at).find(|&i| shape[i] != 1).unwrap_or(at);
    let batch: usize = lead[from..at].iter().product();
    let shared_heads = shape[at..rank - 2].iter().all(|&d| d == 1);
    let heads = if shared_heads { 1 } else { sizes.heads };
    let rows = shape[rank - 2];
    let mut full: Vec<usize> = lead[from..at].to_vec();
    full.extend(if shared_heads { vec![1; rank - 2 - at] } else { lead[at..].to_vec() });
    full.extend([rows, sizes.kv_len]);
    let expanded = broadcast(values, &shape[from..], &full);
    let factor = bias.factor;
    Some(Constant {
        dims: [batch, heads, rows],
        values: expanded.into_iter().map(|v| v * factor).collect(),
    })
}

/// The elements of `values` (of `shape`) repeated to `full`.
fn broadcast(values: &[f32], shape: &[usize], full: &[usize]) -> Vec<f32> {
    let mut strides = vec![0; shape.len()];
    let mut stride = 1;
    for (i, &d) in shape.iter().enumerate().rev() {
        strides[i] = if d == 1 { 0 } else { stride };
        stride *= d;
    }
    let total: usize = full.iter().product();
    let mut index = vec![0usize; full.len()];
    let mut at = 0;
    let mut result = Vec::with_capacity(total);
    for _ in 0..total {
        result.push(values[at]);
        for axis in (0..full.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < full[axis] {
                break;
            }
            at -= strides[axis] * full[axis];
            index[axis] = 0;
        }
    }
    result
}

fn sum(parts: &[Constant], sizes: Sizes) -> Tensor {
    let dim = |i: usize| parts.iter().map(|p| p.dims[i]).max().unwrap_or(1);
    let (batch, heads, rows) = (dim(0), dim(1), dim(2));
    let row_len = sizes.kv_len;
    let mut total = vec![0.0; batch * heads * rows * row_len];
    for part in parts {
        let [pb, ph, pr] = part.dims;
        for (i, row) in total.chunks_exact_mut(row_len).enumerate() {
            let (b, h, r) = (i / (heads * rows), i / rows % heads, i % rows);
            let source = ((b % pb) * ph + h % ph) * pr + r % pr;
            let values = &part.values[source * row_len..][..row_len];
            row.iter_mut().zip(values).for_each(|(t, v)| *t += v);
        }
    }
    Tensor::from_slice([batch, heads, rows, row_len], &total)
}

/// Zero up to the diagonal, minus infinity (or close) behind it.
fn is_causal(bias: &Tensor, sizes: Sizes) -> bool {
    let n = sizes.kv_len;
    bias.ty().shape == [1, 1, n, n]
        && sizes.q_len == n
        && n > 1
        && bias.as_slice::<f32>().is_some_and(|values| {
            values.iter().enumerate().all(|(i, &v)| match i % n <= i / n {
                true => v == 0.0,
                false => v <= -1e9,
            })
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
    axes.iter().zip(dims).zip(strides).all(|((axis, &size), stride)| {
        axis.size == size && (size == 1 || axis.stride == stride)
    })
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
    let next = e.only_user(e.output(id)?)?;
    if pattern::permutation(e, next)? != [0, 2, 1, 3] {
        return None;
    }
    let out_layout = match op.out_layout {
        HeadLayout::Bhsd => HeadLayout::Bshd,
        HeadLayout::Bshd => HeadLayout::Bhsd,
    };
    let inputs = e.node(id).inputs.clone();
    e.fuse(id, &[next], next, Arc::new(Attention { out_layout, ..op }), inputs);
    Some(())
}
