//! Elementwise operators, all one operator over a small expression. Each ONNX operator imports as
//! a short expression; fusing two nodes is composing their expressions.

mod examples;
mod expr;
mod kernel;
mod lanes;
mod onnx;

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use super::{
    AttributeValue, CpuKernel, GpuCaps, GpuKernel, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, Part, PartInput, Permuted, axes, gpu,
};
use crate::tensor::{DType, TensorType};

pub use expr::{Arg, Binary, Expr, Instr, Unary};

pub(super) const SPECS: &[OpSpec] = onnx::SPECS;

/// An operator that computes every output element from the elements at the same place of its
/// inputs, which broadcast to the output by numpy's rules.
#[derive(Clone)]
pub struct Elementwise {
    name: &'static str,
    domain: &'static str,
    attributes: Vec<(&'static str, AttributeValue)>,
    form: Form,
}

/// How the expression follows from the inputs that a node has.
#[derive(Clone, Debug, PartialEq)]
enum Form {
    /// It is always this.
    Fixed(Expr),
    /// The inputs joined by an operation, divided by their number for a mean.
    Variadic { op: Binary, mean: bool },
    /// `min(max(x, low), high)` with either bound optional.
    Clip,
    /// One expression with the second input, another without.
    OptionalSecond { with: Expr, without: Expr },
}

impl Elementwise {
    /// The operator that computes `expr`: a standard ONNX operator where there is one, else the
    /// fused `ai.sparoa` operator.
    pub fn new(expr: Expr) -> Elementwise {
        let (name, domain, attributes) = match onnx::standard(&expr) {
            Some((name, attributes)) => (name, "", attributes),
            None => {
                let text = AttributeValue::String(expr.to_string());
                (onnx::FUSED, "ai.sparoa", vec![("expr", text)])
            }
        };
        Elementwise { name, domain, attributes, form: Form::Fixed(expr) }
    }

    /// The expression over the node's inputs. [`Arg::Input`] counts as the node does.
    pub fn expr(&self, inputs: &[Option<Operand>]) -> Cow<'_, Expr> {
        match &self.form {
            Form::Fixed(expr) => Cow::Borrowed(expr),
            Form::OptionalSecond { with, without } => {
                Cow::Borrowed(if inputs.optional(1).is_some() { with } else { without })
            }
            Form::Clip => {
                let mut code = Vec::new();
                let mut value = Arg::Input(0);
                for (i, op) in [(1, Binary::Max), (2, Binary::Min)] {
                    if inputs.optional(i).is_some() {
                        code.push(Instr::Binary(op, value, Arg::Input(i)));
                        value = Arg::Result(code.len() - 1);
                    }
                }
                if code.is_empty() {
                    code.push(copy(value));
                }
                Cow::Owned(Expr::new(code))
            }
            Form::Variadic { op, mean } => {
                let mut code = Vec::new();
                let mut value = Arg::Input(0);
                for i in 1..inputs.len() {
                    code.push(Instr::Binary(*op, value, Arg::Input(i)));
                    value = Arg::Result(i - 1);
                }
                if code.is_empty() {
                    code.push(copy(value));
                } else if *mean {
                    code.push(Instr::Binary(Binary::Div, value, Arg::Imm(inputs.len() as f32)));
                }
                Cow::Owned(Expr::new(code))
            }
        }
    }

    /// [`Elementwise::expr`] with one-element floating-point constants put in as numbers. The
    /// inputs keep their indices; those replaced are no longer read. Mind that such an input may
    /// have given the output its rank.
    pub fn bound(&self, inputs: &[Option<Operand>]) -> Expr {
        self.expr(inputs)
            .with_inputs(|i| scalar(inputs.optional(i)).map_or(Arg::Input(i), Arg::Imm))
    }
}

/// An instruction that leaves its operand as it is.
fn copy(arg: Arg) -> Instr {
    Instr::Unary(Unary::Activation(sparoa_kernels::Activation::None), arg)
}

/// The value of a constant of one floating-point element (f32 or f16).
fn scalar(operand: Option<&Operand>) -> Option<f32> {
    let value = operand?.constant.as_ref().filter(|t| t.ty().len() == 1)?;
    match value.dtype() {
        DType::F32 => value.as_slice::<f32>().map(|v| v[0]),
        DType::F16 => value.as_slice::<half::f16>().map(|v| v[0].to_f32()),
        _ => None,
    }
}

/// Powers that multiplication computes exactly as well, and faster.
fn simplify(expr: &Expr) -> Expr {
    let mut code: Vec<Instr> = Vec::with_capacity(expr.code().len());
    let mut place = Vec::with_capacity(expr.code().len());
    for instr in expr.code() {
        let moved = instr.map(|arg| match arg {
            Arg::Result(r) => Arg::Result(place[r]),
            other => other,
        });
        match moved {
            Instr::Binary(Binary::Pow, a, Arg::Imm(2.0)) => {
                code.push(Instr::Unary(Unary::Square, a))
            }
            Instr::Binary(Binary::Pow, a, Arg::Imm(3.0)) => {
                code.push(Instr::Unary(Unary::Square, a));
                code.push(Instr::Binary(Binary::Mul, Arg::Result(code.len() - 1), a));
            }
            other => code.push(other),
        }
        place.push(code.len() - 1);
    }
    Expr::new(code)
}

impl Op for Elementwise {
    fn op_type(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        if let Form::Variadic { .. } = self.form {
            for i in 0..inputs.len() {
                inputs.required(i, "operand")?;
            }
        }
        inputs.required(0, "operand")?;
        let types: Vec<Option<DType>> =
            inputs.iter().map(|o| o.as_ref().map(|o| o.ty.dtype)).collect();
        let dtype = self.expr(inputs).infer(&types)?;
        let shape = axes::broadcast(inputs.iter().flatten().map(Operand::shape))?;
        Ok(vec![TensorType::new(dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        self.expr(x.inputs).flops().saturating_mul(x.output(0).len() as u64)
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        // Numbers are f32: an integer's bounds stay operands of its own type.
        let float = x
            .inputs
            .iter()
            .flatten()
            .all(|o| matches!(o.ty.dtype, DType::F32 | DType::F16 | DType::Bool));
        let expr = if float { self.bound(x.inputs) } else { self.expr(x.inputs).into_owned() };
        kernel::prepare(&simplify(&expr), x)
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::elementwise(&simplify(&self.bound(x.inputs)), x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        axes::first_long(&x.output(0).shape)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let output = x.output(0);
        let axis = self.split_axis(x)?;
        let inputs = x.inputs.iter().map(|operand| {
            let Some(operand) = operand else { return PartInput::Whole };
            let shape = operand.shape();
            match (axis + shape.len()).checked_sub(output.rank()) {
                Some(axis) if shape[axis] != 1 => PartInput::Range { axis, range: range.clone() },
                _ => PartInput::Whole,
            }
        });
        Some(Part { inputs: inputs.collect(), op: Arc::new(self.clone()) })
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let inputs = x
            .inputs
            .iter()
            .map(|operand| match operand {
                Some(o) => permuted_operand(o.shape(), perm),
                None => Some(None),
            })
            .collect::<Option<_>>()?;
        Some(Permuted { op: Arc::new(self.clone()), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        self.attributes.clone()
    }

    fn domain(&self) -> &'static str {
        self.domain
    }
}

/// The transposition of an operand that keeps its place when the output is transposed by `perm`.
/// An operand of lower rank keeps its rank; that works unless one of its long axes would have to
/// move into the dimensions that it lacks. `Some(None)`: it may stay as it is.
fn permuted_operand(shape: &[usize], perm: &[usize]) -> Option<Option<Vec<usize>>> {
    let missing = perm.len().checked_sub(shape.len())?;
    if shape.iter().all(|&d| d == 1) {
        return Some(None);
    }
    let long = |axis: usize| axis >= missing && shape[axis - missing] != 1;
    if perm[..missing].iter().any(|&axis| long(axis)) {
        return None;
    }
    // Long axes go where the output's go; size-1 axes fill what is left.
    let mut short = (0..shape.len()).filter(|&a| shape[a] == 1);
    let own: Vec<usize> = perm[missing..]
        .iter()
        .map(|&axis| if long(axis) { Some(axis - missing) } else { short.next() })
        .collect::<Option<_>>()?;
    Some(if own.iter().enumerate().all(|(i, &a)| i == a) { None } else { Some(own) })
}

impl fmt::Debug for Elementwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.form {
            Form::Fixed(expr) => write!(f, "Elementwise({expr})"),
            Form::OptionalSecond { with, .. } => write!(f, "Elementwise({with}; x1 optional)"),
            Form::Clip => f.write_str("Elementwise(Clip)"),
            Form::Variadic { op: _, mean: true } => f.write_str("Elementwise(Mean)"),
            Form::Variadic { op, mean: false } => write!(f, "Elementwise({op:?}...)"),
        }
    }
}

#[cfg(test)]
mod tests;
