//! External data: what lies in the model's folder is read, everything else is refused, on real
//! files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sparoa_core::{
    onnx::{self, LoadErrorKind, LoadOptions, proto::DataLocation},
    tensor::Tensor,
};

use super::build::{bytes_of, encode, entry, floats, graph, model, node};

/// A folder `model/` with `model.onnx` and `w.bin`, and a secret beside it.
struct Files {
    root: tempfile::TempDir,
}

const WEIGHTS: [f32; 2] = [3.0, 4.0];

impl Files {
    fn new() -> Files {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("model")).unwrap();
        fs::write(root.path().join("secret"), bytes_of(&WEIGHTS)).unwrap();
        fs::write(root.path().join("model/w.bin"), bytes_of(&WEIGHTS)).unwrap();
        Files { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Loads a model `y = x + w` whose `w` has these external data entries.
    fn load(&self, entries: &[(&str, &str)]) -> Result<Tensor, LoadErrorKind> {
        let path = self.path("model/model.onnx");
        fs::write(&path, external_model(&[2], entries)).unwrap();
        let model = onnx::load(&path, &LoadOptions::default()).map_err(|e| *e.kind)?;
        Ok((*model.constants[0].1).clone())
    }

    /// The text of the refusal; a tensor or any other error fails the test.
    fn refused(&self, entries: &[(&str, &str)]) -> String {
        match self.load(entries) {
            Err(e @ LoadErrorKind::ExternalData { .. }) => e.to_string(),
            other => panic!("{entries:?} must be refused, gave {other:?}"),
        }
    }
}

fn external_model(dims: &[i64], entries: &[(&str, &str)]) -> Vec<u8> {
    let mut w = floats("w", dims, &[]);
    w.raw_data = None;
    w.data_location = Some(DataLocation::External.into());
    w.external_data = entries.iter().map(|(k, v)| entry(k, v)).collect();
    let mut graph = graph(vec![node("Add", &["x", "w"], &["y"])], &["x"], &["y"]);
    graph.initializer.push(w);
    encode(&model(graph))
}

#[test]
fn data_in_the_folder_is_read() {
    let files = Files::new();
    let want = Tensor::from_slice([2], &WEIGHTS);
    assert_eq!(files.load(&[("location", "w.bin")]).unwrap(), want);
    let all = [("location", "./w.bin"), ("offset", "0"), ("length", "8"), ("checksum", "00")];
    assert_eq!(files.load(&all).unwrap(), want);
    fs::create_dir(files.path("model/deep")).unwrap();
    fs::write(files.path("model/deep/w"), [vec![0; 64], bytes_of(&WEIGHTS)].concat()).unwrap();
    assert_eq!(files.load(&[("location", "deep/w"), ("offset", "64")]).unwrap(), want);
    // Large enough to be mapped, and at an offset that is not aligned.
    let large = [vec![7; (1 << 20) + 1], bytes_of(&WEIGHTS)].concat();
    fs::write(files.path("model/large"), large).unwrap();
    assert_eq!(files.load(&[("location", "large"), ("offset", "1048577")]).unwrap(), want);
}

#[test]
fn paths_out_of_the_folder_are_refused() {
    let files = Files::new();
    let absolute = files.path("secret").display().to_string();
    for (location, why) in [
        ("../secret", "'..'"),
        ("deep/../../secret", "'..'"),
        ("./../secret", "'..'"),
        ("../model/w.bin", "'..'"),
        (absolute.as_str(), "absolute"),
        ("", "empty"),
        (".", "empty"),
        ("w.bin\0", "not a file name"),
        ("none.bin", "no such file"),
    ] {
        let text = files.refused(&[("location", location)]);
        assert!(text.contains(why), "{text}");
    }
    fs::create_dir(files.path("model/deep")).unwrap();
    assert!(files.refused(&[("location", "deep")]).contains("regular file"));
    assert!(files.refused(&[("location", "w.bin/x")]).contains("external data 'w.bin/x'"));
}

#[cfg(unix)]
#[test]
fn links_are_refused() {
    use std::os::unix::fs::symlink;
    let files = Files::new();
    symlink("../secret", files.path("model/link")).unwrap();
    symlink("w.bin", files.path("model/inner")).unwrap();
    symlink("..", files.path("model/up")).unwrap();
    fs::hard_link(files.path("secret"), files.path("model/hard")).unwrap();
    for (location, why) in [
        ("link", "symbolic link"),
        ("inner", "symbolic link"),
        ("up/secret", "symbolic link"),
        ("up/model/w.bin", "symbolic link"),
        ("hard", "hard links"),
    ] {
        let text = files.refused(&[("location", location)]);
        assert!(text.contains(why), "{location}: {text}");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_reached_through_a_link_is_the_users_choice() {
    let files = Files::new();
    std::os::unix::fs::symlink("model", files.path("alias")).unwrap();
    fs::write(files.path("model/model.onnx"), external_model(&[2], &[("location", "w.bin")]))
        .unwrap();
    assert!(onnx::load(&files.path("alias/model.onnx"), &LoadOptions::default()).is_ok());
}

#[test]
fn entries_must_fit_type_shape_and_file() {
    let files = Files::new();
    let location = ("location", "w.bin");
    for (entries, why) in [
        (&[location, ("offset", "-8")][..], "non-negative"),
        (&[location, ("offset", "18446744073709551608")], "has 8 bytes"),
        (&[location, ("offset", "99999999999999999999999")], "non-negative"),
        (&[location, ("offset", "0x0")], "non-negative"),
        (&[location, ("offset", "4")], "has 8 bytes"),
        (&[location, ("length", "4")], "need 8"),
        (&[location, ("length", "800000000000")], "need 8"),
        (&[location, ("length", "-1")], "non-negative"),
        (&[location, ("basepath", "/")], "unknown key"),
        (&[location, location], "twice"),
        (&[], "no location"),
    ] {
        let text = files.refused(entries);
        assert!(text.contains(why), "{entries:?}: {text}");
    }
    // A shape far larger than the file allocates nothing.
    let huge = external_model(&[1 << 31], &[location]);
    let error = onnx::load_bytes(huge, Some(&files.path("model")), &LoadOptions::default());
    assert!(error.unwrap_err().to_string().contains("truncated"));
}

#[test]
fn a_model_from_memory_has_no_folder() {
    let files = Files::new();
    let bytes = external_model(&[2], &[("location", "w.bin")]);
    let load = |dir: Option<&Path>| onnx::load_bytes(bytes.clone(), dir, &LoadOptions::default());
    assert!(load(None).unwrap_err().to_string().contains("from memory"));
    assert!(load(Some(&files.path("model"))).is_ok());
}
