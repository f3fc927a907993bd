//! Typed access to a node's attributes, which remembers what was read.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use super::OpError;
use crate::tensor::Tensor;

/// Value of one attribute.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Int(i64),
    Float(f32),
    String(String),
    Tensor(Arc<Tensor>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<String>),
    /// A subgraph, already imported; operators with bodies downcast it.
    Graph(Arc<dyn std::any::Any + Send + Sync>),
}

impl AttributeValue {
    fn kind(&self) -> &'static str {
        match self {
            AttributeValue::Int(_) => "an integer",
            AttributeValue::Float(_) => "a float",
            AttributeValue::String(_) => "a string",
            AttributeValue::Tensor(_) => "a tensor",
            AttributeValue::Ints(_) => "a list of integers",
            AttributeValue::Floats(_) => "a list of floats",
            AttributeValue::Strings(_) => "a list of strings",
            AttributeValue::Graph(_) => "a graph",
        }
    }
}

macro_rules! from {
    ($($ty:ty => $make:expr),* $(,)?) => {
        $(impl From<$ty> for AttributeValue {
            fn from(value: $ty) -> AttributeValue {
                $make(value)
            }
        })*
    };
}
from!(
    i64 => AttributeValue::Int,
    bool => |v| AttributeValue::Int(i64::from(v)),
    f32 => AttributeValue::Float,
    &str => |v: &str| AttributeValue::String(v.to_owned()),
    Tensor => |v| AttributeValue::Tensor(Arc::new(v)),
    Vec<i64> => AttributeValue::Ints,
    Vec<f32> => AttributeValue::Floats,
);

impl<const N: usize> From<[i64; N]> for AttributeValue {
    fn from(value: [i64; N]) -> AttributeValue {
        AttributeValue::Ints(value.to_vec())
    }
}

/// Attributes of one node, with the opset that gives them their meaning.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Version of the operator's domain that the model imports.
    pub opset: u32,
    /// Number of outputs that the node has.
    pub outputs: usize,
    values: BTreeMap<String, AttributeValue>,
    read: RefCell<Vec<String>>,
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $ty:ty, $kind:literal) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// When the attribute is there with another type.
        pub fn $name(&self, name: &str) -> Result<Option<$ty>, OpError> {
            match self.take(name) {
                None => Ok(None),
                Some(AttributeValue::$variant(v)) => Ok(Some(v.clone())),
                Some(other) => Err(OpError::invalid(format!(
                    "attribute {name} is {}, must be {}", other.kind(), $kind
                ))),
            }
        }
    };
}

impl Attributes {
    /// Attributes of a node in a model of this opset.
    pub fn new(
        opset: u32,
        outputs: usize,
        values: impl IntoIterator<Item = (String, AttributeValue)>,
    ) -> Attributes {
        Attributes {
            opset,
            outputs,
            values: values.into_iter().collect(),
            read: RefCell::default(),
        }
    }

    fn take(&self, name: &str) -> Option<&AttributeValue> {
        self.read.borrow_mut().push(name.to_owned());
        self.values.get(name)
    }

    getter!(/// An integer.
        int, Int, i64, "an integer");
    getter!(/// A float.
        float, Float, f32, "a float");
    getter!(/// A string.
        string, String, String, "a string");
    getter!(/// A list of integers.
        ints, Ints, Vec<i64>, "a list of integers");
    getter!(/// A list of floats.
        floats, Floats, Vec<f32>, "a list of floats");
    getter!(/// A list of strings.
        strings, Strings, Vec<String>, "a list of strings");
    getter!(/// A tensor.
        tensor, Tensor, Arc<Tensor>, "a tensor");
    getter!(/// A subgraph.
        graph, Graph, Arc<dyn std::any::Any + Send + Sync>, "a graph");

    /// An integer with a default.
    ///
    /// # Errors
    /// When the attribute is there with another type.
    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, OpError> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A float with a default.
    ///
    /// # Errors
    /// When the attribute is there with another type.
    pub fn float_or(&self, name: &str, default: f32) -> Result<f32, OpError> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// A flag: integer 0 or not 0.
    ///
    /// # Errors
    /// When the attribute is there with another type.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, OpError> {
        Ok(self.int(name)?.map_or(default, |v| v != 0))
    }

    /// Marks attributes that carry no meaning here as read.
    pub fn ignore(&self, names: &[&str]) {
        self.read.borrow_mut().extend(names.iter().map(|n| (*n).to_owned()));
    }

    /// Names of attributes that nothing has read.
    pub fn unread(&self) -> Vec<&str> {
        let read = self.read.borrow();
        self.values.keys().filter(|k| !read.contains(k)).map(String::as_str).collect()
    }
}
