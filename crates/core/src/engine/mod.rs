//! Runs a plan, decides nothing. The caller's thread is the CPU lane; the other lanes have
//! threads of their own where that lets the processors work at once, and are walked by the
//! caller where it does not. A run allocates nothing and takes locks only to sleep.

mod arena;
mod export;
mod kernels;
mod lanes;
mod prepare;
mod signal;
mod trace;
mod walk;

use std::sync::Arc;

use sparoa_kernels::pool::{self, Pool};

use crate::{
    backend::{Accelerator, BackendError, Program, ProgramSpec, available_threads},
    ir::{Graph, NodeId},
    ops::OpError,
    plan::{OutputBytes, Plan, PlanError},
    tensor::{Storage, Tensor, TensorType},
};

pub use export::{TraceSource, chrome_trace};
pub use kernels::KernelCache;
pub use signal::handoff_ns;
pub use trace::{StepTimes, Trace, TraceEvent};

use lanes::Lanes;
use trace::Recorder;
use walk::Walk;

/// What can go wrong when a plan is prepared or run.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A CPU kernel could not be prepared.
    #[error("node '{node}' ({op_type}): {source}")]
    Prepare {
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// Why.
        source: OpError,
    },
    /// A CPU kernel failed on its inputs.
    #[error("node '{task}' ({op_type}): {source}")]
    Kernel {
        /// The node, with its part.
        task: String,
        /// Its operator.
        op_type: &'static str,
        /// Why.
        source: OpError,
    },
    /// The accelerator failed.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// A plan with GPU work, and no GPU to run it.
    #[error("the plan uses the GPU but none was given: plan with --policy cpu")]
    NoAccelerator,
    /// The plan is unsound.
    #[error("internal error: unsound plan: {0}")]
    Plan(#[from] PlanError),
    /// A lane panicked: a defect of a kernel or a driver.
    #[error("internal error on the {lane} lane: {message}")]
    Panic {
        /// The lane.
        lane: &'static str,
        /// The panic's message.
        message: String,
    },
    /// An earlier run left the device in an unknown state.
    #[error("the session is unusable after an earlier failure ({cause}): build it again")]
    Poisoned {
        /// The earlier error.
        cause: String,
    },
    /// A tensor handed to `run` is not what the plan expects.
    #[error("{what} {index}: expected {expected}, given {given}")]
    Tensor {
        /// `input` or `output`.
        what: &'static str,
        /// Its index.
        index: usize,
        /// The plan's type, or how many there must be.
        expected: String,
        /// What was given.
        given: String,
    },
}

/// A prepared plan: kernels packed, memory allocated, device program loaded.
///
/// One inference at a time; several engines may share a pool, a [`KernelCache`] and a device.
pub struct Engine {
    graph: Arc<Graph>,
    pool: Arc<Pool>,
    /// Threads of the pool that the CPU lane uses.
    threads: usize,
    lanes: Lanes,
    scratch: Storage,
    input_types: Vec<TensorType>,
    /// Of [`Engine::run_timed`]; made once.
    recorder: Option<Arc<Recorder>>,
    poisoned: Option<String>,
}

impl Engine {
    /// Prepares a plan of `graph`: verifies it, packs weights that `kernels` does not have yet,
    /// loads the device program.
    ///
    /// # Errors
    /// When a kernel or the device refuses, or the plan is unsound.
    pub fn new(
        plan: Plan,
        graph: &Arc<Graph>,
        kernels: &KernelCache,
        pool: &Arc<Pool>,
        accelerator: Option<&dyn Accelerator>,
    ) -> Result<Engine, EngineError> {
        Engine::prepared_on(pool, plan, graph, kernels, pool, accelerator)
    }

    /// [`Engine::new`] on the calling thread alone: the pool goes on running another engine.
    ///
    /// # Errors
    /// Those of [`Engine::new`].
    pub fn new_beside(
        plan: Plan,
        graph: &Arc<Graph>,
        kernels: &KernelCache,
        pool: &Arc<Pool>,
        accelerator: Option<&dyn Accelerator>,
    ) -> Result<Engine, EngineError> {
        Engine::prepared_on(&Pool::single(), plan, graph, kernels, pool, accelerator)
    }

    fn prepared_on(
        packing: &Pool,
        plan: Plan,
        graph: &Arc<Graph>,
        kernels: &KernelCache,
        pool: &Arc<Pool>,
        accelerator: Option<&dyn Accelerator>,
    ) -> Result<Engine, EngineError> {
        let tasks = prepare::cpu_tasks(&plan, graph, kernels, packing)?;
        let walk = Walk::of(&plan)?;
        let program = match accelerator {
            _ if !plan.uses_gpu() => None,
            None => return Err(EngineError::NoAccelerator),
            Some(accelerator) => {
                Some(accelerator.load(prepare::program(&plan, &walk, graph, kernels)?)?)
            }
        };
        let lanes = Lanes::new(plan, walk, tasks, program, graph.inputs.len())?;
        let all = pool.threads();
        let threads = if lanes.threaded() { beside_lanes(all) } else { all };
        let input_types = graph.inputs.iter().map(|&id| graph.value(id).ty.clone()).collect();
        Ok(Engine {
            graph: graph.clone(),
            pool: pool.clone(),
            threads,
            scratch: Storage::zeroed(lanes.scratch_bytes(threads)),
            lanes,
            input_types,
            recorder: None,
            poisoned: None,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.lanes.plan()
    }

    /// The graph that the plan is of.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Whether the plan lets both processors work at once.
    pub fn is_concurrent(&self) -> bool {
        self.lanes.concurrent()
    }

    /// The loaded device program, if the plan uses the GPU.
    pub fn program(&self) -> Option<&dyn Program> {
        self.lanes.program()
    }

    /// The device program as data, for measurements.
    ///
    /// # Errors
    /// When the plan has no device program.
    pub fn program_spec(&self) -> Result<ProgramSpec, EngineError> {
        prepare::program(self.plan(), self.lanes.walk(), &self.graph, &KernelCache::new())
    }

    /// The nodes that the CPU computes, and the names of their kernels' methods where they have
    /// any.
    pub fn cpu_methods(&self) -> impl Iterator<Item = (NodeId, &'static str)> {
        let nodes = self.plan().cpu.iter().map(|task| task.node);
        nodes.zip(self.lanes.methods()).filter(|(_, method)| !method.is_empty())
    }

    /// Nanoseconds of every CPU task, run alone one after the other on whatever its memory holds;
    /// for profiling, not for inference. Run an inference first, so that it holds plausible
    /// values.
    ///
    /// # Errors
    /// When an input has the wrong type, or an earlier run has poisoned the engine.
    pub fn time_cpu_tasks(&mut self, inputs: &[&Tensor]) -> Result<Vec<u64>, EngineError> {
        self.check_inputs(inputs)?;
        let scratch = self.scratch.bytes_mut();
        let time = || self.lanes.time_tasks(inputs, scratch, &self.pool);
        Ok(pool::with_threads(self.threads, time))
    }

    /// Bytes held on the host: arena, scratch and packed weights (shared ones counted here too).
    pub fn host_bytes(&self) -> usize {
        self.plan().arena_bytes + self.scratch.bytes().len() + self.lanes.weight_bytes()
    }

    /// Bytes held on the device.
    pub fn device_bytes(&self) -> usize {
        self.program().map_or(0, Program::device_bytes)
    }

    /// Zeroed tensors of the outputs' types, for [`Engine::run`].
    pub fn new_outputs(&self) -> Vec<Tensor> {
        self.plan().outputs.iter().map(|o| Tensor::zeros(o.ty.clone())).collect()
    }

    /// Computes the outputs from the inputs, both in the graph's order.
    ///
    /// # Errors
    /// When a tensor has the wrong type, a kernel refuses a run-time value (the engine stays
    /// usable), or the device fails (it does not).
    pub fn run(&mut self, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<(), EngineError> {
        self.run_recorded(inputs, outputs, None)
    }

    /// [`Engine::run`] with the start and end of every step. Each GPU segment is waited for
    /// before the next is submitted, so that its end can be seen.
    ///
    /// # Errors
    /// Those of [`Engine::run`].
    pub fn run_traced(
        &mut self,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
    ) -> Result<Trace, EngineError> {
        let recorder = Arc::new(Recorder::new(self.plan()));
        self.run_recorded(inputs, outputs, Some(recorder.clone()))?;
        Ok(recorder.trace(self.plan()))
    }

    /// [`Engine::run`] with the durations of its steps, GPU segments waited for as in
    /// [`Engine::run_traced`]; allocates in its first call only.
    ///
    /// # Errors
    /// Those of [`Engine::run`].
    pub fn run_timed(
        &mut self,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
        times: &mut StepTimes,
    ) -> Result<(), EngineError> {
        let recorder = match &self.recorder {
            Some(recorder) => recorder.clone(),
            None => self.recorder.insert(Arc::new(Recorder::new(self.lanes.plan()))).clone(),
        };
        self.run_recorded(inputs, outputs, Some(recorder.clone()))?;
        recorder.durations(times);
        Ok(())
    }

    fn check_inputs(&self, inputs: &[&Tensor]) -> Result<(), EngineError> {
        if let Some(cause) = &self.poisoned {
            return Err(EngineError::Poisoned { cause: cause.clone() });
        }
        check("input", inputs.iter().map(|t| t.ty()), self.input_types.iter())
    }

    fn run_recorded(
        &mut self,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
        recorder: Option<Arc<Recorder>>,
    ) -> Result<(), EngineError> {
        self.check_inputs(inputs)?;
        let wanted = self.lanes.plan().outputs.iter().map(|o| &o.ty);
        check("output", outputs.iter().map(Tensor::ty), wanted)?;
        let scratch = self.scratch.bytes_mut();
        let run = || self.lanes.run(inputs, scratch, &self.pool, recorder);
        let result = pool::with_threads(self.threads, run);
        if let Err(error) = result {
            if !matches!(error, EngineError::Kernel { .. }) {
                self.poisoned = Some(error.to_string());
            }
            return Err(error);
        }
        for (i, output) in outputs.iter_mut().enumerate() {
            let to = output.bytes_mut();
            match self.lanes.plan().outputs[i].source {
                OutputBytes::Input(i) => to.copy_from_slice(inputs[i].bytes()),
                OutputBytes::Constant(id) => match &self.graph.value(id).constant {
                    Some(constant) => to.copy_from_slice(constant.bytes()),
                    None => unreachable!("the compiler took it from a constant"),
                },
                OutputBytes::Buffer(buffer) => self.lanes.output(buffer, to),
            }
        }
        Ok(())
    }
}

/// How many of a pool's threads compute while other lanes have threads of their own: these sleep
/// most of the time, but where every core is busy with kernels, a woken one waits for
/// milliseconds until the system gives it a core. So one core is left to them, where that costs
/// little.
fn beside_lanes(threads: usize) -> usize {
    const FEW: usize = 8;
    let all_cores = threads >= available_threads();
    if all_cores && threads >= FEW { threads - 1 } else { threads }
}

fn check<'a>(
    what: &'static str,
    given: impl ExactSizeIterator<Item = &'a TensorType>,
    expected: impl ExactSizeIterator<Item = &'a TensorType>,
) -> Result<(), EngineError> {
    let wrong = |index, expected: String, given: String| {
        Err(EngineError::Tensor { what, index, expected, given })
    };
    if given.len() != expected.len() {
        let count = |n: usize| format!("{n} tensors");
        return wrong(given.len().min(expected.len()), count(expected.len()), count(given.len()));
    }
    for (i, (given, expected)) in given.zip(expected).enumerate() {
        if given != expected {
            return wrong(i, expected.to_string(), given.to_string());
        }
    }
    Ok(())
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.plan().model)
    }
}

#[cfg(test)]
mod tests;
