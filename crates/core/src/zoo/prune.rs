//! Magnitude pruning of any model: what would sparsity be worth?

use std::{cmp::Ordering, collections::BTreeSet, str::FromStr, sync::Arc};

use serde::Serialize;

use super::weights::zero_smallest;
use crate::{
    ir::{Model, ModelValueId},
    tensor::{Tensor, count_zeros},
};

/// Among which weights the smallest are sought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneScope {
    /// Among each layer's: all layers become equally sparse.
    #[default]
    PerLayer,
    /// Among all of the model's: layers of small weights become sparser than others.
    Global,
}

impl FromStr for PruneScope {
    type Err = String;

    fn from_str(text: &str) -> Result<PruneScope, String> {
        match text {
            "per-layer" => Ok(PruneScope::PerLayer),
            "global" => Ok(PruneScope::Global),
            other => Err(format!("'{other}' is none of per-layer, global")),
        }
    }
}

/// A weight tensor after pruning.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedWeight {
    /// Its name in the model.
    pub name: String,
    /// The tensor.
    pub tensor: Arc<Tensor>,
    /// Elements that are zero.
    pub zeros: usize,
}

/// Zeroes the smallest `fraction` (0 to 1) of the f32 weights of convolutions and matrix products.
/// Biases and everything else stay. Tells the pruned tensors; none where the model has no such
/// weights.
pub fn prune(model: &mut Model, fraction: f64, scope: PruneScope) -> Vec<PrunedWeight> {
    let weights = weights(model);
    let fraction = fraction.clamp(0.0, 1.0);
    let share = |len: usize| (len as f64 * fraction) as usize;
    let mut chosen: Vec<(ModelValueId, &mut Arc<Tensor>)> = model
        .constants
        .iter_mut()
        .filter(|(id, tensor)| {
            weights.contains(id) && tensor.ty().rank() >= 2 && tensor.as_slice::<f32>().is_some()
        })
        .map(|(id, tensor)| (*id, tensor))
        .collect();
    let mut limit = None;
    if scope == PruneScope::Global {
        let mut sizes: Vec<f32> = chosen
            .iter()
            .flat_map(|(_, t)| t.as_slice().unwrap_or(&[]))
            .map(|v: &f32| v.abs())
            .collect();
        let count = share(sizes.len());
        if count > 0 {
            let at = count - 1;
            let (_, nth, _) = sizes
                .select_nth_unstable_by(at, |a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
            limit = Some(*nth);
        }
    }
    chosen
        .iter_mut()
        .map(|(id, tensor)| {
            let data = Arc::make_mut(tensor).as_slice_mut::<f32>().expect("only f32 was chosen");
            match (scope, limit) {
                (PruneScope::PerLayer, _) => zero_smallest(data, share(data.len())),
                (PruneScope::Global, None) => {}
                (PruneScope::Global, Some(limit)) => {
                    data.iter_mut().filter(|v| v.abs() <= limit).for_each(|v| *v = 0.0);
                }
            }
            let zeros = count_zeros(data);
            let name = model.values[id.index()].clone();
            PrunedWeight { name, tensor: tensor.clone(), zeros }
        })
        .collect()
}

/// The values that convolutions and matrix products weigh their inputs with.
fn weights(model: &Model) -> BTreeSet<ModelValueId> {
    let mut weights = BTreeSet::new();
    for node in &model.nodes {
        let positions: &[usize] = match node.op.op_type() {
            "Conv" | "ConvTranspose" | "Gemm" | "Linear" => &[1],
            "MatMul" => &[0, 1],
            _ => &[],
        };
        weights.extend(positions.iter().filter_map(|&i| node.inputs.get(i).copied().flatten()));
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_pruned_zoo_model() {
        let mut model = super::super::build("mobilenet_v3_small").unwrap();
        let pruned = prune(&mut model, 0.5, PruneScope::PerLayer);
        // 52 convolutions and 2 linear layers.
        assert_eq!(pruned.len(), 54);
        assert!(pruned.iter().all(|w| w.zeros == w.tensor.ty().len() / 2));
        let expected = super::super::build("mobilenet_v3_small@p50").unwrap();
        let name = "features.3.block.0.0.weight";
        let get = |model: &Model| {
            let id = model.values.iter().position(|v| v == name).unwrap();
            model.constants.iter().find(|(c, _)| c.index() == id).unwrap().1.clone()
        };
        assert_eq!(get(&model), get(&expected));
        assert_eq!(&get(&model), &pruned.iter().find(|w| w.name == name).unwrap().tensor);
    }

    #[test]
    fn global_pruning_takes_the_smallest_of_all() {
        let mut model = super::super::build("mobilenet_v3_small").unwrap();
        let before: Vec<Arc<Tensor>> = model.constants.iter().map(|(_, t)| t.clone()).collect();
        let pruned = prune(&mut model, 0.9, PruneScope::Global);
        let (zeros, elements) =
            pruned.iter().fold((0, 0), |(z, n), w| (z + w.zeros, n + w.tensor.ty().len()));
        assert!((zeros as f64 / elements as f64 - 0.9).abs() < 1e-4, "{zeros} of {elements}");
        let shares = pruned.iter().map(|w| w.zeros as f64 / w.tensor.ty().len() as f64);
        assert!(shares.clone().fold(1.0, f64::min) < shares.fold(0.0, f64::max) - 0.2);
        // What was kept is at least as large as all that went.
        let (mut kept, mut gone) = (f32::INFINITY, 0.0f32);
        for ((_, now), before) in model.constants.iter().zip(&before) {
            if Arc::ptr_eq(now, before) || !pruned.iter().any(|w| Arc::ptr_eq(&w.tensor, now)) {
                continue;
            }
            let (now, before) = (now.as_slice::<f32>().unwrap(), before.as_slice::<f32>().unwrap());
            for (now, before) in now.iter().zip(before) {
                match *now == 0.0 {
                    true => gone = gone.max(before.abs()),
                    false => kept = kept.min(before.abs()),
                }
            }
        }
        assert!(gone <= kept, "{gone} went, {kept} was kept");
        assert_eq!(prune(&mut model, 0.0, PruneScope::Global).len(), pruned.len());
    }
}
