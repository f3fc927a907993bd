//! What an operator asks of a processor: the part of its analysis that a cost model needs.

use crate::{
    analyze::Analysis,
    ir::Graph,
    ops::{GpuCaps, KernelClass},
};

/// One operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    /// The node's name.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// The products that it consists of, each with its operations (2 per multiply-add); none
    /// where memory decides.
    pub products: Vec<(KernelClass, f64)>,
    /// Bytes of inputs, weights and outputs.
    pub bytes: f64,
    /// Bytes of the weights, of `bytes`.
    pub weight_bytes: f64,
    /// Bytes between its kernels on the GPU, where there are several.
    pub between_bytes: f64,
    /// Zeros among the weights, as a share.
    pub sparsity: f64,
    /// Zeros in the input, as a share, where the CPU's kernel skips them; 0 where it does not, or
    /// where nobody has looked.
    pub skipped: f64,
    /// Kernels that the GPU launches for it; 0 where it has none.
    pub kernels: u32,
    /// Only renames its input.
    pub view: bool,
}

impl Workload {
    /// Operations of its products.
    pub fn flops(&self) -> f64 {
        self.products.iter().map(|(_, flops)| flops).sum()
    }
}

/// The workloads of a graph's operators, by node. The number of kernels is that of an ordinary
/// GPU.
pub fn workloads(graph: &Graph, analysis: &Analysis) -> Vec<Workload> {
    let caps = GpuCaps::ordinary();
    graph
        .nodes
        .iter()
        .zip(&analysis.nodes)
        .map(|(node, a)| {
            let (kernel, skips) =
                graph.with_operands(node, |x| (node.op.gpu(x, &caps), node.op.skips_zeros(x)));
            Workload {
                name: a.name.clone(),
                op_type: a.op_type.clone(),
                products: a.products.iter().map(|&(class, n)| (class, n as f64)).collect(),
                bytes: a.bytes as f64,
                weight_bytes: a.weight_bytes as f64,
                between_bytes: kernel.as_ref().map_or(0, |k| k.temps.iter().sum()) as f64,
                sparsity: a.weight_sparsity.unwrap_or(0.0),
                skipped: a.activation_sparsity.filter(|_| skips).unwrap_or(0.0),
                kernels: kernel
                    .map_or(0, |k| u32::try_from(k.dispatches.len()).unwrap_or(u32::MAX)),
                view: node.op.is_view(),
            }
        })
        .collect()
}
