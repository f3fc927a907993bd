//! From a program's description to memory, kernels and graphs: everything that launches will
//! need, made once.

use std::{ops::Range, sync::Arc};

use sparoa_core::{
    backend::{BackendError, ProgramSpec},
    ops::GpuConstant,
    tensor::Tensor,
};

use super::{
    backend::Shared,
    driver::{DeviceMemory, Launch, Stream},
    program::CudaProgram,
    storage::Storage,
    transfer::Transfers,
};
use crate::{
    bind::{Binder, Bindings, Bound, check_ranges},
    residency::{Resident, padded},
};

pub(crate) fn load(shared: &Arc<Shared>, spec: ProgramSpec) -> Result<CudaProgram, BackendError> {
    check_ranges(&spec)?;
    shared.residency.sweep();
    let binder = Binder {
        caps: &shared.caps,
        // Buffers are passed from the view's first byte on.
        lead: &|_| 0,
        resident: &|constant: &GpuConstant| {
            shared.residency.get(constant, |tensor| upload(shared, tensor))
        },
    };
    let mut temps = Vec::new();
    let halves = Storage::of(&spec, shared.caps.matrix_units);
    let mut bound = Vec::with_capacity(spec.tasks.len());
    for (task, &halves) in spec.tasks.iter().zip(&halves.tasks) {
        bound.push(binder.bind(task, halves, &mut temps)?);
    }
    // Loading compiled kernels needs the context.
    shared.run("compiling kernels", || Ok(()))?;
    shared
        .kernels
        .compile(&shared.context, bound.iter().flatten().map(|b| (&b.dispatch, b.halves)))?;

    let transfers = Transfers::new(shared, &spec, &halves.uploads)?;
    let temps: Vec<DeviceMemory> = temps
        .into_iter()
        .map(|bytes| {
            shared.run("temporary buffers", || DeviceMemory::new(&shared.context, padded(bytes)))
        })
        .collect::<Result<_, _>>()?;
    let mut launches = Vec::new();
    let mut tasks = Vec::with_capacity(spec.tasks.len());
    let mut weights: Vec<Arc<Resident<DeviceMemory>>> = Vec::new();
    for (task, bound) in spec.tasks.iter().zip(bound) {
        let first = launches.len();
        for bindings in bound {
            let made = launch(shared, &bindings, &transfers, &temps);
            launches.push(
                made.map_err(|detail| BackendError::Kernel { task: task.name.clone(), detail })?,
            );
            for buffer in bindings.buffers {
                if let Bound::Resident(resident) = buffer
                    && !weights.iter().any(|w| Arc::ptr_eq(w, &resident))
                {
                    weights.push(resident);
                }
            }
        }
        tasks.push(first..launches.len());
    }
    let stream = shared.run("a stream", || Stream::new(&shared.context))?;
    let segment = |range: &Range<usize>| -> Range<usize> {
        match (tasks.get(range.start), range.end.checked_sub(1)) {
            (Some(first), Some(last)) if !range.is_empty() => first.start..tasks[last].end,
            _ => 0..0,
        }
    };
    let mut graphs = Vec::with_capacity(spec.segments.len());
    for range in spec.segments.iter().map(segment) {
        let launches = &launches[range];
        graphs.push(match launches {
            [] => None,
            _ => Some(shared.run("recording a segment", || {
                stream.capture(|| {
                    // SAFETY: `launch` compared the arguments with the kernel's text; the program
                    // owns the buffers and waits for the device before it drops them.
                    launches.iter().try_for_each(|l| unsafe { stream.launch(l) })
                })
            })?),
        });
    }
    // Fills of memory run on a stream of their own.
    shared.run("loading the program", || {
        shared.context.wait_fills()?;
        stream.synchronize()
    })?;
    let bytes = transfers.bytes()
        + temps.iter().map(|t| t.bytes).sum::<usize>()
        + weights.iter().map(|w| w.bytes).sum::<usize>();
    Ok(CudaProgram {
        graphs,
        launches,
        tasks,
        task_segments: spec.segments,
        stream,
        transfers,
        temps,
        weights,
        bytes,
        shared: shared.clone(),
    })
}

/// A constant's contents on the device.
fn upload(shared: &Shared, tensor: &Tensor) -> Result<Resident<DeviceMemory>, BackendError> {
    let bytes = padded(tensor.bytes().len());
    shared.run("weights", || {
        let buffer = DeviceMemory::new(&shared.context, bytes)?;
        buffer.fill(tensor.bytes())?;
        Ok(Resident { buffer, bytes })
    })
}

/// A dispatch as a launch, after comparing it with what the kernel's text declares.
fn launch(
    shared: &Shared,
    bindings: &Bindings<DeviceMemory>,
    transfers: &Transfers,
    temps: &[DeviceMemory],
) -> Result<Launch, String> {
    let Bindings { dispatch, buffers, params, halves } = bindings;
    let loaded = shared.kernels.get(dispatch, *halves).ok_or("its kernel was not compiled")?;
    let kernel = &loaded.kernel;
    if kernel.buffers != buffers.len() || kernel.params_bytes != 4 * params.len() {
        return Err(format!(
            "{} declares {} buffers and {} bytes of parameters, and gets {} and {}",
            dispatch.label,
            kernel.buffers,
            kernel.params_bytes,
            buffers.len(),
            4 * params.len()
        ));
    }
    let buffers = buffers.iter().enumerate().map(|(i, bound)| match bound {
        Bound::Slot(view) => transfers.address(view, halves >> i & 1 == 1),
        Bound::Resident(resident) => resident.buffer.address,
        Bound::Temp(i) => temps[*i].address,
    });
    Ok(Launch {
        function: loaded.function.clone(),
        grid: dispatch.grid,
        threads: kernel.threads,
        params: params.clone(),
        buffers: buffers.collect(),
    })
}
