//! `--input`: files to tensors, random tensors for the rest.

use std::path::{Path, PathBuf};

use sparoa::{Session, Tensor, TensorType, ValueInfo, random_tensor};

use crate::{
    args::InputArgs,
    arrays,
    error::{CliError, CliResult},
    images::{self, Normalize},
};

/// Where the inputs' values came from, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Every input from a file.
    Files,
    /// Some or all random.
    Random,
}

/// Values for all inputs of a session, by name.
///
/// # Errors
/// When an argument names no input, or a file does not hold what the input wants.
pub fn collect(session: &Session, args: &InputArgs) -> CliResult<(Vec<(String, Tensor)>, Source)> {
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for text in &args.input {
        let (name, path) = split(session, text)?;
        if files.iter().any(|(n, _)| *n == name) {
            return Err(CliError::usage(format!("--input: '{name}' is given twice")));
        }
        files.push((name, path));
    }
    let mut source = Source::Files;
    let mut values = Vec::new();
    for (index, info) in session.inputs().iter().enumerate() {
        let value = match files.iter().find(|(n, _)| *n == info.name) {
            None => {
                source = Source::Random;
                random_tensor(ty(info)?, args.seed.wrapping_add(index as u64))
            }
            Some((_, path)) => from_file(path, info, args.normalize)?,
        };
        values.push((info.name.clone(), session.upload_ready(value)));
    }
    Ok((values, source))
}

/// An input's value from a file.
///
/// # Errors
/// When the file does not hold what the input wants.
pub fn from_file(path: &Path, info: &ValueInfo, normalize: Normalize) -> CliResult<Tensor> {
    let ty = ty(info)?;
    if images::is_image(path) {
        return images::load(path, &info.name, ty, normalize);
    }
    let tensor = array(path, &info.name)?;
    if tensor.ty() != ty {
        let dims: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
        return Err(CliError::input(format!(
            "{}: input '{}' must be {ty}, the file holds {}; convert the file or pass --shape {}:{}",
            path.display(),
            info.name,
            tensor.ty(),
            info.name,
            dims.join("x"),
        )));
    }
    Ok(tensor)
}

/// `--calibrate`: the one input's values, each from a file of the folder.
///
/// # Errors
/// A model with other than one input, a folder without such files, files that do not fit.
pub fn calibration(
    folder: &Path,
    inputs: &[ValueInfo],
    normalize: Normalize,
) -> CliResult<Vec<Vec<Tensor>>> {
    let [input] = inputs else {
        let count = inputs.len();
        return Err(CliError::usage(format!("--calibrate: the model has {count} inputs, not 1")));
    };
    images::in_folder(folder, is_known, KNOWN)?
        .iter()
        .map(|path| Ok(vec![from_file(path, input, normalize)?]))
        .collect()
}

fn ty(info: &ValueInfo) -> CliResult<&TensorType> {
    let unknown = || CliError::input(format!("input '{}' has no known type", info.name));
    info.ty.as_ref().ok_or_else(unknown)
}

/// The kinds of files that [`from_file`] reads.
pub const KNOWN: &str = ".jpg, .png, .npy or .npz";

/// Whether a file is of a kind that [`from_file`] reads.
pub fn is_known(path: &Path) -> bool {
    images::is_image(path) || path.extension().is_some_and(|e| e == "npy" || e == "npz")
}

fn array(path: &Path, name: &str) -> CliResult<Tensor> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => arrays::read_npy(path),
        Some("npz") => arrays::read_npz(path, name),
        _ => Err(CliError::input(format!(
            "{}: unknown kind of input file (known: .npy, .npz, .jpg, .png)",
            path.display()
        ))),
    }
}

/// `NAME=FILE`, or `FILE` for a model with one input.
fn split(session: &Session, text: &str) -> CliResult<(String, PathBuf)> {
    let names: Vec<&str> = session.inputs().iter().map(|i| i.name.as_str()).collect();
    // Names may hold '=' only in theory; a file's path may well.
    if let Some((name, path)) = text.split_once('=') {
        if names.contains(&name) {
            return Ok((name.to_owned(), path.into()));
        }
        if !Path::new(text).exists() {
            return Err(CliError::usage(format!(
                "--input: the model has no input '{name}' (inputs: {})",
                names.join(", ")
            )));
        }
    }
    match names.as_slice() {
        [only] => Ok(((*only).to_owned(), text.into())),
        _ => Err(CliError::usage(format!(
            "--input {text}: write NAME=FILE, the model has several inputs: {}",
            names.join(", ")
        ))),
    }
}

/// Borrowed form for [`Session::run`].
pub fn borrowed(values: &[(String, Tensor)]) -> Vec<(&str, Tensor)> {
    values.iter().map(|(n, t)| (n.as_str(), t.clone())).collect()
}
