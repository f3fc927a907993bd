//! Chains of elementwise operators become one operator with a longer expression.

use std::sync::Arc;

use super::editor::Editor;
use crate::{
    ir::{NodeId, ValueId},
    ops::elementwise::{Arg, Elementwise, Expr},
    tensor::DType,
};

/// Instructions of one operator at most.
const MAX_CODE: usize = 24;
/// Inputs of one operator at most: with the output they fit a GPU's bindings.
const MAX_INPUTS: usize = 6;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() {
            extend(e, id);
        }
    }
}

/// An expression and the values it reads, each once.
struct Formula {
    expr: Expr,
    inputs: Vec<ValueId>,
}

/// Makes the node compute what its elementwise producers compute, as long as it may.
fn extend(e: &mut Editor, id: NodeId) -> Option<()> {
    let mut formula = formula(e, id)?;
    let output = e.output(id)?;
    let mut absorbed = Vec::new();
    let mut at = 0;
    while at < formula.inputs.len() {
        match absorb(e, id, output, &formula, at) {
            Some((longer, producer)) => {
                formula = longer;
                absorbed.push(producer);
                at = 0;
            }
            None => at += 1,
        }
    }
    if absorbed.is_empty() {
        return None;
    }
    let op = Arc::new(Elementwise::new(formula.expr));
    let inputs = formula.inputs.into_iter().map(Some).collect();
    e.fuse(id, &absorbed, id, op, inputs);
    Some(())
}

fn absorb(
    e: &Editor,
    id: NodeId,
    output: ValueId,
    outer: &Formula,
    at: usize,
) -> Option<(Formula, NodeId)> {
    let value = outer.inputs[at];
    let producer = e.producer(value)?;
    if e.shape(value) != e.shape(output) || !e.used_only_by(value, &[id]) {
        return None;
    }
    let inner = formula(e, producer)?;
    let mut inputs = inner.inputs.clone();
    let place: Vec<usize> = outer
        .inputs
        .iter()
        .map(|input| {
            inputs.iter().position(|i| i == input).unwrap_or_else(|| {
                // The absorbed value itself needs no place.
                if *input != value {
                    inputs.push(*input);
                }
                inputs.len() - 1
            })
        })
        .collect();
    let expr = outer.expr.compose(at, &inner.expr, |i| place[i]);
    let short = expr.code().len() <= MAX_CODE && inputs.len() <= MAX_INPUTS;
    let formula = Formula { expr, inputs };
    (short && infers(e, &formula, output)).then_some((formula, producer))
}

/// Whether the operator still makes a value of the same type.
fn infers(e: &Editor, formula: &Formula, output: ValueId) -> bool {
    use crate::ops::Op;
    let inputs: Vec<_> = formula.inputs.iter().copied().map(Some).collect();
    let op = Elementwise::new(formula.expr.clone());
    op.infer(&e.operands(&inputs)).is_ok_and(|types| types[..] == [e.ty(output).clone()])
}

/// The formula of an elementwise node on floats (and truth values), its numbers put in.
fn formula(e: &Editor, id: NodeId) -> Option<Formula> {
    let node = e.get(id)?;
    let op = node.op.downcast::<Elementwise>()?;
    let output = e.output(id)?;
    let float = |v: ValueId| matches!(e.ty(v).dtype, DType::F32 | DType::Bool);
    if !node.inputs.iter().flatten().chain([&output]).all(|v| float(*v)) {
        return None;
    }
    let bound = op.bound(&e.operands(&node.inputs));
    let mut inputs = Vec::new();
    let expr = bound.with_inputs(|i| {
        let Some(value) = node.inputs[i] else { return Arg::Input(i) };
        let place = inputs.iter().position(|v| *v == value).unwrap_or_else(|| {
            inputs.push(value);
            inputs.len() - 1
        });
        Arg::Input(place)
    });
    let formula = Formula { expr, inputs };
    infers(e, &formula, output).then_some(formula)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::testing::{Build, check, summary};

    #[test]
    fn chains_with_broadcast_operands_are_one() {
        let mut b = Build::new();
        let (x, y, v) = (b.input(&[2, 3, 4]), b.input(&[2, 3, 4]), b.input(&[4]));
        let c = b.scalar(0.5);
        let z = b.op("Add", &[x, v]);
        let z = b.op("Mul", &[z, c]);
        let square = b.op("Mul", &[z, z]);
        let w = b.op("Exp", &[y]);
        let z = b.op("Sub", &[square, w]);
        let z = b.op("Max", &[z, x]);
        let after = check(&b.graph(&[z]), &[run], 1e-6);
        assert_eq!(summary(&after), "Elementwise 1");
        assert_eq!(after.nodes[0].inputs.len(), 3);
        assert_eq!(after.nodes[0].origin.len(), 6);
    }

    #[test]
    fn what_others_read_or_is_smaller_stays() {
        let mut b = Build::new();
        let (x, v) = (b.input(&[2, 3]), b.input(&[3]));
        // Fewer elements: computing it per row would repeat it.
        let small = b.op("Exp", &[v]);
        let y = b.op("Add", &[x, small]);
        let z = b.op("Sqrt", &[y]);
        let w = b.op("Abs", &[y]);
        let after = check(&b.graph(&[z, w]), &[run], 1e-6);
        assert_eq!(after.nodes.len(), 4, "{after}");
    }

    #[test]
    fn integers_are_left_alone() {
        let mut b = Build::new();
        let x = b.input_of(DType::I64, &[4]);
        let y = b.op("Add", &[x, x]);
        let y = b.op("Mul", &[y, x]);
        let after = check(&b.graph(&[y]), &[run], 0.0);
        assert_eq!(summary(&after), "Add 1, Mul 1");
    }
}
