//! The expression that an elementwise operator computes for every output element: straight-line
//! code over inputs, immediates and earlier results.

use std::fmt;

use smallvec::SmallVec;
use sparoa_kernels::Activation;

use crate::{ops::OpError, tensor::DType};

/// An operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Input of the operator.
    Input(usize),
    /// Result of an earlier instruction.
    Result(usize),
    /// A number.
    Imm(f32),
}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Unary {
    Abs,
    Neg,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Erf,
    Floor,
    Ceil,
    /// Nearest integer, halves to even.
    Round,
    /// -1, 0 or 1; NaN stays NaN.
    Sign,
    Square,
    /// Logical not.
    Not,
    BitNot,
    IsNan,
    IsInf {
        /// Counts -inf.
        negative: bool,
        /// Counts +inf.
        positive: bool,
    },
    Activation(Activation),
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// Integers truncate towards zero; division by zero gives 0.
    Div,
    /// NaN if either is NaN.
    Min,
    /// NaN if either is NaN.
    Max,
    Pow,
    /// Remainder with the divisor's sign; 0 when the divisor is 0 (integers).
    Mod,
    /// Remainder with the dividend's sign.
    Fmod,
    And,
    Or,
    Xor,
    BitAnd,
    BitOr,
    BitXor,
    ShiftLeft,
    ShiftRight,
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Binary {
    /// True when the operands may be exchanged.
    pub fn is_commutative(self) -> bool {
        use Binary::*;
        matches!(self, Add | Mul | Min | Max | And | Or | Xor | BitAnd | BitOr | BitXor | Equal)
    }

    /// True when the result is a truth value whatever the operands are.
    fn is_predicate(self) -> bool {
        use Binary::*;
        matches!(self, Equal | Less | LessOrEqual | Greater | GreaterOrEqual | And | Or | Xor)
    }
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// f(a)
    Unary(Unary, Arg),
    /// f(a, b)
    Binary(Binary, Arg, Arg),
    /// b where a is true, else c
    Select(Arg, Arg, Arg),
}

impl Instr {
    /// Its operands in order.
    pub fn args(&self) -> SmallVec<[Arg; 3]> {
        match *self {
            Instr::Unary(_, a) => SmallVec::from_slice(&[a]),
            Instr::Binary(_, a, b) => SmallVec::from_slice(&[a, b]),
            Instr::Select(a, b, c) => SmallVec::from_slice(&[a, b, c]),
        }
    }

    /// The same instruction on other operands.
    pub fn map(&self, mut f: impl FnMut(Arg) -> Arg) -> Instr {
        match *self {
            Instr::Unary(op, a) => Instr::Unary(op, f(a)),
            Instr::Binary(op, a, b) => Instr::Binary(op, f(a), f(b)),
            Instr::Select(a, b, c) => Instr::Select(f(a), f(b), f(c)),
        }
    }

    /// Operations per element.
    fn flops(&self) -> u64 {
        match self {
            Instr::Unary(Unary::Activation(a), _) => match a {
                Activation::None => 0,
                Activation::Relu => 1,
                Activation::Clip { .. } | Activation::LeakyRelu { .. } => 2,
                Activation::HardSwish | Activation::HardSigmoid { .. } => 4,
                Activation::Sigmoid | Activation::Silu | Activation::Tanh => 4,
                Activation::Elu { .. } | Activation::Softplus => 4,
                Activation::Gelu | Activation::GeluTanh | Activation::Mish => 8,
            },
            _ => 1,
        }
    }
}

/// Straight-line code whose last instruction is the result. Never empty; every
/// [`Arg::Result`] names an earlier instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    code: Vec<Instr>,
    inputs: usize,
}

impl Expr {
    /// An expression from its code.
    ///
    /// # Panics
    /// When the code is empty or names a result that is not earlier.
    pub fn new(code: Vec<Instr>) -> Expr {
        assert!(!code.is_empty(), "an expression has an instruction");
        let mut inputs = 0;
        for (i, instr) in code.iter().enumerate() {
            for arg in instr.args() {
                match arg {
                    Arg::Result(r) => assert!(r < i, "instructions use earlier results"),
                    Arg::Input(n) => inputs = inputs.max(n + 1),
                    Arg::Imm(_) => {}
                }
            }
        }
        Expr { code, inputs }
    }

    /// f(input 0)
    pub fn unary(op: Unary) -> Expr {
        Expr::new(vec![Instr::Unary(op, Arg::Input(0))])
    }

    /// f(input 0, input 1)
    pub fn binary(op: Binary) -> Expr {
        Expr::new(vec![Instr::Binary(op, Arg::Input(0), Arg::Input(1))])
    }

    /// An activation of input 0.
    pub fn activation(activation: Activation) -> Expr {
        Expr::unary(Unary::Activation(activation))
    }

    /// The instructions in order.
    pub fn code(&self) -> &[Instr] {
        &self.code
    }

    /// One more than the highest input that is read.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How often input `i` is read.
    pub fn reads(&self, i: usize) -> usize {
        self.code.iter().flat_map(Instr::args).filter(|a| *a == Arg::Input(i)).count()
    }

    /// Operations per output element.
    pub fn flops(&self) -> u64 {
        self.code.iter().map(Instr::flops).sum()
    }

    /// The same expression with its inputs renamed or replaced by numbers.
    pub fn with_inputs(&self, mut f: impl FnMut(usize) -> Arg) -> Expr {
        let mut rename = |arg| match arg {
            Arg::Input(i) => f(i),
            other => other,
        };
        Expr::new(self.code.iter().map(|instr| instr.map(&mut rename)).collect())
    }

    /// This expression with its input `at` computed by `inner`. `inner`'s inputs keep their order
    /// and come first: input `i` of `inner` stays `i`, and this expression's inputs other than
    /// `at` are renamed by `outer_input`, which may name an input of `inner` (a value that both
    /// read).
    pub fn compose(
        &self,
        at: usize,
        inner: &Expr,
        mut outer_input: impl FnMut(usize) -> usize,
    ) -> Expr {
        let shift = inner.code.len();
        let mut code = inner.code.clone();
        code.extend(self.code.iter().map(|instr| {
            instr.map(|arg| match arg {
                Arg::Input(i) if i == at => Arg::Result(shift - 1),
                Arg::Input(i) => Arg::Input(outer_input(i)),
                Arg::Result(r) => Arg::Result(r + shift),
                imm => imm,
            })
        }));
        Expr::new(code)
    }

    /// The element type of the result for inputs of these types (`None`: the input is not read).
    ///
    /// # Errors
    /// When an instruction gets types that do not fit: arithmetic on booleans, operands of two
    /// types, logic on numbers.
    pub fn infer(&self, inputs: &[Option<DType>]) -> Result<DType, OpError> {
        let mut results: Vec<Option<DType>> = Vec::with_capacity(self.code.len());
        for instr in &self.code {
            let of = |arg: Arg| match arg {
                Arg::Input(i) => inputs
                    .get(i)
                    .copied()
                    .flatten()
                    .map(Some)
                    .ok_or_else(|| OpError::invalid(format!("input {i} is missing"))),
                Arg::Result(r) => Ok(results[r]),
                Arg::Imm(_) => Ok(None),
            };
            let ty = match *instr {
                Instr::Unary(op, a) => unary_type(op, of(a)?)?,
                Instr::Binary(op, a, b) => binary_type(op, of(a)?, of(b)?)?,
                Instr::Select(a, b, c) => {
                    if let Some(other) = of(a)?.filter(|&d| d != DType::Bool) {
                        return Err(OpError::invalid(format!(
                            "the condition must be bool, is {other}"
                        )));
                    }
                    same(of(b)?, of(c)?)?
                }
            };
            results.push(ty);
        }
        // Only numbers: an expression over immediates alone is f32.
        Ok(results.last().copied().flatten().unwrap_or(DType::F32))
    }
}

fn same(a: Option<DType>, b: Option<DType>) -> Result<Option<DType>, OpError> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => {
            Err(OpError::invalid(format!("operands have the types {a} and {b}, must have one")))
        }
        _ => Ok(a.or(b)),
    }
}

fn unary_type(op: Unary, a: Option<DType>) -> Result<Option<DType>, OpError> {
    use DType::*;
    let Some(ty) = a else { return Ok(a) };
    let wrong = |need: &str| Err(OpError::invalid(format!("{op:?} takes {need}, not {ty}")));
    match op {
        Unary::Not if ty == Bool => Ok(a),
        Unary::Not => wrong("booleans"),
        Unary::BitNot if ty.is_float() || ty == Bool => wrong("integers"),
        Unary::IsNan | Unary::IsInf { .. } if ty.is_float() => Ok(Some(Bool)),
        Unary::IsNan | Unary::IsInf { .. } => wrong("floats"),
        _ if ty == Bool => wrong("numbers"),
        Unary::BitNot | Unary::Abs | Unary::Neg | Unary::Sign | Unary::Square => Ok(a),
        Unary::Activation(Activation::Relu | Activation::Clip { .. } | Activation::None) => Ok(a),
        Unary::Floor | Unary::Ceil | Unary::Round => Ok(a),
        _ if ty.is_float() => Ok(a),
        _ => Err(OpError::dtype(ty, &[F32, F16, F64])),
    }
}

fn binary_type(op: Binary, a: Option<DType>, b: Option<DType>) -> Result<Option<DType>, OpError> {
    use Binary::*;
    let wrong = |need: &str, ty| Err(OpError::invalid(format!("{op:?} takes {need}, not {ty}")));
    if op == Pow {
        // The exponent may have a type of its own.
        return match a.or(b) {
            Some(ty) if ty == DType::Bool => wrong("numbers", ty),
            _ if b == Some(DType::Bool) => wrong("numbers", DType::Bool),
            ty => Ok(ty),
        };
    }
    let ty = same(a, b)?;
    if let Some(d) = ty {
        match op {
            And | Or | Xor if d != DType::Bool => return wrong("booleans", d),
            And | Or | Xor | Equal => {}
            _ if d == DType::Bool => return wrong("numbers", d),
            BitAnd | BitOr | BitXor | ShiftLeft | ShiftRight if d.is_float() => {
                return wrong("integers", d);
            }
            _ => {}
        }
    }
    Ok(if op.is_predicate() { Some(DType::Bool) } else { ty })
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arg::Input(i) => write!(f, "x{i}"),
            Arg::Result(r) => write!(f, "t{r}"),
            Arg::Imm(v) => write!(f, "{v:?}"),
        }
    }
}

impl fmt::Display for Expr {
    /// `t0 = Sigmoid(x0); Mul(x0, t0)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, instr) in self.code.iter().enumerate() {
            if i + 1 < self.code.len() {
                write!(f, "t{i} = ")?;
            }
            match instr {
                Instr::Unary(Unary::Activation(op), a) => write!(f, "{op:?}({a})")?,
                Instr::Unary(op, a) => write!(f, "{op:?}({a})")?,
                Instr::Binary(op, a, b) => write!(f, "{op:?}({a}, {b})")?,
                Instr::Select(a, b, c) => write!(f, "Select({a}, {b}, {c})")?,
            }
            if i + 1 < self.code.len() {
                f.write_str("; ")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composes_and_prints() {
        // (x0 + x1) * 2, then relu of it minus x0.
        let scaled = Expr::new(vec![
            Instr::Binary(Binary::Add, Arg::Input(0), Arg::Input(1)),
            Instr::Binary(Binary::Mul, Arg::Result(0), Arg::Imm(2.0)),
        ]);
        let outer = Expr::new(vec![
            Instr::Binary(Binary::Sub, Arg::Input(1), Arg::Input(0)),
            Instr::Unary(Unary::Activation(Activation::Relu), Arg::Result(0)),
        ]);
        let whole = outer.compose(1, &scaled, |i| i);
        assert_eq!(
            whole.to_string(),
            "t0 = Add(x0, x1); t1 = Mul(t0, 2.0); t2 = Sub(t1, x0); Relu(t2)"
        );
        assert_eq!((whole.inputs(), whole.flops(), whole.reads(0)), (2, 4, 2));
    }

    #[test]
    fn types_are_checked() {
        let less = Expr::binary(Binary::Less);
        assert_eq!(less.infer(&[Some(DType::I64), Some(DType::I64)]), Ok(DType::Bool));
        assert!(less.infer(&[Some(DType::I64), Some(DType::F32)]).is_err());
        assert!(less.infer(&[Some(DType::I64)]).is_err());
        let pow = Expr::binary(Binary::Pow);
        assert_eq!(pow.infer(&[Some(DType::F32), Some(DType::I64)]), Ok(DType::F32));
        assert!(Expr::unary(Unary::Exp).infer(&[Some(DType::I32)]).is_err());
        assert!(Expr::binary(Binary::And).infer(&[Some(DType::F32), Some(DType::F32)]).is_err());
    }
}
