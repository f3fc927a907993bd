//! Read-only mappings of model files: the one place of this crate with unsafe code.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use memmap2::Mmap;

use crate::tensor::Source;

/// Files below this size are read: a mapping costs a page table and pins the file.
const READ_BELOW: u64 = 256 * 1024;

/// What a file holds.
#[derive(Clone, Default)]
pub(super) struct Contents {
    /// All of it.
    pub bytes: Bytes,
    /// The mapping behind `bytes`, if they were not read.
    pub mapping: Option<Arc<Mapping>>,
}

impl From<Bytes> for Contents {
    fn from(bytes: Bytes) -> Contents {
        Contents { bytes, mapping: None }
    }
}

impl Contents {
    /// The source of `part` and its place there. `part` is a slice of `bytes`.
    pub fn locate(&self, part: &Bytes) -> Option<(Arc<dyn Source>, Range<usize>)> {
        let mapping = self.mapping.clone()?;
        let start = part.as_ptr().addr().checked_sub(mapping.0.as_ptr().addr())?;
        let end = start.checked_add(part.len()).filter(|end| *end <= mapping.0.len())?;
        Some((mapping, start..end))
    }
}

/// A file in memory, read-only.
pub(super) struct Mapping(Mmap);

impl Source for Mapping {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Drops the whole pages of the range.
    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        let page = rustix::param::page_size();
        let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
        if start < end {
            // SAFETY: the pages belong to a read-only mapping of a file: reading them again
            // brings the same bytes back.
            #[allow(unsafe_code)]
            let done = unsafe {
                self.0.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start,
                    end - start,
                )
            };
            // A hint: where the system declines, the pages stay.
            let _ = done;
        }
    }
}

/// The contents of a regular file, mapped unless it is small or `map` is false.
///
/// A mapped file must not be changed while the model lives: other processes that write to it
/// change the weights, and truncating it makes reads fail with SIGBUS. Callers who cannot rule
/// that out set [`super::LoadOptions::map_files`] to false.
///
/// # Errors
/// When the file cannot be read or mapped.
pub(super) fn contents(mut file: File, map: bool) -> io::Result<Contents> {
    let len = file.metadata()?.len();
    if !map || len < READ_BELOW {
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        return Ok(Bytes::from(data).into());
    }
    // SAFETY: the mapping is private and read-only, so this process cannot change it. That no
    // other process changes the file meanwhile cannot be enforced; it is documented on
    // `LoadOptions::map_files`, which turns mapping off. Every value read from it is checked
    // again after it has been copied out of the mapping, or is plain data (weights) for which
    // all bit patterns are valid.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file)? };
    let mapping = Arc::new(Mapping(map));
    Ok(Contents { bytes: Bytes::from_owner(Shared(mapping.clone())), mapping: Some(mapping) })
}

/// An owner for [`Bytes`].
struct Shared(Arc<Mapping>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_reads_the_same_again() {
        let path = std::env::temp_dir().join(format!("sparoa-mapped-{}", std::process::id()));
        let written: Vec<u8> = (0..=250).cycle().take(300_000).collect();
        assert!(u64::try_from(written.len()).unwrap() > READ_BELOW);
        std::fs::write(&path, &written).unwrap();
        let contents = contents(File::open(&path).unwrap(), true).unwrap();
        assert!(contents.bytes == written);
        let part = contents.bytes.slice(1000..written.len() - 3);
        let (source, range) = contents.locate(&part).expect("large files are mapped");
        assert_eq!(range, 1000..written.len() - 3);
        source.release(range.clone());
        assert!(source.bytes()[range] == part);
        assert!(contents.bytes == written);
        std::fs::remove_file(&path).unwrap();

        let elsewhere = Bytes::from(vec![0u8; 64]);
        assert!(contents.locate(&elsewhere).is_none());
    }
}
