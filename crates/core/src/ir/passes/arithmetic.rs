//! Every operator made of products computes them as asked for.

use sparoa_kernels::Arithmetic;

use crate::{
    ir::{Graph, NodeId},
    ops::Variant,
};

/// Sets the arithmetic of every operator made of products. After the other passes: those make new
/// operators, which have the default.
#[must_use]
pub fn set_arithmetic(mut graph: Graph, arithmetic: Arithmetic) -> Graph {
    for node in &mut graph.nodes {
        if let Some(op) = node.op.with_arithmetic(arithmetic) {
            node.op = op;
        }
    }
    graph
}

/// Sets which kernel computes these nodes on the CPU.
///
/// # Errors
/// The first node whose operator has no such choice.
pub fn set_variants(mut graph: Graph, wanted: &[(NodeId, Variant)]) -> Result<Graph, NodeId> {
    for &(id, variant) in wanted {
        let node = &mut graph.nodes[id.index()];
        node.op = node.op.with_variant(variant).ok_or(id)?;
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::passes::{optimize_for, testing::graph_of},
        zoo,
    };

    /// The `Debug` text keys measured costs and plans, so it must tell; what is written as ONNX
    /// must not.
    #[test]
    fn shows_in_the_debug_text_and_nowhere_else() {
        let graph = optimize_for(graph_of(&zoo::build("mobilenet_v2").unwrap()), Arithmetic::Bf16);
        let graph = set_arithmetic(graph, Arithmetic::Fast);
        let bf16 = set_arithmetic(graph.clone(), Arithmetic::Bf16);
        let mut changed = 0;
        for (before, after) in graph.nodes.iter().zip(&bf16.nodes) {
            assert_eq!(before.op.op_type(), after.op.op_type());
            let attributes = |op: &dyn crate::ops::Op| format!("{:?}", op.attributes());
            assert_eq!(attributes(&*before.op), attributes(&*after.op));
            assert_eq!(before.op.domain(), after.op.domain());
            changed += usize::from(format!("{:?}", before.op) != format!("{:?}", after.op));
        }
        assert_eq!(changed, 28, "13 convolutions, 14 inverted residuals, a Linear");
        let again = set_arithmetic(bf16, Arithmetic::Fast);
        assert_eq!(format!("{:?}", graph.nodes), format!("{:?}", again.nodes));
    }
}
