//! Thresholds of sparsity and intensity: where an operator stops being the CPU's and becomes the
//! GPU's. Models of them may be learned; the fixed ones are what everything falls back to.

use serde::{Deserialize, Serialize};

use crate::{
    analyze::{Analysis, NodeAnalysis},
    ir::Graph,
    profile::Profile,
};

/// The thresholds of one operator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Sparsity from which an operator counts as sparse, 0 to 1.
    pub sparsity: f64,
    /// Operations per byte from which it counts as intense.
    pub intensity: f64,
}

/// Where an operator lies against its thresholds: the four regions of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quadrant {
    /// Much arithmetic, few zeros: the GPU's.
    DenseIntense,
    /// Much arithmetic, many zeros: disputed.
    SparseIntense,
    /// Little arithmetic, few zeros: disputed, decided by the copies.
    DenseLight,
    /// Little arithmetic, many zeros: the CPU's.
    SparseLight,
}

impl Thresholds {
    /// The quadrant of an operator.
    pub fn quadrant(&self, node: &NodeAnalysis) -> Quadrant {
        match (node.sparsity() >= self.sparsity, node.intensity() >= self.intensity) {
            (false, true) => Quadrant::DenseIntense,
            (true, true) => Quadrant::SparseIntense,
            (false, false) => Quadrant::DenseLight,
            (true, false) => Quadrant::SparseLight,
        }
    }
}

impl Quadrant {
    /// Name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Quadrant::DenseIntense => "dense, intense",
            Quadrant::SparseIntense => "sparse, intense",
            Quadrant::DenseLight => "dense, light",
            Quadrant::SparseLight => "sparse, light",
        }
    }
}

impl std::fmt::Display for Quadrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Predicts the thresholds of every operator of a graph.
pub trait ThresholdModel: Send + Sync {
    /// Its name, for reports.
    fn name(&self) -> &str;

    /// Thresholds by node, on the processors whose costs `profile` tells (an empty one tells
    /// nothing).
    fn predict(&self, graph: &Graph, analysis: &Analysis, profile: &Profile) -> Vec<Thresholds>;
}

/// The same thresholds for every operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedThresholds(pub Thresholds);

impl Default for FixedThresholds {
    /// Half the elements zero; ten operations per byte, around which CPUs with wide vectors leave
    /// the memory-bound part of their roofline.
    fn default() -> FixedThresholds {
        FixedThresholds(Thresholds { sparsity: 0.5, intensity: 10.0 })
    }
}

impl ThresholdModel for FixedThresholds {
    fn name(&self) -> &str {
        "fixed"
    }

    fn predict(&self, graph: &Graph, _: &Analysis, _: &Profile) -> Vec<Thresholds> {
        vec![self.0; graph.nodes.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_quadrants() {
        let node = |flops, sparsity| NodeAnalysis {
            name: String::new(),
            op_type: String::new(),
            outputs: Vec::new(),
            flops,
            bytes: 10,
            weight_bytes: 0,
            products: Vec::new(),
            weight_sparsity: Some(sparsity),
            activation_sparsity: None,
            weight_zeros: None,
            activation_zeros: None,
        };
        let FixedThresholds(t) = FixedThresholds::default();
        assert_eq!(t.quadrant(&node(1000, 0.0)), Quadrant::DenseIntense);
        assert_eq!(t.quadrant(&node(1000, 0.9)), Quadrant::SparseIntense);
        assert_eq!(t.quadrant(&node(10, 0.0)), Quadrant::DenseLight);
        assert_eq!(t.quadrant(&node(10, 0.9)), Quadrant::SparseLight);
    }
}
