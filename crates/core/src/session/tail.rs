//! The data-dependent end of a model, evaluated node by node on the CPU.

use std::collections::HashMap;

use sparoa_kernels::pool::Pool;

use super::SessionError;
use crate::{
    ir::{Model, ModelValueId},
    ops::{self, Operand},
    tensor::Tensor,
};

/// Outputs of a model, from its inputs in order.
pub(super) fn interpret(
    model: &Model,
    inputs: &[Tensor],
    pool: &Pool,
) -> Result<Vec<Tensor>, SessionError> {
    let mut values: HashMap<ModelValueId, Tensor> =
        model.constants.iter().map(|(id, tensor)| (*id, Tensor::clone(tensor))).collect();
    values.extend(model.inputs.iter().map(|i| i.id).zip(inputs.iter().cloned()));
    for node in &model.nodes {
        let given: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|id| id.and_then(|id| values.get(&id))).collect();
        let operands: Vec<Option<Operand>> = given
            .iter()
            .map(|t| t.map(|t| Operand::constant(std::sync::Arc::new(t.clone()))))
            .collect();
        let made = match node.op.expand(&operands) {
            Some(expansion) => {
                let inner: Vec<Tensor> =
                    expansion.inputs.iter().filter_map(|&i| given.get(i)?.cloned()).collect();
                interpret(&expansion.model, &inner, pool)?
            }
            None => ops::evaluate(node.op.as_ref(), &given, pool).map_err(|e| {
                SessionError::Tail(format!("node '{}' ({}): {e}", node.name, node.op.op_type()))
            })?,
        };
        values.extend(node.outputs.iter().zip(made).filter_map(|(id, t)| Some(((*id)?, t))));
    }
    model
        .outputs
        .iter()
        .map(|id| {
            values.get(id).cloned().ok_or_else(|| {
                let name = &model.values[id.index()];
                SessionError::Tail(format!("output '{name}' is never computed"))
            })
        })
        .collect()
}
