//! The backend: an opened device with its pipelines and resident weights.

use std::sync::{Arc, OnceLock};

use sparoa_core::{
    backend::{Accelerator, BackendError, DeviceInfo, Program, ProgramSpec},
    ops::{GpuCaps, Op, Operands},
};

use crate::{
    WgpuOptions, adapter, bind, fault::Fault, load, opened::Shared, pipelines::Pipelines,
    residency::Residency,
};

/// A GPU opened through wgpu. Cheap to clone; clones share the device, pipelines and weights.
#[derive(Clone)]
pub struct WgpuBackend {
    shared: Arc<Shared>,
}

impl WgpuBackend {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when there is no driver, no adapter of the wanted name, or
    /// only a software one that was not allowed; its text says which and what to do.
    pub fn new(options: &WgpuOptions) -> Result<WgpuBackend, BackendError> {
        let opened = adapter::open(options)?;
        let fault = Fault::watch(&opened.info.name, &opened.device);
        let cache_dir = options.cache_dir.as_deref();
        let pipelines = fault.scoped(&opened.device, "pipeline cache", || {
            Ok(Pipelines::new(&opened.device, opened.features, cache_dir, &opened.key))
        })?;
        Ok(WgpuBackend {
            shared: Arc::new(Shared {
                device: opened.device,
                queue: opened.queue,
                info: opened.info,
                caps: opened.caps,
                features: opened.features,
                limits: opened.limits,
                fault,
                pipelines,
                residency: Residency::default(),
                transfer: options.transfer,
                direct_is_faster: OnceLock::new(),
            }),
        })
    }

    /// What kernels may use of this adapter.
    pub fn caps(&self) -> &GpuCaps {
        &self.shared.caps
    }
}

impl Accelerator for WgpuBackend {
    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn supports(&self, op: &dyn Op, operands: &Operands<'_>) -> Result<(), String> {
        bind::kernel(op, operands, &self.shared.caps).map(|_| ())
    }

    fn load(&self, spec: ProgramSpec) -> Result<Box<dyn Program>, BackendError> {
        self.shared.fault.check()?;
        Ok(Box::new(load::load(&self.shared, spec)?))
    }
}
