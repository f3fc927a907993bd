//! What each operator of a graph costs in principle: operations, bytes, intensity, sparsity.
//! Independent of any machine.

mod sparsity;
mod walk;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ir::{Graph, NodeId},
    ops::{KernelClass, Operands},
};

pub use sparsity::{
    ActivationZeros, WeightZeros, record_activation_sparsity, weight_zeros, zero_fraction,
};
pub use walk::{WalkError, walk};

/// Costs and sparsity of a graph's operators, by node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// By [`NodeId`].
    pub nodes: Vec<NodeAnalysis>,
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeAnalysis {
    /// The node's name.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// Output types, as text.
    pub outputs: Vec<String>,
    /// Operations, 2 per multiply-add.
    pub flops: u64,
    /// Bytes of inputs, weights and outputs, each once.
    pub bytes: u64,
    /// Bytes of the weight, of `bytes`.
    #[serde(default)]
    pub weight_bytes: u64,
    /// The products that it consists of, each with its operations; none where memory decides.
    #[serde(default)]
    pub products: Vec<(KernelClass, u64)>,
    /// Exact zeros in the constant weight, as a fraction; `None` without a weight.
    pub weight_sparsity: Option<f64>,
    /// Exact zeros in the first run-time input, as a fraction; `None` until recorded.
    pub activation_sparsity: Option<f64>,
    /// How the weight's zeros are arranged.
    #[serde(default)]
    pub weight_zeros: Option<WeightZeros>,
    /// How the input's zeros vary.
    #[serde(default)]
    pub activation_zeros: Option<ActivationZeros>,
}

impl NodeAnalysis {
    /// Computational intensity: operations per byte.
    pub fn intensity(&self) -> f64 {
        if self.bytes == 0 { 0.0 } else { self.flops as f64 / self.bytes as f64 }
    }

    /// The sparsity that a sparse kernel would exploit: that of the weight, or else of the input.
    pub fn sparsity(&self) -> f64 {
        self.weight_sparsity.unwrap_or(0.0).max(self.activation_sparsity.unwrap_or(0.0))
    }
}

impl Analysis {
    /// The analysis of a node.
    pub fn node(&self, id: NodeId) -> &NodeAnalysis {
        &self.nodes[id.index()]
    }

    /// Operations of the whole graph.
    pub fn flops(&self) -> u64 {
        self.nodes.iter().map(|n| n.flops).sum()
    }
}

/// Analyses a graph. Activation sparsity is left open; see [`record_activation_sparsity`].
pub fn analyze(graph: &Graph) -> Analysis {
    let nodes = graph
        .nodes
        .iter()
        .map(|node| {
            let (flops, bytes) = graph.with_operands(node, |x| {
                if node.op.is_view() { (0, 0) } else { (node.op.flops(x), node.op.bytes(x)) }
            });
            let weight = graph.with_operands(node, zeros_of_weight);
            let products = graph.with_operands(node, |x| node.op.products(x));
            let weight_bytes = graph.with_operands(node, constant_bytes);
            NodeAnalysis {
                name: node.name.clone(),
                op_type: node.op.op_type().to_owned(),
                outputs: graph.output_types(node).iter().map(ToString::to_string).collect(),
                flops,
                bytes,
                weight_bytes: if node.op.is_view() { 0 } else { weight_bytes },
                products,
                weight_sparsity: weight.map(|z| z.share),
                activation_sparsity: None,
                weight_zeros: weight,
                activation_zeros: None,
            }
        })
        .collect();
    Analysis { nodes }
}

/// Bytes of the constant inputs.
fn constant_bytes(x: &Operands<'_>) -> u64 {
    x.inputs.iter().flatten().filter(|o| o.constant.is_some()).map(|o| o.ty.bytes() as u64).sum()
}

/// Zeros of the largest constant float input of rank 2 or more: the weight.
fn zeros_of_weight(x: &Operands<'_>) -> Option<WeightZeros> {
    (0..x.inputs.len())
        .filter_map(|i| x.constant(i))
        .filter(|c| c.ty().rank() >= 2 && c.ty().len() > 1)
        .max_by_key(|c| c.ty().len())
        .and_then(|c| {
            let zeros = weight_zeros(c.view());
            c.release();
            zeros
        })
}

impl fmt::Display for Analysis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in &self.nodes {
            write!(
                f,
                "{} ({}) {}: {} flops, {} bytes, intensity {:.2}",
                n.name,
                n.op_type,
                n.outputs.join(", "),
                n.flops,
                n.bytes,
                n.intensity()
            )?;
            if let Some(s) = n.weight_sparsity {
                write!(f, ", weight sparsity {s:.3}")?;
            }
            if let Some(s) = n.activation_sparsity {
                write!(f, ", activation sparsity {s:.3}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sparoa_kernels::pool::Pool;

    use super::*;
    use crate::{
        tensor::Tensor,
        toy::{Toy, ToyGraph},
    };

    #[test]
    fn counts_zeros_of_weights_and_activations() {
        let mut g = ToyGraph::new("g");
        let x = g.input("x", &[2, 4]);
        let w = g.constant("w", &[4, 3]);
        let y = g.add("y", Toy::Product, &[x, w]);
        let flat = g.add("flat", Toy::View(vec![6]), &[y]);
        let graph = g.output(flat).finish();
        let mut analysis = analyze(&graph);
        let product = &analysis.nodes[0];
        assert_eq!((product.flops, product.bytes), (12, 4 * (8 + 12 + 6)));
        // The weight counts 0, 1, 2, 0, 1, 2, ...
        assert_eq!(product.weight_sparsity, Some(4.0 / 12.0));
        assert_eq!(analysis.nodes[1].bytes, 0);
        let x = Tensor::from_slice([2, 4], &[0f32, 1., 0., 1., 0., 1., 0., 0.]);
        let pool = Pool::single();
        record_activation_sparsity(&mut analysis, &graph, &[vec![x]], true, &pool).unwrap();
        assert_eq!(analysis.nodes[0].activation_sparsity, Some(5.0 / 8.0));
    }
}
