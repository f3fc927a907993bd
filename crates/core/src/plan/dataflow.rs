//! Placement -> actions: the tasks and copies of a plan with their dependencies, before any order
//! within a lane is decided.

use super::{
    Arg, CompileError, Lane, OutputBytes, OutputPlace, PartRange, Place, Placement, Region,
    Support, Task, Transfer,
    residency::Residency,
    support::{is_view, part_of},
};
use crate::{
    backend::Device,
    ir::{Graph, Node, NodeId, ValueId},
    tensor::TensorType,
};

/// Something that a lane does.
pub(super) struct Action {
    pub lane: Lane,
    pub work: Work,
    /// Actions that must be complete before it: indices below its own.
    pub deps: Vec<usize>,
}

pub(super) enum Work {
    Task(Box<Task>),
    Copy(Transfer),
}

/// A value's memory, before it has a place.
pub(super) struct Store {
    pub name: String,
    pub bytes: usize,
    /// Index of the graph input that it is.
    pub input: Option<usize>,
}

pub(super) struct Dataflow {
    /// In an order that respects `deps`.
    pub actions: Vec<Action>,
    pub stores: Vec<Store>,
    pub outputs: Vec<OutputPlace>,
    /// Actions that must be complete before the outputs may be read.
    pub finish: Vec<usize>,
}

/// What a graph value is once views are seen through.
#[derive(Clone, Copy)]
enum Origin {
    Undefined,
    Constant(ValueId),
    Store(usize),
}

struct Builder<'a> {
    graph: &'a Graph,
    origins: Vec<Origin>,
    actions: Vec<Action>,
    stores: Vec<Store>,
    /// By store, then by device.
    present: Vec<[Residency; 2]>,
}

pub(super) fn build(
    graph: &Graph,
    placement: &Placement,
    support: &Support,
) -> Result<Dataflow, CompileError> {
    if placement.places.len() != graph.nodes.len() {
        return Err(CompileError::Length {
            places: placement.places.len(),
            nodes: graph.nodes.len(),
        });
    }
    let mut b = Builder {
        graph,
        origins: vec![Origin::Undefined; graph.values.len()],
        actions: Vec::new(),
        stores: Vec::new(),
        present: Vec::new(),
    };
    for (i, value) in graph.values.iter().enumerate() {
        if value.constant.is_some() {
            b.origins[i] = Origin::Constant(ValueId::new(i));
        }
    }
    for (i, &id) in graph.inputs.iter().enumerate() {
        let store = b.define(id);
        b.stores[store].input = Some(i);
        let bytes = b.stores[store].bytes;
        b.present[store][Device::Cpu as usize].add(0..bytes, None);
    }
    let alive = alive(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        if alive[i] {
            b.node(NodeId::new(i), node, placement.places[i], support)?;
        }
    }
    let (outputs, finish) = b.outputs();
    Ok(Dataflow { actions: b.actions, stores: b.stores, outputs, finish })
}

/// Which nodes lead to an output.
fn alive(graph: &Graph) -> Vec<bool> {
    let mut wanted = vec![false; graph.values.len()];
    for id in &graph.outputs {
        wanted[id.index()] = true;
    }
    let mut alive = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        alive[i] = node.outputs.iter().flatten().any(|id| wanted[id.index()]);
        if alive[i] {
            for id in node.inputs.iter().flatten() {
                wanted[id.index()] = true;
            }
        }
    }
    alive
}

impl Builder<'_> {
    /// Gives a value memory of its own.
    fn define(&mut self, id: ValueId) -> usize {
        let value = self.graph.value(id);
        let store = self.store(value.name.clone(), value.ty.bytes());
        self.origins[id.index()] = Origin::Store(store);
        store
    }

    fn store(&mut self, name: String, bytes: usize) -> usize {
        self.stores.push(Store { name, bytes, input: None });
        self.present.push([Residency::default(), Residency::default()]);
        self.stores.len() - 1
    }

    fn node(
        &mut self,
        id: NodeId,
        node: &Node,
        place: Place,
        support: &Support,
    ) -> Result<(), CompileError> {
        if is_view(self.graph, node) {
            if let (Some(Some(input)), Some(Some(output))) =
                (node.inputs.first(), node.outputs.first())
            {
                self.origins[output.index()] = self.origins[input.index()];
            }
            return Ok(());
        }
        let refused = |reason: String| CompileError::Unsupported {
            node: node.name.clone(),
            op_type: node.op.op_type(),
            place,
            reason,
        };
        if place != Place::Cpu
            && let Some(Err(reason)) = support.gpu.get(id.index())
        {
            return Err(refused(reason.clone()));
        }
        let (device, share) = match place {
            Place::Cpu => (Device::Cpu, None),
            Place::Gpu => (Device::Gpu, None),
            Place::Split(share) => {
                let axis = support.split.get(id.index()).copied().flatten();
                let axis = axis.ok_or_else(|| refused("it cannot be split".to_owned()))?;
                match axis.gpu_extent(share) {
                    0 => (Device::Cpu, None),
                    units if units == axis.extent => (Device::Gpu, None),
                    units => (Device::Gpu, Some((axis, units))),
                }
            }
        };
        let outputs = self.graph.output_types(node);
        let stores: Vec<usize> = node
            .outputs
            .iter()
            .enumerate()
            .map(|(i, output)| match output {
                Some(output) => self.define(*output),
                None => self.store(format!("{}#{i}", node.name), outputs[i].bytes()),
            })
            .collect();
        let Some((axis, units)) = share else {
            self.whole(id, node, device, &stores, outputs);
            return Ok(());
        };
        let ranges = [(Device::Gpu, 0..units), (Device::Cpu, units..axis.extent)];
        for (device, range) in ranges {
            let range = PartRange { axis: axis.axis, range, extent: axis.extent };
            self.part(id, node, device, range, stores[0])
                .ok_or_else(|| refused("the operator refuses this split".to_owned()))?;
        }
        Ok(())
    }

    fn whole(
        &mut self,
        id: NodeId,
        node: &Node,
        device: Device,
        stores: &[usize],
        outputs: Vec<TensorType>,
    ) {
        let inputs = node
            .inputs
            .iter()
            .map(|input| input.map(|v| self.arg(v, self.graph.value(v).ty.clone(), None)))
            .collect();
        let outputs = stores
            .iter()
            .zip(outputs)
            .map(|(&buffer, ty)| Region { buffer, offset: 0, ty })
            .collect();
        let name = node.name.clone();
        let op = node.op.clone();
        self.task(device, Task { node: id, name, part: None, op, inputs, outputs });
    }

    fn part(
        &mut self,
        id: NodeId,
        node: &Node,
        device: Device,
        range: PartRange,
        buffer: usize,
    ) -> Option<()> {
        let part = self.graph.with_operands(node, |x| part_of(node.op.as_ref(), x, &range))?;
        let inputs = node
            .inputs
            .iter()
            .zip(part.inputs)
            .map(|(value, operand)| {
                let (value, operand) = ((*value)?, operand?);
                Some(self.arg(value, operand.ty, operand.slice))
            })
            .collect();
        let row = part.ty.bytes() / range.range.len().max(1);
        let output = Region { buffer, offset: range.range.start * row, ty: part.ty };
        let name = format!("{}[{}..{}]", node.name, range.range.start, range.range.end);
        let task =
            Task { node: id, name, part: Some(range), op: part.op, inputs, outputs: vec![output] };
        self.task(device, task);
        Some(())
    }

    fn arg(
        &self,
        value: ValueId,
        ty: TensorType,
        slice: Option<(usize, std::ops::Range<usize>)>,
    ) -> Arg {
        match self.origins[value.index()] {
            Origin::Constant(value) => Arg::Constant { value, slice, ty },
            Origin::Store(buffer) => {
                // All dimensions before the axis are 1, so its indices are rows of equal size.
                let offset = slice.map_or(0, |(axis, range)| {
                    let row: usize = ty.shape[axis + 1..].iter().product();
                    range.start * row * ty.dtype.size()
                });
                Arg::Region(Region { buffer, offset, ty })
            }
            Origin::Undefined => unreachable!("a verified graph defines values before use"),
        }
    }

    /// Adds a task, and before it the copies of what its device lacks.
    fn task(&mut self, device: Device, task: Task) {
        let mut deps = Vec::new();
        for arg in task.inputs.iter().flatten() {
            if let Arg::Region(region) = arg {
                self.fetch(region.buffer, &region.range(), device, &mut deps);
            }
        }
        let writes: Vec<_> = task.outputs.iter().map(|r| (r.buffer, r.range())).collect();
        let lane = match device {
            Device::Cpu => Lane::Cpu,
            Device::Gpu => Lane::Gpu,
        };
        let action = self.push(lane, Work::Task(Box::new(task)), deps);
        for (buffer, range) in writes {
            self.present[buffer][device as usize].add(range, Some(action));
        }
    }

    /// Makes a range present on a device, and appends to `deps` the actions that bring it.
    fn fetch(
        &mut self,
        buffer: usize,
        range: &std::ops::Range<usize>,
        device: Device,
        deps: &mut Vec<usize>,
    ) {
        let (other, lane) = match device {
            Device::Cpu => (Device::Gpu, Lane::DeviceToHost),
            Device::Gpu => (Device::Cpu, Lane::HostToDevice),
        };
        for missing in self.present[buffer][device as usize].missing(range) {
            let sources = self.present[buffer][other as usize].writers(&missing).collect();
            let transfer = Transfer { buffer, range: missing.clone() };
            let copy = self.push(lane, Work::Copy(transfer), sources);
            self.present[buffer][device as usize].add(missing, Some(copy));
        }
        deps.extend(self.present[buffer][device as usize].writers(range));
    }

    fn push(&mut self, lane: Lane, work: Work, mut deps: Vec<usize>) -> usize {
        deps.sort_unstable();
        deps.dedup();
        self.actions.push(Action { lane, work, deps });
        self.actions.len() - 1
    }

    /// Brings every output to the host.
    fn outputs(&mut self) -> (Vec<OutputPlace>, Vec<usize>) {
        let mut finish = Vec::new();
        let mut places = Vec::with_capacity(self.graph.outputs.len());
        for &id in &self.graph.outputs {
            let ty = self.graph.value(id).ty.clone();
            let source = match self.origins[id.index()] {
                Origin::Constant(value) => OutputBytes::Constant(value),
                Origin::Store(store) => match self.stores[store].input {
                    Some(input) => OutputBytes::Input(input),
                    None => {
                        let range = 0..self.stores[store].bytes;
                        self.fetch(store, &range, Device::Cpu, &mut finish);
                        OutputBytes::Buffer(store)
                    }
                },
                Origin::Undefined => unreachable!("a verified graph defines its outputs"),
            };
            places.push(OutputPlace { ty, source });
        }
        finish.sort_unstable();
        finish.dedup();
        (places, finish)
    }
}
