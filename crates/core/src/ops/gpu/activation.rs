//! Activations and residuals as WGSL, for the end of every kernel that fuses them.

use sparoa_kernels::activation::Activation;

use super::{Binding, shader::Shader};
use crate::ops::{
    Operands,
    epilogue::{RESIDUAL_INPUT, ResidualKind},
};

/// erf, tanh and softplus for scalars and vectors: `erf1`, `erf4`, ...
pub(in crate::ops) const MATH: &str = include_str!("activation.wgsl");

/// WGSL functions `{name}1(v: f32)` and `{name}4(v: vec4<f32>)` that apply `activation`;
/// `params` are WGSL expressions of its two parameters. Some need [`MATH`] in the text.
pub(in crate::ops) fn function(activation: Activation, name: &str, params: [&str; 2]) -> String {
    let body = expression(activation).replace("$A", params[0]).replace("$B", params[1]);
    let of = |ty: &str, width: &str| {
        let body = body.replace("$T", ty).replace("$N", width);
        format!("fn {name}{width}(v: {ty}) -> {ty} {{ return {body}; }}\n")
    };
    of("f32", "1") + &of("vec4<f32>", "4")
}

/// The activation of `v`, with `$T` for the type, `$N` for its width, `$A` and `$B` for the
/// parameters.
fn expression(activation: Activation) -> &'static str {
    match activation {
        Activation::None => "v",
        Activation::Relu => "max(v, $T(0.0))",
        Activation::Clip { .. } => "min(max(v, $T($A)), $T($B))",
        Activation::LeakyRelu { .. } => "select(v, $A * v, v < $T(0.0))",
        Activation::HardSwish => "v * clamp(v * (1.0 / 6.0) + 0.5, $T(0.0), $T(1.0))",
        Activation::HardSigmoid { .. } => "clamp($A * v + $B, $T(0.0), $T(1.0))",
        Activation::Sigmoid => "$T(1.0) / ($T(1.0) + exp(-v))",
        Activation::Silu => "v / ($T(1.0) + exp(-v))",
        Activation::Tanh => "tanh$N(v)",
        Activation::Gelu => "0.5 * v * ($T(1.0) + erf$N(v * 0.70710678))",
        Activation::GeluTanh => "v / ($T(1.0) + exp(-1.5957691216 * (v + 0.044715 * v * v * v)))",
        Activation::Elu { .. } => "select(v, $A * (exp(min(v, $T(0.0))) - 1.0), v < $T(0.0))",
        Activation::Softplus => "softplus$N(v)",
        Activation::Mish => "v * tanh$N(softplus$N(v))",
    }
}

/// GELU for kernels whose operands are rounded anyway: v * (1 - erfc(v / sqrt(2)) / 2), with
/// erfc(c / sqrt(2)) = exp2(c * polynomial) for c in 0..8, beyond which it is no longer seen. Off by
/// 3e-7 at most for |v| < 8, as [`expression`]'s is, for a third of the time.
const SHORT_GELU: &str = "\
fn activate$N(v: $T) -> $T {
    let a = abs(v);
    let c = min(a, $T(8.0));
    let e = exp2(c * (-1.15112185 + c * (-0.459085315 + c * (-0.0528236069 + c * (0.0074851769
        + c * (-0.000425460399 + c * (-0.000080893049 + c * (0.0000208907204
        + c * (-0.00000189921514 + c * 0.0000000645461853)))))))));
    return 0.5 * (v + a - c * e);
}
";

/// Whether [`expression`] uses functions of [`MATH`].
fn needs_math(activation: Activation) -> bool {
    use Activation::{Gelu, Mish, Softplus, Tanh};
    matches!(activation, Gelu | Mish | Softplus | Tanh)
}

/// The two parameters of an activation, zero where it has none.
pub(in crate::ops) fn params(activation: Activation) -> [f32; 2] {
    match activation {
        Activation::Clip { min, max } => [min, max],
        Activation::LeakyRelu { alpha } | Activation::Elu { alpha } => [alpha, 0.0],
        Activation::HardSigmoid { alpha, beta } => [alpha, beta],
        _ => [0.0, 0.0],
    }
}

/// What a kernel does to its sums: `y = act(sum + before) + after`.
pub(in crate::ops) struct Epilogue {
    activation: Activation,
    residual: ResidualKind,
}

/// The part of an epilogue that libraries know: `y = relu(sum + residual)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) relu: bool,
    pub(super) residual: bool,
}

impl Epilogue {
    /// The epilogue of a fused operator; a residual that the node omits is none.
    pub(in crate::ops) fn new(
        activation: Activation,
        residual: ResidualKind,
        x: &Operands<'_>,
    ) -> Epilogue {
        let residual = if x.get(RESIDUAL_INPUT).is_some() { residual } else { ResidualKind::None };
        Epilogue { activation, residual }
    }

    /// What a library does of it, whose results may have a residual added and then pass a ReLU, and
    /// what is left to do.
    pub(super) fn parted(&self) -> (Plain, Option<Epilogue>) {
        let Epilogue { activation, residual } = *self;
        let relu = activation == Activation::Relu;
        let simple = relu || activation == Activation::None;
        let before = residual == ResidualKind::BeforeActivation
            || (residual == ResidualKind::AfterActivation && activation == Activation::None);
        let plain = Plain { relu, residual: before };
        let residual = if before { ResidualKind::None } else { residual };
        let activation = if simple { Activation::None } else { activation };
        let none = activation == Activation::None && residual == ResidualKind::None;
        (plain, (!none).then_some(Epilogue { activation, residual }))
    }

    /// Whether there is a residual.
    pub(super) fn has_residual(&self) -> bool {
        self.residual != ResidualKind::None
    }

    /// Whether it takes many instructions for each result.
    pub(super) fn is_long(&self) -> bool {
        needs_math(self.activation)
    }

    /// Adds to `shader` the parameters, the residual's buffer `residual` (elements as the
    /// output's) and the functions `finish1(sum, at)` and `finish4(sum, at)`, where `at` is the
    /// output element's (or vector's) index; with a residual also `join1(sum, beside)` and
    /// `join4(sum, beside)`, which take its element. `rounded`: the sums are of rounded operands.
    pub(in crate::ops) fn add(
        &self,
        shader: Shader,
        element: &'static str,
        rounded: bool,
    ) -> Shader {
        let [a, b] = params(self.activation);
        let mut shader = shader.float("act_a", a).float("act_b", b);
        if self.residual != ResidualKind::None {
            shader = shader.buffer("residual", Binding::Input(RESIDUAL_INPUT), element);
        }
        let (suffix, ty) = if element == "f32" { ("1", "f32") } else { ("4", "vec4<f32>") };
        let joined = match self.residual {
            ResidualKind::None => None,
            ResidualKind::BeforeActivation => Some(format!("activate{suffix}(v + beside)")),
            ResidualKind::AfterActivation => Some(format!("activate{suffix}(v) + beside")),
        };
        let (join, result) = match joined {
            None => (String::new(), format!("activate{suffix}(v)")),
            Some(joined) => (
                format!("fn join{suffix}(v: {ty}, beside: {ty}) -> {ty} {{ return {joined}; }}\n"),
                format!("join{suffix}(v, residual[at_residual() + at])"),
            ),
        };
        let activate = match self.activation {
            Activation::Gelu if rounded => SHORT_GELU.replace("$T", ty).replace("$N", suffix),
            activation => {
                let math = if needs_math(activation) { MATH } else { "" };
                format!("{math}{}", function(activation, "activate", ["p.act_a", "p.act_b"]))
            }
        };
        let finish = format!(
            "{activate}{join}fn finish{suffix}(v: {ty}, at: u32) -> {ty} {{ return {result}; }}\n"
        );
        shader.define("epilogue", finish)
    }
}
