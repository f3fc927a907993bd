//! Policies `greedy` and `heft`: each operator goes where it ends first, copies included. They
//! differ in the order in which operators choose.

use super::{Problem, ScheduleError, Scheduler};
use crate::{
    backend::Device,
    ir::{NodeId, ValueId},
    plan::{Place, Placement},
};

/// In the graph's order.
#[derive(Clone, Copy, Debug)]
pub struct Greedy;

/// In order of the longest path that remains (upward rank).
#[derive(Clone, Copy, Debug)]
pub struct Heft;

impl Scheduler for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        Ok(earliest_finish(problem, problem.graph.node_ids()))
    }
}

impl Scheduler for Heft {
    fn name(&self) -> &'static str {
        "heft"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let ranks = upward_ranks(problem);
        let mut order: Vec<NodeId> = problem.graph.node_ids().collect();
        // A producer's rank is never below its consumers', and the sort is stable: dependencies
        // keep their order.
        order.sort_by(|a, b| ranks[b.index()].total_cmp(&ranks[a.index()]));
        Ok(earliest_finish(problem, order.into_iter()))
    }
}

/// The mean time from the start of each node to the end of the graph, over its longest path.
fn upward_ranks(problem: &Problem<'_>) -> Vec<f64> {
    let graph = problem.graph;
    let consumers = graph.consumers();
    let mut ranks = vec![0.0; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        let id = NodeId::new(i);
        let devices = problem.devices(id);
        let mean = |f: &dyn Fn(Device) -> u64| {
            devices.iter().map(|&d| f(d) as f64).sum::<f64>() / devices.len() as f64
        };
        let cost = mean(&|d| problem.profile.part_ns(id, d, 1.0));
        let mut tail: f64 = 0.0;
        for output in node.outputs.iter().flatten() {
            let bytes = graph.value(*output).ty.bytes();
            // The copy happens for half of the four pairs of processors.
            let copy = problem.profile.upload.copy_ns(bytes) as f64 / 4.0
                + problem.profile.download.copy_ns(bytes) as f64 / 4.0;
            for consumer in &consumers[output.index()] {
                tail = tail.max(copy + ranks[consumer.index()]);
            }
        }
        ranks[i] = cost + tail;
    }
    ranks
}

fn earliest_finish(problem: &Problem<'_>, order: impl Iterator<Item = NodeId>) -> Placement {
    let graph = problem.graph;
    let mut output = vec![false; graph.values.len()];
    for id in &graph.outputs {
        output[id.index()] = true;
    }
    // When each value is on each processor; infinite where it was not brought yet.
    let mut here = vec![[f64::INFINITY; 2]; graph.values.len()];
    for id in &graph.inputs {
        here[id.index()][0] = 0.0;
    }
    let mut free = [0.0f64; 2];
    let mut placement = Placement::uniform(graph, Place::Cpu);
    for id in order {
        let node = graph.node(id);
        let inputs =
            || node.inputs.iter().flatten().filter(|v| graph.value(**v).constant.is_none());
        if problem.is_view(id) {
            if let (Some(from), Some(Some(to))) = (inputs().next(), node.outputs.first()) {
                here[to.index()] = here[from.index()];
                // A view stays with its input.
                if here[from.index()][1] < here[from.index()][0] && problem.gpu_runs(id) {
                    placement.places[id.index()] = Place::Gpu;
                }
            }
            continue;
        }
        let arrival = |here: &[[f64; 2]], v: ValueId, device: usize| -> f64 {
            let there = here[v.index()][1 - device];
            let bytes = graph.value(v).ty.bytes();
            let link = if device == 1 { problem.profile.upload } else { problem.profile.download };
            here[v.index()][device].min(there + link.copy_ns(bytes) as f64)
        };
        let finish = |device: Device| -> (f64, f64) {
            let d = device as usize;
            let ready = inputs().map(|&v| arrival(&here, v, d)).fold(0.0, f64::max);
            let end = ready.max(free[d]) + problem.profile.part_ns(id, device, 1.0) as f64;
            // An output of the graph must come home.
            let homecoming: f64 = match device {
                Device::Cpu => 0.0,
                Device::Gpu => node
                    .outputs
                    .iter()
                    .flatten()
                    .filter(|v| output[v.index()])
                    .map(|v| problem.profile.download.copy_ns(graph.value(*v).ty.bytes()) as f64)
                    .sum(),
            };
            (end + homecoming, end)
        };
        let (device, end) = problem
            .devices(id)
            .iter()
            .map(|&d| (d, finish(d)))
            .min_by(|a, b| a.1.0.total_cmp(&b.1.0))
            .map_or((Device::Cpu, 0.0), |(d, (_, end))| (d, end));
        let d = device as usize;
        for v in inputs().copied().collect::<Vec<_>>() {
            here[v.index()][d] = arrival(&here, v, d);
        }
        for v in node.outputs.iter().flatten() {
            here[v.index()][d] = end;
        }
        free[d] = end;
        placement.places[id.index()] = match device {
            Device::Cpu => Place::Cpu,
            Device::Gpu => Place::Gpu,
        };
    }
    problem.legalize(&mut placement);
    placement
}
