//! From a task to dispatches with their buffers found and their parameters laid out: what every
//! backend does before it makes objects of its own.

use std::sync::Arc;

use sparoa_core::{
    backend::{Arg, BackendError, ProgramSpec, TaskSpec, View},
    ops::{Binding, Dispatch, GpuCaps, GpuConstant, GpuKernel, Halves, Op, Operand, Operands},
    tensor::{DType, TensorType},
};

use crate::residency::{Resident, padded};

/// Elements of `Params.offsets`.
const OFFSETS: usize = 8;

/// A dispatch and what it works on.
pub(crate) struct Bindings<B> {
    pub(crate) dispatch: Dispatch,
    pub(crate) buffers: Vec<Bound<B>>,
    /// The whole `Params` block, padded to 16 bytes.
    pub(crate) params: Vec<u32>,
    /// The buffers that hold numbers of 16 bits for what the dispatch declares as f32, a bit for each.
    pub(crate) halves: u8,
}

/// A buffer of a dispatch: which, and the bytes in it.
pub(crate) enum Bound<B> {
    /// A view in bytes of f32, also where its elements have 16 bits.
    Slot(View),
    Resident(Arc<Resident<B>>),
    Temp(usize),
}

/// What binding needs of a backend.
pub(crate) struct Binder<'a, B> {
    pub(crate) caps: &'a GpuCaps,
    /// Bytes between the start of a view's binding and the view.
    pub(crate) lead: &'a dyn Fn(&View) -> usize,
    /// Makes a constant resident.
    pub(crate) resident: &'a dyn Fn(&GpuConstant) -> Result<Arc<Resident<B>>, BackendError>,
}

/// An operator's kernel, and the operands that it was asked for.
pub(crate) struct Described {
    pub(crate) kernel: GpuKernel,
    inputs: Vec<Option<Operand>>,
    outputs: Vec<TensorType>,
    halves: Halves,
}

impl<B> Binder<'_, B> {
    /// Asks the operator for its kernel and finds the buffers of its dispatches; `temps` grows to
    /// the bytes that its temporary buffers need. `halves`: the task's operands that are stored in
    /// 16 bits.
    pub(crate) fn bind(
        &self,
        task: &TaskSpec,
        halves: Halves,
        temps: &mut Vec<usize>,
    ) -> Result<Vec<Bindings<B>>, BackendError> {
        let described = self.describe(task, halves, temps)?;
        let dispatches = described.kernel.dispatches.iter();
        let bound = dispatches.map(|dispatch| self.dispatch(task, &described, dispatch));
        bound.filter_map(Result::transpose).collect()
    }

    /// Asks the operator for its kernel; `temps` and `halves` as in [`Binder::bind`].
    pub(crate) fn describe(
        &self,
        task: &TaskSpec,
        halves: Halves,
        temps: &mut Vec<usize>,
    ) -> Result<Described, BackendError> {
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
        let aligned = |view: &View, half| place(view, half).is_multiple_of(16);
        let caps = GpuCaps {
            aligned: task
                .outputs
                .iter()
                .enumerate()
                .all(|(i, (view, _))| aligned(view, halves.output(i)))
                && task.inputs.iter().enumerate().all(|(i, arg)| match arg {
                    Some(Arg::Slot(view, _)) => aligned(view, halves.input(i)),
                    Some(Arg::Constant(_)) | None => true,
                }),
            halves,
            ..self.caps.clone()
        };
        let kernel = kernel(task.op.as_ref(), &operands, &caps).map_err(refuse)?;
        for (i, &bytes) in kernel.temps.iter().enumerate() {
            match temps.get_mut(i) {
                Some(size) => *size = bytes.max(*size),
                None => temps.push(bytes),
            }
        }
        Ok(Described { kernel, inputs, outputs, halves })
    }

    /// Finds the buffers of a dispatch; nothing where it has nothing to do.
    pub(crate) fn dispatch(
        &self,
        task: &TaskSpec,
        described: &Described,
        dispatch: &Dispatch,
    ) -> Result<Option<Bindings<B>>, BackendError> {
        if dispatch.grid.contains(&0) {
            return Ok(None);
        }
        let Described { kernel, inputs, outputs, halves } = described;
        let mut params = vec![0u32; OFFSETS];
        let mut buffers = Vec::with_capacity(dispatch.bindings.len());
        let operands = Operands { inputs, outputs };
        let halves = half_buffers(dispatch, &kernel.half_temps, &operands, *halves);
        for (offset, &binding) in params.iter_mut().zip(&dispatch.bindings) {
            let buffer = self.buffer(task, kernel, binding)?;
            if let Bound::Slot(view) = &buffer {
                *offset = ((self.lead)(view) / 4) as u32;
            }
            buffers.push(buffer);
        }
        params.extend_from_slice(&dispatch.params);
        params.resize(params.len().next_multiple_of(4), 0);
        Ok(Some(Bindings { dispatch: dispatch.clone(), buffers, params, halves }))
    }

    /// The buffer of a binding.
    pub(crate) fn buffer(
        &self,
        task: &TaskSpec,
        kernel: &GpuKernel,
        binding: Binding,
    ) -> Result<Bound<B>, BackendError> {
        Ok(match binding {
            Binding::Constant(i) => Bound::Resident((self.resident)(&kernel.constants[i])?),
            Binding::Temp(i) => Bound::Temp(i),
            Binding::Output(i) => Bound::Slot(task.outputs[i].0),
            Binding::Input(i) => match &task.inputs[i] {
                Some(Arg::Slot(view, _)) => Bound::Slot(*view),
                Some(Arg::Constant(value)) => {
                    Bound::Resident((self.resident)(&GpuConstant::plain(value.clone()))?)
                }
                None => {
                    let detail = format!("input {i} is missing");
                    return Err(BackendError::Kernel { task: task.name.clone(), detail });
                }
            },
        })
    }
}

/// The buffers of a dispatch that are stored in 16 bits, a bit for each.
pub(crate) fn half_buffers(
    dispatch: &Dispatch,
    half_temps: &[usize],
    operands: &Operands<'_>,
    halves: Halves,
) -> u8 {
    let half = |binding: &Binding| match *binding {
        Binding::Input(i) => halves.input(i) && operands.constant(i).is_none(),
        Binding::Output(i) => halves.output(i),
        Binding::Temp(i) => half_temps.contains(&i),
        Binding::Constant(_) => false,
    };
    let bits = dispatch.bindings.iter().take(8).enumerate();
    bits.fold(0, |bits, (i, binding)| bits | u8::from(half(binding)) << i)
}

/// Where a view begins in its slot: of 16-bit numbers, halfway.
pub(crate) fn place(view: &View, half: bool) -> usize {
    if half { view.offset / 2 } else { view.offset }
}

/// Views lie in their slots and segments in the tasks: a defect of the planner is an error here,
/// not a wrong result.
pub(crate) fn check_ranges(spec: &ProgramSpec) -> Result<(), BackendError> {
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

/// An operator's kernel, if it has one that the adapter's limits admit.
pub(crate) fn kernel(
    op: &dyn Op,
    operands: &Operands<'_>,
    caps: &GpuCaps,
) -> Result<GpuKernel, String> {
    let kernel = op
        .gpu(operands, caps)
        .ok_or_else(|| format!("{} has no GPU kernel for these types", op.op_type()))?;
    check(&kernel, operands, caps)?;
    Ok(kernel)
}

fn check(kernel: &GpuKernel, operands: &Operands<'_>, caps: &GpuCaps) -> Result<(), String> {
    for dispatch in &kernel.dispatches {
        if let Some(&groups) = dispatch.grid.iter().find(|&&g| g > caps.max_grid) {
            return Err(format!("{groups} workgroups exceed the adapter's {}", caps.max_grid));
        }
        if dispatch.bindings.len() > 8 {
            return Err(format!("{} needs more than 8 buffers", dispatch.label));
        }
        for &binding in &dispatch.bindings {
            let (bytes, dtype) = match binding {
                Binding::Input(i) => {
                    let operand = operands.get(i).ok_or_else(|| format!("input {i} is missing"))?;
                    (operand.ty.bytes(), Some(operand.ty.dtype))
                }
                Binding::Output(i) => {
                    let ty = operands
                        .outputs
                        .get(i)
                        .ok_or_else(|| format!("output {i} does not exist"))?;
                    (ty.bytes(), Some(ty.dtype))
                }
                // Forms only rearrange or shrink.
                Binding::Constant(i) => (kernel.constants[i].source.ty().bytes(), None),
                Binding::Temp(i) => (kernel.temps[i], None),
            };
            if dtype.is_some_and(|d| !matches!(d, DType::F32 | DType::I32 | DType::U32)) {
                return Err("the GPU holds 32-bit elements only".to_owned());
            }
            if padded(bytes) as u64 > caps.max_binding_bytes {
                return Err(format!(
                    "a tensor of {bytes} bytes exceeds the adapter's limit of {}",
                    caps.max_binding_bytes
                ));
            }
        }
    }
    Ok(())
}
