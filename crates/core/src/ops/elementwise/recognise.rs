//! Recognising what an expression computes, however it is written.

use super::{Arg, Binary, Elementwise, Instr, Unary};
use crate::ops::Operand;

impl Elementwise {
    /// The operation, when this is one binary instruction on inputs 0 and 1 in order.
    pub fn as_binary(&self, inputs: &[Option<Operand>]) -> Option<Binary> {
        match *self.expr(inputs).code() {
            [Instr::Binary(op, Arg::Input(0), Arg::Input(1))] => Some(op),
            _ => None,
        }
    }

    /// The operation and the number, when this is one binary instruction on an input and a
    /// floating-point constant of one element.
    pub fn as_scalar_binary(&self, inputs: &[Option<Operand>]) -> Option<ScalarBinary> {
        match *self.bound(inputs).code() {
            [Instr::Binary(op, Arg::Input(input), Arg::Imm(scalar))] => {
                Some(ScalarBinary { op, input, scalar, scalar_first: false })
            }
            [Instr::Binary(op, Arg::Imm(scalar), Arg::Input(input))] => {
                Some(ScalarBinary { op, input, scalar, scalar_first: true })
            }
            _ => None,
        }
    }

    /// The function, when this is one unary instruction on input 0.
    pub fn as_unary(&self, inputs: &[Option<Operand>]) -> Option<Unary> {
        match *self.expr(inputs).code() {
            [Instr::Unary(op, Arg::Input(0))] => Some(op),
            _ => None,
        }
    }
}

/// `input op scalar`, or `scalar op input`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScalarBinary {
    /// The operation.
    pub op: Binary,
    /// Index of the input that is not the scalar.
    pub input: usize,
    /// The number.
    pub scalar: f32,
    /// The scalar is the left operand.
    pub scalar_first: bool,
}
