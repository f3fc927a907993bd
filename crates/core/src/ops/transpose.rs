//! Transpose.

use std::{ops::Range, sync::Arc};

use smallvec::SmallVec;
use sparoa_kernels::permute::permute;

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec,
    Operand, Operands, Part, PartInput, Permuted, axes, floats, gpu, kernel, runs,
};
use crate::tensor::TensorType;

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "Transpose",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| {
        let perm = a.ints("perm")?;
        let perm = perm.map(|p| axes::axes(&p, p.len())).transpose()?;
        Ok(Arc::new(Transpose { perm }))
    },
    examples: || {
        let x = || floats([2, 3, 5, 7], 1);
        vec![
            Example::new("to channels last").input(x()).attribute("perm", [0, 2, 3, 1]),
            Example::new("reversed").input(x()),
        ]
    },
}];

/// Dimension `i` of the output is dimension `perm[i]` of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Transpose {
    /// The permutation; `None` reverses the dimensions.
    pub perm: Option<Vec<usize>>,
}

impl Transpose {
    /// A transposition by `perm`.
    pub fn new(perm: impl Into<Vec<usize>>) -> Transpose {
        Transpose { perm: Some(perm.into()) }
    }

    /// The permutation for an input of this rank.
    pub fn perm(&self, rank: usize) -> Vec<usize> {
        self.perm.clone().unwrap_or_else(|| (0..rank).rev().collect())
    }
}

/// A transposition with dimensions of size 1 left out and neighbours that stay together joined:
/// the input's dimensions and the permutation. The result is an identity when the permutation is
/// in order.
pub fn normalize(shape: &[usize], perm: &[usize]) -> (Vec<usize>, Vec<usize>) {
    // Groups of input axes in output order; each group is a run of consecutive long axes.
    let mut groups: SmallVec<[(usize, usize); 8]> = SmallVec::new();
    let next_long = |axis: usize| (axis..shape.len()).find(|&a| shape[a] != 1);
    for &axis in perm.iter().filter(|&&a| shape[a] != 1) {
        match groups.last_mut() {
            Some((_, last)) if next_long(*last + 1) == Some(axis) => *last = axis,
            _ => groups.push((axis, axis)),
        }
    }
    let mut order: SmallVec<[(usize, usize); 8]> = groups.clone();
    order.sort_unstable();
    let dims = order.iter().map(|&(first, last)| shape[first..=last].iter().product()).collect();
    let position = |group| order.iter().position(|g| *g == group).expect("a permutation of it");
    (dims, groups.into_iter().map(position).collect())
}

impl Op for Transpose {
    fn op_type(&self) -> &'static str {
        "Transpose"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let perm = self.perm(x.ty.rank());
        if perm.len() != x.ty.rank() || perm.iter().any(|&a| a >= perm.len()) {
            return Err(OpError::invalid(format!("perm {perm:?} for a tensor of {}", x.ty)));
        }
        let shape: Vec<usize> = perm.iter().map(|&a| x.shape()[a]).collect();
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let ty = &x.input(0).ty;
        let size = ty.dtype.size();
        let (shape, perm) = normalize(&ty.shape, &self.perm(ty.rank()));
        if perm.is_sorted() || ty.is_empty() {
            return Ok(kernel(|io, pool| {
                runs::copy(io.input(0).bytes, io.outputs[0].bytes, pool);
                Ok(())
            }));
        }
        Ok(kernel(move |io, pool| {
            permute(io.input(0).bytes, size, &shape, &perm, io.outputs[0].bytes, pool);
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let shape = x.input(0).shape();
        gpu::transpose(x, caps, shape, &self.perm(shape.len()))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let axis = axes::first_long(&x.output(0).shape)?;
        let shape = x.input(0).shape();
        let from = self.perm(shape.len())[axis];
        shape[..from].iter().all(|&d| d == 1).then_some(axis)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.perm(x.input(0).ty.rank())[self.split_axis(x)?];
        let inputs = vec![PartInput::Range { axis, range }];
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let own = self.perm(x.input(0).ty.rank());
        let both: Vec<usize> = perm.iter().map(|&a| own.get(a).copied()).collect::<Option<_>>()?;
        Some(Permuted { op: Arc::new(Transpose::new(both)), inputs: vec![None] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let ints = |p: &Vec<usize>| p.iter().map(|&a| a as i64).collect();
        self.perm.iter().map(|p| ("perm", AttributeValue::Ints(ints(p)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ops::evaluate, tensor::Tensor};
    use sparoa_kernels::pool::Pool;

    #[test]
    fn normalizes() {
        let n = |s: &[usize], p: &[usize]| normalize(s, p);
        assert_eq!(n(&[2, 3, 4, 5], &[0, 2, 3, 1]), (vec![2, 3, 20], vec![0, 2, 1]));
        assert_eq!(n(&[1, 3, 4, 5], &[0, 2, 3, 1]), (vec![3, 20], vec![1, 0]));
        assert_eq!(n(&[1, 3, 1, 1], &[0, 2, 3, 1]), (vec![3], vec![0]));
        assert_eq!(n(&[2, 1, 4], &[1, 0, 2]), (vec![8], vec![0]));
        assert_eq!(n(&[], &[]), (vec![], vec![]));
        assert_eq!(n(&[2, 3, 4], &[2, 1, 0]), (vec![2, 3, 4], vec![2, 1, 0]));
    }

    #[test]
    fn transposes() {
        let x = Tensor::from_slice([2, 3], &[1i64, 2, 3, 4, 5, 6]);
        let y = evaluate(&Transpose { perm: None }, &[Some(&x)], &Pool::single()).unwrap();
        assert_eq!(y[0], Tensor::from_slice([3, 2], &[1i64, 4, 2, 5, 3, 6]));
        let wrong = Transpose::new([0, 1, 2]);
        assert!(evaluate(&wrong, &[Some(&x)], &Pool::single()).is_err());
    }

    #[test]
    fn splits_only_where_the_input_is_contiguous() {
        let split = |shape: &[usize], perm: &[usize]| {
            let op = Transpose::new(perm);
            let inputs = [Some(Operand::dynamic(TensorType::f32(shape)))];
            let outputs = op.infer(&inputs).unwrap();
            op.split_axis(&Operands { inputs: &inputs, outputs: &outputs })
        };
        assert_eq!(split(&[2, 3, 4], &[0, 2, 1]), Some(0));
        assert_eq!(split(&[1, 3, 4], &[0, 2, 1]), None);
        assert_eq!(split(&[1, 3, 4], &[1, 0, 2]), Some(0));
    }
}
