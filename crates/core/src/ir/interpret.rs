//! Interprets a model on tensors, node by node: subgraph bodies, and the data-dependent end of a
//! model. No types are known beforehand; each node is prepared when it is reached.

use std::sync::Arc;

use sparoa_kernels::pool::Pool;

use super::{Dim, InputSpec, Model, ModelValueId};
use crate::{
    ops::{self, OpError, Operand},
    tensor::Tensor,
};

/// A node that could not be run.
#[derive(Debug, thiserror::Error)]
#[error("node '{node}' ({op_type}): {source}")]
pub struct InterpretError {
    /// The node; the model itself when its inputs or outputs are wrong.
    pub node: String,
    /// Its operator.
    pub op_type: &'static str,
    /// Why.
    pub source: OpError,
}

impl InterpretError {
    /// The same as an error of the operator whose body the model is.
    pub fn within(self, body: &str) -> OpError {
        let text = format!("{body}: {self}");
        match self.source {
            OpError::Unsupported(_) => OpError::Unsupported(text),
            OpError::Invalid(_) => OpError::Invalid(text),
            OpError::Value(_) | OpError::DataDependent { .. } => OpError::Value(text),
        }
    }
}

/// Runs a model on inputs in the order of `model.inputs`. Values are freed after their last use.
///
/// # Errors
/// The first node that fails.
pub fn interpret(
    model: &Model,
    inputs: &[Tensor],
    pool: &Pool,
) -> Result<Vec<Tensor>, InterpretError> {
    let fail = |source| InterpretError { node: model.name.clone(), op_type: "graph", source };
    if inputs.len() != model.inputs.len() {
        let (given, wanted) = (inputs.len(), model.inputs.len());
        return Err(fail(OpError::invalid(format!("{given} inputs given, it has {wanted}"))));
    }
    let mut values: Vec<Option<Tensor>> = vec![None; model.values.len()];
    for (id, tensor) in &model.constants {
        values[id.index()] = Some(tensor.as_ref().clone());
    }
    for (spec, tensor) in model.inputs.iter().zip(inputs) {
        values[spec.id.index()] = Some(tensor.clone());
    }
    let mut uses = vec![0usize; model.values.len()];
    let reads = model.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
    for id in reads.chain(&model.outputs) {
        uses[id.index()] += 1;
    }
    for node in &model.nodes {
        let fail =
            |source| InterpretError { node: node.name.clone(), op_type: node.op.op_type(), source };
        let operands: Vec<Option<&Tensor>> = node
            .inputs
            .iter()
            .map(|id| id.map(|id| defined(model, &values, id)).transpose())
            .collect::<Result<_, _>>()
            .map_err(fail)?;
        let outputs = ops::evaluate(&*node.op, &operands, pool).map_err(fail)?;
        for id in node.inputs.iter().flatten() {
            uses[id.index()] -= 1;
            if uses[id.index()] == 0 {
                values[id.index()] = None;
            }
        }
        for (id, tensor) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id.filter(|id| uses[id.index()] > 0) {
                values[id.index()] = Some(tensor);
            }
        }
    }
    let outputs = model.outputs.iter().map(|id| defined(model, &values, *id).cloned());
    outputs.collect::<Result<_, _>>().map_err(fail)
}

fn defined<'v>(
    model: &Model,
    values: &'v [Option<Tensor>],
    id: ModelValueId,
) -> Result<&'v Tensor, OpError> {
    values[id.index()].as_ref().ok_or_else(|| {
        OpError::invalid(format!("value '{}' is never computed", model.values[id.index()]))
    })
}

impl Model {
    /// This model for inputs of known type or value: constants become constants of the model, the
    /// rest run-time inputs with fixed dimensions. `None` when their number is wrong or one is
    /// missing.
    pub fn bound(&self, operands: &[Option<Operand>]) -> Option<Model> {
        if operands.len() != self.inputs.len() {
            return None;
        }
        let mut model = Model { inputs: Vec::new(), ..self.clone() };
        for (spec, operand) in self.inputs.iter().zip(operands) {
            let operand = operand.as_ref()?;
            match &operand.constant {
                Some(value) => model.constants.push((spec.id, Arc::clone(value))),
                None => model.inputs.push(InputSpec {
                    dtype: operand.ty.dtype,
                    dims: Some(operand.ty.shape.iter().map(|&d| Dim::Fixed(d)).collect()),
                    ..spec.clone()
                }),
            }
        }
        Some(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::ModelBuilder,
        ops::elementwise::{Binary, Elementwise, Expr, Unary},
        tensor::DType,
    };

    #[test]
    fn runs_in_order_and_names_the_node_that_fails() {
        let mut b = ModelBuilder::new("m");
        let x = b.input("x", DType::F32, vec![Dim::Unknown]);
        let c = b.constant("c", Tensor::from_slice([2], &[10.0f32, 20.0]));
        let negated = b.node("neg", Arc::new(Elementwise::new(Expr::unary(Unary::Neg))), &[x]);
        let add = Arc::new(Elementwise::new(Expr::binary(Binary::Add)));
        let sum = b.node("sum", add, &[negated, c]);
        b.output(sum);
        b.output(x);
        let model = b.finish();
        let x = Tensor::from_slice([2], &[1.0f32, 2.0]);
        let y = interpret(&model, std::slice::from_ref(&x), &Pool::single()).unwrap();
        assert_eq!(y, [Tensor::from_slice([2], &[9.0f32, 18.0]), x]);
        let wrong = Tensor::from_slice([3], &[1.0f32; 3]);
        let e = interpret(&model, &[wrong], &Pool::single()).unwrap_err();
        assert_eq!((e.node.as_str(), e.op_type), ("sum", "Add"));
        assert!(interpret(&model, &[], &Pool::single()).is_err());
    }
}
