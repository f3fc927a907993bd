//! Pad.

use std::sync::Arc;

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec,
    Operand, Operands, Permuted, axes, floats, gpu, integers, kernel, runs,
};
use crate::tensor::{Tensor, TensorType};

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "Pad",
    domain: "",
    since: 2,
    inputs: (1, 4),
    outputs: (1, 1),
    parse: |a| {
        let mode = match a.string("mode")?.as_deref() {
            None | Some("constant") => PadMode::Constant,
            Some("edge") => PadMode::Edge,
            Some("reflect") => PadMode::Reflect,
            Some("wrap") => PadMode::Wrap,
            Some(other) => {
                return Err(OpError::unsupported(format!(
                    "mode '{other}' (supported: constant, edge, reflect, wrap)"
                )));
            }
        };
        let (pads, value) = if a.opset < 11 {
            let pads = a.ints("pads")?.ok_or_else(|| OpError::invalid("pads is missing"))?;
            (Some(pads), a.float_or("value", 0.0)?)
        } else {
            (None, 0.0)
        };
        Ok(Arc::new(Pad { mode, pads, value }))
    },
    examples: || {
        let e = |name| Example::new(name).input(floats([2, 3, 4], 1));
        let seven = Tensor::scalar(7.0f32);
        vec![
            e("constant").constant(integers(&[0, 1, 2, 1, 0, 1])).constant(seven.clone()),
            e("crop and grow").constant(integers(&[0, -1, 2, 0, 1, -1])),
            e("edge").attribute("mode", "edge").constant(integers(&[1, 0, 2, 0, 0, 1])),
            e("reflect, one axis")
                .attribute("mode", "reflect")
                .constant(integers(&[2, 1]))
                .omitted()
                .constant(integers(&[1])),
            e("wrap").attribute("mode", "wrap").constant(integers(&[0, 1, 0, 0, 2, 5])),
        ]
    },
}];

/// What the new elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadMode {
    /// One value.
    Constant,
    /// The nearest element.
    Edge,
    /// Mirrored, the edge not repeated.
    Reflect,
    /// Periodic.
    Wrap,
}

/// Adds elements at both ends of axes, or removes them where a pad is negative.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// What to add.
    pub mode: PadMode,
    /// Pads before each axis, then after each axis, in models before opset 11 and after a
    /// transposition has passed; else they are input 1 (and axes input 3).
    pub pads: Option<Vec<i64>>,
    /// The value to add in models before opset 11; later ones give it as input 2.
    pub value: f32,
}

impl Pad {
    /// Pads before and after each axis.
    fn amounts(&self, inputs: &[Option<Operand>]) -> Result<Vec<(i64, i64)>, OpError> {
        let rank = inputs.required(0, "data")?.ty.rank();
        let (pads, list) = match &self.pads {
            Some(pads) => (pads.clone(), None),
            None => {
                inputs.required(1, "pads")?;
                let pads = inputs.integers(1, "pads")?.unwrap_or_default();
                (pads, inputs.integers(3, "axes")?)
            }
        };
        let list = match list {
            Some(list) => axes::axes(&list, rank)?,
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * list.len() {
            return Err(OpError::invalid(format!("{} pads for {} axes", pads.len(), list.len())));
        }
        let mut amounts = vec![(0, 0); rank];
        for (i, &axis) in list.iter().enumerate() {
            amounts[axis] = (pads[i], pads[i + list.len()]);
        }
        Ok(amounts)
    }

    /// For each output index of an axis, the input index, or `None` for the pad value.
    fn source(&self, i: usize, before: i64, dim: usize) -> Option<usize> {
        let (i, n) = (i as i64 - before, dim as i64);
        let inside = match self.mode {
            PadMode::Constant => i,
            PadMode::Edge => i.clamp(0, n - 1),
            PadMode::Wrap => i.rem_euclid(n.max(1)),
            PadMode::Reflect if n == 1 => 0,
            PadMode::Reflect => {
                let period = 2 * (n - 1);
                let r = i.rem_euclid(period.max(1));
                r.min(period - r)
            }
        };
        usize::try_from(inside).ok().filter(|&s| s < dim)
    }
}

impl Op for Pad {
    fn op_type(&self) -> &'static str {
        "Pad"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let value = inputs.optional(2);
        if let Some(value) = value.filter(|v| v.ty.dtype != x.ty.dtype || v.ty.len() != 1) {
            return Err(OpError::invalid(format!(
                "constant_value has the type {}, must be one element of {}",
                value.ty, x.ty.dtype
            )));
        }
        let mut shape = Vec::with_capacity(x.ty.rank());
        for ((before, after), &dim) in self.amounts(inputs)?.into_iter().zip(x.shape()) {
            let size = i128::from(before) + i128::from(after) + dim as i128;
            let size = usize::try_from(size).ok().filter(|&s| i64::try_from(s).is_ok());
            let size = size.ok_or_else(|| {
                OpError::invalid(format!("pads {before} and {after} for an axis of size {dim}"))
            })?;
            if dim == 0 && size > 0 && self.mode != PadMode::Constant {
                return Err(OpError::invalid("an empty axis has nothing to repeat"));
            }
            shape.push(size);
        }
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (input, output) = (x.input(0).ty.clone(), x.output(0).clone());
        let amounts = self.amounts(x.inputs)?;
        let size = input.dtype.size();
        // Trailing axes that are left alone make one element of `unit` bytes.
        let kept = amounts.iter().rposition(|&a| a != (0, 0)).map_or(0, |last| last + 1);
        let unit = input.shape[kept..].iter().product::<usize>() * size;
        let strides = axes::strides(&input.shape[..kept]);
        // Input offset in units for every index of every padded axis.
        let maps: Vec<Vec<Option<usize>>> = (0..kept)
            .map(|d| {
                let source = |i| self.source(i, amounts[d].0, input.shape[d]);
                (0..output.shape[d]).map(|i| source(i).map(|s| s * strides[d])).collect()
            })
            .collect();
        let fixed: Option<Vec<u8>> = match x.get(2) {
            Some(_) => None,
            None => Some(match input.dtype {
                crate::tensor::DType::F32 => bytemuck::bytes_of(&self.value).to_vec(),
                crate::tensor::DType::F64 => bytemuck::bytes_of(&f64::from(self.value)).to_vec(),
                crate::tensor::DType::F16 => {
                    bytemuck::bytes_of(&half::f16::from_f32(self.value)).to_vec()
                }
                _ => vec![0; size],
            }),
        };
        Ok(kernel(move |io, pool| {
            let x = io.input(0).bytes;
            let value = fixed.as_deref().unwrap_or_else(|| io.input(2).bytes);
            let y = &mut *io.outputs[0].bytes;
            let Some((columns, outer)) = maps.split_last() else {
                runs::copy(x, y, pool);
                return Ok(());
            };
            let row = columns.len() * unit;
            let part = runs::part_bytes(y.len(), row, pool);
            pool.run_parts(y, part, &|i, y| {
                let rows = (i * part / row..).zip(y.chunks_exact_mut(row));
                for (mut index, y) in rows {
                    let mut base = Some(0);
                    for map in outer.iter().rev() {
                        base = base.zip(map[index % map.len()]).map(|(a, b)| a + b);
                        index /= map.len();
                    }
                    pad_row(x, base, columns, unit, value, y);
                }
            });
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let value = match x.get(2) {
            None => self.value,
            Some(_) => *x.constant(2)?.as_slice::<f32>()?.first()?,
        };
        let kept = self.mode == PadMode::Constant;
        if kept { gpu::pad(x, caps, &self.amounts(x.inputs).ok()?, value) } else { None }
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let amounts = self.amounts(x.inputs).ok()?;
        let moved: Vec<(i64, i64)> =
            perm.iter().map(|&a| amounts.get(a).copied()).collect::<Option<_>>()?;
        let pads = moved.iter().map(|p| p.0).chain(moved.iter().map(|p| p.1)).collect();
        let mut inputs = vec![None; x.inputs.len()];
        inputs[0] = Some(perm.to_vec());
        Some(Permuted { op: Arc::new(Pad { pads: Some(pads), ..self.clone() }), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mode = match self.mode {
            PadMode::Constant => "constant",
            PadMode::Edge => "edge",
            PadMode::Reflect => "reflect",
            PadMode::Wrap => "wrap",
        };
        let mut list = vec![("mode", AttributeValue::String(mode.to_owned()))];
        if let Some(pads) = &self.pads {
            list.push(("pads", AttributeValue::Ints(pads.clone())));
            list.push(("value", AttributeValue::Float(self.value)));
        }
        list
    }
}

/// One row of the output: units that follow each other in the input are copied together.
fn pad_row(
    x: &[u8],
    base: Option<usize>,
    columns: &[Option<usize>],
    unit: usize,
    value: &[u8],
    y: &mut [u8],
) {
    let mut column = 0;
    while column < columns.len() {
        let source = base.zip(columns[column]).map(|(a, b)| a + b);
        let mut n = 1;
        let same = |n: usize| match columns.get(column + n) {
            None => false,
            Some(next) => match source {
                None => base.is_none() || next.is_none(),
                Some(_) => *next == columns[column].map(|c| c + n),
            },
        };
        while same(n) {
            n += 1;
        }
        let target = &mut y[column * unit..(column + n) * unit];
        match source {
            Some(from) => target.copy_from_slice(&x[from * unit..(from + n) * unit]),
            None => {
                for element in target.chunks_exact_mut(value.len()) {
                    element.copy_from_slice(value);
                }
            }
        }
        column += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::evaluate;
    use sparoa_kernels::pool::Pool;

    fn pad(mode: PadMode, x: &Tensor, pads: &[i64]) -> Result<Tensor, OpError> {
        let op = Pad { mode, pads: Some(pads.to_vec()), value: 0.0 };
        evaluate(&op, &[Some(x)], &Pool::single()).map(|mut t| t.remove(0))
    }

    fn t(shape: &[usize], data: &[i32]) -> Option<Tensor> {
        Some(Tensor::from_slice(shape, data))
    }

    #[test]
    fn modes() {
        let x = Tensor::from_slice([1, 3], &[1i32, 2, 3]);
        let run = |mode, pads: &[i64]| pad(mode, &x, pads).ok();
        assert_eq!(
            run(PadMode::Constant, &[0, 1, 1, 2]),
            t(&[2, 6], &[0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0])
        );
        assert_eq!(run(PadMode::Edge, &[0, 2, 0, 1]), t(&[1, 6], &[1, 1, 1, 2, 3, 3]));
        assert_eq!(run(PadMode::Reflect, &[0, 2, 0, 2]), t(&[1, 7], &[3, 2, 1, 2, 3, 2, 1]));
        assert_eq!(run(PadMode::Reflect, &[1, 0, 0, 0]), t(&[2, 3], &[1, 2, 3, 1, 2, 3]));
        assert_eq!(run(PadMode::Wrap, &[0, 2, 0, 4]), t(&[1, 9], &[2, 3, 1, 2, 3, 1, 2, 3, 1]));
        assert_eq!(run(PadMode::Constant, &[0, -1, 0, 1]), t(&[1, 3], &[2, 3, 0]));
        assert_eq!(run(PadMode::Constant, &[0, -2, 0, -2]), None);
        assert_eq!(run(PadMode::Constant, &[0, 0]), None);
        assert_eq!(run(PadMode::Constant, &[i64::MAX, 0, i64::MAX, 0]), None);
        assert_eq!(run(PadMode::Constant, &[0, 0, 0, 0]).as_ref(), Some(&x));
    }

    #[test]
    fn inner_axes_move_together() {
        let x = Tensor::from_slice([2, 2, 2], &[1i32, 2, 3, 4, 5, 6, 7, 8]);
        let y = pad(PadMode::Constant, &x, &[0, 1, 0, 0, 0, 0]).unwrap();
        assert_eq!(y, t(&[2, 3, 2], &[0, 0, 1, 2, 3, 4, 0, 0, 5, 6, 7, 8]).unwrap());
        let empty = Tensor::from_slice::<i32>([0, 2], &[]);
        assert_eq!(pad(PadMode::Constant, &empty, &[1, 0, 0, 0]).ok(), t(&[1, 2], &[0, 0]));
        assert!(pad(PadMode::Edge, &empty, &[1, 0, 0, 0]).is_err());
    }

    #[test]
    fn transposes_pass() {
        let inputs = [
            Some(Operand::dynamic(TensorType::f32([1, 3, 4, 5]))),
            Some(Operand::constant(Arc::new(integers(&[0, 0, 1, 2, 0, 0, 3, 4])))),
        ];
        let op = Pad { mode: PadMode::Constant, pads: None, value: 0.0 };
        let outputs = op.infer(&inputs).unwrap();
        let x = Operands { inputs: &inputs, outputs: &outputs };
        let p = op.permuted(&x, &[0, 2, 3, 1]).unwrap();
        let pads = p.op.downcast::<Pad>().unwrap().pads.clone();
        assert_eq!(pads, Some(vec![0, 1, 2, 0, 0, 3, 4, 0]));
    }
}
