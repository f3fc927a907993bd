//! Processors: what a device says of itself, and the program an accelerator makes of its share of
//! a plan. The CPU is [`cpu`]; accelerators implement [`Accelerator`] in their own crates.

mod cpu;
mod null;
mod simulated;

use std::{fmt, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};
use sparoa_kernels::pool::Pool;

use crate::{
    ops::{Op, Operands},
    tensor::{Storage, Tensor, TensorType},
};

pub use cpu::{available_threads, cpu_info};
pub use null::{NullAccelerator, NullOptions};
pub use simulated::SimulatedGpu;

/// Which processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Device {
    Cpu,
    Gpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        })
    }
}

/// What a processor is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Which.
    pub device: Device,
    /// Marketing name.
    pub name: String,
    /// API and driver: `"Vulkan, Mesa 22.3.6"`, `"AVX2"`.
    pub driver: String,
    /// A GPU emulated on the CPU; `auto` does not choose it for speed unless measurement does.
    pub software: bool,
    /// Shares physical memory with the CPU.
    pub unified_memory: bool,
    /// Hardware threads for a CPU, `None` for a GPU.
    pub threads: Option<usize>,
    /// Bytes of memory, where the driver tells.
    pub memory_bytes: Option<u64>,
    /// Optional abilities: `avx2`, `f16`, `timestamps`, `zero-copy`.
    pub features: Vec<String>,
}

/// A processor other than the CPU.
pub trait Accelerator: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Whether it can run this operator.
    ///
    /// # Errors
    /// Why it cannot, as a phrase.
    fn supports(&self, op: &dyn Op, operands: &Operands<'_>) -> Result<(), String>;

    /// Prepares a program: compiles pipelines, uploads weights, allocates slots.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn load(&self, spec: ProgramSpec) -> Result<Box<dyn Program>, BackendError>;

    /// Zeroed memory of the host that uploads read by themselves, without a copy between; `None`
    /// where ordinary memory is as good, or no such memory is left.
    fn host_memory(&self, bytes: usize) -> Option<Storage> {
        let _ = bytes;
        None
    }
}

/// The tensor's values in [`Accelerator::host_memory`], where there is an accelerator that has it.
pub fn upload_ready(accelerator: Option<&dyn Accelerator>, tensor: Tensor) -> Tensor {
    let bytes = tensor.bytes();
    let Some(mut storage) = accelerator.and_then(|a| a.host_memory(bytes.len())) else {
        return tensor;
    };
    storage.bytes_mut().copy_from_slice(bytes);
    Tensor::new(tensor.ty().clone(), storage).expect("it is as long")
}

/// An accelerator's share of a plan.
#[derive(Clone, Debug, Default)]
pub struct ProgramSpec {
    /// Kernels in launch order.
    pub tasks: Vec<TaskSpec>,
    /// Consecutive ranges of `tasks`; each is one submission.
    pub segments: Vec<Range<usize>>,
    /// Bytes of each buffer slot. A slot serves several values whose lifetimes do not overlap.
    pub slots: Vec<usize>,
    /// Host-to-device copies, by index.
    pub uploads: Vec<View>,
    /// Device-to-host copies, by index.
    pub downloads: Vec<View>,
    /// The CPU computes while other threads wait for the program: they sleep, and leave the cores
    /// to the kernels.
    pub beside_cpu: bool,
    /// What is known of the values in the slots: an accelerator may store a value otherwise than
    /// its type says where it sees every access to it. A program may leave it empty.
    pub values: Vec<ValueAccesses>,
}

/// Every access to the memory of one run-time value: nothing else reads or writes it, and these
/// access no other value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueAccesses {
    /// Tasks that read it, and as which input.
    pub inputs: Vec<(usize, usize)>,
    /// Tasks that write it, and as which output.
    pub outputs: Vec<(usize, usize)>,
    /// Copies to it, by index.
    pub uploads: Vec<usize>,
    /// Copies from it, by index.
    pub downloads: Vec<usize>,
}

/// One kernel of a program.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// Node name, with the part for split nodes.
    pub name: String,
    /// What to compute.
    pub op: Arc<dyn Op>,
    /// Inputs; `None` for an omitted one.
    pub inputs: Vec<Option<Arg>>,
    /// Outputs.
    pub outputs: Vec<(View, TensorType)>,
}

/// Input of a task.
#[derive(Clone, Debug)]
pub enum Arg {
    /// A constant; the kernel decides what becomes resident.
    Constant(Arc<Tensor>),
    /// Bytes of a slot.
    Slot(View, TensorType),
}

/// Contiguous bytes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Slot index.
    pub slot: usize,
    /// First byte; a multiple of 4.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// A loaded program. `launch`, `upload` and `download` are called from different threads, one
/// thread each, in the order that the plan's events impose; none may allocate on the host beyond
/// what the device API itself does.
pub trait Program: Send + Sync {
    /// Submits a segment and returns without waiting for it. Submissions execute in order.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn launch(&self, segment: usize) -> Result<(), BackendError>;

    /// Copies `bytes` to the device, ordered before any later launch. They may be reused when it
    /// returns, or when [`Program::wait_uploads`] does if they are of
    /// [`Accelerator::host_memory`]. `pool` may help.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn upload(&self, copy: usize, bytes: &[u8], pool: &Pool) -> Result<(), BackendError>;

    /// Waits for everything submitted before this call that the copy needs and copies the
    /// device's bytes into `bytes`.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn download(&self, copy: usize, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// Waits until no upload reads the bytes that it was given.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn wait_uploads(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Waits until the device is idle.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn wait_idle(&self) -> Result<(), BackendError>;

    /// Runs one segment alone with per-task timestamps and waits: nanoseconds of each of its
    /// tasks, in order. Slot contents are whatever they are. For profiling, not for inference.
    ///
    /// # Errors
    /// See [`BackendError`]; [`BackendError::NoTimestamps`] where the device has none.
    fn time_segment(&self, segment: usize) -> Result<Vec<u64>, BackendError>;

    /// Bytes of device memory held (weights, slots, staging).
    fn device_bytes(&self) -> usize;
}

/// What a device can fail with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No such device, or its driver is missing.
    #[error("no GPU: {0}")]
    Unavailable(String),
    /// The device is there and does not compute as was asked for.
    #[error(
        "precision {precision} is not available on {device}: {reason}; use --precision fp32, or \
             --gpu cuda where there is an NVIDIA GPU of compute capability 8.0 or newer"
    )]
    Precision {
        /// What was asked for.
        precision: &'static str,
        /// Device name.
        device: String,
        /// Why.
        reason: String,
    },
    /// The device lacks memory.
    #[error("{device} is out of memory: {detail}")]
    OutOfMemory {
        /// Device name.
        device: String,
        /// What was being allocated.
        detail: String,
    },
    /// The device vanished (driver reset, unplugged), or an error left it unusable for this process:
    /// everything asked of it later answers the same.
    #[error("{device} was lost: {detail}")]
    Lost {
        /// Device name.
        device: String,
        /// The driver's words.
        detail: String,
    },
    /// A kernel failed to compile or launch.
    #[error("{task}: {detail}")]
    Kernel {
        /// Node.
        task: String,
        /// The driver's words.
        detail: String,
    },
    /// The device cannot time single kernels.
    #[error("{0} has no timestamp queries")]
    NoTimestamps(String),
}
