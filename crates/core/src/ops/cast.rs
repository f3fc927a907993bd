//! Cast, CastLike.

use std::{ops::Range, sync::Arc};

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::{f16, slice::HalfFloatSliceExt};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, Part, PartInput, Permuted, axes, floats, kernel, runs, sample,
};
use crate::{
    ir::Expansion,
    tensor::{DType, TensorType},
};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Cast",
        domain: "",
        since: 6,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Cast { to: element_type(a, "to")? })),
        examples: || {
            vec![
                Example::new("f32 to i64").attribute("to", 7).input(floats([3, 5], 1)),
                Example::new("f32 to f16").attribute("to", 10).input(floats([3, 5], 1)),
                Example::new("i64 to f32")
                    .attribute("to", 1)
                    .input(sample(TensorType::new(DType::I64, [3, 5]), 1)),
                Example::new("f32 to bool").attribute("to", 9).input(floats([3, 5], 1)),
            ]
        },
    },
    OpSpec {
        name: "CastLike",
        domain: "",
        since: 15,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| {
            a.ignore(&["saturate", "round_mode"]);
            Ok(Arc::new(CastLike))
        },
        examples: || {
            let like = sample(TensorType::new(DType::I32, [1]), 1);
            vec![Example::new("to i32").input(floats([3, 5], 1)).input(like)]
        },
    },
];

/// `TensorProto.DataType` of each element type.
const CODES: [(i64, DType); 12] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
];

/// The element type that an attribute names by its `TensorProto.DataType`.
pub(super) fn optional_type(a: &Attributes, name: &str) -> Result<Option<DType>, OpError> {
    let Some(code) = a.int(name)? else { return Ok(None) };
    let found = CODES.iter().find(|(c, _)| *c == code);
    found.map(|(_, d)| Some(*d)).ok_or_else(|| {
        let other = match code {
            8 => "strings",
            14 | 15 => "complex numbers",
            16 => "bfloat16 (supported: float16)",
            17..=20 | 24 => "8-bit floats (supported: float16)",
            21..=23 | 25..=28 => "types of fewer than 8 bits (supported: int8, uint8, float16)",
            _ => return OpError::invalid(format!("attribute {name} is {code}, no element type")),
        };
        OpError::unsupported(format!("element type {code}: {other}"))
    })
}

fn element_type(a: &Attributes, name: &str) -> Result<DType, OpError> {
    a.ignore(&["saturate", "round_mode"]);
    optional_type(a, name)?.ok_or_else(|| OpError::invalid(format!("attribute {name} is missing")))
}

/// The attribute value that names an element type.
pub(super) fn type_code(dtype: DType) -> AttributeValue {
    let code = CODES.iter().find(|(_, d)| *d == dtype).expect("every type has a code");
    AttributeValue::Int(code.0)
}

/// Converts elements to another type.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// The type.
    pub to: DType,
}

impl Op for Cast {
    fn op_type(&self) -> &'static str {
        "Cast"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        Ok(vec![TensorType::new(self.to, x.shape())])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        Ok(cast_kernel(x.input(0).ty.dtype, self.to))
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        (inputs.optional(0)?.ty.dtype == self.to).then(|| Expansion::identity(0))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        axes::first_long(&x.output(0).shape)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let inputs = vec![PartInput::Range { axis, range }];
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn permuted(&self, _: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        Some(Permuted { op: Arc::new(self.clone()), inputs: vec![Some(perm.to_vec())] })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("to", type_code(self.to))]
    }
}

/// Converts elements to the type of another tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct CastLike;

impl Op for CastLike {
    fn op_type(&self) -> &'static str {
        "CastLike"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        let like = inputs.required(1, "target_type")?;
        Ok(vec![TensorType::new(like.ty.dtype, x.shape())])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        Ok(cast_kernel(x.input(0).ty.dtype, x.output(0).dtype))
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        let same = inputs.optional(0)?.ty.dtype == inputs.optional(1)?.ty.dtype;
        same.then(|| Expansion::identity(0))
    }
}

fn cast_kernel(from: DType, to: DType) -> Box<dyn CpuKernel> {
    kernel(move |io, pool| {
        let x = io.input(0).bytes;
        let y = &mut *io.outputs[0].bytes;
        if from == to {
            runs::copy(x, y, pool);
            return Ok(());
        }
        let part = runs::part_bytes(y.len(), to.size() * 64, pool);
        pool.run_parts(y, part, &|i, y| {
            let len = y.len() / to.size();
            let start = i * part / to.size();
            convert(&x[start * from.size()..][..len * from.size()], from, y, to);
        });
        Ok(())
    })
}

/// A number on its way from one type to another.
trait Number: Pod {
    /// As C++ converts it where ONNX Runtime runs most, on x86-64: integers keep their low bits;
    /// floats are truncated to 64 (for i32: 32) bits, out of range becoming the smallest integer.
    fn float(self) -> f32;
    fn double(self) -> f64;
    fn integer(self) -> i64;
    fn unsigned(self) -> u64;
    fn int32(self) -> i32;
    fn truth(self) -> bool;
}

macro_rules! integer_number {
    ($($ty:ty),*) => { $(
        impl Number for $ty {
            fn float(self) -> f32 { self as f32 }
            fn double(self) -> f64 { self as f64 }
            fn integer(self) -> i64 { self as i64 }
            fn unsigned(self) -> u64 { self as u64 }
            fn int32(self) -> i32 { self as i32 }
            fn truth(self) -> bool { self != 0 }
        }
    )* };
}
integer_number!(i8, u8, i16, u16, i32, u32, i64, u64);

macro_rules! float_number {
    ($($ty:ty),*) => { $(
        impl Number for $ty {
            fn float(self) -> f32 { self as f32 }
            fn double(self) -> f64 { self as f64 }
            fn integer(self) -> i64 {
                // 2^63 is the first value out of range; NaN is never in it.
                if self.abs() < 9_223_372_036_854_775_808.0 { self as i64 } else { i64::MIN }
            }
            fn unsigned(self) -> u64 {
                if self < 0.0 { self.integer() as u64 } else { self as u64 }
            }
            fn int32(self) -> i32 {
                if self > -2_147_483_649.0 && self < 2_147_483_648.0 { self as i32 } else { i32::MIN }
            }
            fn truth(self) -> bool { self != 0.0 }
        }
    )* };
}
float_number!(f32, f64);

impl Number for f16 {
    fn float(self) -> f32 {
        self.to_f32()
    }
    fn double(self) -> f64 {
        self.to_f64()
    }
    fn integer(self) -> i64 {
        self.to_f32().integer()
    }
    fn unsigned(self) -> u64 {
        self.to_f32().unsigned()
    }
    fn int32(self) -> i32 {
        self.to_f32().int32()
    }
    fn truth(self) -> bool {
        self.to_f32() != 0.0
    }
}

/// y = x in another element type; both hold the same number of elements.
fn convert(x: &[u8], from: DType, y: &mut [u8], to: DType) {
    match from {
        DType::F16 if to == DType::F32 => {
            cast_slice::<u8, f16>(x).convert_to_f32_slice(cast_slice_mut(y));
        }
        DType::F32 if to == DType::F16 => {
            cast_slice_mut::<u8, f16>(y).convert_from_f32_slice(cast_slice(x));
        }
        DType::F32 => convert_from::<f32>(cast_slice(x), y, to),
        DType::F16 => convert_from::<f16>(cast_slice(x), y, to),
        DType::F64 => convert_from::<f64>(cast_slice(x), y, to),
        DType::I8 => convert_from::<i8>(cast_slice(x), y, to),
        DType::U8 | DType::Bool => convert_from::<u8>(x, y, to),
        DType::I16 => convert_from::<i16>(cast_slice(x), y, to),
        DType::U16 => convert_from::<u16>(cast_slice(x), y, to),
        DType::I32 => convert_from::<i32>(cast_slice(x), y, to),
        DType::U32 => convert_from::<u32>(cast_slice(x), y, to),
        DType::I64 => convert_from::<i64>(cast_slice(x), y, to),
        DType::U64 => convert_from::<u64>(cast_slice(x), y, to),
    }
}

fn convert_from<S: Number>(x: &[S], y: &mut [u8], to: DType) {
    fn each<S: Copy, D: Pod>(x: &[S], y: &mut [u8], f: impl Fn(S) -> D) {
        for (y, &x) in cast_slice_mut::<u8, D>(y).iter_mut().zip(x) {
            *y = f(x);
        }
    }
    match to {
        DType::F32 => each(x, y, S::float),
        DType::F64 => each(x, y, S::double),
        DType::F16 => each(x, y, |v| f16::from_f32(v.float())),
        DType::Bool => each(x, y, |v| u8::from(v.truth())),
        DType::I8 => each(x, y, |v| v.int32() as i8),
        DType::U8 => each(x, y, |v| v.int32() as u8),
        DType::I16 => each(x, y, |v| v.int32() as i16),
        DType::U16 => each(x, y, |v| v.int32() as u16),
        DType::I32 => each(x, y, S::int32),
        DType::U32 => each(x, y, |v| v.integer() as u32),
        DType::I64 => each(x, y, S::integer),
        DType::U64 => each(x, y, S::unsigned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::evaluate,
        tensor::{Element, Tensor},
    };
    use sparoa_kernels::pool::Pool;

    fn cast<S: Element, D: Element>(x: &[S]) -> Vec<D> {
        let x = Tensor::from_slice([x.len()], x);
        let y = evaluate(&Cast { to: D::DTYPE }, &[Some(&x)], &Pool::single()).unwrap();
        y[0].as_slice::<D>().unwrap().to_vec()
    }

    #[test]
    fn floats_truncate() {
        let x = [1.9f32, -1.9, 300.0, -1.0, f32::NAN, 3e9];
        assert_eq!(cast::<_, i32>(&x), [1, -1, 300, -1, i32::MIN, i32::MIN]);
        assert_eq!(cast::<_, u8>(&x[..4]), [1, 255, 44, 255]);
        assert_eq!(cast::<_, i64>(&x[..4]), [1, -1, 300, -1]);
        assert_eq!(cast::<_, i64>(&[1e30f64, f64::NEG_INFINITY]), [i64::MIN; 2]);
        assert_eq!(cast::<_, u32>(&[3e9f32, -1.0]), [3_000_000_000, u32::MAX]);
        assert_eq!(cast::<_, u64>(&[1.5e19f64]), [15_000_000_000_000_000_000]);
    }

    #[test]
    fn integers_keep_low_bits() {
        assert_eq!(cast::<_, i8>(&[257i64, -129]), [1, 127]);
        assert_eq!(cast::<_, u64>(&[-1i32]), [u64::MAX]);
        assert_eq!(cast::<_, f32>(&[u64::MAX]), [18_446_744_073_709_551_615.0]);
        assert_eq!(cast::<_, f16>(&[2049i32])[0].to_f32(), 2048.0);
    }

    #[test]
    fn booleans() {
        let x = Tensor::from_slice([4], &[0.0f32, -0.0, 0.1, f32::NAN]);
        let pool = Pool::single();
        let y = evaluate(&Cast { to: DType::Bool }, &[Some(&x)], &pool).unwrap();
        assert_eq!(y[0].bytes(), [0, 0, 1, 1]);
        let z = evaluate(&Cast { to: DType::F16 }, &[Some(&y[0])], &pool).unwrap();
        assert_eq!(z[0].as_slice::<f16>().unwrap()[2], f16::ONE);
    }

    #[test]
    fn types_are_named() {
        let attributes = |to| Attributes::new(13, 1, [("to".to_owned(), AttributeValue::Int(to))]);
        assert_eq!(element_type(&attributes(7), "to"), Ok(DType::I64));
        assert!(matches!(element_type(&attributes(16), "to"), Err(OpError::Unsupported(_))));
        assert!(matches!(element_type(&attributes(99), "to"), Err(OpError::Invalid(_))));
    }
}
