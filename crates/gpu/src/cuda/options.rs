//! What a user may choose of the CUDA backend.

use std::path::PathBuf;

use super::CudaLibraries;
use crate::{GpuPrecision, Transfer};

/// Options of [`crate::CudaBackend::new`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Part of the device's name, in any case. `None` takes the driver's first;
    /// `CUDA_VISIBLE_DEVICES` tells apart devices of one name.
    pub device: Option<String>,
    /// How products with constants are computed.
    pub precision: GpuPrecision,
    /// Folder for compiled kernels; `None` keeps them in memory only.
    pub cache_dir: Option<PathBuf>,
    /// Measure libraries again, whatever was found before.
    pub fresh: bool,
    /// How tensors cross between host and device. `Auto` is direct where the GPU is integrated
    /// and a measurement says that it is faster; elsewhere small downloads are.
    pub transfer: Transfer,
    /// Use so many of the device's multiprocessors and leave the others alone (in steps of what
    /// the device can divide by, rounded up: 8 on Hopper); `None` uses all. Needs a driver of
    /// CUDA 12.4 or newer.
    pub multiprocessors: Option<u32>,
    /// NVIDIA's libraries, which compute what they are faster at.
    pub libraries: CudaLibraries,
    /// Kernels for a hardware GPU of so many multiprocessors, whatever the device is: for tests
    /// and comparisons.
    pub units: Option<u32>,
}
