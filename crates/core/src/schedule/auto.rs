//! Policy `auto`: every policy's placement and many splits, judged by simulation, the best ones
//! improved by local search. The session measures the finalists.

use super::{
    CoDl, Dp, Greedy, Heft, Ios, Problem, ScheduleError, Scheduler, Threshold, Timeline,
    single::{CpuOnly, GpuOnly},
    split::variants,
};
use crate::plan::{Place, Placement};

/// A judged placement.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Where it comes from: a policy's name, `split 0.30`, `heft, improved`.
    pub name: String,
    /// The placement.
    pub placement: Placement,
    /// Its simulated run.
    pub timeline: Timeline,
    /// What the objective minimises.
    pub score: f64,
}

/// Simulations that local search may spend per start, in graphs of up to [`SEARCH_NODES`] nodes;
/// fewer in larger ones, whose simulations take longer.
const SEARCH_BUDGET: usize = 120;
/// See [`SEARCH_BUDGET`].
const SEARCH_NODES: usize = 300;

pub(super) struct Auto;

impl Scheduler for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let best = candidates(problem)?.into_iter().next();
        match best {
            Some(best) => Ok(best.placement),
            None => CpuOnly.place(problem),
        }
    }
}

/// All candidates that differ, best first. `cpu` is always among them, and `gpu` where the GPU
/// runs anything.
///
/// # Errors
/// When the objective needs figures that the profile lacks.
pub fn candidates(problem: &Problem<'_>) -> Result<Vec<Candidate>, ScheduleError> {
    let mut pool = Pool { problem, found: Vec::new() };
    let dp = Dp::default();
    let classical: [&dyn Scheduler; 8] =
        [&CpuOnly, &GpuOnly, &Threshold, &Greedy, &Heft, &dp, &Ios, &CoDl];
    for policy in classical.into_iter().chain(problem.learned) {
        pool.add(policy.name().to_owned(), policy.place(problem)?)?;
    }
    if problem.support.split.iter().any(Option::is_some) {
        for split in variants(problem) {
            pool.add(format!("split {:.2}", split.share), split.place(problem)?)?;
        }
    }
    pool.sort();
    for start in pool.found.iter().take(2).cloned().collect::<Vec<_>>() {
        let improved = improve(problem, &start)?;
        pool.add(format!("{}, improved", start.name), improved)?;
    }
    pool.sort();
    Ok(pool.found)
}

struct Pool<'a> {
    problem: &'a Problem<'a>,
    found: Vec<Candidate>,
}

impl Pool<'_> {
    /// Judges a placement that is not there yet.
    fn add(&mut self, name: String, placement: Placement) -> Result<(), ScheduleError> {
        if self.found.iter().any(|c| c.placement == placement) {
            return Ok(());
        }
        let (_, timeline, score) = self.problem.judge(&placement)?;
        self.found.push(Candidate { name, placement, timeline, score });
        Ok(())
    }

    fn sort(&mut self) {
        // Stable: of equals, the simpler policy stays in front.
        self.found.sort_by(|a, b| a.score.total_cmp(&b.score));
    }
}

/// Hill climbing: the borders between differently placed stretches of nodes move, and stretches
/// change place, as long as the simulation gains.
fn improve(problem: &Problem<'_>, start: &Candidate) -> Result<Placement, ScheduleError> {
    let mut best = start.placement.clone();
    let mut score = start.score;
    let nodes = start.placement.places.len().max(SEARCH_NODES);
    let mut budget = SEARCH_BUDGET * SEARCH_NODES / nodes;
    loop {
        let before = score;
        for neighbour in neighbours(&best) {
            if budget == 0 {
                return Ok(best);
            }
            let mut placement = neighbour;
            problem.legalize(&mut placement);
            if placement == best {
                continue;
            }
            budget -= 1;
            let (_, _, s) = problem.judge(&placement)?;
            if s < score {
                score = s;
                best = placement;
                break;
            }
        }
        if score >= before {
            return Ok(best);
        }
    }
}

/// Placements one move away: a stretch of equal places moves to another place, or gives its first
/// or last nodes to its neighbour. Long stretches are also halved.
fn neighbours(placement: &Placement) -> Vec<Placement> {
    let places = &placement.places;
    let mut runs = Vec::new();
    let mut start = 0;
    for run in places.chunk_by(|a, b| a == b) {
        runs.push((start, start + run.len()));
        start += run.len();
    }
    let share = places.iter().find_map(|p| match p {
        Place::Split(share) => Some(*share),
        _ => None,
    });
    let mut all: Vec<Placement> = Vec::new();
    let mut push = |range: std::ops::Range<usize>, place: Place| {
        let mut next = placement.clone();
        next.places[range].fill(place);
        all.push(next);
    };
    for (r, &(start, end)) in runs.iter().enumerate() {
        let mut others = vec![Place::Cpu, Place::Gpu];
        others.extend(share.map(Place::Split));
        others.retain(|p| *p != places[start]);
        let half = start + (end - start) / 2;
        for place in others {
            push(start..end, place);
            if end - start > 3 {
                push(start..half, place);
                push(half..end, place);
            }
        }
        for step in [1, (end - start) / 4] {
            if step == 0 || step >= end - start {
                continue;
            }
            if r > 0 {
                push(start..start + step, places[start - 1]);
            }
            if r + 1 < runs.len() {
                push(end - step..end, places[end]);
            }
        }
    }
    all
}
