//! Roll: tensors that begin elsewhere, what is before that coming last. Slices and concatenations of
//! exported models become it.

use std::{ops::Range, sync::Arc};

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec,
    Operand, Operands, Part, PartInput, Permuted, axes, floats, gpu, kernel, runs,
};
use crate::tensor::TensorType;

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "Roll",
    domain: "ai.sparoa",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| {
        let starts =
            a.ints("starts")?.ok_or_else(|| OpError::invalid("starts is missing".to_owned()))?;
        let starts = starts.into_iter().map(axes::dim).collect::<Result<_, _>>()?;
        Ok(Arc::new(Roll { starts }))
    },
    examples: || {
        let e = |name, starts: &[i64]| {
            let starts = AttributeValue::Ints(starts.to_vec());
            Example::new(name).attribute("starts", starts).input(floats([2, 5, 7, 4], 1))
        };
        vec![
            e("one axis", &[0, 2, 0, 0]),
            e("two axes", &[0, 3, 6, 0]),
            e("the first and the last", &[1, 0, 0, 3]),
        ]
    },
}];

/// Turns a tensor along its axes: `y[i, j, ..] = x[(i + start_i) % len_i, (j + start_j) % len_j, ..]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Roll {
    /// For each axis the index that becomes the first one.
    pub starts: Vec<usize>,
}

/// The copies that a roll is: rows that lie apart in x, each in two runs.
struct Rows {
    /// The axes outside of a row: their lengths, starts and distances in x.
    outer: Vec<[usize; 3]>,
    /// Bytes of a row, and where in x's row it begins.
    row: usize,
    start: usize,
}

impl Rows {
    fn of(ty: &TensorType, starts: &[usize]) -> Rows {
        let size = ty.dtype.size();
        let strides = axes::strides(&ty.shape);
        // What lies inside of the last axis that is turned moves with it.
        let last = starts.iter().rposition(|&start| start > 0).unwrap_or(0);
        let bytes = strides.get(last).map_or(size, |stride| stride * size);
        let outer = (0..last).map(|i| [ty.shape[i], starts[i], strides[i] * size]);
        Rows {
            outer: outer.collect(),
            row: ty.shape.get(last).map_or(bytes, |len| len * bytes),
            start: starts.get(last).map_or(0, |start| start * bytes),
        }
    }

    /// Where in x row `i` of y begins.
    fn at(&self, mut i: usize) -> usize {
        let mut at = 0;
        for &[len, start, distance] in self.outer.iter().rev() {
            at += (i % len + start) % len * distance;
            i /= len;
        }
        at
    }
}

impl Op for Roll {
    fn op_type(&self) -> &'static str {
        "Roll"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let ty = &inputs.required(0, "input")?.ty;
        let inside = |(start, len): (&usize, &usize)| *start == 0 || start < len;
        if self.starts.len() != ty.rank() || !self.starts.iter().zip(&ty.shape).all(inside) {
            return Err(OpError::invalid(format!("starts {:?} do not fit {ty}", self.starts)));
        }
        Ok(vec![ty.clone()])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let rows = Rows::of(&x.input(0).ty, &self.starts);
        Ok(kernel(move |io, pool| {
            let (x, y) = (io.input(0).bytes, &mut io.outputs[0].bytes);
            if rows.outer.iter().all(|[len, ..]| *len == 1) {
                let (first, second) = y.split_at_mut(y.len() - rows.start);
                runs::copy(&x[rows.start..], first, pool);
                runs::copy(&x[..rows.start], second, pool);
                return Ok(());
            }
            let part = runs::part_bytes(y.len(), rows.row, pool);
            pool.run_parts(y, part, &|i, y| {
                for (j, y) in y.chunks_exact_mut(rows.row).enumerate() {
                    let x = &x[rows.at(i * part / rows.row + j)..][..rows.row];
                    let (first, second) = y.split_at_mut(rows.row - rows.start);
                    first.copy_from_slice(&x[rows.start..]);
                    second.copy_from_slice(&x[..rows.start]);
                }
            });
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::roll(x, caps, &self.starts)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        axes::first_long(&x.output(0).shape).filter(|&axis| self.starts[axis] == 0)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let inputs = vec![PartInput::Range { axis, range }];
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn permuted(&self, _: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let starts: Option<_> = perm.iter().map(|&axis| self.starts.get(axis).copied()).collect();
        Some(Permuted { op: Arc::new(Roll { starts: starts? }), inputs: vec![Some(perm.to_vec())] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let starts = self.starts.iter().map(|&start| start as i64).collect();
        vec![("starts", AttributeValue::Ints(starts))]
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sparoa_kernels::pool::Pool;

    use super::*;
    use crate::{ops::evaluate, tensor::Tensor};

    fn check(shape: &[usize], starts: &[usize], threads: usize) {
        let count: usize = shape.iter().product();
        let x = Tensor::from_slice(shape.to_vec(), &(0..count as i32).collect::<Vec<_>>());
        let op = Roll { starts: starts.to_vec() };
        let y = evaluate(&op, &[Some(&x)], &Pool::new(threads)).unwrap().remove(0);
        let strides = axes::strides(shape);
        for (i, &got) in y.as_slice::<i32>().unwrap().iter().enumerate() {
            let along = |d: usize| (i / strides[d] % shape[d] + starts[d]) % shape[d] * strides[d];
            let expected: usize = (0..shape.len()).map(along).sum();
            assert_eq!(got as usize, expected, "element {i} of {shape:?} from {starts:?}");
        }
    }

    proptest! {
        #[test]
        fn elements_come_from_where_they_should(
            axes in prop::collection::vec((1..8usize, 0..8usize), 0..5), threads in 1..4usize,
        ) {
            let (shape, starts): (Vec<_>, Vec<_>) =
                axes.into_iter().map(|(len, start)| (len, start % len)).unzip();
            check(&shape, &starts, threads);
        }
    }

    #[test]
    fn large_tensors_are_shared_out() {
        check(&[3, 57, 301, 5], &[0, 3, 298, 0], 3);
        check(&[1, 70_001], &[0, 12_345], 2);
        check(&[0, 3], &[0, 1], 2);
    }

    #[test]
    fn refuses_starts_that_are_outside() {
        let x = [Some(Operand::dynamic(TensorType::f32([2, 3])))];
        let infer = |starts: &[usize]| Roll { starts: starts.to_vec() }.infer(&x);
        assert!(infer(&[1, 2]).is_ok());
        assert!(infer(&[0, 3]).is_err() && infer(&[1]).is_err());
    }

    #[test]
    fn divides_where_nothing_is_turned() {
        let x = [Some(Operand::dynamic(TensorType::f32([4, 3])))];
        let axis = |starts: &[usize]| {
            let op = Roll { starts: starts.to_vec() };
            let outputs = op.infer(&x).unwrap();
            op.split_axis(&Operands { inputs: &x, outputs: &outputs })
        };
        assert_eq!((axis(&[0, 1]), axis(&[1, 0])), (Some(0), None));
    }
}
