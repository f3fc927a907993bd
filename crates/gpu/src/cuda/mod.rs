//! The CUDA backend: the operators' kernels translated from WGSL and compiled by NVRTC, segments
//! replayed as CUDA graphs. The driver and NVRTC are loaded when asked for: the same binary starts
//! on machines that have neither.

mod backend;
mod driver;
mod kernels;
mod libraries;
mod load;
mod nvrtc;
mod opened;
mod options;
mod parts;
mod program;
mod recording;
mod round_trip;
mod rounding;
mod share;
mod storage;
mod transfer;
mod translate;

pub use backend::{CudaBackend, cuda_devices};
pub use libraries::CudaLibraries;
pub use options::CudaOptions;

pub(crate) use share::from_env as multiprocessors_from_env;

#[cfg(test)]
mod tests;
