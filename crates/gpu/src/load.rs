//! From a program's description to buffers, pipelines and bind groups: everything that launches
//! will need, made once.

use std::{ops::Range, sync::Arc};

use sparoa_core::{
    backend::{Arg, BackendError, ProgramSpec, TaskSpec, View},
    ops::{Binding, Dispatch, GpuCaps, GpuConstant, Operand, Operands},
};

use crate::{
    backend::{Shared, check},
    program::{Step, WgpuProgram},
    residency::{Resident, padded},
    transfer::Transfers,
};

/// Elements of `Params.offsets`.
const OFFSETS: usize = 8;

/// A dispatch with its buffers found, before its parameters have a place in the uniform buffer.
struct Pending {
    dispatch: Dispatch,
    buffers: Vec<Bound>,
    params_at: u64,
    params_bytes: u64,
}

/// A buffer of a dispatch: which, and the bytes in it.
enum Bound {
    Slot(View),
    Resident(Arc<Resident>),
    Temp(usize),
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
    let mut params = Vec::new();
    let mut pending: Vec<Vec<Pending>> = Vec::with_capacity(spec.tasks.len());
    for task in &spec.tasks {
        pending.push(prepare(shared, task, &mut temps, &mut params)?);
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
    let mut weights: Vec<Arc<Resident>> = Vec::new();
    for (task, pending) in spec.tasks.iter().zip(pending) {
        let first = steps.len();
        for pending in pending {
            let name = task.name.clone();
            steps.push(
                shared.fault.scoped(device, &name, || {
                    Ok(step(shared, &pending, &slots, &temps, &uniforms))
                })?,
            );
            for bound in pending.buffers {
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

/// Views lie in their slots and segments in the tasks: a defect of the planner is an error here,
/// not a wrong result.
fn check_ranges(spec: &ProgramSpec) -> Result<(), BackendError> {
    let defect = |at: &str, what: String| {
        Err(BackendError::Kernel { task: at.to_owned(), detail: format!("plan defect: {what}") })
    };
    let bad = |view: &View| {
        let inside = spec
            .slots
            .get(view.slot)
            .is_some_and(|&bytes| view.offset.checked_add(view.bytes).is_some_and(|e| e <= bytes));
        !inside || !view.offset.is_multiple_of(4)
    };
    for task in &spec.tasks {
        let inputs = task.inputs.iter().flatten().filter_map(|arg| match arg {
            Arg::Slot(view, ty) => Some((view, ty)),
            Arg::Constant(_) => None,
        });
        for (view, ty) in inputs.chain(task.outputs.iter().map(|(view, ty)| (view, ty))) {
            if bad(view) || view.bytes != ty.bytes() {
                return defect(&task.name, format!("{view:?} is not {ty}, or not in its slot"));
            }
        }
    }
    for view in spec.uploads.iter().chain(&spec.downloads) {
        if bad(view) || !view.bytes.is_multiple_of(4) {
            return defect("copy", format!("{view:?} is not in its slot, or not whole elements"));
        }
    }
    if let Some(range) = spec.segments.iter().find(|r| r.end > spec.tasks.len() || r.start > r.end)
    {
        return defect("segment", format!("{range:?} is not a range of tasks"));
    }
    Ok(())
}

/// Asks the operator for its kernel, makes its constants resident and lays out its parameters.
fn prepare(
    shared: &Shared,
    task: &TaskSpec,
    temps: &mut Vec<usize>,
    params: &mut Vec<u8>,
) -> Result<Vec<Pending>, BackendError> {
    let refuse = |detail: String| BackendError::Kernel { task: task.name.clone(), detail };
    let inputs: Vec<Option<Operand>> = task
        .inputs
        .iter()
        .map(|arg| {
            arg.as_ref().map(|arg| match arg {
                Arg::Constant(value) => Operand::constant(value.clone()),
                Arg::Slot(_, ty) => Operand::dynamic(ty.clone()),
            })
        })
        .collect();
    let outputs: Vec<_> = task.outputs.iter().map(|(_, ty)| ty.clone()).collect();
    let operands = Operands { inputs: &inputs, outputs: &outputs };
    let aligned = |view: &View| window(shared, view).1.is_multiple_of(16);
    let caps = GpuCaps {
        aligned: task.outputs.iter().all(|(view, _)| aligned(view))
            && task.inputs.iter().flatten().all(|arg| match arg {
                Arg::Slot(view, _) => aligned(view),
                Arg::Constant(_) => true,
            }),
        ..shared.caps.clone()
    };
    let kernel = task.op.gpu(&operands, &caps).ok_or_else(|| {
        refuse(format!("{} has no GPU kernel for these types", task.op.op_type()))
    })?;
    check(&kernel, &operands, &caps).map_err(refuse)?;
    for (i, &bytes) in kernel.temps.iter().enumerate() {
        match temps.get_mut(i) {
            Some(size) => *size = bytes.max(*size),
            None => temps.push(bytes),
        }
    }
    let resident = |constant: &GpuConstant| {
        Bound::Resident(shared.residency.get(constant, &shared.device, &shared.queue))
    };
    let align = shared.limits.min_uniform_buffer_offset_alignment as usize;
    let mut pending = Vec::with_capacity(kernel.dispatches.len());
    for dispatch in kernel.dispatches {
        if dispatch.grid.contains(&0) {
            continue;
        }
        let mut offsets = [0u32; OFFSETS];
        let mut buffers = Vec::with_capacity(dispatch.bindings.len());
        for (offset, &binding) in offsets.iter_mut().zip(&dispatch.bindings) {
            let bound = match binding {
                Binding::Constant(i) => resident(&kernel.constants[i]),
                Binding::Temp(i) => Bound::Temp(i),
                Binding::Output(i) => Bound::Slot(task.outputs[i].0),
                Binding::Input(i) => match &task.inputs[i] {
                    Some(Arg::Slot(view, _)) => Bound::Slot(*view),
                    Some(Arg::Constant(value)) => resident(&GpuConstant::plain(value.clone())),
                    None => return Err(refuse(format!("input {i} is missing"))),
                },
            };
            if let Bound::Slot(view) = &bound {
                *offset = (window(shared, view).1 / 4) as u32;
            }
            buffers.push(bound);
        }
        params.resize(params.len().next_multiple_of(align.max(16)), 0);
        let params_at = params.len() as u64;
        params.extend_from_slice(bytemuck::cast_slice(&offsets));
        params.extend_from_slice(bytemuck::cast_slice(&dispatch.params));
        params.resize(params.len().next_multiple_of(16), 0);
        let params_bytes = params.len() as u64 - params_at;
        pending.push(Pending { dispatch, buffers, params_at, params_bytes });
    }
    Ok(pending)
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
    let binding = |bound: &Bound| match bound {
        Bound::Slot(view) => {
            let buffer = &slots[view.slot];
            let start = window(shared, view).0 as u64;
            (buffer.clone(), start, (buffer.size() - start).min(limit & !15))
        }
        Bound::Resident(resident) => (resident.buffer.clone(), 0, resident.buffer.size()),
        Bound::Temp(i) => (temps[*i].clone(), 0, temps[*i].size()),
    };
    let buffers: Vec<_> = pending.buffers.iter().map(binding).collect();
    let entry = |binding: usize, buffer, offset, size| wgpu::BindGroupEntry {
        binding: binding as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(size),
        }),
    };
    let mut entries = vec![entry(0, uniforms, pending.params_at, pending.params_bytes)];
    for (i, (buffer, offset, size)) in buffers.iter().enumerate() {
        entries.push(entry(i + 1, buffer, *offset, *size));
    }
    let pipeline = shared.pipelines.get(&pending.dispatch);
    let bind_group = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(pending.dispatch.label),
        layout: &shared.pipelines.layout(&pending.dispatch),
        entries: &entries,
    });
    Step { pipeline, bind_group, grid: pending.dispatch.grid }
}
