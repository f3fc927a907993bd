//! Magnitude pruning of any model: what would sparsity be worth?

use std::{collections::BTreeSet, sync::Arc};

use super::weights::zero_smallest;
use crate::{ir::Model, tensor::DType};

/// What [`prune`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Weight tensors pruned.
    pub tensors: usize,
    /// Their elements.
    pub elements: usize,
    /// Elements that are zero now.
    pub zeros: usize,
}

/// Zeroes the smallest `fraction` (0 to 1) of each f32 weight tensor of convolutions and matrix
/// products, tensor by tensor. Biases and everything else stay.
pub fn prune(model: &mut Model, fraction: f64) -> PruneReport {
    let mut weights = BTreeSet::new();
    for node in &model.nodes {
        let positions: &[usize] = match node.op.op_type() {
            "Conv" | "ConvTranspose" | "Gemm" | "Linear" => &[1],
            "MatMul" => &[0, 1],
            _ => &[],
        };
        weights.extend(positions.iter().filter_map(|&i| node.inputs.get(i).copied().flatten()));
    }
    let mut report = PruneReport::default();
    for (id, tensor) in &mut model.constants {
        if !weights.contains(id) || tensor.ty().dtype != DType::F32 || tensor.ty().rank() < 2 {
            continue;
        }
        let Some(data) = Arc::make_mut(tensor).as_slice_mut::<f32>() else { continue };
        zero_smallest(data, (data.len() as f64 * fraction.clamp(0.0, 1.0)) as usize);
        report.tensors += 1;
        report.elements += data.len();
        report.zeros += data.iter().filter(|v| **v == 0.0).count();
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_pruned_zoo_model() {
        let mut model = super::super::build("mobilenet_v3_small").unwrap();
        let report = prune(&mut model, 0.5);
        // 52 convolutions and 2 linear layers.
        assert_eq!(report.tensors, 54);
        assert_eq!(report.zeros, report.elements / 2);
        let pruned = super::super::build("mobilenet_v3_small@p50").unwrap();
        let name = "features.3.block.0.0.weight";
        let get = |model: &Model| {
            let id = model.values.iter().position(|v| v == name).unwrap();
            model.constants.iter().find(|(c, _)| c.index() == id).unwrap().1.clone()
        };
        assert_eq!(get(&model), get(&pruned));
    }
}
