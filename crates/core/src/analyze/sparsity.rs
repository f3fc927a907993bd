//! Zeros in tensors.

use sparoa_kernels::pool::Pool;

use super::{Analysis, WalkError, walk};
use crate::{
    ir::Graph,
    tensor::{DType, Tensor, TensorRef},
};

/// Exact zeros (of either sign) as a fraction of the elements; `None` for an empty tensor or one
/// that is not of f32.
pub fn zero_fraction(tensor: TensorRef<'_>) -> Option<f64> {
    if tensor.dtype != DType::F32 || tensor.bytes.is_empty() {
        return None;
    }
    let data = tensor.slice::<f32>();
    // Counts of 32 bits, so that the compiler counts in vectors.
    let zeros: usize = data
        .chunks(1 << 16)
        .map(|part| part.iter().map(|v| u32::from(*v == 0.0)).sum::<u32>() as usize)
        .sum();
    Some(zeros as f64 / data.len() as f64)
}

/// Runs the graph node by node on these inputs (in the graph's order) and notes the zeros in
/// each node's first run-time input.
///
/// # Errors
/// When a node refuses its inputs.
pub fn record_activation_sparsity(
    analysis: &mut Analysis,
    graph: &Graph,
    inputs: &[Tensor],
    pool: &Pool,
) -> Result<(), WalkError> {
    walk(graph, inputs, pool, |id, given, _| {
        let node = graph.node(id);
        let run_time = node.inputs.iter().zip(given).find_map(|(value, tensor)| {
            value.filter(|v| graph.value(*v).constant.is_none()).and(*tensor)
        });
        if let (Some(tensor), Some(entry)) = (run_time, analysis.nodes.get_mut(id.index())) {
            entry.activation_sparsity = zero_fraction(tensor.view());
        }
    })?;
    Ok(())
}
