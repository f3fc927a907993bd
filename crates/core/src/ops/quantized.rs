//! Operators on 8-bit integers: products and convolutions with exact sums, and `com.microsoft`'s
//! others written out as float operators between conversions.

mod add;
mod composed;
mod conv;
mod matmul;
mod mean;
mod requantize;

pub use add::IntAdd;
pub use conv::IntConv;
pub use matmul::IntMatMul;
pub use mean::IntMean;

use super::{AttributeValue, Attributes, OpError, OpSpec, Operand};
use crate::tensor::{DType, Tensor, TensorRef};

pub(super) const SPECS: &[OpSpec] = &[
    matmul::MAT_MUL_INTEGER,
    matmul::Q_LINEAR_MAT_MUL,
    conv::CONV_INTEGER,
    conv::Q_LINEAR_CONV,
    conv::CONV_INTEGER_LAST,
    conv::Q_LINEAR_CONV_FUSED,
    matmul::Q_LINEAR_MAT_MUL_FUSED,
    add::SPEC,
    mean::SPEC,
    composed::ADD,
    composed::MUL,
    composed::SIGMOID,
    composed::LEAKY_RELU,
    composed::AVERAGE_POOL,
    composed::GLOBAL_AVERAGE_POOL,
    composed::CONCAT,
    composed::SOFTMAX,
    composed::GEMM,
];

/// Refuses anything but 8-bit integers.
fn check_bytes(operand: &Operand, name: &str) -> Result<(), OpError> {
    match operand.ty.dtype {
        DType::U8 | DType::I8 => Ok(()),
        other => Err(OpError::invalid(format!("input {name} is {other}, must be u8 or i8"))),
    }
}

/// Refuses a zero point that is not of its tensor's type, or has neither 1 nor `count` elements.
fn check_zero(
    zero: Option<&Operand>,
    of: &Operand,
    count: usize,
    name: &str,
) -> Result<(), OpError> {
    let Some(zero) = zero else { return Ok(()) };
    if zero.ty.dtype != of.ty.dtype || (zero.ty.len() != 1 && zero.ty.len() != count) {
        return Err(OpError::invalid(format!(
            "input {name} is {}, must be {} with 1 or {count} elements",
            zero.ty, of.ty.dtype
        )));
    }
    Ok(())
}

/// Refuses a scale that is not f32 with 1 or `count` elements.
fn check_scale(scale: &Operand, count: usize, name: &str) -> Result<(), OpError> {
    if scale.ty.dtype == DType::F32 && (scale.ty.len() == 1 || scale.ty.len() == count) {
        return Ok(());
    }
    if scale.ty.dtype != DType::F32 {
        return Err(OpError::dtype(scale.ty.dtype, &[DType::F32]));
    }
    Err(OpError::invalid(format!(
        "input {name} is {}, must be f32 with 1 or {count} elements",
        scale.ty
    )))
}

/// Refuses anything but f32 with one element.
fn check_one_scale(scale: &Operand, name: &str) -> Result<(), OpError> {
    check_scale(scale, 1, name)
}

/// Smallest and largest value that an operator may write: those of an activation after it. `None`
/// for all of its type.
pub type Bounds = Option<[i32; 2]>;

/// The attribute `bounds` of fused operators.
fn bounds(attributes: &Attributes) -> Result<Bounds, OpError> {
    let Some(list) = attributes.ints("bounds")? else { return Ok(None) };
    let byte = |v: i64| i32::try_from(v).ok().filter(|v| (-128..256).contains(v));
    match list[..] {
        [low, high] if low <= high => match (byte(low), byte(high)) {
            (Some(low), Some(high)) => Ok(Some([low, high])),
            _ => Err(OpError::invalid(format!("attribute bounds is {list:?}, must be bytes"))),
        },
        _ => Err(OpError::invalid(format!(
            "attribute bounds is {list:?}, must be the smallest and the largest value"
        ))),
    }
}

/// What [`bounds`] reads.
fn bounds_attribute(bounds: Bounds) -> Option<(&'static str, AttributeValue)> {
    let [low, high] = bounds?.map(i64::from);
    Some(("bounds", AttributeValue::Ints(vec![low, high])))
}

/// `bounds` within what `dtype` holds; an operator whose bounds lie outside writes the nearest.
fn bounds_within(bounds: Bounds, dtype: DType) -> [i32; 2] {
    let [low, high] = if dtype == DType::I8 { [-128, 127] } else { [0, 255] };
    bounds.map_or([low, high], |b| b.map(|v| v.clamp(low, high)))
}

/// Zero points as integers; one zero when there are none.
fn zeros(tensor: Option<TensorRef<'_>>) -> Vec<i32> {
    match tensor {
        None => vec![0],
        Some(t) if t.dtype == DType::I8 => t.slice::<i8>().iter().map(|&v| v.into()).collect(),
        Some(t) => t.slice::<u8>().iter().map(|&v| v.into()).collect(),
    }
}

/// A vector of scales, for examples.
fn scale(values: &[f32]) -> Tensor {
    match values {
        [one] => Tensor::scalar(*one),
        many => Tensor::from_slice([many.len()], many),
    }
}
