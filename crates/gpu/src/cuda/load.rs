//! From a program's description to memory, kernels and graphs: everything that launches will
//! need, made once.

use std::{ops::Range, sync::Arc};

use sparoa_core::{
    backend::{BackendError, ProgramSpec},
    ops::GpuConstant,
    tensor::Tensor,
};

use super::{
    driver::{Address, DeviceMemory, Launch, Stream, Turn},
    opened::Shared,
    parts::{self, Part},
    program::{CudaProgram, Step},
    recording,
    storage::Storage,
    transfer::Transfers,
};
use crate::{
    bind::{Binder, Bindings, Bound, check_ranges},
    copies::{Direct, give_own_slots},
    residency::{Resident, padded},
};

/// `direct`: which copies are, where the program allows it.
pub(crate) fn load(
    shared: &Arc<Shared>,
    mut spec: ProgramSpec,
    direct: Direct,
) -> Result<CudaProgram, BackendError> {
    check_ranges(&spec)?;
    give_own_slots(&mut spec, direct);
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
    // Loading compiled kernels needs the context, and so do libraries.
    shared.run("compiling kernels", || Ok(()))?;
    let mut bound = Vec::with_capacity(spec.tasks.len());
    for (task, &halves) in spec.tasks.iter().zip(&halves.tasks) {
        bound.push(parts::of(shared, &binder, task, halves, &mut temps)?);
    }
    let kernels = bound.iter().flatten().flat_map(Part::kernels);
    shared.kernels.compile(&shared.context, kernels.map(|b| (&b.dispatch, b.halves)))?;

    let stream = Arc::new(shared.run("a stream", || Stream::new(&shared.context))?);
    let transfers = Transfers::new(shared, &spec, &halves.uploads, direct, &stream)?;
    let temps: Vec<DeviceMemory> = temps
        .into_iter()
        .map(|bytes| {
            shared.run("temporary buffers", || DeviceMemory::new(&shared.context, padded(bytes)))
        })
        .collect::<Result<_, _>>()?;
    let places = Places { shared, transfers: &transfers, temps: &temps };
    parts::choose(&places, &mut bound)?;
    let workspace = bound.iter().flatten().map(Part::workspace).max().unwrap_or(0);
    let workspace = match workspace {
        0 => None,
        bytes => Some(shared.run("a workspace", || DeviceMemory::new(&shared.context, bytes))?),
    };
    let space = workspace.as_ref().map_or(0, |memory| memory.address);
    let mut steps = Vec::new();
    let mut tasks = Vec::with_capacity(spec.tasks.len());
    let mut weights: Vec<Arc<Resident<DeviceMemory>>> = Vec::new();
    for (task, bound) in spec.tasks.iter().zip(bound) {
        let first = steps.len();
        for part in bound {
            part.residents(&mut |resident| {
                if !weights.iter().any(|w| Arc::ptr_eq(w, resident)) {
                    weights.push(resident.clone());
                }
            });
            let made = part.steps(&places, space, &mut steps);
            made.map_err(|detail| BackendError::Kernel { task: task.name.clone(), detail })?;
        }
        tasks.push(first..steps.len());
    }
    // What a library runs first it loads first, which is no part of a graph.
    shared.run("starting libraries", || {
        // Fills of memory run on a stream of their own.
        shared.context.wait_fills()?;
        for step in steps.iter().filter(|step| matches!(step, Step::Library(_))) {
            // SAFETY: as below.
            unsafe { step.queue(&stream, Turn::default()) }?;
        }
        stream.synchronize()
    })?;
    let segment = |range: &Range<usize>| -> Range<usize> {
        match (tasks.get(range.start), range.end.checked_sub(1)) {
            (Some(first), Some(last)) if !range.is_empty() => first.start..tasks[last].end,
            _ => 0..0,
        }
    };
    // SAFETY: `launch` compared the arguments with the kernels' texts; the program owns the buffers and
    // waits for the device before it drops them.
    let record = |steps: &[Step]| unsafe { recording::record(&stream, steps) };
    let mut graphs = Vec::with_capacity(spec.segments.len());
    for range in spec.segments.iter().map(segment) {
        graphs.push(match &steps[range] {
            [] => None,
            steps => Some(shared.run("recording a segment", || record(steps))?),
        });
    }
    let bytes = transfers.bytes()
        + temps.iter().chain(&workspace).map(|t| t.bytes).sum::<usize>()
        + weights.iter().map(|w| w.bytes).sum::<usize>();
    Ok(CudaProgram {
        graphs,
        steps,
        tasks,
        task_segments: spec.segments,
        stream,
        transfers,
        temps,
        workspace,
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

/// Where a program's buffers are.
pub(crate) struct Places<'a> {
    pub(crate) shared: &'a Shared,
    transfers: &'a Transfers,
    temps: &'a [DeviceMemory],
}

impl Places<'_> {
    /// The address of a buffer whose elements may be stored in 16 bits.
    pub(crate) fn address(&self, bound: &Bound<DeviceMemory>, half: bool) -> Address {
        match bound {
            Bound::Slot(view) => self.transfers.address(view, half),
            Bound::Resident(resident) => resident.buffer.address,
            Bound::Temp(i) => self.temps[*i].address,
        }
    }

    /// Bytes of temporary buffer `i`.
    pub(crate) fn temp_bytes(&self, i: usize) -> usize {
        self.temps[i].bytes
    }

    /// A dispatch as a launch, after comparing it with what the kernel's text declares. `address`: of
    /// its buffer `i`.
    pub(crate) fn launch(
        &self,
        bindings: &Bindings<DeviceMemory>,
        address: &dyn Fn(usize, &Bound<DeviceMemory>) -> Address,
    ) -> Result<Launch, String> {
        let Bindings { dispatch, buffers, params, halves } = bindings;
        let loaded =
            self.shared.kernels.get(dispatch, *halves).ok_or("its kernel was not compiled")?;
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
        Ok(Launch {
            function: loaded.function.clone(),
            grid: dispatch.grid,
            threads: kernel.threads,
            params: params.clone(),
            spread: dispatch.spread,
            cluster: dispatch.cluster,
            buffers: buffers.iter().enumerate().map(|(i, bound)| address(i, bound)).collect(),
        })
    }

    /// The launch of a dispatch in its own buffers.
    pub(crate) fn own(&self, bindings: &Bindings<DeviceMemory>) -> Result<Launch, String> {
        self.launch(bindings, &|i, bound| self.address(bound, bindings.halves >> i & 1 == 1))
    }
}
