//! Channels-last layout. Operators defined on NCHW get their NHWC twin between two
//! transpositions; then transpositions sink towards the outputs, through every operator that
//! commutes with them, until they meet their inverse.

use std::sync::Arc;

use sparoa_kernels::pool::Pool;

use super::{editor::Editor, pattern};
use crate::{
    ir::{NodeId, ValueId},
    ops::{self, AttributeValue, Operand, Operands, Permuted},
    tensor::{Tensor, TensorType},
};

/// Input of a residual.
const RESIDUAL: usize = 3;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() {
            channels_last(e, id);
        }
    }
}

/// Sinks transpositions; nodes must be in topological order.
pub(super) fn sink(e: &mut Editor) {
    let pool = Pool::single();
    for id in e.ids() {
        if e.get(id).is_some() && !absorb_transpose(e, id) {
            keep_reduced_dims(e, id);
            push_through(e, id, &pool);
        }
    }
}

/// [0, 2, 3, .., 1]
fn nhwc(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm[1..].rotate_left(1);
    perm
}

fn channels_last(e: &mut Editor, id: NodeId) -> Option<()> {
    let node = e.node(id);
    let op = node.op.channels_last()?;
    let rank = e.shape(e.input(id, 0)?).len();
    let one_output = node.outputs.iter().flatten().count() == 1;
    let output = e.output(id)?;
    if rank < 3 || !one_output || e.shape(output).len() != rank {
        return None;
    }
    let name = node.name.clone();
    let mut inputs = node.inputs.clone();
    let residual = inputs.get(RESIDUAL).copied().flatten().filter(|v| e.ty(*v) == e.ty(output));
    let residual = residual.filter(|_| node.op.op_type() == "Conv");
    let to = nhwc(rank);
    let mut transposed = |e: &mut Editor, i: usize| {
        let x = inputs[i]?;
        let x = pattern::transpose(e, &format!("{name}/nhwc"), x, &to, Vec::new());
        inputs[i] = Some(x);
        Some(())
    };
    transposed(e, 0)?;
    if residual.is_some() {
        transposed(e, RESIDUAL)?;
    }
    // Fails for types that the twin does not take; the transposition is dead code then.
    for (old, new) in e.rewrite(id, op, inputs).ok()? {
        let back = pattern::transpose_op(&pattern::inverse(&to));
        e.restore(old, &format!("{name}/nchw"), back, new);
    }
    Some(())
}

/// Source and permutation of a transposed value.
fn transposed(e: &Editor, value: ValueId) -> Option<(ValueId, Vec<usize>)> {
    let id = pattern::made_by(e, value, "Transpose")?;
    Some((e.input(id, 0)?, pattern::permutation(e, id)?))
}

/// Transpose of a Transpose: one, or none.
fn absorb_transpose(e: &mut Editor, id: NodeId) -> bool {
    let Some(outer) = pattern::permutation(e, id) else { return false };
    let Some((source, inner)) = e.input(id, 0).and_then(|x| transposed(e, x)) else { return true };
    let perm: Vec<usize> = outer.iter().map(|&p| inner[p]).collect();
    let Some(output) = e.output(id) else { return true };
    if pattern::is_identity(&perm) && e.can_replace(output, source) {
        e.replace_value(output, source);
        e.remove(id);
    } else {
        e.replace_op(id, pattern::transpose_op(&perm), vec![Some(source)]);
    }
    true
}

/// A reduction of a transposed value that drops dimensions keeps them instead, followed by a
/// reshape, so that the transposition can pass.
fn keep_reduced_dims(e: &mut Editor, id: NodeId) -> Option<()> {
    let node = e.node(id);
    transposed(e, e.input(id, 0)?)?;
    if pattern::int(&*node.op, "keepdims") != Some(0) {
        return None;
    }
    let attributes: Vec<(&str, AttributeValue)> = node
        .op
        .attributes()
        .into_iter()
        .map(|(k, v)| (k, if k == "keepdims" { AttributeValue::Int(1) } else { v }))
        .collect();
    let op = pattern::make("", node.op.op_type(), &attributes)?;
    let shape = e.shape(e.output(id)?).to_vec();
    let (name, inputs) = (node.name.clone(), node.inputs.clone());
    for (old, kept) in e.rewrite(id, op, inputs).ok()? {
        let (dims, op) = pattern::reshape_parts(e, &name, &shape);
        e.restore_many(old, &format!("{name}/shape"), op, vec![Some(kept), Some(dims)]);
    }
    Some(())
}

/// Where an input of the rewritten operator comes from.
enum Source {
    /// This value.
    Value(ValueId),
    /// A constant, transposed.
    Constant(Arc<Tensor>, Vec<usize>),
    /// This value, through a new transposition.
    Transposed(ValueId, Vec<usize>),
}

/// Replaces op(transposed inputs) by transpose(op'(inputs)), if that takes no more
/// transpositions.
fn push_through(e: &mut Editor, id: NodeId, pool: &Pool) -> Option<()> {
    let node = e.node(id);
    let rank = e.shape(e.output(id)?).len();
    let perm = node.inputs.iter().flatten().find_map(|v| {
        let (_, perm) = transposed(e, *v)?;
        (perm.len() == rank).then(|| pattern::inverse(&perm))
    })?;
    let outputs = e.output_types(id);
    if outputs.iter().any(|ty| ty.rank() != rank) {
        return None;
    }
    let inputs: Vec<Option<ValueId>> = node.inputs.clone();
    // Broadcast operands get the full rank first.
    let mut operands = e.operands(&inputs);
    let broadcasts = node.op.is::<ops::elementwise::Elementwise>();
    let mut widened: Vec<Option<Vec<usize>>> = vec![None; inputs.len()];
    for (operand, shape) in operands.iter_mut().zip(&mut widened) {
        let Some(o) = operand else { continue };
        if broadcasts && o.ty.rank() < rank && o.ty.len() != 1 {
            let mut full = vec![1; rank - o.ty.rank()];
            full.extend(&o.ty.shape);
            *operand = Some(Operand {
                ty: TensorType::new(o.ty.dtype, full.clone()),
                constant: match &o.constant {
                    Some(c) => Some(Arc::new(c.reshaped(full.clone())?)),
                    None => None,
                },
            });
            *shape = Some(full);
        }
    }
    let Permuted { op, inputs: perms } =
        node.op.permuted(&Operands { inputs: &operands, outputs: &outputs }, &perm)?;

    let mut sources = Vec::with_capacity(inputs.len());
    let (mut removed, mut added) = (0, 0);
    for (i, value) in inputs.iter().enumerate() {
        let Some(value) = *value else {
            sources.push(None);
            continue;
        };
        let perm = perms.get(i).cloned().flatten().filter(|p| !pattern::is_identity(p));
        let constant = operands[i].as_ref().and_then(|o| o.constant.clone());
        sources.push(Some(match (perm, constant) {
            (None, _) => Source::Value(value),
            (Some(perm), Some(constant)) => Source::Constant(constant, perm),
            (Some(perm), None) => match transposed(e, value) {
                Some((source, inner)) if cancels(&inner, &perm) => {
                    removed += e.ty(value).bytes();
                    Source::Value(source)
                }
                _ => {
                    added += e.ty(value).bytes();
                    Source::Transposed(value, perm)
                }
            },
        }));
    }
    if removed == 0 || added > removed {
        return None;
    }
    let name = node.name.clone();
    let mut new_inputs = Vec::with_capacity(sources.len());
    for (source, widened) in sources.into_iter().zip(widened) {
        new_inputs.push(match source {
            None => None,
            Some(Source::Value(v)) => Some(v),
            Some(Source::Constant(value, perm)) => {
                let value = transpose_constant(&value, &perm, pool)?;
                Some(e.add_constant(format!("{name}/constant"), value))
            }
            Some(Source::Transposed(v, perm)) => {
                let v = match widened {
                    None => v,
                    Some(full) => {
                        pattern::reshape(e, &format!("{name}/full"), v, &full, Vec::new())
                    }
                };
                let name = format!("{name}/transposed");
                Some(pattern::transpose(e, &name, v, &perm, Vec::new()))
            }
        });
    }
    let back = pattern::inverse(&perm);
    for (old, new) in e.rewrite(id, op, new_inputs).ok()? {
        e.restore(old, &format!("{name}/back"), pattern::transpose_op(&back), new);
    }
    Some(())
}

/// Whether transposing by `inner`, then by `outer`, changes nothing.
fn cancels(inner: &[usize], outer: &[usize]) -> bool {
    inner.len() == outer.len() && outer.iter().enumerate().all(|(i, &p)| inner[p] == i)
}

fn transpose_constant(value: &Tensor, perm: &[usize], pool: &Pool) -> Option<Tensor> {
    let op = pattern::transpose_op(perm);
    ops::evaluate(&*op, &[Some(value)], pool).ok()?.pop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::{
        testing::{Build, check, summary},
        views,
    };

    const LAYOUT: &[fn(&mut Editor)] = &[run, views::run, sink, views::run];

    #[test]
    fn transpositions_meet_at_the_edges() {
        let mut b = Build::new();
        let (x, v) = (b.input(&[1, 3, 6, 6]), b.weights(&[8, 1, 1]));
        let y = b.conv(x, [3, 8], 3);
        let y = b.op("Mul", &[y, v]);
        let left = b.conv(y, [8, 4], 1);
        let right = b.op("Tanh", &[y]);
        let y = b.node("Concat", &[left, right], &[("axis", AttributeValue::Int(1))]);
        let y = b.conv(y, [12, 2], 3);
        let y = b.op("GlobalAveragePool", &[y]);
        let y = b.node("Flatten", &[y], &[("axis", AttributeValue::Int(1))]);
        let after = check(&b.graph(&[y]), LAYOUT, 1e-5);
        let expected = "Concat 1, Conv 3, GlobalAveragePool 1, Mul 1, Tanh 1, Transpose 1";
        assert_eq!(summary(&after), expected);
    }

    #[test]
    fn patches_to_tokens_need_no_transposition() {
        let mut b = Build::new();
        let (x, token) = (b.input(&[1, 3, 8, 8]), b.weights(&[1, 1, 6]));
        let w = b.weights(&[6, 3, 4, 4]);
        let y = b.node("Conv", &[x, w], &[("strides", AttributeValue::Ints(vec![4, 4]))]);
        let y = b.reshape(y, &[0, 6, -1]);
        let y = b.transpose(y, &[0, 2, 1]);
        let y = b.node("Concat", &[token, y], &[("axis", AttributeValue::Int(1))]);
        let after = check(&b.graph(&[y]), LAYOUT, 1e-5);
        assert_eq!(summary(&after), "Concat 1, Conv 1, Transpose 1");
    }

    #[test]
    fn a_reduction_without_its_dimensions_passes() {
        let mut b = Build::new();
        let x = b.input(&[1, 3, 5, 4]);
        let axes = b.ints(&[2]);
        let y = b.conv(x, [3, 2], 3);
        let y = b.node("ReduceMax", &[y, axes], &[("keepdims", AttributeValue::Int(0))]);
        let y = b.op("Tanh", &[y]);
        let after = check(&b.graph(&[y]), LAYOUT, 1e-5);
        assert_eq!(summary(&after), "Conv 1, ReduceMax 1, Tanh 1, Transpose 2");
    }

    #[test]
    fn an_output_keeps_its_layout() {
        let mut b = Build::new();
        let x = b.input(&[1, 3, 5, 4]);
        let y = b.conv(x, [3, 2], 3);
        let z = b.op("Relu", &[y]);
        let after = check(&b.graph(&[y, z]), LAYOUT, 1e-5);
        assert_eq!(summary(&after), "Conv 1, Relu 1, Transpose 3");
    }

    #[test]
    fn convolutions_of_one_and_three_dimensions() {
        let mut b = Build::new();
        let (x, y) = (b.input(&[1, 2, 9]), b.input(&[1, 2, 4, 4, 4]));
        let (w, v) = (b.weights(&[3, 2, 3]), b.weights(&[2, 2, 1, 1, 1]));
        let x = b.op("Conv", &[x, w]);
        let y = b.op("Conv", &[y, v]);
        let after = check(&b.graph(&[x, y]), LAYOUT, 1e-5);
        assert_eq!(summary(&after), "Conv 2, Transpose 4");
    }
}
