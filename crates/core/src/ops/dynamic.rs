//! Operators whose output shape depends on run-time values: NonZero, NonMaxSuppression, Compress,
//! Unique.

use std::{cmp::Ordering, sync::Arc};

use bytemuck::{Pod, cast_slice};
use sparoa_kernels::pool::Pool;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, axes, floats, kernel,
};
use crate::tensor::{DType, Storage, Tensor, TensorRef, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "NonZero",
        domain: "",
        since: 9,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(Dynamic::NonZero)),
        examples: || {
            let x = Tensor::from_slice([2, 3], &[0i32, 1, 2, 0, 0, 3]);
            vec![Example::new("matrix").constant(x)]
        },
    },
    OpSpec {
        name: "NonMaxSuppression",
        domain: "",
        since: 10,
        inputs: (2, 5),
        outputs: (1, 1),
        parse: |a| {
            Ok(Arc::new(Dynamic::NonMaxSuppression { centers: a.flag("center_point_box", false)? }))
        },
        examples: || {
            let boxes = Tensor::from_slice(
                [1, 3, 4],
                &[0.0f32, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, 10.0, 1.0, 11.0],
            );
            let scores = Tensor::from_slice([1, 1, 3], &[0.9f32, 0.75, 0.6]);
            let e = Example::new("one of two that overlap").constant(boxes).constant(scores);
            vec![e.constant(Tensor::scalar(3i64)).constant(Tensor::scalar(0.5f32))]
        },
    },
    OpSpec {
        name: "Compress",
        domain: "",
        since: 9,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Dynamic::Compress { axis: a.int("axis")? })),
        examples: || {
            let keep = || Tensor::from_bools([3], &[true, false, true]);
            let e = |name| Example::new(name).input(floats([3, 4], 1));
            vec![e("rows").attribute("axis", 0).constant(keep()), e("flat").constant(keep())]
        },
    },
    OpSpec {
        name: "Unique",
        domain: "",
        since: 11,
        inputs: (1, 1),
        outputs: (1, 4),
        parse: unique,
        examples: || {
            let x = Tensor::from_slice([6], &[2.0f32, 1.0, 1.0, 3.0, 4.0, 3.0]);
            vec![Example::new("sorted").constant(x).outputs(4)]
        },
    },
];

fn unique(a: &Attributes) -> Result<Arc<dyn Op>, OpError> {
    let (axis, sorted) = (a.int("axis")?, a.flag("sorted", true)?);
    Ok(Arc::new(Dynamic::Unique { axis, sorted, outputs: a.outputs.max(1) }))
}

/// An operator that must run to know how much it puts out.
#[derive(Clone, Debug, PartialEq)]
pub enum Dynamic {
    /// Indices of elements that are not zero: [rank, count].
    NonZero,
    /// Boxes that do not overlap a better one: [count, 3] of batch, class and box.
    NonMaxSuppression {
        /// Boxes are given as centre and size, not as corners.
        centers: bool,
    },
    /// Slices along an axis (elements of the flat tensor) for which input 1 is true.
    Compress {
        /// The axis.
        axis: Option<i64>,
    },
    /// Distinct slices along an axis (elements of the flat tensor), where each first occurs,
    /// which one each slice is, and how often each occurs.
    Unique {
        /// The axis.
        axis: Option<i64>,
        /// In ascending order, else in order of first occurrence.
        sorted: bool,
        /// Number of outputs that the node has.
        outputs: usize,
    },
}

impl Dynamic {
    fn run(&self, inputs: &[Option<TensorRef<'_>>]) -> Result<Vec<Tensor>, OpError> {
        let input = |i: usize| {
            let found = inputs.get(i).copied().flatten();
            found.ok_or_else(|| OpError::invalid(format!("input {i} is missing")))
        };
        let optional = |i: usize| inputs.get(i).copied().flatten();
        match *self {
            Dynamic::NonZero => Ok(vec![non_zero(input(0)?)]),
            Dynamic::Compress { axis } => Ok(vec![compress(input(0)?, input(1)?, axis)?]),
            Dynamic::Unique { axis, sorted, outputs } => {
                let mut all = unique_slices(input(0)?, axis, sorted)?;
                all.truncate(outputs);
                Ok(all)
            }
            Dynamic::NonMaxSuppression { centers } => {
                let one = |i: usize, name: &str| match optional(i) {
                    None => Ok(None),
                    Some(t) if t.dtype == DType::F32 && t.bytes.len() == 4 => {
                        Ok(Some(t.slice::<f32>()[0]))
                    }
                    Some(_) => Err(OpError::invalid(format!("{name} must be one f32"))),
                };
                let most = match optional(2) {
                    None => 0,
                    Some(t) if t.dtype == DType::I64 && t.bytes.len() == 8 => t.slice::<i64>()[0],
                    Some(_) => {
                        return Err(OpError::invalid("max_output_boxes_per_class must be one i64"));
                    }
                };
                let limits = Limits {
                    most: usize::try_from(most).unwrap_or(0),
                    iou: one(3, "iou_threshold")?.unwrap_or(0.0),
                    score: one(4, "score_threshold")?,
                };
                Ok(vec![non_max_suppression(input(0)?, input(1)?, centers, &limits)?])
            }
        }
    }

    /// The inputs whose values decide the output types.
    fn deciding(&self, count: usize) -> std::ops::Range<usize> {
        match self {
            Dynamic::Compress { .. } => 1..2,
            _ => 0..count,
        }
    }
}

impl Op for Dynamic {
    fn op_type(&self) -> &'static str {
        match self {
            Dynamic::NonZero => "NonZero",
            Dynamic::NonMaxSuppression { .. } => "NonMaxSuppression",
            Dynamic::Compress { .. } => "Compress",
            Dynamic::Unique { .. } => "Unique",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        inputs.required(0, "data")?;
        for i in self.deciding(inputs.len()) {
            if inputs.optional(i).is_some_and(|o| o.constant.is_none()) {
                return Err(OpError::DataDependent { input: i });
            }
        }
        // A run-time input that does not decide anything is stood in for by zeros.
        let values: Vec<Option<Tensor>> = inputs
            .iter()
            .map(|o| {
                o.as_ref().map(|o| match &o.constant {
                    Some(value) => value.as_ref().clone(),
                    None => Tensor::zeros(o.ty.clone()),
                })
            })
            .collect();
        let views: Vec<_> = values.iter().map(|v| v.as_ref().map(Tensor::view)).collect();
        Ok(self.run(&views)?.iter().map(|t| t.ty().clone()).collect())
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, _: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let op = self.clone();
        Ok(kernel(move |io, _| {
            for (result, target) in op.run(io.inputs)?.iter().zip(io.outputs.iter_mut()) {
                // Lengths agree: the inputs that decide them are constant.
                target.bytes.copy_from_slice(result.bytes());
            }
            Ok(())
        }))
    }

    fn compute(
        &self,
        inputs: &[Option<&Tensor>],
        _: &Pool,
    ) -> Option<Result<Vec<Tensor>, OpError>> {
        let views: Vec<_> = inputs.iter().map(|t| t.map(Tensor::view)).collect();
        Some(self.run(&views))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let axis = |axis: Option<i64>| axis.map(|a| ("axis", a.into()));
        match *self {
            Dynamic::NonZero => Vec::new(),
            Dynamic::NonMaxSuppression { centers } => vec![("center_point_box", centers.into())],
            Dynamic::Compress { axis: a } => axis(a).into_iter().collect(),
            Dynamic::Unique { axis: a, sorted, .. } => {
                axis(a).into_iter().chain([("sorted", sorted.into())]).collect()
            }
        }
    }
}

fn non_zero(x: TensorRef<'_>) -> Tensor {
    let size = x.dtype.size();
    // Minus zero is a zero too, though not all its bytes are.
    let zero = |e: &[u8]| match x.dtype {
        DType::F16 | DType::F32 | DType::F64 => {
            e[..size - 1].iter().all(|&b| b == 0) && e[size - 1] & 0x7f == 0
        }
        _ => e.iter().all(|&b| b == 0),
    };
    let elements = x.bytes.chunks_exact(size).enumerate();
    let places: Vec<usize> = elements.filter(|(_, e)| !zero(e)).map(|(i, _)| i).collect();
    // A scalar counts as a vector of one element.
    let shape = if x.shape.is_empty() { &[1][..] } else { x.shape };
    let mut result = Vec::with_capacity(shape.len() * places.len());
    for (&dim, stride) in shape.iter().zip(axes::strides(shape)) {
        result.extend(places.iter().map(|&p| (p / stride.max(1) % dim.max(1)) as i64));
    }
    Tensor::from_slice([shape.len(), places.len()], &result)
}

/// A tensor as slices along an axis: (outer, count, bytes of one index of the axis).
fn slices(x: &TensorRef<'_>, axis: Option<i64>) -> Result<(usize, usize, usize), OpError> {
    let size = x.dtype.size();
    let Some(axis) = axis else { return Ok((1, x.bytes.len() / size, size)) };
    let axis = axes::axis(axis, x.shape.len())?;
    let (outer, inner) = (&x.shape[..axis], &x.shape[axis + 1..]);
    Ok((outer.iter().product(), x.shape[axis], inner.iter().product::<usize>() * size))
}

/// The slices of these indices along the axis.
fn take(x: &TensorRef<'_>, axis: Option<i64>, list: &[usize]) -> Result<Tensor, OpError> {
    let (outer, count, run) = slices(x, axis)?;
    let mut shape = match axis {
        None => vec![0],
        Some(_) => x.shape.to_vec(),
    };
    let at = axis.map_or(Ok(0), |a| axes::axis(a, x.shape.len()))?;
    shape[at] = list.len();
    let mut bytes = Vec::with_capacity(outer * list.len() * run);
    for o in 0..outer {
        for &i in list {
            bytes.extend_from_slice(&x.bytes[(o * count + i) * run..][..run]);
        }
    }
    Tensor::new(TensorType::new(x.dtype, shape), Storage::copy_from(&bytes))
        .ok_or_else(|| OpError::invalid("slices do not make a tensor"))
}

fn compress(x: TensorRef<'_>, keep: TensorRef<'_>, axis: Option<i64>) -> Result<Tensor, OpError> {
    if keep.dtype != DType::Bool || keep.shape.len() != 1 {
        return Err(OpError::invalid("condition must be a boolean vector"));
    }
    let (_, count, _) = slices(&x, axis)?;
    // A condition longer than the axis may not be true beyond it; a shorter one ends early.
    let list: Vec<usize> = (0..keep.bytes.len()).filter(|&i| keep.bytes[i] != 0).collect();
    if list.last().is_some_and(|&last| last >= count) {
        return Err(OpError::Value(format!(
            "condition of {} elements for an axis of size {count}",
            keep.bytes.len()
        )));
    }
    take(&x, axis, &list)
}

fn unique_slices(
    x: TensorRef<'_>,
    axis: Option<i64>,
    sorted: bool,
) -> Result<Vec<Tensor>, OpError> {
    let (outer, count, run) = slices(&x, axis)?;
    let compare = comparison(x.dtype);
    let piece = |o: usize, i: usize| &x.bytes[(o * count + i) * run..][..run];
    let order = |a: usize, b: usize| {
        let parts = (0..outer).map(|o| compare(piece(o, a), piece(o, b)));
        parts.fold(Ordering::Equal, Ordering::then)
    };
    let mut by_value: Vec<usize> = (0..count).collect();
    // Stable: equal slices stay in order of occurrence.
    by_value.sort_by(|&a, &b| order(a, b));
    // Groups of equal slices: (first occurrence, number).
    let mut groups: Vec<(usize, i64)> = Vec::new();
    let mut group_of = vec![0; count];
    for (position, &i) in by_value.iter().enumerate() {
        let new = position == 0 || order(by_value[position - 1], i) != Ordering::Equal;
        if new {
            groups.push((i, 0));
        }
        group_of[i] = groups.len() - 1;
        groups[group_of[i]].1 += 1;
    }
    let mut ranks: Vec<usize> = (0..groups.len()).collect();
    if !sorted {
        ranks.sort_by_key(|&g| groups[g].0);
    }
    let mut place = vec![0i64; groups.len()];
    for (i, &g) in ranks.iter().enumerate() {
        place[g] = i as i64;
    }
    let first: Vec<usize> = ranks.iter().map(|&g| groups[g].0).collect();
    let vector = |v: Vec<i64>| Tensor::from_slice([v.len()], &v);
    Ok(vec![
        take(&x, axis, &first)?,
        vector(first.iter().map(|&i| i as i64).collect()),
        vector(group_of.iter().map(|&g| place[g]).collect()),
        vector(ranks.iter().map(|&g| groups[g].1).collect()),
    ])
}

/// Compares runs of elements; NaN comes last.
fn comparison(dtype: DType) -> fn(&[u8], &[u8]) -> Ordering {
    fn integers<T: Pod + Ord>(a: &[u8], b: &[u8]) -> Ordering {
        cast_slice::<u8, T>(a).cmp(cast_slice::<u8, T>(b))
    }
    fn floats<T: Pod + PartialOrd>(a: &[u8], b: &[u8]) -> Ordering {
        let pairs = cast_slice::<u8, T>(a).iter().zip(cast_slice::<u8, T>(b));
        let nan = |v: &T| v.partial_cmp(v).is_none();
        pairs
            .map(|(a, b)| a.partial_cmp(b).unwrap_or_else(|| nan(a).cmp(&nan(b))))
            .fold(Ordering::Equal, Ordering::then)
    }
    match dtype {
        DType::F32 => floats::<f32>,
        DType::F16 => floats::<half::f16>,
        DType::F64 => floats::<f64>,
        DType::I8 => integers::<i8>,
        DType::U8 | DType::Bool => integers::<u8>,
        DType::I16 => integers::<i16>,
        DType::U16 => integers::<u16>,
        DType::I32 => integers::<i32>,
        DType::U32 => integers::<u32>,
        DType::I64 => integers::<i64>,
        DType::U64 => integers::<u64>,
    }
}

struct Limits {
    most: usize,
    iou: f32,
    score: Option<f32>,
}

fn non_max_suppression(
    boxes: TensorRef<'_>,
    scores: TensorRef<'_>,
    centers: bool,
    limits: &Limits,
) -> Result<Tensor, OpError> {
    let (&[batches, count, 4], &[b, classes, n]) = (boxes.shape, scores.shape) else {
        return Err(OpError::invalid(format!(
            "boxes of shape {:?} and scores of shape {:?}",
            boxes.shape, scores.shape
        )));
    };
    if (b, n) != (batches, count) || boxes.dtype != DType::F32 || scores.dtype != DType::F32 {
        return Err(OpError::invalid(format!(
            "boxes are {} {:?}, scores {} {:?}",
            boxes.dtype, boxes.shape, scores.dtype, scores.shape
        )));
    }
    if !(0.0..=1.0).contains(&limits.iou) {
        return Err(OpError::Value(format!("iou_threshold is {}, not in 0 to 1", limits.iou)));
    }
    let corners: Vec<[f32; 4]> = boxes
        .slice::<f32>()
        .chunks_exact(4)
        .map(|b| match centers {
            true => {
                let (w, h) = (b[2] / 2.0, b[3] / 2.0);
                [b[0] - w, b[1] - h, b[0] + w, b[1] + h]
            }
            false => [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])],
        })
        .collect();
    let mut chosen: Vec<i64> = Vec::new();
    let (mut candidates, mut kept): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for batch in 0..batches {
        let corners = &corners[batch * count..][..count];
        for class in 0..classes {
            let scores = &scores.slice::<f32>()[(batch * classes + class) * count..][..count];
            candidates.clear();
            candidates.extend((0..count).filter(|&i| limits.score.is_none_or(|s| scores[i] > s)));
            // Best first; stable, so the lower index wins a tie.
            candidates.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            kept.clear();
            for &i in &candidates {
                if kept.len() >= limits.most {
                    break;
                }
                if kept.iter().all(|&k| !overlaps(&corners[i], &corners[k], limits.iou)) {
                    kept.push(i);
                    chosen.extend([batch as i64, class as i64, i as i64]);
                }
            }
        }
    }
    Ok(Tensor::from_slice([chosen.len() / 3, 3], &chosen))
}

/// Whether the intersection over union of two boxes exceeds the threshold.
fn overlaps(a: &[f32; 4], b: &[f32; 4], threshold: f32) -> bool {
    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let width = a[2].min(b[2]) - a[0].max(b[0]);
    let height = a[3].min(b[3]) - a[1].max(b[1]);
    if width <= 0.0 || height <= 0.0 {
        return false;
    }
    let both = width * height;
    let union = area(a) + area(b) - both;
    area(a) > 0.0 && area(b) > 0.0 && union > 0.0 && both / union > threshold
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{evaluate, integers};

    fn run(op: &Dynamic, inputs: &[&Tensor]) -> Result<Vec<Tensor>, OpError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        evaluate(op, &inputs, &Pool::single())
    }

    #[test]
    fn non_zero_indices() {
        let x = Tensor::from_slice([2, 2], &[-0.0f32, 1.0, f32::NAN, 0.0]);
        let y = run(&Dynamic::NonZero, &[&x]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([2, 2], &[0i64, 1, 1, 0]));
        let y = run(&Dynamic::NonZero, &[&Tensor::scalar(5i8)]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([1, 1], &[0i64]));
        let y = run(&Dynamic::NonZero, &[&Tensor::from_slice::<f32>([0, 3], &[])]).unwrap();
        assert_eq!(y[0].shape(), [2, 0]);
        let dynamic = [Some(Operand::dynamic(TensorType::f32([2])))];
        assert_eq!(Dynamic::NonZero.infer(&dynamic), Err(OpError::DataDependent { input: 0 }));
    }

    #[test]
    fn compress_rows_and_elements() {
        let x = Tensor::from_slice([3, 2], &[1i32, 2, 3, 4, 5, 6]);
        let keep = |b: &[bool]| Tensor::from_bools([b.len()], b);
        let rows = Dynamic::Compress { axis: Some(0) };
        let y = run(&rows, &[&x, &keep(&[false, true])]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([1, 2], &[3i32, 4]));
        let flat = Dynamic::Compress { axis: None };
        let y = run(&flat, &[&x, &keep(&[true, false, false, false, false, true])]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([2], &[1i32, 6]));
        assert!(run(&rows, &[&x, &keep(&[false, false, false, true])]).is_err());
        let constant = Operand::constant(Arc::new(keep(&[true, false, true])));
        let inputs = [Some(Operand::dynamic(x.ty().clone())), Some(constant)];
        assert_eq!(rows.infer(&inputs).unwrap()[0].shape, [2, 2]);
    }

    #[test]
    fn unique_values_and_rows() {
        let x = Tensor::from_slice([6], &[2i32, 1, 1, 3, 4, 3]);
        let op = |axis, sorted| Dynamic::Unique { axis, sorted, outputs: 4 };
        let y = run(&op(None, true), &[&x]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([4], &[1i32, 2, 3, 4]));
        assert_eq!(y[1], integers(&[1, 0, 3, 4]));
        assert_eq!(y[2], integers(&[1, 0, 0, 2, 3, 2]));
        assert_eq!(y[3], integers(&[2, 1, 2, 1]));
        let y = run(&op(None, false), &[&x]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([4], &[2i32, 1, 3, 4]));
        assert_eq!(y[2], integers(&[0, 1, 1, 2, 3, 2]));
        let rows = Tensor::from_slice([3, 2], &[1u8, 0, 1, 0, 0, 9]);
        let y = run(&op(Some(0), true), &[&rows]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([2, 2], &[0u8, 9, 1, 0]));
        let y = run(&op(Some(1), true), &[&rows]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([3, 2], &[0u8, 1, 0, 1, 9, 0]));
    }

    #[test]
    fn suppression() {
        let boxes = Tensor::from_slice(
            [1, 4, 4],
            &[
                0.0f32, 0.0, 1.0, 1.0, 1.0, 1.1, 0.0, 0.1, 0.0, 10.0, 1.0, 11.0, 0.0, 10.1, 1.0,
                11.1,
            ],
        );
        let scores = Tensor::from_slice([1, 1, 4], &[0.9f32, 0.75, 0.6, 0.95]);
        let op = Dynamic::NonMaxSuppression { centers: false };
        let (many, iou) = (Tensor::scalar(9i64), Tensor::scalar(0.5f32));
        let y = run(&op, &[&boxes, &scores, &many, &iou]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([2, 3], &[0i64, 0, 3, 0, 0, 0]));
        let limit = Tensor::scalar(0.92f32);
        let y = run(&op, &[&boxes, &scores, &many, &iou, &limit]).unwrap();
        assert_eq!(y[0], Tensor::from_slice([1, 3], &[0i64, 0, 3]));
        assert_eq!(run(&op, &[&boxes, &scores]).unwrap()[0].shape(), [0, 3]);
        assert!(run(&op, &[&boxes, &scores, &many, &Tensor::scalar(2.0f32)]).is_err());
    }
}
