//! Element-wise functions on slices.
//!
//! Exp, Log, Tanh, Sigmoid and Erf are within 4 ulp of the exact value where that is a normal
//! number; Sin and Cos within 2e-7 for |x| <= 8192 and as the standard library's beyond; Pow is
//! the standard library's. NaN gives NaN. The compound activations (Gelu, Silu, Mish, ...) are
//! within a few ulp of the largest intermediate value. A Gelu of x < -5 may be 0.

use crate::activation::Activation;
use crate::isa::{self, Isa};
use crate::simd::{self, Kernel, MAX_LANES, Simd};
use crate::vmath;

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

/// Above this, sine and cosine lose digits in the vector form.
const TRIG_LIMIT: f32 = 8192.0;
/// Elements of four of the widest vectors.
const CHUNK: usize = 4 * MAX_LANES;

/// y[i] = op(x[i]).
pub fn unary(op: UnaryOp, x: &[f32], y: &mut [f32]) {
    unary_with_isa(isa::best(), op, x, y);
}

/// [`unary`] for a given instruction set, which must be available.
pub fn unary_with_isa(isa: Isa, op: UnaryOp, x: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len(), "input and output have one length");
    simd::dispatch(isa, Unary { op, x: x.as_ptr(), y: y.as_mut_ptr(), len: y.len() });
}

/// y[i] = op(y[i]).
pub fn unary_in_place(op: UnaryOp, y: &mut [f32]) {
    let p = y.as_mut_ptr();
    simd::dispatch(isa::best(), Unary { op, x: p, y: p, len: y.len() });
}

/// y[i] = op(a[i], b[i]), where either may be one value for all.
pub fn binary(op: BinaryOp, a: Operand<'_>, b: Operand<'_>, y: &mut [f32]) {
    binary_with_isa(isa::best(), op, a, b, y);
}

/// [`binary`] for a given instruction set, which must be available.
pub fn binary_with_isa(isa: Isa, op: BinaryOp, a: Operand<'_>, b: Operand<'_>, y: &mut [f32]) {
    let source = |operand: Operand<'_>| match operand {
        Operand::Slice(s) => {
            assert!(s.len() == y.len(), "a slice operand has the output's length");
            Source::Slice(s.as_ptr())
        }
        Operand::Scalar(x) => Source::Scalar(x),
    };
    let (a, b) = (source(a), source(b));
    simd::dispatch(isa, Binary { op, a, b, y: y.as_mut_ptr(), len: y.len() });
}

/// y[i] = op(y[i], b[i]).
pub fn binary_in_place(op: BinaryOp, y: &mut [f32], b: Operand<'_>) {
    let b = match b {
        Operand::Slice(s) => {
            assert!(s.len() == y.len(), "a slice operand has the output's length");
            Source::Slice(s.as_ptr())
        }
        Operand::Scalar(x) => Source::Scalar(x),
    };
    let p = y.as_mut_ptr();
    simd::dispatch(isa::best(), Binary { op, a: Source::Slice(p), b, y: p, len: y.len() });
}

/// y[i] = act(x[i]).
pub fn activation(act: Activation, x: &[f32], y: &mut [f32]) {
    unary(UnaryOp::Activation(act), x, y);
}

/// y[i] = act(y[i]).
pub fn activation_in_place(act: Activation, y: &mut [f32]) {
    unary_in_place(UnaryOp::Activation(act), y);
}

/// Applies an expression to four vectors, so that their latencies overlap.
macro_rules! four {
    ($v:expr, $x:ident => $e:expr) => {{
        let mut v = $v;
        for lane in &mut v {
            let $x = *lane;
            *lane = $e;
        }
        v
    }};
}

struct Unary {
    op: UnaryOp,
    x: *const f32,
    y: *mut f32,
    len: usize,
}

impl Kernel for Unary {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let step = 4 * S::LANES;
        let mut i = 0;
        while i + step <= self.len {
            // SAFETY: i + 4 vectors <= len, and x and y have len elements.
            unsafe {
                let v = load_four(s, self.x.add(i));
                store_four(s, self.y.add(i), unary_four(s, self.op, v));
            }
            i += step;
        }
        if i < self.len {
            let mut buffer = [1.0; CHUNK];
            // SAFETY: len - i < 4 vectors <= CHUNK.
            unsafe {
                std::ptr::copy_nonoverlapping(self.x.add(i), buffer.as_mut_ptr(), self.len - i);
                let v = unary_four(s, self.op, load_four(s, buffer.as_ptr()));
                store_four(s, buffer.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(buffer.as_ptr(), self.y.add(i), self.len - i);
            }
        }
    }
}

#[inline(always)]
unsafe fn load_four<S: Simd>(s: S, p: *const f32) -> [S::V; 4] {
    // SAFETY: the caller guarantees four vectors at p.
    unsafe {
        [
            s.load(p),
            s.load(p.add(S::LANES)),
            s.load(p.add(2 * S::LANES)),
            s.load(p.add(3 * S::LANES)),
        ]
    }
}

#[inline(always)]
unsafe fn store_four<S: Simd>(s: S, p: *mut f32, v: [S::V; 4]) {
    for (i, v) in v.into_iter().enumerate() {
        // SAFETY: the caller guarantees four vectors at p.
        unsafe { s.store(p.add(i * S::LANES), v) };
    }
}

#[inline(always)]
fn unary_four<S: Simd>(s: S, op: UnaryOp, v: [S::V; 4]) -> [S::V; 4] {
    let one = s.splat(1.0);
    match op {
        UnaryOp::Abs => four!(v, x => s.abs(x)),
        UnaryOp::Neg => four!(v, x => s.neg(x)),
        UnaryOp::Exp => four!(v, x => vmath::exp(s, x)),
        UnaryOp::Log => four!(v, x => vmath::log(s, x)),
        UnaryOp::Sqrt => four!(v, x => s.sqrt(x)),
        UnaryOp::Rsqrt => four!(v, x => s.div(one, s.sqrt(x))),
        UnaryOp::Reciprocal => four!(v, x => s.div(one, x)),
        UnaryOp::Sin => four!(v, x => trig(s, x, false)),
        UnaryOp::Cos => four!(v, x => trig(s, x, true)),
        UnaryOp::Erf => four!(v, x => vmath::erf(s, x)),
        UnaryOp::Floor => four!(v, x => s.floor(x)),
        UnaryOp::Ceil => four!(v, x => s.ceil(x)),
        UnaryOp::Round => four!(v, x => s.round(x)),
        UnaryOp::Sign => four!(v, x => {
            let nonzero = s.select(s.lt(x, s.splat(0.0)), s.splat(-1.0), x);
            s.select(s.lt(s.splat(0.0), x), one, nonzero)
        }),
        UnaryOp::Square => four!(v, x => s.mul(x, x)),
        UnaryOp::Activation(act) => activate_four(s, act, v),
    }
}

#[inline(always)]
fn activate_four<S: Simd>(s: S, act: Activation, v: [S::V; 4]) -> [S::V; 4] {
    // One match for the four, with the arms' expressions interleaved by the compiler.
    match act {
        Activation::None => v,
        Activation::Relu => four!(v, x => vmath::activate(s, Activation::Relu, x)),
        Activation::Sigmoid => four!(v, x => vmath::activate(s, Activation::Sigmoid, x)),
        Activation::Silu => four!(v, x => vmath::activate(s, Activation::Silu, x)),
        Activation::Tanh => four!(v, x => vmath::activate(s, Activation::Tanh, x)),
        Activation::Gelu => four!(v, x => vmath::activate(s, Activation::Gelu, x)),
        Activation::HardSwish => four!(v, x => vmath::activate(s, Activation::HardSwish, x)),
        other => four!(v, x => vmath::activate(s, other, x)),
    }
}

#[inline(always)]
fn trig<S: Simd>(s: S, x: S::V, cosine: bool) -> S::V {
    // Not below the limit: too large, or NaN in the lane that max returned.
    if s.reduce_max(s.abs(x)) <= TRIG_LIMIT && s.reduce_add(s.sub(x, x)) == 0.0 {
        let (sin, cos) = vmath::sin_cos(s, x);
        return if cosine { cos } else { sin };
    }
    let mut values = [0.0f32; MAX_LANES];
    // SAFETY: MAX_LANES elements hold a vector.
    unsafe {
        s.store(values.as_mut_ptr(), x);
        for value in &mut values {
            *value = if cosine { value.cos() } else { value.sin() };
        }
        s.load(values.as_ptr())
    }
}

#[derive(Clone, Copy)]
enum Source {
    Slice(*const f32),
    Scalar(f32),
}

struct Binary {
    op: BinaryOp,
    a: Source,
    b: Source,
    y: *mut f32,
    len: usize,
}

impl Kernel for Binary {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.op == BinaryOp::Pow {
            return self.pow();
        }
        let step = 4 * S::LANES;
        let mut i = 0;
        while i < self.len {
            let lanes = step.min(self.len - i);
            // SAFETY: slices and y have len elements.
            unsafe {
                let a = load_source(s, self.a, i, lanes);
                let b = load_source(s, self.b, i, lanes);
                let v = binary_four(s, self.op, a, b);
                if lanes == step {
                    store_four(s, self.y.add(i), v);
                } else {
                    let mut buffer = [0.0; CHUNK];
                    store_four(s, buffer.as_mut_ptr(), v);
                    std::ptr::copy_nonoverlapping(buffer.as_ptr(), self.y.add(i), lanes);
                }
            }
            i += lanes;
        }
    }
}

impl Binary {
    fn pow(&self) {
        let at = |source: Source, i: usize| match source {
            // SAFETY: i < len, and slices have len elements.
            Source::Slice(p) => unsafe { *p.add(i) },
            Source::Scalar(x) => x,
        };
        for i in 0..self.len {
            let (a, b) = (at(self.a, i), at(self.b, i));
            // Whole squares are by far the most common power; x * x is what powf gives too.
            let y = if b == 2.0 { a * a } else { a.powf(b) };
            // SAFETY: i < len, and y has len elements.
            unsafe { *self.y.add(i) = y };
        }
    }
}

#[inline(always)]
unsafe fn load_source<S: Simd>(s: S, source: Source, i: usize, lanes: usize) -> [S::V; 4] {
    match source {
        Source::Scalar(x) => [s.splat(x); 4],
        // SAFETY: the caller guarantees `lanes` elements at i; four vectors if as many.
        Source::Slice(p) if lanes == 4 * S::LANES => unsafe { load_four(s, p.add(i)) },
        Source::Slice(p) => {
            let mut buffer = [1.0; CHUNK];
            // SAFETY: the caller guarantees `lanes` < CHUNK elements at i.
            unsafe {
                std::ptr::copy_nonoverlapping(p.add(i), buffer.as_mut_ptr(), lanes);
                load_four(s, buffer.as_ptr())
            }
        }
    }
}

#[inline(always)]
fn binary_four<S: Simd>(s: S, op: BinaryOp, a: [S::V; 4], b: [S::V; 4]) -> [S::V; 4] {
    let mut y = a;
    match op {
        BinaryOp::Add => each(&mut y, &b, |a, b| s.add(a, b)),
        BinaryOp::Sub => each(&mut y, &b, |a, b| s.sub(a, b)),
        BinaryOp::Mul => each(&mut y, &b, |a, b| s.mul(a, b)),
        BinaryOp::Div => each(&mut y, &b, |a, b| s.div(a, b)),
        // min and max give b where either is NaN: right unless a is the NaN.
        BinaryOp::Min => each(&mut y, &b, |a, b| s.select(s.is_nan(a), a, s.min(a, b))),
        BinaryOp::Max => each(&mut y, &b, |a, b| s.select(s.is_nan(a), a, s.max(a, b))),
        BinaryOp::Pow => unreachable!("powers go element by element"),
    }
    y
}

#[inline(always)]
fn each<V: Copy>(y: &mut [V; 4], b: &[V; 4], f: impl Fn(V, V) -> V) {
    y[0] = f(y[0], b[0]);
    y[1] = f(y[1], b[1]);
    y[2] = f(y[2], b[2]);
    y[3] = f(y[3], b[3]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::erfc;

    /// Distance in units of the wanted value's last place, at least those of 2^-126.
    fn ulps(got: f32, want: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * want.abs().max(f64::from(f32::MIN_POSITIVE));
        // The unit of a binade is up to twice eps times the value's magnitude.
        (f64::from(got) - want).abs() / unit
    }

    fn inputs(low: f32, high: f32) -> Vec<f32> {
        (0..20011).map(|i| low + (high - low) * (i as f32 / 20010.0)).collect()
    }

    fn check(op: UnaryOp, x: &[f32], allowed: f64, exact: impl Fn(f64) -> f64) {
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            unary_with_isa(isa, op, x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let want = exact(f64::from(x));
                if want.abs() < f64::from(f32::MAX) {
                    let error = ulps(y, want);
                    assert!(error <= allowed, "{isa} {op:?}({x}): {y}, {want}: {error} ulp");
                }
            }
        }
    }

    #[test]
    fn elementary_functions_within_4_ulp() {
        check(UnaryOp::Exp, &inputs(-87.0, 88.7), 4.0, f64::exp);
        check(UnaryOp::Exp, &inputs(-1.0, 1.0), 4.0, f64::exp);
        check(UnaryOp::Log, &inputs(1e-3, 4.0), 4.0, f64::ln);
        check(UnaryOp::Log, &inputs(1.0, 1e9), 4.0, f64::ln);
        check(UnaryOp::Log, &[1e-40, 1e-38, 3e38], 4.0, f64::ln);
        let tanh = UnaryOp::Activation(Activation::Tanh);
        check(tanh, &inputs(-12.0, 12.0), 4.0, f64::tanh);
        check(tanh, &inputs(-0.7, 0.7), 4.0, f64::tanh);
        let sigmoid = UnaryOp::Activation(Activation::Sigmoid);
        check(sigmoid, &inputs(-86.0, 40.0), 4.0, |x| 1.0 / (1.0 + (-x).exp()));
        let erf = |x: f64| {
            if x.abs() < 1e-4 { x * std::f64::consts::FRAC_2_SQRT_PI } else { 1.0 - erfc(x) }
        };
        check(UnaryOp::Erf, &inputs(-5.0, 5.0), 4.0, erf);
    }

    #[test]
    fn trigonometry_within_its_bound() {
        for (low, high) in [(-7.0, 7.0), (-8192.0, 8192.0), (1e4, 1e7)] {
            for isa in Isa::available() {
                let x = inputs(low, high);
                let mut y = vec![0.0; x.len()];
                unary_with_isa(isa, UnaryOp::Sin, &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    assert!((f64::from(y) - f64::from(x).sin()).abs() < 2e-7, "{isa} sin {x} {y}");
                }
                unary_with_isa(isa, UnaryOp::Cos, &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    assert!((f64::from(y) - f64::from(x).cos()).abs() < 2e-7, "{isa} cos {x} {y}");
                }
            }
        }
    }

    const ACTIVATIONS: [Activation; 15] = [
        Activation::None,
        Activation::Relu,
        Activation::Clip { min: -1.0, max: 2.0 },
        Activation::LeakyRelu { alpha: 0.1 },
        Activation::HardSwish,
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Sigmoid,
        Activation::Silu,
        Activation::Tanh,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Elu { alpha: 1.5 },
        Activation::Softplus,
        Activation::Mish,
        Activation::Clip { min: 0.0, max: f32::INFINITY },
    ];

    #[test]
    fn activations_match_their_scalar_form() {
        let mut x = inputs(-30.0, 30.0);
        x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-30, -1e-30, 3e38]);
        for act in ACTIVATIONS {
            for isa in Isa::available() {
                let mut y = vec![0.0; x.len()];
                unary_with_isa(isa, UnaryOp::Activation(act), &x, &mut y);
                for (&x, &y) in x.iter().zip(&y) {
                    let want = act.apply(x);
                    // Gates near zero cancel: the bound is relative to the input.
                    let size = want.abs().max(x.abs().min(8.0)).max(1e-36);
                    let ok = (y - want).abs() <= 6.0 * f32::EPSILON * size
                        || y == want
                        || (y.is_nan() && want.is_nan());
                    assert!(ok, "{isa} {act:?}({x}): {y} instead of {want}");
                }
            }
        }
    }

    #[test]
    fn special_values() {
        use UnaryOp::*;
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -2.0, 2.5, 3.5, -0.5];
        let expect: [(UnaryOp, [f32; 4]); 6] = [
            (Exp, [f32::NAN, f32::INFINITY, 0.0, 1.0]),
            (Log, [f32::NAN, f32::INFINITY, f32::NAN, f32::NEG_INFINITY]),
            (Erf, [f32::NAN, 1.0, -1.0, 0.0]),
            (Sign, [f32::NAN, 1.0, -1.0, 0.0]),
            (Sin, [f32::NAN, f32::NAN, f32::NAN, 0.0]),
            (Reciprocal, [f32::NAN, 0.0, -0.0, f32::INFINITY]),
        ];
        for isa in Isa::available() {
            let mut y = [0.0; 8];
            for (op, want) in expect {
                unary_with_isa(isa, op, &x, &mut y);
                for (y, want) in y.iter().zip(want) {
                    assert!(*y == want || (y.is_nan() && want.is_nan()), "{isa} {op:?} {y} {want}");
                }
            }
            unary_with_isa(isa, Round, &x, &mut y);
            assert_eq!(y[4..], [-2.0, 2.0, 4.0, -0.0]);
            let (a, b) = ([1.0, f32::NAN, 3.0], [f32::NAN, 2.0, 4.0]);
            let mut y = [0.0; 3];
            for (op, last) in [(BinaryOp::Max, 4.0), (BinaryOp::Min, 3.0)] {
                binary_with_isa(isa, op, Operand::Slice(&a), Operand::Slice(&b), &mut y);
                assert!(y[0].is_nan() && y[1].is_nan() && y[2] == last, "{isa} {op:?} {y:?}");
            }
        }
    }

    #[test]
    fn binary_lengths_and_scalars() {
        for isa in Isa::available() {
            for len in [0, 1, 7, 8, 31, 64, 100] {
                let a: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
                let mut y = vec![0.0; len];
                binary_with_isa(
                    isa,
                    BinaryOp::Sub,
                    Operand::Scalar(2.0),
                    Operand::Slice(&a),
                    &mut y,
                );
                assert!(y.iter().zip(&a).all(|(y, a)| *y == 2.0 - a));
                binary_with_isa(
                    isa,
                    BinaryOp::Div,
                    Operand::Slice(&a),
                    Operand::Scalar(3.0),
                    &mut y,
                );
                assert!(y.iter().zip(&a).all(|(y, a)| *y == a / 3.0));
                binary_with_isa(
                    isa,
                    BinaryOp::Pow,
                    Operand::Slice(&a),
                    Operand::Scalar(2.0),
                    &mut y,
                );
                assert!(y.iter().zip(&a).all(|(y, a)| *y == a * a));
                let mut z = a.clone();
                binary_in_place(BinaryOp::Mul, &mut z, Operand::Slice(&a));
                assert_eq!(y, z);
            }
        }
    }
}
