//! Slice.

use std::{ops::Range, sync::Arc};

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec,
    Operand, Operands, Part, PartInput, Permuted, axes, floats, gpu, integers, kernel,
    runs::Strided,
};
use crate::tensor::TensorType;

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "Slice",
    domain: "",
    since: 1,
    inputs: (1, 5),
    outputs: (1, 1),
    parse: |a| {
        let fixed = if a.opset < 10 {
            let list =
                |name| a.ints(name)?.ok_or_else(|| OpError::invalid(format!("{name} is missing")));
            Some(Ranges {
                starts: list("starts")?,
                ends: list("ends")?,
                axes: a.ints("axes")?,
                steps: None,
            })
        } else {
            None
        };
        Ok(Arc::new(Slice { fixed }))
    },
    examples: || {
        let e = |name| Example::new(name).input(floats([3, 5, 7], 1));
        let c = integers;
        vec![
            e("inner ranges")
                .constant(c(&[1, -3]))
                .constant(c(&[i64::MAX, -1]))
                .constant(c(&[1, 2])),
            e("backwards")
                .constant(c(&[-1]))
                .constant(c(&[i64::MIN]))
                .constant(c(&[1]))
                .constant(c(&[-2])),
        ]
    },
}];

/// Which elements a [`Slice`] takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// First index on each axis.
    pub starts: Vec<i64>,
    /// Index after the last one on each axis; any large value means the end.
    pub ends: Vec<i64>,
    /// The axes; `None` means the first ones in order.
    pub axes: Option<Vec<i64>>,
    /// Steps, not 0; `None` means 1.
    pub steps: Option<Vec<i64>>,
}

/// Takes ranges along some axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// The ranges in models before opset 10, and after a transposition has passed; else they are
    /// inputs 1 to 4.
    pub fixed: Option<Ranges>,
}

/// A range on one axis: `len` indices from `start`, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: usize,
    step: isize,
    len: usize,
}

impl Ranges {
    /// Of one span per axis. `None` where a span does not fit 64 bits.
    fn of(spans: impl IntoIterator<Item = Span>) -> Option<Ranges> {
        let mut ranges = Ranges { starts: vec![], ends: vec![], axes: None, steps: Some(vec![]) };
        for s in spans {
            let start = i64::try_from(s.start).ok()?;
            let end =
                start.checked_add((s.step as i64).checked_mul(i64::try_from(s.len).ok()?)?)?;
            ranges.starts.push(start);
            // Before index 0 lies the end that no index counted from the end can mean.
            ranges.ends.push(if end < 0 { i64::MIN } else { end });
            ranges.steps.as_mut()?.push(s.step as i64);
        }
        Some(ranges)
    }
}

fn span(dim: usize, start: i64, end: i64, step: i64) -> Result<Span, OpError> {
    if step == 0 {
        return Err(OpError::invalid("a step is 0"));
    }
    let dim = i64::try_from(dim).map_err(|_| OpError::invalid("the axis is too long"))?;
    let wrap = |v: i64| if v < 0 { v.saturating_add(dim) } else { v };
    let (start, end) = if step > 0 {
        (wrap(start).clamp(0, dim), wrap(end).clamp(0, dim))
    } else {
        (wrap(start).clamp(-1, dim - 1), wrap(end).clamp(-1, dim - 1))
    };
    let distance = (i128::from(end) - i128::from(start)) * i128::from(step.signum());
    if distance <= 0 {
        return Ok(Span { start: 0, step: 1, len: 0 });
    }
    let stride = i128::from(step).unsigned_abs();
    let len = distance.unsigned_abs().div_ceil(stride);
    // Not more than `dim`, and a step that is used stays inside the axis.
    let step = if len > 1 { step as isize } else { 1 };
    Ok(Span { start: start as usize, step, len: len as usize })
}

impl Slice {
    fn ranges(&self, inputs: &[Option<Operand>]) -> Result<Ranges, OpError> {
        if let Some(ranges) = &self.fixed {
            return Ok(ranges.clone());
        }
        inputs.required(1, "starts")?;
        inputs.required(2, "ends")?;
        Ok(Ranges {
            starts: inputs.integers(1, "starts")?.unwrap_or_default(),
            ends: inputs.integers(2, "ends")?.unwrap_or_default(),
            axes: inputs.integers(3, "axes")?,
            steps: inputs.integers(4, "steps")?,
        })
    }

    /// One span per axis of the input.
    fn spans(&self, inputs: &[Option<Operand>]) -> Result<Vec<Span>, OpError> {
        let shape = inputs.required(0, "data")?.shape();
        let ranges = self.ranges(inputs)?;
        let n = ranges.starts.len();
        let list = match &ranges.axes {
            Some(list) => axes::axes(list, shape.len())?,
            None => (0..n).collect(),
        };
        let steps = ranges.steps.unwrap_or_else(|| vec![1; n]);
        if ranges.ends.len() != n || list.len() != n || steps.len() != n || n > shape.len() {
            return Err(OpError::invalid(format!(
                "{n} starts, {} ends, {} axes and {} steps for a tensor of rank {}",
                ranges.ends.len(),
                list.len(),
                steps.len(),
                shape.len()
            )));
        }
        let mut spans: Vec<Span> =
            shape.iter().map(|&len| Span { start: 0, step: 1, len }).collect();
        for (i, &axis) in list.iter().enumerate() {
            spans[axis] = span(shape[axis], ranges.starts[i], ranges.ends[i], steps[i])?;
        }
        Ok(spans)
    }
}

impl Op for Slice {
    fn op_type(&self) -> &'static str {
        "Slice"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let shape: Vec<usize> = self.spans(inputs)?.iter().map(|s| s.len).collect();
        Ok(vec![TensorType::new(inputs.required(0, "data")?.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let input = &x.input(0).ty;
        let spans = self.spans(x.inputs)?;
        let strides = axes::strides(&input.shape);
        let offset: usize = spans.iter().zip(&strides).map(|(s, &stride)| s.start * stride).sum();
        let steps: Vec<isize> =
            spans.iter().zip(&strides).map(|(s, &stride)| s.step * stride as isize).collect();
        let copy = Strided::new(&x.output(0).shape, &steps, offset as isize, input.dtype.size());
        Ok(kernel(move |io, pool| {
            copy.run(io.input(0).bytes, io.outputs[0].bytes, pool);
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let strides = axes::strides(x.input(0).shape());
        let spans = self.spans(x.inputs).ok()?;
        let offset: usize = spans.iter().zip(&strides).map(|(s, &stride)| s.start * stride).sum();
        let steps =
            spans.iter().zip(&strides).map(|(s, &stride)| s.step * stride as isize).collect();
        gpu::slice(x, caps, steps, isize::try_from(offset).ok()?)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let axis = axes::first_long(&x.output(0).shape)?;
        let span = *self.spans(x.inputs).ok()?.get(axis)?;
        let before = &x.input(0).shape()[..axis];
        (span.step == 1 && before.iter().all(|&d| d == 1)).then_some(axis)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let mut spans = self.spans(x.inputs).ok()?;
        let from = spans[axis].start;
        spans[axis] = Span { start: 0, step: 1, len: range.len() };
        let mut inputs = vec![PartInput::Whole; x.inputs.len()];
        inputs[0] = PartInput::Range { axis, range: from + range.start..from + range.end };
        Some(Part { op: Arc::new(Slice { fixed: Some(Ranges::of(spans)?) }), inputs })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let spans = self.spans(x.inputs).ok()?;
        let permuted: Option<Vec<Span>> =
            perm.iter().map(|&axis| spans.get(axis).copied()).collect();
        let ranges = Ranges::of(permuted?)?;
        let mut inputs = vec![None; x.inputs.len()];
        inputs[0] = Some(perm.to_vec());
        Some(Permuted { op: Arc::new(Slice { fixed: Some(ranges) }), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let Some(r) = &self.fixed else { return Vec::new() };
        let mut list = vec![
            ("starts", AttributeValue::Ints(r.starts.clone())),
            ("ends", AttributeValue::Ints(r.ends.clone())),
        ];
        list.extend(r.axes.clone().map(|a| ("axes", AttributeValue::Ints(a))));
        list.extend(r.steps.clone().map(|s| ("steps", AttributeValue::Ints(s))));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ops::evaluate, tensor::Tensor};
    use sparoa_kernels::pool::Pool;

    fn run(op: &Slice, lists: &[&[i64]]) -> Result<Tensor, OpError> {
        let x = Tensor::from_slice([2, 5], &[0i16, 1, 2, 3, 4, 10, 11, 12, 13, 14]);
        let lists: Vec<Tensor> = lists.iter().map(|l| integers(l)).collect();
        let mut inputs = vec![Some(&x)];
        inputs.extend(lists.iter().map(Some));
        evaluate(op, &inputs, &Pool::single()).map(|mut t| t.remove(0))
    }

    fn t(shape: &[usize], data: &[i16]) -> Option<Tensor> {
        Some(Tensor::from_slice(shape, data))
    }

    #[test]
    fn takes_ranges() {
        let s = Slice::default();
        assert_eq!(
            run(&s, &[&[1], &[i64::MAX], &[-1]]).ok(),
            t(&[2, 4], &[1, 2, 3, 4, 11, 12, 13, 14])
        );
        assert_eq!(run(&s, &[&[1, -2], &[2, 100]]).ok(), t(&[1, 2], &[13, 14]));
        assert_eq!(
            run(&s, &[&[-1], &[i64::MIN], &[1], &[-2]]).ok(),
            t(&[2, 3], &[4, 2, 0, 14, 12, 10])
        );
        assert_eq!(run(&s, &[&[3], &[1], &[1]]).ok(), t(&[2, 0], &[]));
        assert_eq!(run(&s, &[&[0], &[5], &[1], &[i64::MAX]]).ok(), t(&[2, 1], &[0, 10]));
        assert_eq!(run(&s, &[&[9], &[i64::MIN], &[1], &[i64::MIN]]).ok(), t(&[2, 1], &[4, 14]));
        let old = Slice {
            fixed: Some(Ranges {
                starts: vec![0],
                ends: vec![-4],
                axes: Some(vec![1]),
                steps: None,
            }),
        };
        assert_eq!(run(&old, &[]).ok(), t(&[2, 1], &[0, 10]));
    }

    #[test]
    fn refuses_contradictions() {
        let s = Slice::default();
        assert!(run(&s, &[&[0], &[1], &[1], &[0]]).is_err());
        assert!(run(&s, &[&[0], &[1, 2]]).is_err());
        assert!(run(&s, &[&[0, 0], &[1, 1], &[1, -1]]).is_err());
        assert!(run(&s, &[&[0], &[1], &[2]]).is_err());
        assert!(run(&s, &[&[0]]).is_err());
    }

    #[test]
    fn divides_along_the_first_axis_that_it_keeps_contiguous() {
        let x = Tensor::from_slice([4, 3], &(0..12).collect::<Vec<i32>>());
        let inputs = [x.clone(), integers(&[1, -1]), integers(&[9, -9]), integers(&[0, 1])];
        let steps = [inputs.as_slice(), &[integers(&[1, -2])]].concat();
        let operands: Vec<_> =
            steps.iter().map(|t| Some(Operand::constant(Arc::new(t.clone())))).collect();
        let s = Slice::default();
        let outputs = s.infer(&operands).unwrap();
        let x = Operands { inputs: &operands, outputs: &outputs };
        assert_eq!((outputs[0].shape.as_slice(), s.split_axis(&x)), (&[3, 2][..], Some(0)));
        let part = s.split(&x, 1..3).unwrap();
        assert_eq!(part.inputs[0], PartInput::Range { axis: 0, range: 2..4 });
        let y = Tensor::from_slice([2, 3], &[6, 7, 8, 9, 10, 11]);
        let y = evaluate(&*part.op, &[Some(&y)], &Pool::single()).unwrap();
        assert_eq!(y[0].as_slice::<i32>().unwrap(), [8, 6, 11, 9]);
    }

    #[test]
    fn transposes_pass() {
        let x = Tensor::from_slice([2, 3], &[1i32, 2, 3, 4, 5, 6]);
        let inputs: Vec<_> =
            [x, integers(&[-1]), integers(&[-100]), integers(&[1]), integers(&[-1])]
                .map(|t| Some(Operand::constant(Arc::new(t))))
                .into();
        let s = Slice::default();
        let outputs = s.infer(&inputs).unwrap();
        let p = s.permuted(&Operands { inputs: &inputs, outputs: &outputs }, &[1, 0]).unwrap();
        let y = Tensor::from_slice([3, 2], &[1i32, 4, 2, 5, 3, 6]);
        let y = evaluate(&*p.op, &[Some(&y)], &Pool::single()).unwrap();
        assert_eq!(y[0].as_slice::<i32>().unwrap(), [3, 6, 2, 5, 1, 4]);
    }
}
