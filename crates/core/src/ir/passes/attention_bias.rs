//! What is added to attention scores before the softmax, brought into the form that the operator
//! takes: position biases, masks, both.

use super::{editor::Editor, pattern};
use crate::{
    ir::ValueId,
    tensor::{DType, Tensor},
};

/// The sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Batch.
    pub(super) batch: usize,
    /// Heads.
    pub(super) heads: usize,
    /// Query rows.
    pub(super) q_len: usize,
    /// Key rows.
    pub(super) kv_len: usize,
}

/// An addend of the scores.
pub(super) struct Bias {
    /// What is added.
    pub(super) value: ValueId,
    /// What it is multiplied with further on.
    pub(super) factor: f32,
    /// Leading dimensions of the scores where it is added.
    pub(super) leading: Vec<usize>,
}

/// What is added to the scores, all together.
pub(super) enum Addend {
    /// Nothing.
    None,
    /// A row sees the key rows up to its own.
    Causal,
    /// This.
    Constant(Tensor),
    /// This, computed at run time.
    Value(ValueId),
}

/// The sum of what is added to the scores, in the operator's form; `None` when it has none.
pub(super) fn combined(e: &mut Editor, biases: &[Bias], sizes: Sizes) -> Option<Addend> {
    if biases.is_empty() {
        return Some(Addend::None);
    }
    let constants: Option<Vec<Constant>> =
        biases.iter().map(|b| constant_bias(e, b, sizes)).collect();
    if let Some(constants) = constants {
        let total = sum(&constants, sizes);
        return Some(if is_causal(&total, sizes) {
            Addend::Causal
        } else {
            Addend::Constant(total)
        });
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
