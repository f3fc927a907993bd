//! A mean over all spatial dimensions is global average pooling, which has a layout.

use super::{editor::Editor, pattern};
use crate::{ir::NodeId, ops::InputsExt, tensor::DType};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some_and(|n| n.op.op_type() == "ReduceMean") {
            rewrite(e, id);
        }
    }
}

fn rewrite(e: &mut Editor, id: NodeId) -> Option<()> {
    let x = e.input(id, 0)?;
    let shape = e.shape(x).to_vec();
    let rank = shape.len() as i64;
    let mut axes = match pattern::ints(&*e.node(id).op, "axes") {
        Some(axes) => axes,
        None => e.operands(&e.node(id).inputs).integers(1, "axes").ok()??,
    };
    axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += rank);
    axes.sort_unstable();
    // Rank 3 is as likely rows of features as a signal.
    if rank < 4 || axes != (2..rank).collect::<Vec<_>>() || e.ty(x).dtype != DType::F32 {
        return None;
    }
    let output = e.output(id)?;
    let name = e.node(id).name.clone();
    let pool = pattern::make("", "GlobalAveragePool", &[])?;
    let dims = e.shape(output).to_vec();
    if dims.len() == shape.len() {
        e.replace_op(id, pool, vec![Some(x)]);
        return Some(());
    }
    for (old, pooled) in e.rewrite(id, pool, vec![Some(x)]).ok()? {
        let (dims, reshape) = pattern::reshape_parts(e, &name, &dims);
        let inputs = vec![Some(pooled), Some(dims)];
        e.restore_many(old, &format!("{name}/shape"), reshape, inputs);
    }
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
    fn means_over_the_spatial_dimensions() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 4, 5]);
        let (spatial, channels) = (b.ints(&[-1, 2]), b.ints(&[1, 2]));
        let keep = |v| [("keepdims", AttributeValue::Int(v))];
        let y = b.node("ReduceMean", &[x, spatial], &keep(1));
        let z = b.node("ReduceMean", &[x, spatial], &keep(0));
        let w = b.node("ReduceMean", &[x, channels], &keep(0));
        let after = check(&b.graph(&[y, z, w]), &[run], 1e-6);
        let expected = [("GlobalAveragePool", 2), ("ReduceMean", 1), ("Reshape", 1)];
        assert_eq!(counts(&after), expected.into());
    }
}
