//! Placement -> Plan: which processor runs each operator, turned into lanes of steps with copies,
//! events and memory. A plan is an inert value: it holds no device, no thread, no tensor.
//!
//! Copies, signals and waits are made here and nowhere else. [`compile`] ends with [`verify`],
//! the proof on which the engine's memory relies.

mod clocks;
mod dataflow;
mod display;
mod dot;
mod file;
mod lower;
mod memory;
mod order;
mod placement;
mod residency;
mod support;
mod verify;

use std::{fmt, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    backend::Device,
    ir::{NodeId, ValueId},
    ops::Op,
    tensor::TensorType,
};

pub use dot::dot;
pub use file::{Hardware, PLAN_FILE_VERSION, PlanFile, PlanFileError, PlanNode, fingerprint};
pub use lower::{CompileError, compile};
pub use placement::{Place, Placement};
pub use support::{SplitAxis, Support, part_reads};
pub use verify::{PlanError, verify};

pub(crate) use clocks::overlapping_processors;
pub(crate) use support::slice_tensor;

/// A queue of steps that run in order, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// The CPU's kernels; the caller's thread.
    Cpu,
    /// Submissions to the GPU.
    Gpu,
    /// Uploads.
    HostToDevice,
    /// Downloads.
    DeviceToHost,
}

impl Lane {
    /// All lanes, by index.
    pub const ALL: [Lane; 4] = [Lane::Cpu, Lane::Gpu, Lane::HostToDevice, Lane::DeviceToHost];

    /// Index in [`Lane::ALL`] and [`Plan::lanes`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Short name, as in text and traces.
    pub const fn name(self) -> &'static str {
        match self {
            Lane::Cpu => "cpu",
            Lane::Gpu => "gpu",
            Lane::HostToDevice => "upload",
            Lane::DeviceToHost => "download",
        }
    }

    /// The only lane that this one ever waits for: data move in a circle.
    pub(crate) const fn awaited(self) -> Lane {
        match self {
            Lane::Cpu => Lane::DeviceToHost,
            Lane::HostToDevice => Lane::Cpu,
            Lane::Gpu => Lane::HostToDevice,
            Lane::DeviceToHost => Lane::Gpu,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a lane does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Runs a task of [`Plan::cpu`] to its end. CPU lane only.
    Run(usize),
    /// Submits a segment of [`Plan::segments`] and goes on. GPU lane only.
    Submit(usize),
    /// Runs a copy of the lane's direction to its end. A download first waits for the GPU to
    /// finish what it copies.
    Copy(usize),
    /// Lets the waiter of an event pass; from the GPU lane it says "submitted".
    Signal(usize),
    /// Waits for an event.
    Wait(usize),
}

/// How a placement is executed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The graph's name.
    pub model: String,
    /// Tasks of the CPU lane, in execution order.
    pub cpu: Vec<Task>,
    /// Tasks of the GPU lane, in execution order.
    pub gpu: Vec<Task>,
    /// Consecutive ranges of `gpu`, each one submission.
    pub segments: Vec<Range<usize>>,
    /// Host-to-device copies, in execution order.
    pub uploads: Vec<Transfer>,
    /// Device-to-host copies, in execution order.
    pub downloads: Vec<Transfer>,
    /// Steps of each lane, by [`Lane::index`].
    pub lanes: [Vec<Step>; 4],
    /// Number of events.
    pub events: usize,
    /// Memory of the run-time values.
    pub buffers: Vec<Buffer>,
    /// Bytes of host memory that the buffers share.
    pub arena_bytes: usize,
    /// Bytes of each device slot.
    pub slots: Vec<usize>,
    /// Where the graph's outputs are when the lanes have ended.
    pub outputs: Vec<OutputPlace>,
}

/// An operator, or a part of a split one, on one processor.
#[derive(Clone)]
pub struct Task {
    /// The node.
    pub node: NodeId,
    /// Name for traces: the node's, with the part.
    pub name: String,
    /// The part that is computed; `None` for the whole.
    pub part: Option<PartRange>,
    /// What is computed.
    pub op: Arc<dyn Op>,
    /// Inputs; `None` for an omitted one.
    pub inputs: Vec<Option<Arg>>,
    /// Outputs.
    pub outputs: Vec<Region>,
}

/// Which part of a node's output a task computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartRange {
    /// Axis of the output.
    pub axis: usize,
    /// Half-open range of indices.
    pub range: Range<usize>,
    /// Length of the axis.
    pub extent: usize,
}

impl PartRange {
    /// The part's share of the whole.
    pub fn fraction(&self) -> f64 {
        self.range.len() as f64 / self.extent.max(1) as f64
    }
}

impl Task {
    /// Share of the node that the task computes.
    pub fn fraction(&self) -> f64 {
        self.part.as_ref().map_or(1.0, PartRange::fraction)
    }
}

impl PartialEq for Task {
    fn eq(&self, other: &Task) -> bool {
        // An operator is its attributes, and its text shows all of them.
        self.node == other.node
            && self.part == other.part
            && self.inputs == other.inputs
            && self.outputs == other.outputs
            && format!("{:?}", self.op) == format!("{:?}", other.op)
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({} {:?} {:?} -> {:?})", self.name, self.op, self.inputs, self.outputs)
    }
}

/// Input of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A constant of the graph.
    Constant {
        /// The value that holds it.
        value: ValueId,
        /// The axis and range of it that is read; `None` for all of it.
        slice: Option<(usize, Range<usize>)>,
        /// The type of what is read.
        ty: TensorType,
    },
    /// A run-time value.
    Region(Region),
}

impl Arg {
    /// Type of what is read.
    pub fn ty(&self) -> &TensorType {
        match self {
            Arg::Constant { ty, .. } => ty,
            Arg::Region(region) => &region.ty,
        }
    }
}

/// A typed range of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Index in [`Plan::buffers`].
    pub buffer: usize,
    /// First byte.
    pub offset: usize,
    /// Type; its size is the range's length.
    pub ty: TensorType,
}

impl Region {
    /// The bytes of the buffer that it covers.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.ty.bytes()
    }
}

/// A copy between host and device: the same range of a buffer on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Index in [`Plan::buffers`].
    pub buffer: usize,
    /// Bytes of it.
    pub range: Range<usize>,
}

/// A run-time value's memory (all values that are views of each other share one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name of the value that owns it.
    pub name: String,
    /// Its size.
    pub bytes: usize,
    /// Place in host memory, where it is needed there.
    pub host: Option<HostPlace>,
    /// Device slot, where it is needed there; it begins at the slot's first byte.
    pub slot: Option<usize>,
}

/// Where a buffer lies in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPlace {
    /// It is a graph input, read where the caller holds it.
    Input(usize),
    /// Offset in the arena, a multiple of [`ARENA_ALIGN`].
    Arena(usize),
}

/// Alignment of host buffers.
pub const ARENA_ALIGN: usize = 64;

/// Where a graph output is found.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputPlace {
    /// Its type.
    pub ty: TensorType,
    /// Its bytes.
    pub source: OutputBytes,
}

/// Bytes of a graph output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputBytes {
    /// Those of a graph input.
    Input(usize),
    /// Those of a constant.
    Constant(ValueId),
    /// Those of a buffer in host memory.
    Buffer(usize),
}

impl Plan {
    /// Steps of a lane.
    pub fn lane(&self, lane: Lane) -> &[Step] {
        &self.lanes[lane.index()]
    }

    /// Whether the accelerator has anything to do.
    pub fn uses_gpu(&self) -> bool {
        !self.gpu.is_empty() || !self.uploads.is_empty() || !self.downloads.is_empty()
    }

    /// Bytes copied in each direction: uploads, downloads.
    pub fn copied_bytes(&self) -> (usize, usize) {
        let sum = |copies: &[Transfer]| copies.iter().map(|c| c.range.len()).sum();
        (sum(&self.uploads), sum(&self.downloads))
    }

    /// Nodes with work on each processor, as (cpu, gpu, split) counts.
    pub fn node_counts(&self) -> (usize, usize, usize) {
        let parts = |tasks: &[Task]| tasks.iter().filter(|t| t.part.is_some()).count();
        let split = parts(&self.cpu).min(parts(&self.gpu));
        (self.cpu.len() - parts(&self.cpu), self.gpu.len() - parts(&self.gpu), split)
    }

    /// What a step does, in words: a task's name, a segment's first and last task, a value.
    pub fn step_name(&self, lane: Lane, step: Step) -> String {
        match step {
            Step::Run(task) => self.cpu[task].name.clone(),
            Step::Submit(segment) => match &self.gpu[self.segments[segment].clone()] {
                [] => String::new(),
                [only] => only.name.clone(),
                [first, .., last] => format!("{} .. {}", first.name, last.name),
            },
            Step::Copy(copy) => {
                let copies = match lane {
                    Lane::HostToDevice => &self.uploads,
                    _ => &self.downloads,
                };
                self.buffers[copies[copy].buffer].name.clone()
            }
            Step::Signal(event) => format!("signal {event}"),
            Step::Wait(event) => format!("wait {event}"),
        }
    }

    /// The task list of a processor.
    pub fn tasks(&self, device: Device) -> &[Task] {
        match device {
            Device::Cpu => &self.cpu,
            Device::Gpu => &self.gpu,
        }
    }
}

#[cfg(test)]
mod tests;
