//! Reshapes that only regroup leading dimensions move from behind a linear operator to its input,
//! where they meet the reshape that they undo: [B, S, K] -> [B*S, K] -> Gemm -> [B, S, N].

use super::{
    editor::Editor,
    pattern,
    strided::{self, Kind},
};
use crate::{
    ir::NodeId,
    ops::{conv::ResidualKind, gemm::Linear},
};

pub(super) fn run(e: &mut Editor) {
    let ids: Vec<NodeId> = e.ids().collect();
    for id in ids.into_iter().rev() {
        if e.get(id).is_some_and(|n| n.op.is::<Linear>()) {
            hoist(e, id);
        }
    }
}

fn hoist(e: &mut Editor, id: NodeId) -> Option<()> {
    let (x, output) = (e.input(id, 0)?, e.output(id)?);
    let next = e.only_user(output)?;
    let reshaped = e.output(next)?;
    let (from, to) = (e.shape(output), e.shape(reshaped));
    let regroups = strided::kind(e, next) == Some(Kind::Reshape)
        && from.last() == to.last()
        && to.len() >= 2
        && e.node(id).op.downcast::<Linear>()?.residual == ResidualKind::None;
    if !regroups {
        return None;
    }
    let mut shape = to.to_vec();
    *shape.last_mut()? = *e.shape(x).last()?;
    let node = e.node(id);
    let (op, name, mut inputs) = (node.op.clone(), node.name.clone(), node.inputs.clone());
    let rows = pattern::reshape(e, &format!("{name}/rows"), x, &shape, Vec::new());
    inputs[0] = Some(rows);
    e.fuse(id, &[next], next, op, inputs);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::{
        epilogue, linear,
        testing::{Build, check, summary},
        views,
    };

    #[test]
    fn rows_stay_grouped() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 4]);
        let w = b.weights(&[4, 4]);
        let y = b.reshape(x, &[6, 4]);
        let y = b.op("Gemm", &[y, w]);
        let y = b.reshape(y, &[2, 3, 4]);
        let y = b.op("Add", &[y, x]);
        let passes = [linear::run, run, views::run, epilogue::run];
        let after = check(&b.graph(&[y]), &passes, 1e-5);
        assert_eq!(after.nodes.len(), 1, "{after}");
        assert_eq!(summary(&after), "Linear 1");
    }
}
