//! What a user may choose of the GPU backend.

use std::path::PathBuf;

/// Options of [`crate::WgpuBackend::new`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgpuOptions {
    /// Part of the adapter's name, in any case. `None` takes the most capable one: discrete,
    /// then integrated, then virtual, then software.
    pub adapter: Option<String>,
    /// Accept a software rasteriser (Mesa's lavapipe). An adapter asked for by name is always
    /// accepted.
    pub allow_software: bool,
    /// Store weights as 16-bit floats where the adapter can read them; sums stay 32-bit and
    /// activations stay 32-bit.
    pub f16: bool,
    /// Folder for compiled pipelines; `None` keeps them in memory only.
    pub cache_dir: Option<PathBuf>,
    /// How tensors cross between host and device.
    pub transfer: Transfer,
    /// Kernels for a hardware GPU of so many multiprocessors, whatever the device is: for tests
    /// and comparisons.
    pub units: Option<u32>,
}

impl WgpuOptions {
    /// The default options, with the adapter named by the environment variable `SPAROA_GPU`, if
    /// it is set and not empty.
    pub fn from_env() -> WgpuOptions {
        let adapter = std::env::var("SPAROA_GPU").ok().filter(|name| !name.is_empty());
        WgpuOptions { adapter, ..WgpuOptions::default() }
    }
}

/// How products (matrices, convolutions but depthwise ones) are computed whose one side is a constant.
/// All sums are fp32, and so is everything else that is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuPrecision {
    /// In fp32, without TF32.
    #[default]
    Fp32,
    /// On tensor cores, operands rounded to 11 significant bits.
    Tf32,
    /// On tensor cores, operands rounded to f16: 11 significant bits, and infinite from 65520 on.
    Fp16,
    /// On tensor cores, operands rounded to bf16: 8 significant bits, f32's range.
    Bf16,
}

impl GpuPrecision {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            GpuPrecision::Fp32 => "fp32",
            GpuPrecision::Tf32 => "tf32",
            GpuPrecision::Fp16 => "fp16",
            GpuPrecision::Bf16 => "bf16",
        }
    }
}

/// How tensors cross between host and device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfer {
    /// Direct where memory is shared and a measurement at start says it is faster, staged
    /// otherwise.
    #[default]
    Auto,
    /// Through buffers that are permanently visible to the host, and a copy on the device.
    Staged,
    /// The host reads and writes the device's own buffer wherever the program allows it, and
    /// goes through staging elsewhere. Needs an adapter with mappable primary buffers; without
    /// them everything is staged.
    Direct,
}
