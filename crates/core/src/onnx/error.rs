//! Why a file cannot be loaded: the file, the place in it, the cause and the remedy.

use std::{fmt, io};

use crate::ops::OpError;

/// A model that cannot be loaded. Its text is one line: file, place, cause, remedy.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {kind}")]
pub struct LoadError {
    /// The file, or `model` for one loaded from memory.
    pub file: String,
    /// What is wrong. Not the error's source: its text is part of this one's.
    pub kind: Box<LoadErrorKind>,
}

impl LoadError {
    pub(super) fn new(file: impl Into<String>, kind: LoadErrorKind) -> LoadError {
        LoadError { file: file.into(), kind: Box::new(kind) }
    }
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// The file cannot be read.
    #[error("cannot read the file: {0}")]
    Read(io::Error),
    /// The file is not ONNX, or it is damaged.
    #[error("not an ONNX model, or a damaged one: {0}")]
    Decode(String),
    /// An operator set that this importer does not know.
    #[error("{what}; {remedy}")]
    Opset {
        /// The operator set and its version.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// Operators that SparOA lacks; all of them, each once.
    #[error("{}", missing_text(.0))]
    MissingOperators(Vec<MissingOperator>),
    /// A node with too few or too many inputs or outputs.
    #[error("node '{node}' ({op_type}): has {got} {what}, must have {expected}")]
    Arity {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// `inputs` or `outputs`.
        what: &'static str,
        /// How many it has.
        got: usize,
        /// How many it may have.
        expected: String,
    },
    /// An attribute that is malformed or that the operator does not have.
    #[error("node '{node}' ({op_type}): attribute '{attribute}': {cause}")]
    Attribute {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The attribute.
        attribute: String,
        /// Why.
        cause: String,
    },
    /// An operator that refuses its attributes.
    #[error("node '{node}' ({op_type}): {source}")]
    Operator {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Why.
        source: OpError,
    },
    /// A value that is missing, defined twice, or part of a cycle.
    #[error("{at}: value '{value}' {cause}")]
    Value {
        /// The node (or `the graph's outputs`).
        at: String,
        /// The value.
        value: String,
        /// Why.
        cause: &'static str,
    },
    /// A type that SparOA does not run.
    #[error("value '{value}': {cause}")]
    Type {
        /// The value.
        value: String,
        /// Why.
        cause: String,
    },
    /// A tensor whose type, shape and data contradict each other.
    #[error("tensor '{tensor}': {cause}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why.
        cause: String,
    },
    /// Tensor data in another file that is refused.
    #[error("tensor '{tensor}': external data '{location}': {cause}")]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// The file, as the model names it.
        location: String,
        /// Why, and what to do.
        cause: String,
    },
    /// A function of the model that cannot be applied.
    #[error("node '{node}' calls the model's function '{function}': {cause}")]
    Function {
        /// The calling node.
        node: String,
        /// The function.
        function: String,
        /// Why.
        cause: String,
    },
    /// More than [`super::LoadOptions`] allows.
    #[error(
        "{what} exceed the limit of {limit}; raise LoadOptions::{option} if you trust the file"
    )]
    Limit {
        /// What there is too much of.
        what: String,
        /// The limit.
        limit: usize,
        /// The option that sets it.
        option: &'static str,
    },
}

/// An operator that a model uses and SparOA lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingOperator {
    /// Its domain; empty for the standard one.
    pub domain: String,
    /// Its op_type.
    pub op_type: String,
    /// Number of nodes.
    pub count: usize,
    /// The first of them.
    pub first: String,
    /// Why, when the operator is known but not in this form.
    pub note: Option<String>,
    /// Similar operators that exist.
    pub nearest: Vec<&'static str>,
}

impl fmt::Display for MissingOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}::", self.domain)?;
        }
        let nodes = if self.count == 1 { "node" } else { "nodes, first" };
        write!(f, "{} ({} {nodes} '{}'", self.op_type, self.count, self.first)?;
        match &self.note {
            Some(note) => write!(f, "; {note})"),
            None => write!(f, "; nearest: {})", self.nearest.join(", ")),
        }
    }
}

fn missing_text(missing: &[MissingOperator]) -> String {
    let list: Vec<String> = missing.iter().map(MissingOperator::to_string).collect();
    let plural =
        if missing.len() == 1 { "an unsupported operator" } else { "unsupported operators" };
    format!("{plural}: {}", list.join("; "))
}
