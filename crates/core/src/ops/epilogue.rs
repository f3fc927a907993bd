//! What fused operators do to their result: activation and residual, and their ONNX attributes.

use sparoa_kernels::activation::{Activation, Epilogue, Residual};

use super::{AttributeValue, Attributes, KernelIo, OpError};
use crate::tensor::TensorRef;

/// A tensor of the output's type that a fused operator adds; it is input 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResidualKind {
    /// None.
    #[default]
    None,
    /// Added before the activation.
    BeforeActivation,
    /// Added after the activation.
    AfterActivation,
}

/// Index of the residual among the inputs of a fused operator.
pub const RESIDUAL_INPUT: usize = 3;

/// The kernel's epilogue for this run. A residual that the node omits is none.
pub(super) fn epilogue<'a>(
    activation: Activation,
    residual: ResidualKind,
    io: &KernelIo<'a, '_>,
) -> Epilogue<'a> {
    epilogue_with(activation, residual, io.get(RESIDUAL_INPUT))
}

/// [`epilogue`] with the residual's tensor given.
pub(super) fn epilogue_with<'a>(
    activation: Activation,
    residual: ResidualKind,
    tensor: Option<TensorRef<'a>>,
) -> Epilogue<'a> {
    let data = tensor.map(|r| r.slice::<f32>());
    let residual = match (residual, data) {
        (ResidualKind::None, _) | (_, None) => Residual::None,
        (ResidualKind::BeforeActivation, Some(data)) => Residual::BeforeActivation(data),
        (ResidualKind::AfterActivation, Some(data)) => Residual::AfterActivation(data),
    };
    Epilogue { activation, residual }
}

/// Reads `activation`, `activation_params` and `residual`; the first two as `com.microsoft`'s
/// fused operators have them.
///
/// # Errors
/// When a name is unknown or parameters are missing.
pub(super) fn parse(attributes: &Attributes) -> Result<(Activation, ResidualKind), OpError> {
    let params = attributes.floats("activation_params")?.unwrap_or_default();
    let name = attributes.string("activation")?.unwrap_or_default();
    Ok((activation(&name, &params)?, parse_residual(attributes)?))
}

/// Reads `residual`.
///
/// # Errors
/// When it is no known word.
pub(super) fn parse_residual(attributes: &Attributes) -> Result<ResidualKind, OpError> {
    Ok(match attributes.string("residual")?.as_deref() {
        None => ResidualKind::None,
        Some("before_activation") => ResidualKind::BeforeActivation,
        Some("after_activation") => ResidualKind::AfterActivation,
        Some(other) => {
            return Err(OpError::invalid(format!(
                "attribute residual is '{other}', must be before_activation or after_activation"
            )));
        }
    })
}

/// The activation of this name; it may have more parameters than it takes.
///
/// # Errors
/// When the name is unknown or parameters are missing.
pub(super) fn activation(name: &str, params: &[f32]) -> Result<Activation, OpError> {
    let param = |i: usize| {
        params.get(i).copied().ok_or_else(|| {
            OpError::invalid(format!("activation {name} lacks activation_params[{i}]"))
        })
    };
    Ok(match name {
        "" => Activation::None,
        "Relu" => Activation::Relu,
        "Clip" => Activation::Clip { min: param(0)?, max: param(1)? },
        "LeakyRelu" => Activation::LeakyRelu { alpha: param(0)? },
        "HardSwish" => Activation::HardSwish,
        "HardSigmoid" => Activation::HardSigmoid { alpha: param(0)?, beta: param(1)? },
        "Sigmoid" => Activation::Sigmoid,
        "Silu" => Activation::Silu,
        "Tanh" => Activation::Tanh,
        "Gelu" => Activation::Gelu,
        "GeluTanh" => Activation::GeluTanh,
        "Elu" => Activation::Elu { alpha: param(0)? },
        "Softplus" => Activation::Softplus,
        "Mish" => Activation::Mish,
        other => {
            return Err(OpError::unsupported(format!(
                "fused activation '{other}' (nearest: Relu, Clip, LeakyRelu, Sigmoid, Tanh)"
            )));
        }
    })
}

/// The attributes that [`parse`] reads; none for the defaults.
pub(super) fn attributes(
    activation: Activation,
    residual: ResidualKind,
) -> Vec<(&'static str, AttributeValue)> {
    let (name, params) = named(activation);
    let mut result = Vec::new();
    if !name.is_empty() {
        result.push(("activation", name.into()));
    }
    if !params.is_empty() {
        result.push(("activation_params", params.into()));
    }
    result.extend(residual_attribute(residual));
    result
}

/// An activation's name and parameters, as [`activation`] reads them.
pub(super) fn named(activation: Activation) -> (&'static str, Vec<f32>) {
    match activation {
        Activation::None => ("", vec![]),
        Activation::Relu => ("Relu", vec![]),
        Activation::Clip { min, max } => ("Clip", vec![min, max]),
        Activation::LeakyRelu { alpha } => ("LeakyRelu", vec![alpha]),
        Activation::HardSwish => ("HardSwish", vec![]),
        Activation::HardSigmoid { alpha, beta } => ("HardSigmoid", vec![alpha, beta]),
        Activation::Sigmoid => ("Sigmoid", vec![]),
        Activation::Silu => ("Silu", vec![]),
        Activation::Tanh => ("Tanh", vec![]),
        Activation::Gelu => ("Gelu", vec![]),
        Activation::GeluTanh => ("GeluTanh", vec![]),
        Activation::Elu { alpha } => ("Elu", vec![alpha]),
        Activation::Softplus => ("Softplus", vec![]),
        Activation::Mish => ("Mish", vec![]),
    }
}

/// The attribute that [`parse_residual`] reads; none for the default.
pub(super) fn residual_attribute(residual: ResidualKind) -> Option<(&'static str, AttributeValue)> {
    match residual {
        ResidualKind::None => None,
        ResidualKind::BeforeActivation => Some(("residual", "before_activation".into())),
        ResidualKind::AfterActivation => Some(("residual", "after_activation".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip() {
        for activation in [
            Activation::None,
            Activation::Relu,
            Activation::Clip { min: 0.0, max: 6.0 },
            Activation::LeakyRelu { alpha: 0.1 },
            Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
            Activation::Elu { alpha: 1.5 },
            Activation::GeluTanh,
            Activation::Mish,
        ] {
            for residual in [ResidualKind::None, ResidualKind::AfterActivation] {
                let written = attributes(activation, residual);
                let read =
                    Attributes::new(1, 1, written.into_iter().map(|(n, v)| (n.to_owned(), v)));
                assert_eq!(parse(&read), Ok((activation, residual)));
            }
        }
        assert!(super::activation("Clip", &[1.0]).is_err());
        assert!(super::activation("Nonsense", &[]).is_err());
    }
}
