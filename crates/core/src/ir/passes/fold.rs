//! Constant folding after rewrites: nodes whose inputs have become constant are computed now.

use sparoa_kernels::pool::Pool;

use super::editor::Editor;
use crate::{
    ops::{self, Op},
    tensor::{Tensor, TensorType},
};

/// Results larger than this are left to run time.
const MAX_BYTES: usize = 1 << 30;

pub(super) fn run(e: &mut Editor) {
    run_where(e, |_| true);
}

/// Only the operators that `folds` names.
pub(super) fn run_where(e: &mut Editor, folds: impl Fn(&dyn Op) -> bool) {
    let pool = Pool::single();
    for id in e.ids() {
        let Some(node) = e.get(id) else { continue };
        let constants: Option<Vec<Option<&Tensor>>> = node
            .inputs
            .iter()
            .map(|input| match input {
                None => Some(None),
                Some(v) => e.constant(*v).map(|t| Some(&**t)),
            })
            .collect();
        let Some(constants) = constants else { continue };
        let bytes: usize = e.output_types(id).iter().map(TensorType::bytes).sum();
        let is_output = node.outputs.iter().flatten().any(|o| e.is_output(*o));
        if !folds(&*node.op) || !node.op.is_pure() || bytes > MAX_BYTES || is_output {
            continue;
        }
        // A kernel that refuses these values says so at run time, naming the node.
        let Ok(values) = ops::evaluate(&*node.op, &constants, &pool) else { continue };
        let outputs = node.outputs.clone();
        e.remove(id);
        for (output, value) in outputs.into_iter().zip(values) {
            if let Some(output) = output {
                e.make_constant(output, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{
        NodeId,
        passes::{
            pattern,
            testing::{Build, compare, counts},
        },
    };

    #[test]
    fn constants_made_by_rewrites_are_computed() {
        let mut b = Build::new();
        let x = b.input(&[3, 2]);
        let w = b.weights(&[3, 2]);
        let y = b.op("Add", &[x, w]);
        let graph = b.graph(&[y]);
        let mut e = Editor::new(graph.clone());
        // The constant, transposed twice.
        let w = e.input(NodeId(0), 1).unwrap();
        let t = pattern::transpose(&mut e, "t", w, &[1, 0], vec![]);
        let t = pattern::transpose(&mut e, "u", t, &[1, 0], vec![]);
        let (op, x) = (e.node(NodeId(0)).op.clone(), e.input(NodeId(0), 0));
        e.replace_op(NodeId(0), op, vec![x, Some(t)]);
        e.tidy();
        run(&mut e);
        let after = e.finish();
        compare(&graph, &after, 0.0);
        assert_eq!(counts(&after), [("Add", 1)].into());
    }
}
