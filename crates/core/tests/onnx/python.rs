//! Finds the Python reference: `python3` on PATH with the packages a test needs.

use std::{path::Path, process::Command};

/// True when `python3` can import all of `packages`; otherwise says that the test is skipped.
pub fn available(packages: &str) -> bool {
    let check = Command::new("python3").args(["-c", &format!("import {packages}")]).output();
    let ok = check.is_ok_and(|o| o.status.success());
    if !ok {
        println!("skipped: python3 with {packages} is not on PATH");
    }
    ok
}

/// Runs a script of `tests/python`.
pub fn run(script: &str, arguments: &[&Path]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let output = Command::new("python3").arg(path).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} failed:\n{stderr}");
}
