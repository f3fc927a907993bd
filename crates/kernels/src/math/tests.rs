//! Element-wise functions against double precision, on every instruction set.

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
            binary_with_isa(isa, BinaryOp::Sub, Operand::Scalar(2.0), Operand::Slice(&a), &mut y);
            assert!(y.iter().zip(&a).all(|(y, a)| *y == 2.0 - a));
            binary_with_isa(isa, BinaryOp::Div, Operand::Slice(&a), Operand::Scalar(3.0), &mut y);
            assert!(y.iter().zip(&a).all(|(y, a)| *y == a / 3.0));
            binary_with_isa(isa, BinaryOp::Pow, Operand::Slice(&a), Operand::Scalar(2.0), &mut y);
            assert!(y.iter().zip(&a).all(|(y, a)| *y == a * a));
            let mut z = a.clone();
            binary_in_place(BinaryOp::Mul, &mut z, Operand::Slice(&a));
            assert_eq!(y, z);
        }
    }
}
