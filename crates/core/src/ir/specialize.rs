//! Model + input shapes -> Graph: one forward pass that infers every type and folds whatever is
//! constant, so that shape arithmetic disappears. Nodes whose shapes depend on run-time values,
//! and everything after them, become the tail: a model interpreted on the CPU after the graph.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use sparoa_kernels::pool::Pool;

use super::{Dim, Graph, InputSpec, Model, ModelNode, ModelValueId, Node, Value, ValueId};
use crate::{
    ops::{self, OpError, Operand, quantize::DequantizeLinear},
    tensor::{DType, Tensor, TensorType},
};

/// Requested input shapes by input name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Constants larger than this are not made by folding: 1 GiB.
const MAX_FOLDED_BYTES: usize = 1 << 30;

/// A model made concrete.
#[derive(Clone, Debug)]
pub struct Specialized {
    /// The statically shaped part. Its outputs are the model's static outputs followed by what
    /// the tail reads.
    pub graph: Graph,
    /// The model's outputs in order.
    pub outputs: Vec<OutputSource>,
    /// The data-dependent rest, if any.
    pub tail: Option<Tail>,
}

/// Where an output of the model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputSource {
    /// Index into `Graph::outputs`.
    Graph(usize),
    /// Index into the tail model's outputs.
    Tail(usize),
}

/// The data-dependent end of a model.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Its inputs are fed from the graph's outputs.
    pub model: Model,
    /// For each tail input, the index into `Graph::outputs`.
    pub feeds: Vec<usize>,
    /// The node and reason that made the rest data-dependent.
    pub cause: String,
}

/// Why a model cannot be made concrete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecializeError {
    /// `--shape` names no input.
    #[error("--shape: the model has no input '{name}' (inputs: {inputs})")]
    UnknownInput {
        /// What was asked for.
        name: String,
        /// What there is.
        inputs: String,
    },
    /// A dimension is free and nobody gave it.
    #[error("input '{name}' has the shape {dims}: give it with --shape {name}:{example}")]
    ShapeNeeded {
        /// The input.
        name: String,
        /// Its dimensions as declared.
        dims: String,
        /// A plausible value.
        example: String,
    },
    /// A given shape contradicts the declared one.
    #[error("--shape {name}:{given} contradicts the model, which declares {dims}")]
    ShapeMismatch {
        /// The input.
        name: String,
        /// What was asked for.
        given: String,
        /// Its dimensions as declared.
        dims: String,
    },
    /// A batch of no images.
    #[error("--batch: must be at least 1")]
    NoBatch,
    /// The model was exported with another batch.
    #[error(
        "--batch {batch}: input '{name}' has the fixed batch {fixed}; export the model with a free \
         batch dimension (torch.onnx.export: dynamic_axes={{'{name}': {{0: 'batch'}}}})"
    )]
    FixedBatch {
        /// The input.
        name: String,
        /// Its leading dimension.
        fixed: usize,
        /// What was asked for.
        batch: usize,
    },
    /// An input would be larger than memory can hold.
    #[error("--shape {name}:{given} is too large")]
    InputTooLarge {
        /// The input.
        name: String,
        /// What was asked for.
        given: String,
    },
    /// A tensor would be larger than memory can hold.
    #[error("node '{node}' ({op_type}): output of {ty} is too large")]
    TooLarge {
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// The type asked for.
        ty: TensorType,
    },
    /// An operator refused its inputs.
    #[error("node '{node}' ({op_type}): {source}{}", inputs.as_deref().unwrap_or(""))]
    Op {
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// Why.
        source: OpError,
        /// The input types, as text.
        inputs: Option<String>,
    },
}

impl SpecializeError {
    /// Whether the shapes asked for are at fault, not the model.
    pub fn is_usage(&self) -> bool {
        use SpecializeError::{FixedBatch, NoBatch, ShapeMismatch, ShapeNeeded, UnknownInput};
        matches!(
            self,
            UnknownInput { .. }
                | ShapeNeeded { .. }
                | ShapeMismatch { .. }
                | NoBatch
                | FixedBatch { .. }
        )
    }
}

/// `1x3x224x224`.
fn dims_text(dims: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let parts: Vec<String> = dims.into_iter().map(|d| d.to_string()).collect();
    if parts.is_empty() { "scalar".to_owned() } else { parts.join("x") }
}

/// Makes a model concrete for these input shapes. A free leading dimension (the batch) that
/// nobody gives is 1.
///
/// # Errors
/// See [`SpecializeError`].
pub fn specialize(model: &Model, shapes: &Shapes) -> Result<Specialized, SpecializeError> {
    let inputs = resolve_inputs(model, shapes)?;
    let mut s = Specializer {
        graph: Graph { name: model.name.clone(), ..Graph::default() },
        pool: Pool::new(1),
    };
    let mut scope = Scope::new();
    for (spec, ty) in model.inputs.iter().zip(inputs) {
        let id = s.graph.add_value(Value { name: spec.name.clone(), ty, constant: None });
        s.graph.inputs.push(id);
        scope.insert(spec.id, id);
    }
    for (id, tensor) in &model.constants {
        let name = model.values[id.index()].clone();
        scope.insert(*id, s.graph.add_constant(name, tensor.clone()));
    }
    let mut deferred = Vec::new();
    let mut cause = None;
    for node in &model.nodes {
        match s.lower(model, node, &mut scope, "")? {
            None => {}
            Some(why) => {
                cause.get_or_insert(why);
                deferred.push(node.clone());
            }
        }
    }
    Ok(finish(model, s.graph, &scope, deferred, cause))
}

/// Model values that have a graph value; the others belong to the tail.
type Scope = HashMap<ModelValueId, ValueId>;

struct Specializer {
    graph: Graph,
    pool: Pool,
}

impl Specializer {
    /// Adds one node to the graph (or folds it). `Ok(Some(reason))` when it must run in the tail.
    fn lower(
        &mut self,
        model: &Model,
        node: &ModelNode,
        scope: &mut Scope,
        prefix: &str,
    ) -> Result<Option<String>, SpecializeError> {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for id in &node.inputs {
            match id {
                None => inputs.push(None),
                Some(id) => match scope.get(id) {
                    Some(value) => inputs.push(Some(*value)),
                    None => return Ok(Some(format!("node '{}' reads it", node.name))),
                },
            }
        }
        let operands: Vec<Option<Operand>> = inputs
            .iter()
            .map(|id| {
                id.map(|id| {
                    let v = self.graph.value(id);
                    Operand { ty: v.ty.clone(), constant: v.constant.clone() }
                })
            })
            .collect();
        if let Some(expansion) = node.op.expand(&operands) {
            return self.inline(model, node, &inputs, &expansion, scope, prefix);
        }
        let types = match node.op.infer(&operands) {
            Ok(types) => types,
            Err(e @ OpError::DataDependent { .. }) => {
                return Ok(Some(format!("node '{}' ({}): {e}", node.name, node.op.op_type())));
            }
            Err(source) => return Err(op_error(node, source, &operands)),
        };
        for ty in &types {
            if !fits(ty) {
                return Err(SpecializeError::TooLarge {
                    node: node.name.clone(),
                    op_type: node.op.op_type(),
                    ty: ty.clone(),
                });
            }
        }
        let constant = operands.iter().flatten().all(|o| o.constant.is_some());
        let bytes = types.iter().map(TensorType::bytes).sum::<usize>();
        let folds = node.op.is_pure() && !is_quantized_weight(node, &operands);
        if constant && folds && bytes <= MAX_FOLDED_BYTES {
            let tensors: Vec<Option<&Tensor>> =
                operands.iter().map(|o| o.as_ref().and_then(|o| o.constant.as_deref())).collect();
            let values = ops::evaluate(&*node.op, &tensors, &self.pool)
                .map_err(|source| op_error(node, source, &operands))?;
            for (id, value) in node.outputs.iter().zip(values) {
                if let Some(id) = id {
                    let name = format!("{prefix}{}", model.values[id.index()]);
                    scope.insert(*id, self.graph.add_constant(name, Arc::new(value)));
                }
            }
            return Ok(None);
        }
        let outputs = node
            .outputs
            .iter()
            .zip(types)
            .map(|(id, ty)| {
                id.map(|id| {
                    let name = format!("{prefix}{}", model.values[id.index()]);
                    let value = self.graph.add_value(Value { name, ty, constant: None });
                    scope.insert(id, value);
                    value
                })
            })
            .collect();
        self.graph.nodes.push(Node {
            name: format!("{prefix}{}", node.name),
            op: node.op.clone(),
            inputs,
            outputs,
            origin: vec![format!("{prefix}{}", node.name)],
        });
        Ok(None)
    }

    /// Replaces a node by the model it expands to; undone if a part is data-dependent.
    fn inline(
        &mut self,
        outer: &Model,
        node: &ModelNode,
        inputs: &[Option<ValueId>],
        expansion: &Expansion,
        scope: &mut Scope,
        prefix: &str,
    ) -> Result<Option<String>, SpecializeError> {
        let (nodes, values) = (self.graph.nodes.len(), self.graph.values.len());
        let inner_prefix = format!("{prefix}{}/", node.name);
        let body = &*expansion.model;
        let mut inner = Scope::new();
        for (spec, &i) in body.inputs.iter().zip(&expansion.inputs) {
            if let Some(Some(value)) = inputs.get(i) {
                inner.insert(spec.id, *value);
            }
        }
        for (id, tensor) in &body.constants {
            let name = format!("{inner_prefix}{}", body.values[id.index()]);
            inner.insert(*id, self.graph.add_constant(name, tensor.clone()));
        }
        for n in &body.nodes {
            if let Some(reason) = self.lower(body, n, &mut inner, &inner_prefix)? {
                self.graph.nodes.truncate(nodes);
                self.graph.values.truncate(values);
                return Ok(Some(reason));
            }
        }
        for (outer_id, body_id) in node.outputs.iter().zip(&body.outputs) {
            if let Some(outer_id) = outer_id {
                let Some(value) = inner.get(body_id) else {
                    let source = OpError::invalid(format!(
                        "body output '{}' is never computed",
                        body.values[body_id.index()]
                    ));
                    return Err(op_error(node, source, &[]));
                };
                debug_assert!(outer_id.index() < outer.values.len());
                scope.insert(*outer_id, *value);
            }
        }
        Ok(None)
    }
}

/// A node that equals a model applied to some of its inputs: an `If` whose condition is known, or
/// an operator defined by others.
#[derive(Clone, Debug)]
pub struct Expansion {
    /// The model.
    pub model: Arc<Model>,
    /// For each input of the model, the node's input index.
    pub inputs: Vec<usize>,
}

impl Expansion {
    /// The node's output is its input `input`.
    pub fn identity(input: usize) -> Expansion {
        let mut model = Model { values: vec!["x".to_owned()], ..Model::default() };
        let id = ModelValueId::new(0);
        let dtype = DType::F32; // Not looked at: a body's inputs take the types they are given.
        model.inputs.push(InputSpec { id, name: "x".to_owned(), dtype, dims: None });
        model.outputs.push(id);
        Expansion { model: Arc::new(model), inputs: vec![input] }
    }

    /// The node's output is this tensor.
    pub fn constant(value: Arc<Tensor>) -> Expansion {
        let mut model = Model { values: vec!["value".to_owned()], ..Model::default() };
        let id = ModelValueId::new(0);
        model.constants.push((id, value));
        model.outputs.push(id);
        Expansion { model: Arc::new(model), inputs: Vec::new() }
    }
}

fn op_error(node: &ModelNode, source: OpError, operands: &[Option<Operand>]) -> SpecializeError {
    let types: Vec<String> = operands
        .iter()
        .map(|o| o.as_ref().map_or_else(|| "omitted".to_owned(), |o| o.ty.to_string()))
        .collect();
    SpecializeError::Op {
        node: node.name.clone(),
        op_type: node.op.op_type(),
        source,
        inputs: (!types.is_empty()).then(|| format!(" [inputs: {}]", types.join(", "))),
    }
}

/// Splits outputs and deferred nodes into graph outputs and a tail model.
fn finish(
    model: &Model,
    mut graph: Graph,
    scope: &Scope,
    deferred: Vec<ModelNode>,
    cause: Option<String>,
) -> Specialized {
    let mut tail_outputs = Vec::new();
    let mut outputs = Vec::new();
    for id in &model.outputs {
        match scope.get(id) {
            Some(value) => {
                outputs.push(OutputSource::Graph(graph.outputs.len()));
                graph.outputs.push(*value);
            }
            None => {
                outputs.push(OutputSource::Tail(tail_outputs.len()));
                tail_outputs.push(*id);
            }
        }
    }
    let tail = cause.filter(|_| !deferred.is_empty()).map(|cause| {
        let mut tail = Model {
            name: format!("{}/tail", model.name),
            values: model.values.clone(),
            outputs: tail_outputs,
            ..Model::default()
        };
        let mut feeds = Vec::new();
        for node in &deferred {
            for id in node.inputs.iter().flatten() {
                let Some(&value) = scope.get(id) else { continue };
                let known = tail.inputs.iter().any(|i| i.id == *id)
                    || tail.constants.iter().any(|(c, _)| c == id);
                if known {
                    continue;
                }
                if let Some(constant) = &graph.value(value).constant {
                    tail.constants.push((*id, constant.clone()));
                    continue;
                }
                let dtype = graph.value(value).ty.dtype;
                let name = model.values[id.index()].clone();
                tail.inputs.push(InputSpec { id: *id, name, dtype, dims: None });
                let found = graph.outputs.iter().position(|o| *o == value);
                feeds.push(found.unwrap_or_else(|| {
                    graph.outputs.push(value);
                    graph.outputs.len() - 1
                }));
            }
        }
        tail.nodes = deferred;
        Tail { model: tail, feeds, cause }
    });
    Specialized { graph, outputs, tail }
}

/// True when the type's size can be computed with. A zero dimension does not excuse the others:
/// shape arithmetic multiplies them alone.
fn fits(ty: &TensorType) -> bool {
    let size = |bytes: usize, d: &usize| bytes.checked_mul(*d.max(&1));
    let bytes = ty.shape.iter().try_fold(ty.dtype.size(), size);
    bytes.is_some_and(|b| b <= isize::MAX as usize / 2)
}

fn resolve_inputs(model: &Model, shapes: &Shapes) -> Result<Vec<TensorType>, SpecializeError> {
    for name in shapes.keys() {
        if !model.inputs.iter().any(|i| i.name == *name) {
            let names: Vec<_> = model.inputs.iter().map(|i| i.name.as_str()).collect();
            return Err(SpecializeError::UnknownInput {
                name: name.clone(),
                inputs: names.join(", "),
            });
        }
    }
    // Symbols bound by any given shape hold for every input.
    let mut symbols: HashMap<&str, usize> = HashMap::new();
    for input in &model.inputs {
        let (Some(given), Some(dims)) = (shapes.get(&input.name), &input.dims) else { continue };
        let mismatch = || SpecializeError::ShapeMismatch {
            name: input.name.clone(),
            given: dims_text(given),
            dims: dims_text(dims),
        };
        if given.len() != dims.len() {
            return Err(mismatch());
        }
        for (dim, &n) in dims.iter().zip(given) {
            match dim {
                Dim::Fixed(m) if *m != n => return Err(mismatch()),
                Dim::Symbol(s) if *symbols.entry(s).or_insert(n) != n => return Err(mismatch()),
                _ => {}
            }
        }
    }
    model
        .inputs
        .iter()
        .map(|input| {
            let shape = match (shapes.get(&input.name), &input.dims) {
                (Some(given), _) => given.clone(),
                (None, None) => return Err(shape_needed(input, &[])),
                (None, Some(dims)) => dims
                    .iter()
                    .enumerate()
                    .map(|(axis, dim)| match dim {
                        Dim::Fixed(n) => Ok(*n),
                        Dim::Symbol(s) if symbols.contains_key(s.as_str()) => {
                            Ok(symbols[s.as_str()])
                        }
                        Dim::Symbol(_) | Dim::Unknown if axis == 0 => Ok(1),
                        Dim::Symbol(_) | Dim::Unknown => Err(shape_needed(input, dims)),
                    })
                    .collect::<Result<_, _>>()?,
            };
            let ty = TensorType::new(input.dtype, shape);
            if !fits(&ty) {
                let (name, given) = (input.name.clone(), dims_text(&ty.shape));
                return Err(SpecializeError::InputTooLarge { name, given });
            }
            Ok(ty)
        })
        .collect()
}

fn shape_needed(input: &InputSpec, dims: &[Dim]) -> SpecializeError {
    let example = match dims.len() {
        0 => "1x3x224x224".to_owned(),
        _ => dims_text(dims.iter().enumerate().map(|(axis, d)| match d {
            Dim::Fixed(n) => *n,
            _ if axis == 0 => 1,
            _ => 224,
        })),
    };
    SpecializeError::ShapeNeeded { name: input.name.clone(), dims: dims_text(dims), example }
}

/// Whether a node makes floats of quantised weights or biases. Passes want to see them; no
/// operator takes a shape from such a tensor.
fn is_quantized_weight(node: &ModelNode, operands: &[Option<Operand>]) -> bool {
    let Some(Some(x)) = operands.first() else { return false };
    let weight = matches!(x.ty.dtype, DType::I8 | DType::U8) && x.ty.rank() >= 2;
    node.op.is::<DequantizeLinear>() && (weight || x.ty.dtype == DType::I32)
}
