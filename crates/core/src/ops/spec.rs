//! How an operator is registered, and the examples from which its tests come.

use std::sync::Arc;

use super::{AttributeValue, Attributes, Op, OpError};
use crate::tensor::Tensor;

/// Registration of one ONNX operator.
#[derive(Clone, Copy)]
pub struct OpSpec {
    /// ONNX op_type.
    pub name: &'static str,
    /// ONNX domain: `""`, `"com.microsoft"` or `"ai.sparoa"` (SparOA's fused operators).
    pub domain: &'static str,
    /// First opset of the domain in which the operator exists.
    pub since: u32,
    /// Fewest and most inputs allowed.
    pub inputs: (usize, usize),
    /// Fewest and most outputs allowed.
    pub outputs: (usize, usize),
    /// Reads the attributes.
    pub parse: fn(&Attributes) -> Result<Arc<dyn Op>, OpError>,
    /// Small instances for tests, fuzz seeds and kernel benches; at least one.
    pub examples: fn() -> Vec<Example>,
}

/// One small instance of an operator.
#[derive(Clone, Debug)]
pub struct Example {
    /// What this example is about: `"stride 2, asymmetric pads"`.
    pub name: &'static str,
    /// Attributes by name.
    pub attributes: Vec<(&'static str, AttributeValue)>,
    /// Inputs in order; `None` is an omitted one.
    pub inputs: Vec<Option<ExampleInput>>,
    /// Number of outputs.
    pub outputs: usize,
}

/// Input of an [`Example`].
#[derive(Clone, Debug)]
pub struct ExampleInput {
    /// Its value.
    pub value: Tensor,
    /// Constant in the graph (weights, shapes) or a run-time input.
    pub constant: bool,
}
