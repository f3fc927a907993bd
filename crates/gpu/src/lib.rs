//! GPU backends of SparOA. One on wgpu: Vulkan on Linux, Android and Windows, DirectX 12 on Windows,
//! Metal on Apple systems. One on CUDA, for NVIDIA's devices. Operators describe their kernels as data
//! ([`sparoa_core::ops::GpuKernel`]); this crate compiles them, keeps weights resident, plans what they
//! are bound to once and afterwards only records, submits and copies.
//!
//! ```no_run
//! use sparoa_core::backend::Accelerator;
//! let gpu = sparoa_gpu::WgpuBackend::new(&sparoa_gpu::WgpuOptions::default())?;
//! println!("{}", gpu.info().name);
//! # Ok::<(), sparoa_core::backend::BackendError>(())
//! ```

#![deny(clippy::unwrap_used)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod options;
mod fault;
mod units;
mod adapter;
mod cache_file;
mod pipelines;
mod residency;
mod bind;
mod copies;
mod opened;
mod transfer;
mod backend;
mod load;
mod program;
mod timing;
mod cuda;
mod open;
pub mod nvml;

pub use adapter::adapters;
pub use backend::WgpuBackend;
pub use cuda::{CudaBackend, CudaLibraries, CudaOptions, cuda_devices};
pub use nvml::{NvmlGpu, NvmlUnavailable};
pub use open::{GpuOptions, open_gpu};
pub use options::{GpuPrecision, Transfer, WgpuOptions};
