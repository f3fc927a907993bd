//! The kernel of a fused operator: the kernels of its stages one after the other.

use super::{Binding, GpuCaps, GpuKernel, Halves};

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

/// What a stage may use: where its inputs come from tells which are stored in 16 bits.
pub(in crate::ops) fn stage_caps(
    caps: &GpuCaps,
    inputs: &[Option<StageInput>],
    last: bool,
) -> GpuCaps {
    let between = caps.halves.temps;
    let mut halves = Halves { temps: between, ..Halves::default() };
    for (i, input) in inputs.iter().enumerate().take(Halves::OPERANDS) {
        let half = match input {
            Some(StageInput::Input(index)) => caps.halves.input(*index),
            Some(StageInput::Previous) => between,
            None => false,
        };
        halves.inputs |= u64::from(half) << i;
    }
    halves.outputs = if last { caps.halves.outputs } else { u64::from(between) };
    GpuCaps { halves, ..caps.clone() }
}

/// One kernel of all stages. What lies between them becomes temporary buffers, of 16 bits where
/// `caps` has it so.
pub(in crate::ops) fn sequence(stages: Vec<Stage>, caps: &GpuCaps) -> GpuKernel {
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
        let first = whole.dispatches.len();
        whole.standards.extend(kernel.standards.into_iter().map(|s| s.placed(first, place)));
        for mut dispatch in kernel.dispatches {
            for binding in &mut dispatch.bindings {
                *binding = place(*binding);
            }
            whole.dispatches.push(dispatch);
        }
        whole.constants.extend(kernel.constants);
        whole.temps.extend(kernel.temps);
        whole.half_temps.extend(kernel.half_temps.iter().map(|j| temps + j));
        if i + 1 < count {
            if caps.halves.temps {
                whole.half_temps.push(whole.temps.len());
            }
            whole.temps.push(bytes);
        }
    }
    whole
}
