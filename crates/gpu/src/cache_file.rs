//! Files of compiled kernels: checked when read, replaced whole when written.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::Path,
};

/// Larger files are not of our making.
const MAX_CACHE_BYTES: u64 = 256 << 20;

/// FNV-1a over 8-byte words: stable across builds, unlike the standard hasher.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3).rotate_left(29)
    })
}

/// The data of a file that [`write`] wrote with the same `magic`; `None` where there is none or
/// it is damaged.
pub(crate) fn read(file: &Path, magic: &[u8; 16]) -> Option<Vec<u8>> {
    if fs::metadata(file).ok()?.len() > MAX_CACHE_BYTES {
        return None;
    }
    let bytes = fs::read(file).ok()?;
    let data = bytes.strip_prefix(magic).and_then(|rest| rest.split_first_chunk::<8>());
    match data {
        Some((sum, data)) if u64::from_le_bytes(*sum) == checksum(data) => Some(data.to_vec()),
        _ => {
            tracing::warn!(file = %file.display(), "a cache of compiled kernels is damaged, ignored");
            None
        }
    }
}

/// Writes beside the target and renames, so that a reader sees the old file or the new one.
pub(crate) fn write(file: &Path, magic: &[u8; 16], data: &[u8]) -> io::Result<()> {
    let sum = checksum(data);
    let dir = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut hasher = DefaultHasher::new();
    std::thread::current().id().hash(&mut hasher);
    let unique = format!("{}-{:x}.tmp", std::process::id(), hasher.finish());
    let temporary = file.with_extension(unique);
    let contents = [magic.as_slice(), &sum.to_le_bytes(), data].concat();
    fs::write(&temporary, contents)?;
    fs::rename(&temporary, file).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let magic = b"sparoa-test-----";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub").join("cache.bin");
        write(&file, magic, b"compiled shaders").unwrap();
        assert_eq!(read(&file, magic).as_deref(), Some(b"compiled shaders".as_slice()));
        assert_eq!(read(&file, b"another format--"), None);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!(read(&file, magic), None);
        fs::write(&file, b"short").unwrap();
        assert_eq!(read(&file, magic), None);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary left");
    }
}
