//! Finding an adapter and opening it with everything it can do.

use sparoa_core::{
    backend::{BackendError, Device, DeviceInfo},
    ops::{GpuCaps, Halves},
};
use wgpu::{Adapter, DeviceType, Features};

use crate::{WgpuOptions, fault::ready, units::units};

/// Abilities used where the adapter has them.
const WANTED: Features = Features::TIMESTAMP_QUERY
    .union(Features::SHADER_F16)
    .union(Features::PIPELINE_CACHE)
    .union(Features::SUBGROUP)
    .union(Features::MAPPABLE_PRIMARY_BUFFERS);

/// An opened adapter.
pub(crate) struct Opened {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: DeviceInfo,
    pub(crate) caps: GpuCaps,
    pub(crate) features: Features,
    pub(crate) limits: wgpu::Limits,
    /// Names adapter and driver: compiled pipelines are valid for this key only.
    pub(crate) key: String,
}

/// Every adapter of this machine, best first, software ones last. Empty when there is no driver.
pub fn adapters() -> Vec<DeviceInfo> {
    sorted_adapters().iter().map(|a| describe(a, a.features())).collect()
}

fn sorted_adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut found = ready(instance.enumerate_adapters(wgpu::Backends::all())).unwrap_or_default();
    found.retain(|a| {
        let downlevel = a.get_downlevel_capabilities().flags;
        downlevel.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    found.sort_by_key(|a| {
        let info = a.get_info();
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::VirtualGpu => 2,
            DeviceType::Other => 3,
            DeviceType::Cpu => 4,
        };
        // Windows shows each card through DirectX too; Vulkan has more of what is used here.
        (kind, info.backend != wgpu::Backend::Vulkan)
    });
    found
}

fn describe(adapter: &Adapter, features: Features) -> DeviceInfo {
    let info = adapter.get_info();
    let software = info.device_type == DeviceType::Cpu;
    let unified = software || info.device_type == DeviceType::IntegratedGpu;
    let mut names = Vec::new();
    for (feature, name) in [
        (Features::SHADER_F16, "f16"),
        (Features::TIMESTAMP_QUERY, "timestamps"),
        (Features::PIPELINE_CACHE, "pipeline-cache"),
    ] {
        if features.contains(feature) {
            names.push(name.to_owned());
        }
    }
    if unified && features.contains(Features::MAPPABLE_PRIMARY_BUFFERS) {
        names.push("zero-copy".to_owned());
    }
    let driver = [info.driver.as_str(), info.driver_info.as_str()];
    let driver: Vec<&str> = driver.into_iter().filter(|s| !s.is_empty()).collect();
    DeviceInfo {
        device: Device::Gpu,
        name: info.name,
        driver: format!("{}, {}", backend_name(info.backend), driver.join(" ")),
        software,
        unified_memory: unified,
        threads: None,
        memory_bytes: None,
        features: names,
    }
}

fn backend_name(backend: wgpu::Backend) -> &'static str {
    match backend {
        wgpu::Backend::Vulkan => "Vulkan",
        wgpu::Backend::Metal => "Metal",
        wgpu::Backend::Dx12 => "DirectX 12",
        _ => "wgpu",
    }
}

/// Chooses and opens an adapter.
pub(crate) fn open(options: &WgpuOptions) -> Result<Opened, BackendError> {
    let adapter = choose(sorted_adapters(), options)?;
    let features = adapter.features() & WANTED;
    let limits = adapter.limits();
    let info = describe(&adapter, features);
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("sparoa"),
        required_features: features,
        required_limits: limits.clone(),
        memory_hints: wgpu::MemoryHints::Performance,
        ..Default::default()
    });
    let (device, queue) = ready(request)
        .ok_or_else(|| unavailable(&info.name, "the driver did not answer"))?
        .map_err(|e| unavailable(&info.name, &e.to_string()))?;
    let raw = adapter.get_info();
    let fixed =
        features.contains(Features::SUBGROUP) && raw.subgroup_min_size == raw.subgroup_max_size;
    let caps = GpuCaps {
        f16: options.f16 && features.contains(Features::SHADER_F16),
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        workgroup_size: limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x),
        max_grid: limits.max_compute_workgroups_per_dimension,
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        software: info.software && options.units.is_none(),
        subgroup: if fixed { raw.subgroup_max_size } else { 0 },
        // Emulated ones share the CPU's cores: nothing is gained by cutting work for them.
        units: options.units.unwrap_or(if info.software { 0 } else { units(&adapter) }),
        aligned: true,
        // WGSL has no words for them.
        matrix_units: None,
        matrix_bytes: 0,
        warp_groups: false,
        clusters: false,
        halves: Halves::default(),
        libraries: false,
    };
    let key = format!("{:?}-{:x}-{:x}-{}", raw.backend, raw.vendor, raw.device, info.driver);
    Ok(Opened { device, queue, info, caps, features, limits, key })
}

fn unavailable(name: &str, cause: &str) -> BackendError {
    BackendError::Unavailable(format!("{name} cannot be opened: {cause}"))
}

fn choose(found: Vec<Adapter>, options: &WgpuOptions) -> Result<Adapter, BackendError> {
    let names: Vec<String> = found.iter().map(|a| a.get_info().name).collect();
    if names.is_empty() {
        return Err(BackendError::Unavailable(
            "no Vulkan, Metal or DirectX 12 driver was found; install the vendor's driver, or \
             mesa-vulkan-drivers for a software one"
                .to_owned(),
        ));
    }
    if let Some(wanted) = &options.adapter {
        let wanted_lower = wanted.to_lowercase();
        let hit = names.iter().position(|n| n.to_lowercase().contains(&wanted_lower));
        return match hit {
            Some(i) => Ok(found.into_iter().nth(i).expect("names and adapters correspond")),
            None => Err(BackendError::Unavailable(format!(
                "no adapter is called \"{wanted}\"; there are: {}",
                names.join(", ")
            ))),
        };
    }
    let first = found.into_iter().next().expect("there is at least one name");
    if first.get_info().device_type == DeviceType::Cpu && !options.allow_software {
        return Err(BackendError::Unavailable(format!(
            "only a software adapter was found ({}); allow software adapters or name it to use it",
            names.join(", ")
        )));
    }
    Ok(first)
}
