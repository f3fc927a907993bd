//! Elementwise expressions printed as WGSL. Dimensions that all operands walk through alike are
//! joined, so that most operators end with one or two; where the innermost one is whole vec4s,
//! so is the arithmetic.

use std::fmt::Write;

use sparoa_kernels::activation::Activation;

use super::{
    Binding, GpuCaps, GpuKernel,
    activation::{MATH, function, params},
    shader::{Shader, fold},
};
use crate::{
    ops::{
        Operands,
        elementwise::{Arg, Binary, Expr, Instr, Unary},
    },
    tensor::DType,
};

/// An input with its element strides over the joined output dimensions.
struct Walk {
    input: usize,
    strides: Vec<usize>,
}

/// What `expr` computes, for f32 operands.
pub(in crate::ops) fn elementwise(
    expr: &Expr,
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    let output = x.output(0);
    let read: Vec<usize> = (0..expr.inputs()).filter(|&i| expr.reads(i) > 0).collect();
    let is_f32 = |i: &usize| x.get(*i).is_some_and(|o| o.ty.dtype == DType::F32);
    if output.dtype != DType::F32 || output.is_empty() || read.len() > 7 || !read.iter().all(is_f32)
    {
        return None;
    }
    let shapes: Vec<&[usize]> = read.iter().map(|&i| x.input(i).shape()).collect();
    let (mut dims, strides) = join(&output.shape, &shapes);
    let mut walks: Vec<Walk> =
        read.iter().zip(strides).map(|(&input, strides)| Walk { input, strides }).collect();
    let last = dims.len() - 1;
    let vector = caps.aligned
        && dims[last].is_multiple_of(4)
        && walks
            .iter()
            .all(|w| w.strides[last] == 0 || w.strides[..last].iter().all(|s| s.is_multiple_of(4)));
    let element = if vector { "vec4<f32>" } else { "f32" };
    if vector {
        dims[last] /= 4;
        for walk in walks.iter_mut().filter(|w| w.strides[last] != 0) {
            walk.strides[..last].iter_mut().for_each(|s| *s /= 4);
        }
    }
    let count: usize = dims.iter().product();
    let threads = if caps.software { 32 } else { caps.threads(count) };
    let (grid, groups_x) = fold(count.div_ceil(threads), caps.max_grid);
    let mut shader = Shader::new("elementwise")
        .buffer("y", Binding::Output(0), element)
        .sizes([("count", count), ("groups_x", groups_x)]);
    let mut body = String::from("    var rest = index;\n");
    for i in (0..dims.len()).rev() {
        shader = shader.size(format!("dim{i}"), dims[i]);
        let index = if i == 0 { "rest" } else { "rest % p.dim$" };
        let line = format!("    let c$ = {index};\n    rest /= p.dim$;\n");
        body.push_str(&line.replace('$', &i.to_string()));
    }
    for walk in &walks {
        let Walk { input, strides } = walk;
        let splat = vector && strides[last] == 0;
        let kind = if splat { "f32" } else { element };
        shader = shader.buffer(format!("x{input}"), Binding::Input(*input), kind);
        let mut at = format!("at_x{input}()");
        for (d, &stride) in strides.iter().enumerate() {
            match stride {
                0 => {}
                1 => write!(at, " + c{d}").ok()?,
                _ => {
                    shader = shader.size(format!("step{input}_{d}"), stride);
                    write!(at, " + c{d} * p.step{input}_{d}").ok()?;
                }
            }
        }
        let load = format!("x{input}[{at}]");
        let load = if splat { format!("vec4<f32>({load})") } else { load };
        writeln!(body, "    let v{input} = {load};").ok()?;
    }
    let mut printer = Printer { shader, helpers: String::from(MATH), vector, bools: Vec::new() };
    for (i, instr) in expr.code().iter().enumerate() {
        let text = printer.instruction(instr)?;
        writeln!(body, "    let t{i} = {text};").ok()?;
    }
    if *printer.bools.last()? {
        return None;
    }
    writeln!(body, "    y[at_y() + index] = t{};", expr.code().len() - 1).ok()?;
    let Printer { shader, helpers, .. } = printer;
    let dispatch = shader
        .define("HELPERS", helpers)
        .define("BODY", body)
        .define("THREADS", threads.to_string())
        .build(include_str!("elementwise.wgsl"), grid)?;
    Some(GpuKernel { dispatches: vec![dispatch], ..GpuKernel::default() })
}

/// Output dimensions and each operand's strides over them, neighbours joined where every operand
/// either passes through both without a gap or repeats over both. At least one dimension.
fn join(output: &[usize], shapes: &[&[usize]]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut dims: Vec<usize> = Vec::new();
    let mut joined = vec![Vec::new(); shapes.len()];
    let own: Vec<Vec<usize>> = shapes
        .iter()
        .map(|shape| {
            let missing = output.len() - shape.len();
            let strides = crate::ops::axes::strides(shape);
            (0..output.len())
                .map(|d| match d.checked_sub(missing) {
                    Some(i) if shape[i] != 1 => strides[i],
                    _ => 0,
                })
                .collect()
        })
        .collect();
    for (d, &dim) in output.iter().enumerate().filter(|(_, dim)| **dim != 1) {
        let continues = joined
            .iter()
            .zip(&own)
            .all(|(joined, own): (&Vec<usize>, _)| joined.last() == Some(&(own[d] * dim)));
        match dims.last_mut() {
            Some(last) if continues => {
                *last *= dim;
                for (joined, own) in joined.iter_mut().zip(&own) {
                    joined.pop();
                    joined.push(own[d]);
                }
            }
            _ => {
                dims.push(dim);
                joined.iter_mut().zip(&own).for_each(|(joined, own)| joined.push(own[d]));
            }
        }
    }
    if dims.is_empty() {
        dims.push(1);
        joined.iter_mut().for_each(|j| j.push(1));
    }
    (dims, joined)
}

struct Printer {
    shader: Shader,
    helpers: String,
    vector: bool,
    /// Which results are truth values.
    bools: Vec<bool>,
}

impl Printer {
    fn arg(&mut self, arg: Arg) -> String {
        match arg {
            Arg::Input(i) => format!("v{i}"),
            Arg::Result(r) => format!("t{r}"),
            Arg::Imm(value) => {
                let name = self.number(value);
                if self.vector { format!("vec4<f32>({name})") } else { name }
            }
        }
    }

    /// A parameter holding `value`, so that one text serves all values.
    fn number(&mut self, value: f32) -> String {
        let name = format!("number{}", self.shader.fields());
        let shader = std::mem::replace(&mut self.shader, Shader::new(""));
        self.shader = shader.float(name.clone(), value);
        format!("p.{name}")
    }

    fn is_bool(&self, arg: Arg) -> bool {
        matches!(arg, Arg::Result(r) if self.bools[r])
    }

    fn instruction(&mut self, instr: &Instr) -> Option<String> {
        let numbers = !instr.args().iter().any(|&a| self.is_bool(a));
        let (text, is_bool) = match *instr {
            Instr::Unary(Unary::Not, a) if self.is_bool(a) => (format!("!{}", self.arg(a)), true),
            Instr::Unary(op, a) if numbers => (self.unary(op, a)?, false),
            Instr::Binary(op, a, b) => self.binary(op, a, b)?,
            Instr::Select(a, b, c) if self.is_bool(a) && self.is_bool(b) == self.is_bool(c) => {
                let (cond, yes, no) = (self.arg(a), self.arg(b), self.arg(c));
                (format!("select({no}, {yes}, {cond})"), self.is_bool(b))
            }
            _ => return None,
        };
        self.bools.push(is_bool);
        Some(text)
    }

    fn unary(&mut self, op: Unary, a: Arg) -> Option<String> {
        let a = self.arg(a);
        let width = if self.vector { "4" } else { "1" };
        let call = |name: &str| Some(format!("{name}({a})"));
        match op {
            Unary::Abs => call("abs"),
            Unary::Neg => call("-"),
            Unary::Exp => call("exp"),
            Unary::Log => call("log"),
            Unary::Sqrt => call("sqrt"),
            Unary::Rsqrt => call("inverseSqrt"),
            Unary::Reciprocal => Some(format!("1.0 / {a}")),
            Unary::Sin => call("sin"),
            Unary::Cos => call("cos"),
            Unary::Tan => call("tan"),
            Unary::Atan => call("atan"),
            Unary::Sinh => call("sinh"),
            Unary::Cosh => call("cosh"),
            Unary::Erf => call(&format!("erf{width}")),
            Unary::Floor => call("floor"),
            Unary::Ceil => call("ceil"),
            Unary::Round => call("round"),
            Unary::Sign => call("sign"),
            Unary::Square => Some(format!("{a} * {a}")),
            Unary::Activation(activation) => {
                if activation == Activation::None {
                    return Some(a);
                }
                let values = params(activation);
                let names = values.map(|v| self.number(v));
                let name = format!("act{}_", self.shader.fields());
                self.helpers.push_str(&function(activation, &name, [&names[0], &names[1]]));
                Some(format!("{name}{width}({a})"))
            }
            // Domain edges and NaN are not reliable in WGSL.
            Unary::Asin | Unary::Acos | Unary::Asinh | Unary::Acosh | Unary::Atanh => None,
            Unary::Not | Unary::BitNot | Unary::IsNan | Unary::IsInf { .. } => None,
        }
    }

    fn binary(&mut self, op: Binary, a: Arg, b: Arg) -> Option<(String, bool)> {
        let bools = (self.is_bool(a), self.is_bool(b));
        let (a, b) = (self.arg(a), self.arg(b));
        let width = if self.vector { "4" } else { "1" };
        let infix = |sign: &str, is_bool: bool| Some((format!("{a} {sign} {b}"), is_bool));
        let call = |name: &str| Some((format!("{name}({a}, {b})"), false));
        if bools == (true, true) {
            return match op {
                Binary::And => infix("&", true),
                Binary::Or => infix("|", true),
                Binary::Xor => infix("!=", true),
                Binary::Equal => infix("==", true),
                _ => None,
            };
        }
        if bools != (false, false) {
            return None;
        }
        match op {
            Binary::Add => infix("+", false),
            Binary::Sub => infix("-", false),
            Binary::Mul => infix("*", false),
            Binary::Div => infix("/", false),
            Binary::Min => call("min"),
            Binary::Max => call("max"),
            Binary::Pow => call(&format!("power{width}")),
            Binary::Mod => Some((format!("{a} - {b} * floor({a} / {b})"), false)),
            Binary::Fmod => Some((format!("{a} - {b} * trunc({a} / {b})"), false)),
            Binary::Equal => infix("==", true),
            Binary::Less => infix("<", true),
            Binary::LessOrEqual => infix("<=", true),
            Binary::Greater => infix(">", true),
            Binary::GreaterOrEqual => infix(">=", true),
            Binary::And | Binary::Or | Binary::Xor => None,
            Binary::BitAnd | Binary::BitOr | Binary::BitXor => None,
            Binary::ShiftLeft | Binary::ShiftRight => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_dimensions() {
        let (dims, strides) = join(&[2, 3, 4], &[&[2, 3, 4], &[4], &[1]]);
        assert_eq!(dims, [6, 4]);
        assert_eq!(strides, [vec![4, 1], vec![0, 1], vec![0, 0]]);
        let (dims, strides) = join(&[2, 3, 4], &[&[2, 3, 4], &[2, 3, 4]]);
        assert_eq!((dims, strides), (vec![24], vec![vec![1], vec![1]]));
        let (dims, strides) = join(&[1, 5, 1, 8], &[&[5, 1, 8], &[5, 1, 1]]);
        assert_eq!((dims, strides), (vec![5, 8], vec![vec![8, 1], vec![1, 0]]));
        assert_eq!(join(&[], &[&[]]), (vec![1], vec![vec![1]]));
    }
}
