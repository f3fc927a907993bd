//! A layer as one line of text, for the attribute of an ONNX node:
//! `domain.Name(inputs) attribute=kind:value ...`. An input is the number of one of the node's
//! inputs, `@2x3` for the layer before, read with that shape, or nothing.

use super::{Layer, Source};
use crate::ops::{AttributeValue, Attributes, NEWEST_OPSET, OpError, find};

/// Writes a layer.
pub(super) fn write(layer: &Layer) -> String {
    let op = &layer.op;
    let separator = if op.domain().is_empty() { "" } else { "." };
    let inputs: Vec<String> = layer
        .inputs
        .iter()
        .map(|source| match source {
            Source::Absent => String::new(),
            Source::Input(index) => index.to_string(),
            Source::Previous(shape) => format!("@{}", list(shape, "x")),
        })
        .collect();
    let mut text = format!("{}{separator}{}({})", op.domain(), op.op_type(), inputs.join(","));
    for (name, value) in op.attributes() {
        let value = match value {
            AttributeValue::Int(v) => format!("i:{v}"),
            AttributeValue::Float(v) => format!("f:{v}"),
            AttributeValue::String(v) => format!("s:{v}"),
            AttributeValue::Ints(v) => format!("is:{}", list(&v, ",")),
            AttributeValue::Floats(v) => format!("fs:{}", list(&v, ",")),
            AttributeValue::Strings(v) => format!("ss:{}", list(&v, ",")),
            // No operator that is fused has one.
            AttributeValue::Tensor(_) | AttributeValue::Graph(_) => continue,
        };
        text.push_str(&format!(" {name}={value}"));
    }
    text
}

fn list<T: ToString>(items: &[T], separator: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

/// Reads a layer.
///
/// # Errors
/// When the text is none, or names an operator or attribute that is not known.
pub(super) fn parse(text: &str) -> Result<Layer, OpError> {
    let bad = |what: &str| OpError::invalid(format!("attribute layers: '{text}' {what}"));
    let (head, rest) = text.split_once(')').ok_or_else(|| bad("lacks its inputs"))?;
    let (name, inputs) = head.split_once('(').ok_or_else(|| bad("lacks its inputs"))?;
    let (domain, name) = name.rsplit_once('.').unwrap_or(("", name));
    let spec = find(domain, name).ok_or_else(|| bad("is no known operator"))?;
    let source = |input: &str| -> Option<Source> {
        match (input, input.strip_prefix('@')) {
            ("", _) => Some(Source::Absent),
            (_, Some(shape)) => items(shape, 'x').map(Source::Previous),
            (index, None) => index.parse().ok().map(Source::Input),
        }
    };
    let inputs: Option<Vec<Source>> = match inputs {
        "" => Some(Vec::new()),
        inputs => inputs.split(',').map(source).collect(),
    };
    let inputs = inputs.ok_or_else(|| bad("has inputs that are neither numbers nor shapes"))?;
    let attributes: Option<Vec<_>> = rest.split_whitespace().map(attribute).collect();
    let attributes =
        attributes.ok_or_else(|| bad("has an attribute that is not name=kind:value"))?;
    let opset = if domain.is_empty() { NEWEST_OPSET } else { 1 };
    let attributes = Attributes::new(opset, 1, attributes);
    let op = (spec.parse)(&attributes)?;
    match attributes.unread().first() {
        None => Ok(Layer { op, inputs }),
        Some(unread) => Err(bad(&format!("has the attribute {unread}, which it does not know"))),
    }
}

fn attribute(text: &str) -> Option<(String, AttributeValue)> {
    let (name, value) = text.split_once('=')?;
    let (kind, value) = value.split_once(':')?;
    let value = match kind {
        "i" => AttributeValue::Int(value.parse().ok()?),
        "f" => AttributeValue::Float(value.parse().ok()?),
        "s" => AttributeValue::String(value.to_owned()),
        "is" => AttributeValue::Ints(items(value, ',')?),
        "fs" => AttributeValue::Floats(items(value, ',')?),
        "ss" => AttributeValue::Strings(items(value, ',')?),
        _ => return None,
    };
    Some((name.to_owned(), value))
}

fn items<T: std::str::FromStr>(text: &str, separator: char) -> Option<Vec<T>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(separator).map(|item| item.parse().ok()).collect()
}
