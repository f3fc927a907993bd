//! Reshapes that only regroup leading dimensions sink below the linear operator that follows,
//! where they meet the reshape that undoes them: [B, S, K] -> [B*S, K] -> Gemm -> [B, S, N].

use super::{
    editor::Editor,
    pattern,
    strided::{self, Kind},
};
use crate::{
    ir::{NodeId, ValueId},
    ops::{conv::ResidualKind, gemm::Linear},
};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some_and(|n| n.op.is::<Linear>()) {
            sink(e, id);
        }
    }
}

fn sink(e: &mut Editor, id: NodeId) -> Option<()> {
    let (x, output) = (e.input(id, 0)?, e.output(id)?);
    let reshape = e.producer(x).filter(|p| strided::kind(e, *p) == Some(Kind::Reshape))?;
    let source = e.input(reshape, 0)?;
    let (from, to) = (e.shape(source).to_vec(), e.shape(x).to_vec());
    if from.len() < 2 || from.last() != to.last() {
        return None;
    }
    // Only where it helps: another view follows.
    let next = *e.users(output).first()?;
    strided::kind(e, next)?;
    let node = e.node(id);
    if node.op.downcast::<Linear>()?.residual != ResidualKind::None {
        return None;
    }
    let (op, name, mut inputs) = (node.op.clone(), node.name.clone(), node.inputs.clone());
    let shape = e.shape(output).to_vec();
    inputs[0] = Some(source);
    let moved: Vec<(ValueId, ValueId)> = e.rewrite(id, op, inputs).ok()?;
    for (old, new) in moved {
        let (dims, op) = pattern::reshape_parts(e, &name, &shape);
        e.restore_many(old, &format!("{name}/rows"), op, vec![Some(new), Some(dims)]);
    }
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
        assert_eq!(summary(&after), "Linear 1");
        assert_eq!(after.nodes.len(), 1, "{after}");
    }
}
