//! Policy `threshold`: the static rule of the four quadrants. SparOA (Zhang, Liu, Mottola,
//! arXiv:2511.19457) states the quadrants; which processor each gets is our reading.

use super::{Problem, ScheduleError, Scheduler};
use crate::{
    plan::{Place, Placement},
    predict::Quadrant,
};

/// Dense and intense operators go to the GPU, sparse ones to the CPU, whose kernels skip zeros;
/// dense and light ones stay where their input is: a copy would cost more than they do.
#[derive(Clone, Copy, Debug)]
pub struct Threshold;

impl Scheduler for Threshold {
    fn name(&self) -> &'static str {
        "threshold"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let mut placement = Placement::uniform(problem.graph, Place::Cpu);
        // Where each store was written; the graph's inputs are on the host.
        let mut at = vec![Place::Cpu; problem.topology.stores];
        for id in problem.topology.running() {
            let operator = &problem.topology.nodes[id.index()];
            let place = match problem.thresholds_of(id).quadrant(problem.analysis.node(id)) {
                Quadrant::DenseIntense => Place::Gpu,
                Quadrant::SparseIntense | Quadrant::SparseLight => Place::Cpu,
                Quadrant::DenseLight => operator
                    .reads
                    .iter()
                    .max_by_key(|r| r.bytes)
                    .map_or(Place::Cpu, |r| at[r.store]),
            };
            let place = match place {
                Place::Gpu if !operator.gpu => Place::Cpu,
                place => place,
            };
            for (store, _) in &operator.writes {
                at[*store] = place;
            }
            placement.places[id.index()] = place;
        }
        problem.legalize(&mut placement);
        Ok(placement)
    }
}
