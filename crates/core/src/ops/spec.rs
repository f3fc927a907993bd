//! How an operator is registered, and the examples from which its tests come.

use std::sync::Arc;

use super::{AttributeValue, Attributes, Op, OpError};
use crate::tensor::{DType, Tensor, TensorType};

/// The newest opset of the standard domain whose operators are all read as it defines them.
pub const NEWEST_OPSET: u32 = 22;

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
    /// Opset of the operator's domain; 0 for the newest.
    pub opset: u32,
}

/// Input of an [`Example`].
#[derive(Clone, Debug)]
pub struct ExampleInput {
    /// Its value.
    pub value: Tensor,
    /// Constant in the graph (weights, shapes) or a run-time input.
    pub constant: bool,
}

impl Example {
    /// An example with one output, no attributes and no inputs yet.
    pub fn new(name: &'static str) -> Example {
        Example { name, attributes: Vec::new(), inputs: Vec::new(), outputs: 1, opset: 0 }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, name: &'static str, value: impl Into<AttributeValue>) -> Example {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds a run-time input.
    #[must_use]
    pub fn input(mut self, value: Tensor) -> Example {
        self.inputs.push(Some(ExampleInput { value, constant: false }));
        self
    }

    /// Adds a constant input.
    #[must_use]
    pub fn constant(mut self, value: Tensor) -> Example {
        self.inputs.push(Some(ExampleInput { value, constant: true }));
        self
    }

    /// Adds an omitted optional input.
    #[must_use]
    pub fn omitted(mut self) -> Example {
        self.inputs.push(None);
        self
    }

    /// Sets the opset, for semantics that newer ones have changed.
    #[must_use]
    pub fn opset(mut self, opset: u32) -> Example {
        self.opset = opset;
        self
    }

    /// The example's node as operator `spec`.
    ///
    /// # Errors
    /// Those of `OpSpec::parse`, and invalid when an attribute is not read.
    pub fn op(&self, spec: &OpSpec) -> Result<Arc<dyn Op>, OpError> {
        let newest = if spec.domain.is_empty() { NEWEST_OPSET } else { 1 };
        let opset = if self.opset == 0 { newest } else { self.opset };
        let values = self.attributes.iter().map(|(n, v)| ((*n).to_owned(), v.clone()));
        let attributes = Attributes::new(opset, self.outputs, values);
        let op = (spec.parse)(&attributes)?;
        match attributes.unread().as_slice() {
            [] => Ok(op),
            unread => Err(OpError::invalid(format!("attributes {unread:?} are not read"))),
        }
    }

    /// Sets the number of outputs.
    #[must_use]
    pub fn outputs(mut self, outputs: usize) -> Example {
        self.outputs = outputs;
        self
    }
}

/// Reproducible example data: floats are multiples of 1/64 in [-1, 1), integers lie in -8 ..= 7
/// (0 ..= 15 if unsigned), booleans are mixed.
pub fn sample(ty: impl Into<TensorType>, seed: u32) -> Tensor {
    let ty = ty.into();
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let values = (0..ty.len()).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // The low bits of such a generator are poor.
        i32::try_from(state >> 25).expect("seven bits") - 64
    });
    let (dtype, shape) = (ty.dtype, ty.shape.clone());
    macro_rules! of {
        ($t:ty, $f:expr) => {
            Tensor::from_slice(shape, &values.map($f).collect::<Vec<$t>>())
        };
    }
    match dtype {
        DType::F32 => of!(f32, |v| v as f32 / 64.0),
        DType::F64 => of!(f64, |v| f64::from(v) / 64.0),
        DType::F16 => of!(half::f16, |v| half::f16::from_f32(v as f32 / 64.0)),
        DType::I8 => of!(i8, |v| (v >> 3) as i8),
        DType::I16 => of!(i16, |v| (v >> 3) as i16),
        DType::I32 => of!(i32, |v| v >> 3),
        DType::I64 => of!(i64, |v| i64::from(v >> 3)),
        DType::U8 => of!(u8, |v| ((v + 64) >> 3) as u8),
        DType::U16 => of!(u16, |v| ((v + 64) >> 3) as u16),
        DType::U32 => of!(u32, |v| ((v + 64) >> 3) as u32),
        DType::U64 => of!(u64, |v| ((v + 64) >> 3) as u64),
        DType::Bool => {
            let bits: Vec<bool> = values.map(|v| v & 2 == 0).collect();
            Tensor::from_bools(shape, &bits)
        }
    }
}

/// [`sample`] of f32.
pub fn floats(shape: impl Into<Vec<usize>>, seed: u32) -> Tensor {
    sample(TensorType::f32(shape), seed)
}

/// A vector of i64: shapes, axes.
pub fn integers(values: &[i64]) -> Tensor {
    Tensor::from_slice([values.len()], values)
}
