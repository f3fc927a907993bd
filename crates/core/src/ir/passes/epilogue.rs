//! Activations and residual additions move into the convolution or linear operator before them.

use std::sync::Arc;

use sparoa_kernels::Activation;

use super::{activation, editor::Editor, pattern};
use crate::{
    ir::{NodeId, ValueId},
    ops::{
        Op,
        conv::{Conv, ResidualKind},
        gemm::Linear,
    },
    tensor::DType,
};

/// Input of the residual.
const RESIDUAL: usize = 3;

pub(super) fn run(e: &mut Editor) {
    // Later operators first: of two that could take a sum, the later one can wait for the other.
    let ids: Vec<NodeId> = e.ids().collect();
    for id in ids.into_iter().rev() {
        while e.get(id).is_some() && (absorb_activation(e, id) || absorb_residual(e, id)) {}
    }
}

/// Activation and residual of an operator that has an epilogue.
fn state(e: &Editor, id: NodeId) -> Option<(Activation, ResidualKind)> {
    let op = &*e.node(id).op;
    if let Some(conv) = op.downcast::<Conv>() {
        return Some((conv.activation, conv.residual));
    }
    op.downcast::<Linear>().map(|l| (l.activation, l.residual))
}

fn with_epilogue(op: &dyn Op, activation: Activation, residual: ResidualKind) -> Arc<dyn Op> {
    match (op.downcast::<Conv>(), op.downcast::<Linear>()) {
        (Some(conv), _) => Arc::new(Conv { activation, residual, ..conv.clone() }),
        (_, Some(linear)) => Arc::new(Linear { activation, residual, ..linear.clone() }),
        _ => unreachable!("`state` found a Conv or a Linear"),
    }
}

fn absorb_activation(e: &mut Editor, id: NodeId) -> bool {
    try_activation(e, id).is_some()
}

fn try_activation(e: &mut Editor, id: NodeId) -> Option<()> {
    let (Activation::None, residual) = state(e, id)? else { return None };
    if residual == ResidualKind::AfterActivation {
        return None;
    }
    let x = e.output(id)?;
    if e.ty(x).dtype != DType::F32 || e.is_output(x) {
        return None;
    }
    let last = *e.users(x).last()?;
    let found = activation::find(e, last).filter(|f| f.x == x)?;
    if e.users(x).iter().any(|u| *u != last) {
        return None;
    }
    let op = with_epilogue(&*e.node(id).op, found.activation, residual);
    let inputs = e.node(id).inputs.clone();
    e.fuse(id, &[last], last, op, inputs);
    Some(())
}

fn absorb_residual(e: &mut Editor, id: NodeId) -> bool {
    try_residual(e, id).is_some()
}

fn try_residual(e: &mut Editor, id: NodeId) -> Option<()> {
    let (activation, ResidualKind::None) = state(e, id)? else { return None };
    let x = e.output(id)?;
    let next = e.only_user(x)?;
    let (a, b) = pattern::binary(e, next, "Add")?;
    let other: ValueId = if a == x { b } else { a };
    if other == x || e.ty(x).dtype != DType::F32 || e.ty(other) != e.ty(x) {
        return None;
    }
    let kind = match activation {
        Activation::None => ResidualKind::BeforeActivation,
        _ => ResidualKind::AfterActivation,
    };
    let op = with_epilogue(&*e.node(id).op, activation, kind);
    let mut inputs = e.node(id).inputs.clone();
    inputs.resize(RESIDUAL, None);
    inputs.push(Some(other));
    e.fuse(id, &[next], next, op, inputs);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::{
        linear,
        testing::{Build, check, summary},
    };

    #[test]
    fn activation_then_sum_and_sum_then_activation() {
        let mut b = Build::new();
        let x = b.input(&[1, 4, 5, 5]);
        let y = b.conv(x, [4, 4], 3);
        let y = b.op("Add", &[y, x]);
        let y = b.op("Relu", &[y]);
        let z = b.conv(y, [4, 4], 1);
        let z = b.op("Sigmoid", &[z]);
        let z = b.op("Add", &[y, z]);
        let z = b.op("Relu", &[z]);
        let after = check(&b.graph(&[z]), &[run], 1e-5);
        // Nothing follows a sum after an activation.
        assert_eq!(summary(&after), "Conv 2, Relu 1");
    }

    #[test]
    fn linear_and_bounds() {
        let mut b = Build::new();
        let x = b.input(&[3, 4]);
        let (w, low, high) = (b.weights(&[4, 4]), b.scalar(0.0), b.scalar(6.0));
        let y = b.op("MatMul", &[x, w]);
        let y = b.op("Clip", &[y, low, high]);
        let y = b.op("Add", &[x, y]);
        let after = check(&b.graph(&[y]), &[linear::run, run], 1e-5);
        assert_eq!(summary(&after), "Linear 1");
    }

    #[test]
    fn results_wanted_elsewhere_stay() {
        let mut b = Build::new();
        let (x, v) = (b.input(&[1, 2, 4, 4]), b.input(&[2, 1, 1]));
        let y = b.conv(x, [2, 2], 1);
        let z = b.op("Relu", &[y]);
        let twice = b.conv(z, [2, 2], 1);
        let twice = b.op("Add", &[twice, twice]);
        let small = b.conv(z, [2, 2], 1);
        let small = b.op("Add", &[small, v]);
        let after = check(&b.graph(&[y, twice, small]), &[run], 1e-5);
        assert_eq!(summary(&after), "Add 2, Conv 3, Relu 1");
    }
}
