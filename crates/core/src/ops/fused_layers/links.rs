//! Layers with their types, and the same for a slice of the result.

use std::{ops::Range, sync::Arc};

use crate::{
    ops::{Op, OpError, Operand, Operands, PartInput, axes::gcd},
    tensor::TensorType,
};

/// What a layer reads.
#[derive(Clone, Debug)]
pub(super) enum Feed {
    Absent,
    /// An input of the whole.
    Outer {
        index: usize,
        operand: Operand,
        /// Element of the input with which it begins.
        from: usize,
        /// The last cut that made it a part of the input: axis and range.
        cut: Option<(usize, Range<usize>)>,
    },
    /// What the layer before makes, from this element on, under this type.
    Previous {
        from: usize,
        ty: TensorType,
    },
}

impl Feed {
    pub(super) fn whole(index: usize, operand: &Operand) -> Feed {
        Feed::Outer { index, operand: operand.clone(), from: 0, cut: None }
    }

    fn operand(&self) -> Option<Operand> {
        match self {
            Feed::Absent => None,
            Feed::Outer { operand, .. } => Some(operand.clone()),
            Feed::Previous { ty, .. } => Some(Operand::dynamic(ty.clone())),
        }
    }

    fn part(&self, wanted: PartInput) -> Option<Feed> {
        let PartInput::Range { axis, range } = wanted else { return Some(self.clone()) };
        let cut = |ty: &TensorType| {
            let step = step(ty, axis)?;
            let mut ty = ty.clone();
            ty.shape[axis] = range.len();
            Some((range.start * step, ty))
        };
        Some(match self {
            Feed::Absent => Feed::Absent,
            Feed::Outer { index, operand, from, cut: _ } => {
                let (more, ty) = cut(&operand.ty)?;
                // A constant's slices differ: kernels get them at run time.
                let (operand, cut) = (Operand::dynamic(ty), Some((axis, range)));
                Feed::Outer { index: *index, operand, from: from + more, cut }
            }
            Feed::Previous { from, ty } => {
                let (more, ty) = cut(ty)?;
                Feed::Previous { from: from + more, ty }
            }
        })
    }
}

/// Elements from index to index of an axis, if a range of it is contiguous.
fn step(ty: &TensorType, axis: usize) -> Option<usize> {
    let (before, after) = ty.shape.split_at(axis);
    before.iter().all(|&d| d == 1).then(|| after[1..].iter().product())
}

/// A layer with its inputs and the type of its output.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) op: Arc<dyn Op>,
    pub(super) feeds: Vec<Feed>,
    pub(super) ty: TensorType,
}

impl Link {
    /// # Errors
    /// Those of [`Op::infer`].
    pub(super) fn new(op: Arc<dyn Op>, feeds: Vec<Feed>) -> Result<Link, OpError> {
        let operands: Vec<_> = feeds.iter().map(Feed::operand).collect();
        let mut types = op.infer(&operands)?;
        if types.len() != 1 {
            return Err(OpError::invalid(format!("layer {} has several outputs", op.op_type())));
        }
        Ok(Link { op, feeds, ty: types.remove(0) })
    }

    pub(super) fn operands(&self) -> Vec<Option<Operand>> {
        self.feeds.iter().map(Feed::operand).collect()
    }

    pub(super) fn with_operands<R>(&self, f: impl FnOnce(&Operands<'_>) -> R) -> R {
        let inputs = self.operands();
        f(&Operands { inputs: &inputs, outputs: std::slice::from_ref(&self.ty) })
    }

    /// Split axis, its length in units, and elements of a unit.
    fn cuts(&self) -> Option<(usize, usize, usize)> {
        let (axis, unit) = self
            .with_operands(|x| self.op.split_axis(x).map(|axis| (axis, self.op.split_unit(x))))?;
        let step = step(&self.ty, axis)?;
        let len = self.ty.shape[axis];
        len.is_multiple_of(unit).then_some((axis, len / unit, unit * step))
    }

    /// The part that makes at least these elements, and the first element that it makes.
    fn part(&self, wanted: Range<usize>) -> Option<(Link, usize)> {
        let (axis, _, unit) = self.cuts()?;
        let step = step(&self.ty, axis)?;
        let (first, last) = (wanted.start / unit * unit, wanted.end.next_multiple_of(unit));
        let range = first / step..last / step;
        let part = self.with_operands(|x| self.op.split(x, range.clone()))?;
        let feeds = self.feeds.iter().zip(part.inputs).map(|(feed, wanted)| feed.part(wanted));
        let mut ty = self.ty.clone();
        ty.shape[axis] = range.len();
        Some((Link { op: part.op, feeds: feeds.collect::<Option<_>>()?, ty }, first))
    }
}

/// Where the result can be cut such that no layer computes much twice: the split axis of the last
/// layer, and how long pieces are at least.
pub(super) fn cuts(links: &[Link]) -> Option<(usize, usize)> {
    let mut common = 0;
    let mut last = None;
    for link in links {
        let (axis, count, _) = link.cuts()?;
        common = gcd(count, common);
        last = Some((axis, link.ty.shape[axis]));
    }
    let (axis, len) = last?;
    (common > 1).then(|| (axis, len / common))
}

/// The layers for `range` along the last one's split axis.
pub(super) fn part(links: &[Link], range: Range<usize>) -> Option<Vec<Link>> {
    let last = links.last()?;
    let (axis, ..) = last.cuts()?;
    let step = step(&last.ty, axis)?;
    let mut wanted = range.start * step..range.end * step;
    let mut parts = Vec::with_capacity(links.len());
    for (i, link) in links.iter().enumerate().rev() {
        let (mut part, first) = link.part(wanted.clone())?;
        if i + 1 == links.len() && (first, part.ty.len()) != (wanted.start, wanted.len()) {
            return None;
        }
        // What the layer before must make: all that this one reads of it.
        let mut reads = part.feeds.iter().filter_map(|feed| match feed {
            Feed::Previous { from, ty } => Some(*from..from + ty.len()),
            _ => None,
        });
        let read = reads.next();
        if reads.next().is_some() || (i > 0) != read.is_some() {
            return None;
        }
        if let Some(read) = read {
            wanted = read;
            let made_from = links[i - 1].cuts().map(|(_, _, unit)| wanted.start / unit * unit)?;
            for feed in &mut part.feeds {
                if let Feed::Previous { from, .. } = feed {
                    *from -= made_from;
                }
            }
        }
        parts.push(part);
    }
    parts.reverse();
    Some(parts)
}
