//! Expressions: values as C++ expressions in full parentheses, pointers as what they point to.

use naga::{
    BinaryOperator, Expression, Handle, Literal, MathFunction, Module, Scalar, ScalarKind,
    SwizzleComponent, TypeInner, UnaryOperator, VectorSize,
};

use super::{
    Result, global_name, kind,
    statements::Writer,
    suffix,
    types::{scalar_of, type_name},
    unsupported,
};

/// Field of a vector by index.
const FIELDS: [&str; 4] = ["x", "y", "z", "w"];

impl Writer<'_> {
    fn inner(&self, handle: Handle<Expression>) -> &TypeInner {
        self.info[handle].ty.inner_with(&self.module.types)
    }

    /// The value of an expression.
    pub(super) fn expression(&self, handle: Handle<Expression>) -> Result<String> {
        if self.named.contains(&handle) {
            return Ok(format!("e{}", handle.index()));
        }
        let expression = &self.function.expressions[handle];
        match *expression {
            Expression::Literal(value) => literal(value),
            Expression::Constant(constant) => self.global_constant(constant),
            Expression::Override(handle) => Ok(format!("o{}", handle.index())),
            Expression::ZeroValue(ty) => {
                Ok(format!("{}{{}}", type_name(self.module, &self.module.types[ty].inner)?))
            }
            Expression::Compose { ty, ref components } => {
                let name = type_name(self.module, &self.module.types[ty].inner)?;
                self.compose(&name, components)
            }
            Expression::Splat { size: VectorSize::Quad, value } => {
                Ok(format!("splat({})", self.expression(value)?))
            }
            Expression::Swizzle { size: VectorSize::Quad, vector, pattern } => {
                let vector_text = self.expression(vector)?;
                let name = type_name(self.module, self.inner(handle))?;
                let parts = pattern.map(|c| format!("{vector_text}.{}", field(c)));
                Ok(format!("{name}{{{}}}", parts.join(", ")))
            }
            Expression::FunctionArgument(index) => Ok(format!("a{index}")),
            Expression::Load { pointer } => self.pointer(pointer),
            Expression::Access { base, index } => match self.inner(base) {
                TypeInner::Vector { size: VectorSize::Quad, .. } => {
                    let (base, index) = (self.expression(base)?, self.expression(index)?);
                    Ok(format!("at({base}, {index})"))
                }
                _ => unsupported("an index into a value that is no vector"),
            },
            Expression::AccessIndex { base, index } => match self.inner(base) {
                TypeInner::Vector { .. } => {
                    Ok(format!("{}.{}", self.expression(base)?, FIELDS[index as usize % 4]))
                }
                _ => unsupported("a member of a value that is no vector"),
            },
            Expression::Unary { op, expr } => self.unary(op, expr),
            Expression::Binary { op, left, right } => self.binary(op, left, right),
            Expression::Select { condition, accept, reject } => {
                let (c, yes, no) = (
                    self.expression(condition)?,
                    self.expression(accept)?,
                    self.expression(reject)?,
                );
                Ok(format!("choose({c}, {yes}, {no})"))
            }
            Expression::Math { fun, arg, arg1, arg2, arg3: None } => {
                let arguments: Vec<_> = [Some(arg), arg1, arg2].into_iter().flatten().collect();
                self.math(fun, &arguments)
            }
            Expression::As { expr, kind, convert: Some(4) } => {
                let name = match kind {
                    ScalarKind::Float => "to_f32",
                    ScalarKind::Sint => "to_i32",
                    ScalarKind::Uint => "to_u32",
                    other => return unsupported(format!("conversion to {other:?}")),
                };
                let from = scalar_of(self.inner(expr));
                if from == Some(Scalar::F16) && kind != ScalarKind::Float {
                    return unsupported("conversion of f16 to integers");
                }
                Ok(format!("{name}({})", self.expression(expr)?))
            }
            ref other => unsupported(format!("expression {}", kind(other))),
        }
    }

    fn compose(&self, name: &str, components: &[Handle<Expression>]) -> Result<String> {
        let scalars = components.iter().all(|&c| matches!(self.inner(c), TypeInner::Scalar(_)));
        if components.len() != 4 || !scalars {
            return unsupported("a vector made of anything but four scalars");
        }
        let parts: Result<Vec<_>> = components.iter().map(|&c| self.expression(c)).collect();
        Ok(format!("{name}{{{}}}", parts?.join(", ")))
    }

    /// What a pointer points to, as something to read or assign.
    pub(super) fn pointer(&self, handle: Handle<Expression>) -> Result<String> {
        match self.function.expressions[handle] {
            Expression::GlobalVariable(global) => Ok(global_name(self.module, global)),
            Expression::LocalVariable(local) => {
                let name = self.function.local_variables[local].name.as_deref();
                Ok(format!("v{}{}", local.index(), suffix(name)))
            }
            Expression::AccessIndex { base, index } => {
                let pointer = self.pointer(base)?;
                match self.pointee(base)? {
                    TypeInner::Vector { .. } => {
                        Ok(format!("{pointer}.{}", FIELDS[index as usize % 4]))
                    }
                    TypeInner::Array { .. } => Ok(format!("{pointer}[{index}]")),
                    TypeInner::Struct { members, .. } => {
                        let name = members[index as usize].name.as_deref();
                        Ok(format!("{pointer}.m{index}{}", suffix(name)))
                    }
                    _ => unsupported("a member of something else than vectors, arrays, structs"),
                }
            }
            Expression::Access { base, index } => {
                let (pointer, index) = (self.pointer(base)?, self.expression(index)?);
                match self.pointee(base)? {
                    TypeInner::Array { .. } => Ok(format!("{pointer}[{index}]")),
                    TypeInner::Vector { .. } => Ok(format!("(&{pointer}.x)[{index}]")),
                    _ => unsupported("an index into something else than vectors and arrays"),
                }
            }
            ref other => unsupported(format!("pointer {}", kind(other))),
        }
    }

    fn pointee(&self, handle: Handle<Expression>) -> Result<&TypeInner> {
        match self.inner(handle) {
            TypeInner::Pointer { base, .. } => Ok(&self.module.types[*base].inner),
            _ => unsupported("a pointer into a vector"),
        }
    }

    fn unary(&self, op: UnaryOperator, operand: Handle<Expression>) -> Result<String> {
        let scalar = scalar_of(self.inner(operand));
        let value = self.expression(operand)?;
        match (op, scalar.map(|s| s.kind)) {
            (UnaryOperator::Negate, Some(ScalarKind::Float)) if scalar != Some(Scalar::F16) => {
                Ok(format!("(-{value})"))
            }
            (UnaryOperator::Negate, Some(ScalarKind::Sint)) if self.is_scalar(operand) => {
                Ok(format!("wrapping_sub(0, {value})"))
            }
            (UnaryOperator::LogicalNot, _) => Ok(format!("(!{value})")),
            (UnaryOperator::BitwiseNot, Some(ScalarKind::Uint)) if self.is_scalar(operand) => {
                Ok(format!("(~{value})"))
            }
            (op, kind) => unsupported(format!("{op:?} of {kind:?}")),
        }
    }

    fn is_scalar(&self, handle: Handle<Expression>) -> bool {
        matches!(self.inner(handle), TypeInner::Scalar(_))
    }

    fn binary(
        &self,
        op: BinaryOperator,
        left: Handle<Expression>,
        right: Handle<Expression>,
    ) -> Result<String> {
        use BinaryOperator as Op;
        let scalar = scalar_of(self.inner(left));
        let scalars = self.is_scalar(left) && self.is_scalar(right);
        let (a, b) = (self.expression(left)?, self.expression(right)?);
        let infix = |text: &str| Ok(format!("({a} {text} {b})"));
        let refuse = || unsupported(format!("{op:?} of {scalar:?} in these forms"));
        let Some(Scalar { kind, width }) = scalar else { return refuse() };
        if kind != ScalarKind::Bool && width != 4 {
            return refuse();
        }
        match (op, kind) {
            (Op::Add, ScalarKind::Sint) if scalars => Ok(format!("wrapping_add({a}, {b})")),
            (Op::Subtract, ScalarKind::Sint) if scalars => Ok(format!("wrapping_sub({a}, {b})")),
            (Op::Multiply, ScalarKind::Sint) if scalars => Ok(format!("wrapping_mul({a}, {b})")),
            (Op::Modulo, ScalarKind::Float) => Ok(format!("math_mod({a}, {b})")),
            (Op::Add, ScalarKind::Float | ScalarKind::Uint) => infix("+"),
            (Op::Subtract, ScalarKind::Float | ScalarKind::Uint) => infix("-"),
            (Op::Multiply, ScalarKind::Float | ScalarKind::Uint) => infix("*"),
            // Kernels divide by sizes, which are at least 1.
            (Op::Divide, ScalarKind::Float | ScalarKind::Uint) => infix("/"),
            (Op::Divide, ScalarKind::Sint) if scalars => infix("/"),
            (Op::Modulo, ScalarKind::Uint | ScalarKind::Sint) if scalars => infix("%"),
            (Op::Equal, _) => infix("=="),
            (Op::NotEqual, _) => infix("!="),
            (Op::Less, _) => infix("<"),
            (Op::LessEqual, _) => infix("<="),
            (Op::Greater, _) => infix(">"),
            (Op::GreaterEqual, _) => infix(">="),
            (Op::LogicalAnd, ScalarKind::Bool) if scalars => infix("&&"),
            (Op::LogicalOr, ScalarKind::Bool) if scalars => infix("||"),
            (Op::And, ScalarKind::Bool) if !scalars => infix("&"),
            (Op::InclusiveOr, ScalarKind::Bool) if !scalars => infix("|"),
            (Op::And, ScalarKind::Bool) => infix("&&"),
            (Op::InclusiveOr, ScalarKind::Bool) => infix("||"),
            (Op::ExclusiveOr, ScalarKind::Bool) if scalars => infix("!="),
            (Op::And, ScalarKind::Uint) if scalars => infix("&"),
            (Op::InclusiveOr, ScalarKind::Uint) if scalars => infix("|"),
            (Op::ExclusiveOr, ScalarKind::Uint) if scalars => infix("^"),
            _ => refuse(),
        }
    }

    fn math(&self, fun: MathFunction, arguments: &[Handle<Expression>]) -> Result<String> {
        use MathFunction as F;
        let scalar = scalar_of(self.inner(arguments[0]));
        let float = scalar == Some(Scalar::F32);
        let name = match fun {
            F::Min => "min",
            F::Max => "max",
            F::Clamp => "clamp",
            F::Abs if scalar != Some(Scalar::U32) => "abs",
            _ if !float => return unsupported(format!("{fun:?} of {scalar:?}")),
            F::Ceil => "ceil",
            F::Floor => "floor",
            F::Round => "round",
            F::Trunc => "trunc",
            F::Sign => "sign",
            F::Sqrt => "sqrt",
            F::InverseSqrt => "inverseSqrt",
            F::Exp => "exp",
            F::Exp2 => "exp2",
            F::Log => "log",
            F::Log2 => "log2",
            F::Pow => "pow",
            F::Sin => "sin",
            F::Cos => "cos",
            F::Tan => "tan",
            F::Atan => "atan",
            F::Sinh => "sinh",
            F::Cosh => "cosh",
            F::Tanh => "tanh",
            F::Fma => "fma",
            F::Dot => "dot",
            other => return unsupported(format!("{other:?}")),
        };
        if !float && !self.is_scalar(arguments[0]) {
            return unsupported(format!("{fun:?} of integer vectors"));
        }
        let values: Result<Vec<_>> = arguments.iter().map(|&a| self.expression(a)).collect();
        Ok(format!("math_{name}({})", values?.join(", ")))
    }
}

fn field(component: SwizzleComponent) -> &'static str {
    FIELDS[component as usize]
}

/// A constant expression of the module.
pub(super) fn constant(module: &Module, handle: Handle<Expression>) -> Result<String> {
    let of = |ty: Handle<naga::Type>| type_name(module, &module.types[ty].inner);
    match &module.global_expressions[handle] {
        Expression::Literal(value) => literal(*value),
        Expression::Constant(inner) => constant(module, module.constants[*inner].init),
        Expression::Override(inner) => Ok(format!("o{}", inner.index())),
        Expression::ZeroValue(ty) => Ok(format!("{}{{}}", of(*ty)?)),
        Expression::Splat { size: VectorSize::Quad, value } => {
            Ok(format!("splat({})", constant(module, *value)?))
        }
        Expression::Compose { ty, components } if components.len() == 4 => {
            let parts: Result<Vec<_>> = components.iter().map(|&c| constant(module, c)).collect();
            Ok(format!("{}{{{}}}", of(*ty)?, parts?.join(", ")))
        }
        other => unsupported(format!("constant expression {}", kind(other))),
    }
}

/// An override's value as a literal of its type.
pub(super) fn literal_of(inner: &TypeInner, value: f64) -> Result<String> {
    let whole = value.fract() == 0.0;
    match inner {
        TypeInner::Scalar(Scalar::F32) => literal(Literal::F32(value as f32)),
        TypeInner::Scalar(Scalar::U32) if whole && (0.0..=f64::from(u32::MAX)).contains(&value) => {
            literal(Literal::U32(value as u32))
        }
        TypeInner::Scalar(Scalar::I32)
            if whole && (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value) =>
        {
            literal(Literal::I32(value as i32))
        }
        TypeInner::Scalar(Scalar::BOOL) => literal(Literal::Bool(value != 0.0)),
        other => unsupported(format!("override {value} of type {other:?}")),
    }
}

/// A literal; floats by their bits where they are no numbers.
pub(super) fn literal(value: Literal) -> Result<String> {
    match value {
        Literal::F32(v) if v.is_finite() => Ok(format!("({v:e}f)")),
        Literal::F32(v) => Ok(format!("__int_as_float(0x{:08x})", v.to_bits())),
        Literal::U32(v) => Ok(format!("{v}u")),
        Literal::I32(i32::MIN) => Ok("(-2147483647 - 1)".to_owned()),
        Literal::I32(v) => Ok(format!("({v})")),
        Literal::Bool(v) => Ok(v.to_string()),
        other => unsupported(format!("literal {other:?}")),
    }
}
