//! Reading small files below the root folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file's text without the white space around it; `None` where it cannot be read.
pub(super) fn text(root: &Path, path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(root.join(path)).ok()?.trim().to_owned())
}

/// Entries of a folder, by name; none where there is no such folder.
pub(super) fn entries(root: &Path, dir: &str) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(root.join(dir)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = read.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    paths
}

/// An entry's own name.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A path as the user knows it, without the root.
pub(super) fn shown(root: &Path, path: &Path) -> String {
    format!("/{}", path.strip_prefix(root).unwrap_or(path).display())
}
