//! Operators whose intermediate results are large and whose weights are small become one, which
//! computes slice by slice: the two products of a perceptron and the normalisation before them,
//! attention with its projections, a convolution and the pooling of its result.

use std::sync::Arc;

use super::editor::Editor;
use crate::{
    ir::NodeId,
    ops::{
        Op,
        attention::Attention,
        conv::{Conv, Layout},
        fused_layers::{FusedLayers, Layer, Source},
        gemm::Linear,
        norm::LayerNorm,
        pooling::Pooling,
    },
    tensor::DType,
};

/// Bytes between two layers, per image, from which they are worth fusing: more than a second-level
/// cache has for them.
const MIN_BYTES: usize = 1024 * 1024;
/// Bytes of weights, as f32, that every slice may read again.
const MAX_WEIGHTS: usize = 1280 * 1024;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() {
            fuse(e, id);
        }
    }
}

fn is<T: Op>(e: &Editor, id: NodeId) -> bool {
    e.node(id).op.is::<T>()
}

/// What makes this node's first input, if nobody else needs that or what lies between.
fn before(e: &Editor, id: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
    let mut value = e.input(id, 0)?;
    let (mut user, mut views) = (id, Vec::new());
    loop {
        let producer = e.producer(value)?;
        if e.only_user(value) != Some(user) || e.node(producer).outputs.len() != 1 {
            return None;
        }
        if !e.node(producer).op.is_view() {
            return Some((producer, views));
        }
        views.push(producer);
        user = producer;
        value = e.input(producer, 0)?;
    }
}

fn has_constants(e: &Editor, id: NodeId, inputs: std::ops::Range<usize>) -> bool {
    inputs.into_iter().all(|i| e.input(id, i).is_none_or(|value| e.constant(value).is_some()))
}

fn is_f32(e: &Editor, id: NodeId) -> bool {
    e.input(id, 0).is_some_and(|x| e.ty(x).dtype == DType::F32)
}

/// Bytes of the weight of a product of constant weights.
fn product(e: &Editor, id: NodeId) -> Option<usize> {
    (is::<Linear>(e, id) && has_constants(e, id, 1..3) && is_f32(e, id))
        .then(|| e.input(id, 1).map(|weight| e.ty(weight).bytes()))?
}

/// Nodes to fuse, from the last to the first, each with the views through which it reads the next.
type Chain = Vec<(NodeId, Vec<NodeId>)>;

fn fuse(e: &mut Editor, id: NodeId) -> Option<()> {
    let chain = perceptron(e, id).or_else(|| attention(e, id)).or_else(|| pooled(e, id))?;
    let between = chain[1..].iter().filter_map(|&(id, _)| e.output(id));
    if between.map(|value| e.ty(value).bytes()).sum::<usize>() >= MIN_BYTES {
        merge(e, &chain);
    }
    Some(())
}

/// Two products of few weights, and the normalisation of the first one's rows.
fn perceptron(e: &Editor, id: NodeId) -> Option<Chain> {
    let last = product(e, id)?;
    let (first, views) = before(e, id)?;
    if product(e, first)? + last > MAX_WEIGHTS {
        return None;
    }
    let mut chain = vec![(id, views), (first, Vec::new())];
    if let Some((norm, views)) = before(e, first)
        && is::<LayerNorm>(e, norm)
        && has_constants(e, norm, 1..e.node(norm).inputs.len())
    {
        chain[1].1 = views;
        chain.push((norm, Vec::new()));
    }
    Some(chain)
}

/// Attention between the product that makes queries, keys and values, and that of its result.
fn attention(e: &Editor, id: NodeId) -> Option<Chain> {
    let last = product(e, id)?;
    let (attention, views) = before(e, id)?;
    let packed = e.node(attention).op.downcast::<Attention>()?.packed;
    let (first, views_before) = before(e, attention)?;
    let fits = packed
        && has_constants(e, attention, 1..e.node(attention).inputs.len())
        && product(e, first)? + last <= MAX_WEIGHTS;
    fits.then(|| vec![(id, views), (attention, views_before), (first, Vec::new())])
}

/// A convolution whose result is pooled window by window.
fn pooled(e: &Editor, id: NodeId) -> Option<Chain> {
    let pool = e.node(id).op.downcast::<Pooling>()?;
    let (first, views) = before(e, id)?;
    let conv = e.node(first).op.downcast::<Conv>()?;
    let fits = pool.outputs == 1
        && [pool.layout, conv.layout] == [Layout::Nhwc; 2]
        && views.is_empty()
        && is_f32(e, first)
        && has_constants(e, first, 1..3);
    fits.then(|| vec![(id, views), (first, Vec::new())])
}

/// Makes the chain one node.
fn merge(e: &mut Editor, chain: &Chain) {
    let mut inputs = Vec::new();
    let mut layers = Vec::with_capacity(chain.len());
    for (i, (id, _)) in chain.iter().enumerate().rev() {
        let sources = e.node(*id).inputs.iter().enumerate().map(|(j, value)| match value {
            None => Source::Absent,
            Some(value) if j == 0 && i + 1 < chain.len() => {
                Source::Previous(e.shape(*value).to_vec())
            }
            Some(value) => {
                let known = inputs.iter().position(|&input| input == Some(*value));
                Source::Input(known.unwrap_or_else(|| {
                    inputs.push(Some(*value));
                    inputs.len() - 1
                }))
            }
        });
        let sources = sources.collect();
        layers.push(Layer { op: e.node(*id).op.clone(), inputs: sources });
    }
    let (last, _) = chain[0];
    let others: Vec<NodeId> = chain
        .iter()
        .flat_map(|(id, views)| std::iter::once(*id).chain(views.iter().copied()))
        .filter(|&id| id != last)
        .collect();
    e.fuse(last, &others, last, Arc::new(FusedLayers { layers }), inputs);
}
