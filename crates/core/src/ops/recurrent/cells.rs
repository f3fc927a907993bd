//! What one step of a recurrent layer computes from its gates.

use sparoa_kernels::{activation::Activation, math};

use crate::ops::OpError;

/// The kind of a recurrent layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// Long short-term memory; gates in the order input, output, forget, cell.
    Lstm {
        /// The forget gate is 1 - input gate.
        input_forget: bool,
    },
    /// Gated recurrent unit; gates in the order update, reset, hidden.
    Gru {
        /// The state is multiplied before it is reset.
        linear_before_reset: bool,
    },
    /// Plain.
    Rnn,
}

impl Cell {
    pub(super) fn gates(self) -> usize {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }

    pub(super) fn default_activations(self) -> Vec<Activation> {
        use Activation::{Sigmoid, Tanh};
        match self {
            Cell::Lstm { .. } => vec![Sigmoid, Tanh, Tanh],
            Cell::Gru { .. } => vec![Sigmoid, Tanh],
            Cell::Rnn => vec![Tanh],
        }
    }
}

/// Reads the attributes `activations`, `activation_alpha` and `activation_beta`; parameters are
/// used up in order by the activations that have them.
pub(super) fn activations(
    names: &[String],
    alphas: &[f32],
    betas: &[f32],
) -> Result<Vec<Activation>, OpError> {
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    names
        .iter()
        .map(|name| {
            Ok(match name.to_ascii_lowercase().as_str() {
                "sigmoid" => Activation::Sigmoid,
                "tanh" => Activation::Tanh,
                "relu" => Activation::Relu,
                "softplus" => Activation::Softplus,
                "leakyrelu" => Activation::LeakyRelu { alpha: alphas.next().unwrap_or(0.01) },
                "elu" => Activation::Elu { alpha: alphas.next().unwrap_or(1.0) },
                "hardsigmoid" => Activation::HardSigmoid {
                    alpha: alphas.next().unwrap_or(0.2),
                    beta: betas.next().unwrap_or(0.5),
                },
                _ => {
                    return Err(OpError::unsupported(format!(
                        "activation '{name}' of a recurrent layer (supported: Sigmoid, Tanh, \
                         Relu, Softplus, LeakyRelu, Elu, HardSigmoid)"
                    )));
                }
            })
        })
        .collect()
}

/// Names, alphas and betas that [`activations`] reads.
pub(super) fn activation_attributes(list: &[Activation]) -> (Vec<String>, Vec<f32>, Vec<f32>) {
    let (mut names, mut alphas, mut betas) = (Vec::new(), Vec::new(), Vec::new());
    for activation in list {
        let name = match *activation {
            Activation::Sigmoid => "Sigmoid",
            Activation::Relu => "Relu",
            Activation::Softplus => "Softplus",
            Activation::LeakyRelu { alpha } => {
                alphas.push(alpha);
                "LeakyRelu"
            }
            Activation::Elu { alpha } => {
                alphas.push(alpha);
                "Elu"
            }
            Activation::HardSigmoid { alpha, beta } => {
                alphas.push(alpha);
                betas.push(beta);
                "HardSigmoid"
            }
            _ => "Tanh",
        };
        names.push(name.to_owned());
    }
    (names, alphas, betas)
}

/// Bounds the magnitude, if asked to.
pub(super) fn clip(gates: &mut [f32], bound: Option<f32>) {
    if let Some(bound) = bound {
        gates.iter_mut().for_each(|v| *v = v.max(-bound).min(bound));
    }
}

/// One LSTM step of one sequence: gates (4 * hidden, before their activations) and state.
pub(super) fn lstm(
    input_forget: bool,
    f: &[Activation],
    bound: Option<f32>,
    peepholes: Option<&[f32]>,
    gates: &mut [f32],
    c: &mut [f32],
    h: &mut [f32],
) {
    let n = h.len();
    let (i, rest) = gates.split_at_mut(n);
    let (o, rest) = rest.split_at_mut(n);
    let (forget, g) = rest.split_at_mut(n);
    if let Some(p) = peepholes {
        for k in 0..n {
            i[k] += p[k] * c[k];
            forget[k] += p[2 * n + k] * c[k];
        }
    }
    clip(i, bound);
    clip(forget, bound);
    clip(g, bound);
    math::activation_in_place(f[0], i);
    math::activation_in_place(f[0], forget);
    math::activation_in_place(f[1], g);
    for k in 0..n {
        let keep = if input_forget { 1.0 - i[k] } else { forget[k] };
        c[k] = keep * c[k] + i[k] * g[k];
        if let Some(p) = peepholes {
            o[k] += p[n + k] * c[k];
        }
    }
    clip(o, bound);
    math::activation_in_place(f[0], o);
    math::activation(f[2], c, h);
    for k in 0..n {
        h[k] *= o[k];
    }
}

/// Update and reset gates of one GRU step, in place.
pub(super) fn gru_gates(f: &[Activation], bound: Option<f32>, gates: &mut [f32]) {
    clip(gates, bound);
    math::activation_in_place(f[0], gates);
}

/// The rest of a GRU step: `candidate` before its activation.
pub(super) fn gru_update(
    f: &[Activation],
    bound: Option<f32>,
    update: &[f32],
    candidate: &mut [f32],
    h: &mut [f32],
) {
    clip(candidate, bound);
    math::activation_in_place(f[1], candidate);
    for k in 0..h.len() {
        h[k] = (1.0 - update[k]) * candidate[k] + update[k] * h[k];
    }
}
