//! Opening a GPU by what the user calls it: an adapter's name for wgpu, `cuda` or `cuda:NAME` for
//! CUDA.

use std::{path::PathBuf, sync::Arc};

use sparoa_core::backend::{Accelerator, BackendError};

use crate::{
    CudaBackend, CudaLibraries, CudaOptions, GpuPrecision, Transfer, WgpuBackend, WgpuOptions,
    cuda::multiprocessors_from_env,
};

/// Options of [`open_gpu`]: those that both backends have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuOptions {
    /// Part of an adapter's name, in any case; `cuda` for CUDA's first device, `cuda:NAME` for
    /// one of that name. `None` takes wgpu's most capable adapter.
    pub name: Option<String>,
    /// Accept a software rasteriser that was not asked for by name.
    pub allow_software: bool,
    /// How products with constants are computed: on tensor cores on CUDA alone. Elsewhere fp16 stores
    /// their weights so, where the device can read them, and computes fp32; tf32 and bf16 are refused.
    pub precision: GpuPrecision,
    /// Folder for compiled kernels; `None` keeps them in memory only.
    pub cache_dir: Option<PathBuf>,
    /// Measure CUDA's libraries again, whatever was found before.
    pub fresh: bool,
    /// How tensors cross between host and device.
    pub transfer: Transfer,
    /// Kernels for a hardware GPU of so many multiprocessors, whatever the device is: for tests
    /// and comparisons.
    pub units: Option<u32>,
}

impl GpuOptions {
    /// The default options, with the GPU named by the environment variable `SPAROA_GPU`, if it is
    /// set and not empty.
    pub fn from_env() -> GpuOptions {
        GpuOptions { name: WgpuOptions::from_env().adapter, ..GpuOptions::default() }
    }

    /// Whether the name is that of a device of CUDA's.
    pub fn is_cuda(&self) -> bool {
        self.name.as_deref().and_then(cuda_device).is_some()
    }
}

/// Opens the GPU that `options` name. Of a CUDA device so many multiprocessors are used as the
/// environment variable `SPAROA_CUDA_MULTIPROCESSORS` says, or all; NVIDIA's libraries as
/// [`CudaLibraries::from_env`] has them.
///
/// # Errors
/// [`BackendError::Unavailable`] when it is not there, [`BackendError::Precision`] when it is and
/// does not have the precision; the text says what to do.
pub fn open_gpu(options: &GpuOptions) -> Result<Arc<dyn Accelerator>, BackendError> {
    let GpuOptions { name, allow_software, precision, cache_dir, fresh, transfer, units } =
        options.clone();
    match name.as_deref().and_then(cuda_device) {
        Some(device) => {
            let device = (!device.is_empty()).then(|| device.to_owned());
            let multiprocessors = multiprocessors_from_env()?;
            let libraries = CudaLibraries::from_env();
            let options = CudaOptions {
                device,
                precision,
                cache_dir,
                fresh,
                transfer,
                multiprocessors,
                libraries,
                units,
            };
            Ok(Arc::new(CudaBackend::new(&options)?))
        }
        None => {
            let f16 = precision == GpuPrecision::Fp16;
            let options =
                WgpuOptions { adapter: name, allow_software, f16, cache_dir, transfer, units };
            let backend = WgpuBackend::new(&options)?;
            match precision {
                GpuPrecision::Fp32 | GpuPrecision::Fp16 => Ok(Arc::new(backend)),
                GpuPrecision::Tf32 | GpuPrecision::Bf16 => Err(BackendError::Precision {
                    precision: precision.name(),
                    device: backend.info().name.clone(),
                    reason: format!(
                        "{} gives no access to its tensor cores",
                        backend.info().driver
                    ),
                }),
            }
        }
    }
}

/// The device's name in `cuda:NAME`, empty in `cuda`; `None` where CUDA is not meant.
fn cuda_device(name: &str) -> Option<&str> {
    let (api, device) = name.split_once(':').unwrap_or((name, ""));
    api.eq_ignore_ascii_case("cuda").then_some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_is_asked_for_by_name() {
        assert_eq!(cuda_device("cuda"), Some(""));
        assert_eq!(cuda_device("CUDA:H100"), Some("H100"));
        assert_eq!(cuda_device("NVIDIA H100"), None);
        assert_eq!(cuda_device("barracuda"), None);
        let named =
            |name: &str| GpuOptions { name: Some(name.to_owned()), ..GpuOptions::default() };
        assert!(named("cuda:H100").is_cuda() && !named("NVIDIA").is_cuda());
        assert!(!GpuOptions::default().is_cuda());
    }
}
