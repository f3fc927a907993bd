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
    let view = strided::trace(e, output, false, false);
    // The end of the chain sees all of it.
    let continues = |user: &NodeId| {
        strided::kind(e, *user).is_some_and(|k| k != Kind::Select)
            && e.output(*user).is_some_and(|o| strided::step(e, &view, *user, o).is_some())
    };
    if !e.is_output(output) && e.users(output).iter().all(continues) {
        return None;
    }
    let is_transpose = |n: &NodeId| strided::kind(e, *n) == Some(Kind::Transpose);
    let transposes = view.nodes.iter().filter(|n| is_transpose(n)).count();
    let needed = usize::from(view.merged().len() > 1);
    let ends_in_reshape = !view.nodes.last().is_some_and(is_transpose);
    let shorter = needed < transposes
        || (transposes == 0 && view.nodes.len() > 1)
        // A transposition at the end can sink further.
        || (transposes == 1 && ends_in_reshape);
    if !shorter {
        return None;
    }
    let new = rebuild(e, &view, output, id);
    if e.can_replace(output, new) {
        e.replace_value(output, new);
        e.remove(id);
    }
    Some(())
}

/// Adds the shortest chain for a view of all of its base: a reshape, then a transposition, either
/// left out where it would change nothing.
pub(super) fn rebuild(e: &mut Editor, view: &View, output: ValueId, id: NodeId) -> ValueId {
    let name = e.node(id).name.clone();
    let origin = e.origins(&view.nodes);
    let order = in_base_dims(e.shape(view.base), view).unwrap_or_else(|| by_stride(view));
    let sizes: Vec<usize> = order.iter().map(|&i| view.axes[i].size).collect();
    let perm = pattern::inverse(&order);
    if view.merged().len() <= 1 {
        let shape = e.shape(output).to_vec();
        return pattern::reshape(e, &name, view.base, &shape, origin);
    }
    let x = pattern::reshape(e, &format!("{name}/shape"), view.base, &sizes, origin.clone());
    pattern::transpose(e, &name, x, &perm, origin)
}

/// The view's dimensions in the order in which they lie in memory; those of size 1 stay with
/// their right neighbours.
fn by_stride(view: &View) -> Vec<usize> {
    let mut keys = vec![0; view.axes.len()];
    let mut stride = 0;
    for (key, axis) in keys.iter_mut().zip(&view.axes).rev() {
        if axis.size != 1 {
            stride = axis.stride;
        }
        *key = stride;
    }
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(keys[i]));
    order
}

/// The view's dimensions in the order of the base's own dimensions, if they are the same: no
/// reshape is needed then.
fn in_base_dims(base: &[usize], view: &View) -> Option<Vec<usize>> {
    if base.len() != view.axes.len() {
        return None;
    }
    let mut free: Vec<usize> = (0..base.len()).collect();
    strided::row_major(base)
        .iter()
        .map(|b| {
            let at = free.iter().position(|&i| {
                let axis = view.axes[i];
                axis.size == b.size && (b.size == 1 || axis.stride == b.stride)
            })?;
            Some(free.remove(at))
        })
        .collect()
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
        let y = b.transpose(y, &[1, 0, 2]);
        let after = check(&b.graph(&[y]), &[run], 0.0);
        assert!(counts(&after)["Transpose"] == 1, "{after}");
    }

    #[test]
    fn pixel_shuffle_of_channels_last_is_one_transposition() {
        let mut b = Build::new();
        let x = b.input(&[1, 4, 5, 9]);
        let y = b.transpose(x, &[0, 3, 1, 2]);
        let y = b.reshape(y, &[1, 1, 3, 3, 4, 5]);
        let y = b.transpose(y, &[0, 1, 4, 2, 5, 3]);
        let y = b.reshape(y, &[1, 1, 12, 15]);
        let after = check(&b.graph(&[y]), &[run], 0.0);
        assert_eq!(counts(&after)["Transpose"], 1, "{after}");
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
