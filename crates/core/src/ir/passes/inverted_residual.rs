//! A depthwise convolution takes in the pointwise ones around it where what lies between them is
//! large: as one operator it never leaves the cache.

use std::sync::Arc;

use sparoa_kernels::{
    Arithmetic,
    conv::{Conv2dParams, InvertedResidual as Kernel},
};

use super::editor::Editor;
use crate::{
    ir::{NodeId, ValueId},
    ops::{
        Variant,
        conv::{Conv, Layout, ResidualKind},
        inverted_residual::InvertedResidual,
    },
    tensor::{DType, count_zeros},
};

/// Bytes between two stages, per image, from which they are worth fusing: a good part of a
/// second-level cache.
const MIN_BYTES: usize = 192 * 1024;

/// Share of zeros in the weights of both pointwise stages from which a block pays at any size:
/// the sparse kernel keeps pixels in place through all stages.
const PRUNED: f64 = 0.75;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some()
            && let Some(block) = block(e, id)
        {
            fuse(e, id, block);
        }
    }
}

/// A channels-last convolution with constant weights.
fn conv(e: &Editor, id: NodeId) -> Option<&Conv> {
    let conv = e.node(id).op.downcast::<Conv>()?;
    let is_constant = |i: usize| match e.input(id, i) {
        Some(value) => e.constant(value).is_some(),
        None => true,
    };
    let f32 = e.ty(e.input(id, 0)?).dtype == DType::F32;
    (conv.layout == Layout::Nhwc && f32 && is_constant(1) && is_constant(2)).then_some(conv)
}

/// The size of a convolution as the kernels see it, and its number of images.
fn params(e: &Editor, id: NodeId) -> Option<(Conv2dParams, usize)> {
    let conv = conv(e, id)?;
    let shape = conv.shape(&e.operands(&e.node(id).inputs)).ok()?;
    let flat = shape.geometry.two_dimensional()?;
    let params = shape.params(&flat);
    (e.shape(e.input(id, 0)?).len() == 4).then_some((params, shape.batch))
}

fn is_pointwise(e: &Editor, id: NodeId) -> bool {
    params(e, id).is_some_and(|(p, _)| {
        p.kernel == [1, 1] && p.stride == [1, 1] && p.pads == [0; 4] && p.groups == 1
    })
}

/// Whether what lies between two stages, one of them pointwise, is so large that it pays to fuse.
fn is_large(e: &Editor, pointwise: NodeId, value: ValueId) -> bool {
    let images = params(e, pointwise).map_or(1, |(_, images)| images.max(1));
    let between = e.ty(value).bytes() / images;
    // Every strip reads the weights again.
    let weights = e.input(pointwise, 1).map_or(0, |w| e.ty(w).bytes());
    between >= MIN_BYTES && between >= 2 * weights
}

fn is_pruned(e: &Editor, id: NodeId) -> bool {
    let Some(weight) = e.constant_input(id, 1) else { return false };
    let weight = weight.reader();
    let share = |w: &[f32]| count_zeros(w) as f64 / w.len().max(1) as f64;
    weight.as_slice().is_some_and(|w| share(w) >= PRUNED)
}

/// A depthwise convolution with the pointwise ones that it takes in.
struct Block {
    before: Option<NodeId>,
    depthwise: Conv,
    after: Option<NodeId>,
}

fn block(e: &Editor, id: NodeId) -> Option<Block> {
    let (own, _) = params(e, id)?;
    if !Kernel::fits(&own) {
        return None;
    }
    let depthwise = conv(e, id)?.clone();
    let (input, output) = (e.input(id, 0)?, e.output(id)?);
    let before = e.producer(input).filter(|&p| {
        e.only_user(input) == Some(id)
            && conv(e, p).is_some_and(|c| c.residual == ResidualKind::None)
            && is_pointwise(e, p)
    });
    let after = match depthwise.residual {
        ResidualKind::None => e.only_user(output),
        _ => None,
    };
    let after = after.filter(|&a| e.input(a, 0) == Some(output) && is_pointwise(e, a));
    let pruned = after.is_some() && before.into_iter().chain(after).all(|p| is_pruned(e, p));
    let before = before.filter(|&p| pruned || is_large(e, p, input));
    let after = after.filter(|&p| pruned || is_large(e, p, output));
    (before.is_some() || after.is_some()).then_some(Block { before, depthwise, after })
}

fn fuse(e: &mut Editor, id: NodeId, block: Block) -> Option<()> {
    let Block { before, depthwise, after } = block;
    let last = after.unwrap_or(id);
    let residual = conv(e, last)?.residual;
    let op = InvertedResidual {
        arithmetic: Arithmetic::default(),
        variant: Variant::Fastest,
        expand: before.and_then(|b| conv(e, b)).map(|c| c.activation),
        depthwise: Conv { residual: ResidualKind::None, ..depthwise },
        project: after.and_then(|a| conv(e, a)).map(|c| c.activation),
        residual,
    };
    let mut inputs = vec![e.input(before.unwrap_or(id), 0)];
    for stage in before.into_iter().chain([id]).chain(after) {
        inputs.extend([e.input(stage, 1), e.input(stage, 2)]);
    }
    if residual != ResidualKind::None {
        inputs.push(e.input(last, 3));
    }
    let others: Vec<NodeId> = before.into_iter().chain(after).collect();
    e.fuse(id, &others, last, Arc::new(op), inputs);
    Some(())
}
