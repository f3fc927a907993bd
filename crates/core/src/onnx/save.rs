//! Writes a [`Model`] or a [`Graph`] as an ONNX file. Standard operators are written as such;
//! fused ones in the domain `ai.sparoa`, which SparOA reads back.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use prost::Message;

use super::{
    annotate::{NodeMetadata, entry},
    export::{Exporter, graph_proto, model_graph_proto},
    proto::{DataLocation, ModelProto, OperatorSetIdProto, TensorProto},
};
use crate::ir::{Graph, Model};

/// Choices for writing.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// Opset of the standard domain that the file claims. Operators are written with the inputs
    /// and attributes they have in memory, so it must be the opset they were made for.
    pub opset: u32,
    /// Weights of more bytes than this in total go to a file of their own, the model's name with
    /// `.data` appended. A file cannot hold 2 GiB.
    pub max_inline_bytes: usize,
    /// `metadata_props` of nodes, by node name.
    pub node_metadata: NodeMetadata,
    /// `metadata_props` of the model.
    pub metadata: Vec<(String, String)>,
}

impl Default for SaveOptions {
    /// Opset 20 (the one of the built-in models), weights inside up to 1 GiB, no metadata.
    fn default() -> SaveOptions {
        SaveOptions {
            opset: 20,
            max_inline_bytes: 1 << 30,
            node_metadata: NodeMetadata::new(),
            metadata: Vec::new(),
        }
    }
}

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The file system refuses.
    #[error("{}: cannot write: {source}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than protobuf can hold in one file, even with the weights outside.
    #[error(
        "the model is {bytes} bytes, more than the 2 GiB an ONNX file can hold; save it to a path \
         with a lower SaveOptions::max_inline_bytes"
    )]
    TooLarge {
        /// Encoded size.
        bytes: usize,
    },
    /// An operator's attribute that ONNX cannot express.
    #[error("node '{node}' ({op_type}): attribute '{attribute}' holds no ONNX graph")]
    Attribute {
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// The attribute.
        attribute: &'static str,
    },
}

/// What can be written.
#[derive(Clone, Copy, Debug)]
pub enum Saveable<'a> {
    /// A graph with concrete shapes.
    Graph(&'a Graph),
    /// A model with symbolic shapes.
    Model(&'a Model),
}

impl<'a> From<&'a Graph> for Saveable<'a> {
    fn from(graph: &'a Graph) -> Saveable<'a> {
        Saveable::Graph(graph)
    }
}

impl<'a> From<&'a Model> for Saveable<'a> {
    fn from(model: &'a Model) -> Saveable<'a> {
        Saveable::Model(model)
    }
}

/// Writes a model file, and its data file if the weights are large. Existing files are replaced
/// only when the new ones are complete, so a model may be saved over the file it is mapped from.
///
/// # Errors
/// See [`SaveError`].
pub fn save<'a>(
    what: impl Into<Saveable<'a>>,
    path: &Path,
    options: &SaveOptions,
) -> Result<(), SaveError> {
    save_proto(model_proto(what.into(), options)?, path, options)
}

/// [`save`] of a message with all its data inside.
pub(super) fn save_proto(
    mut proto: ModelProto,
    path: &Path,
    options: &SaveOptions,
) -> Result<(), SaveError> {
    let weights: usize = initializers(&mut proto).map(|t| raw_len(t)).sum();
    if weights > options.max_inline_bytes {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".data");
        let data = path.with_file_name(&name);
        replace(&data, |file| externalize(&mut proto, &name.to_string_lossy(), file))?;
    }
    let bytes = encode(&proto)?;
    replace(path, |file| file.write_all(&bytes))
}

/// The model as one ONNX file in memory, weights inside.
///
/// # Errors
/// See [`SaveError`].
pub fn to_bytes<'a>(
    what: impl Into<Saveable<'a>>,
    options: &SaveOptions,
) -> Result<Vec<u8>, SaveError> {
    encode(&model_proto(what.into(), options)?)
}

fn model_proto(what: Saveable<'_>, options: &SaveOptions) -> Result<ModelProto, SaveError> {
    let mut exporter = Exporter::new(&options.node_metadata);
    let graph = match what {
        Saveable::Graph(graph) => graph_proto(&mut exporter, graph)?,
        Saveable::Model(model) => model_graph_proto(&mut exporter, model)?,
    };
    let opset = |domain: &str, version: u32| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version.into()),
    };
    let others = exporter.domains.iter().filter(|d| !d.is_empty()).map(|d| opset(d, 1));
    Ok(ModelProto {
        // The first IR version whose nodes have metadata.
        ir_version: Some(10),
        producer_name: Some("sparoa".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        opset_import: std::iter::once(opset("", options.opset)).chain(others).collect(),
        graph: Some(graph),
        metadata_props: options.metadata.iter().map(|(k, v)| entry(k, v)).collect(),
        ..ModelProto::default()
    })
}

fn encode(proto: &ModelProto) -> Result<Vec<u8>, SaveError> {
    let bytes = proto.encoded_len();
    if i32::try_from(bytes).is_err() {
        return Err(SaveError::TooLarge { bytes });
    }
    Ok(proto.encode_to_vec())
}

/// Initialisers of the main graph; those of subgraphs are small and stay inside.
fn initializers(proto: &mut ModelProto) -> impl Iterator<Item = &mut TensorProto> {
    proto.graph.iter_mut().flat_map(|g| &mut g.initializer)
}

fn raw_len(tensor: &TensorProto) -> usize {
    tensor.raw_data.as_ref().map_or(0, bytes::Bytes::len)
}

/// Moves the data of initialisers into `file`, at offsets from which it can be used in place.
fn externalize(
    proto: &mut ModelProto,
    location: &str,
    file: &mut BufWriter<File>,
) -> io::Result<()> {
    const ALIGN: usize = 64;
    const KEEP_BELOW: usize = 1024;
    let mut offset = 0usize;
    for tensor in initializers(proto) {
        let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= KEEP_BELOW) else { continue };
        let padding = offset.next_multiple_of(ALIGN) - offset;
        file.write_all(&[0; ALIGN][..padding])?;
        file.write_all(&raw)?;
        offset += padding;
        tensor.data_location = Some(DataLocation::External.into());
        tensor.external_data = vec![
            entry("location", location),
            entry("offset", &offset.to_string()),
            entry("length", &raw.len().to_string()),
        ];
        offset += raw.len();
    }
    Ok(())
}

/// Writes a file beside `path` and moves it there.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), SaveError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let result = (|| {
        let mut file = BufWriter::new(File::create_new(&temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(&temporary, path)
    })();
    result.map_err(|source| {
        // Nothing is left behind, unless removing it fails too, which changes nothing here.
        if source.kind() != io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(&temporary);
        }
        SaveError::Write { file: path.to_owned(), source }
    })
}
