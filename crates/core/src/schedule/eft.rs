//! Policies `greedy` and `heft`: each operator goes where it ends first, copies included. They
//! differ in the order in which operators choose. `heft` is the heterogeneous earliest finish time
//! of Topcuoglu, Hariri and Wu (2002).

use super::{Problem, ScheduleError, Scheduler, Walk};
use crate::{
    backend::Device,
    ir::NodeId,
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
        Ok(earliest_finish(problem, problem.topology.running()))
    }
}

impl Scheduler for Heft {
    fn name(&self) -> &'static str {
        "heft"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let ranks = upward_ranks(problem);
        let mut order: Vec<NodeId> = problem.topology.running().collect();
        // A producer's rank is never below its consumers', and the sort is stable: dependencies
        // keep their order.
        order.sort_by(|a, b| ranks[b.index()].total_cmp(&ranks[a.index()]));
        Ok(earliest_finish(problem, order.into_iter()))
    }
}

/// The mean time from the start of each node to the end of the graph, over its longest path, in
/// nanoseconds, by node index.
pub fn upward_ranks(problem: &Problem<'_>) -> Vec<f64> {
    let topology = problem.topology;
    let mut ranks = vec![0.0; topology.nodes.len()];
    // By store: the longest path from its readers on, the copy to them included.
    let mut tails = vec![0.0f64; topology.stores];
    for (i, node) in topology.nodes.iter().enumerate().rev() {
        if node.idle {
            continue;
        }
        let id = NodeId::new(i);
        let devices = problem.devices(id);
        let cost = devices.iter().map(|&d| problem.profile.part_ns(id, d, 1.0) as f64).sum::<f64>()
            / devices.len() as f64;
        ranks[i] = cost + node.writes.iter().map(|(s, _)| tails[*s]).fold(0.0, f64::max);
        for read in &node.reads {
            // The copy happens for half of the four pairs of processors.
            let copy = problem.profile.upload.copy_ns(read.bytes) as f64 / 4.0
                + problem.profile.download.copy_ns(read.bytes) as f64 / 4.0;
            tails[read.store] = tails[read.store].max(copy + ranks[i]);
        }
    }
    ranks
}

fn earliest_finish(problem: &Problem<'_>, order: impl Iterator<Item = NodeId>) -> Placement {
    let mut walk = Walk::new(problem.topology);
    let mut placement = Placement::uniform(problem.graph, Place::Cpu);
    let outputs: Vec<usize> = problem.topology.outputs.iter().map(|(store, _)| *store).collect();
    for id in order {
        let place = match problem.pin(id) {
            Some(pin) => pin,
            None => {
                let end = |place: Place| {
                    let end = walk.look(problem.ground(), id, place).end();
                    // An output of the graph must come home.
                    let home = problem.topology.nodes[id.index()]
                        .writes
                        .iter()
                        .filter(|(store, _)| place == Place::Gpu && outputs.contains(store))
                        .map(|(_, bytes)| problem.profile.download.copy_ns(*bytes) as f64);
                    end + home.sum::<f64>()
                };
                let places = problem.devices(id).iter().map(|&device| match device {
                    Device::Cpu => Place::Cpu,
                    Device::Gpu => Place::Gpu,
                });
                places.min_by(|a, b| end(*a).total_cmp(&end(*b))).unwrap_or(Place::Cpu)
            }
        };
        walk.step(problem.ground(), id, place);
        placement.places[id.index()] = place;
    }
    problem.legalize(&mut placement);
    placement
}
