//! Files of `/proc` and `/sys` that are opened once and read again for every sample.

use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
    str::FromStr,
};

/// A file kept open, and its last text.
#[derive(Debug)]
pub(super) struct Watched {
    file: File,
    limit: u64,
    text: Vec<u8>,
}

impl Watched {
    /// Opens a file that can be read now; of its text the first `limit` bytes count.
    pub fn open_limited(path: &Path, limit: u64) -> Option<Watched> {
        let mut watched = Watched { file: File::open(path).ok()?, limit, text: Vec::new() };
        watched.text()?;
        Some(watched)
    }

    /// [`Watched::open_limited`] for the small files that most sensors are.
    pub fn open(path: &Path) -> Option<Watched> {
        Watched::open_limited(path, 64 << 10)
    }

    /// Its text now.
    pub fn text(&mut self) -> Option<&str> {
        self.text.clear();
        self.file.rewind().ok()?;
        (&self.file).take(self.limit).read_to_end(&mut self.text).ok()?;
        std::str::from_utf8(&self.text).ok()
    }

    /// Its text now, as one number.
    pub fn number<T: FromStr>(&mut self) -> Option<T> {
        self.text()?.trim().parse().ok()
    }
}

/// The text of a file, without the white space around it.
pub(super) fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The number that a file holds.
pub(super) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// Entries of a directory, by name; none where there is no such directory.
pub(super) fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(read) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = read.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    paths
}
