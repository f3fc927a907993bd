//! Structure rules of the repository, checked on the source text: modules of the core name only
//! modules declared before them, every file opens with its purpose, none grows too long.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("workspace exists")
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                rust_files(&path, into);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&workspace().join("crates"), &mut files);
    assert!(files.len() > 50, "found the sources");
    files.sort();
    files
        .into_iter()
        .map(|p| {
            let text = fs::read_to_string(&p).expect("readable source");
            (p, text)
        })
        .collect()
}

#[test]
fn every_file_says_what_it_is() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
    }
}

#[test]
fn no_file_passes_600_lines() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines: split it", path.display());
    }
}

#[test]
fn vague_names_are_absent() {
    for (path, _) in sources() {
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("utf-8 file name");
        let vague = ["utils", "util", "common", "helpers", "helper", "misc", "manager"];
        assert!(!vague.contains(&stem), "{}: name it after what it holds", path.display());
    }
}

/// Core's modules in pipeline order, as lib.rs declares them.
fn core_modules() -> Vec<String> {
    let lib = fs::read_to_string(workspace().join("crates/core/src/lib.rs")).expect("lib.rs");
    lib.lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn core_modules_point_left() {
    let modules = core_modules();
    assert!(modules.len() > 10, "lib.rs lists the modules: {modules:?}");
    // An operator with a body (If, Loop) holds a model and interprets it.
    let allowed = [("ops", "ir")];
    let src = workspace().join("crates/core/src");
    for (path, text) in sources() {
        let Ok(relative) = path.strip_prefix(&src) else { continue };
        // Tests may look forward: they check stages together.
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("utf-8 file name");
        if stem.ends_with("tests") || stem == "testing" {
            continue;
        }
        let first = relative.components().next().expect("not empty").as_os_str();
        let own = first.to_str().expect("utf-8").trim_end_matches(".rs");
        let Some(position) = modules.iter().position(|m| m == own) else { continue };
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for later in &modules[position + 1..] {
            if allowed.contains(&(own, later.as_str())) {
                continue;
            }
            let named = code.contains(&format!("crate::{later}::"))
                || code.contains(&format!("crate::{later};"))
                || imports(code).any(|name| name == *later);
            assert!(!named, "{} names the later module {later}", relative.display());
        }
    }
}

/// First path segments inside `use crate::{...}` groups.
fn imports(code: &str) -> impl Iterator<Item = String> {
    let mut names = Vec::new();
    for group in code.split("use crate::{").skip(1) {
        let mut depth = 0usize;
        let mut name = String::new();
        let mut at_start = true;
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => at_start = true,
                ':' | ' ' | '\n' if depth == 0 && !name.is_empty() => {
                    names.push(std::mem::take(&mut name));
                    at_start = false;
                }
                c if depth == 0 && at_start => name.push(c),
                _ => {}
            }
        }
        if !name.is_empty() {
            names.push(name);
        }
    }
    names.into_iter()
}

#[test]
fn crates_point_left() {
    let order = ["kernels", "core", "gpu", "learn", "sparoa", "cli"];
    let packages =
        ["sparoa-kernels", "sparoa-core", "sparoa-gpu", "sparoa-learn", "sparoa", "sparoa-cli"];
    for (i, folder) in order.iter().enumerate() {
        let manifest = workspace().join("crates").join(folder).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).expect("manifest");
        for later in &packages[i + 1..] {
            let named = text
                .lines()
                .any(|l| l.split(['.', ' ', '=']).next().is_some_and(|name| name == *later));
            assert!(!named, "{folder} depends on the later crate {later}");
        }
    }
}
