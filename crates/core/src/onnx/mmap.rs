//! Read-only mappings of model files: the one place of this crate with unsafe code.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;

/// Files below this size are read: a mapping costs a page table and pins the file.
const READ_BELOW: u64 = 256 * 1024;

/// The contents of a regular file, mapped unless it is small or `map` is false.
///
/// A mapped file must not be changed while the model lives: other processes that write to it
/// change the weights, and truncating it makes reads fail with SIGBUS. Callers who cannot rule
/// that out set [`super::LoadOptions::map_files`] to false.
///
/// # Errors
/// When the file cannot be read or mapped.
pub(super) fn contents(mut file: File, map: bool) -> io::Result<Bytes> {
    let len = file.metadata()?.len();
    if !map || len < READ_BELOW {
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        return Ok(data.into());
    }
    // SAFETY: the mapping is private and read-only, so this process cannot change it. That no
    // other process changes the file meanwhile cannot be enforced; it is documented on
    // `LoadOptions::map_files`, which turns mapping off. Every value read from it is checked
    // again after it has been copied out of the mapping, or is plain data (weights) for which
    // all bit patterns are valid.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
