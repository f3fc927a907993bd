//! Model and Graph -> GraphProto.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    SaveError,
    annotate::{NodeMetadata, entry},
    proto::{
        AttributeProto, AttributeType, Dimension, DimensionValue, GraphProto, NodeProto,
        TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
    },
    tensor::data_type,
};
use crate::{
    ir::{Dim, Graph, InputSpec, Model, OutputSource, Shapes, specialize},
    ops::{AttributeValue, Op},
    tensor::{DType, Tensor, TensorType},
};

/// State of one export.
pub(super) struct Exporter<'a> {
    metadata: &'a NodeMetadata,
    /// Domains of the operators written so far.
    pub(super) domains: BTreeSet<&'static str>,
}

impl<'a> Exporter<'a> {
    pub(super) fn new(metadata: &'a NodeMetadata) -> Exporter<'a> {
        Exporter { metadata, domains: BTreeSet::new() }
    }

    /// A node; `path` is the prefix of its metadata's key.
    fn node(
        &mut self,
        path: &str,
        name: &str,
        op: &dyn Op,
        mut inputs: Vec<String>,
        outputs: Vec<String>,
    ) -> Result<NodeProto, SaveError> {
        self.domains.insert(op.domain());
        let mut list = op.attributes();
        // What subgraphs capture was made explicit at import; ONNX has it by name.
        let captures =
            list.iter().position(|(name, _)| *name == "captures").map(|i| list.swap_remove(i).1);
        let captured = match captures {
            Some(AttributeValue::Strings(names)) => {
                let outer = inputs.split_off(inputs.len().saturating_sub(names.len()));
                while inputs.last().is_some_and(String::is_empty) {
                    inputs.pop();
                }
                names.into_iter().zip(outer).collect()
            }
            _ => HashMap::new(),
        };
        list.sort_by_key(|(name, _)| *name);
        let mut attributes = Vec::with_capacity(list.len());
        for (attribute, value) in list {
            attributes.push(match value {
                AttributeValue::Graph(graph) => {
                    let body = graph.downcast::<Model>().map_err(|_| SaveError::Attribute {
                        node: name.to_owned(),
                        op_type: op.op_type(),
                        attribute,
                    })?;
                    let body = self.model(&format!("{path}{name}/"), &body, Some(&captured))?;
                    AttributeProto {
                        g: Some(Box::new(body)),
                        ..declared(attribute, AttributeType::Graph)
                    }
                }
                value => attribute_proto(attribute, value),
            });
        }
        let metadata = self.metadata.get(&format!("{path}{name}"));
        Ok(NodeProto {
            input: inputs,
            output: outputs,
            name: Some(name.to_owned()),
            op_type: Some(op.op_type().to_owned()),
            domain: Some(op.domain().to_owned()).filter(|d| !d.is_empty()),
            attribute: attributes,
            metadata_props: metadata.into_iter().flatten().map(|(k, v)| entry(k, v)).collect(),
            ..NodeProto::default()
        })
    }

    /// A model's graph. `captured` is given for a subgraph: the outer names of the values it
    /// captures, by its own names.
    fn model(
        &mut self,
        path: &str,
        model: &Model,
        captured: Option<&HashMap<String, String>>,
    ) -> Result<GraphProto, SaveError> {
        let captured_names = |name: &String| captured.and_then(|c| c.get(name)).cloned();
        let mut names = unique_names(model.values.iter().map(String::as_str));
        for input in &model.inputs {
            if let Some(outer) = captured_names(&input.name) {
                names[input.id.index()] = outer;
            }
        }
        let name_of = |id: Option<crate::ir::ModelValueId>| {
            id.map_or_else(String::new, |id| names[id.index()].clone())
        };
        let mut graph = GraphProto {
            name: Some(graph_name(&model.name)),
            initializer: model
                .constants
                .iter()
                .map(|(id, t)| tensor_proto(&names[id.index()], t))
                .collect(),
            input: model
                .inputs
                .iter()
                .filter(|i| captured_names(&i.name).is_none())
                .map(|i| input_info(&names[i.id.index()], i, captured.is_some()))
                .collect(),
            output: model
                .outputs
                .iter()
                .map(|id| ValueInfoProto {
                    name: Some(names[id.index()].clone()),
                    ..ValueInfoProto::default()
                })
                .collect(),
            ..GraphProto::default()
        };
        for node in &model.nodes {
            let inputs = node.inputs.iter().copied().map(name_of).collect();
            let outputs = node.outputs.iter().copied().map(name_of).collect();
            graph.node.push(self.node(path, &node.name, &*node.op, inputs, outputs)?);
        }
        Ok(graph)
    }
}

/// The graph of a model, its outputs typed as far as they can be known.
pub(super) fn model_graph_proto(
    exporter: &mut Exporter<'_>,
    model: &Model,
) -> Result<GraphProto, SaveError> {
    let mut graph = exporter.model("", model, None)?;
    if let Some(types) = output_types(model) {
        for (info, ty) in graph.output.iter_mut().zip(types) {
            info.r#type = ty.map(|(dtype, dims)| type_proto(dtype, Some(&dims)));
        }
    }
    Ok(graph)
}

/// The graph of a concrete graph, every value typed.
pub(super) fn graph_proto(
    exporter: &mut Exporter<'_>,
    graph: &Graph,
) -> Result<GraphProto, SaveError> {
    let names = unique_names(graph.values.iter().map(|v| v.name.as_str()));
    let name_of =
        |id: Option<crate::ir::ValueId>| id.map_or_else(String::new, |i| names[i.index()].clone());
    let info = |id: &crate::ir::ValueId| {
        let ty = &graph.value(*id).ty;
        let dims: Vec<Dim> = ty.shape.iter().map(|n| Dim::Fixed(*n)).collect();
        ValueInfoProto {
            name: Some(names[id.index()].clone()),
            r#type: Some(type_proto(ty.dtype, Some(&dims))),
            ..ValueInfoProto::default()
        }
    };
    // Constants that only a former node read are not written.
    let used: HashSet<_> = graph
        .nodes
        .iter()
        .flat_map(|n| n.inputs.iter().flatten())
        .chain(&graph.outputs)
        .copied()
        .collect();
    let mut proto = GraphProto {
        name: Some(graph_name(&graph.name)),
        input: graph.inputs.iter().map(info).collect(),
        output: graph.outputs.iter().map(info).collect(),
        ..GraphProto::default()
    };
    for (i, value) in graph.values.iter().enumerate() {
        if let Some(tensor) = &value.constant
            && used.contains(&crate::ir::ValueId::new(i))
        {
            proto.initializer.push(tensor_proto(&names[i], tensor));
        }
    }
    for node in &graph.nodes {
        let inner = node.outputs.iter().flatten().filter(|id| !graph.outputs.contains(id));
        proto.value_info.extend(inner.map(info));
        let inputs = node.inputs.iter().copied().map(name_of).collect();
        let outputs = node.outputs.iter().copied().map(name_of).collect();
        proto.node.push(exporter.node("", &node.name, &*node.op, inputs, outputs)?);
    }
    Ok(proto)
}

/// ONNX wants a graph to have a name.
fn graph_name(name: &str) -> String {
    if name.is_empty() { "graph".to_owned() } else { name.to_owned() }
}

/// Types of a model's outputs: inferred for a batch of 1 and of 2; a dimension that changes is
/// the batch.
type OutputTypes = Vec<Option<(DType, Vec<Dim>)>>;

fn output_types(model: &Model) -> Option<OutputTypes> {
    let one = inferred_outputs(model, &Shapes::new())?;
    let mut batch = Dim::Unknown;
    let mut shapes = Shapes::new();
    for input in &model.inputs {
        let dims = input.dims.as_ref()?;
        let shape = dims.iter().enumerate().map(|(axis, dim)| match dim {
            Dim::Fixed(n) => Some(*n),
            other => (axis == 0).then(|| {
                batch = other.clone();
                2
            }),
        });
        shapes.insert(input.name.clone(), shape.collect::<Option<Vec<_>>>()?);
    }
    let two = inferred_outputs(model, &shapes);
    let merge = |i: usize, ty: TensorType| {
        let other = two.as_ref().and_then(|two| two[i].as_ref());
        let dims = ty.shape.iter().enumerate().map(|(axis, n)| {
            match other.and_then(|o| o.shape.get(axis)) {
                Some(m) if m == n => Dim::Fixed(*n),
                Some(m) if *m == 2 && *n == 1 => batch.clone(),
                _ => Dim::Unknown,
            }
        });
        (ty.dtype, dims.collect())
    };
    Some(one.into_iter().enumerate().map(|(i, ty)| Some(merge(i, ty?))).collect())
}

fn inferred_outputs(model: &Model, shapes: &Shapes) -> Option<Vec<Option<TensorType>>> {
    let special = specialize(model, shapes).ok()?;
    let of = |source: &OutputSource| match source {
        OutputSource::Graph(i) => Some(special.graph.value(special.graph.outputs[*i]).ty.clone()),
        OutputSource::Tail(_) => None,
    };
    Some(special.outputs.iter().map(of).collect())
}

/// The same names, made unique and non-empty.
fn unique_names<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut used = HashSet::new();
    names
        .enumerate()
        .map(|(i, name)| {
            let mut name = if name.is_empty() { format!("value_{i}") } else { name.to_owned() };
            while !used.insert(name.clone()) {
                name.push('\'');
            }
            name
        })
        .collect()
}

fn input_info(name: &str, input: &InputSpec, in_body: bool) -> ValueInfoProto {
    // A body's input without a shape has no declared type either.
    let typed = input.dims.is_some() || !in_body;
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: typed.then(|| type_proto(input.dtype, input.dims.as_deref())),
        ..ValueInfoProto::default()
    }
}

fn type_proto(dtype: DType, dims: Option<&[Dim]>) -> TypeProto {
    let dimension = |dim: &Dim| Dimension {
        value: match dim {
            // Sizes of tensors in memory fit.
            Dim::Fixed(n) => Some(DimensionValue::Value(i64::try_from(*n).unwrap_or(i64::MAX))),
            Dim::Symbol(name) => Some(DimensionValue::Param(name.clone())),
            Dim::Unknown => None,
        },
        denotation: None,
    };
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(data_type(dtype)),
            shape: dims.map(|d| TensorShapeProto { dim: d.iter().map(dimension).collect() }),
        })),
        denotation: None,
    }
}

/// Lends a tensor's bytes to the encoder without copying them.
struct Contents(Arc<Tensor>);

impl AsRef<[u8]> for Contents {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// A message that lends the tensor's bytes.
pub(super) fn tensor_proto(name: &str, tensor: &Arc<Tensor>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: tensor.shape().iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect(),
        data_type: Some(data_type(tensor.dtype())),
        raw_data: Some(Bytes::from_owner(Contents(tensor.clone()))),
        ..TensorProto::default()
    }
}

fn declared(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(kind.into()),
        ..AttributeProto::default()
    }
}

fn attribute_proto(name: &str, value: AttributeValue) -> AttributeProto {
    let of = |kind| declared(name, kind);
    match value {
        AttributeValue::Int(i) => AttributeProto { i: Some(i), ..of(AttributeType::Int) },
        AttributeValue::Float(f) => AttributeProto { f: Some(f), ..of(AttributeType::Float) },
        AttributeValue::String(s) => {
            AttributeProto { s: Some(s.into()), ..of(AttributeType::String) }
        }
        AttributeValue::Tensor(t) => {
            AttributeProto { t: Some(Box::new(tensor_proto("", &t))), ..of(AttributeType::Tensor) }
        }
        AttributeValue::Ints(ints) => AttributeProto { ints, ..of(AttributeType::Ints) },
        AttributeValue::Floats(floats) => AttributeProto { floats, ..of(AttributeType::Floats) },
        AttributeValue::Strings(strings) => AttributeProto {
            strings: strings.into_iter().map(Into::into).collect(),
            ..of(AttributeType::Strings)
        },
        AttributeValue::Graph(_) => unreachable!("graphs are written by Exporter::node"),
    }
}
