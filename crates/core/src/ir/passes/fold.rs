//! Constant folding after rewrites: nodes whose inputs have become constant are computed now.

use sparoa_kernels::pool::Pool;

use super::editor::Editor;
use crate::{
    ops,
    tensor::{Tensor, TensorType},
};

/// Results larger than this are left to run time.
const MAX_BYTES: usize = 1 << 30;

pub(super) fn run(e: &mut Editor) {
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
        if !node.op.is_pure() || bytes > MAX_BYTES || is_output {
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
