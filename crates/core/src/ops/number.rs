//! Arithmetic over the numeric element types, for operators that run generically on integers and
//! doubles. Integers wrap, as ONNX Runtime's do.

use crate::tensor::Element;

/// A numeric element.
pub(super) trait Number: Element + PartialOrd + 'static {
    const ZERO: Self;
    const ONE: Self;
    /// Below or equal to every value.
    const LEAST: Self;
    /// Above or equal to every value.
    const GREATEST: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn magnitude(self) -> Self;
    fn to_f64(self) -> f64;
    /// Nearest representable value; integers saturate and drop fractions.
    fn from_f64(value: f64) -> Self;
    /// Divides by a count, which is not 0; integers drop fractions.
    fn over(self, count: usize) -> Self;
    fn is_nan(self) -> bool;
}

macro_rules! float {
    ($($t:ty),*) => {$(
        impl Number for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const LEAST: $t = <$t>::NEG_INFINITY;
            const GREATEST: $t = <$t>::INFINITY;
            fn plus(self, other: $t) -> $t { self + other }
            fn times(self, other: $t) -> $t { self * other }
            fn magnitude(self) -> $t { self.abs() }
            fn to_f64(self) -> f64 { f64::from(self) }
            fn from_f64(value: f64) -> $t { value as $t }
            fn over(self, count: usize) -> $t { self / count as $t }
            fn is_nan(self) -> bool { <$t>::is_nan(self) }
        }
    )*};
}
float!(f32, f64);

macro_rules! integer {
    ($($t:ty: $magnitude:expr),*) => {$(
        impl Number for $t {
            const ZERO: $t = 0;
            const ONE: $t = 1;
            const LEAST: $t = <$t>::MIN;
            const GREATEST: $t = <$t>::MAX;
            fn plus(self, other: $t) -> $t { self.wrapping_add(other) }
            fn times(self, other: $t) -> $t { self.wrapping_mul(other) }
            fn magnitude(self) -> $t { $magnitude(self) }
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(value: f64) -> $t { value as $t }
            fn over(self, count: usize) -> $t {
                <$t>::try_from(count).map_or(0, |count| self / count)
            }
            fn is_nan(self) -> bool { false }
        }
    )*};
}
integer!(i8: i8::wrapping_abs, i16: i16::wrapping_abs, i32: i32::wrapping_abs,
         i64: i64::wrapping_abs, u8: |v| v, u16: |v| v, u32: |v| v, u64: |v| v);

/// Evaluates `$body` with `$T` standing for the Rust type of a [`DType`](crate::tensor::DType)
/// out of the list; other types are an unsupported-type error, returned.
macro_rules! for_dtype {
    ($dtype:expr, $T:ident in [$($variant:ident),* $(,)?] => $body:expr) => {{
        #[allow(unused_imports)]
        use $crate::tensor::DType;
        match $dtype {
            $(DType::$variant => {
                type $T = $crate::ops::number::rust_type!($variant);
                $body
            })*
            other => return Err($crate::ops::OpError::dtype(other, &[$(DType::$variant),*])),
        }
    }};
}
pub(super) use for_dtype;

macro_rules! rust_type {
    (F32) => {
        f32
    };
    (F64) => {
        f64
    };
    (I8) => {
        i8
    };
    (U8) => {
        u8
    };
    (I16) => {
        i16
    };
    (U16) => {
        u16
    };
    (I32) => {
        i32
    };
    (U32) => {
        u32
    };
    (I64) => {
        i64
    };
    (U64) => {
        u64
    };
}
pub(super) use rust_type;
