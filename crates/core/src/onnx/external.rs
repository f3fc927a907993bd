//! Tensor data in files beside the model. A model is a hostile input: its external data may only
//! be regular files inside the model's own folder, reached without `..`, symbolic links or hard
//! links, so that no model can make this program read another file.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;

use super::{
    LoadErrorKind,
    mmap::{self, Contents},
    proto::StringStringEntryProto,
};

/// Opens and keeps the external data files of one model.
pub(super) struct ExternalData {
    folder: Option<PathBuf>,
    map: bool,
    files: HashMap<PathBuf, Contents>,
}

/// The `external_data` entries of a tensor.
struct Entries<'a> {
    location: &'a str,
    offset: usize,
    length: Option<usize>,
}

impl ExternalData {
    /// External data relative to `folder`; refused altogether when there is none.
    pub(super) fn new(folder: Option<PathBuf>, map: bool) -> ExternalData {
        ExternalData { folder, map, files: HashMap::new() }
    }

    /// The `needed` bytes that a tensor's entries name, and the file that they are part of.
    pub(super) fn read(
        &mut self,
        tensor: &str,
        entries: &[StringStringEntryProto],
        needed: usize,
    ) -> Result<(Bytes, &Contents), LoadErrorKind> {
        let parsed = parse(entries);
        let location = parsed.as_ref().map_or("", |e| e.location).to_owned();
        let fail = |cause: String| LoadErrorKind::ExternalData {
            tensor: tensor.to_owned(),
            location: location.clone(),
            cause,
        };
        let entries = parsed.map_err(&fail)?;
        if let Some(length) = entries.length.filter(|l| *l != needed) {
            let cause = format!("length is {length} bytes, but type and shape need {needed}");
            return Err(fail(cause));
        }
        let data = self.file(entries.location).map_err(&fail)?;
        let len = data.bytes.len();
        let end = entries.offset.checked_add(needed).filter(|end| *end <= len);
        match end {
            Some(end) => Ok((data.bytes.slice(entries.offset..end), data)),
            None => Err(fail(format!(
                "needs {needed} bytes at offset {}, but the file has {} bytes: it is truncated \
                 or belongs to another model",
                entries.offset, len
            ))),
        }
    }

    fn file(&mut self, location: &str) -> Result<&Contents, String> {
        let Some(folder) = &self.folder else {
            return Err("the model was loaded from memory: say in which folder its data lies, or \
                        save it with the data inside"
                .to_owned());
        };
        let path = contained(location)?;
        if !self.files.contains_key(&path) {
            let file = open_beneath(folder, &path).map_err(|e| open_error(&e))?;
            check_file(&file)?;
            let data =
                mmap::contents(file, self.map).map_err(|e| format!("cannot read it: {e}"))?;
            self.files.insert(path.clone(), data);
        }
        Ok(&self.files[&path])
    }
}

/// Reads the entries; keys beyond the standard ones are refused, since nothing says what they do.
fn parse(entries: &[StringStringEntryProto]) -> Result<Entries<'_>, String> {
    let (mut location, mut offset, mut length) = (None, None, None);
    for entry in entries {
        let value = entry.value.as_deref().unwrap_or("");
        let twice = match entry.key.as_deref().unwrap_or("") {
            "location" => location.replace(value).is_some(),
            "offset" => offset.replace(number("offset", value)?).is_some(),
            "length" => length.replace(number("length", value)?).is_some(),
            // A SHA-1 of the whole file, which writers leave out; nothing depends on it.
            "checksum" => false,
            other => {
                return Err(format!(
                    "unknown key '{other}' (ONNX knows location, offset, length, checksum)"
                ));
            }
        };
        if twice {
            return Err("a key is given twice".to_owned());
        }
    }
    let location = location.ok_or("no location is given")?;
    Ok(Entries { location, offset: offset.unwrap_or(0), length })
}

fn number(key: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| format!("{key} is '{value}', must be a non-negative integer"))
}

/// The location as a relative path of plain names.
fn contained(location: &str) -> Result<PathBuf, String> {
    const REMEDY: &str = "put the file into the model's folder and name it without a path";
    if location.contains('\0') || (cfg!(windows) && location.contains(':')) {
        return Err(format!("not a file name; {REMEDY}"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(location).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(format!("'..' is refused; {REMEDY}")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(format!("an absolute path is refused; {REMEDY}"));
            }
        }
    }
    if path.as_os_str().is_empty() { Err(format!("empty; {REMEDY}")) } else { Ok(path) }
}

fn open_error(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        return "no such file: keep the model's data file in the model's folder".to_owned();
    }
    if is_link_error(error) {
        return "a symbolic link on its path is refused: copy the file itself into the model's \
                folder"
            .to_owned();
    }
    format!("cannot open it: {error}")
}

#[cfg(unix)]
fn is_link_error(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // ENOTDIR: a component-wise walk met a link where a folder should be; EXDEV: openat2 left
    // the folder.
    [Errno::LOOP, Errno::XDEV, Errno::NOTDIR]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

#[cfg(not(unix))]
fn is_link_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// Refuses what is not a plain file with one name. Checked on the opened file, so that nothing
/// can be swapped in between.
fn check_file(file: &File) -> Result<(), String> {
    let meta = file.metadata().map_err(|e| format!("cannot read it: {e}"))?;
    if !meta.is_file() {
        return Err("not a regular file".to_owned());
    }
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&meta) > 1 {
        return Err("the file has several hard links, so it may be a file from elsewhere: copy \
                    it (cp, not ln)"
            .to_owned());
    }
    Ok(())
}

/// Opens `path` (plain names only) below `folder`; no component may be a symbolic link. The
/// kernel does the walk where it can (Linux 5.6), so that no other process can race it.
#[cfg(unix)]
fn open_beneath(folder: &Path, path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};

    let root = open(
        if folder.as_os_str().is_empty() { Path::new(".") } else { folder },
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    #[cfg(target_os = "linux")]
    {
        use rustix::{
            fs::{ResolveFlags, openat2},
            io::Errno,
        };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&root, path, FILE_FLAGS, Mode::empty(), resolve) {
            Ok(file) => return Ok(file.into()),
            // Old kernels, and sandboxes that do not know the call.
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    walk(root, path)
}

/// Never blocks on a FIFO, never follows a link.
#[cfg(unix)]
const FILE_FLAGS: rustix::fs::OFlags = rustix::fs::OFlags::RDONLY
    .union(rustix::fs::OFlags::NOFOLLOW)
    .union(rustix::fs::OFlags::NONBLOCK)
    .union(rustix::fs::OFlags::CLOEXEC);

/// Component by component: every folder is opened without following links, and the next one
/// relative to it.
#[cfg(unix)]
fn walk(root: rustix::fd::OwnedFd, path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, openat};

    let mut folder = root;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let name = part.as_os_str();
        if parts.peek().is_none() {
            return Ok(openat(&folder, name, FILE_FLAGS, Mode::empty())?.into());
        }
        folder = openat(&folder, name, FILE_FLAGS | OFlags::DIRECTORY, Mode::empty())?;
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Without directory handles: refuses links by looking first, which another process could race.
#[cfg(not(unix))]
fn open_beneath(folder: &Path, path: &Path) -> io::Result<File> {
    let mut full = folder.to_owned();
    for part in path.components() {
        full.push(part);
        if full.symlink_metadata()?.file_type().is_symlink() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    File::open(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_stay_inside() {
        for bad in ["../x", "a/../x", "a/../../x", "/etc/passwd", "", ".", "a\0b", "..", "./.."] {
            assert!(contained(bad).is_err(), "{bad:?} must be refused");
        }
        assert_eq!(contained("./w/x.bin"), Ok(PathBuf::from("w/x.bin")));
        assert_eq!(contained("x.data"), Ok(PathBuf::from("x.data")));
    }

    #[test]
    fn entries_are_checked() {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        };
        let location = entry("location", "x");
        for bad in [
            vec![],
            vec![location.clone(), entry("offset", "-1")],
            vec![location.clone(), entry("length", "99999999999999999999999")],
            vec![location.clone(), entry("__class__", "x")],
            vec![location.clone(), location.clone()],
        ] {
            assert!(parse(&bad).is_err());
        }
        let good = [location, entry("offset", "4096"), entry("checksum", "ab")];
        assert_eq!(parse(&good).unwrap().offset, 4096);
    }

    #[cfg(unix)]
    #[test]
    fn the_walk_without_openat2_follows_no_link() {
        use std::{fs, os::unix::fs::symlink};
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/w"), b"ok").unwrap();
        symlink("real", dir.path().join("linked")).unwrap();
        symlink("w", dir.path().join("real/v")).unwrap();
        let root = || {
            use rustix::fs::{Mode, OFlags, open};
            open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        assert!(walk(root(), Path::new("real/w")).is_ok());
        for bad in ["linked/w", "real/v", "linked"] {
            let error = walk(root(), Path::new(bad)).unwrap_err();
            assert!(is_link_error(&error), "{bad}: {error}");
        }
    }
}
