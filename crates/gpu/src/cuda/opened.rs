//! An opened device, and the one way to its driver.

use std::sync::{Arc, OnceLock};

use cudarc::driver::{DriverError, sys::CUresult};
use sparoa_core::{
    backend::{BackendError, DeviceInfo},
    ops::GpuCaps,
};

use super::{
    driver::{Context, DeviceMemory},
    kernels::Kernels,
    libraries::Libraries,
};
use crate::{copies::Direct, fault::Fault, residency::Residency};

/// What programs keep of their backend.
pub(crate) struct Shared {
    pub(crate) kernels: Kernels,
    pub(crate) residency: Residency<DeviceMemory>,
    pub(crate) libraries: Libraries,
    pub(crate) context: Arc<Context>,
    pub(crate) info: DeviceInfo,
    pub(crate) caps: GpuCaps,
    /// Which copies are direct where a program allows it; measured if it is empty.
    pub(crate) direct: OnceLock<Direct>,
    pub(crate) fault: Fault,
}

impl Shared {
    /// Runs driver calls with the context current. Their error is returned in our terms; one that
    /// leaves the context unusable is what every later call gets as well.
    pub(crate) fn run<T>(
        &self,
        task: &str,
        work: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T, BackendError> {
        self.fault.check()?;
        self.context.bind().and_then(|()| work()).map_err(|e| self.typed(task, e))
    }

    fn typed(&self, task: &str, error: DriverError) -> BackendError {
        let device = self.info.name.clone();
        if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let detail = format!("{task} (use a smaller batch, or place fewer operators here)");
            return BackendError::OutOfMemory { device, detail };
        }
        let detail = format!("{task}: {}", words(error));
        if is_sticky(error.0) {
            let lost = BackendError::Lost { device, detail };
            self.fault.set(lost.clone());
            return lost;
        }
        BackendError::Kernel { task: task.to_owned(), detail: words(error) }
    }
}

/// Whether a context is unusable after this error.
fn is_sticky(error: CUresult) -> bool {
    use CUresult as E;
    matches!(
        error,
        E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | E::CUDA_ERROR_DEINITIALIZED
            | E::CUDA_ERROR_DEVICE_UNAVAILABLE
            | E::CUDA_ERROR_EXTERNAL_DEVICE
            | E::CUDA_ERROR_UNKNOWN
    )
}

/// The driver's words for an error.
pub(super) fn words(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{} ({:?})", text.to_string_lossy(), error.0),
        Err(_) => format!("{:?}", error.0),
    }
}
