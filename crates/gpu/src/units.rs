//! How many multiprocessors an adapter has. WebGPU does not tell; vendors' Vulkan extensions do.

#[cfg(any(target_os = "linux", target_os = "android", windows))]
pub(crate) use vulkan::units;

/// Unknown on other systems.
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub(crate) fn units(_: &wgpu::Adapter) -> u32 {
    0
}

#[cfg(any(target_os = "linux", target_os = "android", windows))]
mod vulkan {
    use ash::{amd, arm, nv, vk};

    /// Multiprocessors of a Vulkan adapter of NVIDIA, AMD or Arm; 0 of others, whose drivers do
    /// not tell.
    pub(crate) fn units(adapter: &wgpu::Adapter) -> u32 {
        // SAFETY: the handle is only asked for properties, while `adapter` lives.
        let Some(adapter) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else {
            return 0;
        };
        let shared = adapter.shared_instance();
        if shared.instance_api_version() < vk::API_VERSION_1_1 {
            return 0;
        }
        let (instance, device) = (shared.raw_instance(), adapter.raw_physical_device());
        // SAFETY: the device is the instance's, and both are alive.
        let extensions = unsafe { instance.enumerate_device_extension_properties(device) };
        let extensions = extensions.unwrap_or_default();
        let has = |name| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        let mut nvidia = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
        let mut amd = vk::PhysicalDeviceShaderCorePropertiesAMD::default();
        let mut arm = vk::PhysicalDeviceShaderCoreBuiltinsPropertiesARM::default();
        let mut properties = vk::PhysicalDeviceProperties2::default();
        if has(nv::shader_sm_builtins::NAME) {
            properties = properties.push_next(&mut nvidia);
        }
        if has(amd::shader_core_properties::NAME) {
            properties = properties.push_next(&mut amd);
        }
        if has(arm::shader_core_builtins::NAME) {
            properties = properties.push_next(&mut arm);
        }
        // SAFETY: version 1.1 has the function; only structures of extensions that the device has
        // are chained, and they outlive the call.
        unsafe { instance.get_physical_device_properties2(device, &mut properties) };
        let amd_units = amd.shader_engine_count
            * amd.shader_arrays_per_engine_count
            * amd.compute_units_per_shader_array;
        nvidia.shader_sm_count.max(amd_units).max(arm.shader_core_count)
    }
}
