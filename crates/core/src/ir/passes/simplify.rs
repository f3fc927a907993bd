//! Removes operators that hand their input on: Identity, Dropout, casts to the same type,
//! reshapes to the same shape, empty paddings, whole slices, sums with 0, products with 1.

use super::{editor::Editor, pattern};
use crate::ir::{NodeId, ValueId};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_none() {
            continue;
        }
        let Some(output) = e.output(id) else { continue };
        if gathers_everything(e, id) == Some(true) {
            let (name, x) = (e.node(id).name.clone(), e.input(id, 0));
            let shape = e.shape(output).to_vec();
            let (dims, op) = pattern::reshape_parts(e, &name, &shape);
            e.replace_op(id, op, vec![x, Some(dims)]);
        }
        let Some(source) = passed_on(e, id) else { continue };
        let others_unused = e
            .node(id)
            .outputs
            .iter()
            .flatten()
            .skip(1)
            .all(|&o| e.users(o).is_empty() && !e.is_output(o));
        if others_unused && e.can_replace(output, source) {
            e.replace_value(output, source);
            e.remove(id);
        }
    }
}

/// Whether the node is a Gather of all elements in order: a reshape.
fn gathers_everything(e: &Editor, id: NodeId) -> Option<bool> {
    let node = e.node(id);
    if node.op.op_type() != "Gather" {
        return None;
    }
    let (x, indices) = (e.input(id, 0)?, e.constant_input(id, 1)?);
    let rank = e.shape(x).len() as i64;
    let axis = pattern::int(&*node.op, "axis").unwrap_or(0);
    let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
    let size = *e.shape(x).get(axis)?;
    if indices.ty().len() != size {
        return None;
    }
    Some(indices.to_i64s()?.iter().enumerate().all(|(i, &v)| v == i as i64))
}

/// The input that the node's first output equals, if it does.
fn passed_on(e: &Editor, id: NodeId) -> Option<ValueId> {
    let x = e.input(id, 0)?;
    let same_type = e.ty(x) == e.ty(e.output(id)?);
    let op = &e.node(id).op;
    let unchanged = match op.op_type() {
        "Identity" | "Dropout" => same_type,
        "Cast" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Tile" => same_type,
        "Transpose" => {
            // Moving only dimensions of size 1 past each other is a matter for the view pass.
            pattern::permutation(e, id).is_some_and(|p| pattern::is_identity(&p))
        }
        "Concat" | "Sum" | "Mean" | "Max" | "Min" => e.node(id).inputs.len() == 1 && same_type,
        "Split" => e.node(id).outputs.len() == 1 && same_type,
        "Pad" => same_type && integers(e, id, 1, "pads")?.iter().all(|p| *p == 0),
        "Slice" => {
            let steps = match e.input(id, 4) {
                None => true,
                Some(_) => integers(e, id, 4, "steps")?.iter().all(|s| *s > 0),
            };
            same_type && steps
        }
        "Add" => return neutral(e, id, "Add", 0.0),
        "Mul" => return neutral(e, id, "Mul", 1.0),
        "Sub" => same_type && pattern::scalar(e, e.input(id, 1)?) == Some(0.0),
        "Div" | "Pow" => same_type && pattern::scalar(e, e.input(id, 1)?) == Some(1.0),
        _ => false,
    };
    unchanged.then_some(x)
}

fn neutral(e: &Editor, id: NodeId, op_type: &str, value: f32) -> Option<ValueId> {
    let (x, s) = pattern::with_scalar(e, id, op_type)?;
    (s == value && e.ty(x) == e.ty(e.output(id)?)).then_some(x)
}

/// Constant integers from an input, or from an attribute in old opsets.
fn integers(e: &Editor, id: NodeId, input: usize, attribute: &str) -> Option<Vec<i64>> {
    match e.input(id, input) {
        Some(value) => e.constant(value)?.to_i64s(),
        None => pattern::ints(&*e.node(id).op, attribute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::testing::{Build, check, counts};

    #[test]
    fn what_changes_nothing_goes() {
        let mut b = Build::new();
        let x = b.input(&[2, 3]);
        let (zero, one) = (b.scalar(0.0), b.scalar(1.0));
        let y = b.op("Identity", &[x]);
        let y = b.op("Add", &[zero, y]);
        let y = b.op("Mul", &[y, one]);
        let y = b.op("Relu", &[y]);
        let y = b.op("Sub", &[y, zero]);
        let y = b.op("Div", &[y, one]);
        let y = b.transpose(y, &[0, 1]);
        let y = b.reshape(y, &[0, -1]);
        let y = b.node("Concat", &[y], &[("axis", crate::ops::AttributeValue::Int(0))]);
        let graph = b.graph(&[y]);
        let after = check(&graph, &[run], 0.0);
        assert_eq!(counts(&after), [("Relu", 1)].into());
    }

    #[test]
    fn a_gather_of_everything_is_a_reshape() {
        let mut b = Build::new();
        let x = b.input(&[2, 3]);
        let all = b.constant(crate::tensor::Tensor::from_slice([1, 3, 1], &[0i64, 1, 2]));
        let y = b.node("Gather", &[x, all], &[("axis", crate::ops::AttributeValue::Int(1))]);
        let after = check(&b.graph(&[y]), &[run], 0.0);
        assert_eq!(counts(&after), [("Reshape", 1)].into());
    }

    #[test]
    fn outputs_stay_distinct_values() {
        let mut b = Build::new();
        let x = b.input(&[2]);
        let y = b.op("Relu", &[x]);
        let zero = b.scalar(0.0);
        let z = b.op("Add", &[y, zero]);
        let w = b.op("Add", &[x, zero]);
        let graph = b.graph(&[y, z, w]);
        let after = check(&graph, &[run], 0.0);
        assert_eq!(counts(&after), [("Relu", 1), ("Add", 2)].into());
    }
}
