//! Concatenations of slices of one value that together are all of it only move elements: the two
//! halves in each other's place are a Roll (what `torch.roll` is exported as), every second row and
//! column side by side are a transposition (as Swin's patch merging and YOLO's focus have them).

use std::sync::Arc;

use super::{
    editor::Editor,
    pattern,
    strided::{self, Axis, View},
    views,
};
use crate::{
    ir::{NodeId, ValueId},
    ops::{axes, roll::Roll},
};

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some_and(|n| n.op.op_type() == "Concat") {
            roll(e, id).or_else(|| transposition(e, id));
        }
    }
}

fn joined_axis(e: &Editor, id: NodeId, output: ValueId) -> Option<usize> {
    axes::axis(pattern::int(&*e.node(id).op, "axis")?, e.shape(output).len()).ok()
}

/// The value that `part` is a slice of, and where it begins there along `axis`, which is the only one that
/// is cut.
fn slice(e: &Editor, part: ValueId, axis: usize) -> Option<(ValueId, usize)> {
    let id = pattern::made_by(e, part, "Slice")?;
    let x = e.input(id, 0)?;
    let whole = View::whole(e, x);
    let (offset, cut) = strided::step(e, &whole, id, part)?;
    let same = |(i, (a, b)): (usize, (&Axis, &Axis))| {
        a.stride == b.stride && (i == axis || a.size == b.size)
    };
    let stride = whole.axes.get(axis)?.stride;
    (whole.axes.iter().zip(&cut).enumerate().all(same)).then_some((x, offset / stride))
}

/// The second part of a value before the first one. Another roll before it becomes one with it.
fn roll(e: &mut Editor, id: NodeId) -> Option<()> {
    let output = e.output(id)?;
    let axis = joined_axis(e, id, output)?;
    let [Some(first), Some(second)] = e.node(id).inputs[..] else { return None };
    let ((x, start), (y, 0)) = (slice(e, first, axis)?, slice(e, second, axis)?) else {
        return None;
    };
    if x != y || e.shape(x) != e.shape(output) || e.shape(second)[axis] != start || start == 0 {
        return None;
    }
    let (mut x, mut starts) = (x, vec![0; e.shape(x).len()]);
    starts[axis] = start;
    let cuts = [e.producer(first)?, e.producer(second)?];
    let parts = [first, second].into_iter().zip(cuts);
    let vanishing = parts.filter(|(part, _)| e.used_only_by(*part, &[id]));
    let mut replaced: Vec<NodeId> = vanishing.map(|(_, cut)| cut).collect();
    let before = e.producer(x).filter(|_| e.used_only_by(x, &cuts));
    if let Some(before) = before
        && let Some(other) = e.node(before).op.downcast::<Roll>()
    {
        let sizes = e.shape(x);
        let both = starts.iter().zip(&other.starts).zip(sizes).map(|((a, b), size)| (a + b) % size);
        starts = both.collect();
        x = e.input(before, 0)?;
        replaced.push(before);
    }
    let origin = e.origins(&replaced);
    e.add_origin(id, origin);
    e.replace_op(id, Arc::new(Roll { starts }), vec![Some(x)]);
    Some(())
}

/// Parts that differ only in where they begin, evenly apart: axes of their own.
fn transposition(e: &mut Editor, id: NodeId) -> Option<()> {
    let output = e.output(id)?;
    let axis = joined_axis(e, id, output)?;
    let parts: Option<Vec<View>> =
        e.node(id).inputs.iter().map(|x| Some(strided::trace(e, (*x)?, true, false))).collect();
    let parts = parts?;
    let (first, others) = parts.split_first()?;
    let alike = |part: &View| part.base == first.base && part.axes == first.axes;
    if others.is_empty() || !others.iter().all(alike) {
        return None;
    }
    let offsets: Vec<usize> = parts.iter().map(|part| part.offset).collect();
    let between = even(&offsets)?;
    let mut axes = first.axes.clone();
    axes.splice(axis..axis, between);
    if !is_all(&axes, e.shape(first.base)) {
        return None;
    }
    let nodes = parts.iter().flat_map(|part| part.nodes.iter().copied()).chain([id]).collect();
    let view = View { base: first.base, offset: 0, axes, nodes };
    let name = e.node(id).name.clone();
    let moved = views::rebuild(e, &view, output, id);
    let shape = e.shape(output).to_vec();
    let new = pattern::reshape(e, &format!("{name}/joined"), moved, &shape, Vec::new());
    if e.can_replace(output, new) {
        e.replace_value(output, new);
        e.remove(id);
    }
    Some(())
}

/// Numbers from 0 on as the row-major elements of a strided view.
fn even(offsets: &[usize]) -> Option<Vec<Axis>> {
    let (mut axes, mut rest) = (Vec::new(), offsets.to_vec());
    while let [first, second, ..] = rest[..] {
        let stride = second.checked_sub(first).filter(|stride| *stride > 0)?;
        let even = |run: &[usize]| run.windows(2).all(|w| w[0].checked_add(stride) == Some(w[1]));
        let size = (2..=rest.len()).take_while(|&size| even(&rest[..size])).last()?;
        if !rest.len().is_multiple_of(size) || !rest.chunks(size).all(even) {
            return None;
        }
        axes.insert(0, Axis { size, stride });
        rest = rest.iter().step_by(size).copied().collect();
    }
    (rest == [0]).then_some(axes)
}

/// Whether axes in any order reach every element of `shape` once.
fn is_all(axes: &[Axis], shape: &[usize]) -> bool {
    let mut axes = axes.to_vec();
    axes.sort_by_key(|axis| std::cmp::Reverse(axis.stride));
    strided::merged(&axes) == [Axis { size: shape.iter().product(), stride: 1 }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{
            ModelValueId,
            passes::testing::{Build, check, summary},
        },
        ops::AttributeValue,
    };

    fn cut(b: &mut Build, x: ModelValueId, list: &[[i64; 4]]) -> ModelValueId {
        let column = |i: usize| list.iter().map(|row| row[i]).collect::<Vec<_>>();
        let lists = [1, 2, 0, 3].map(|i| b.ints(&column(i)));
        b.op("Slice", &[&[x], lists.as_slice()].concat())
    }

    fn concat(b: &mut Build, parts: &[ModelValueId], axis: i64) -> ModelValueId {
        b.node("Concat", parts, &[("axis", AttributeValue::Int(axis))])
    }

    fn rolled(b: &mut Build, x: ModelValueId, axis: i64, start: i64) -> ModelValueId {
        let end = cut(b, x, &[[axis, start, i64::MAX, 1]]);
        let begin = cut(b, x, &[[axis, 0, start, 1]]);
        concat(b, &[end, begin], axis)
    }

    #[test]
    fn shifts_of_two_axes_are_one_roll() {
        let mut b = Build::new();
        let x = b.input(&[2, 6, 7, 3]);
        let y = rolled(&mut b, x, 1, 2);
        let y = rolled(&mut b, y, 2, -3);
        let z = b.op("Relu", &[y]);
        let w = rolled(&mut b, z, 1, 4);
        let w = rolled(&mut b, w, 1, 5);
        let after = check(&b.graph(&[y, w]), &[run], 0.0);
        assert_eq!(summary(&after), "Relu 1, Roll 2");
        let roll = after.nodes.iter().find_map(|n| n.op.downcast::<Roll>()).unwrap();
        assert_eq!(roll.starts, [0, 2, 4, 0]);
        // Both concatenations, and what they joined.
        assert!(
            after.nodes.iter().all(|n| n.op.op_type() != "Roll" || n.origin.len() == 6),
            "{after}"
        );
    }

    #[test]
    fn a_shift_that_somebody_else_reads_stays() {
        let mut b = Build::new();
        let x = b.input(&[2, 6, 7]);
        let y = rolled(&mut b, x, 1, 2);
        let z = rolled(&mut b, y, 2, 3);
        let after = check(&b.graph(&[y, z]), &[run], 0.0);
        assert_eq!(summary(&after), "Roll 2");
    }

    #[test]
    fn every_second_pixel_is_a_transposition() {
        for (last, order) in
            [(true, [[0, 0], [1, 0], [0, 1], [1, 1]]), (false, [[0, 0], [0, 1], [1, 0], [1, 1]])]
        {
            let mut b = Build::new();
            let x = b.input(if last { &[2, 6, 4, 3] } else { &[2, 3, 6, 4] });
            let [down, across] = if last { [1, 2] } else { [2, 3] };
            let pixels = |[i, j]: [i64; 2]| {
                let y = cut(&mut b, x, &[[down, i, i64::MAX, 2]]);
                cut(&mut b, y, &[[across, j, i64::MAX, 2]])
            };
            let parts = order.map(pixels);
            let y = concat(&mut b, &parts, if last { -1 } else { 1 });
            let y = b.op("Relu", &[y]);
            let after = check(&b.graph(&[y]), &[run], 0.0);
            assert_eq!(summary(&after), "Relu 1, Transpose 1", "{after}");
            let moved = after.nodes.iter().find(|n| n.op.op_type() == "Transpose").unwrap();
            assert_eq!(
                moved.origin.len(),
                9,
                "four times two slices, and what joins them: {after}"
            );
        }
    }

    #[test]
    fn what_is_not_all_of_a_value_stays() {
        let mut b = Build::new();
        let x = b.input(&[2, 6, 4]);
        // Not all of it, in a different order, one part twice, and halves that are as they were.
        let a = cut(&mut b, x, &[[1, 0, 2, 1]]);
        let c = cut(&mut b, x, &[[1, 2, 4, 1]]);
        let d = cut(&mut b, x, &[[1, 4, 6, 1]]);
        let some = concat(&mut b, &[a, c], 1);
        let turned = concat(&mut b, &[d, c, a], 1);
        let twice = concat(&mut b, &[a, a, d], 1);
        let same = concat(&mut b, &[a, c, d], 1);
        let same = b.op("Relu", &[same]);
        let after = check(&b.graph(&[some, turned, twice, same]), &[run], 0.0);
        assert_eq!(summary(&after), "Concat 3, Relu 1, Slice 3", "{after}");
    }
}
