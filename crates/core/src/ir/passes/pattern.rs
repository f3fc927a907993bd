//! What passes look for: operators by name, scalar constants, products and sums as written out by
//! exporters.

use std::sync::Arc;

use super::editor::Editor;
use sparoa_kernels::Activation;

use crate::{
    ir::{NodeId, ValueId},
    ops::{
        self, AttributeValue, Attributes, Op,
        elementwise::{Arg, Binary, Elementwise, Instr, Unary},
    },
    tensor::{DType, Tensor},
};

/// The opset whose meaning operators made by passes have.
const OPSET: u32 = 20;

/// An operator from the registry; `None` when it refuses the attributes.
pub(super) fn make(
    domain: &str,
    name: &str,
    attributes: &[(&str, AttributeValue)],
) -> Option<Arc<dyn Op>> {
    let values = attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    (ops::find(domain, name)?.parse)(&Attributes::new(OPSET, 1, values)).ok()
}

/// Transpose by `perm`.
pub(super) fn transpose_op(perm: &[usize]) -> Arc<dyn Op> {
    let perm = perm.iter().map(|&p| p as i64).collect();
    make("", "Transpose", &[("perm", AttributeValue::Ints(perm))])
        .expect("Transpose is registered and takes a permutation")
}

/// Adds `Reshape(x)` to a shape; `x` itself when it has that shape.
pub(super) fn reshape(
    e: &mut Editor,
    name: &str,
    x: ValueId,
    shape: &[usize],
    origin: Vec<String>,
) -> ValueId {
    if e.shape(x) == shape {
        return x;
    }
    let (dims, op) = reshape_parts(e, name, shape);
    e.add_node(name, op, &[Some(x), Some(dims)], origin).expect("the shapes have equal lengths")
}

/// The shape constant and the operator of a Reshape.
pub(super) fn reshape_parts(e: &mut Editor, name: &str, shape: &[usize]) -> (ValueId, Arc<dyn Op>) {
    let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
    let dims = e.add_constant(format!("{name}_shape"), Tensor::from_slice([dims.len()], &dims));
    // 0 means "keep" unless allowzero says otherwise.
    let op = make("", "Reshape", &[("allowzero", AttributeValue::Int(1))])
        .expect("Reshape is registered");
    (dims, op)
}

/// Adds `Transpose(x)`; `x` itself for the identity.
pub(super) fn transpose(
    e: &mut Editor,
    name: &str,
    x: ValueId,
    perm: &[usize],
    origin: Vec<String>,
) -> ValueId {
    if is_identity(perm) {
        return x;
    }
    e.add_node(name, transpose_op(perm), &[Some(x)], origin)
        .expect("the permutation has the value's rank")
}

/// 0, 1, 2, ...
pub(super) fn is_identity(perm: &[usize]) -> bool {
    perm.iter().enumerate().all(|(i, &p)| i == p)
}

/// The permutation that undoes `perm`.
pub(super) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        inverse[p] = i;
    }
    inverse
}

/// The permutation of a Transpose node.
pub(super) fn permutation(e: &Editor, id: NodeId) -> Option<Vec<usize>> {
    let node = e.node(id);
    if node.op.op_type() != "Transpose" {
        return None;
    }
    let rank = e.shape(e.input(id, 0)?).len();
    let attributes = node.op.attributes();
    match attributes.iter().find(|(name, _)| *name == "perm") {
        Some((_, AttributeValue::Ints(perm))) => Some(perm.iter().map(|&p| p as usize).collect()),
        _ => Some((0..rank).rev().collect()),
    }
}

/// The producer of a value if it is an operator of that name.
pub(super) fn made_by(e: &Editor, value: ValueId, op_type: &str) -> Option<NodeId> {
    e.producer(value).filter(|id| e.node(*id).op.op_type() == op_type)
}

/// An integer attribute.
pub(super) fn int(op: &dyn Op, name: &str) -> Option<i64> {
    match op.attributes().into_iter().find(|(n, _)| *n == name)?.1 {
        AttributeValue::Int(v) => Some(v),
        _ => None,
    }
}

/// A float attribute.
pub(super) fn float(op: &dyn Op, name: &str) -> Option<f32> {
    match op.attributes().into_iter().find(|(n, _)| *n == name)?.1 {
        AttributeValue::Float(v) => Some(v),
        _ => None,
    }
}

/// A list attribute.
pub(super) fn ints(op: &dyn Op, name: &str) -> Option<Vec<i64>> {
    match op.attributes().into_iter().find(|(n, _)| *n == name)?.1 {
        AttributeValue::Ints(v) => Some(v),
        _ => None,
    }
}

/// The number in a one-element f32 constant.
pub(super) fn scalar(e: &Editor, value: ValueId) -> Option<f32> {
    let constant = e.constant(value)?;
    (constant.ty().len() == 1).then(|| constant.as_slice::<f32>()?.first().copied())?
}

/// Whether two numbers are the same up to the rounding of an exporter.
pub(super) fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}

/// The node's op_type.
pub(super) fn name(e: &Editor, id: NodeId) -> &'static str {
    e.get(id).map_or("", |n| n.op.op_type())
}

/// The activation that one node computes, and its argument: also bounds by Clip, Min and Max with
/// numbers, and PRelu with one slope.
pub(super) fn activation(e: &Editor, id: NodeId) -> Option<(ValueId, Activation)> {
    let node = e.get(id)?;
    let op = node.op.downcast::<Elementwise>()?;
    let x = e.input(id, 0)?;
    if e.ty(x).dtype != DType::F32 {
        return None;
    }
    if op.op_type() == "PRelu" {
        let alpha = scalar(e, e.input(id, 1)?)?;
        return Some((x, Activation::LeakyRelu { alpha }));
    }
    if !node.inputs.iter().flatten().skip(1).all(|v| scalar(e, *v).is_some()) {
        return None;
    }
    let clip = |min, max| match (min, max) {
        (0.0, f32::INFINITY) => Activation::Relu,
        _ => Activation::Clip { min, max },
    };
    let first = Arg::Input(0);
    let activation = match *op.bound(&e.operands(&node.inputs)).code() {
        [Instr::Unary(Unary::Activation(a), arg)] if arg == first => a,
        [Instr::Binary(Binary::Max, arg, Arg::Imm(min))] if arg == first => {
            clip(min, f32::INFINITY)
        }
        [Instr::Binary(Binary::Min, arg, Arg::Imm(max))] if arg == first => {
            clip(f32::NEG_INFINITY, max)
        }
        [
            Instr::Binary(Binary::Max, arg, Arg::Imm(min)),
            Instr::Binary(Binary::Min, Arg::Result(0), Arg::Imm(max)),
        ] if arg == first => clip(min, max),
        _ => return None,
    };
    Some((x, activation))
}

/// The two inputs of a node of that name.
pub(super) fn binary(e: &Editor, id: NodeId, op_type: &str) -> Option<(ValueId, ValueId)> {
    let node = e.get(id)?;
    match node.inputs[..] {
        [Some(a), Some(b)] if node.op.op_type() == op_type => Some((a, b)),
        _ => None,
    }
}

/// The only input of a node of that name.
pub(super) fn unary(e: &Editor, id: NodeId, op_type: &str) -> Option<ValueId> {
    let node = e.get(id)?;
    match node.inputs[..] {
        [Some(a)] if node.op.op_type() == op_type => Some(a),
        _ => None,
    }
}

/// A value and a one-element constant under a commutative operator, in either order.
pub(super) fn with_scalar(e: &Editor, id: NodeId, op_type: &str) -> Option<(ValueId, f32)> {
    let (a, b) = binary(e, id, op_type)?;
    let pair = match (scalar(e, a), scalar(e, b)) {
        (None, Some(s)) => (a, s),
        (Some(s), None) => (b, s),
        _ => return None,
    };
    // A scalar of higher rank would raise the rank of the result.
    (e.shape(pair.0) == e.shape(e.output(id)?)).then_some(pair)
}

/// The value raised to a constant power, also when written as a product with itself.
pub(super) fn power(e: &Editor, id: NodeId) -> Option<(ValueId, f32)> {
    if let Some((a, b)) = binary(e, id, "Pow") {
        let exponent = match e.constant(b)?.as_slice::<i64>() {
            Some([v]) => *v as f32,
            _ => scalar(e, b)?,
        };
        return Some((a, exponent));
    }
    let (a, b) = binary(e, id, "Mul")?;
    (a == b).then_some((a, 2.0))
}

/// A product pulled apart: a number times values. The nodes between are collected.
#[derive(Debug, Default)]
pub(super) struct Product {
    /// The numeric factor.
    pub(super) coefficient: f32,
    /// The other factors.
    pub(super) factors: Vec<ValueId>,
    /// What is not taken apart.
    stop: Option<ValueId>,
}

/// Pulls apart the product that makes `value`: Mul, Div by a number, Neg. `nodes` receives the
/// nodes taken apart, at most `depth` deep and not `stop`. Factors of fewer elements than the
/// product stay whole.
pub(super) fn product(
    e: &Editor,
    value: ValueId,
    depth: usize,
    stop: Option<ValueId>,
    nodes: &mut Vec<NodeId>,
) -> Product {
    let mut result = Product { coefficient: 1.0, factors: Vec::new(), stop };
    flatten(e, value, &mut result, nodes, depth);
    result
}

fn flatten(e: &Editor, value: ValueId, out: &mut Product, nodes: &mut Vec<NodeId>, depth: usize) {
    let whole = depth == 0 || out.stop == Some(value);
    let made = if whole { None } else { e.producer(value) };
    let Some(id) = made else { return out.factors.push(value) };
    let shape = e.shape(value);
    if let Some((x, s)) = with_scalar(e, id, "Mul") {
        out.coefficient *= s;
        nodes.push(id);
        flatten(e, x, out, nodes, depth - 1);
    } else if let Some((a, b)) = binary(e, id, "Mul")
        && e.shape(a) == shape
        && e.shape(b) == shape
    {
        nodes.push(id);
        flatten(e, a, out, nodes, depth - 1);
        flatten(e, b, out, nodes, depth - 1);
    } else if let Some((a, b)) = binary(e, id, "Div")
        && let Some(s) = scalar(e, b)
        && e.shape(a) == shape
    {
        out.coefficient /= s;
        nodes.push(id);
        flatten(e, a, out, nodes, depth - 1);
    } else if let Some(a) = unary(e, id, "Neg") {
        out.coefficient = -out.coefficient;
        nodes.push(id);
        flatten(e, a, out, nodes, depth - 1);
    } else {
        out.factors.push(value);
    }
}

/// The f32 elements of a constant.
pub(super) fn floats(tensor: &Tensor) -> Option<&[f32]> {
    debug_assert!(tensor.ty().dtype != DType::F16 || tensor.as_slice::<f32>().is_none());
    tensor.as_slice::<f32>()
}
