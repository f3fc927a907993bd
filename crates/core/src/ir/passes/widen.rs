//! Half-precision graphs compute in f32: every f16 value becomes f32, with casts at the inputs
//! and outputs of the graph and around operators that insist on f16.

use super::{editor::Editor, pattern};
use crate::{
    ir::{NodeId, ValueId},
    ops::AttributeValue,
    tensor::{DType, Tensor, TensorType},
};

/// TensorProto's numbers of the types.
const FLOAT: i64 = 1;
const FLOAT16: i64 = 10;

pub(super) fn run(e: &mut Editor) {
    if e.value_ids().all(|v| e.ty(v).dtype != DType::F16) {
        return;
    }
    // Where each f16 value is in f32, by value index.
    let mut wide: Vec<Option<ValueId>> = vec![None; e.value_ids().count()];
    for value in e.value_ids() {
        if e.ty(value).dtype != DType::F16 {
            continue;
        }
        if let Some(tensor) = e.constant(value) {
            let (halves, ty) = (Tensor::clone(tensor), TensorType::f32(e.shape(value)));
            let tensor = halves.made(ty, |halves| {
                let wide = halves.widened().expect("the value is f16");
                halves.release();
                wide
            });
            let name = format!("{}/f32", e.value(value).name);
            wide[value.index()] = Some(e.add_constant(name, tensor));
        } else if e.producer(value).is_none() {
            let name = format!("{}/f32", e.value(value).name);
            let cast = cast_op(FLOAT);
            wide[value.index()] = e.add_node(&name, cast, &[Some(value)], Vec::new()).ok();
        }
    }
    let ids: Vec<NodeId> = e.ids().collect();
    for id in ids {
        let touches = |v: &ValueId| e.ty(*v).dtype == DType::F16;
        let node = e.node(id);
        if node.inputs.iter().chain(&node.outputs).flatten().any(touches)
            && wide_inputs_known(e, id, &wide)
        {
            widen_node(e, id, &mut wide);
        }
    }
}

fn cast_op(to: i64) -> std::sync::Arc<dyn crate::ops::Op> {
    pattern::make("", "Cast", &[("to", AttributeValue::Int(to))])
        .expect("Cast is registered and takes a type")
}

/// False for the casts that this pass itself adds.
fn wide_inputs_known(e: &Editor, id: NodeId, wide: &[Option<ValueId>]) -> bool {
    let node = e.node(id);
    let own = node.outputs.iter().flatten().any(|o| wide.contains(&Some(*o)));
    !own && node
        .inputs
        .iter()
        .flatten()
        .all(|v| e.ty(*v).dtype != DType::F16 || wide.get(v.index()).is_some_and(Option::is_some))
}

/// Gives the node f32 inputs and outputs; where it refuses, it stays between casts.
fn widen_node(e: &mut Editor, id: NodeId, wide: &mut Vec<Option<ValueId>>) {
    let old_outputs = e.node(id).outputs.clone();
    let old_types = e.output_types(id);
    let name = e.node(id).name.clone();
    let is_cast = e.node(id).op.op_type() == "Cast";
    let op = if is_cast && old_types[0].dtype == DType::F16 {
        cast_op(FLOAT)
    } else {
        e.node(id).op.clone()
    };
    let inputs: Vec<Option<ValueId>> = e
        .node(id)
        .inputs
        .iter()
        .map(|v| v.map(|v| wide.get(v.index()).copied().flatten().unwrap_or(v)))
        .collect();
    let expected = |ty: &TensorType| match ty.dtype {
        DType::F16 => TensorType::new(DType::F32, ty.shape.clone()),
        _ => ty.clone(),
    };
    let inferred = op.infer(&e.operands(&inputs));
    let fits = inferred.is_ok_and(|types| {
        types.iter().eq(old_types.iter().map(expected).collect::<Vec<_>>().iter())
    });
    if !fits {
        // The node keeps f16; what it makes is widened behind it.
        for old in old_outputs.into_iter().flatten() {
            if e.ty(old).dtype == DType::F16 {
                let cast = e.add_node(&format!("{name}/f32"), cast_op(FLOAT), &[Some(old)], vec![]);
                remember(wide, old, cast.ok());
            }
        }
        return;
    }
    let Ok(moved) = e.rewrite(id, op, inputs) else { return };
    for (old, new) in moved {
        if e.ty(old).dtype == DType::F16 {
            remember(wide, old, Some(new));
            // For outputs of the graph and nodes that insist on f16; dead code otherwise.
            e.restore(old, &format!("{name}/f16"), cast_op(FLOAT16), new);
        } else if e.can_replace(old, new) {
            e.replace_value(old, new);
        } else {
            let identity = pattern::make("", "Identity", &[]).expect("Identity is registered");
            e.restore(old, &format!("{name}/copy"), identity, new);
        }
    }
}

fn remember(wide: &mut Vec<Option<ValueId>>, old: ValueId, new: Option<ValueId>) {
    if wide.len() <= old.index() {
        wide.resize(old.index() + 1, None);
    }
    wide[old.index()] = new;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::testing::{Build, check, counts};

    #[test]
    fn halves_compute_as_floats() {
        let mut b = Build::new();
        let x = b.input_of(DType::F16, &[2, 3]);
        let halves: Vec<half::f16> = [0.5f32, -1.0, 2.0].map(half::f16::from_f32).into();
        let c = b.constant(Tensor::from_slice([3], &halves));
        let y = b.op("Mul", &[x, c]);
        let y = b.op("Relu", &[y]);
        let f = b.node("Cast", &[y], &[("to", AttributeValue::Int(FLOAT))]);
        let f = b.op("Exp", &[f]);
        let graph = b.graph(&[y, f]);
        let after = check(&graph, &[run, crate::ir::passes::simplify::run], 2e-3);
        assert_eq!(counts(&after), [("Cast", 2), ("Exp", 1), ("Mul", 1), ("Relu", 1)].into());
        let halves = after.values.iter().filter(|v| v.ty.dtype == DType::F16).count();
        assert_eq!(halves, 2, "{after}");
    }
}
