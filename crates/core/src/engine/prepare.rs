//! Plan -> what the processors need: CPU tasks with kernels, and the accelerator's program.

use std::sync::{Arc, OnceLock};

use sparoa_kernels::pool::Pool;

use super::{EngineError, kernels::KernelCache, walk::Walk};
use crate::{
    backend::{self, ProgramSpec, TaskSpec, ValueAccesses, View},
    ir::Graph,
    ops::CpuKernel,
    plan::{Arg, Plan, Region, Transfer},
    tensor::{Tensor, TensorType},
};

/// A CPU task ready to run.
pub(super) struct CpuTask {
    pub name: String,
    pub op_type: &'static str,
    pub kernel: Arc<dyn CpuKernel>,
    pub inputs: Vec<Option<TaskInput>>,
    pub outputs: Vec<Region>,
}

pub(super) enum TaskInput {
    Constant(Arc<Tensor>),
    /// A constant that the kernel holds.
    Held(TensorType),
    Region(Region),
}

pub(super) fn cpu_tasks(
    plan: &Plan,
    graph: &Graph,
    kernels: &KernelCache,
    pool: &Pool,
) -> Result<Vec<CpuTask>, EngineError> {
    // Packing takes most of the time, and operators are independent of one another.
    let prepared: Vec<OnceLock<_>> = plan.cpu.iter().map(|_| OnceLock::new()).collect();
    pool.run(plan.cpu.len(), &|i| {
        prepared[i].get_or_init(|| kernels.kernel(graph, &plan.cpu[i]));
    });
    plan.cpu
        .iter()
        .zip(prepared)
        .map(|(task, kernel)| {
            let kernel = kernel.into_inner().expect("the pool ran every task")?;
            let input = |(i, arg): (usize, &Option<Arg>)| {
                Some(match arg.as_ref()? {
                    Arg::Constant { ty, value, .. } if kernel.holds(i) => {
                        // Reading its neighbours in the file may have brought it back.
                        graph.value(*value).constant.iter().for_each(|c| c.release());
                        TaskInput::Held(ty.clone())
                    }
                    arg @ Arg::Constant { .. } => TaskInput::Constant(kernels.constant(graph, arg)),
                    Arg::Region(region) => TaskInput::Region(region.clone()),
                })
            };
            Ok(CpuTask {
                name: task.name.clone(),
                op_type: task.op.op_type(),
                inputs: task.inputs.iter().enumerate().map(input).collect(),
                kernel,
                outputs: task.outputs.clone(),
            })
        })
        .collect()
}

/// The accelerator's share of a plan.
pub(super) fn program(
    plan: &Plan,
    walk: &Walk,
    graph: &Graph,
    kernels: &KernelCache,
) -> Result<ProgramSpec, EngineError> {
    let view = |buffer: usize, range: std::ops::Range<usize>| -> Result<View, EngineError> {
        let b = &plan.buffers[buffer];
        let slot = b.slot.ok_or_else(|| crate::plan::PlanError::Bounds {
            buffer: b.name.clone(),
            what: "it is used on the device but has no slot",
        })?;
        Ok(View { slot, offset: range.start, bytes: range.len() })
    };
    let region = |r: &Region| -> Result<(View, TensorType), EngineError> {
        Ok((view(r.buffer, r.range())?, r.ty.clone()))
    };
    let arg = |arg: &Arg| -> Result<backend::Arg, EngineError> {
        Ok(match arg {
            Arg::Constant { .. } => backend::Arg::Constant(kernels.constant(graph, arg)),
            Arg::Region(r) => {
                let (view, ty) = region(r)?;
                backend::Arg::Slot(view, ty)
            }
        })
    };
    let mut tasks = Vec::with_capacity(plan.gpu.len());
    for task in &plan.gpu {
        tasks.push(TaskSpec {
            name: task.name.clone(),
            op: task.op.clone(),
            inputs: task
                .inputs
                .iter()
                .map(|a| a.as_ref().map(arg).transpose())
                .collect::<Result<_, _>>()?,
            outputs: task.outputs.iter().map(region).collect::<Result<_, _>>()?,
        });
    }
    let copies = |list: &[Transfer]| -> Result<Vec<View>, EngineError> {
        list.iter().map(|c| view(c.buffer, c.range.clone())).collect()
    };
    Ok(ProgramSpec {
        tasks,
        segments: plan.segments.clone(),
        slots: plan.slots.clone(),
        uploads: copies(&plan.uploads)?,
        downloads: copies(&plan.downloads)?,
        beside_cpu: !walk.alone,
        values: values(plan),
    })
}

/// The accesses to each buffer on the device.
fn values(plan: &Plan) -> Vec<ValueAccesses> {
    let mut values = vec![ValueAccesses::default(); plan.buffers.len()];
    for (t, task) in plan.gpu.iter().enumerate() {
        for (i, input) in task.inputs.iter().enumerate() {
            if let Some(Arg::Region(region)) = input {
                values[region.buffer].inputs.push((t, i));
            }
        }
        for (i, region) in task.outputs.iter().enumerate() {
            values[region.buffer].outputs.push((t, i));
        }
    }
    for (i, copy) in plan.uploads.iter().enumerate() {
        values[copy.buffer].uploads.push(i);
    }
    for (i, copy) in plan.downloads.iter().enumerate() {
        values[copy.buffer].downloads.push(i);
    }
    values.retain(|value| *value != ValueAccesses::default());
    values
}
