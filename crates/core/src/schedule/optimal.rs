//! Policy `optimal`: the least makespan over every placement of a small graph, by branch and
//! bound. What other policies are held against.

use super::{Problem, ScheduleError, Scheduler, candidates, codl};
use crate::{
    backend::Device,
    ir::NodeId,
    plan::{Place, Placement},
};

/// Each operator on the CPU, on the GPU, or divided at the ratio that balances it.
#[derive(Clone, Copy, Debug)]
pub struct Optimal;

/// Operators at most.
pub const MOST_OPERATORS: usize = 16;

impl Scheduler for Optimal {
    fn name(&self) -> &'static str {
        "optimal"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let order: Vec<NodeId> = problem.topology.running().collect();
        if order.len() > MOST_OPERATORS {
            return Err(ScheduleError::TooLarge { operators: order.len(), most: MOST_OPERATORS });
        }
        let first = candidates(problem)?.into_iter().next();
        let start = match first {
            Some(best) => (best.score, best.placement),
            None => (f64::INFINITY, Placement::uniform(problem.graph, Place::Cpu)),
        };
        let mut search = Search {
            problem,
            choices: order.iter().map(|&id| choices(problem, id)).collect(),
            rest: vec![0.0; order.len() + 1],
            order: &order,
            placement: start.1.clone(),
            best: start,
            times: problem.objective.is_time(),
        };
        for i in (0..order.len()).rev() {
            let least = |p: &Place| search.load(order[i], *p).into_iter().sum::<f64>();
            let least = search.choices[i].iter().map(least).fold(f64::INFINITY, f64::min);
            search.rest[i] = search.rest[i + 1] + least;
        }
        search.descend(0, [0.0; 2])?;
        Ok(search.best.1)
    }
}

fn choices(problem: &Problem<'_>, id: NodeId) -> Vec<Place> {
    match problem.pin(id) {
        Some(pin) => vec![pin],
        None => codl::places(problem, &[id]),
    }
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    order: &'a [NodeId],
    /// By position: the places tried.
    choices: Vec<Vec<Place>>,
    /// By position: the least work of this operator and those after it, both processors together.
    rest: Vec<f64>,
    placement: Placement,
    best: (f64, Placement),
    /// The objective is a matter of time: the bound holds.
    times: bool,
}

impl Search<'_> {
    /// What a place asks of each processor.
    fn load(&self, id: NodeId, place: Place) -> [f64; 2] {
        let time = |device, share| self.problem.profile.part_ns(id, device, share) as f64;
        match place {
            Place::Cpu => [time(Device::Cpu, 1.0), 0.0],
            Place::Gpu => [0.0, time(Device::Gpu, 1.0)],
            Place::Split(share) => {
                let share = f64::from(share);
                [time(Device::Cpu, 1.0 - share), time(Device::Gpu, share)]
            }
        }
    }

    fn descend(&mut self, at: usize, loads: [f64; 2]) -> Result<(), ScheduleError> {
        // Neither processor ends before its own work, nor both before half of all work.
        let all = (loads[0] + loads[1] + self.rest[at]) / 2.0;
        if self.times && all.max(loads[0]).max(loads[1]) >= self.best.0 {
            return Ok(());
        }
        let Some(&id) = self.order.get(at) else {
            let mut placement = self.placement.clone();
            self.problem.legalize(&mut placement);
            let (_, _, score) = self.problem.judge(&placement)?;
            if score < self.best.0 {
                self.best = (score, placement);
            }
            return Ok(());
        };
        for i in 0..self.choices[at].len() {
            let place = self.choices[at][i];
            let load = self.load(id, place);
            self.placement.places[id.index()] = place;
            self.descend(at + 1, [loads[0] + load[0], loads[1] + load[1]])?;
        }
        Ok(())
    }
}
