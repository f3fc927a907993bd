//! Expand, Tile.

use std::sync::Arc;

use super::{
    CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec, Operand, Operands,
    axes, floats, gpu, integers, kernel, runs::Strided,
};
use crate::{ir::Expansion, tensor::TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Expand",
        domain: "",
        since: 8,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(Expand)),
        examples: || {
            let e = |name| Example::new(name).input(floats([3, 1, 5], 1));
            vec![
                e("middle axis").constant(integers(&[3, 4, 1])),
                e("new axis").constant(integers(&[2, 1, 1, 1])),
            ]
        },
    },
    OpSpec {
        name: "Tile",
        domain: "",
        since: 6,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(Tile)),
        examples: || {
            vec![Example::new("two axes").input(floats([2, 3], 1)).constant(integers(&[2, 3]))]
        },
    },
];

/// Broadcasts to the shape of input 1 (and its own, whichever is larger).
#[derive(Clone, Debug, PartialEq)]
pub struct Expand;

impl Op for Expand {
    fn op_type(&self) -> &'static str {
        "Expand"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        inputs.required(1, "shape")?;
        let wanted = inputs.integers(1, "shape")?.unwrap_or_default();
        let wanted: Vec<usize> = wanted.into_iter().map(axes::dim).collect::<Result<_, _>>()?;
        let shape = axes::broadcast([x.shape(), &wanted])?;
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (input, output) = (&x.input(0).ty, x.output(0));
        let own = axes::strides(&input.shape);
        let missing = output.rank() - input.rank();
        let strides: Vec<isize> = (0..output.rank())
            .map(|d| match d.checked_sub(missing) {
                Some(d) if input.shape[d] != 1 => own[d] as isize,
                _ => 0,
            })
            .collect();
        Ok(strided(Strided::new(&output.shape, &strides, 0, input.dtype.size())))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::expand(x, caps)
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        let same = self.infer(inputs).ok()?[0] == inputs.optional(0)?.ty;
        same.then(|| Expansion::identity(0))
    }
}

fn strided(copy: Strided) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        copy.run(io.input(0).bytes, io.outputs[0].bytes, pool);
        Ok(())
    })
}

/// Repeats its input along each axis, input 1 times.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile;

impl Tile {
    fn repeats(inputs: &[Option<Operand>]) -> Result<Vec<usize>, OpError> {
        let rank = inputs.required(0, "input")?.ty.rank();
        inputs.required(1, "repeats")?;
        let repeats = inputs.integers(1, "repeats")?.unwrap_or_default();
        if repeats.len() != rank {
            return Err(OpError::invalid(format!(
                "{} repeats for a tensor of rank {rank}",
                repeats.len()
            )));
        }
        repeats.into_iter().map(axes::dim).collect()
    }
}

impl Op for Tile {
    fn op_type(&self) -> &'static str {
        "Tile"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        let shape: Vec<usize> = Tile::repeats(inputs)?
            .into_iter()
            .zip(x.shape())
            .map(|(r, &d)| axes::product(&[r, d]))
            .collect::<Result<_, _>>()?;
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        // Each axis as two: the repetitions, which do not move in the input, and the axis.
        let input = &x.input(0).ty;
        let own = axes::strides(&input.shape);
        let (mut shape, mut strides) = (Vec::new(), Vec::new());
        for (d, repeats) in Tile::repeats(x.inputs)?.into_iter().enumerate() {
            shape.extend([repeats, input.shape[d]]);
            strides.extend([0, own[d] as isize]);
        }
        Ok(strided(Strided::new(&shape, &strides, 0, input.dtype.size())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ops::evaluate, tensor::Tensor};
    use sparoa_kernels::pool::Pool;

    fn run(op: &dyn Op, x: &Tensor, list: &[i64]) -> Result<Tensor, OpError> {
        evaluate(op, &[Some(x), Some(&integers(list))], &Pool::single()).map(|mut t| t.remove(0))
    }

    #[test]
    fn expands_and_tiles() {
        let x = Tensor::from_slice([2, 1], &[1u8, 2]);
        let t = |shape: &[usize], data: &[u8]| Some(Tensor::from_slice(shape, data));
        assert_eq!(run(&Expand, &x, &[3]).ok(), t(&[2, 3], &[1, 1, 1, 2, 2, 2]));
        assert_eq!(run(&Expand, &x, &[2, 1, 1]).ok(), t(&[2, 2, 1], &[1, 2, 1, 2]));
        assert_eq!(run(&Expand, &x, &[2, 0]).ok(), t(&[2, 0], &[]));
        assert!(run(&Expand, &x, &[3, 3]).is_err());
        assert!(run(&Expand, &x, &[-1, 3]).is_err());
        assert_eq!(run(&Tile, &x, &[2, 2]).ok(), t(&[4, 2], &[1, 1, 2, 2, 1, 1, 2, 2]));
        assert_eq!(run(&Tile, &x, &[0, 2]).ok(), t(&[0, 2], &[]));
        assert!(run(&Tile, &x, &[2]).is_err());
        assert!(run(&Tile, &x, &[i64::MAX, i64::MAX]).is_err());
    }
}
