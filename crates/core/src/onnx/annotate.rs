//! Adds metadata to a user's own model, so that viewers such as Netron show it per node.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::{
    LoadError, decode,
    names::node_names,
    proto::{NodeProto, StringStringEntryProto},
};

/// Key and value pairs by node name.
pub type NodeMetadata = BTreeMap<String, Vec<(String, String)>>;

/// A copy of a model file in which the named nodes carry further `metadata_props`; a key that a
/// node has already is replaced. All else stays as it is: names, order, and references to
/// external data, which keep their meaning only in the same folder.
///
/// Node names are those of the imported [`crate::ir::Model`]: nameless nodes are `OpType_index`,
/// nodes of a subgraph `outer/inner`. Nodes that come from a model-local function are not in the
/// file one by one; what is said of `call/inner` goes to the call, each key once.
///
/// # Errors
/// When the bytes are not an ONNX model.
pub fn annotate(model: impl Into<Bytes>, metadata: &NodeMetadata) -> Result<Vec<u8>, LoadError> {
    let mut proto = decode(model.into()).map_err(|kind| LoadError::new("model", kind))?;
    let functions: BTreeSet<(String, String)> =
        proto.functions.iter().map(|f| (f.domain().to_owned(), f.name().to_owned())).collect();
    if let Some(graph) = &mut proto.graph {
        nodes(&mut graph.node, "", metadata, &functions);
    }
    Ok(proto.encode_to_vec())
}

fn nodes(
    list: &mut [NodeProto],
    prefix: &str,
    metadata: &NodeMetadata,
    functions: &BTreeSet<(String, String)>,
) {
    for (name, node) in node_names(list).into_iter().zip(list) {
        let name = format!("{prefix}{name}");
        for (key, value) in metadata.get(&name).into_iter().flatten() {
            add(&mut node.metadata_props, key, value, true);
        }
        let inner = format!("{name}/");
        if functions.contains(&(node.domain().to_owned(), node.op_type().to_owned())) {
            let of_body =
                metadata.range(inner.clone()..).take_while(|(k, _)| k.starts_with(&inner));
            for (key, value) in of_body.flat_map(|(_, pairs)| pairs) {
                add(&mut node.metadata_props, key, value, false);
            }
        }
        for graph in node.attribute.iter_mut().filter_map(|a| a.g.as_deref_mut()) {
            nodes(&mut graph.node, &inner, metadata, functions);
        }
    }
}

fn add(props: &mut Vec<StringStringEntryProto>, key: &str, value: &str, replace: bool) {
    match props.iter_mut().find(|p| p.key() == key) {
        Some(entry) if replace => entry.value = Some(value.to_owned()),
        Some(_) => {}
        None => props.push(entry(key, value)),
    }
}

/// A key and value pair as a message.
pub(super) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) }
}
