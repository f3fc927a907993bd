//! MatMul and Gemm with a constant matrix become Linear.

use super::{affine::scale_weights, editor::Editor, pattern};
use crate::{
    ir::NodeId,
    ops::gemm::Linear,
    tensor::{DType, Tensor},
};
use std::sync::Arc;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        match e.get(id).map(|n| n.op.op_type()) {
            Some("MatMul") => from_matmul(e, id),
            Some("Gemm") => from_gemm(e, id),
            _ => None,
        };
    }
}

fn linear(trans_b: bool) -> Arc<Linear> {
    Arc::new(Linear { trans_b, ..Linear::default() })
}

fn from_matmul(e: &mut Editor, id: NodeId) -> Option<()> {
    let (x, w) = (e.input(id, 0)?, e.input(id, 1)?);
    let matrix = e.constant(w)?;
    let (rank, shape) = (e.shape(x).len(), matrix.ty().shape.clone());
    let leading_ones = shape.len() >= 2 && shape[..shape.len() - 2].iter().all(|&d| d == 1);
    if matrix.ty().dtype != DType::F32 || rank < 2 || rank < shape.len() || !leading_ones {
        return None;
    }
    let w = if shape.len() == 2 {
        w
    } else {
        let flat = matrix.reshaped(&shape[shape.len() - 2..])?;
        let name = format!("{}/weight", e.node(id).name);
        e.add_constant(name, flat)
    };
    e.replace_op(id, linear(false), vec![Some(x), Some(w)]);
    Some(())
}

fn from_gemm(e: &mut Editor, id: NodeId) -> Option<()> {
    let op = &*e.node(id).op;
    let alpha = pattern::float(op, "alpha").unwrap_or(1.0);
    let beta = pattern::float(op, "beta").unwrap_or(1.0);
    let flag = |name| pattern::int(op, name).unwrap_or(0) != 0;
    let (trans_a, trans_b) = (flag("transA"), flag("transB"));
    let (x, w) = (e.input(id, 0)?, e.input(id, 1)?);
    let matrix = e.constant(w)?.clone();
    let columns = *e.shape(e.output(id)?).last()?;
    if trans_a || matrix.ty().dtype != DType::F32 {
        return None;
    }
    let bias = match e.input(id, 2) {
        None => None,
        Some(c) => {
            let tensor = e.constant(c)?;
            let values = pattern::floats(tensor)?;
            let shape = &tensor.ty().shape;
            let rows_are_one = shape.len() < 2 || shape[0] == 1;
            match values.len() {
                1 => Some(vec![values[0] * beta; columns]),
                n if n == columns && rows_are_one => {
                    Some(values.iter().map(|v| v * beta).collect::<Vec<_>>())
                }
                _ => return None,
            }
        }
    };
    let name = e.node(id).name.clone();
    let mut inputs = vec![Some(x), Some(w)];
    if alpha != 1.0 {
        let scaled = scale_weights(&matrix, 0, vec![alpha])?;
        inputs[1] = Some(e.add_constant(format!("{name}/weight"), scaled));
    }
    if let Some(bias) = bias {
        let same = e.input(id, 2).filter(|c| beta == 1.0 && e.shape(*c) == [columns]);
        let bias = same.unwrap_or_else(|| {
            e.add_constant(format!("{name}/bias"), Tensor::from_slice([columns], &bias))
        });
        inputs.push(Some(bias));
    }
    e.replace_op(id, linear(trans_b), inputs);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::passes::testing::{Build, check, counts},
        ops::AttributeValue,
    };

    #[test]
    fn products_with_constants() {
        let mut b = Build::new();
        let x = b.input(&[3, 4]);
        let (w, c, m) = (b.weights(&[5, 4]), b.weights(&[1, 5]), b.weights(&[1, 5, 2]));
        let y = b.node(
            "Gemm",
            &[x, w, c],
            &[
                ("alpha", AttributeValue::Float(0.5)),
                ("beta", AttributeValue::Float(2.0)),
                ("transB", AttributeValue::Int(1)),
            ],
        );
        let y = b.reshape(y, &[1, 3, 5]);
        let y = b.op("MatMul", &[y, m]);
        let after = check(&b.graph(&[y]), &[run], 1e-6);
        assert_eq!(counts(&after), [("Linear", 2), ("Reshape", 1)].into());
    }

    #[test]
    fn products_of_two_inputs_stay() {
        let mut b = Build::new();
        let (x, y) = (b.input(&[3, 4]), b.input(&[4, 2]));
        let w = b.weights(&[2, 3]);
        let z = b.op("MatMul", &[x, y]);
        let z = b.op("MatMul", &[w, z]);
        let after = check(&b.graph(&[z]), &[run], 1e-6);
        assert_eq!(counts(&after), [("MatMul", 2)].into());
    }
}
