//! A model as imported: operators parsed, shapes possibly symbolic.

use std::{fmt, sync::Arc};

use sparoa_kernels::Arithmetic;

use super::ids::id;
use crate::{
    ops::Op,
    tensor::{DType, Tensor},
};

id!(/// A value of a [`Model`].
    ModelValueId);

/// A model before its shapes are known. Nodes are in topological order.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The graph's name.
    pub name: String,
    /// Names of all values, by [`ModelValueId`]; unique.
    pub values: Vec<String>,
    /// Nodes in topological order.
    pub nodes: Vec<ModelNode>,
    /// Run-time inputs (initialisers are not inputs, also where an old file lists them so).
    pub inputs: Vec<InputSpec>,
    /// Constants: initialisers.
    pub constants: Vec<(ModelValueId, Arc<Tensor>)>,
    /// Outputs.
    pub outputs: Vec<ModelValueId>,
}

/// A node of a [`Model`].
#[derive(Clone, Debug)]
pub struct ModelNode {
    /// Unique name; nodes that the file leaves nameless are named `OpType_index`.
    pub name: String,
    /// The operator.
    pub op: Arc<dyn Op>,
    /// Inputs; `None` for an omitted optional one.
    pub inputs: Vec<Option<ModelValueId>>,
    /// Outputs; `None` for one that nobody wants.
    pub outputs: Vec<Option<ModelValueId>>,
}

/// A run-time input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// The value.
    pub id: ModelValueId,
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions; `None` when the file gives no shape at all.
    pub dims: Option<Vec<Dim>>,
}

/// One dimension of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Known.
    Fixed(usize),
    /// Named: equal names are equal sizes.
    Symbol(String),
    /// Unknown and nameless.
    Unknown,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Symbol(s) => f.write_str(s),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

impl Model {
    /// The same model with every product computed so, those in bodies of loops and branches too.
    #[must_use]
    pub fn with_arithmetic(&self, arithmetic: Arithmetic) -> Model {
        let mut model = self.clone();
        for node in &mut model.nodes {
            if let Some(op) = node.op.with_arithmetic(arithmetic) {
                node.op = op;
            }
        }
        model
    }
}

/// Builds a [`Model`] in code: the zoo, tests and the importer.
#[derive(Debug, Default)]
pub struct ModelBuilder {
    model: Model,
}

impl ModelBuilder {
    /// An empty model.
    pub fn new(name: impl Into<String>) -> ModelBuilder {
        ModelBuilder { model: Model { name: name.into(), ..Model::default() } }
    }

    /// Declares a value that a later call defines. Names must be unique.
    pub fn value(&mut self, name: impl Into<String>) -> ModelValueId {
        self.model.values.push(name.into());
        ModelValueId::new(self.model.values.len() - 1)
    }

    /// Adds a run-time input.
    pub fn input(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        dims: impl Into<Vec<Dim>>,
    ) -> ModelValueId {
        let name = name.into();
        let id = self.value(name.clone());
        self.model.inputs.push(InputSpec { id, name, dtype, dims: Some(dims.into()) });
        id
    }

    /// Adds a constant.
    pub fn constant(&mut self, name: impl Into<String>, value: Tensor) -> ModelValueId {
        let id = self.value(name);
        self.model.constants.push((id, Arc::new(value)));
        id
    }

    /// Adds a node with one output, named as the node.
    pub fn node(
        &mut self,
        name: impl Into<String>,
        op: Arc<dyn Op>,
        inputs: &[ModelValueId],
    ) -> ModelValueId {
        let name = name.into();
        let output = self.value(format!("{name}_output"));
        self.model.nodes.push(ModelNode {
            name,
            op,
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: vec![Some(output)],
        });
        output
    }

    /// Adds a node with the given outputs.
    pub fn push(&mut self, node: ModelNode) {
        self.model.nodes.push(node);
    }

    /// Adds an output.
    pub fn output(&mut self, id: ModelValueId) {
        self.model.outputs.push(id);
    }

    /// The model.
    pub fn finish(self) -> Model {
        self.model
    }

    /// The model so far, for whoever needs more than the calls above.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }
}
