//! The plainest executor: every node of the graph through `ops::evaluate`, in order, then the
//! tail; and the comparison of tensors with a reference.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sparoa_core::{
    ir::{Graph, Model, OutputSource, SpecializeError, ValueId, interpret, passes, specialize},
    ops::{self, OpError},
    tensor::{DType, Tensor},
};
use sparoa_kernels::pool::Pool;

/// Why a model gave no outputs.
#[derive(Debug)]
pub enum RunError {
    Specialize(SpecializeError),
    Node { node: String, op_type: &'static str, source: OpError },
}

impl RunError {
    /// True when the cause is something that SparOA declares not to run.
    pub fn is_unsupported(&self) -> bool {
        let source = match self {
            RunError::Specialize(SpecializeError::Op { source, .. }) => source,
            RunError::Specialize(_) => return false,
            RunError::Node { source, .. } => source,
        };
        matches!(source, OpError::Unsupported(_))
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Specialize(e) => e.fmt(f),
            RunError::Node { node, op_type, source } => {
                write!(f, "running node '{node}' ({op_type}): {source}")
            }
        }
    }
}

/// Runs a model on inputs given in the order of its inputs.
pub fn run(
    model: &Model,
    inputs: &[Tensor],
    optimized: bool,
    pool: &Pool,
) -> Result<Vec<Tensor>, RunError> {
    let shapes: BTreeMap<_, _> = model
        .inputs
        .iter()
        .zip(inputs)
        .map(|(spec, t)| (spec.name.clone(), t.shape().to_vec()))
        .collect();
    let special = specialize(model, &shapes).map_err(RunError::Specialize)?;
    special.graph.verify().expect("specialisation keeps the invariants");
    let graph = if optimized { passes::optimize(special.graph) } else { special.graph };
    graph.verify().expect("passes keep the invariants");
    let from_graph = run_graph(&graph, inputs, pool)?;
    let from_tail = match &special.tail {
        None => Vec::new(),
        Some(tail) => {
            let feeds: Vec<Tensor> = tail.feeds.iter().map(|&i| from_graph[i].clone()).collect();
            interpret(&tail.model, &feeds, pool).map_err(|e| RunError::Node {
                node: e.node,
                op_type: e.op_type,
                source: e.source,
            })?
        }
    };
    Ok(special
        .outputs
        .iter()
        .map(|source| match source {
            OutputSource::Graph(i) => from_graph[*i].clone(),
            OutputSource::Tail(i) => from_tail[*i].clone(),
        })
        .collect())
}

fn run_graph(graph: &Graph, inputs: &[Tensor], pool: &Pool) -> Result<Vec<Tensor>, RunError> {
    let mut values: HashMap<ValueId, Tensor> =
        graph.inputs.iter().copied().zip(inputs.iter().cloned()).collect();
    // Values that nobody reads any more are dropped, or large models would not fit.
    let mut uses = vec![0usize; graph.values.len()];
    let reads = graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
    reads.chain(&graph.outputs).for_each(|id| uses[id.index()] += 1);
    for node in &graph.nodes {
        let operands: Vec<Option<&Tensor>> = node
            .inputs
            .iter()
            .map(|id| {
                id.map(|id| graph.value(id).constant.as_deref().unwrap_or_else(|| &values[&id]))
            })
            .collect();
        let outputs = ops::evaluate(&*node.op, &operands, pool).map_err(|source| {
            RunError::Node { node: node.name.clone(), op_type: node.op.op_type(), source }
        })?;
        for id in node.inputs.iter().flatten() {
            uses[id.index()] -= 1;
            if uses[id.index()] == 0 {
                values.remove(id);
            }
        }
        for (id, tensor) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id.filter(|id| uses[id.index()] > 0) {
                assert_eq!(*tensor.ty(), graph.value(id).ty, "node '{}'", node.name);
                values.insert(id, tensor);
            }
        }
    }
    let constant = |id: &ValueId| graph.value(*id).constant.as_deref().cloned();
    Ok(graph.outputs.iter().map(|id| constant(id).unwrap_or_else(|| values[id].clone())).collect())
}

/// The first difference between a tensor and its reference: integers and booleans exactly,
/// floats within `atol + rtol * |reference|`.
pub fn difference(got: &Tensor, want: &Tensor, rtol: f64, atol: f64) -> Option<String> {
    if got.ty() != want.ty() {
        return Some(format!("type is {}, must be {}", got.ty(), want.ty()));
    }
    if !got.dtype().is_float() {
        let size = got.dtype().size();
        let at = got.bytes().iter().zip(want.bytes()).position(|(a, b)| a != b)? / size;
        let text = |t: &Tensor| t.to_i64s().map_or_else(|| "?".into(), |v| v[at].to_string());
        return Some(format!("element {at} is {}, must be {}", text(got), text(want)));
    }
    // One unit in the last place of an f16 is a relative 1e-3.
    let (rtol, atol) =
        if got.dtype() == DType::F16 { (rtol.max(2e-3), atol.max(1e-3)) } else { (rtol, atol) };
    let (got, want) = (to_f64s(got), to_f64s(want));
    let differs = |(a, b): (&f64, &f64)| {
        !(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= atol + rtol * b.abs())
    };
    let at = got.iter().zip(&want).position(differs)?;
    let count = got.iter().zip(&want).filter(|p| differs(*p)).count();
    Some(format!("element {at} is {}, must be {} ({count} of {})", got[at], want[at], got.len()))
}

fn to_f64s(t: &Tensor) -> Vec<f64> {
    if let Some(v) = t.as_slice::<f32>() {
        return v.iter().map(|v| f64::from(*v)).collect();
    }
    if let Some(v) = t.as_slice::<half::f16>() {
        return v.iter().map(|v| v.to_f64()).collect();
    }
    t.as_slice::<f64>().expect("a float").to_vec()
}
