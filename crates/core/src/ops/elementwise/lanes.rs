//! What each instruction does to a block of elements of one working type. Truth values are 0 and 1
//! of that type.

use sparoa_kernels::{
    Activation,
    math::{self, BinaryOp, UnaryOp},
};

use super::expr::{Binary, Unary};
use crate::tensor::Element;

/// An operand of a block: as many elements as the block, or one for all.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot<'a, T> {
    Slice(&'a [T]),
    Scalar(T),
}

/// A type in which expressions are evaluated.
pub(super) trait Lane: Element + PartialEq {
    const ZERO: Self;
    const ONE: Self;

    fn from_f64(v: f64) -> Self;
    fn from_i64(v: i64) -> Self;
    fn from_u64(v: u64) -> Self;
    fn to_f64(self) -> f64;
    fn unary(op: Unary, a: Slot<'_, Self>, y: &mut [Self]);
    fn binary(op: Binary, a: Slot<'_, Self>, b: Slot<'_, Self>, y: &mut [Self]);

    fn from_bool(v: bool) -> Self {
        if v { Self::ONE } else { Self::ZERO }
    }

    /// y[i] = c[i] is true ? a[i] : b[i]
    fn select(c: Slot<'_, Self>, a: Slot<'_, Self>, b: Slot<'_, Self>, y: &mut [Self]) {
        match c {
            Slot::Scalar(c) => copy(if c != Self::ZERO { a } else { b }, y),
            Slot::Slice(c) => {
                copy(b, y);
                match a {
                    Slot::Scalar(a) => {
                        for (y, &c) in y.iter_mut().zip(c) {
                            *y = if c != Self::ZERO { a } else { *y };
                        }
                    }
                    Slot::Slice(a) => {
                        for ((y, &c), &a) in y.iter_mut().zip(c).zip(a) {
                            *y = if c != Self::ZERO { a } else { *y };
                        }
                    }
                }
            }
        }
    }
}

fn copy<T: Copy>(a: Slot<'_, T>, y: &mut [T]) {
    match a {
        Slot::Slice(a) => y.copy_from_slice(a),
        Slot::Scalar(a) => y.fill(a),
    }
}

fn map<T: Copy>(a: Slot<'_, T>, y: &mut [T], f: impl Fn(T) -> T) {
    match a {
        Slot::Scalar(a) => y.fill(f(a)),
        Slot::Slice(a) => {
            for (y, &a) in y.iter_mut().zip(a) {
                *y = f(a);
            }
        }
    }
}

fn map2<T: Copy>(a: Slot<'_, T>, b: Slot<'_, T>, y: &mut [T], f: impl Fn(T, T) -> T) {
    match (a, b) {
        (Slot::Scalar(a), Slot::Scalar(b)) => y.fill(f(a, b)),
        (Slot::Slice(a), Slot::Scalar(b)) => map(Slot::Slice(a), y, |a| f(a, b)),
        (Slot::Scalar(a), Slot::Slice(b)) => map(Slot::Slice(b), y, |b| f(a, b)),
        (Slot::Slice(a), Slot::Slice(b)) => {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        }
    }
}

/// Comparisons and logic, the same for all types; false when `op` is neither.
fn predicate<T: Lane + PartialOrd>(
    op: Binary,
    a: Slot<'_, T>,
    b: Slot<'_, T>,
    y: &mut [T],
) -> bool {
    let t = T::from_bool;
    match op {
        Binary::Equal => map2(a, b, y, |a, b| t(a == b)),
        Binary::Less => map2(a, b, y, |a, b| t(a < b)),
        Binary::LessOrEqual => map2(a, b, y, |a, b| t(a <= b)),
        Binary::Greater => map2(a, b, y, |a, b| t(a > b)),
        Binary::GreaterOrEqual => map2(a, b, y, |a, b| t(a >= b)),
        Binary::And => map2(a, b, y, |a, b| t((a != T::ZERO) & (b != T::ZERO))),
        Binary::Or => map2(a, b, y, |a, b| t((a != T::ZERO) | (b != T::ZERO))),
        Binary::Xor => map2(a, b, y, |a, b| t((a != T::ZERO) ^ (b != T::ZERO))),
        _ => return false,
    }
    true
}

impl Lane for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    fn from_f64(v: f64) -> f32 {
        v as f32
    }
    fn from_i64(v: i64) -> f32 {
        v as f32
    }
    fn from_u64(v: u64) -> f32 {
        v as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }

    fn unary(op: Unary, a: Slot<'_, f32>, y: &mut [f32]) {
        let kernel = match op {
            Unary::Abs => UnaryOp::Abs,
            Unary::Neg => UnaryOp::Neg,
            Unary::Exp => UnaryOp::Exp,
            Unary::Log => UnaryOp::Log,
            Unary::Sqrt => UnaryOp::Sqrt,
            Unary::Rsqrt => UnaryOp::Rsqrt,
            Unary::Reciprocal => UnaryOp::Reciprocal,
            Unary::Sin => UnaryOp::Sin,
            Unary::Cos => UnaryOp::Cos,
            Unary::Erf => UnaryOp::Erf,
            Unary::Floor => UnaryOp::Floor,
            Unary::Ceil => UnaryOp::Ceil,
            Unary::Round => UnaryOp::Round,
            Unary::Sign => UnaryOp::Sign,
            Unary::Square => UnaryOp::Square,
            Unary::Activation(a) => UnaryOp::Activation(a),
            Unary::Not => return map(a, y, |a| f32::from_bool(a == 0.0)),
            Unary::IsNan => return map(a, y, |a| f32::from_bool(a.is_nan())),
            other => return map(a, y, |a| unary_f64(other, a.into()) as f32),
        };
        match a {
            Slot::Slice(a) => math::unary(kernel, a, y),
            Slot::Scalar(a) => {
                let mut one = [0.0];
                math::unary(kernel, &[a], &mut one);
                y.fill(one[0]);
            }
        }
    }

    fn binary(op: Binary, a: Slot<'_, f32>, b: Slot<'_, f32>, y: &mut [f32]) {
        let kernel = match op {
            Binary::Add => BinaryOp::Add,
            Binary::Sub => BinaryOp::Sub,
            Binary::Mul => BinaryOp::Mul,
            Binary::Div => BinaryOp::Div,
            Binary::Min => BinaryOp::Min,
            Binary::Max => BinaryOp::Max,
            Binary::Pow => BinaryOp::Pow,
            Binary::Fmod => return map2(a, b, y, |a, b| a % b),
            _ if predicate(op, a, b, y) => return,
            other => return map2(a, b, y, |a, b| binary_f64(other, a.into(), b.into()) as f32),
        };
        let operand = |slot| match slot {
            Slot::Slice(s) => math::Operand::Slice(s),
            Slot::Scalar(s) => math::Operand::Scalar(s),
        };
        math::binary(kernel, operand(a), operand(b), y);
    }
}

impl Lane for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    fn from_f64(v: f64) -> f64 {
        v
    }
    fn from_i64(v: i64) -> f64 {
        v as f64
    }
    fn from_u64(v: u64) -> f64 {
        v as f64
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn unary(op: Unary, a: Slot<'_, f64>, y: &mut [f64]) {
        map(a, y, |a| unary_f64(op, a));
    }
    fn binary(op: Binary, a: Slot<'_, f64>, b: Slot<'_, f64>, y: &mut [f64]) {
        if !predicate(op, a, b, y) {
            map2(a, b, y, |a, b| binary_f64(op, a, b));
        }
    }
}

macro_rules! integer_lane {
    ($($ty:ident: $signed:literal),*) => { $(
        impl Lane for $ty {
            const ZERO: $ty = 0;
            const ONE: $ty = 1;

            fn from_f64(v: f64) -> $ty {
                v as $ty
            }
            fn from_i64(v: i64) -> $ty {
                v as $ty
            }
            fn from_u64(v: u64) -> $ty {
                v as $ty
            }
            fn to_f64(self) -> f64 {
                self as f64
            }

            #[allow(unused_comparisons)]
            fn unary(op: Unary, a: Slot<'_, $ty>, y: &mut [$ty]) {
                match op {
                    Unary::Abs if $signed => map(a, y, |a| if a < 0 { a.wrapping_neg() } else { a }),
                    Unary::Neg => map(a, y, |a| a.wrapping_neg()),
                    Unary::Sign => map(a, y, |a| {
                        if a > 0 { 1 } else if a < 0 { (0 as $ty).wrapping_sub(1) } else { 0 }
                    }),
                    Unary::Square => map(a, y, |a| a.wrapping_mul(a)),
                    Unary::Not => map(a, y, |a| <$ty>::from_bool(a == 0)),
                    Unary::BitNot => map(a, y, |a| !a),
                    Unary::Activation(Activation::Relu) => map(a, y, |a| a.max(0)),
                    Unary::Abs | Unary::Floor | Unary::Ceil | Unary::Round => copy(a, y),
                    other => map(a, y, |a| <$ty>::from_f64(unary_f64(other, a as f64))),
                }
            }

            #[allow(unused_comparisons)]
            fn binary(op: Binary, a: Slot<'_, $ty>, b: Slot<'_, $ty>, y: &mut [$ty]) {
                match op {
                    Binary::Add => map2(a, b, y, <$ty>::wrapping_add),
                    Binary::Sub => map2(a, b, y, <$ty>::wrapping_sub),
                    Binary::Mul => map2(a, b, y, <$ty>::wrapping_mul),
                    Binary::Div => map2(a, b, y, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
                    Binary::Min => map2(a, b, y, Ord::min),
                    Binary::Max => map2(a, b, y, Ord::max),
                    Binary::Fmod => map2(a, b, y, |a, b| if b == 0 { 0 } else { a.wrapping_rem(b) }),
                    Binary::Mod => map2(a, b, y, |a, b| {
                        if b == 0 {
                            return 0;
                        }
                        let r = a.wrapping_rem(b);
                        if r != 0 && (r < 0) != (b < 0) { r.wrapping_add(b) } else { r }
                    }),
                    Binary::BitAnd => map2(a, b, y, |a, b| a & b),
                    Binary::BitOr => map2(a, b, y, |a, b| a | b),
                    Binary::BitXor => map2(a, b, y, |a, b| a ^ b),
                    Binary::ShiftLeft => map2(a, b, y, |a, b| {
                        u32::try_from(b).ok().and_then(|b| a.checked_shl(b)).unwrap_or(0)
                    }),
                    // Beyond the width (or negative): what is left is the sign.
                    Binary::ShiftRight => map2(a, b, y, |a, b| {
                        let sign = (a >> (<$ty>::BITS - 1)) >> 1;
                        u32::try_from(b).ok().and_then(|b| a.checked_shr(b)).unwrap_or(sign)
                    }),
                    _ if predicate(op, a, b, y) => {}
                    other => map2(a, b, y, |a, b| {
                        <$ty>::from_f64(binary_f64(other, a as f64, b as f64))
                    }),
                }
            }
        }
    )* };
}
integer_lane!(i8: true, u8: false, i16: true, u16: false, i32: true, u32: false, i64: true, u64: false);

/// An instruction on one value, in double precision.
pub(super) fn unary_f64(op: Unary, x: f64) -> f64 {
    let truth = |v| if v { 1.0 } else { 0.0 };
    match op {
        Unary::Abs => x.abs(),
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => x.sqrt().recip(),
        Unary::Reciprocal => x.recip(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
        Unary::Erf => erf(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Sign if x == 0.0 || x.is_nan() => x,
        Unary::Sign => x.signum(),
        Unary::Square => x * x,
        Unary::Not => truth(x == 0.0),
        Unary::BitNot => !(x as i64) as f64,
        Unary::IsNan => truth(x.is_nan()),
        Unary::IsInf { negative, positive } => {
            truth((negative && x == f64::NEG_INFINITY) || (positive && x == f64::INFINITY))
        }
        Unary::Activation(a) => activation_f64(a, x),
    }
}

fn activation_f64(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    if x.is_nan() {
        return x;
    }
    // -inf times zero is NaN where the limit is zero.
    let gated = |gate: f64| if gate == 0.0 { 0.0 } else { x * gate };
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Clip { min, max } => x.max(min.into()).min(max.into()),
        Activation::LeakyRelu { alpha } if x < 0.0 => f64::from(alpha) * x,
        Activation::LeakyRelu { .. } => x,
        Activation::HardSwish => gated((x / 6.0 + 0.5).clamp(0.0, 1.0)),
        Activation::HardSigmoid { alpha, beta } => {
            (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0)
        }
        Activation::Sigmoid => sigmoid(x),
        Activation::Silu => gated(sigmoid(x)),
        Activation::Tanh => x.tanh(),
        Activation::Gelu => gated(0.5 + 0.5 * erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            gated(sigmoid(2.0 * inner))
        }
        Activation::Elu { alpha } if x < 0.0 => f64::from(alpha) * x.exp_m1(),
        Activation::Elu { .. } => x,
        Activation::Softplus => softplus(x),
        Activation::Mish => gated(softplus(x).tanh()),
    }
}

/// The error function in double precision: its Maclaurin series near 0, a continued fraction of
/// erfc beyond.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    if z.is_nan() {
        return x;
    }
    let magnitude = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
            if term.abs() <= 1e-18 * sum.abs() {
                break;
            }
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if z > 6.0 {
        1.0
    } else {
        let fraction = (1..=80).rev().fold(z, |f, k| z + f64::from(k) * 0.5 / f);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    magnitude.copysign(x)
}

/// An instruction on two values, in double precision.
pub(super) fn binary_f64(op: Binary, a: f64, b: f64) -> f64 {
    let truth = |v| if v { 1.0 } else { 0.0 };
    let bits = |f: fn(i64, i64) -> i64| f(a as i64, b as i64) as f64;
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Min if a.is_nan() || b.is_nan() => f64::NAN,
        Binary::Max if a.is_nan() || b.is_nan() => f64::NAN,
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::Pow => a.powf(b),
        Binary::Fmod => a % b,
        Binary::Mod => {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
        }
        Binary::And => truth(a != 0.0 && b != 0.0),
        Binary::Or => truth(a != 0.0 || b != 0.0),
        Binary::Xor => truth((a != 0.0) != (b != 0.0)),
        Binary::Equal => truth(a == b),
        Binary::Less => truth(a < b),
        Binary::LessOrEqual => truth(a <= b),
        Binary::Greater => truth(a > b),
        Binary::GreaterOrEqual => truth(a >= b),
        Binary::BitAnd => bits(|a, b| a & b),
        Binary::BitOr => bits(|a, b| a | b),
        Binary::BitXor => bits(|a, b| a ^ b),
        Binary::ShiftLeft => bits(|a, b| a.checked_shl(b as u32).unwrap_or(0)),
        Binary::ShiftRight => bits(|a, b| a.checked_shr(b as u32).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one<T: Lane>(op: Binary, a: T, b: T) -> T {
        let mut y = [T::ZERO];
        T::binary(op, Slot::Slice(&[a]), Slot::Scalar(b), &mut y);
        y[0]
    }

    #[test]
    fn integers_truncate_wrap_and_never_trap() {
        assert_eq!(one(Binary::Div, -7i32, 2), -3);
        assert_eq!(one(Binary::Div, 7i32, 0), 0);
        assert_eq!(one(Binary::Div, i64::MIN, -1), i64::MIN);
        assert_eq!(one(Binary::Mod, -7i32, 3), 2);
        assert_eq!(one(Binary::Mod, 7i32, -3), -2);
        assert_eq!(one(Binary::Fmod, -7i32, 3), -1);
        assert_eq!(one(Binary::Mod, i32::MIN, -1), 0);
        assert_eq!(one(Binary::ShiftLeft, 1u8, 9), 0);
        assert_eq!(one(Binary::Pow, 3i64, 4), 81);
        assert_eq!(one(Binary::Add, u8::MAX, 2), 1);
    }

    #[test]
    fn double_precision_functions() {
        assert!((erf(0.5) - 0.520_499_877_813_046_5).abs() < 1e-15);
        assert!((erf(3.0) - 0.999_977_909_503_001_4).abs() < 1e-15);
        assert_eq!(erf(f64::NEG_INFINITY), -1.0);
        assert!((activation_f64(Activation::Gelu, 1.0) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert_eq!(unary_f64(Unary::Sign, -0.0), 0.0);
        assert_eq!(unary_f64(Unary::Sign, -4.0), -1.0);
    }

    #[test]
    fn selects() {
        let mut y = [0i64; 3];
        i64::select(Slot::Slice(&[1, 0, 1]), Slot::Scalar(7), Slot::Slice(&[1, 2, 3]), &mut y);
        assert_eq!(y, [7, 2, 7]);
    }
}
