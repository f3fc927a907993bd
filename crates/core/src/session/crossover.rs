//! At which sparsity of its weights a layer's sparse kernel becomes faster than its dense one, on
//! this machine: both are timed on weights with ever more zeros.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng};
use rand_pcg::Pcg32;
use serde::Serialize;
use sparoa_kernels::pool::Pool;

use crate::{
    ir::{Graph, Node},
    ops::{CpuKernel, KernelIo, OpError, Operand, Operands, Variant},
    tensor::{Storage, Tensor, TensorType},
};

/// Sparsities that are tried.
pub const TRIED: [f64; 6] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95];
/// How long each kernel runs, and how often at least.
const BUDGET: Duration = Duration::from_millis(4);
const ROUNDS: usize = 3;

/// Times of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Crossover {
    /// Of the dense kernel, which does not depend on the weights.
    pub dense_ns: u64,
    /// Of the sparse kernel at each of [`TRIED`].
    pub sparse_ns: Vec<u64>,
    /// Sparsity from which the sparse kernel is faster, between those tried by linear
    /// interpolation; `None` where it is not up to the highest.
    pub from: Option<f64>,
}

/// Times a node's kernels; `None` for nodes without constant weights, or without a sparse kernel.
///
/// # Errors
/// When a kernel fails.
pub fn crossover(graph: &Graph, node: &Node, pool: &Pool) -> Result<Option<Crossover>, OpError> {
    if node.op.with_variant(Variant::Sparse).is_none() {
        return Ok(None);
    }
    let mut layer = Layer::new(graph, node);
    if layer.weights.is_empty() {
        return Ok(None);
    }
    let dense_ns = match layer.time(node, Variant::Dense, pool)? {
        Some(ns) => ns,
        None => return Ok(None),
    };
    let mut sparse_ns = Vec::with_capacity(TRIED.len());
    for sparsity in TRIED {
        layer.prune(sparsity);
        match layer.time(node, Variant::Sparse, pool)? {
            Some(ns) => sparse_ns.push(ns),
            None => return Ok(None),
        }
    }
    let from = begins_below(&sparse_ns, dense_ns);
    Ok(Some(Crossover { dense_ns, sparse_ns, from }))
}

/// Where times at [`TRIED`] fall below `limit` for good.
fn begins_below(times: &[u64], limit: u64) -> Option<f64> {
    let first = times.iter().rposition(|&t| t >= limit).map_or(0, |last| last + 1);
    let &after = times.get(first)?;
    let Some(before) = first.checked_sub(1) else { return Some(TRIED[0]) };
    let (t0, t1) = (times[before] as f64, after as f64);
    let way = if t0 > t1 { (t0 - limit as f64) / (t0 - t1) } else { 1.0 };
    Some(TRIED[before] + way.clamp(0.0, 1.0) * (TRIED[first] - TRIED[before]))
}

/// A node with tensors of its own to run on.
struct Layer {
    operands: Vec<Option<Operand>>,
    outputs: Vec<TensorType>,
    /// Values of the run-time inputs, and of the constants.
    values: Vec<Option<Arc<Tensor>>>,
    /// Inputs that are weights: constant f32 of rank 2 or more.
    weights: Vec<usize>,
}

impl Layer {
    fn new(graph: &Graph, node: &Node) -> Layer {
        let mut rng = Pcg32::seed_from_u64(1);
        let mut weights = Vec::new();
        let mut values = Vec::new();
        let mut operands = Vec::new();
        for (i, id) in node.inputs.iter().enumerate() {
            let value = id.map(|id| graph.value(id));
            let constant = value.and_then(|v| v.constant.clone());
            if constant
                .as_ref()
                .is_some_and(|c| c.ty().rank() >= 2 && c.as_slice::<f32>().is_some())
            {
                weights.push(i);
            }
            operands.push(value.map(|v| match &constant {
                Some(c) => Operand::constant(c.clone()),
                None => Operand::dynamic(v.ty.clone()),
            }));
            values.push(value.map(|v| {
                constant.unwrap_or_else(|| {
                    let mut x = Tensor::zeros(v.ty.clone());
                    for x in x.as_slice_mut::<f32>().unwrap_or(&mut []) {
                        *x = rng.random_range(0.1..1.0);
                    }
                    Arc::new(x)
                })
            }));
        }
        Layer { operands, outputs: graph.output_types(node), values, weights }
    }

    /// Zeroes a random `share` of every weight; the others get a value that is none.
    fn prune(&mut self, share: f64) {
        for &i in &self.weights {
            let mut rng = Pcg32::seed_from_u64(i as u64);
            let Some(old) = &self.values[i] else { continue };
            let mut weight = Tensor::zeros(old.ty().clone());
            for w in weight.as_slice_mut::<f32>().unwrap_or(&mut []) {
                *w = if rng.random::<f64>() < share { 0.0 } else { 0.01 };
            }
            let weight = Arc::new(weight);
            self.operands[i] = Some(Operand::constant(weight.clone()));
            self.values[i] = Some(weight);
        }
    }

    /// The shortest time of a kernel; `None` where it does not exist.
    fn time(&self, node: &Node, variant: Variant, pool: &Pool) -> Result<Option<u64>, OpError> {
        let Some(op) = node.op.with_variant(variant) else { return Ok(None) };
        let kernel = match op.cpu(&Operands { inputs: &self.operands, outputs: &self.outputs }) {
            Err(OpError::Unsupported(_)) => return Ok(None),
            kernel => kernel?,
        };
        if variant == Variant::Sparse && kernel.method() != crate::ops::variant::SPARSE {
            return Ok(None);
        }
        self.run(&*kernel, pool).map(Some)
    }

    fn run(&self, kernel: &dyn CpuKernel, pool: &Pool) -> Result<u64, OpError> {
        let mut outputs: Vec<Tensor> = self.outputs.iter().cloned().map(Tensor::zeros).collect();
        let mut scratch = Storage::zeroed(kernel.scratch_bytes(pool.threads()));
        let inputs: Vec<_> =
            self.values.iter().map(|v| v.as_ref().map(|tensor| tensor.view())).collect();
        let (mut best, start) = (Duration::MAX, Instant::now());
        let mut rounds = 0;
        while rounds < ROUNDS || start.elapsed() < BUDGET {
            let mut targets: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
            let before = Instant::now();
            kernel.run(
                &mut KernelIo {
                    inputs: &inputs,
                    outputs: &mut targets,
                    scratch: scratch.bytes_mut(),
                },
                pool,
            )?;
            best = best.min(before.elapsed());
            rounds += 1;
        }
        Ok(u64::try_from(best.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{Shapes, passes, specialize},
        zoo,
    };

    #[test]
    fn interpolates_the_last_fall_below() {
        let at = |times: [u64; 6]| begins_below(&times, 100);
        assert_eq!(at([90, 80, 70, 60, 50, 40]), Some(0.5));
        assert_eq!(at([300, 250, 200, 150, 120, 100]), None);
        let from = at([300, 200, 150, 50, 20, 10]).unwrap();
        assert!((from - 0.75).abs() < 1e-9, "{from}");
        // A fall that does not last is noise.
        assert!(at([90, 200, 150, 120, 110, 60]).unwrap() > 0.9);
    }

    #[test]
    fn layers_with_weights_have_one() {
        let model = zoo::build("mobilenet_v3_small").unwrap();
        let graph = passes::optimize(specialize(&model, &Shapes::new()).unwrap().graph);
        let pool = Pool::single();
        let of = |name: &str| {
            let node = graph.nodes.iter().find(|n| n.name == name).unwrap();
            crossover(&graph, node, &pool).unwrap()
        };
        let expand = of("features.10.block.0.0").expect("a pointwise convolution");
        assert!(expand.dense_ns > 0 && expand.sparse_ns.len() == TRIED.len());
        // More zeros, less work.
        assert!(expand.sparse_ns[5] < expand.sparse_ns[0], "{expand:?}");
        assert_eq!(of("features.10.block.1.0"), None, "depthwise");
        assert_eq!(of("avgpool"), None);
    }
}
