//! Compiled pipelines: one per distinct shader text and set of overrides, kept for the backend's
//! life; where the driver gives its compiled form, also on disk.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use sparoa_core::ops::{Binding, Dispatch};

use crate::cache_file::{self, checksum};

/// First bytes of a cache file; the number is the format's.
const MAGIC: &[u8; 16] = b"sparoa-pipeline1";

/// Pipelines of one device.
pub(crate) struct Pipelines {
    device: wgpu::Device,
    compiled: Mutex<HashMap<Key, wgpu::ComputePipeline>>,
    layouts: Mutex<HashMap<Vec<bool>, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
    cache: Option<wgpu::PipelineCache>,
    file: Option<PathBuf>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    source: String,
    overrides: Vec<(&'static str, u64)>,
    read_only: Vec<bool>,
}

impl Pipelines {
    /// An empty set, warmed from `cache_dir` if it has a valid file for `adapter_key`.
    pub(crate) fn new(
        device: &wgpu::Device,
        features: wgpu::Features,
        cache_dir: Option<&Path>,
        adapter_key: &str,
    ) -> Pipelines {
        let mut file = None;
        let mut cache = None;
        if features.contains(wgpu::Features::PIPELINE_CACHE) {
            file = cache_dir.map(|dir| dir.join(file_name(adapter_key)));
            let data = file.as_deref().and_then(|path| cache_file::read(path, MAGIC));
            // SAFETY: the data, if any, was written by `save` from `PipelineCache::get_data`: its
            // checksum and the adapter's key were compared. The driver checks its own header
            // besides, and `fallback` makes it start empty if that does not fit.
            cache = Some(unsafe {
                device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                    label: None,
                    data: data.as_deref(),
                    fallback: true,
                })
            });
        }
        Pipelines {
            device: device.clone(),
            compiled: Mutex::default(),
            layouts: Mutex::default(),
            cache,
            file,
        }
    }

    /// The layout of group 0 for a dispatch.
    pub(crate) fn layout(&self, dispatch: &Dispatch) -> wgpu::BindGroupLayout {
        self.layouts(&read_only(dispatch)).0
    }

    /// Layouts for buffers of which these are only read.
    fn layouts(&self, read_only: &[bool]) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let mut layouts = self.layouts.lock();
        let entry = layouts.entry(read_only.to_vec()).or_insert_with(|| {
            let buffer = |binding, ty| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let storages = (1..)
                .zip(read_only)
                .map(|(i, &read_only)| buffer(i, wgpu::BufferBindingType::Storage { read_only }));
            let entries: Vec<_> = std::iter::once(buffer(0, wgpu::BufferBindingType::Uniform))
                .chain(storages)
                .collect();
            let group = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            });
            let pipeline = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            (group, pipeline)
        });
        entry.clone()
    }

    /// The pipeline of a dispatch, compiled on first use. Errors arrive in the caller's error
    /// scope.
    pub(crate) fn get(&self, dispatch: &Dispatch) -> wgpu::ComputePipeline {
        let key = Key {
            source: dispatch.source.to_string(),
            overrides: dispatch.overrides.iter().map(|&(n, v)| (n, v.to_bits())).collect(),
            read_only: read_only(dispatch),
        };
        if let Some(pipeline) = self.compiled.lock().get(&key) {
            return pipeline.clone();
        }
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: false,
            force_loop_bounding: false,
            int_div_checks: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(dispatch.label),
            source: wgpu::ShaderSource::Wgsl(dispatch.source.as_ref().into()),
        };
        // SAFETY: shader text comes from the operators of sparoa-core, never from a model file:
        // their kernels compare every index with the sizes in their parameters, their loops run
        // to such a size, and they divide by sizes that are at least 1.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(dispatch.label),
            layout: Some(&self.layouts(&key.read_only).1),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &dispatch.overrides,
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref(),
        });
        self.compiled.lock().entry(key).or_insert(pipeline).clone()
    }

    /// Forgets everything compiled: after an error some of it may be unusable.
    pub(crate) fn clear(&self) {
        self.compiled.lock().clear();
    }

    /// Writes the driver's compiled form to disk. A cache that cannot be written costs time, not
    /// correctness: the reason is logged.
    pub(crate) fn save(&self) {
        let (Some(file), Some(cache)) = (&self.file, &self.cache) else { return };
        let Some(data) = cache.get_data() else { return };
        if let Err(error) = cache_file::write(file, MAGIC, &data) {
            tracing::warn!(file = %file.display(), %error, "pipeline cache was not written");
        }
    }
}

fn read_only(dispatch: &Dispatch) -> Vec<bool> {
    dispatch.bindings.iter().map(|b| matches!(b, Binding::Constant(_))).collect()
}

fn file_name(adapter_key: &str) -> String {
    format!("pipelines-{:016x}.bin", checksum(adapter_key.as_bytes()))
}
