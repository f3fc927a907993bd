//! Policy `auto`: every policy's placement and many splits, judged by simulation, the best ones
//! improved by local search. The session measures the finalists.

use std::ops::Range;

use super::{
    CoDl, Dp, Greedy, Heft, Ios, Problem, ScheduleError, Scheduler, Threshold, Timeline,
    single::{CpuOnly, GpuOnly},
    split::{common_parts, variants, with_share},
};
use crate::{
    ir::NodeId,
    plan::{Place, Placement},
};

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

/// Placements from which local search starts.
const STARTS: usize = 3;
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
    let mut pool = Pool { problem, found: Vec::new(), seen: Vec::new() };
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
    for start in pool.found.iter().take(STARTS).cloned().collect::<Vec<_>>() {
        let improved = improve(problem, &start)?;
        pool.add(format!("{}, improved", start.name), improved)?;
    }
    pool.sort();
    Ok(pool.found)
}

/// The best split by simulation that gives the GPU `part` of so many common parts.
///
/// # Errors
/// When the objective needs figures that the profile lacks.
pub fn split_of(
    problem: &Problem<'_>,
    part: usize,
    parts: usize,
) -> Result<Candidate, ScheduleError> {
    let mut pool = Pool { problem, found: Vec::new(), seen: Vec::new() };
    for split in with_share(part as f32 / parts as f32) {
        pool.add(format!("split {:.2}", split.share), split.place(problem)?)?;
    }
    pool.sort();
    Ok(pool.found.swap_remove(0))
}

/// The candidates worth measuring: `cpu` and `gpu`, and `most` others, those in `measured` first,
/// which were found fast. Predictions of the CPU's part err by more than neighbouring candidates
/// differ, so the best come first of which each gives the GPU another amount of work, and only then
/// the best of the rest.
pub fn finalists<'a>(
    all: &'a [Candidate],
    measured: impl IntoIterator<Item = &'a Candidate>,
    most: usize,
) -> Vec<&'a Candidate> {
    /// Less than one image more or less in a batch of 32.
    const SAME: f64 = 0.03;
    let alone = |c: &&Candidate| c.name == "cpu" || c.name == "gpu";
    let mut chosen: Vec<&Candidate> =
        ["cpu", "gpu"].iter().filter_map(|name| all.iter().find(|c| c.name == *name)).collect();
    let mut rest: Vec<&Candidate> = all.iter().filter(|c| !alone(c)).collect();
    let work = |c: &Candidate| c.timeline.busy_ns[1] as f64;
    let mut others: Vec<&Candidate> = measured.into_iter().take(most).collect();
    rest.retain(|c| {
        let near = |o: &&Candidate| (work(o) - work(c)).abs() <= SAME * work(o).max(work(c));
        let new = others.len() < most && !others.iter().any(near);
        if new {
            others.push(c);
        }
        !new
    });
    let missing = most.saturating_sub(others.len());
    chosen.extend(others.into_iter().chain(rest.into_iter().take(missing)));
    chosen
}

struct Pool<'a> {
    problem: &'a Problem<'a>,
    found: Vec<Candidate>,
    /// What the found ones come to; see [`division`].
    seen: Vec<Vec<Place>>,
}

/// What a placement comes to: shares that give both processors the same are the same.
fn division(problem: &Problem<'_>, placement: &Placement) -> Vec<Place> {
    let places = placement.places.iter().zip(&problem.support.split);
    let views = &problem.support.view;
    places
        .zip(views)
        .map(|((&place, axis), view)| match (place, axis) {
            _ if *view => Place::Cpu,
            (Place::Split(share), Some(axis)) => {
                Place::Split(axis.gpu_extent(share) as f32 / axis.extent as f32)
            }
            _ => place,
        })
        .collect()
}

impl Pool<'_> {
    /// Judges a placement that is not there yet.
    fn add(&mut self, name: String, placement: Placement) -> Result<(), ScheduleError> {
        let division = division(self.problem, &placement);
        if self.seen.contains(&division) {
            return Ok(());
        }
        self.seen.push(division);
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
    let parts = common_parts(problem);
    let nodes = start.placement.places.len().max(SEARCH_NODES);
    let mut budget = SEARCH_BUDGET * SEARCH_NODES / nodes;
    loop {
        let before = score;
        for neighbour in neighbours(problem, &best, parts) {
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

/// Placements one move away: a stretch of equal places moves to another place, where it is divided
/// also by one of `parts` equal parts more or less, or gives its first or last nodes to its
/// neighbour. Long stretches are also halved. Views run nowhere and end no stretch.
fn neighbours(problem: &Problem<'_>, placement: &Placement, parts: usize) -> Vec<Placement> {
    let running: Vec<usize> = problem.topology.running().map(NodeId::index).collect();
    let places: Vec<Place> = running.iter().map(|&i| placement.places[i]).collect();
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
    let mut push = |range: Range<usize>, place: Place| {
        let mut next = placement.clone();
        running[range].iter().for_each(|&i| next.places[i] = place);
        all.push(next);
    };
    for (r, &(start, end)) in runs.iter().enumerate() {
        let mut others = vec![Place::Cpu, Place::Gpu];
        others.extend(share.map(Place::Split));
        if let (Place::Split(share), 2..) = (places[start], parts) {
            let step = 1.0 / parts as f32;
            let inside = step / 2.0..1.0 - step / 2.0;
            let steps = [share + step, share - step].into_iter();
            others.extend(steps.filter(|share| inside.contains(share)).map(Place::Split));
        }
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
