//! Einsum: sums of products by index labels. Two operands become one batched product where the
//! labels allow; anything else is a plain loop.

mod equation;
mod run;

use std::sync::Arc;

use super::{
    AttributeValue, CpuKernel, Example, InputsExt, KernelClass, Op, OpError, OpSpec, Operand,
    Operands, conv::same_dtype, floats, number::for_dtype,
};
use crate::tensor::{DType, TensorType};
use equation::{Equation, Labels};

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "Einsum",
    domain: "",
    since: 12,
    inputs: (1, usize::MAX),
    outputs: (1, 1),
    parse: |a| {
        let text = a
            .string("equation")?
            .ok_or_else(|| OpError::invalid("attribute equation is missing"))?;
        Ok(Arc::new(Einsum { equation: Equation::parse(&text)? }))
    },
    examples,
}];

/// A sum of products. Inputs: one tensor per term. Output: their type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Einsum {
    equation: Equation,
}

impl Einsum {
    fn labels(&self, inputs: &[Option<Operand>]) -> Result<Labels, OpError> {
        let mut shapes = Vec::with_capacity(inputs.len());
        for i in 0..inputs.len() {
            let operand = inputs.required(i, "Inputs")?;
            same_dtype(inputs.required(0, "Inputs")?, operand, "Inputs")?;
            shapes.push(operand.shape());
        }
        self.equation.place(&shapes)
    }
}

impl Op for Einsum {
    fn op_type(&self) -> &'static str {
        "Einsum"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let labels = self.labels(inputs)?;
        Ok(vec![TensorType::new(inputs.required(0, "Inputs")?.ty.dtype, labels.output_shape())])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let Ok(labels) = self.labels(x.inputs) else { return 0 };
        let terms = x.inputs.len().max(2) as u64;
        labels.sizes.iter().fold(terms, |n, &d| n.saturating_mul(d as u64))
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let labels = self.labels(x.inputs)?;
        let dtype = x.output(0).dtype;
        if dtype == DType::F32
            && let Some(product) = run::Product::new(&labels)
        {
            return Ok(product.kernel());
        }
        Ok(for_dtype!(dtype, T in [F32, F64, I32, I64, U32, U64] => run::plain::<T>(labels)))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("equation", AttributeValue::String(self.equation.text()))]
    }
}

fn examples() -> Vec<Example> {
    let of = |name, equation: &'static str| Example::new(name).attribute("equation", equation);
    vec![
        of("matrix product, batched, output reordered", "bij,bjk->kbi")
            .input(floats([2, 3, 4], 1))
            .input(floats([2, 4, 5], 2)),
        of("attention scores", "bqhd,bkhd->bhqk")
            .input(floats([2, 3, 2, 4], 1))
            .input(floats([2, 5, 2, 4], 2)),
        of("outer product, implicit output", "i,j").input(floats([3], 1)).input(floats([4], 2)),
        of("diagonal", "ii->i").input(floats([4, 4], 1)),
        of("sum and transposition", "aijb->ba").input(floats([2, 3, 2, 4], 1)),
        of("ellipsis, broadcast", "...ij,jk->...ik")
            .input(floats([2, 1, 3, 4], 1))
            .input(floats([4, 2], 2)),
        of("three terms", "ij,jk,kl->il")
            .input(floats([2, 3], 1))
            .input(floats([3, 4], 2))
            .input(floats([4, 2], 3)),
        of("one side summed alone", "ij,k->i").input(floats([2, 3], 1)).input(floats([4], 2)),
    ]
}
