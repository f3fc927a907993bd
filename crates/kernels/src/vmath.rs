//! Vector forms of the elementary functions and activations.
//!
//! Errors, checked in `math`'s tests against double precision: exp, log, tanh, sigmoid, erf and
//! sin/cos (|x| <= 8192) within 4 ulp where the result is a normal number.

use crate::activation::Activation;
use crate::simd::Simd;

/// Horner's scheme, highest coefficient first.
#[inline(always)]
fn poly<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut y = s.splat(c[0]);
    let mut i = 1;
    while i < N {
        y = s.mul_add(y, x, s.splat(c[i]));
        i += 1;
    }
    y
}

#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-0.693_359_4), x);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let p = poly(
        s,
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
    );
    let y = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    // Two factors, so that results below the smallest normal and above 2^127 come out right.
    let half = s.floor(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(y, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// exp for x <= 0, flushing results below 2^-126 to 0: for softmax.
#[inline(always)]
pub(crate) fn exp_nonpositive<S: Simd>(s: S, x: S::V) -> S::V {
    let clamped = s.max(s.splat(-87.3), x);
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-0.693_359_4), clamped);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let p = poly(
        s,
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
    );
    let y = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    let y = s.mul(y, s.pow2(n));
    s.select(s.lt(x, s.splat(-87.3)), s.splat(0.0), y)
}

#[inline(always)]
pub(crate) fn log<S: Simd>(s: S, x: S::V) -> S::V {
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(tiny, s.mul(x, s.splat(8_388_608.0)), x);
    let (m, e) = s.split_exponent(scaled);
    let e = s.select(tiny, s.sub(e, s.splat(23.0)), e);
    let high = s.lt(s.splat(std::f32::consts::SQRT_2), m);
    let m = s.select(high, s.mul(m, s.splat(0.5)), m);
    let e = s.select(high, s.add(e, s.splat(1.0)), e);
    let r = s.sub(m, s.splat(1.0));
    let p = poly(
        s,
        r,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_7e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let r2 = s.mul(r, r);
    let y = s.mul_add(s.mul(p, r), r2, s.mul(e, s.splat(-2.121_944_4e-4)));
    let y = s.mul_add(r2, s.splat(-0.5), y);
    let y = s.mul_add(e, s.splat(0.693_359_4), s.add(r, y));
    let zero = s.splat(0.0);
    let y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    let y = s.select(s.lt(zero, x), y, s.splat(f32::NEG_INFINITY));
    let y = s.select(s.lt(x, zero), s.splat(f32::NAN), y);
    s.select(s.is_nan(x), x, y)
}

#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let a = s.abs(x);
    let z = s.mul(x, x);
    let p = poly(
        s,
        z,
        [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1],
    );
    let small = s.mul_add(s.mul(p, z), x, x);
    let one = s.splat(1.0);
    // Beyond 10 the result is 1 in f32; the bound keeps exp finite.
    let e = exp(s, s.mul(s.splat(2.0), s.min(s.splat(10.0), a)));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let y = s.select(s.lt(a, s.splat(0.625)), small, s.copysign(large, x));
    s.select(s.is_nan(x), x, y)
}

#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.neg(x))))
}

#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let t = s.abs(x);
    let z = s.mul(x, x);
    // Both fits are N. Juffa's (faithful to 1 ulp with fused multiply-adds).
    let p = poly(
        s,
        z,
        [
            -5.967_617e-4,
            4.991_194_2e-3,
            -2.676_813_5e-2,
            1.128_199_3e-1,
            -3.761_253_4e-1,
            1.283_791_7e-1,
        ],
    );
    let small = s.mul_add(p, x, x);
    let t = s.min(s.splat(4.5), t);
    let z = s.mul(t, t);
    let r = s.mul_add(s.splat(-1.728_534_7e-5), t, s.splat(3.831_971_3e-4));
    let u = s.mul_add(s.splat(-3.883_964_4e-3), t, s.splat(2.425_462_2e-2));
    let r = s.mul_add(r, z, u);
    let r = s.mul_add(r, t, s.splat(-1.067_778_8e-1));
    let r = s.mul_add(r, t, s.splat(-6.348_467e-1));
    let r = s.mul_add(r, t, s.splat(-1.287_175_1e-1));
    let r = s.sub(s.mul(r, t), t);
    let large = s.copysign(s.sub(s.splat(1.0), exp(s, r)), x);
    let y = s.select(s.lt(s.abs(x), s.splat(0.927_734_4)), small, large);
    s.select(s.is_nan(x), x, y)
}

/// (sin, cos) for |x| <= 8192.
#[inline(always)]
pub(crate) fn sin_cos<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let q = s.round(s.mul(x, s.splat(std::f32::consts::FRAC_2_PI)));
    // pi/2 in three parts, the first two short enough for exact products with q.
    let r = s.mul_add(q, s.splat(-1.570_312_5), x);
    let r = s.mul_add(q, s.splat(-4.837_513e-4), r);
    let r = s.mul_add(q, s.splat(-7.549_79e-8), r);
    let z = s.mul(r, r);
    let sine = poly(s, z, [2.718_311_5e-6, -1.983_933_8e-4, 8.333_293e-3, -1.666_666_6e-1]);
    let sine = s.mul_add(s.mul(sine, z), r, r);
    let cosine = poly(s, z, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
    let cosine = s.mul_add(s.mul(cosine, z), z, s.mul_add(z, s.splat(-0.5), s.splat(1.0)));
    // quadrant = q mod 4, as a float.
    let quadrant = s.sub(q, s.mul(s.floor(s.mul(q, s.splat(0.25))), s.splat(4.0)));
    let odd = s.sub(quadrant, s.mul(s.floor(s.mul(quadrant, s.splat(0.5))), s.splat(2.0)));
    let swap = s.lt(s.splat(0.5), odd);
    let (sin, cos) = (s.select(swap, cosine, sine), s.select(swap, sine, cosine));
    let upper = s.lt(s.splat(1.5), quadrant);
    let sin = s.select(upper, s.neg(sin), sin);
    // cos is negative in quadrants 1 and 2.
    let middle = s.lt(s.abs(s.sub(quadrant, s.splat(1.5))), s.splat(1.0));
    (sin, s.select(middle, s.neg(cos), cos))
}

/// The activation of one vector.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, act: Activation, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let one = s.splat(1.0);
    let half = s.splat(0.5);
    match act {
        Activation::None => x,
        Activation::Relu => s.max(zero, x),
        Activation::Clip { min, max } => s.min(s.splat(max), s.max(s.splat(min), x)),
        Activation::LeakyRelu { alpha } => s.select(s.lt(x, zero), s.mul(x, s.splat(alpha)), x),
        Activation::HardSwish => {
            let gate = s.mul_add(x, s.splat(1.0 / 6.0), half);
            let gate = s.min(one, s.max(zero, gate));
            gated(s, x, gate)
        }
        Activation::HardSigmoid { alpha, beta } => {
            let y = s.mul_add(x, s.splat(alpha), s.splat(beta));
            s.min(one, s.max(zero, y))
        }
        Activation::Sigmoid => sigmoid(s, x),
        Activation::Silu => gated(s, x, sigmoid(s, x)),
        Activation::Tanh => tanh(s, x),
        Activation::Gelu => gelu(s, x),
        Activation::GeluTanh => {
            let inner = s.mul_add(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
            gated(s, x, sigmoid(s, s.mul(inner, s.splat(1.595_769))))
        }
        Activation::Elu { alpha } => {
            // Near zero exp(x) - 1 cancels; tanh(x/2) (exp(x) + 1) is the same without it.
            let e = exp(s, s.min(zero, x));
            let m = s.mul(tanh(s, s.mul(x, half)), s.add(e, one));
            s.select(s.lt(x, zero), s.mul(m, s.splat(alpha)), x)
        }
        Activation::Softplus => softplus(s, x),
        Activation::Mish => gated(s, x, tanh(s, softplus(s, x))),
    }
}

/// x times the normal distribution function, which is 1/2 + x P(x^2) / Q(x^2) within 2e-7: a
/// least-squares fit of our own, reweighted until its error was even. Below -5.2, where it is
/// below 1e-7, zero.
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    const BOUND: f32 = 5.2;
    let c = s.min(s.splat(BOUND), s.max(s.splat(-BOUND), x));
    let z = s.mul(c, c);
    let p = poly(
        s,
        z,
        [2.495_534e-8, 6.393_967_4e-6, 1.543_665e-4, 4.593_85e-3, 3.229_766_7e-2, 3.989_423e-1],
    );
    let q =
        poly(s, z, [1.264_313e-6, 6.970_755e-5, 1.803_225_8e-3, 2.778_617_3e-2, 2.476_248e-1, 1.0]);
    let gate = s.mul_add(c, s.div(p, q), s.splat(0.5));
    s.select(s.lt(x, s.splat(-BOUND)), s.splat(0.0), s.mul(x, gate))
}

/// x * gate, and zero where the gate is closed (an infinite x would make it NaN).
#[inline(always)]
fn gated<S: Simd>(s: S, x: S::V, gate: S::V) -> S::V {
    let zero = s.splat(0.0);
    let closed = s.lt(x, s.splat(f32::MIN));
    s.select(closed, zero, s.mul(x, gate))
}

#[inline(always)]
fn softplus<S: Simd>(s: S, x: S::V) -> S::V {
    // max(x, 0) + ln(1 + e) with e = exp(-|x|); ln(1 + e) by the correction e / (u - 1) * ln u.
    let e = exp(s, s.neg(s.abs(x)));
    let one = s.splat(1.0);
    let u = s.add(one, e);
    let d = s.sub(u, one);
    let log1p = s.select(s.lt(s.splat(0.0), d), s.mul(log(s, u), s.div(e, d)), e);
    s.add(s.max(s.splat(0.0), x), log1p)
}
