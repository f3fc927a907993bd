//! AttributeProto -> AttributeValue.

use std::sync::Arc;

use super::{
    LoadErrorKind,
    proto::{AttributeProto, AttributeType, GraphProto, NodeProto},
    tensor::TensorReader,
};
use crate::{
    ops::AttributeValue,
    tensor::{DType, Tensor},
};

/// An attribute as read: a value, or a graph that the importer has yet to import.
pub(super) enum Parsed<'p> {
    Value(AttributeValue),
    Graph(&'p GraphProto),
}

/// Reads one attribute of a node. `node` is the node's unique name.
pub(super) fn read<'p>(
    proto: &'p AttributeProto,
    node: &str,
    op_type: &str,
    tensors: &mut TensorReader,
) -> Result<Parsed<'p>, LoadErrorKind> {
    let fail = |cause: String| LoadErrorKind::Attribute {
        node: node.to_owned(),
        op_type: op_type.to_owned(),
        attribute: proto.name().to_owned(),
        cause,
    };
    let kind = kind(proto).map_err(fail)?;
    let missing = || fail("declares a type, but holds no value of it".to_owned());
    let text = |bytes: &bytes::Bytes| {
        String::from_utf8(bytes.to_vec()).map_err(|_| fail("is not valid UTF-8".to_owned()))
    };
    Ok(Parsed::Value(match kind {
        AttributeType::Float => AttributeValue::Float(proto.f.unwrap_or_default()),
        AttributeType::Int => AttributeValue::Int(proto.i.unwrap_or_default()),
        AttributeType::String => match &proto.s {
            Some(bytes) => AttributeValue::String(text(bytes)?),
            None => AttributeValue::String(String::new()),
        },
        AttributeType::Floats => AttributeValue::Floats(proto.floats.clone()),
        AttributeType::Ints => AttributeValue::Ints(proto.ints.clone()),
        AttributeType::Strings => {
            AttributeValue::Strings(proto.strings.iter().map(text).collect::<Result<_, _>>()?)
        }
        AttributeType::Tensor => {
            let tensor = proto.t.as_deref().ok_or_else(missing)?;
            let name = format!("{node}.{}", proto.name());
            AttributeValue::Tensor(Arc::new(tensors.read(&name, tensor)?))
        }
        AttributeType::SparseTensor => {
            let tensor = proto.sparse_tensor.as_deref().ok_or_else(missing)?;
            let name = format!("{node}.{}", proto.name());
            AttributeValue::Tensor(Arc::new(tensors.read_sparse(&name, tensor)?))
        }
        AttributeType::Graph => return Ok(Parsed::Graph(proto.g.as_deref().ok_or_else(missing)?)),
        other => {
            return Err(fail(format!("attributes of kind {other:?} are not supported")));
        }
    }))
}

/// The kind, inferred from the fields where an old writer leaves it out.
fn kind(proto: &AttributeProto) -> Result<AttributeType, String> {
    if proto.ref_attr_name.as_ref().is_some_and(|r| !r.is_empty()) {
        return Err("refers to a function's attribute, but is in no function".to_owned());
    }
    let declared = AttributeType::try_from(proto.r#type.unwrap_or(0))
        .map_err(|_| format!("has the unknown kind {}", proto.r#type.unwrap_or(0)))?;
    if declared != AttributeType::Undefined {
        return Ok(declared);
    }
    let present = [
        (proto.f.is_some(), AttributeType::Float),
        (proto.i.is_some(), AttributeType::Int),
        (proto.s.is_some(), AttributeType::String),
        (proto.t.is_some(), AttributeType::Tensor),
        (proto.g.is_some(), AttributeType::Graph),
        (!proto.floats.is_empty(), AttributeType::Floats),
        (!proto.ints.is_empty(), AttributeType::Ints),
        (!proto.strings.is_empty(), AttributeType::Strings),
        (proto.sparse_tensor.is_some(), AttributeType::SparseTensor),
    ];
    let mut kinds = present.iter().filter(|(p, _)| *p).map(|(_, k)| *k);
    match (kinds.next(), kinds.next()) {
        (Some(kind), None) => Ok(kind),
        _ => Err("has no type, and its fields do not tell it".to_owned()),
    }
}

/// The tensor of a `Constant` node, in whichever of its attribute forms.
pub(super) fn constant(
    node: &NodeProto,
    name: &str,
    tensors: &mut TensorReader,
) -> Result<Tensor, LoadErrorKind> {
    let fail = |attribute: &str, cause: &str| LoadErrorKind::Attribute {
        node: name.to_owned(),
        op_type: "Constant".to_owned(),
        attribute: attribute.to_owned(),
        cause: cause.to_owned(),
    };
    let [attribute] = &node.attribute[..] else {
        return Err(fail("value", "a constant has exactly one value attribute"));
    };
    let known = [
        "value",
        "sparse_value",
        "value_float",
        "value_floats",
        "value_int",
        "value_ints",
        "value_string",
        "value_strings",
    ];
    if !known.contains(&attribute.name()) {
        return Err(fail(attribute.name(), "is not known to this operator"));
    }
    let Parsed::Value(value) = read(attribute, name, "Constant", tensors)? else {
        return Err(fail(attribute.name(), "a graph is no constant"));
    };
    Ok(match value {
        AttributeValue::Tensor(tensor) => Arc::unwrap_or_clone(tensor),
        AttributeValue::Float(v) => Tensor::scalar(v),
        AttributeValue::Int(v) => Tensor::scalar(v),
        AttributeValue::Floats(v) => Tensor::from_slice([v.len()], &v),
        AttributeValue::Ints(v) => Tensor::from_slice([v.len()], &v),
        _ => {
            let names: Vec<_> = DType::ALL.iter().map(|d| d.name()).collect();
            let cause = format!("strings are not supported (supported: {})", names.join(", "));
            return Err(fail(attribute.name(), &cause));
        }
    })
}
