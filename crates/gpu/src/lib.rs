//! GPU backend of SparOA on wgpu: Vulkan on Linux, Android and Windows, DirectX 12 on Windows,
//! Metal on Apple systems. Operators describe their kernels as data
//! ([`sparoa_core::ops::GpuKernel`]); this crate compiles them, keeps weights resident, plans the
//! bind groups once and afterwards only records, submits and copies.
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
mod adapter;
mod pipelines;
mod residency;
mod transfer;
mod backend;
mod load;
mod program;
mod timing;
pub mod nvml;

pub use adapter::adapters;
pub use backend::WgpuBackend;
pub use nvml::{NvmlGpu, NvmlUnavailable};
pub use options::{Transfer, WgpuOptions};
