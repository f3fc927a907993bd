//! Policy `codl`: each operator on one processor or divided between both at the ratio that lets
//! them end together, in chains that keep their division so that data stay where they are. After
//! CoDL (Jia et al., MobiSys 2022): hybrid-type-friendly data sharing does not apply here, its
//! non-linear latency predictor is the profile, and its chain search is the look-ahead below.

use super::{Problem, ScheduleError, Scheduler, Walk};
use crate::{
    backend::Device,
    ir::NodeId,
    plan::{Place, Placement},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct CoDl;

/// Lengths of chains that are tried.
const CHAINS: [usize; 6] = [1, 2, 3, 5, 8, 12];

impl Scheduler for CoDl {
    fn name(&self) -> &'static str {
        "codl"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let order: Vec<NodeId> = problem.topology.running().collect();
        let mut walk = Walk::new(problem.topology);
        let mut placement = Placement::uniform(problem.graph, Place::Cpu);
        let mut at = 0;
        while at < order.len() {
            let start = walk.makespan();
            let mut best: Option<(f64, usize, Place)> = None;
            for length in CHAINS {
                let Some(chain) = order.get(at..at + length) else { break };
                for place in places(problem, chain) {
                    let mark = walk.mark();
                    for &id in chain {
                        walk.step(problem.ground(), id, problem.settled(id, place));
                    }
                    let took = walk.makespan() - start;
                    walk.rewind(mark);
                    let rate = took / work(problem, chain).max(1.0);
                    // Of equally good ones the longer chain: it exchanges less later on.
                    if best.is_none_or(|(r, ..)| rate <= r) {
                        best = Some((rate, length, place));
                    }
                }
            }
            let (_, length, place) = best.expect("a chain of one operator on the CPU is tried");
            for &id in &order[at..at + length] {
                let place = problem.settled(id, place);
                walk.step(problem.ground(), id, place);
                placement.places[id.index()] = place;
            }
            at += length;
        }
        problem.legalize(&mut placement);
        Ok(placement)
    }
}

/// What the faster processor would take for a chain.
fn work(problem: &Problem<'_>, chain: &[NodeId]) -> f64 {
    let least = |&id: &NodeId| {
        let times = problem.devices(id).iter().map(|&d| problem.profile.part_ns(id, d, 1.0) as f64);
        times.fold(f64::INFINITY, f64::min)
    };
    chain.iter().map(least).sum()
}

/// What operators in a row can have in common: one processor, the other, or the share at which both
/// take equally long for all of them.
pub fn places(problem: &Problem<'_>, chain: &[NodeId]) -> Vec<Place> {
    let mut places = vec![Place::Cpu];
    if chain.iter().any(|id| problem.gpu_runs(*id)) {
        places.push(Place::Gpu);
    }
    let splits = |id: &&NodeId| problem.topology.nodes[id.index()].split.is_some();
    if chain.iter().any(|id| splits(&id)) {
        let cost = |device: Device| {
            let parts = chain.iter().filter(splits).filter_map(|&id| {
                let cost = problem.profile.cost(id, device)?;
                Some((cost.fixed_ns as f64, (cost.latency_ns - cost.fixed_ns) as f64))
            });
            parts.fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
        };
        let (cpu, gpu) = (cost(Device::Cpu), cost(Device::Gpu));
        // fixed + share * rest equal on both.
        let share = (cpu.0 + cpu.1 - gpu.0) / (cpu.1 + gpu.1).max(1.0);
        if share > 0.02 && share < 0.98 {
            places.push(Place::Split(share as f32));
        }
    }
    places
}
