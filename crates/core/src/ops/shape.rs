//! Shape, Size.

use std::sync::Arc;

use super::{
    AttributeValue, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands, axes,
    floats, kernel,
};
use crate::{
    ir::Expansion,
    tensor::{DType, Tensor, TensorType},
};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Shape",
        domain: "",
        since: 1,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Shape { start: a.int_or("start", 0)?, end: a.int("end")? })),
        examples: || {
            let x = || floats([2, 3, 5], 1);
            vec![
                Example::new("all").input(x()),
                Example::new("last two").attribute("start", -2).input(x()),
            ]
        },
    },
    OpSpec {
        name: "Size",
        domain: "",
        since: 1,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(Size)),
        examples: || vec![Example::new("plain").input(floats([2, 3, 5], 1))],
    },
];

/// The dimensions of its input, from `start` to `end`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// First dimension; may count from the end.
    pub start: i64,
    /// Dimension after the last one; may count from the end.
    pub end: Option<i64>,
}

impl Shape {
    fn value(&self, shape: &[usize]) -> Vec<i64> {
        let rank = shape.len() as i64;
        let clamp =
            |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        shape[start.min(end)..end].iter().map(|&d| d as i64).collect()
    }
}

/// A kernel that writes numbers known beforehand.
fn write_kernel(values: Vec<i64>) -> Box<dyn CpuKernel> {
    kernel(move |io, _| {
        io.outputs[0].slice_mut::<i64>().copy_from_slice(&values);
        Ok(())
    })
}

impl Op for Shape {
    fn op_type(&self) -> &'static str {
        "Shape"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let n = self.value(inputs.required(0, "data")?.shape()).len();
        Ok(vec![TensorType::new(DType::I64, [n])])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        Ok(write_kernel(self.value(x.input(0).shape())))
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        let value = self.value(inputs.optional(0)?.shape());
        Some(Expansion::constant(Arc::new(Tensor::from_slice([value.len()], &value))))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = Vec::new();
        if self.start != 0 {
            list.push(("start", AttributeValue::Int(self.start)));
        }
        list.extend(self.end.map(|e| ("end", AttributeValue::Int(e))));
        list
    }
}

/// The number of elements of its input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Size;

impl Op for Size {
    fn op_type(&self) -> &'static str {
        "Size"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        axes::product(inputs.required(0, "data")?.shape())?;
        Ok(vec![TensorType::new(DType::I64, [])])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        Ok(write_kernel(vec![x.input(0).ty.len() as i64]))
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        let len = axes::product(inputs.optional(0)?.shape()).ok()?;
        Some(Expansion::constant(Arc::new(Tensor::scalar(len as i64))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_range_of_dimensions() {
        let value = |start, end| Shape { start, end }.value(&[2, 3, 5]);
        assert_eq!(value(0, None), [2, 3, 5]);
        assert_eq!(value(-2, Some(-1)), [3]);
        assert_eq!(value(2, Some(1)), Vec::<i64>::new());
        assert_eq!(value(i64::MIN, Some(i64::MAX)), [2, 3, 5]);
    }
}
