//! Other values for the constants of a user's own model file; all else stays as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
    sync::Arc,
};

use super::{
    LoadError, LoadErrorKind, LoadOptions, SaveError, decode,
    export::tensor_proto,
    external::ExternalData,
    mmap,
    proto::{AttributeProto, DataLocation, GraphProto, TensorProto},
    save::{SaveOptions, save_proto},
};
use crate::tensor::Tensor;

/// Why a model could not be written anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The new one cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// Constants that the file does not hold under these names.
    #[error("the file holds no constants named {}", .0.join(", "))]
    Missing(Vec<String>),
}

/// Writes `from` to `to` with other values for the named constants (initialisers and Constant
/// nodes of the main graph). Data that lies beside `from` is written anew beside `to`, as
/// [`super::save`] does.
///
/// # Errors
/// See [`RewriteError`].
pub fn rewrite(
    from: &Path,
    to: &Path,
    constants: &BTreeMap<String, Arc<Tensor>>,
    options: &SaveOptions,
) -> Result<(), RewriteError> {
    let error = |kind| LoadError::new(from.display().to_string(), kind);
    let file = File::open(from).map_err(|e| error(LoadErrorKind::Read(e)))?;
    let map = LoadOptions::default().map_files;
    let contents = mmap::contents(file, map).map_err(|e| error(LoadErrorKind::Read(e)))?;
    let mut proto = decode(contents.bytes).map_err(error)?;
    let folder = from.parent().map(Path::to_owned).unwrap_or_default();
    let mut external = ExternalData::new(Some(folder), map);
    let mut found = BTreeSet::new();
    if let Some(graph) = &mut proto.graph {
        for tensor in &mut graph.initializer {
            if let Some((name, value)) = constants.get_key_value(tensor.name()) {
                *tensor = tensor_proto(name, value);
                found.insert(name);
            }
        }
        for node in graph.node.iter_mut().filter(|n| n.op_type() == "Constant") {
            let Some(output) = node.output.first() else { continue };
            if let Some((name, value)) = constants.get_key_value(output)
                && let Some(t) = node.attribute.iter_mut().find_map(|a| a.t.as_deref_mut())
            {
                *t = tensor_proto("", value);
                found.insert(name);
            }
        }
        bring_inside(graph, &mut external).map_err(error)?;
    }
    let missing = constants.keys().filter(|name| !found.contains(name)).cloned();
    let missing: Vec<String> = missing.collect();
    if !missing.is_empty() {
        return Err(RewriteError::Missing(missing));
    }
    Ok(save_proto(proto, to, options)?)
}

/// Replaces references to external data by the data, in subgraphs too.
fn bring_inside(graph: &mut GraphProto, external: &mut ExternalData) -> Result<(), LoadErrorKind> {
    for tensor in &mut graph.initializer {
        bring(tensor, external)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        let AttributeProto { t, g, tensors, graphs, .. } = attribute;
        for tensor in t.as_deref_mut().into_iter().chain(tensors) {
            bring(tensor, external)?;
        }
        for graph in g.as_deref_mut().into_iter().chain(graphs) {
            bring_inside(graph, external)?;
        }
    }
    Ok(())
}

fn bring(tensor: &mut TensorProto, external: &mut ExternalData) -> Result<(), LoadErrorKind> {
    if tensor.data_location != Some(DataLocation::External.into()) {
        return Ok(());
    }
    let name = tensor.name().to_owned();
    let bytes = super::tensor::declared_type(&name, tensor)?.bytes();
    let (raw, _) = external.read(&name, &tensor.external_data, bytes)?;
    tensor.raw_data = Some(raw);
    tensor.data_location = None;
    tensor.external_data.clear();
    Ok(())
}
