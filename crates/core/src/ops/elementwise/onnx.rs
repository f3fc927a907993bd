//! The ONNX operators that are elementwise: their names, attributes and expressions.

use std::sync::Arc;

use sparoa_kernels::Activation;

use super::{Arg, Binary, Elementwise, Expr, Form, Instr, Unary, examples::*};
use crate::ops::{AttributeValue, Attributes, Example, Op, OpError, OpSpec};

/// Name of the fused operator.
pub(super) const FUSED: &str = "Elementwise";

const SELU_ALPHA: f32 = 1.673_263_2;
const SELU_GAMMA: f32 = 1.050_701;
const GELU_QUICK: f32 = 1.702;

type Parse = fn(&Attributes) -> Result<Arc<dyn Op>, OpError>;
type Examples = fn() -> Vec<Example>;

const fn spec(
    name: &'static str,
    since: u32,
    inputs: (usize, usize),
    parse: Parse,
    examples: Examples,
) -> OpSpec {
    OpSpec { name, domain: "", since, inputs, outputs: (1, 1), parse, examples }
}

const fn unary(name: &'static str, since: u32, parse: Parse, examples: Examples) -> OpSpec {
    spec(name, since, (1, 1), parse, examples)
}

const fn binary(name: &'static str, since: u32, parse: Parse, examples: Examples) -> OpSpec {
    spec(name, since, (2, 2), parse, examples)
}

const fn microsoft(name: &'static str, inputs: (usize, usize), parse: Parse) -> OpSpec {
    let examples = if inputs.0 == 1 { floats } else { bias };
    OpSpec { name, domain: "com.microsoft", since: 1, inputs, outputs: (1, 1), parse, examples }
}

const MANY: usize = i32::MAX as usize;

pub(super) const SPECS: &[OpSpec] = &[
    unary("Abs", 1, |_| one(Unary::Abs), floats),
    unary("Acos", 7, |_| one(Unary::Acos), small),
    unary("Acosh", 9, |_| one(Unary::Acosh), large),
    unary("Asin", 7, |_| one(Unary::Asin), small),
    unary("Asinh", 9, |_| one(Unary::Asinh), floats),
    unary("Atan", 7, |_| one(Unary::Atan), floats),
    unary("Atanh", 9, |_| one(Unary::Atanh), small),
    unary("BitwiseNot", 18, |_| one(Unary::BitNot), integer),
    unary("Ceil", 1, |_| one(Unary::Ceil), floats),
    unary("Celu", 12, celu, floats),
    unary("Cos", 7, |_| one(Unary::Cos), floats),
    unary("Cosh", 9, |_| one(Unary::Cosh), floats),
    unary("Elu", 1, elu, floats),
    unary("Erf", 9, |_| one(Unary::Erf), floats),
    unary("Exp", 1, |_| one(Unary::Exp), floats),
    unary("Floor", 1, |_| one(Unary::Floor), floats),
    unary("Gelu", 20, gelu, floats),
    unary("HardSigmoid", 1, hard_sigmoid, floats),
    unary("HardSwish", 14, |_| act(Activation::HardSwish), floats),
    unary("IsInf", 10, is_inf, floats),
    unary("IsNaN", 9, |_| one(Unary::IsNan), floats),
    unary("LeakyRelu", 1, leaky_relu, floats),
    unary("Log", 1, |_| one(Unary::Log), large),
    unary("Mish", 18, |_| act(Activation::Mish), floats),
    unary("Neg", 1, |_| one(Unary::Neg), floats),
    unary("Not", 1, |_| one(Unary::Not), boolean),
    unary("Reciprocal", 1, |_| one(Unary::Reciprocal), large),
    unary("Relu", 1, |_| act(Activation::Relu), floats),
    unary("Round", 11, |_| one(Unary::Round), floats),
    unary("Selu", 1, selu, floats),
    unary("Shrink", 9, shrink, floats),
    unary("Sigmoid", 1, |_| act(Activation::Sigmoid), floats),
    unary("Sign", 9, |_| one(Unary::Sign), floats),
    unary("Sin", 7, |_| one(Unary::Sin), floats),
    unary("Sinh", 9, |_| one(Unary::Sinh), floats),
    unary("Softplus", 1, |_| act(Activation::Softplus), floats),
    unary("Softsign", 1, |_| softsign(), floats),
    unary("Sqrt", 1, |_| one(Unary::Sqrt), large),
    unary("Swish", 24, |a| swish(a, "Swish", 1.0), floats),
    unary("Tan", 7, |_| one(Unary::Tan), floats),
    unary("Tanh", 1, |_| act(Activation::Tanh), floats),
    unary("ThresholdedRelu", 10, thresholded_relu, floats),
    binary("Add", 7, |_| two(Binary::Add), pairs),
    binary("And", 7, |_| two(Binary::And), boolean_pair),
    binary("BitShift", 11, bit_shift, shifts),
    binary("BitwiseAnd", 18, |_| two(Binary::BitAnd), integer_pair),
    binary("BitwiseOr", 18, |_| two(Binary::BitOr), integer_pair),
    binary("BitwiseXor", 18, |_| two(Binary::BitXor), integer_pair),
    binary("Div", 7, |_| two(Binary::Div), pairs),
    binary("Equal", 7, |_| two(Binary::Equal), integer_pair),
    binary("Greater", 7, |_| two(Binary::Greater), pairs),
    binary("GreaterOrEqual", 12, |_| two(Binary::GreaterOrEqual), pairs),
    binary("Less", 7, |_| two(Binary::Less), pairs),
    binary("LessOrEqual", 12, |_| two(Binary::LessOrEqual), pairs),
    binary("Mod", 10, modulus, integer_pair),
    binary("Mul", 7, |_| two(Binary::Mul), pairs),
    binary("Or", 7, |_| two(Binary::Or), boolean_pair),
    binary("Pow", 7, |_| two(Binary::Pow), powers),
    binary("PRelu", 7, |_| prelu(), pairs),
    binary("Sub", 7, |_| two(Binary::Sub), pairs),
    binary("Xor", 7, |_| two(Binary::Xor), boolean_pair),
    spec("Clip", 6, (1, 3), clip, clips),
    spec("Max", 8, (1, MANY), |_| variadic("Max", Binary::Max, false), triples),
    spec("Mean", 8, (1, MANY), |_| variadic("Mean", Binary::Add, true), triples),
    spec("Min", 8, (1, MANY), |_| variadic("Min", Binary::Min, false), triples),
    spec("Sum", 8, (1, MANY), |_| variadic("Sum", Binary::Add, false), triples),
    spec("Where", 9, (3, 3), |_| select(), selects),
    microsoft("BiasGelu", (2, 2), |_| bias_gelu()),
    microsoft("FastGelu", (1, 2), |_| fast_gelu()),
    microsoft("Gelu", (1, 1), |_| microsoft_gelu()),
    microsoft("QuickGelu", (1, 1), |a| swish(a, "QuickGelu", GELU_QUICK)),
];

/// Name and attributes of the standard operator that is exactly this one-instruction expression.
pub(super) fn standard(expr: &Expr) -> Option<(&'static str, Vec<(&'static str, AttributeValue)>)> {
    use AttributeValue::{Float, Int, String};
    let [instr] = expr.code() else { return None };
    let (x0, x1, x2) = (Arg::Input(0), Arg::Input(1), Arg::Input(2));
    let mut attributes = Vec::new();
    let name = match *instr {
        Instr::Select(a, b, c) if (a, b, c) == (x0, x1, x2) => "Where",
        Instr::Unary(op, a) if a == x0 => match op {
            Unary::Abs => "Abs",
            Unary::Neg => "Neg",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Sqrt => "Sqrt",
            Unary::Reciprocal => "Reciprocal",
            Unary::Sin => "Sin",
            Unary::Cos => "Cos",
            Unary::Tan => "Tan",
            Unary::Asin => "Asin",
            Unary::Acos => "Acos",
            Unary::Atan => "Atan",
            Unary::Sinh => "Sinh",
            Unary::Cosh => "Cosh",
            Unary::Asinh => "Asinh",
            Unary::Acosh => "Acosh",
            Unary::Atanh => "Atanh",
            Unary::Erf => "Erf",
            Unary::Floor => "Floor",
            Unary::Ceil => "Ceil",
            Unary::Round => "Round",
            Unary::Sign => "Sign",
            Unary::Not => "Not",
            Unary::BitNot => "BitwiseNot",
            Unary::IsNan => "IsNaN",
            Unary::IsInf { negative, positive } => {
                attributes.push(("detect_negative", Int(negative.into())));
                attributes.push(("detect_positive", Int(positive.into())));
                "IsInf"
            }
            Unary::Rsqrt | Unary::Square => return None,
            Unary::Activation(a) => match a {
                Activation::Relu => "Relu",
                Activation::LeakyRelu { alpha } => {
                    attributes.push(("alpha", Float(alpha)));
                    "LeakyRelu"
                }
                Activation::HardSwish => "HardSwish",
                Activation::HardSigmoid { alpha, beta } => {
                    attributes.push(("alpha", Float(alpha)));
                    attributes.push(("beta", Float(beta)));
                    "HardSigmoid"
                }
                Activation::Sigmoid => "Sigmoid",
                Activation::Tanh => "Tanh",
                Activation::Gelu => "Gelu",
                Activation::GeluTanh => {
                    attributes.push(("approximate", String("tanh".to_owned())));
                    "Gelu"
                }
                Activation::Elu { alpha } => {
                    attributes.push(("alpha", Float(alpha)));
                    "Elu"
                }
                Activation::Softplus => "Softplus",
                Activation::Mish => "Mish",
                Activation::None | Activation::Clip { .. } | Activation::Silu => return None,
            },
        },
        Instr::Binary(op, a, b) if (a, b) == (x0, x1) => match op {
            Binary::Add => "Add",
            Binary::Sub => "Sub",
            Binary::Mul => "Mul",
            Binary::Div => "Div",
            Binary::Min => "Min",
            Binary::Max => "Max",
            Binary::Pow => "Pow",
            Binary::Mod => "Mod",
            Binary::Fmod => {
                attributes.push(("fmod", Int(1)));
                "Mod"
            }
            Binary::And => "And",
            Binary::Or => "Or",
            Binary::Xor => "Xor",
            Binary::BitAnd => "BitwiseAnd",
            Binary::BitOr => "BitwiseOr",
            Binary::BitXor => "BitwiseXor",
            Binary::ShiftLeft => {
                attributes.push(("direction", String("LEFT".to_owned())));
                "BitShift"
            }
            Binary::ShiftRight => {
                attributes.push(("direction", String("RIGHT".to_owned())));
                "BitShift"
            }
            Binary::Equal => "Equal",
            Binary::Less => "Less",
            Binary::LessOrEqual => "LessOrEqual",
            Binary::Greater => "Greater",
            Binary::GreaterOrEqual => "GreaterOrEqual",
        },
        _ => return None,
    };
    Some((name, attributes))
}

type Parsed = Result<Arc<dyn Op>, OpError>;

fn one(op: Unary) -> Parsed {
    Ok(Arc::new(Elementwise::new(Expr::unary(op))))
}

fn act(op: Activation) -> Parsed {
    one(Unary::Activation(op))
}

fn two(op: Binary) -> Parsed {
    Ok(Arc::new(Elementwise::new(Expr::binary(op))))
}

/// An operator of several instructions, under its ONNX name.
fn named(
    name: &'static str,
    attributes: Vec<(&'static str, AttributeValue)>,
    code: Vec<Instr>,
) -> Elementwise {
    Elementwise { name, domain: "", attributes, form: Form::Fixed(Expr::new(code)) }
}

const X: Arg = Arg::Input(0);
const fn t(i: usize) -> Arg {
    Arg::Result(i)
}

fn variadic(name: &'static str, op: Binary, mean: bool) -> Parsed {
    let form = Form::Variadic { op, mean };
    Ok(Arc::new(Elementwise { name, domain: "", attributes: Vec::new(), form }))
}

fn clip(a: &Attributes) -> Parsed {
    if a.opset >= 11 {
        let form = Form::Clip;
        return Ok(Arc::new(Elementwise {
            name: "Clip",
            domain: "",
            attributes: Vec::new(),
            form,
        }));
    }
    let (min, max) = (a.float_or("min", f32::MIN)?, a.float_or("max", f32::MAX)?);
    let attributes = vec![("min", AttributeValue::Float(min)), ("max", AttributeValue::Float(max))];
    let op = Unary::Activation(Activation::Clip { min, max });
    Ok(Arc::new(named("Clip", attributes, vec![Instr::Unary(op, X)])))
}

fn select() -> Parsed {
    let code = vec![Instr::Select(X, Arg::Input(1), Arg::Input(2))];
    Ok(Arc::new(Elementwise::new(Expr::new(code))))
}

fn modulus(a: &Attributes) -> Parsed {
    two(if a.flag("fmod", false)? { Binary::Fmod } else { Binary::Mod })
}

fn bit_shift(a: &Attributes) -> Parsed {
    match a.string("direction")?.as_deref() {
        Some("LEFT") => two(Binary::ShiftLeft),
        Some("RIGHT") => two(Binary::ShiftRight),
        other => {
            let other = other.unwrap_or("missing");
            Err(OpError::invalid(format!("direction must be LEFT or RIGHT, is {other}")))
        }
    }
}

fn is_inf(a: &Attributes) -> Parsed {
    let negative = a.flag("detect_negative", true)?;
    let positive = a.flag("detect_positive", true)?;
    one(Unary::IsInf { negative, positive })
}

fn leaky_relu(a: &Attributes) -> Parsed {
    act(Activation::LeakyRelu { alpha: a.float_or("alpha", 0.01)? })
}

fn elu(a: &Attributes) -> Parsed {
    act(Activation::Elu { alpha: a.float_or("alpha", 1.0)? })
}

fn hard_sigmoid(a: &Attributes) -> Parsed {
    let (alpha, beta) = (a.float_or("alpha", 0.2)?, a.float_or("beta", 0.5)?);
    act(Activation::HardSigmoid { alpha, beta })
}

fn gelu(a: &Attributes) -> Parsed {
    match a.string("approximate")?.as_deref() {
        None | Some("none") => act(Activation::Gelu),
        Some("tanh") => act(Activation::GeluTanh),
        Some(other) => {
            Err(OpError::invalid(format!("approximate must be none or tanh, is {other}")))
        }
    }
}

fn selu(a: &Attributes) -> Parsed {
    let (alpha, gamma) = (a.float_or("alpha", SELU_ALPHA)?, a.float_or("gamma", SELU_GAMMA)?);
    let attributes =
        vec![("alpha", AttributeValue::Float(alpha)), ("gamma", AttributeValue::Float(gamma))];
    let code = vec![
        Instr::Unary(Unary::Activation(Activation::Elu { alpha }), X),
        Instr::Binary(Binary::Mul, t(0), Arg::Imm(gamma)),
    ];
    Ok(Arc::new(named("Selu", attributes, code)))
}

fn celu(a: &Attributes) -> Parsed {
    let alpha = a.float_or("alpha", 1.0)?;
    let code = vec![
        Instr::Binary(Binary::Div, X, Arg::Imm(alpha)),
        Instr::Unary(Unary::Activation(Activation::Elu { alpha: 1.0 }), t(0)),
        Instr::Binary(Binary::Mul, t(1), Arg::Imm(alpha)),
    ];
    Ok(Arc::new(named("Celu", vec![("alpha", AttributeValue::Float(alpha))], code)))
}

fn softsign() -> Parsed {
    let code = vec![
        Instr::Unary(Unary::Abs, X),
        Instr::Binary(Binary::Add, t(0), Arg::Imm(1.0)),
        Instr::Binary(Binary::Div, X, t(1)),
    ];
    Ok(Arc::new(named("Softsign", Vec::new(), code)))
}

fn thresholded_relu(a: &Attributes) -> Parsed {
    let alpha = a.float_or("alpha", 1.0)?;
    let code = vec![
        Instr::Binary(Binary::Greater, X, Arg::Imm(alpha)),
        Instr::Select(t(0), X, Arg::Imm(0.0)),
    ];
    Ok(Arc::new(named("ThresholdedRelu", vec![("alpha", AttributeValue::Float(alpha))], code)))
}

fn shrink(a: &Attributes) -> Parsed {
    let (bias, lambd) = (a.float_or("bias", 0.0)?, a.float_or("lambd", 0.5)?);
    let attributes =
        vec![("bias", AttributeValue::Float(bias)), ("lambd", AttributeValue::Float(lambd))];
    let code = vec![
        Instr::Binary(Binary::Less, X, Arg::Imm(-lambd)),
        Instr::Binary(Binary::Greater, X, Arg::Imm(lambd)),
        Instr::Binary(Binary::Add, X, Arg::Imm(bias)),
        Instr::Binary(Binary::Sub, X, Arg::Imm(bias)),
        Instr::Select(t(1), t(3), Arg::Imm(0.0)),
        Instr::Select(t(0), t(2), t(4)),
    ];
    Ok(Arc::new(named("Shrink", attributes, code)))
}

fn prelu() -> Parsed {
    let code = vec![
        Instr::Binary(Binary::Less, X, Arg::Imm(0.0)),
        Instr::Binary(Binary::Mul, X, Arg::Input(1)),
        Instr::Select(t(0), t(1), X),
    ];
    Ok(Arc::new(named("PRelu", Vec::new(), code)))
}

/// x * sigmoid(alpha x), which has two names.
fn swish(a: &Attributes, name: &'static str, default: f32) -> Parsed {
    let alpha = a.float_or("alpha", default)?;
    let attributes = vec![("alpha", AttributeValue::Float(alpha))];
    let mut code = vec![Instr::Unary(Unary::Activation(Activation::Silu), X)];
    if alpha != 1.0 {
        code = vec![
            Instr::Binary(Binary::Mul, X, Arg::Imm(alpha)),
            Instr::Unary(Unary::Activation(Activation::Sigmoid), t(0)),
            Instr::Binary(Binary::Mul, X, t(1)),
        ];
    }
    let domain = if name == "Swish" { "" } else { "com.microsoft" };
    Ok(Arc::new(Elementwise { domain, ..named(name, attributes, code) }))
}

fn biased(activation: Activation) -> Expr {
    Expr::new(vec![
        Instr::Binary(Binary::Add, X, Arg::Input(1)),
        Instr::Unary(Unary::Activation(activation), t(0)),
    ])
}

fn bias_gelu() -> Parsed {
    let op = named("BiasGelu", Vec::new(), biased(Activation::Gelu).code().to_vec());
    Ok(Arc::new(Elementwise { domain: "com.microsoft", ..op }))
}

fn microsoft_gelu() -> Parsed {
    let op = Elementwise::new(Expr::activation(Activation::Gelu));
    Ok(Arc::new(Elementwise { domain: "com.microsoft", ..op }))
}

fn fast_gelu() -> Parsed {
    let form = Form::OptionalSecond {
        with: biased(Activation::GeluTanh),
        without: Expr::activation(Activation::GeluTanh),
    };
    let domain = "com.microsoft";
    Ok(Arc::new(Elementwise { name: "FastGelu", domain, attributes: Vec::new(), form }))
}
