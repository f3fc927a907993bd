//! Does a plan compute what the model says? The reference is the model as imported, without
//! passes, node by node on the CPU; where outputs differ, the first operator that differs is
//! named. Quantised operators count as the integer operators they stand for, in the reference
//! too, computed by plain loops there.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng};
use rand_pcg::Pcg32;
use serde::Serialize;
use sparoa_kernels::{Arithmetic, pool::Pool};

use super::{Session, SessionError, Tolerance, inputs};
use crate::{
    analyze::walk,
    engine::Engine,
    ir::{Graph, Model, NodeId, OutputSource, Shapes, Specialized, interpret, passes, specialize},
    plan::{Place, Placement, Support, compile},
    tensor::{DType, Tensor},
};

/// The worst element of two tensors that differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mismatch {
    /// Its index in row-major order.
    pub index: usize,
    /// The reference's element.
    pub expected: f64,
    /// The other's.
    pub given: f64,
    /// Elements out of tolerance.
    pub count: usize,
    /// Elements in all.
    pub total: usize,
}

/// How far an output is from the reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputCheck {
    /// The output.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Set when it is out of tolerance.
    pub mismatch: Option<Mismatch>,
    /// Set when even the types differ: expected and given.
    pub types: Option<(String, String)>,
}

/// The first operator whose result differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Where it ran.
    pub place: String,
    /// The value that differs.
    pub value: String,
    /// The worst element.
    pub mismatch: Mismatch,
}

/// The verdict over one set of inputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// By output.
    pub outputs: Vec<OutputCheck>,
    /// The first operator that differs, where an output does and a value of the graph shows it.
    pub divergence: Option<Divergence>,
}

impl Verification {
    /// Whether every output is within tolerance.
    pub fn passed(&self) -> bool {
        self.outputs.iter().all(|o| o.mismatch.is_none() && o.types.is_none())
    }
}

/// Largest absolute difference of two tensors of one type, and the worst mismatch, if any. NaN
/// equals NaN, and an infinity itself.
pub fn compare(expected: &Tensor, given: &Tensor, tolerance: Tolerance) -> (f64, Option<Mismatch>) {
    let (a, b) = (elements(expected), elements(given));
    let exact = !expected.dtype().is_float();
    let atol = tolerance.atol + tolerance.of_rms * root_mean_square(&a);
    let mut max_abs: f64 = 0.0;
    let mut worst: Option<(f64, Mismatch)> = None;
    let mut count = 0;
    for (index, (&expected, &given)) in a.iter().zip(&b).enumerate() {
        if expected == given || (expected.is_nan() && given.is_nan()) {
            continue;
        }
        let difference = (expected - given).abs();
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        max_abs = max_abs.max(difference);
        let allowed = atol + tolerance.rtol * expected.abs();
        let excess =
            if exact || !allowed.is_finite() { f64::INFINITY } else { difference / allowed };
        if excess > 1.0 {
            count += 1;
            if worst.as_ref().is_none_or(|(w, _)| excess > *w) {
                let total = a.len();
                worst = Some((excess, Mismatch { index, expected, given, count: 0, total }));
            }
        }
    }
    (max_abs, worst.map(|(_, m)| Mismatch { count, ..m }))
}

/// Of the finite values.
fn root_mean_square(values: &[f64]) -> f64 {
    let finite = values.iter().filter(|v| v.is_finite());
    let (sum, count) = finite.fold((0.0, 0usize), |(sum, n), v| (sum + v * v, n + 1));
    (sum / count.max(1) as f64).sqrt()
}

fn elements(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F32 => tensor.as_slice::<f32>().into_iter().flatten().map(|&v| v.into()).collect(),
        DType::F64 => tensor.as_slice::<f64>().into_iter().flatten().copied().collect(),
        DType::F16 => {
            tensor.as_slice::<half::f16>().into_iter().flatten().map(|v| v.to_f64()).collect()
        }
        // Above 2^53 the conversion rounds; equal integers still compare equal.
        DType::U64 => tensor.as_slice::<u64>().into_iter().flatten().map(|&v| v as f64).collect(),
        _ => tensor.to_i64s().into_iter().flatten().map(|v| v as f64).collect(),
    }
}

/// The model's outputs by name: no passes, node by node, on the CPU, in exact arithmetic.
///
/// # Errors
/// When the model cannot be made concrete or a node refuses its inputs.
pub fn reference(
    model: &Model,
    shapes: &Shapes,
    given: &[(&str, Tensor)],
    pool: &Pool,
) -> Result<Vec<(String, Tensor)>, SessionError> {
    let mut specialized = specialize(&model.with_arithmetic(Arithmetic::Reference), shapes)?;
    specialized.graph = passes::as_integers(specialized.graph);
    let infos = super::ValueInfo::inputs_of(&specialized.graph);
    let ordered: Vec<Tensor> = inputs::by_name(&infos, given)?.into_iter().cloned().collect();
    let outputs = walk(&specialized.graph, &ordered, pool, |_, _, _| {})?;
    finish(model, &specialized, outputs, pool)
}

fn finish(
    model: &Model,
    specialized: &Specialized,
    graph_outputs: Vec<Tensor>,
    pool: &Pool,
) -> Result<Vec<(String, Tensor)>, SessionError> {
    let rest = match &specialized.tail {
        None => Vec::new(),
        Some(tail) => {
            let feeds: Vec<Tensor> = tail.feeds.iter().map(|&i| graph_outputs[i].clone()).collect();
            interpret(&tail.model, &feeds, pool)?
        }
    };
    let names = model.outputs.iter().map(|id| model.values[id.index()].clone());
    let tensors = specialized.outputs.iter().map(|source| match source {
        OutputSource::Graph(i) => graph_outputs[*i].clone(),
        OutputSource::Tail(i) => rest[*i].clone(),
    });
    Ok(names.zip(tensors).collect())
}

/// A random legal placement: cpu, gpu and splits, to shake plans with.
pub fn random_placement(graph: &Graph, support: &Support, seed: u64) -> Placement {
    let mut rng = Pcg32::seed_from_u64(seed);
    // Sometimes stretches of one place, sometimes a new dice for every node.
    let stay = [0.0, 0.5, 0.9][rng.random_range(0..3usize)];
    let mut last = Place::Cpu;
    let places = (0..graph.nodes.len())
        .map(|i| {
            if !rng.random_bool(stay) {
                last = match rng.random_range(0..3) {
                    0 => Place::Cpu,
                    1 => Place::Gpu,
                    _ => Place::Split((rng.random_range(1..10u8) as f32) / 10.0),
                };
            }
            match last {
                _ if support.gpu[i].is_err() => Place::Cpu,
                Place::Split(_) if support.split[i].is_none() => Place::Gpu,
                place => place,
            }
        })
        .collect();
    Placement { places }
}

impl Session {
    /// Runs the plan and the reference on the same inputs.
    ///
    /// # Errors
    /// When either cannot run; a difference is not an error but the result.
    pub fn verify(
        &mut self,
        given: &[(&str, Tensor)],
        tolerance: Tolerance,
    ) -> Result<Verification, SessionError> {
        let expected = reference(&self.model, &self.shapes, given, &self.pool)?;
        self.verify_against(&expected, given, tolerance)
    }

    /// [`Session::verify`] against outputs of [`reference`] that are known already.
    ///
    /// # Errors
    /// When the plan cannot run.
    pub fn verify_against(
        &mut self,
        expected: &[(String, Tensor)],
        given: &[(&str, Tensor)],
        tolerance: Tolerance,
    ) -> Result<Verification, SessionError> {
        let outputs = self.run(given)?;
        let checks: Vec<OutputCheck> = expected
            .iter()
            .zip(&outputs)
            .map(|((name, expected), (_, given))| {
                let name = name.clone();
                if expected.ty() != given.ty() {
                    let types = Some((expected.ty().to_string(), given.ty().to_string()));
                    return OutputCheck { name, max_abs: f64::INFINITY, mismatch: None, types };
                }
                let (max_abs, mismatch) = compare(expected, given, tolerance);
                OutputCheck { name, max_abs, mismatch, types: None }
            })
            .collect();
        let mut verification = Verification { outputs: checks, divergence: None };
        if !verification.passed() {
            verification.divergence = self.first_divergence(given, tolerance)?;
        }
        Ok(verification)
    }

    /// Runs the plan's placement with every value of the graph as an output, and compares those
    /// that the unoptimised graph has under the same name and type.
    fn first_divergence(
        &self,
        given: &[(&str, Tensor)],
        tolerance: Tolerance,
    ) -> Result<Option<Divergence>, SessionError> {
        let exact = self.model.with_arithmetic(Arithmetic::Reference);
        let plain = passes::as_integers(specialize(&exact, &self.shapes)?.graph);
        let wanted: HashMap<&str, NodeId> = self
            .graph
            .node_ids()
            .flat_map(|id| {
                let outputs = self.graph.node(id).outputs.iter().flatten();
                outputs.map(move |v| (self.graph.value(*v).name.as_str(), id))
            })
            .collect();
        let ordered: Vec<&Tensor> = inputs::by_name(&self.inputs, given)?;
        let owned: Vec<Tensor> = ordered.iter().map(|t| (*t).clone()).collect();
        let mut expected: HashMap<String, Tensor> = HashMap::new();
        walk(&plain, &owned, &self.pool, |id, _, made| {
            for (v, tensor) in plain.node(id).outputs.iter().zip(made) {
                let name = v.map(|v| plain.value(v).name.as_str());
                if let Some(name) = name.filter(|n| wanted.contains_key(n)) {
                    expected.insert(name.to_owned(), tensor.clone());
                }
            }
        })?;
        let mut tapped = Graph::clone(&self.graph);
        tapped.outputs = self
            .graph
            .nodes
            .iter()
            .flat_map(|n| n.outputs.iter().flatten().copied())
            .filter(|v| {
                let value = self.graph.value(*v);
                expected.get(&value.name).is_some_and(|t| *t.ty() == value.ty)
            })
            .collect();
        let tapped = std::sync::Arc::new(tapped);
        let plan = compile(&tapped, &self.placement, self.support(), self.profile.as_ref())?;
        let accelerator = self.accelerator.as_deref();
        let mut engine = Engine::new(plan, &tapped, &self.kernels, &self.pool, accelerator)?;
        let mut values = engine.new_outputs();
        engine.run(&ordered, &mut values)?;
        for (v, tensor) in tapped.outputs.iter().zip(&values) {
            let name = &tapped.value(*v).name;
            let (_, mismatch) = compare(&expected[name], tensor, tolerance);
            if let Some(mismatch) = mismatch {
                let id = wanted[name.as_str()];
                let node = self.graph.node(id);
                return Ok(Some(Divergence {
                    node: node.name.clone(),
                    op_type: node.op.op_type().to_owned(),
                    place: self.placement.places[id.index()].to_string(),
                    value: name.clone(),
                    mismatch,
                }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_knows_tolerance_nan_and_integers() {
        let t = Tolerance { rtol: 0.1, atol: 0.01, of_rms: 0.0 };
        let f = |v: &[f32]| Tensor::from_slice([v.len()], v);
        let (max, none) =
            compare(&f(&[1.0, f32::NAN, f32::INFINITY]), &f(&[1.05, f32::NAN, f32::INFINITY]), t);
        assert!(none.is_none() && (max - 0.05).abs() < 1e-6);
        let (_, worst) = compare(&f(&[1.0, 1.0, 5.0]), &f(&[1.5, 3.0, 5.0]), t);
        let worst = worst.unwrap();
        assert_eq!((worst.index, worst.count, worst.total), (1, 2, 3));
        assert!(compare(&f(&[1.0]), &f(&[f32::NAN]), t).1.is_some());
        assert!(compare(&f(&[f32::INFINITY]), &f(&[1.0]), t).1.is_some());
        let i = |v: &[i64]| Tensor::from_slice([v.len()], v);
        assert!(compare(&i(&[1000]), &i(&[1001]), t).1.is_some());
        assert!(compare(&i(&[1000]), &i(&[1000]), t).1.is_none());
        // The tensor's size is sqrt(12.5).
        let of_size = Tolerance { rtol: 0.0, atol: 0.0, of_rms: 0.1 };
        assert!(compare(&f(&[5.0, 0.0]), &f(&[5.0, 0.35]), of_size).1.is_none());
        assert!(compare(&f(&[5.0, 0.0]), &f(&[5.0, 0.36]), of_size).1.is_some());
    }
}
