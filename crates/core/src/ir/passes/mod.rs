//! Graph rewrites that leave the outputs as they are. One file per pass; [`optimize`] is the list.

use super::Graph;

/// Applies every pass, in order.
pub fn optimize(graph: Graph) -> Graph {
    graph
}
