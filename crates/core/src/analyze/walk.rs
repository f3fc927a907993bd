//! A graph evaluated node by node on the CPU: the reference, and the source of recorded values.

use sparoa_kernels::pool::Pool;

use crate::{
    ir::{Graph, NodeId},
    ops::{self, OpError},
    tensor::Tensor,
};

/// Why a walk ended early.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// A node refused its inputs.
    #[error("node '{node}' ({op_type}): {source}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// Why.
        source: OpError,
    },
    /// Another number of inputs than the graph has.
    #[error("the graph has {expected} inputs, given {given}")]
    Inputs {
        /// What the graph has.
        expected: usize,
        /// What was given.
        given: usize,
    },
}

/// Evaluates every node in order and returns the graph's outputs. `visit` sees each node's
/// inputs and outputs; a value is dropped after its last use.
///
/// # Errors
/// See [`WalkError`].
pub fn walk(
    graph: &Graph,
    inputs: &[Tensor],
    pool: &Pool,
    mut visit: impl FnMut(NodeId, &[Option<&Tensor>], &[Tensor]),
) -> Result<Vec<Tensor>, WalkError> {
    if inputs.len() != graph.inputs.len() {
        return Err(WalkError::Inputs { expected: graph.inputs.len(), given: inputs.len() });
    }
    let mut readers: Vec<usize> = graph.consumers().iter().map(Vec::len).collect();
    for id in &graph.outputs {
        readers[id.index()] += 1;
    }
    let mut values: Vec<Option<Tensor>> =
        graph.values.iter().map(|v| v.constant.as_deref().cloned()).collect();
    for (id, tensor) in graph.inputs.iter().zip(inputs) {
        values[id.index()] = Some(tensor.clone());
    }
    for id in graph.node_ids() {
        let node = graph.node(id);
        let given: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|v| v.and_then(|v| values[v.index()].as_ref())).collect();
        let made = ops::evaluate(node.op.as_ref(), &given, pool).map_err(|source| {
            let op_type = node.op.op_type();
            WalkError::Node { node: node.name.clone(), op_type, source }
        })?;
        visit(id, &given, &made);
        for (v, tensor) in node.outputs.iter().zip(made) {
            if let Some(v) = v
                && readers[v.index()] > 0
            {
                values[v.index()] = Some(tensor);
            }
        }
        for v in node.inputs.iter().flatten() {
            readers[v.index()] -= 1;
            if readers[v.index()] == 0 {
                values[v.index()] = None;
            }
        }
    }
    let output = |id: &crate::ir::ValueId| {
        values[id.index()].clone().expect("a verified graph defines its outputs")
    };
    Ok(graph.outputs.iter().map(output).collect())
}
