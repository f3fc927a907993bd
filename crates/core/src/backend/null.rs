//! An accelerator without hardware: it runs its tasks with the CPU kernels, on memory of its own,
//! on a thread of its own, in submission order. The test double for schedulers, for the engine's
//! races and for users' own tests; artificial delays and failures on demand.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sparoa_kernels::pool::Pool;

use super::{
    Accelerator, Arg, BackendError, Device, DeviceInfo, Program, ProgramSpec, TaskSpec, View,
};
use crate::{
    ops::{CpuKernel, KernelIo, Op, Operand, Operands},
    tensor::{Storage, Tensor, TensorType},
};

/// How a [`NullAccelerator`] behaves.
#[derive(Clone, Debug, Default)]
pub struct NullOptions {
    /// Added to every task.
    pub task_delay: Duration,
    /// Added to every copy.
    pub copy_delay: Duration,
    /// Operators that it declares unsupported.
    pub unsupported: Vec<&'static str>,
    /// Fails the submission with this number, counted from 0 over the accelerator's life.
    pub fail_submission: Option<usize>,
    /// Fails the download with this number, counted likewise.
    pub fail_download: Option<usize>,
    /// Computes this operator wrongly: every float result is off by one.
    pub corrupt: Option<&'static str>,
    /// Claims to have no timestamps.
    pub no_timestamps: bool,
    /// Claims to be a software rasteriser.
    pub software: bool,
}

/// See the module.
#[derive(Debug)]
pub struct NullAccelerator {
    info: DeviceInfo,
    options: Arc<NullOptions>,
    submissions: Arc<AtomicUsize>,
    downloads: Arc<AtomicUsize>,
    /// Nanoseconds that others take from every task.
    load: Arc<AtomicU64>,
}

impl NullAccelerator {
    /// A null accelerator.
    pub fn new(options: NullOptions) -> Arc<NullAccelerator> {
        let info = DeviceInfo {
            device: Device::Gpu,
            name: "null".to_owned(),
            driver: "cpu kernels".to_owned(),
            software: options.software,
            unified_memory: false,
            threads: None,
            memory_bytes: None,
            features: Vec::new(),
        };
        Arc::new(NullAccelerator {
            info,
            options: Arc::new(options),
            submissions: Arc::default(),
            downloads: Arc::default(),
            load: Arc::default(),
        })
    }

    /// From now on every task of every program takes this much longer, as if others used the device.
    pub fn set_load(&self, per_task: Duration) {
        let ns = u64::try_from(per_task.as_nanos()).unwrap_or(u64::MAX);
        self.load.store(ns, Ordering::Relaxed);
    }

    /// Submissions so far.
    pub fn submissions(&self) -> usize {
        self.submissions.load(Ordering::Relaxed)
    }
}

impl Accelerator for NullAccelerator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn supports(&self, op: &dyn Op, _: &Operands<'_>) -> Result<(), String> {
        if self.options.unsupported.contains(&op.op_type()) {
            return Err(format!("null does not run {}", op.op_type()));
        }
        Ok(())
    }

    /// Ordinary memory: a worker thread reads nothing of the caller's.
    fn host_memory(&self, bytes: usize) -> Option<Storage> {
        Some(Storage::zeroed(bytes))
    }

    fn load(&self, spec: ProgramSpec) -> Result<Box<dyn Program>, BackendError> {
        let tasks = spec
            .tasks
            .iter()
            .map(|task| prepare(task, &spec.slots))
            .collect::<Result<Vec<_>, _>>()?;
        for view in spec.uploads.iter().chain(&spec.downloads) {
            check(view, &spec.slots, "copy")?;
        }
        let device_bytes = spec.slots.iter().sum();
        let (sender, receiver) = mpsc::channel();
        let device = DeviceThread {
            tasks,
            memory: spec.slots.iter().map(|&bytes| Storage::zeroed(bytes)).collect(),
            segments: spec.segments,
            uploads: spec.uploads,
            downloads: spec.downloads,
            options: self.options.clone(),
            load: self.load.clone(),
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("sparoa-null".to_owned())
            .spawn(move || device.serve(&receiver))
            .map_err(|e| BackendError::Unavailable(e.to_string()))?;
        Ok(Box::new(NullProgram {
            queue: Mutex::new(Some(sender)),
            thread: Some(thread),
            options: self.options.clone(),
            submissions: self.submissions.clone(),
            downloads: self.downloads.clone(),
            device_bytes,
        }))
    }
}

struct Prepared {
    op_type: &'static str,
    kernel: Box<dyn CpuKernel>,
    inputs: Vec<Option<Arg>>,
    outputs: Vec<(View, TensorType)>,
}

fn prepare(task: &TaskSpec, slots: &[usize]) -> Result<Prepared, BackendError> {
    let views = task.inputs.iter().flatten().filter_map(|arg| match arg {
        Arg::Slot(view, ty) => Some((view, ty)),
        Arg::Constant(_) => None,
    });
    for (view, ty) in views.chain(task.outputs.iter().map(|(view, ty)| (view, ty))) {
        check(view, slots, &task.name)?;
        if view.bytes != ty.bytes() {
            let detail = format!("{} bytes for {ty}", view.bytes);
            return Err(BackendError::Kernel { task: task.name.clone(), detail });
        }
    }
    let operand = |arg: &Arg| match arg {
        Arg::Constant(tensor) => Operand::constant(tensor.clone()),
        Arg::Slot(_, ty) => Operand::dynamic(ty.clone()),
    };
    let inputs: Vec<Option<Operand>> =
        task.inputs.iter().map(|arg| arg.as_ref().map(operand)).collect();
    let outputs: Vec<TensorType> = task.outputs.iter().map(|(_, ty)| ty.clone()).collect();
    let kernel = task
        .op
        .cpu(&Operands { inputs: &inputs, outputs: &outputs })
        .map_err(|e| BackendError::Kernel { task: task.name.clone(), detail: e.to_string() })?;
    Ok(Prepared {
        op_type: task.op.op_type(),
        kernel,
        inputs: task.inputs.clone(),
        outputs: task.outputs.clone(),
    })
}

fn check(view: &View, slots: &[usize], task: &str) -> Result<(), BackendError> {
    let inside = slots.get(view.slot).is_some_and(|&b| view.offset + view.bytes <= b);
    if inside && view.offset.is_multiple_of(4) && view.bytes.is_multiple_of(4) {
        return Ok(());
    }
    let detail = format!("{view:?} is outside its slot or not aligned");
    Err(BackendError::Kernel { task: task.to_owned(), detail })
}

/// Work for the device thread, done in order.
enum Command {
    Launch(usize),
    Upload(usize, Vec<u8>),
    Download(usize, Reply<Vec<u8>>),
    Time(usize, Reply<Vec<u64>>),
    Idle(Reply<()>),
}

type Reply<T> = mpsc::Sender<Result<T, BackendError>>;

struct DeviceThread {
    tasks: Vec<Prepared>,
    memory: Vec<Storage>,
    segments: Vec<std::ops::Range<usize>>,
    uploads: Vec<View>,
    downloads: Vec<View>,
    options: Arc<NullOptions>,
    load: Arc<AtomicU64>,
    /// The first failure; everything after it fails alike, as on a lost device.
    failed: Option<BackendError>,
}

impl DeviceThread {
    fn serve(mut self, queue: &mpsc::Receiver<Command>) {
        while let Ok(command) = queue.recv() {
            // Nobody waits for a reply that cannot be delivered: the engine is being dropped.
            match command {
                Command::Launch(segment) => {
                    if let Err(error) = self.launch(segment) {
                        self.failed.get_or_insert(error);
                    }
                }
                Command::Upload(copy, bytes) => {
                    std::thread::sleep(self.options.copy_delay);
                    let view = self.uploads[copy];
                    self.memory[view.slot].bytes_mut()[view.offset..][..view.bytes]
                        .copy_from_slice(&bytes);
                }
                Command::Download(copy, reply) => {
                    std::thread::sleep(self.options.copy_delay);
                    let view = self.downloads[copy];
                    let bytes = &self.memory[view.slot].bytes()[view.offset..][..view.bytes];
                    let _ = reply.send(self.health().map(|()| bytes.to_vec()));
                }
                Command::Time(segment, reply) => {
                    let times = self.launch(segment);
                    let _ = reply.send(times);
                }
                Command::Idle(reply) => {
                    let _ = reply.send(self.health());
                }
            }
        }
    }

    fn health(&self) -> Result<(), BackendError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Runs the tasks of a segment; the nanoseconds of each.
    fn launch(&mut self, segment: usize) -> Result<Vec<u64>, BackendError> {
        let mut times = Vec::new();
        for task in self.segments[segment].clone() {
            let start = Instant::now();
            self.task(task)?;
            times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(times)
    }

    fn task(&mut self, task: usize) -> Result<(), BackendError> {
        let load = Duration::from_nanos(self.load.load(Ordering::Relaxed));
        std::thread::sleep(self.options.task_delay + load);
        let Prepared { op_type, kernel, inputs, outputs } = &self.tasks[task];
        let memory = &self.memory;
        let read = |view: &View, ty: &TensorType| {
            let bytes = &memory[view.slot].bytes()[view.offset..][..view.bytes];
            Tensor::new(ty.clone(), Storage::copy_from(bytes)).expect("lengths were checked")
        };
        let inputs: Vec<Option<Tensor>> = inputs
            .iter()
            .map(|arg| {
                arg.as_ref().map(|arg| match arg {
                    Arg::Constant(tensor) => Tensor::clone(tensor),
                    Arg::Slot(view, ty) => read(view, ty),
                })
            })
            .collect();
        let mut results: Vec<Tensor> =
            outputs.iter().map(|(_, ty)| Tensor::zeros(ty.clone())).collect();
        let pool = Pool::single();
        let mut scratch = Storage::zeroed(kernel.scratch_bytes(pool.threads()));
        let views: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::view)).collect();
        let mut targets: Vec<_> = results.iter_mut().map(Tensor::view_mut).collect();
        let mut io =
            KernelIo { inputs: &views, outputs: &mut targets, scratch: scratch.bytes_mut() };
        kernel.run(&mut io, &pool).map_err(|e| BackendError::Kernel {
            task: format!("task {task}"),
            detail: e.to_string(),
        })?;
        drop(targets);
        if self.options.corrupt == Some(*op_type) {
            for result in &mut results {
                result.as_slice_mut::<f32>().into_iter().flatten().for_each(|v| *v += 1.0);
            }
        }
        for ((view, _), result) in outputs.iter().zip(&results) {
            self.memory[view.slot].bytes_mut()[view.offset..][..view.bytes]
                .copy_from_slice(result.bytes());
        }
        Ok(())
    }
}

struct NullProgram {
    queue: Mutex<Option<mpsc::Sender<Command>>>,
    thread: Option<JoinHandle<()>>,
    options: Arc<NullOptions>,
    submissions: Arc<AtomicUsize>,
    downloads: Arc<AtomicUsize>,
    device_bytes: usize,
}

impl NullProgram {
    fn send(&self, command: Command) -> Result<(), BackendError> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().and_then(|queue| queue.send(command).ok()).ok_or_else(lost)
    }

    fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, BackendError> {
        let (sender, receiver) = mpsc::channel();
        self.send(command(sender))?;
        receiver.recv().map_err(|_| lost())?
    }
}

fn lost() -> BackendError {
    BackendError::Lost { device: "null".to_owned(), detail: "its thread has ended".to_owned() }
}

fn injected(what: &str) -> BackendError {
    BackendError::Lost { device: "null".to_owned(), detail: format!("injected {what} failure") }
}

impl Program for NullProgram {
    fn launch(&self, segment: usize) -> Result<(), BackendError> {
        let number = self.submissions.fetch_add(1, Ordering::Relaxed);
        if self.options.fail_submission == Some(number) {
            return Err(injected("submission"));
        }
        self.send(Command::Launch(segment))
    }

    fn upload(&self, copy: usize, bytes: &[u8], _: &Pool) -> Result<(), BackendError> {
        self.send(Command::Upload(copy, bytes.to_vec()))
    }

    fn download(&self, copy: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        let number = self.downloads.fetch_add(1, Ordering::Relaxed);
        if self.options.fail_download == Some(number) {
            return Err(injected("download"));
        }
        bytes.copy_from_slice(&self.ask(|reply| Command::Download(copy, reply))?);
        Ok(())
    }

    fn wait_idle(&self) -> Result<(), BackendError> {
        self.ask(Command::Idle)
    }

    fn time_segment(&self, segment: usize) -> Result<Vec<u64>, BackendError> {
        if self.options.no_timestamps {
            return Err(BackendError::NoTimestamps("null".to_owned()));
        }
        self.ask(|reply| Command::Time(segment, reply))
    }

    fn device_bytes(&self) -> usize {
        self.device_bytes
    }
}

impl Drop for NullProgram {
    fn drop(&mut self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(thread) = self.thread.take() {
            // A panic of a kernel has already surfaced as a lost device.
            let _ = thread.join();
        }
    }
}
