//! From a program's description to buffers, pipelines and bind groups: everything that launches
//! will need, made once.

use std::{ops::Range, sync::Arc};

use sparoa_core::{
    backend::{BackendError, ProgramSpec, View},
    ops::{GpuConstant, Halves},
    tensor::Tensor,
};

use crate::{
    bind::{Binder, Bindings, Bound, check_ranges},
    opened::Shared,
    program::{Step, WgpuProgram},
    residency::{Resident, padded},
    transfer::Transfers,
};

/// A bound dispatch whose parameters have a place in the uniform buffer.
struct Pending {
    bindings: Bindings<wgpu::Buffer>,
    params_at: u64,
}

pub(crate) fn load(shared: &Arc<Shared>, spec: ProgramSpec) -> Result<WgpuProgram, BackendError> {
    shared.residency.sweep();
    let result = shared.fault.scoped(&shared.device, "loading the program", || build(shared, spec));
    match &result {
        Ok(_) => shared.pipelines.save(),
        // An invalid pipeline must not be found again by a later load.
        Err(_) => shared.pipelines.clear(),
    }
    result
}

fn build(shared: &Arc<Shared>, spec: ProgramSpec) -> Result<WgpuProgram, BackendError> {
    check_ranges(&spec)?;
    let mut temps: Vec<usize> = Vec::new();
    let mut params: Vec<u8> = Vec::new();
    let align = shared.limits.min_uniform_buffer_offset_alignment as usize;
    let binder = Binder {
        caps: &shared.caps,
        lead: &|view| window(shared, view).1,
        resident: &|constant: &GpuConstant| {
            let make = |tensor: &Tensor| Ok(upload(tensor, &shared.device, &shared.queue));
            shared.residency.get(constant, make)
        },
    };
    let mut pending: Vec<Vec<Pending>> = Vec::with_capacity(spec.tasks.len());
    for task in &spec.tasks {
        let place = |bindings: Bindings<wgpu::Buffer>| {
            params.resize(params.len().next_multiple_of(align.max(16)), 0);
            let params_at = params.len() as u64;
            params.extend_from_slice(bytemuck::cast_slice(&bindings.params));
            Pending { bindings, params_at }
        };
        pending.push(
            binder.bind(task, Halves::default(), &mut temps)?.into_iter().map(place).collect(),
        );
    }

    let device = &shared.device;
    let transfers = Transfers::new(shared, &spec);
    let slots = transfers.slot_buffers(shared, &spec);
    let temps: Vec<wgpu::Buffer> = temps
        .into_iter()
        .map(|bytes| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("temporary"),
                size: padded(bytes) as u64,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        })
        .collect();
    let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("parameters"),
        size: padded(params.len()) as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    params.resize(padded(params.len()), 0);
    shared.queue.write_buffer(&uniforms, 0, &params);

    let mut steps = Vec::new();
    let mut tasks = Vec::with_capacity(spec.tasks.len());
    let mut weights: Vec<Arc<Resident<wgpu::Buffer>>> = Vec::new();
    for (task, pending) in spec.tasks.iter().zip(pending) {
        let first = steps.len();
        for pending in pending {
            let name = task.name.clone();
            steps.push(
                shared.fault.scoped(device, &name, || {
                    Ok(step(shared, &pending, &slots, &temps, &uniforms))
                })?,
            );
            for bound in pending.bindings.buffers {
                if let Bound::Resident(resident) = bound
                    && !weights.iter().any(|w| Arc::ptr_eq(w, &resident))
                {
                    weights.push(resident);
                }
            }
        }
        tasks.push(first..steps.len());
    }
    let segments: Vec<Range<usize>> = spec
        .segments
        .iter()
        .map(|range| match (tasks.get(range.start), range.end.checked_sub(1)) {
            (Some(first), Some(last)) if !range.is_empty() => first.start..tasks[last].end,
            _ => 0..0,
        })
        .collect();
    let bytes = slots.iter().map(|b| b.size()).sum::<u64>()
        + temps.iter().map(|b| b.size()).sum::<u64>()
        + uniforms.size()
        + weights.iter().map(|w| w.bytes as u64).sum::<u64>()
        + transfers.staging_bytes();
    Ok(WgpuProgram {
        shared: shared.clone(),
        steps,
        tasks,
        task_segments: spec.segments,
        segments,
        slots,
        transfers,
        weights,
        bytes: bytes as usize,
    })
}

fn upload(tensor: &Tensor, device: &wgpu::Device, queue: &wgpu::Queue) -> Resident<wgpu::Buffer> {
    let data = tensor.bytes();
    let bytes = padded(data.len());
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("constant"),
        size: bytes as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let whole = data.len() & !3;
    if whole > 0 {
        queue.write_buffer(&buffer, 0, &data[..whole]);
    }
    if whole < data.len() {
        let mut last = [0; 4];
        last[..data.len() - whole].copy_from_slice(&data[whole..]);
        queue.write_buffer(&buffer, whole as u64, &last);
    }
    Resident { buffer, bytes }
}

/// Where a view's binding begins in its slot, and where the view begins in the binding, in bytes.
/// Slots are bound from their start as long as the adapter's limit allows, so that one buffer
/// bound twice is bound equally.
fn window(shared: &Shared, view: &View) -> (usize, usize) {
    let end = padded(view.offset + view.bytes) as u64;
    if end <= shared.limits.max_storage_buffer_binding_size {
        return (0, view.offset);
    }
    let align = shared.limits.min_storage_buffer_offset_alignment as usize;
    let start = view.offset - view.offset % align.max(16);
    (start, view.offset - start)
}

fn step(
    shared: &Shared,
    pending: &Pending,
    slots: &[wgpu::Buffer],
    temps: &[wgpu::Buffer],
    uniforms: &wgpu::Buffer,
) -> Step {
    let limit = shared.limits.max_storage_buffer_binding_size;
    let Bindings { dispatch, buffers, params, .. } = &pending.bindings;
    let binding = |bound: &Bound<wgpu::Buffer>| match bound {
        Bound::Slot(view) => {
            let buffer = &slots[view.slot];
            let start = window(shared, view).0 as u64;
            (buffer.clone(), start, (buffer.size() - start).min(limit & !15))
        }
        Bound::Resident(resident) => (resident.buffer.clone(), 0, resident.buffer.size()),
        Bound::Temp(i) => (temps[*i].clone(), 0, temps[*i].size()),
    };
    let buffers: Vec<_> = buffers.iter().map(binding).collect();
    let entry = |binding: usize, buffer, offset, size| wgpu::BindGroupEntry {
        binding: binding as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(size),
        }),
    };
    let mut entries = vec![entry(0, uniforms, pending.params_at, 4 * params.len() as u64)];
    for (i, (buffer, offset, size)) in buffers.iter().enumerate() {
        entries.push(entry(i + 1, buffer, *offset, *size));
    }
    let pipeline = shared.pipelines.get(dispatch);
    let bind_group = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(dispatch.label),
        layout: &shared.pipelines.layout(dispatch),
        entries: &entries,
    });
    Step { pipeline, bind_group, grid: dispatch.grid }
}
