//! What goes wrong outside, as typed errors.

use std::{fs, process::Command};

use sparoa_core::backend::{BackendError, ProgramSpec, View};
use sparoa_gpu::{GpuOptions, WgpuBackend, WgpuOptions, open_gpu};

use crate::device::{Case, gpu, options, pool, values};

/// Set in the child process of [`no_driver`].
const CHILD: &str = "SPAROA_TEST_NO_DRIVER";

#[test]
fn no_driver_is_an_error_that_says_what_to_do() {
    if std::env::var_os(CHILD).is_some() {
        for name in [None, Some("cuda".to_owned())] {
            let options = GpuOptions { name, allow_software: true, ..GpuOptions::default() };
            let error = open_gpu(&options).err().expect("there is no driver");
            assert!(matches!(&error, BackendError::Unavailable(_)), "{error}");
            assert!(error.to_string().contains("install"), "{error}");
        }
        assert!(sparoa_gpu::adapters().is_empty());
        return;
    }
    if cfg!(not(target_os = "linux")) {
        println!("skipped: hides the driver from Linux's Vulkan loader");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "failures::no_driver_is_an_error_that_says_what_to_do"])
        .env(CHILD, "1")
        // CUDA goes no further without its compiler.
        .env("SPAROA_NVRTC", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .env("VK_DRIVER_FILES", "/nonexistent")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn unknown_names_list_the_adapters() {
    let Some(gpu) = gpu() else { return };
    let api = if gpu.info().driver.starts_with("CUDA") { "cuda:" } else { "" };
    let open = |name: &str| {
        open_gpu(&GpuOptions { name: Some(format!("{api}{name}")), ..GpuOptions::default() })
    };
    let error = open("no such adapter").err().unwrap();
    assert!(error.to_string().contains(&gpu.info().name), "{error}");
    open(&gpu.info().name.to_uppercase()).unwrap();
}

#[test]
fn software_adapters_need_permission() {
    let Some(gpu) = gpu() else { return };
    let hardware = sparoa_gpu::adapters().iter().any(|a| !a.software);
    if gpu.info().software && !hardware {
        let error = WgpuBackend::new(&WgpuOptions::default()).err().unwrap();
        assert!(error.to_string().contains("software"), "{error}");
    }
}

#[test]
fn damaged_pipeline_caches_are_ignored_and_replaced() {
    if gpu().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cached = GpuOptions { cache_dir: Some(dir.path().to_owned()), ..options() };
    let case = || Case {
        op: std::sync::Arc::new(sparoa_core::ops::gemm::Linear::default()),
        inputs: vec![Some(values(&[3, 8], 1)), Some(values(&[8, 8], 2))],
        constant: vec![false, true],
    };
    let files =
        || -> Vec<_> { fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).collect() };
    case().check(&*open_gpu(&cached).unwrap(), "first", 0);
    let Some(file) = files().pop() else {
        println!("skipped: the adapter has no pipeline cache");
        return;
    };
    for damage in [&b"garbage"[..], b"", &fs::read(&file).unwrap()[..20]] {
        fs::write(&file, damage).unwrap();
        case().check(&*open_gpu(&cached).unwrap(), "damaged", 0);
        assert!(fs::read(&file).unwrap().len() > damage.len(), "written anew");
    }
    case().check(&*open_gpu(&cached).unwrap(), "warm", 0);
    assert_eq!(files().len(), 1);
}

#[test]
fn plan_defects_are_errors() {
    let Some(gpu) = gpu() else { return };
    let outside = View { slot: 0, offset: 8, bytes: 16 };
    for (spec, what) in [
        (ProgramSpec { slots: vec![16], uploads: vec![outside], ..Default::default() }, "slot"),
        (ProgramSpec { downloads: vec![outside], ..Default::default() }, "slot"),
        (ProgramSpec { segments: vec![0..1], ..Default::default() }, "tasks"),
    ] {
        let error = gpu.load(spec).err().unwrap();
        assert!(error.to_string().contains(what), "{error}");
    }
    let program = gpu.load(ProgramSpec::default()).unwrap();
    assert!(program.launch(0).is_err());
    assert!(program.upload(0, &[], &pool()).is_err());
    assert!(program.download(0, &mut []).is_err());
    assert!(program.time_segment(3).is_err());
}

#[test]
fn memory_that_no_device_has_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let spec = ProgramSpec { slots: vec![1 << 45], ..Default::default() };
    assert!(gpu.load(spec).is_err());
    // The backend is as good as before.
    gpu.load(ProgramSpec { slots: vec![64], ..Default::default() }).unwrap();
}
