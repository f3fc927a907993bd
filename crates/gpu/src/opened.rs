//! An opened device.

use std::sync::OnceLock;

use sparoa_core::{backend::DeviceInfo, ops::GpuCaps};

use crate::{Transfer, fault::Fault, pipelines::Pipelines, residency::Residency};

/// What programs keep of their backend.
pub(crate) struct Shared {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: DeviceInfo,
    pub(crate) caps: GpuCaps,
    pub(crate) features: wgpu::Features,
    pub(crate) limits: wgpu::Limits,
    pub(crate) fault: Fault,
    pub(crate) pipelines: Pipelines,
    pub(crate) residency: Residency<wgpu::Buffer>,
    pub(crate) transfer: Transfer,
    /// Whether direct copies are, where it was measured.
    pub(crate) direct_is_faster: OnceLock<bool>,
}
