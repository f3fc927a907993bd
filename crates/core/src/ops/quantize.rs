//! QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: between floats and integers, by
//! one scale, a scale per index of an axis, or a scale per block.

mod dynamic;
mod grid;

use std::{ops::Range, sync::Arc};

use sparoa_kernels::int8::{self, Bytes};

pub use dynamic::DynamicQuantizeLinear;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, Part, PartInput, Permuted, axes, floats, kernel,
    number::{Number, for_dtype},
    sample,
};
use crate::tensor::{DType, Tensor, TensorRef, TensorType};
use grid::Grid;

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "QuantizeLinear",
        domain: "",
        since: 10,
        inputs: (2, 3),
        outputs: (1, 1),
        parse: |a| {
            // The first is about 8-bit floats, the second about which division is exact enough.
            a.ignore(&["saturate", "precision"]);
            Ok(Arc::new(QuantizeLinear { grid: Grid::parse(a)?, dtype: output_dtype(a)? }))
        },
        examples: quantize_examples,
    },
    OpSpec {
        name: "DequantizeLinear",
        domain: "",
        since: 10,
        inputs: (2, 3),
        outputs: (1, 1),
        parse: |a| {
            Ok(Arc::new(DequantizeLinear { grid: Grid::parse(a)?, dtype: output_dtype(a)? }))
        },
        examples: dequantize_examples,
    },
    dynamic::SPEC,
];

/// ONNX's number of an element type that a quantised or dequantised tensor may have.
const TYPES: [(i64, DType); 7] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (10, DType::F16),
];

/// The attribute `output_dtype`: absent or 0 for none.
fn output_dtype(attributes: &Attributes) -> Result<Option<DType>, OpError> {
    match attributes.int_or("output_dtype", 0)? {
        0 => Ok(None),
        code => TYPES.iter().find(|(c, _)| *c == code).map(|(_, d)| Some(*d)).ok_or_else(|| {
            OpError::unsupported(format!(
                "attribute output_dtype {code} (supported: 8-, 16- and 32-bit integers, f32)"
            ))
        }),
    }
}

fn dtype_attribute(dtype: Option<DType>) -> Option<(&'static str, AttributeValue)> {
    let code = TYPES.iter().find(|(_, d)| Some(*d) == dtype)?.0;
    Some(("output_dtype", code.into()))
}

/// round(x / scale) + zero point, halves to even, saturated. Inputs: x, scale, optional zero
/// point. Output: the zero point's type, or as asked, or u8.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeLinear {
    /// Which scale an element has.
    pub grid: Grid,
    /// Element type of the output, where the node says so.
    pub dtype: Option<DType>,
}

/// Scale (input 1) and zero point (input 2) have the same shape, and that fits x.
fn check_parameters(grid: &Grid, inputs: &[Option<Operand>]) -> Result<(), OpError> {
    let (x, scale) = (inputs.required(0, "x")?, inputs.required(1, "scale")?);
    if !scale.ty.dtype.is_float() {
        return Err(OpError::invalid(format!("the scale is {}, must be a float", scale.ty.dtype)));
    }
    if let Some(zero) = inputs.optional(2)
        && zero.ty.len() != scale.ty.len()
    {
        return Err(OpError::invalid(format!(
            "the scale has shape {:?}, the zero point {:?}",
            scale.shape(),
            zero.shape()
        )));
    }
    grid.place(x.shape(), scale.shape()).map(|_| ())
}

/// The parts of a split: x along `axis`, and the parameters where they vary along it.
fn split(
    grid: &Grid,
    x: &Operands<'_>,
    axis: usize,
    range: Range<usize>,
) -> Option<Vec<PartInput>> {
    let placed = grid.place(x.input(0).shape(), x.input(1).shape()).ok()?;
    let sliced = placed.axis == Some(axis);
    if sliced && placed.block > 1 {
        return None;
    }
    let parameters = match (sliced, placed.blocked()) {
        // A scale per block has x's rank, and moves with x along every axis but the blocked one.
        (_, true) => PartInput::Range { axis, range: range.clone() },
        (true, false) => PartInput::Range { axis: 0, range: range.clone() },
        (false, false) => PartInput::Whole,
    };
    let mut inputs = vec![PartInput::Range { axis, range }];
    inputs.resize(x.inputs.len(), parameters);
    Some(inputs)
}

/// Inputs and axis of a permuted quantisation.
fn permuted(
    grid: &Grid,
    x: &Operands<'_>,
    perm: &[usize],
) -> Option<(Grid, Vec<Option<Vec<usize>>>)> {
    let placed = grid.place(x.input(0).shape(), x.input(1).shape()).ok()?;
    let mut moved = grid.clone();
    if let Some(axis) = placed.axis {
        moved.axis = i64::try_from(perm.iter().position(|&p| p == axis)?).ok()?;
    }
    let parameters = placed.blocked().then(|| perm.to_vec());
    let mut inputs = vec![Some(perm.to_vec())];
    inputs.resize(x.inputs.len(), parameters);
    Some((moved, inputs))
}

fn split_axis(grid: &Grid, x: &Operands<'_>) -> Option<usize> {
    let axis = axes::first_long(&x.output(0).shape)?;
    let parameters = x.constant(1).is_some() && (x.get(2).is_none() || x.constant(2).is_some());
    let alone = x.input(1).ty.len() == 1;
    split(grid, x, axis, 0..1)?;
    (alone || parameters).then_some(axis)
}

impl Op for QuantizeLinear {
    fn op_type(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        check_parameters(&self.grid, inputs)?;
        let zero = inputs.optional(2).map(|z| z.ty.dtype);
        let dtype = match (zero, self.dtype) {
            (Some(zero), Some(asked)) if zero != asked => {
                return Err(OpError::invalid(format!(
                    "attribute output_dtype asks for {asked}, the zero point is {zero}"
                )));
            }
            (zero, asked) => zero.or(asked).unwrap_or(DType::U8),
        };
        Ok(vec![TensorType::new(dtype, inputs.required(0, "x")?.shape())])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        2 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let placed = self.grid.place(x.input(0).shape(), x.input(1).shape())?;
        let (from, to, scale) = (x.input(0).ty.dtype, x.output(0).dtype, x.input(1).ty.dtype);
        if scale != DType::F32 {
            return Err(OpError::dtype(scale, &[DType::F32]));
        }
        if from == DType::F32 && placed.axis.is_none() && matches!(to, DType::U8 | DType::I8) {
            return Ok(quantize_bytes());
        }
        Ok(for_dtype!(from, X in [F32, I32] => {
            for_dtype!(to, Y in [U8, I8, U16, I16, I32] => quantize::<X, Y>(placed))
        }))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        split_axis(&self.grid, x)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let inputs = split(&self.grid, x, self.split_axis(x)?, range)?;
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let (grid, inputs) = permuted(&self.grid, x, perm)?;
        Some(Permuted { op: Arc::new(QuantizeLinear { grid, ..*self }), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.grid.attributes();
        list.extend(dtype_attribute(self.dtype));
        list
    }
}

/// One scale for f32 to bytes.
fn quantize_bytes() -> Box<dyn CpuKernel> {
    kernel(|io, pool| {
        let x = io.input(0).slice::<f32>();
        let scale = io.input(1).slice::<f32>()[0];
        let zero = io.get(2);
        const PART: usize = 8192;
        let of = |part: usize, len: usize| &x[part * PART..][..len];
        if io.outputs[0].dtype == DType::U8 {
            let zero = zero.map_or(0, |z| z.slice::<u8>()[0]);
            pool.run_parts(io.outputs[0].slice_mut::<u8>(), PART, &|part, y| {
                int8::quantize_u8(of(part, y.len()), scale, zero, y);
            });
        } else {
            let zero = zero.map_or(0, |z| z.slice::<i8>()[0]);
            pool.run_parts(io.outputs[0].slice_mut::<i8>(), PART, &|part, y| {
                int8::quantize_i8(of(part, y.len()), scale, zero, y);
            });
        }
        Ok(())
    })
}

fn quantize<X: Number, Y: Number>(placed: grid::Placed) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        let x = io.input(0).slice::<X>();
        let scale = io.input(1).slice::<f32>();
        let zero = io.get(2).map(|z| z.slice::<Y>());
        const PART: usize = 4096;
        pool.run_parts(io.outputs[0].slice_mut::<Y>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * PART + i;
                let which = placed.parameter(at);
                let zero = zero.map_or(0.0, |z| z[which].to_f64());
                let v = (x[at].to_f64() as f32 / scale[which]).round_ties_even();
                *y = Y::from_f64(f64::from(v) + zero);
            }
        });
        Ok(())
    })
}

/// (x - zero point) * scale. Inputs: x, scale, optional zero point. Output: the scale's type.
#[derive(Clone, Debug, PartialEq)]
pub struct DequantizeLinear {
    /// Which scale an element has.
    pub grid: Grid,
    /// Element type of the output, where the node says so.
    pub dtype: Option<DType>,
}

impl Op for DequantizeLinear {
    fn op_type(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        check_parameters(&self.grid, inputs)?;
        let (x, scale) = (inputs.required(0, "x")?, inputs.required(1, "x_scale")?);
        if let Some(zero) = inputs.optional(2)
            && zero.ty.dtype != x.ty.dtype
        {
            return Err(OpError::invalid(format!(
                "x is {}, the zero point {}",
                x.ty.dtype, zero.ty.dtype
            )));
        }
        Ok(vec![TensorType::new(self.dtype.unwrap_or(scale.ty.dtype), x.shape())])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        2 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let placed = self.grid.place(x.input(0).shape(), x.input(1).shape())?;
        let (from, to) = (x.input(0).ty.dtype, x.output(0).dtype);
        if to != DType::F32 || x.input(1).ty.dtype != DType::F32 {
            return Err(OpError::dtype(to, &[DType::F32]));
        }
        if matches!(from, DType::U8 | DType::I8) && !placed.blocked() {
            return Ok(dequantize_bytes(placed));
        }
        Ok(for_dtype!(from, X in [U8, I8, U16, I16, I32] => dequantize::<X>(placed)))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        split_axis(&self.grid, x)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let inputs = split(&self.grid, x, self.split_axis(x)?, range)?;
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let (grid, inputs) = permuted(&self.grid, x, perm)?;
        Some(Permuted { op: Arc::new(DequantizeLinear { grid, ..*self }), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.grid.attributes();
        list.extend(dtype_attribute(self.dtype));
        list
    }
}

/// The bytes of an 8-bit tensor.
pub(in crate::ops) fn bytes_of<'a>(tensor: &TensorRef<'a>) -> Bytes<'a> {
    match tensor.dtype {
        DType::I8 => Bytes::I8(tensor.slice()),
        _ => Bytes::U8(tensor.slice()),
    }
}

/// Bytes to f32, in runs that have one scale.
fn dequantize_bytes(placed: grid::Placed) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        let x = bytes_of(&io.input(0));
        let scale = io.input(1).slice::<f32>();
        let zeros = io.get(2);
        let zero = |which: usize| {
            zeros.map_or(0, |z| match z.dtype {
                DType::I8 => i32::from(z.slice::<i8>()[which]),
                _ => i32::from(z.slice::<u8>()[which]),
            })
        };
        // Without an axis, any cut will do.
        let run = if placed.axis.is_none() { 8192 } else { placed.inner.max(1) };
        let y = io.outputs[0].slice_mut::<f32>();
        pool.run_parts(y, run, &|part, y| {
            let at = part * run;
            let which = placed.parameter(at);
            let x = match x {
                Bytes::U8(x) => Bytes::U8(&x[at..at + y.len()]),
                Bytes::I8(x) => Bytes::I8(&x[at..at + y.len()]),
            };
            int8::dequantize(x, scale[which], zero(which), y);
        });
        Ok(())
    })
}

fn dequantize<X: Number>(placed: grid::Placed) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        let x = io.input(0).slice::<X>();
        let scale = io.input(1).slice::<f32>();
        let zero = io.get(2).map(|z| z.slice::<X>());
        const PART: usize = 4096;
        pool.run_parts(io.outputs[0].slice_mut::<f32>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * PART + i;
                let which = placed.parameter(at);
                let zero = zero.map_or(0.0, |z| z[which].to_f64());
                *y = (x[at].to_f64() - zero) as f32 * scale[which];
            }
        });
        Ok(())
    })
}

fn scales(values: &[f32]) -> Tensor {
    Tensor::from_slice([values.len()], values)
}

fn quantize_examples() -> Vec<Example> {
    vec![
        Example::new("one scale, u8")
            .input(floats([2, 3, 5], 1))
            .constant(Tensor::scalar(0.01f32))
            .constant(Tensor::scalar(128u8)),
        Example::new("a scale per channel, i8")
            .attribute("axis", 1i64)
            .input(floats([2, 3, 4], 1))
            .constant(scales(&[0.01, 0.02, 0.005]))
            .constant(Tensor::from_slice([3], &[0i8, 3, -7])),
        Example::new("a scale per block of two, i16")
            .attribute("axis", 1i64)
            .attribute("block_size", 2i64)
            .attribute("output_dtype", 5i64)
            .input(floats([2, 4], 1))
            .constant(Tensor::from_slice([2, 2], &[0.01f32, 0.001, 0.1, 1.0])),
    ]
}

fn dequantize_examples() -> Vec<Example> {
    let of = |dtype, shape: &[usize]| sample(TensorType::new(dtype, shape), 1);
    vec![
        Example::new("one scale, u8")
            .input(of(DType::U8, &[2, 3, 5]))
            .constant(Tensor::scalar(0.1f32))
            .constant(Tensor::scalar(8u8)),
        Example::new("a scale per channel, i8, no zero point")
            .attribute("axis", -2i64)
            .input(of(DType::I8, &[2, 3, 4]))
            .constant(scales(&[0.01, 0.02, 0.005])),
        Example::new("i32").input(of(DType::I32, &[7])).constant(Tensor::scalar(0.5f32)),
        Example::new("a scale per block of three, i8")
            .attribute("axis", 0i64)
            .attribute("block_size", 3i64)
            .input(of(DType::I8, &[6, 2]))
            .constant(Tensor::from_slice([2, 2], &[0.1f32, 0.2, 0.3, 0.4]))
            .constant(Tensor::from_slice([2, 2], &[1i8, 2, 3, 4])),
    ]
}
