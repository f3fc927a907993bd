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

#[cfg(test)]
mod tests;
