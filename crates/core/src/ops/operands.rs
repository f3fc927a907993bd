//! What an operator knows of its inputs and outputs before it runs.

use std::sync::Arc;

use super::OpError;
use crate::tensor::{DType, Tensor, TensorType};

/// Type of an input, and its value when it is constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Element type and shape.
    pub ty: TensorType,
    /// The value of a constant input (weights, shapes, axes).
    pub constant: Option<Arc<Tensor>>,
}

impl Operand {
    /// A run-time operand.
    pub fn dynamic(ty: TensorType) -> Operand {
        Operand { ty, constant: None }
    }

    /// A constant operand.
    pub fn constant(value: Arc<Tensor>) -> Operand {
        Operand { ty: value.ty().clone(), constant: Some(value) }
    }

    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.ty.shape
    }
}

/// Inputs and outputs of one node, as its kernels see them.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// Inputs in order; `None` for an omitted optional input.
    pub inputs: &'a [Option<Operand>],
    /// Output types in order.
    pub outputs: &'a [TensorType],
}

impl<'a> Operands<'a> {
    /// Input `i`, if present.
    pub fn get(&self, i: usize) -> Option<&'a Operand> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// Input `i`.
    ///
    /// # Panics
    /// When it is absent: `infer` has accepted the node, so a required input is there.
    pub fn input(&self, i: usize) -> &'a Operand {
        self.get(i).expect("infer checked that required inputs are present")
    }

    /// Constant value of input `i`, if it is present and constant.
    pub fn constant(&self, i: usize) -> Option<&'a Arc<Tensor>> {
        self.get(i).and_then(|o| o.constant.as_ref())
    }

    /// Output `i`'s type.
    pub fn output(&self, i: usize) -> &'a TensorType {
        &self.outputs[i]
    }

    /// Bytes of inputs and outputs together, each counted once.
    pub fn bytes(&self) -> u64 {
        let inputs: usize = self.inputs.iter().flatten().map(|o| o.ty.bytes()).sum();
        let outputs: usize = self.outputs.iter().map(TensorType::bytes).sum();
        (inputs + outputs) as u64
    }
}

/// Helpers for `infer`: input access with errors that name the input.
pub trait InputsExt {
    /// Input `i`, or an error that names it.
    ///
    /// # Errors
    /// When it is absent.
    fn required(&self, i: usize, name: &str) -> Result<&Operand, OpError>;

    /// Input `i`, if present.
    fn optional(&self, i: usize) -> Option<&Operand>;

    /// Constant integers of input `i`: `Ok(None)` when the input is omitted.
    ///
    /// # Errors
    /// [`OpError::DataDependent`] when it is present but not constant; invalid when it is not of
    /// an integer type.
    fn integers(&self, i: usize, name: &str) -> Result<Option<Vec<i64>>, OpError>;
}

impl InputsExt for [Option<Operand>] {
    fn required(&self, i: usize, name: &str) -> Result<&Operand, OpError> {
        self.optional(i).ok_or_else(|| OpError::invalid(format!("input {i} ({name}) is missing")))
    }

    fn optional(&self, i: usize) -> Option<&Operand> {
        self.get(i).and_then(Option::as_ref)
    }

    fn integers(&self, i: usize, name: &str) -> Result<Option<Vec<i64>>, OpError> {
        let Some(operand) = self.optional(i) else { return Ok(None) };
        let value = operand.constant.as_ref().ok_or(OpError::DataDependent { input: i })?;
        let dtype = operand.ty.dtype;
        value.to_i64s().map(Some).ok_or_else(|| {
            OpError::invalid(format!(
                "input {i} ({name}) must hold integers, has {dtype} ({})",
                DType::I64
            ))
        })
    }
}
