//! Chains of reshapes, transpositions and slices read as one strided view of the value that they
//! start from: what the chain does, however it is spelled.

use super::{editor::Editor, pattern};
use crate::{
    ir::{NodeId, ValueId},
    ops::InputsExt,
};

/// Longest chain that is followed.
const MAX_CHAIN: usize = 16;

/// A dimension of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// Number of elements.
    pub(super) size: usize,
    /// Distance between them in the base, in elements.
    pub(super) stride: usize,
}

/// Elements of `base`, addressed as `offset + sum of index * stride`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Where the elements lie, row-major.
    pub(super) base: ValueId,
    /// First element.
    pub(super) offset: usize,
    /// One entry per dimension of the viewed value.
    pub(super) axes: Vec<Axis>,
    /// The nodes of the chain, from the base.
    pub(super) nodes: Vec<NodeId>,
}

impl View {
    /// All of a value.
    pub(super) fn whole(e: &Editor, base: ValueId) -> View {
        View { base, offset: 0, axes: row_major(e.shape(base)), nodes: Vec::new() }
    }

    /// The axes without those of size 1, neighbours merged where they are one stretch.
    pub(super) fn merged(&self) -> Vec<Axis> {
        merged(&self.axes)
    }
}

/// See [`View::merged`].
pub(super) fn merged(axes: &[Axis]) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::with_capacity(axes.len());
    for axis in axes.iter().filter(|a| a.size != 1) {
        match merged.last_mut() {
            Some(last) if last.stride == axis.stride * axis.size => {
                *last = Axis { size: last.size * axis.size, stride: axis.stride };
            }
            _ => merged.push(*axis),
        }
    }
    merged
}

pub(super) fn row_major(shape: &[usize]) -> Vec<Axis> {
    let mut stride = 1;
    let mut axes: Vec<Axis> = shape
        .iter()
        .rev()
        .map(|&size| {
            let axis = Axis { size, stride };
            stride *= size;
            axis
        })
        .collect();
    axes.reverse();
    axes
}

/// The same elements under another shape; `None` when that takes a copy.
pub(super) fn reshaped(axes: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
    if shape.contains(&0) || axes.iter().any(|a| a.size == 0) {
        return None;
    }
    let stretches = merged(axes);
    let mut stretches = stretches.iter().rev();
    let mut result = vec![Axis { size: 1, stride: 1 }; shape.len()];
    // What is left of the stretch being carved up, from its inner end.
    let (mut left, mut stride) = (1, 1);
    for (out, &size) in result.iter_mut().zip(shape).rev() {
        if size == 1 {
            continue;
        }
        if left == 1 {
            let next = stretches.next()?;
            (left, stride) = (next.size, next.stride);
        }
        if left % size != 0 {
            return None;
        }
        *out = Axis { size, stride };
        left /= size;
        stride *= size;
    }
    (left == 1 && stretches.next().is_none()).then_some(result)
}

/// Whether a node only renames elements, so that a view can go through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A shape is all that changes.
    Reshape,
    /// Dimensions change places.
    Transpose,
    /// Some elements are left out.
    Select,
}

/// What kind of view a node is, if one.
pub(super) fn kind(e: &Editor, id: NodeId) -> Option<Kind> {
    let op = &e.node(id).op;
    match op.op_type() {
        "Transpose" => Some(Kind::Transpose),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => Some(Kind::Reshape),
        "Slice" | "Split" | "Gather" => Some(Kind::Select),
        _ => None,
    }
}

/// Follows the chain that ends in `value` back to where it starts. `selections`: also through
/// Slice, Split and Gather. `scalars`: also through products with numbers; see [`factor`].
pub(super) fn trace(e: &Editor, value: ValueId, selections: bool, scalars: bool) -> View {
    let mut chain = Vec::new();
    let mut base = value;
    while chain.len() < MAX_CHAIN
        && let Some(id) = e.producer(base)
        && let Some(source) = source(e, id, selections, scalars)
    {
        chain.push((id, base));
        base = source;
    }
    let mut view = View::whole(e, base);
    for (id, output) in chain.into_iter().rev() {
        view = match step(e, &view, id, output) {
            Some((offset, axes)) => {
                let mut nodes = view.nodes;
                nodes.push(id);
                View { base: view.base, offset, axes, nodes }
            }
            None => View::whole(e, output),
        };
    }
    view
}

/// The input that a node only renames the elements of.
fn source(e: &Editor, id: NodeId, selections: bool, scalars: bool) -> Option<ValueId> {
    match kind(e, id) {
        Some(Kind::Select) if !selections => None,
        Some(_) => e.input(id, 0),
        None if scalars => scaled(e, id).map(|(x, _)| x),
        None => None,
    }
}

/// A value times a number.
fn scaled(e: &Editor, id: NodeId) -> Option<(ValueId, f32)> {
    pattern::with_scalar(e, id, "Mul").or_else(|| {
        let (x, s) = pattern::binary(e, id, "Div")?;
        let s = pattern::scalar(e, s)?;
        (e.shape(x) == e.shape(e.output(id)?)).then_some((x, 1.0 / s))
    })
}

/// The product of the numbers that the chain of a view multiplies with.
pub(super) fn factor(e: &Editor, view: &View) -> f32 {
    view.nodes.iter().filter_map(|id| scaled(e, *id)).map(|(_, s)| s).product()
}

/// Offset and axes of the view after one more node; `None` where that takes a copy.
pub(super) fn step(
    e: &Editor,
    view: &View,
    id: NodeId,
    output: ValueId,
) -> Option<(usize, Vec<Axis>)> {
    let node = e.node(id);
    let shape = e.shape(output);
    match node.op.op_type() {
        "Transpose" => {
            let perm = pattern::permutation(e, id)?;
            Some((view.offset, perm.iter().map(|&p| view.axes[p]).collect()))
        }
        "Slice" => {
            let inputs = e.operands(&node.inputs);
            let rank = view.axes.len();
            let starts = inputs.integers(1, "starts").ok()??;
            let axes = inputs.integers(3, "axes").ok()?;
            let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
            let steps = inputs.integers(4, "steps").ok()?;
            let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
            let mut result = view.axes.clone();
            let mut offset = view.offset;
            for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
                let axis = normal_axis(axis, rank)?;
                let step = usize::try_from(step).ok()?;
                let size = view.axes[axis].size as i64;
                let start = if start < 0 { start.saturating_add(size) } else { start };
                offset += start.clamp(0, size) as usize * view.axes[axis].stride;
                result[axis] =
                    Axis { size: shape[axis], stride: view.axes[axis].stride.checked_mul(step)? };
            }
            Some((offset, result))
        }
        "Split" => {
            let axis = normal_axis(pattern::int(&*node.op, "axis").unwrap_or(0), view.axes.len())?;
            let before = node.outputs.iter().take_while(|o| **o != Some(output));
            let types = e.output_types(id);
            let start: usize = before.zip(&types).map(|(_, ty)| ty.shape[axis]).sum();
            let mut axes = view.axes.clone();
            axes[axis].size = shape[axis];
            Some((view.offset + start * view.axes[axis].stride, axes))
        }
        "Gather" => {
            let axis = normal_axis(pattern::int(&*node.op, "axis").unwrap_or(0), view.axes.len())?;
            let index = e.constant_input(id, 1)?;
            let [index] = index.to_i64s()?[..] else { return None };
            let size = view.axes[axis].size as i64;
            let index = if index < 0 { index + size } else { index };
            if !(0..size).contains(&index) {
                return None;
            }
            let mut axes = view.axes.clone();
            axes[axis].size = 1;
            let axes = reshaped_with_ones(&axes, shape)?;
            Some((view.offset + index as usize * view.axes[axis].stride, axes))
        }
        "Mul" | "Div" => Some((view.offset, view.axes.clone())),
        _ => Some((view.offset, reshaped(&view.axes, shape)?)),
    }
}

/// Inserts or removes axes of size 1.
fn reshaped_with_ones(axes: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
    let mut rest = axes.iter().filter(|a| a.size != 1);
    let result = shape
        .iter()
        .map(|&size| match size {
            1 => Some(Axis { size: 1, stride: 1 }),
            _ => rest.next().copied().filter(|a| a.size == size),
        })
        .collect::<Option<Vec<_>>>()?;
    rest.next().is_none().then_some(result)
}

fn normal_axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(list: &[(usize, usize)]) -> Vec<Axis> {
        list.iter().map(|&(size, stride)| Axis { size, stride }).collect()
    }

    #[test]
    fn reshapes_of_strided_views() {
        // 2 x 3 x 4, transposed to 4 x 2 x 3: the last two are one stretch.
        let view = axes(&[(4, 1), (2, 12), (3, 4)]);
        assert_eq!(reshaped(&view, &[4, 6]), Some(axes(&[(4, 1), (6, 4)])));
        assert_eq!(reshaped(&view, &[2, 2, 1, 6]), Some(axes(&[(2, 2), (2, 1), (1, 1), (6, 4)])));
        assert_eq!(reshaped(&view, &[8, 3]), None);
        assert_eq!(reshaped(&view, &[24]), None);
        assert_eq!(reshaped(&axes(&[(0, 1)]), &[0, 2]), None);
    }
}
