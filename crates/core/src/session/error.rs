//! What can go wrong with a session.

use crate::{
    analyze::WalkError,
    backend::BackendError,
    energy::EnergyError,
    engine::EngineError,
    ir::{InterpretError, SpecializeError},
    onnx::LoadError,
    plan::{CompileError, PlanFileError},
    schedule::{PinError, ScheduleError},
};

/// An error of building or running a session. Each names what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The model file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Shapes or operators.
    #[error(transparent)]
    Specialize(#[from] SpecializeError),
    /// A policy.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A plan file.
    #[error(transparent)]
    PlanFile(#[from] PlanFileError),
    /// A placement.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Preparing or running a plan.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The accelerator, outside a run.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// The reference.
    #[error("reference: {0}")]
    Reference(#[from] WalkError),
    /// An energy objective is measured, and a sensor failed.
    #[error("energy: {0}; try again, or use --objective latency")]
    Energy(#[from] EnergyError),
    /// The policy needs a GPU.
    #[error("policy {policy} needs a GPU: {reason}; use --policy cpu, or --allow-fallback")]
    NoGpu {
        /// The policy.
        policy: &'static str,
        /// Why there is none.
        reason: String,
    },
    /// The plan does not fit into the memory that it may take.
    #[error(
        "the plan takes {host} bytes on the host and {device} on the GPU, {shortfall} bytes more \
         than --memory-limit {limit}: raise it, use a smaller --batch or another --policy, or give \
         --exact (no transformed copies of weights)"
    )]
    MemoryLimit {
        /// Bytes allowed.
        limit: usize,
        /// Bytes on the host.
        host: usize,
        /// Bytes on the device.
        device: usize,
        /// Bytes beyond the limit.
        shortfall: usize,
    },
    /// There is nothing for the session to adapt.
    #[error("the session cannot adapt to the hardware's state: {reason}")]
    NotAdaptable {
        /// Why.
        reason: String,
    },
    /// bf16 was asked for where the CPU does not have it, or not what bf16x2 takes.
    #[error("precision {precision} is not available: {reason}; use --precision fp32")]
    NoBf16 {
        /// What was asked for.
        precision: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// An input that the model does not have.
    #[error("the model has no input '{name}' (inputs: {inputs})")]
    UnknownInput {
        /// The name given.
        name: String,
        /// The names there are.
        inputs: String,
    },
    /// An input was not given, or given twice.
    #[error("input '{name}' ({expected}) must be given once, given {times} times")]
    InputCount {
        /// The input.
        name: String,
        /// Its type.
        expected: String,
        /// How often it was given.
        times: usize,
    },
    /// An input of the wrong type.
    #[error("input '{name}' must be {expected}, given {given}")]
    InputType {
        /// The input.
        name: String,
        /// Its type.
        expected: String,
        /// The type given.
        given: String,
    },
    /// Outputs cannot be preallocated.
    #[error("output shapes depend on run-time values ({cause}): use run instead of run_into")]
    Dynamic {
        /// What makes them so.
        cause: String,
    },
    /// The data-dependent rest of the model.
    #[error("after the graph: {0}")]
    Tail(#[from] InterpretError),
}
