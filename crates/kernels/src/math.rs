//! Element-wise functions on slices.

use crate::activation::Activation;

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UnaryOp {
    /// |x|
    Abs,
    /// -x
    Neg,
    /// e^x
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// 1 / sqrt(x)
    Rsqrt,
    /// 1 / x
    Reciprocal,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Error function.
    Erf,
    /// Largest integer not above x.
    Floor,
    /// Smallest integer not below x.
    Ceil,
    /// Nearest integer, halves to even.
    Round,
    /// -1, 0 or 1.
    Sign,
    /// x * x
    Square,
    /// An activation function.
    Activation(Activation),
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// The smaller; NaN if either is NaN.
    Min,
    /// The larger; NaN if either is NaN.
    Max,
    /// a to the power b.
    Pow,
}

/// An input of [`binary`]: as many elements as the output, or one for all.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// One element per output element.
    Slice(&'a [f32]),
    /// The same value for all.
    Scalar(f32),
}

fn one(op: UnaryOp, x: f32) -> f32 {
    match op {
        UnaryOp::Abs => x.abs(),
        UnaryOp::Neg => -x,
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Reciprocal => 1.0 / x,
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Erf => {
            if x.is_nan() {
                x
            } else {
                let v = f64::from(x);
                (if v < 0.0 {
                    crate::activation::erfc(-v) - 1.0
                } else {
                    1.0 - crate::activation::erfc(v)
                }) as f32
            }
        }
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Sign if x > 0.0 => 1.0,
        UnaryOp::Sign if x < 0.0 => -1.0,
        UnaryOp::Sign => x,
        UnaryOp::Square => x * x,
        UnaryOp::Activation(a) => a.apply(x),
    }
}

fn two(op: BinaryOp, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Min if a.is_nan() || b.is_nan() => f32::NAN,
        BinaryOp::Max if a.is_nan() || b.is_nan() => f32::NAN,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::Pow => a.powf(b),
    }
}

/// y[i] = op(x[i]).
pub fn unary(op: UnaryOp, x: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len(), "input and output have one length");
    for (y, &x) in y.iter_mut().zip(x) {
        *y = one(op, x);
    }
}

/// y[i] = op(y[i]).
pub fn unary_in_place(op: UnaryOp, y: &mut [f32]) {
    for y in y {
        *y = one(op, *y);
    }
}

/// y[i] = op(a[i], b[i]), where either may be one value for all.
pub fn binary(op: BinaryOp, a: Operand<'_>, b: Operand<'_>, y: &mut [f32]) {
    let at = |o: Operand<'_>, i: usize| match o {
        Operand::Slice(s) => s[i],
        Operand::Scalar(s) => s,
    };
    for (i, y) in y.iter_mut().enumerate() {
        *y = two(op, at(a, i), at(b, i));
    }
}

/// y[i] = op(y[i], b[i]).
pub fn binary_in_place(op: BinaryOp, y: &mut [f32], b: Operand<'_>) {
    for (i, y) in y.iter_mut().enumerate() {
        let b = match b {
            Operand::Slice(s) => s[i],
            Operand::Scalar(s) => s,
        };
        *y = two(op, *y, b);
    }
}

/// y[i] = act(x[i]).
pub fn activation(act: Activation, x: &[f32], y: &mut [f32]) {
    unary(UnaryOp::Activation(act), x, y);
}

/// y[i] = act(y[i]).
pub fn activation_in_place(act: Activation, y: &mut [f32]) {
    unary_in_place(UnaryOp::Activation(act), y);
}

/// This core's peak of fused multiply-adds in FLOP/s, measured for about 20 ms: a yardstick.
pub fn fma_peak_flops() -> f64 {
    struct Peak(usize);
    impl crate::simd::Kernel for Peak {
        type Output = f64;
        #[inline(always)]
        fn run<S: crate::simd::Simd>(self, s: S) -> f64 {
            let x = s.splat(std::hint::black_box(0.5));
            let mut acc = [s.splat(std::hint::black_box(1.0)); 12];
            for _ in 0..self.0 {
                for a in &mut acc {
                    *a = s.mul_add(*a, x, x);
                }
            }
            let mut sum = s.splat(0.0);
            for a in acc {
                sum = s.add(sum, a);
            }
            std::hint::black_box(s.reduce_add(sum));
            (self.0 * 12 * 2 * S::LANES) as f64
        }
    }
    let mut best = 0.0f64;
    for _ in 0..20 {
        let start = std::time::Instant::now();
        let flops = crate::simd::dispatch(crate::isa::best(), Peak(400_000));
        best = best.max(flops / start.elapsed().as_secs_f64());
    }
    best
}
