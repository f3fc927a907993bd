//! ONNX files: [`load`] turns one into a [`Model`], [`save()`] writes one, [`annotate()`] adds
//! metadata to one. Nothing here knows a single operator: those are found in [`crate::ops`].
//!
//! A model file is hostile until proven otherwise: sizes are checked before they are used,
//! external data stays inside the model's folder, and [`LoadOptions`] bounds what a file may ask
//! for. Decoding costs memory in proportion to the file (at most some hundred bytes for each
//! byte of an adversarial file; far less than one, thanks to mapping, for a real one).

#![deny(clippy::as_conversions)]

mod annotate;
mod attribute;
mod error;
mod export;
mod external;
mod functions;
mod import;
mod missing;
mod mmap;
mod names;
mod opset;
pub mod proto;
mod rewrite;
mod save;
mod sort;
mod tensor;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;

use self::{
    external::ExternalData, functions::Budget, import::Importer, mmap::Contents, opset::Opsets,
    proto::ModelProto, tensor::TensorReader,
};
use crate::{ir::Model, tensor::Tensor};

pub use annotate::{NodeMetadata, annotate};
pub use error::{LoadError, LoadErrorKind, MissingOperator};
pub use opset::{NEWEST_ACCEPTED_OPSET, NEWEST_OPSET, OLDEST_OPSET};
pub use rewrite::{RewriteError, rewrite};
pub use save::{SaveError, SaveOptions, Saveable, save, to_bytes};

/// Limits and choices for loading.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Most nodes, those in subgraphs and inlined functions included.
    pub max_nodes: usize,
    /// Most bytes of one tensor or declared input.
    pub max_tensor_bytes: usize,
    /// Deepest nesting of subgraphs, and of function calls.
    pub max_depth: usize,
    /// Map large files instead of reading them. A mapped file must not be changed or truncated
    /// by anyone while the model lives; set this to false where that cannot be promised.
    pub map_files: bool,
}

impl Default for LoadOptions {
    /// A million nodes, 16 GiB a tensor, 16 levels, files mapped.
    fn default() -> LoadOptions {
        LoadOptions {
            max_nodes: 1_000_000,
            max_tensor_bytes: usize::try_from(16u64 << 30).unwrap_or(usize::MAX / 2),
            max_depth: 16,
            map_files: true,
        }
    }
}

/// Loads a model file. External data is looked for in the file's folder.
///
/// # Errors
/// [`LoadError`] names the file, the node or tensor, the cause and the remedy.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Model, LoadError> {
    let error = |kind| LoadError::new(path.display().to_string(), kind);
    let file = File::open(path).map_err(|e| error(LoadErrorKind::Read(e)))?;
    let contents =
        mmap::contents(file, options.map_files).map_err(|e| error(LoadErrorKind::Read(e)))?;
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    decode_and_import(contents, Some(folder), options).map_err(error)
}

/// Loads a model from memory. External data is refused unless `base_dir` says where it lies.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(
    bytes: impl Into<Bytes>,
    base_dir: Option<&Path>,
    options: &LoadOptions,
) -> Result<Model, LoadError> {
    decode_and_import(bytes.into().into(), base_dir.map(Path::to_owned), options)
        .map_err(|kind| LoadError::new("model", kind))
}

/// Decodes a TensorProto file, the form in which ONNX keeps test data (`input_0.pb`).
///
/// # Errors
/// When it is damaged, of an unsupported element type, or refers to external data.
pub fn tensor_from_bytes(bytes: impl Into<Bytes>) -> Result<Tensor, LoadError> {
    let error = |kind| LoadError::new("tensor", kind);
    let proto = proto::TensorProto::decode(bytes.into())
        .map_err(|e| error(LoadErrorKind::Decode(e.to_string())))?;
    let mut reader = TensorReader {
        model: Contents::default(),
        external: ExternalData::new(None, false),
        max_bytes: LoadOptions::default().max_tensor_bytes,
    };
    reader.read(proto.name(), &proto).map_err(error)
}

fn decode_and_import(
    model: Contents,
    folder: Option<PathBuf>,
    options: &LoadOptions,
) -> Result<Model, LoadErrorKind> {
    let proto = decode(model.bytes.clone())?;
    let graph = proto
        .graph
        .as_ref()
        .ok_or_else(|| LoadErrorKind::Decode("it holds no graph".to_owned()))?;
    let opsets = Opsets::parse(&proto.opset_import)?;
    let functions = functions::Functions::new(&proto)?;
    missing::check(graph, &opsets, &functions)?;
    let tensors = TensorReader {
        model,
        external: ExternalData::new(folder, options.map_files),
        max_bytes: options.max_tensor_bytes,
    };
    let budget = Budget::new(options);
    Importer { functions: &functions, tensors, budget }.model(graph, &opsets)
}

/// Decodes without copying tensor contents.
fn decode(bytes: Bytes) -> Result<ModelProto, LoadErrorKind> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(LoadErrorKind::Decode(
            "this is a Git LFS pointer; fetch the file itself with git lfs pull".to_owned(),
        ));
    }
    ModelProto::decode(bytes).map_err(|e| LoadErrorKind::Decode(e.to_string()))
}
