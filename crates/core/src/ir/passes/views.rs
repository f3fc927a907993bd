//! Chains of Reshape and Transpose become the shortest chain that does the same: pairs that
//! cancel disappear, moves of dimensions of size 1 become reshapes.

use super::{
    editor::Editor,
    pattern,
    strided::{self, Kind, View},
};
use crate::ir::{NodeId, ValueId};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() && strided::kind(e, id).is_some_and(|k| k != Kind::Select) {
            shorten(e, id);
        }
    }
}

fn shorten(e: &mut Editor, id: NodeId) -> Option<()> {
    let output = e.output(id)?;
    let continues = |user: &NodeId| strided::kind(e, *user).is_some_and(|k| k != Kind::Select);
    // The end of the chain sees all of it.
    if !e.is_output(output) && e.users(output).iter().all(continues) {
        return None;
    }
    let view = strided::trace(e, output, false, false);
    let transposes =
        view.nodes.iter().filter(|n| strided::kind(e, **n) == Some(Kind::Transpose)).count();
    let axes = view.merged();
    let needed = usize::from(axes.len() > 1);
    let shorter = needed < transposes
        || (transposes == 0 && view.nodes.len() > 1)
        // Moves of size-1 dimensions only: a reshape.
        || (needed == 0 && transposes > 0);
    if !shorter {
        return None;
    }
    let new = rebuild(e, &view, output, id)?;
    if e.can_replace(output, new) {
        e.replace_value(output, new);
        e.remove(id);
    }
    Some(())
}

/// Adds the shortest chain for a view of all of its base.
fn rebuild(e: &mut Editor, view: &View, output: ValueId, id: NodeId) -> Option<ValueId> {
    let name = e.node(id).name.clone();
    let mut origin: Vec<String> = Vec::new();
    for node in &view.nodes {
        origin.extend(e.node(*node).origin.iter().cloned());
    }
    let shape = e.shape(output).to_vec();
    let axes = view.merged();
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(axes[i].stride));
    let perm = pattern::inverse(&order);
    let mut x = view.base;
    if !pattern::is_identity(&perm) {
        let (shape, perm) = in_base_dims(e.shape(view.base), &shape, view)
            .unwrap_or_else(|| (order.iter().map(|&i| axes[i].size).collect(), perm.clone()));
        x = pattern::reshape(e, &format!("{name}/shaped"), x, &shape, origin.clone());
        x = pattern::transpose(e, &format!("{name}/transposed"), x, &perm, origin.clone());
    }
    Some(pattern::reshape(e, &name, x, &shape, origin))
}

/// The transposition in the base's own dimensions, if it is one of them: no reshapes needed.
fn in_base_dims(base: &[usize], shape: &[usize], view: &View) -> Option<(Vec<usize>, Vec<usize>)> {
    if base.len() != shape.len() {
        return None;
    }
    let whole = strided::row_major(base);
    let mut free: Vec<usize> = (0..base.len()).collect();
    let perm = view
        .axes
        .iter()
        .map(|axis| {
            let at = free.iter().position(|&b| {
                whole[b].size == axis.size && (axis.size == 1 || whole[b].stride == axis.stride)
            })?;
            Some(free.remove(at))
        })
        .collect::<Option<Vec<_>>>()?;
    Some((base.to_vec(), perm))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::passes::testing::{Build, check, counts};

    #[test]
    fn cancelling_and_shape_only_moves() {
        let mut b = Build::new();
        let x = b.input(&[1, 4, 3, 2]);
        // Spatial rows to channels last and back, through a reshape.
        let y = b.transpose(x, &[0, 3, 1, 2]);
        let y = b.reshape(y, &[1, 2, 12]);
        let y = b.transpose(y, &[0, 2, 1]);
        let y = b.op("Relu", &[y]);
        // A dimension of size 1 moves.
        let y = b.transpose(y, &[1, 0, 2]);
        let y = b.op("Exp", &[y]);
        let after = check(&b.graph(&[y]), &[run], 0.0);
        assert_eq!(counts(&after), [("Exp", 1), ("Relu", 1), ("Reshape", 2)].into());
    }

    #[test]
    fn three_transpositions_become_one() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 4]);
        let y = b.transpose(x, &[1, 0, 2]);
        let y = b.transpose(y, &[0, 2, 1]);
        let y = b.transpose(y, &[2, 0, 1]);
        let after = check(&b.graph(&[y]), &[run], 0.0);
        assert!(counts(&after)["Transpose"] == 1, "{after}");
    }

    #[test]
    fn a_value_inside_the_chain_may_be_wanted() {
        let mut b = Build::new();
        let x = b.input(&[2, 3, 4]);
        let y = b.transpose(x, &[0, 2, 1]);
        let z = b.transpose(y, &[0, 2, 1]);
        let z = b.op("Relu", &[z]);
        let after = check(&b.graph(&[y, z]), &[run], 0.0);
        assert_eq!(counts(&after), [("Relu", 1), ("Transpose", 1)].into());
    }
}
