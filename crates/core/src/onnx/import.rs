//! GraphProto -> Model: names become ids, attributes become operators, subgraphs become models.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    LoadErrorKind,
    attribute::{self, Parsed},
    functions::{Budget, Functions, Item},
    opset::{Opsets, canonical, is_constant},
    proto::{
        Dimension, DimensionValue, GraphProto, SparseTensorProto, TensorProto, TypeProto,
        type_proto,
    },
    sort::topological,
    tensor::{TensorReader, check_size, dtype},
};
use crate::{
    ir::{Dim, InputSpec, Model, ModelNode, ModelValueId},
    ops::{self, AttributeValue, Attributes, OpSpec},
    tensor::{DType, Tensor, TensorType},
};

/// Element type of a body's input where nothing declares one. Operators with bodies know the
/// types of what they feed in and do not look at it.
const UNDECLARED: DType = DType::F32;

/// Imports the graphs of one model.
pub(super) struct Importer<'a> {
    pub(super) functions: &'a Functions<'a>,
    pub(super) tensors: TensorReader,
    pub(super) budget: Budget,
}

/// An imported graph and the outer values it reads.
struct Body {
    model: Model,
    captures: Vec<Capture>,
}

/// An outer value that a body reads.
struct Capture {
    name: String,
    id: ModelValueId,
    /// Who reads it, for errors.
    reader: String,
}

/// Initialisers not yet turned into constants: an unused one is never read.
enum Initializer<'p> {
    Dense(&'p TensorProto),
    Sparse(&'p SparseTensorProto),
}

/// One graph being built.
struct Scope<'p> {
    model: Model,
    ids: HashMap<String, ModelValueId>,
    initializers: HashMap<&'p str, Initializer<'p>>,
    dtypes: HashMap<String, DType>,
    captures: Vec<Capture>,
    /// False for the model's own graph, which has nothing to capture from.
    is_body: bool,
}

impl<'a> Importer<'a> {
    /// Imports the model's graph.
    pub(super) fn model(
        &mut self,
        graph: &GraphProto,
        opsets: &'a Opsets,
    ) -> Result<Model, LoadErrorKind> {
        Ok(self.graph(graph, opsets, 0)?.model)
    }

    fn graph(
        &mut self,
        proto: &GraphProto,
        opsets: &'a Opsets,
        depth: usize,
    ) -> Result<Body, LoadErrorKind> {
        self.budget.check_depth(depth)?;
        let items = self.functions.inline(&proto.node, opsets, &mut self.budget)?;
        let mut scope = Scope::new(proto, depth > 0)?;
        scope.add_inputs(proto, self.tensors.max_bytes)?;
        let mut producers = HashMap::new();
        for (i, item) in items.iter().enumerate() {
            for name in item.node.output.iter().filter(|n| !n.is_empty()) {
                let taken = producers.insert(name.as_str(), i).is_some()
                    || scope.ids.contains_key(name)
                    || scope.initializers.contains_key(name.as_str());
                if taken {
                    return Err(value_error(&item.at(), name, "is defined twice"));
                }
            }
        }
        let mut names = HashSet::with_capacity(items.len());
        for i in topological(&items, &producers)? {
            self.node(&items[i], &mut scope, &mut names, depth)?;
        }
        for output in &proto.output {
            // Bodies may leave their outputs without a type, or with an empty one.
            let declared = output.r#type.as_ref().filter(|ty| ty.value.is_some());
            if !matches!(declared.map(tensor_type), None | Some(Ok(_))) {
                return Err(unsupported_type(output.name(), output.r#type.as_ref()));
            }
            let id = scope.resolve(output.name(), "the graph's outputs", &mut self.tensors)?;
            scope.model.outputs.push(id);
        }
        Ok(Body { model: scope.model, captures: scope.captures })
    }

    fn node(
        &mut self,
        item: &Item<'_, 'a>,
        scope: &mut Scope<'_>,
        names: &mut HashSet<String>,
        depth: usize,
    ) -> Result<(), LoadErrorKind> {
        let node = &*item.node;
        if is_constant(node) {
            let tensor = attribute::constant(node, &item.name, &mut self.tensors)?;
            return match &node.output[..] {
                [name] if !name.is_empty() => {
                    scope.add_constant(name, tensor);
                    Ok(())
                }
                _ => Err(arity(item, "outputs", node.output.len(), (1, 1))),
            };
        }
        let domain = canonical(node.domain());
        let spec = ops::find(domain, node.op_type()).expect("the operators were surveyed");
        let opset = item.opsets.version(domain).expect("the opsets were surveyed");
        let wanted =
            node.input.len() - node.input.iter().rev().take_while(|name| name.is_empty()).count();
        check_arity(item, spec, wanted)?;
        let mut inputs = Vec::with_capacity(wanted);
        for name in &node.input[..wanted] {
            inputs.push(match name.as_str() {
                "" => None,
                name => Some(scope.resolve(name, &item.at(), &mut self.tensors)?),
            });
        }
        let attributes = self.attributes(item, opset, scope, &mut inputs, depth)?;
        let op = (spec.parse)(&attributes).map_err(|source| LoadErrorKind::Operator {
            node: item.name.clone(),
            op_type: node.op_type().to_owned(),
            source,
        })?;
        if let Some(unread) = attributes.unread().first() {
            return Err(LoadErrorKind::Attribute {
                node: item.name.clone(),
                op_type: node.op_type().to_owned(),
                attribute: (*unread).to_owned(),
                cause: format!("is not known to this operator in opset {opset}"),
            });
        }
        let outputs =
            node.output.iter().map(|name| (!name.is_empty()).then(|| scope.define(name))).collect();
        // Function bodies can bring names that the file's own nodes have.
        let mut name = item.name.clone();
        while !names.insert(name.clone()) {
            name.push('\'');
        }
        scope.model.nodes.push(ModelNode { name, op, inputs, outputs });
        Ok(())
    }

    /// Reads a node's attributes. A node with subgraphs gets the values they capture as further
    /// inputs, and the string list `captures` that names them in that order.
    fn attributes(
        &mut self,
        item: &Item<'_, 'a>,
        opset: u32,
        scope: &mut Scope<'_>,
        inputs: &mut Vec<Option<ModelValueId>>,
        depth: usize,
    ) -> Result<Attributes, LoadErrorKind> {
        let node = &*item.node;
        let mut values: Vec<(String, AttributeValue)> = Vec::with_capacity(node.attribute.len());
        let mut bodies: Vec<(String, Body)> = Vec::new();
        let mut seen = HashSet::new();
        for proto in &node.attribute {
            let name = proto.name().to_owned();
            if !seen.insert(proto.name()) {
                return Err(LoadErrorKind::Attribute {
                    node: item.name.clone(),
                    op_type: node.op_type().to_owned(),
                    attribute: name,
                    cause: "is given twice".to_owned(),
                });
            }
            match attribute::read(proto, &item.name, node.op_type(), &mut self.tensors)? {
                Parsed::Value(value) => values.push((name, value)),
                Parsed::Graph(graph) => {
                    bodies.push((name, self.graph(graph, item.opsets, depth + 1)?));
                }
            }
        }
        if !bodies.is_empty() {
            // An operator finds its own inputs by position: omitted ones must be there.
            let spec = ops::find(canonical(node.domain()), node.op_type());
            if spec.is_some_and(|s| inputs.len() < s.inputs.0) {
                inputs.resize(spec.map_or(0, |s| s.inputs.0), None);
            }
            let captures = share_captures(item, &mut bodies, scope)?;
            for (name, reader) in &captures {
                inputs.push(Some(scope.resolve(name, reader, &mut self.tensors)?));
            }
            let names = captures.into_iter().map(|(name, _)| name).collect();
            values.push(("captures".to_owned(), AttributeValue::Strings(names)));
        }
        for (name, body) in bodies {
            values.push((name, AttributeValue::Graph(Arc::new(body.model))));
        }
        Ok(Attributes::new(opset, node.output.len(), values))
    }
}

/// Makes every body of a node declare the captures of all of them, in one order, after its own
/// inputs. Returns their names and first readers.
fn share_captures(
    item: &Item<'_, '_>,
    bodies: &mut [(String, Body)],
    scope: &Scope<'_>,
) -> Result<Vec<(String, String)>, LoadErrorKind> {
    let mut captures: Vec<(String, String)> = Vec::new();
    let mut known = HashSet::new();
    for capture in bodies.iter().flat_map(|(_, body)| &body.captures) {
        if known.insert(capture.name.clone()) {
            captures.push((capture.name.clone(), capture.reader.clone()));
        }
    }
    for (_, body) in bodies {
        let own: HashMap<&str, ModelValueId> =
            body.captures.iter().map(|c| (c.name.as_str(), c.id)).collect();
        for (name, _) in &captures {
            let id = match own.get(name.as_str()) {
                Some(id) => *id,
                None if body.model.values.contains(name) => {
                    return Err(value_error(&item.at(), name, "hides a value of the outer graph"));
                }
                None => {
                    body.model.values.push(name.clone());
                    ModelValueId::new(body.model.values.len() - 1)
                }
            };
            let dtype = scope.dtypes.get(name).copied().unwrap_or(UNDECLARED);
            body.model.inputs.push(InputSpec { id, name: name.clone(), dtype, dims: None });
        }
    }
    Ok(captures)
}

impl<'p> Scope<'p> {
    fn new(proto: &'p GraphProto, is_body: bool) -> Result<Scope<'p>, LoadErrorKind> {
        let mut initializers = HashMap::new();
        let dense = proto.initializer.iter().map(|t| (t.name(), Initializer::Dense(t)));
        let sparse = proto
            .sparse_initializer
            .iter()
            .filter_map(|t| t.values.as_ref().map(|v| (v.name(), Initializer::Sparse(t))));
        for (name, initializer) in dense.chain(sparse) {
            if initializers.insert(name, initializer).is_some() {
                return Err(value_error("initialisers", name, "is defined twice"));
            }
        }
        let dtypes = proto
            .input
            .iter()
            .chain(&proto.value_info)
            .chain(&proto.output)
            .filter_map(|v| {
                let ty = tensor_type(v.r#type.as_ref()?).ok()?;
                Some((v.name().to_owned(), dtype(ty.elem_type.unwrap_or(0)).ok()?))
            })
            .collect();
        Ok(Scope {
            model: Model { name: proto.name().to_owned(), ..Model::default() },
            ids: HashMap::new(),
            initializers,
            dtypes,
            captures: Vec::new(),
            is_body,
        })
    }

    /// Adds the run-time inputs. In old files every initialiser is listed as an input too.
    fn add_inputs(&mut self, proto: &GraphProto, max_bytes: usize) -> Result<(), LoadErrorKind> {
        for input in &proto.input {
            let name = input.name();
            if self.initializers.contains_key(name) {
                continue;
            }
            if self.ids.contains_key(name) {
                return Err(value_error("inputs", name, "is defined twice"));
            }
            let (dtype, dims) = match input.r#type.as_ref().map(tensor_type) {
                Some(Ok(ty)) => {
                    let fail = |cause| LoadErrorKind::Type { value: name.to_owned(), cause };
                    let dtype = match ty.elem_type.unwrap_or(0) {
                        0 if self.is_body => UNDECLARED,
                        t => dtype(t).map_err(fail)?,
                    };
                    let dims = ty
                        .shape
                        .as_ref()
                        .map(|s| s.dim.iter().map(|d| dim(name, d)).collect::<Result<Vec<_>, _>>());
                    (dtype, dims.transpose()?)
                }
                None if self.is_body => (UNDECLARED, None),
                _ => return Err(unsupported_type(name, input.r#type.as_ref())),
            };
            let fixed: Vec<usize> = dims
                .iter()
                .flatten()
                .filter_map(|d| match d {
                    Dim::Fixed(n) => Some(*n),
                    _ => None,
                })
                .collect();
            check_size(name, &TensorType::new(dtype, fixed), max_bytes)?;
            let id = self.define(name);
            self.model.inputs.push(InputSpec { id, name: name.to_owned(), dtype, dims });
        }
        Ok(())
    }

    fn define(&mut self, name: &str) -> ModelValueId {
        self.model.values.push(name.to_owned());
        let id = ModelValueId::new(self.model.values.len() - 1);
        self.ids.insert(name.to_owned(), id);
        id
    }

    fn add_constant(&mut self, name: &str, tensor: Tensor) -> ModelValueId {
        let id = self.define(name);
        self.dtypes.insert(name.to_owned(), tensor.dtype());
        self.model.constants.push((id, Arc::new(tensor)));
        id
    }

    /// The id of a value that `reader` reads.
    fn resolve(
        &mut self,
        name: &str,
        reader: &str,
        tensors: &mut TensorReader,
    ) -> Result<ModelValueId, LoadErrorKind> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        match self.initializers.get(name) {
            Some(Initializer::Dense(proto)) => {
                let tensor = tensors.read(name, proto)?;
                Ok(self.add_constant(name, tensor))
            }
            Some(Initializer::Sparse(proto)) => {
                let tensor = tensors.read_sparse(name, proto)?;
                Ok(self.add_constant(name, tensor))
            }
            None if self.is_body => {
                let id = self.define(name);
                let (name, reader) = (name.to_owned(), reader.to_owned());
                self.captures.push(Capture { name, id, reader });
                Ok(id)
            }
            None => Err(value_error(
                reader,
                name,
                "is not defined: no input, initialiser or node has that name",
            )),
        }
    }
}

impl Item<'_, '_> {
    /// The node, for errors.
    fn at(&self) -> String {
        format!("node '{}' ({})", self.name, self.node.op_type())
    }
}

fn value_error(at: &str, value: &str, cause: &'static str) -> LoadErrorKind {
    LoadErrorKind::Value { at: at.to_owned(), value: value.to_owned(), cause }
}

fn check_arity(item: &Item<'_, '_>, spec: &OpSpec, inputs: usize) -> Result<(), LoadErrorKind> {
    if inputs < spec.inputs.0 && item.node.input.len() < spec.inputs.0 || inputs > spec.inputs.1 {
        return Err(arity(item, "inputs", inputs, spec.inputs));
    }
    let outputs = item.node.output.len();
    if outputs < spec.outputs.0 || outputs > spec.outputs.1 {
        return Err(arity(item, "outputs", outputs, spec.outputs));
    }
    Ok(())
}

fn arity(
    item: &Item<'_, '_>,
    what: &'static str,
    got: usize,
    (least, most): (usize, usize),
) -> LoadErrorKind {
    let expected = match most {
        most if most == least => format!("{least}"),
        usize::MAX => format!("{least} or more"),
        most => format!("{least} to {most}"),
    };
    let (node, op_type) = (item.name.clone(), item.node.op_type().to_owned());
    LoadErrorKind::Arity { node, op_type, what, got, expected }
}

/// The tensor type, or the name of what it is instead.
fn tensor_type(ty: &TypeProto) -> Result<&type_proto::Tensor, &'static str> {
    match &ty.value {
        Some(type_proto::Value::TensorType(tensor)) => Ok(tensor),
        Some(type_proto::Value::SequenceType(_)) => Err("a sequence"),
        Some(type_proto::Value::MapType(_)) => Err("a map"),
        Some(type_proto::Value::OptionalType(_)) => Err("an optional"),
        Some(type_proto::Value::SparseTensorType(_)) => Err("a sparse tensor"),
        Some(type_proto::Value::OpaqueType(_)) => Err("opaque"),
        None => Err("of no declared type"),
    }
}

fn unsupported_type(name: &str, ty: Option<&TypeProto>) -> LoadErrorKind {
    let what = match ty.map(tensor_type) {
        Some(Err(what)) => what,
        _ => "of no declared type",
    };
    LoadErrorKind::Type {
        value: name.to_owned(),
        cause: format!("is {what}; only tensors are supported"),
    }
}

/// A dimension of an input. Exporters write -1 or "?" for "any".
fn dim(input: &str, dimension: &Dimension) -> Result<Dim, LoadErrorKind> {
    match &dimension.value {
        Some(DimensionValue::Value(n)) if *n >= 0 => {
            usize::try_from(*n).map(Dim::Fixed).map_err(|_| LoadErrorKind::Type {
                value: input.to_owned(),
                cause: format!("dimension {n} is too large"),
            })
        }
        Some(DimensionValue::Param(name)) if !matches!(name.as_str(), "" | "?" | "-1") => {
            Ok(Dim::Symbol(name.clone()))
        }
        _ => Ok(Dim::Unknown),
    }
}
