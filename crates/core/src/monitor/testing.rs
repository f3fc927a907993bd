//! Trees like `/proc` and `/sys` for the monitor's tests.

use std::{fs, path::Path};

/// A temporary tree.
pub(super) struct Tree(tempfile::TempDir);

impl Tree {
    pub fn new() -> Tree {
        Tree(tempfile::tempdir().unwrap())
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, with the folders it needs.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn dir(&self, path: &str) {
        fs::create_dir_all(self.root().join(path)).unwrap();
    }
}
