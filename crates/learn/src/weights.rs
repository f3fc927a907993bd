//! Weight files: safetensors with one JSON note, read and written with typed errors.
//!
//! A file holds named f32 tensors and, under the metadata key `sparoa`, a JSON object of strings:
//! `format` (the version of this layout), `kind` (which net), what the net needs beyond its shapes,
//! and whatever notes the trainer left. Nothing in a file can cause a panic: sizes are checked
//! against the bytes that are there, and every value must be finite.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::atomic_file;

/// The layout this build writes and reads.
const FORMAT: &str = "1";
/// The metadata key of the JSON note.
const NOTE_KEY: &str = "sparoa";

/// Why weights were not loaded or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be read.
    #[error(
        "{path}: cannot read the weights: {cause}; check the path, or leave it out for the built-in weights"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file cannot be written.
    #[error(
        "{path}: cannot write the weights: {cause}; choose a folder that exists and is writable"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The bytes are no complete safetensors file of f32 tensors.
    #[error("{file}: not an intact weights file: {cause}; copy it again or train again")]
    Corrupt {
        /// The file, or the name of embedded bytes.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// The layout's version, the kind of net or one of its settings is not what this build knows.
    #[error(
        "{file}: `{key}` is {found}, expected {expected}; use the file with the command it was made for, or train again with this version"
    )]
    Setting {
        /// The file, or the name of embedded bytes.
        file: String,
        /// The entry of the note.
        key: String,
        /// What the file says.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A tensor is absent.
    #[error("{file}: tensor `{tensor}` is missing; train again with this version")]
    MissingTensor {
        /// The file, or the name of embedded bytes.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the net needs.
    #[error(
        "{file}: tensor `{tensor}` has shape {found:?}, expected {expected}; train again with this version"
    )]
    WrongShape {
        /// The file, or the name of embedded bytes.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits the rest of the net.
        expected: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error(
        "{file}: tensor `{tensor}` holds a value that is not finite; the training diverged: train again with a lower learning rate"
    )]
    NonFinite {
        /// The file, or the name of embedded bytes.
        file: String,
        /// The tensor.
        tensor: String,
    },
}

/// A tensor of a weight file, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Vec<f32>,
}

/// Named tensors and notes: the contents of a weight file.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    source: String,
    note: BTreeMap<String, String>,
    arrays: BTreeMap<String, Array>,
}

impl Weights {
    /// Empty weights of a kind of net (`predictor`, `actor`, ...).
    pub fn new(kind: &str) -> Weights {
        let note = [("format", FORMAT), ("kind", kind)];
        Weights {
            source: format!("new {kind}"),
            note: note.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            arrays: BTreeMap::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`WeightsError::Read`], [`WeightsError::Corrupt`], [`WeightsError::NonFinite`], or
    /// [`WeightsError::Setting`] where the layout is another version's.
    pub fn load(path: &Path) -> Result<Weights, WeightsError> {
        let bytes =
            fs::read(path).map_err(|cause| WeightsError::Read { path: path.to_owned(), cause })?;
        Weights::from_bytes(&path.display().to_string(), &bytes)
    }

    /// Reads the bytes of a file; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Weights, WeightsError> {
        let corrupt = |cause: String| WeightsError::Corrupt { file: name.to_owned(), cause };
        let said = |e: &dyn std::fmt::Display| corrupt(e.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| said(&e))?;
        let note = header.metadata().as_ref().and_then(|m| m.get(NOTE_KEY));
        let note = note.ok_or_else(|| corrupt(format!("no `{NOTE_KEY}` entry in its metadata")))?;
        let note: BTreeMap<String, String> = serde_json::from_str(note).map_err(|e| said(&e))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| said(&e))?;
        let mut weights = Weights { source: name.to_owned(), note, arrays: BTreeMap::new() };
        weights.expect("format", FORMAT)?;
        for (tensor, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(corrupt(format!("tensor `{tensor}` is {:?}, not F32", view.dtype())));
            }
            let data: Vec<f32> = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            weights.insert(tensor, view.shape(), data);
        }
        weights.check_finite()?;
        Ok(weights)
    }

    /// The bytes of a file with these weights; the same weights give the same bytes.
    ///
    /// # Errors
    /// [`WeightsError::NonFinite`]: weights that could not be loaded are not stored.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WeightsError> {
        self.check_finite()?;
        let corrupt = |cause: String| WeightsError::Corrupt { file: self.source.clone(), cause };
        let bytes: Vec<(&String, Vec<u8>)> = self
            .arrays
            .iter()
            .map(|(name, a)| (name, a.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views: Result<Vec<_>, _> = bytes
            .iter()
            .map(|(name, b)| {
                TensorView::new(Dtype::F32, self.arrays[*name].shape.clone(), b).map(|v| (*name, v))
            })
            .collect();
        let views = views.map_err(|e| corrupt(e.to_string()))?;
        let note = serde_json::to_string(&self.note).map_err(|e| corrupt(e.to_string()))?;
        let metadata = [(NOTE_KEY.to_owned(), note)].into_iter().collect();
        safetensors::serialize(views, Some(metadata)).map_err(|e| corrupt(e.to_string()))
    }

    /// Writes a file; it appears complete or not at all.
    ///
    /// # Errors
    /// [`WeightsError::Write`] or [`WeightsError::NonFinite`].
    pub fn save(&self, path: &Path) -> Result<(), WeightsError> {
        let bytes = self.to_bytes()?;
        atomic_file::write(path, &bytes)
            .map_err(|cause| WeightsError::Write { path: path.to_owned(), cause })
    }

    /// The file, or the name of the bytes, these weights come from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// An entry of the note.
    pub fn note(&self, key: &str) -> Option<&str> {
        self.note.get(key).map(String::as_str)
    }

    /// Adds or replaces an entry of the note.
    pub fn set_note(&mut self, key: &str, value: &str) {
        self.note.insert(key.to_owned(), value.to_owned());
    }

    /// Adds or replaces a tensor. Panics unless `shape` has as many elements as `data`.
    pub fn insert(&mut self, tensor: &str, shape: &[usize], data: Vec<f32>) {
        assert!(shape.iter().product::<usize>() == data.len(), "the shape holds the data");
        self.arrays.insert(tensor.to_owned(), Array { shape: shape.to_vec(), data });
    }

    /// All tensors by name.
    pub fn arrays(&self) -> &BTreeMap<String, Array> {
        &self.arrays
    }

    /// A tensor whatever its shape.
    ///
    /// # Errors
    /// [`WeightsError::MissingTensor`].
    pub fn array(&self, tensor: &str) -> Result<&Array, WeightsError> {
        self.arrays.get(tensor).ok_or_else(|| WeightsError::MissingTensor {
            file: self.source.clone(),
            tensor: tensor.to_owned(),
        })
    }

    /// The elements of a tensor of exactly this shape.
    ///
    /// # Errors
    /// [`WeightsError::MissingTensor`] or [`WeightsError::WrongShape`].
    pub fn tensor(&self, tensor: &str, shape: &[usize]) -> Result<&[f32], WeightsError> {
        let array = self.array(tensor)?;
        if array.shape != shape {
            return Err(self.wrong_shape(tensor, array, format!("{shape:?}")));
        }
        Ok(&array.data)
    }

    /// The shape (rows, columns) of a non-empty matrix.
    ///
    /// # Errors
    /// [`WeightsError::MissingTensor`] or [`WeightsError::WrongShape`].
    pub fn matrix_shape(&self, tensor: &str) -> Result<(usize, usize), WeightsError> {
        let array = self.array(tensor)?;
        match array.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(self.wrong_shape(tensor, array, "a non-empty matrix".to_owned())),
        }
    }

    /// That the note says `value` under `key`.
    ///
    /// # Errors
    /// [`WeightsError::Setting`].
    pub fn expect(&self, key: &str, value: &str) -> Result<(), WeightsError> {
        match self.note(key) {
            Some(found) if found == value => Ok(()),
            found => Err(self.setting(key, found, format!("`{value}`"))),
        }
    }

    /// A whole number of the note within bounds.
    ///
    /// # Errors
    /// [`WeightsError::Setting`].
    pub fn number(
        &self,
        key: &str,
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Result<usize, WeightsError> {
        let found = self.note(key);
        found
            .and_then(|v| v.parse().ok())
            .filter(|n| allowed.contains(n))
            .ok_or_else(|| self.setting(key, found, format!("{allowed:?}")))
    }

    /// The error of an entry of the note that will not do.
    pub(crate) fn setting(&self, key: &str, found: Option<&str>, expected: String) -> WeightsError {
        WeightsError::Setting {
            file: self.source.clone(),
            key: key.to_owned(),
            found: found.map_or("absent".to_owned(), |f| format!("`{f}`")),
            expected,
        }
    }

    fn wrong_shape(&self, tensor: &str, array: &Array, expected: String) -> WeightsError {
        WeightsError::WrongShape {
            file: self.source.clone(),
            tensor: tensor.to_owned(),
            found: array.shape.clone(),
            expected,
        }
    }

    fn check_finite(&self) -> Result<(), WeightsError> {
        match self.arrays.iter().find(|(_, a)| a.data.iter().any(|v| !v.is_finite())) {
            Some((tensor, _)) => {
                Err(WeightsError::NonFinite { file: self.source.clone(), tensor: tensor.clone() })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Weights {
        let mut w = Weights::new("toy");
        w.insert("a", &[2, 3], vec![1.0, -2.5, 0.0, 4.0, 5.0, 6.0]);
        w.insert("b", &[1], vec![7.0]);
        w.set_note("heads", "4");
        w
    }

    #[test]
    fn a_file_gives_back_what_was_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("toy.safetensors");
        sample().save(&path).unwrap();
        let read = Weights::load(&path).unwrap();
        assert_eq!(read.arrays(), sample().arrays());
        assert_eq!(read.note("heads"), Some("4"));
        assert_eq!(read.to_bytes().unwrap(), sample().to_bytes().unwrap());
        // The temporary file is gone.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_file_the_tensor_and_the_remedy() {
        let w = Weights::from_bytes("toy", &sample().to_bytes().unwrap()).unwrap();
        let message = w.tensor("c", &[1]).unwrap_err().to_string();
        assert_eq!(message, "toy: tensor `c` is missing; train again with this version");
        let message = w.tensor("a", &[3, 2]).unwrap_err().to_string();
        assert!(message.starts_with("toy: tensor `a` has shape [2, 3], expected [3, 2];"));
        assert!(matches!(w.matrix_shape("b"), Err(WeightsError::WrongShape { .. })));
        let message = w.expect("kind", "actor").unwrap_err().to_string();
        assert!(message.contains("`kind` is `toy`, expected `actor`"), "{message}");
        assert!(matches!(w.number("heads", 1..=3), Err(WeightsError::Setting { .. })));
        assert!(matches!(w.number("layers", 1..=3), Err(WeightsError::Setting { .. })));
        assert_eq!(w.number("heads", 1..=4).unwrap(), 4);
        let absent = Weights::load(Path::new("/nowhere/w.safetensors")).unwrap_err();
        assert!(absent.to_string().starts_with("/nowhere/w.safetensors: cannot read"));
    }

    #[test]
    fn values_that_are_not_finite_are_refused_both_ways() {
        let mut w = sample();
        w.insert("b", &[1], vec![f32::NAN]);
        assert!(
            matches!(w.to_bytes(), Err(WeightsError::NonFinite { tensor, .. }) if tensor == "b")
        );
        let mut bytes = sample().to_bytes().unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
        let error = Weights::from_bytes("toy", &bytes).unwrap_err();
        assert!(matches!(error, WeightsError::NonFinite { tensor, .. } if tensor == "b"));
    }

    #[test]
    fn another_format_is_refused() {
        let mut w = sample();
        w.set_note("format", "2");
        let error = Weights::from_bytes("toy", &w.to_bytes().unwrap()).unwrap_err();
        assert!(matches!(error, WeightsError::Setting { key, .. } if key == "format"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample().to_bytes().unwrap();
        for len in 0..bytes.len() {
            assert!(Weights::from_bytes("toy", &bytes[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(at in 0usize..400, value: u8) {
            let mut bytes = sample().to_bytes().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = Weights::from_bytes("toy", &bytes);
        }
    }
}
