//! A GPU that is not here: it tells which operators it would run, and runs none.

use super::{Accelerator, BackendError, Device, DeviceInfo, Program, ProgramSpec};
use crate::ops::{GpuCaps, Op, Operands};

/// See the module.
#[derive(Clone, Debug)]
pub struct SimulatedGpu {
    info: DeviceInfo,
}

impl SimulatedGpu {
    /// A GPU of this name that can do what nearly every one can.
    pub fn new(name: impl Into<String>, unified_memory: bool) -> SimulatedGpu {
        SimulatedGpu {
            info: DeviceInfo {
                device: Device::Gpu,
                name: name.into(),
                driver: "simulated".to_owned(),
                software: false,
                unified_memory,
                threads: None,
                memory_bytes: None,
                features: vec!["simulated".to_owned()],
            },
        }
    }
}

impl Accelerator for SimulatedGpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn supports(&self, op: &dyn Op, operands: &Operands<'_>) -> Result<(), String> {
        match op.gpu(operands, &GpuCaps::ordinary()) {
            Some(_) => Ok(()),
            None => Err(format!("{} has no GPU kernel for these types", op.op_type())),
        }
    }

    fn load(&self, _: ProgramSpec) -> Result<Box<dyn Program>, BackendError> {
        let name = &self.info.name;
        Err(BackendError::Unavailable(format!("{name} is simulated: plans for it cannot run here")))
    }
}
