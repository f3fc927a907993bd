//! Machines written as files for the tests of the checks.

use std::{fs, path::Path};

use sparoa::{Device, DeviceInfo, Snapshot, isa::Isa};

use super::{Check, Status, Subject, Verdict};
use crate::sessions::GpuState;

/// A GPU as an adapter describes it.
pub(super) fn gpu(name: &str, software: bool, unified: bool, features: &[&str]) -> GpuState {
    GpuState::Open(DeviceInfo {
        device: Device::Gpu,
        name: name.to_owned(),
        driver: "Vulkan, Mesa 22.3.6".to_owned(),
        software,
        unified_memory: unified,
        threads: None,
        memory_bytes: None,
        features: features.iter().map(|f| (*f).to_owned()).collect(),
    })
}

/// A machine of files under a temporary folder. A text of `DIR` makes a folder in the file's
/// place, which can be opened and not be read; tests may run as a user who may read all files.
pub(super) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        if *text == "DIR" {
            fs::create_dir_all(path).unwrap();
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// Two threads, nothing measured, no GPU.
pub(super) fn subject(root: &Path) -> Subject<'_> {
    Subject {
        root,
        sensors: Snapshot::default(),
        transfer_ns: None,
        gpu: GpuState::Failed("no driver was found".to_owned()),
        nvml: None,
        energy: Vec::new(),
        threads: 2,
        isa: (Isa::Scalar, Isa::Scalar),
        lp_num_threads: None,
    }
}

/// Files, the status expected, and words of what was found and advised.
pub(super) type Case<'a> = (&'a [(&'a str, &'a str)], Status, &'a str, &'a str);

/// Runs a check on each machine.
pub(super) fn check_cases(check: Check, cases: &[Case<'_>]) {
    for (files, status, found, advice) in cases {
        let root = machine(files);
        expect(&check(&subject(root.path())), *status, found, advice);
    }
}

/// Compares a verdict with what it should say. Whatever is not fine and can be told has advice.
pub(super) fn expect(verdict: &Verdict, status: Status, found: &str, advice: &str) {
    assert_eq!(verdict.status, status, "{verdict:?}");
    assert!(verdict.found.contains(found), "'{found}' is not in {verdict:?}");
    let given = verdict.advice.as_deref().unwrap_or("");
    assert!(given.contains(advice), "'{advice}' is not in {verdict:?}");
    if matches!(status, Status::Warn | Status::Problem) {
        assert!(!given.is_empty(), "no advice: {verdict:?}");
    }
}
