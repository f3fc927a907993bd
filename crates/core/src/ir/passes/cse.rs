//! Common subexpressions: the same operator on the same inputs is computed once, and equal small
//! constants are one constant.

use std::collections::HashMap;

use super::editor::Editor;
use crate::{
    ir::{NodeId, ValueId},
    tensor::DType,
};

/// Constants up to this many bytes are compared.
const MAX_BYTES: usize = 1 << 10;

/// Nodes alike at first sight.
type Sight = (&'static str, Vec<Option<ValueId>>);

pub(super) fn run(e: &mut Editor) {
    merge_constants(e);
    let mut seen: HashMap<Sight, Vec<NodeId>> = HashMap::new();
    for id in e.ids() {
        let Some(node) = e.get(id) else { continue };
        if !node.op.is_pure() {
            continue;
        }
        let key = (node.op.op_type(), node.inputs.clone());
        let candidates = seen.entry(key).or_default();
        let twin = candidates.iter().copied().find(|other| {
            let other = e.node(*other);
            other.outputs.len() == node.outputs.len()
                && format!("{:?}", other.op) == format!("{:?}", node.op)
        });
        match twin {
            None => candidates.push(id),
            Some(twin) => merge(e, id, twin),
        }
    }
}

fn merge(e: &mut Editor, id: NodeId, twin: NodeId) {
    let pairs: Vec<_> =
        e.node(id).outputs.iter().copied().zip(e.node(twin).outputs.iter().copied()).collect();
    let possible = pairs.iter().all(|pair| match *pair {
        (None, _) => true,
        (Some(old), Some(new)) => e.can_replace(old, new),
        (Some(old), None) => e.users(old).is_empty() && !e.is_output(old),
    });
    if possible {
        for pair in pairs {
            if let (Some(old), Some(new)) = pair {
                e.replace_value(old, new);
            }
        }
        e.remove(id);
    }
}

fn merge_constants(e: &mut Editor) {
    let mut seen: HashMap<(DType, Vec<usize>, Vec<u8>), ValueId> = HashMap::new();
    for id in e.value_ids() {
        let Some(tensor) = e.constant(id) else { continue };
        if e.users(id).is_empty() || tensor.ty().bytes() > MAX_BYTES {
            continue;
        }
        let key = (tensor.ty().dtype, tensor.ty().shape.clone(), tensor.bytes().to_vec());
        let first = *seen.entry(key).or_insert(id);
        if first != id && e.can_replace(id, first) {
            e.replace_value(id, first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::testing::{Build, check, counts};

    #[test]
    fn twins_become_one() {
        let mut b = Build::new();
        let x = b.input(&[2, 3]);
        let (c, d) = (b.scalar(2.0), b.scalar(2.0));
        let (y, z) = (b.op("Mul", &[x, c]), b.op("Mul", &[x, d]));
        let (y, z) = (b.op("Exp", &[y]), b.op("Exp", &[z]));
        let sum = b.op("Add", &[y, z]);
        let other = b.op("Neg", &[x]);
        let twin = b.op("Neg", &[x]);
        let graph = b.graph(&[sum, other, twin]);
        let after = check(&graph, &[run], 0.0);
        // Two outputs of the graph stay two values.
        assert_eq!(counts(&after), [("Mul", 1), ("Exp", 1), ("Add", 1), ("Neg", 2)].into());
    }
}
