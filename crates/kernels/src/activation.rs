//! Activation functions, exact and scalar, and the epilogue that fuses them into a kernel's store.

/// An activation function.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, min), max)
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// x if x >= 0 else alpha x
    LeakyRelu {
        /// Slope below zero.
        alpha: f32,
    },
    /// x * clip(x / 6 + 1/2, 0, 1)
    HardSwish,
    /// clip(alpha x + beta, 0, 1)
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// x * sigmoid(x)
    Silu,
    /// tanh(x)
    Tanh,
    /// x/2 * (1 + erf(x / sqrt 2))
    Gelu,
    /// x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    GeluTanh,
    /// x if x >= 0 else alpha (exp(x) - 1)
    Elu {
        /// Scale below zero.
        alpha: f32,
    },
    /// ln(1 + exp(x))
    Softplus,
    /// x * tanh(softplus(x))
    Mish,
}

impl Activation {
    /// The activation of one value, computed in double precision; NaN in, NaN out.
    pub fn apply(self, x: f32) -> f32 {
        if x.is_nan() {
            return x;
        }
        let v = f64::from(x);
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        let softplus = |v: f64| v.max(0.0) + (-v.abs()).exp().ln_1p();
        // -inf times zero is NaN where the limit is zero.
        let gated = |gate: f64| if gate == 0.0 { 0.0 } else { v * gate };
        let y = match self {
            Activation::None => v,
            Activation::Relu => v.max(0.0),
            Activation::Clip { min, max } => v.max(f64::from(min)).min(f64::from(max)),
            Activation::LeakyRelu { alpha } if v < 0.0 => f64::from(alpha) * v,
            Activation::LeakyRelu { .. } => v,
            Activation::HardSwish => gated((v / 6.0 + 0.5).clamp(0.0, 1.0)),
            Activation::HardSigmoid { alpha, beta } => {
                (f64::from(alpha) * v + f64::from(beta)).clamp(0.0, 1.0)
            }
            Activation::Sigmoid => sigmoid(v),
            Activation::Silu => gated(sigmoid(v)),
            Activation::Tanh => v.tanh(),
            Activation::Gelu => gated(0.5 * erfc(-v / std::f64::consts::SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
                // (1 + tanh(u)) / 2 = sigmoid(2u), without the cancellation.
                gated(sigmoid(2.0 * inner))
            }
            Activation::Elu { alpha } if v < 0.0 => f64::from(alpha) * v.exp_m1(),
            Activation::Elu { .. } => v,
            Activation::Softplus => softplus(v),
            Activation::Mish => gated(softplus(v).tanh()),
        };
        y as f32
    }
}

/// The complementary error function in double precision (relative error below 1e-10).
pub(crate) fn erfc(x: f64) -> f64 {
    let z = x.abs();
    let tail = if z < 2.5 {
        // Maclaurin series of erf; its largest term is about 50, so 1e-14 absolute.
        let (mut term, mut sum, mut n) = (z, z, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
            if n > 200.0 {
                break;
            }
        }
        1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if z > 27.5 {
        0.0
    } else {
        // Continued fraction, evaluated from the inside.
        let mut f = z;
        for k in (1..=80).rev() {
            f = z + f64::from(k) * 0.5 / f;
        }
        (-z * z).exp() / (f * std::f64::consts::PI.sqrt())
    };
    if x < 0.0 { 2.0 - tail } else { tail }
}

/// What a kernel does to its accumulator on the way to memory:
/// `y = act(acc + bias + before) + after`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// The activation.
    pub activation: Activation,
    /// A tensor of the output's shape to add.
    pub residual: Residual<'a>,
}

/// A tensor of the output's shape that an epilogue adds.
#[derive(Clone, Copy, Debug, Default)]
pub enum Residual<'a> {
    /// Nothing to add.
    #[default]
    None,
    /// y = act(acc + bias + residual)
    BeforeActivation(&'a [f32]),
    /// y = act(acc + bias) + residual
    AfterActivation(&'a [f32]),
}

impl<'a> Epilogue<'a> {
    /// No activation, no residual.
    pub const NONE: Epilogue<'static> =
        Epilogue { activation: Activation::None, residual: Residual::None };

    /// An activation, no residual.
    pub fn activation(activation: Activation) -> Epilogue<'static> {
        Epilogue { activation, residual: Residual::None }
    }

    /// Panics unless the residual has `len` elements.
    pub(crate) fn check(&self, len: usize) {
        if let Residual::BeforeActivation(r) | Residual::AfterActivation(r) = self.residual {
            assert!(r.len() == len, "the residual has the output's length");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert!((erfc(0.5) - 0.479_500_122_186_953_5).abs() < 1e-14);
        assert!((erfc(2.5) / 4.069_520_174_449_589e-4 - 1.0).abs() < 1e-10);
        assert!((erfc(-1.0) - 1.842_700_792_949_715).abs() < 1e-14);
        assert_eq!(Activation::HardSwish.apply(3.0), 3.0);
        assert_eq!(Activation::HardSwish.apply(-4.0), 0.0);
        assert!((Activation::Gelu.apply(1.0) - 0.841_344_7).abs() < 1e-6);
        assert!((Activation::GeluTanh.apply(1.0) - 0.841_192).abs() < 1e-6);
        assert!(Activation::Sigmoid.apply(f32::NAN).is_nan());
        assert_eq!(Activation::Gelu.apply(f32::NEG_INFINITY), 0.0);
    }
}
