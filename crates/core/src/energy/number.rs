//! One number from one file of sysfs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::EnergyError;

/// A file's number. `remedy` is what to do where it may not be read.
pub(super) fn read(path: &Path, remedy: &'static str) -> Result<u64, EnergyError> {
    let text = text(path, remedy)?;
    text.parse().map_err(|_| EnergyError::NotANumber {
        path: path.into(),
        text: text.chars().take(40).collect(),
    })
}

/// A file's text without the white space around it.
pub(super) fn text(path: &Path, remedy: &'static str) -> Result<String, EnergyError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ', '\n']).to_owned()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(EnergyError::Denied { path: path.into(), remedy })
        }
        Err(e) => Err(EnergyError::Unreadable { path: path.into(), reason: e.to_string() }),
    }
}

/// A folder's entries by name; none where there is no such folder.
pub(super) fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(found) = fs::read_dir(dir) else { return Vec::new() };
    let mut entries: Vec<(String, PathBuf)> = found
        .filter_map(|entry| entry.ok())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    entries.sort();
    entries
}
