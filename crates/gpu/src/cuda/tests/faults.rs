//! What goes wrong on an NVIDIA GPU, as typed errors, and what works afterwards. Each test runs in a
//! process of its own: a sticky error ends CUDA for all of a process. Needs an NVIDIA GPU.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use cudarc::driver::DriverError;
use sparoa_core::{
    backend::{Accelerator, Arg, BackendError, Program, ProgramSpec, TaskSpec, View},
    ops::gemm::Linear,
    tensor::{Tensor, TensorType},
};
use sparoa_kernels::Pool;

use super::{
    super::{
        CudaBackend, CudaOptions,
        driver::{Function, Launch, Stream, Turn},
        nvrtc::Nvrtc,
    },
    rounded::values,
};

/// Set in the child processes.
const CHILD: &str = "SPAROA_TEST_CUDA_FAULTS";
/// Said by a child that had a device.
const DONE: &str = "the child is done";

/// Runs the named test in `count` processes at once; whether this process is one of them.
fn in_processes(name: &str, count: usize) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let spawn = |_| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("cuda::tests::faults::{name}"), "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = (0..count).map(spawn).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(said.contains(DONE) || said.contains("skipped"), "{said}");
        println!("{said}");
    }
    false
}

fn open() -> Option<CudaBackend> {
    CudaBackend::new(&CudaOptions::default()).inspect_err(|e| println!("skipped: {e}")).ok()
}

/// `x` times a constant, in one segment, `x` being the upload and the result the download.
fn product(backend: &CudaBackend, [m, k, n]: [usize; 3]) -> Result<Box<dyn Program>, BackendError> {
    let views = [m * k, m * n].map(|len| 4 * len);
    let view = |slot: usize| View { slot, offset: 0, bytes: views[slot] };
    let weight = Arc::new(values(&[k, n], 2));
    backend.load(ProgramSpec {
        slots: views.to_vec(),
        tasks: vec![TaskSpec {
            name: "product".to_owned(),
            op: Arc::new(Linear::default()),
            inputs: vec![
                Some(Arg::Slot(view(0), TensorType::f32([m, k]))),
                Some(Arg::Constant(weight)),
            ],
            outputs: vec![(view(1), TensorType::f32([m, n]))],
        }],
        segments: vec![0..1],
        uploads: vec![view(0)],
        downloads: vec![view(1)],
        ..ProgramSpec::default()
    })
}

/// Runs it once.
fn run(program: &dyn Program, [m, k, n]: [usize; 3]) -> Result<Tensor, BackendError> {
    let mut result = Tensor::zeros(TensorType::f32([m, n]));
    program.upload(0, values(&[m, k], 1).bytes(), &Pool::new(1))?;
    program.launch(0)?;
    program.download(0, result.bytes_mut())?;
    Ok(result)
}

#[test]
fn memory_that_is_used_up_comes_back() {
    if !in_processes("memory_that_is_used_up_comes_back", 1) {
        return;
    }
    let Some(backend) = open() else { return };
    if backend.info().unified_memory {
        println!("skipped: its memory is the host's");
        return;
    }
    let sizes = [65, 96, 130];
    let before = product(&backend, sizes).unwrap();
    let expected = run(&*before, sizes).unwrap();
    // Some of these fit, all of them do not: what fitted must be given back.
    let eighth = usize::try_from(backend.info().memory_bytes.unwrap() / 8).unwrap();
    for _ in 0..2 {
        let slots = ProgramSpec { slots: vec![eighth; 9], ..ProgramSpec::default() };
        let error = backend.load(slots).err().expect("more than the device has");
        assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&backend.info().name) && text.contains("smaller batch"), "{text}");
    }
    // Loaded programs and new ones work as before.
    let again = product(&backend, sizes).unwrap();
    for program in [&before, &again] {
        assert_eq!(run(&**program, sizes).unwrap().bytes(), expected.bytes());
    }
    println!("{DONE}");
}

/// Writes where nothing is.
const ILLEGAL: &str = r#"
struct Params { unsigned unused[4]; };
extern "C" __global__ void illegal(Params, unsigned, unsigned* nowhere) { nowhere[threadIdx.x] = 1; }
"#;

#[test]
fn a_sticky_error_is_every_later_calls_error() {
    if !in_processes("a_sticky_error_is_every_later_calls_error", 1) {
        return;
    }
    let Some(backend) = open() else { return };
    let sizes = [9, 8, 7];
    let program = product(&backend, sizes).unwrap();
    run(&*program, sizes).unwrap();
    let shared = &backend.shared;
    let compute = super::super::driver::devices().unwrap()[0].compute;
    let cubin = Nvrtc::load(i32::MAX).unwrap().compile(ILLEGAL, compute).unwrap();
    let illegal = || -> Result<(), DriverError> {
        let function = Arc::new(Function::load(&shared.context, &cubin, "illegal", 0)?);
        let stream = Stream::new(&shared.context)?;
        let (grid, threads, params) = ([1; 3], [32, 1, 1], vec![0; 4]);
        let launch = Launch {
            function,
            grid,
            threads,
            params,
            buffers: vec![64],
            spread: false,
            cluster: 1,
        };
        // SAFETY: the address is not mapped: the device refuses the access and runs nothing more
        // for this process, which is the test's own.
        unsafe { stream.launch(&launch, Turn::default()) }?;
        stream.synchronize()
    };
    let first = shared.run("an illegal access", illegal).unwrap_err();
    assert!(matches!(first, BackendError::Lost { .. }), "{first}");
    assert!(first.to_string().contains(&backend.info().name), "{first}");
    // The same error for everything that follows, and nothing hangs or panics.
    let later = [
        run(&*program, sizes).err().unwrap(),
        program.wait_idle().err().unwrap(),
        product(&backend, sizes).err().unwrap(),
    ];
    for error in later {
        assert_eq!(error.to_string(), first.to_string());
    }
    drop(program);
    println!("{DONE}");
}

#[test]
fn processes_share_a_device() {
    if !in_processes("processes_share_a_device", 2) {
        return;
    }
    let Some(backend) = open() else { return };
    let sizes = [257, 512, 384];
    let program = product(&backend, sizes).unwrap();
    let expected = run(&*program, sizes).unwrap();
    for _ in 0..200 {
        assert_eq!(run(&*program, sizes).unwrap().bytes(), expected.bytes());
    }
    println!("{DONE}");
}
