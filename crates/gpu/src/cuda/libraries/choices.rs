//! Which computations a library was faster at: kept in memory and in a file for each device, share
//! and set of libraries.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::cache_file;

/// First bytes of the file; the number is the format's.
const MAGIC: &[u8; 16] = b"sparoa-culibs--2";

/// A library's way by its number, or none: our own kernel.
type Choice = Option<usize>;

/// See the module.
#[derive(Default)]
pub(super) struct Choices {
    file: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    choices: BTreeMap<String, Choice>,
    /// There are some that the file lacks.
    unsaved: bool,
}

impl Choices {
    /// Those made before for `device`, if a folder keeps them and they are not wanted `fresh`.
    pub(super) fn new(dir: Option<&Path>, device: &str, fresh: bool) -> Choices {
        let hash = xxhash_rust::xxh3::xxh3_128(device.as_bytes());
        let file = dir.map(|dir| dir.join(format!("cuda-libraries-{hash:032x}.bin")));
        let choices = file.as_deref().filter(|_| !fresh).map(read).unwrap_or_default();
        Choices { file, known: Mutex::new(Known { choices, unsaved: false }) }
    }

    pub(super) fn get(&self, key: &str) -> Option<Choice> {
        self.known.lock().choices.get(key).copied()
    }

    pub(super) fn set(&self, key: String, choice: Choice) {
        let mut known = self.known.lock();
        known.choices.insert(key, choice);
        known.unsaved = true;
    }

    /// Writes them, with what others have written meanwhile.
    pub(super) fn save(&self) {
        let mut known = self.known.lock();
        let Some(file) = self.file.as_deref().filter(|_| known.unsaved) else { return };
        for (key, choice) in read(file) {
            known.choices.entry(key).or_insert(choice);
        }
        known.unsaved = false;
        let lines: String = known.choices.iter().map(|(key, choice)| line(key, *choice)).collect();
        if let Err(error) = cache_file::write(file, MAGIC, lines.as_bytes()) {
            tracing::warn!(file = %file.display(), %error, "choices of libraries were not written");
        }
    }
}

fn line(key: &str, choice: Choice) -> String {
    match choice {
        Some(way) => format!("{way} {key}\n"),
        None => format!("own {key}\n"),
    }
}

/// The choices of a file; none where there is none or it is damaged.
fn read(file: &Path) -> BTreeMap<String, Choice> {
    let text = cache_file::read(file, MAGIC).and_then(|data| String::from_utf8(data).ok());
    let parse = |line: &str| {
        let (way, key) = line.split_once(' ')?;
        let choice = if way == "own" { None } else { Some(way.parse().ok()?) };
        Some((key.to_owned(), choice))
    };
    text.iter().flat_map(|text| text.lines()).filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_of_one_device_are_kept_and_joined() {
        let dir = tempfile::tempdir().unwrap();
        let open = |device: &str| Choices::new(Some(dir.path()), device, false);
        let (first, second) = (open("a"), open("a"));
        first.set("product 1 2".to_owned(), Some(3));
        second.set("convolution".to_owned(), None);
        first.save();
        second.save();
        let both = open("a");
        assert_eq!(both.get("product 1 2"), Some(Some(3)));
        assert_eq!(both.get("convolution"), Some(None));
        assert_eq!((both.get("product 1"), open("b").get("convolution")), (None, None));
        // Who wants them fresh gets none. What is then found takes the old ones' place, the rest stays.
        let fresh = Choices::new(Some(dir.path()), "a", true);
        assert_eq!((fresh.get("product 1 2"), fresh.get("convolution")), (None, None));
        fresh.set("convolution".to_owned(), Some(2));
        fresh.save();
        let both = open("a");
        assert_eq!(
            (both.get("convolution"), both.get("product 1 2")),
            (Some(Some(2)), Some(Some(3)))
        );
        // Nothing is written where nothing is new.
        std::fs::remove_dir_all(dir.path()).unwrap();
        both.save();
        assert!(!dir.path().exists());
    }
}
