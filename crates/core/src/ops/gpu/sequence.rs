//! The kernel of a fused operator: the kernels of its stages one after the other.

use super::{Binding, GpuKernel};

/// A stage's kernel, where its inputs come from, and the bytes of its one output.
pub(in crate::ops) struct Stage {
    pub(in crate::ops) kernel: GpuKernel,
    pub(in crate::ops) inputs: Vec<Option<StageInput>>,
    pub(in crate::ops) bytes: usize,
}

/// Where a stage's input comes from.
#[derive(Clone, Copy)]
pub(in crate::ops) enum StageInput {
    /// This input of the whole.
    Input(usize),
    /// The stage before it.
    Previous,
}

/// One kernel of all stages. What lies between them becomes temporary buffers.
pub(in crate::ops) fn sequence(stages: Vec<Stage>) -> GpuKernel {
    let mut whole = GpuKernel::default();
    let count = stages.len();
    for (i, Stage { kernel, inputs, bytes }) in stages.into_iter().enumerate() {
        // The stage's own buffers, in the whole's terms; the stage before made the last one.
        let (constants, temps) = (whole.constants.len(), whole.temps.len());
        let output = match i + 1 == count {
            true => Binding::Output(0),
            false => Binding::Temp(temps + kernel.temps.len()),
        };
        let place = |binding: Binding| match binding {
            Binding::Input(j) => match inputs[j] {
                Some(StageInput::Input(index)) => Binding::Input(index),
                Some(StageInput::Previous) => Binding::Temp(temps - 1),
                None => unreachable!("a kernel binds inputs that are there"),
            },
            Binding::Output(_) => output,
            Binding::Constant(j) => Binding::Constant(constants + j),
            Binding::Temp(j) => Binding::Temp(temps + j),
        };
        for mut dispatch in kernel.dispatches {
            for binding in &mut dispatch.bindings {
                *binding = place(*binding);
            }
            whole.dispatches.push(dispatch);
        }
        whole.constants.extend(kernel.constants);
        whole.temps.extend(kernel.temps);
        if i + 1 < count {
            whole.temps.push(bytes);
        }
    }
    whole
}
