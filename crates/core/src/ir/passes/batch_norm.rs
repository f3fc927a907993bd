//! BatchNormalization with constant statistics becomes a product and a sum per channel, which
//! [`super::affine`] folds into the convolution before it.

use super::{editor::Editor, pattern};
use crate::{ir::NodeId, tensor::Tensor};

/// The operator's default.
const EPSILON: f32 = 1e-5;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some_and(|n| n.op.op_type() == "BatchNormalization") {
            rewrite(e, id);
        }
    }
}

fn rewrite(e: &mut Editor, id: NodeId) -> Option<()> {
    let node = e.node(id);
    let training = pattern::int(&*node.op, "training_mode").unwrap_or(0) != 0;
    let extra = node.outputs.iter().flatten().skip(1);
    if training || extra.into_iter().any(|o| !e.users(*o).is_empty() || e.is_output(*o)) {
        return None;
    }
    // The layout pass has not run yet: channels are axis 1.
    let (x, output) = (e.input(id, 0)?, e.output(id)?);
    let rank = e.shape(x).len();
    let [gamma, beta, mean, variance] =
        [1, 2, 3, 4].map(|i| e.constant_input(id, i).and_then(|t| t.as_slice::<f32>()));
    let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
    let epsilon = pattern::float(&*node.op, "epsilon").unwrap_or(EPSILON);
    let mut scale = Vec::with_capacity(gamma.len());
    let mut shift = Vec::with_capacity(gamma.len());
    for c in 0..gamma.len() {
        // Double precision: the result meets weights that have their own rounding.
        let a = f64::from(gamma[c]) / (f64::from(variance[c]) + f64::from(epsilon)).sqrt();
        scale.push(a as f32);
        shift.push((f64::from(beta[c]) - f64::from(mean[c]) * a) as f32);
    }
    let mut shape = vec![1; rank.saturating_sub(1)];
    *shape.first_mut()? = gamma.len();
    let (name, origin) = (node.name.clone(), node.origin.clone());
    let (mul, add) = (pattern::make("", "Mul", &[])?, pattern::make("", "Add", &[])?);
    let scale = e.add_constant(format!("{name}/scale"), Tensor::from_slice(shape.clone(), &scale));
    let shift = e.add_constant(format!("{name}/shift"), Tensor::from_slice(shape, &shift));
    let product =
        e.add_node(&format!("{name}/scaled"), mul, &[Some(x), Some(scale)], origin).ok()?;
    debug_assert_eq!(e.ty(product), e.ty(output), "normalisation keeps the type");
    e.replace_op(id, add, vec![Some(product), Some(shift)]);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::passes::testing::{Build, check, counts},
        ops::AttributeValue,
        tensor::Tensor,
    };

    #[test]
    fn becomes_a_product_and_a_sum() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 4, 5]);
        let (gamma, beta, mean) = (b.weights(&[3]), b.weights(&[3]), b.weights(&[3]));
        let variance = b.constant(Tensor::from_slice([3], &[0.5f32, 2.0, 1.0]));
        let inputs = [x, gamma, beta, mean, variance];
        let y = b.node("BatchNormalization", &inputs, &[("epsilon", AttributeValue::Float(1e-3))]);
        let after = check(&b.graph(&[y]), &[run], 1e-6);
        assert_eq!(counts(&after), [("Add", 1), ("Mul", 1)].into());
    }
}
