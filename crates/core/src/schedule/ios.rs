//! Policy `ios`: dynamic programming over stages, after IOS (Ding et al., MLSys 2021). A stage is a
//! stretch of operators whose independent groups run at the same time; stages follow one another.
//! There the groups share one GPU; here each goes to one of the two processors.

use std::collections::VecDeque;

use super::{Problem, ScheduleError, Scheduler, Walk};
use crate::{
    ir::NodeId,
    plan::{Place, Placement},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Ios;

/// Operators in a stage at most, in graphs of up to [`LARGE`] operators and in larger ones.
const STAGE: [usize; 2] = [10, 4];
/// See [`STAGE`].
const LARGE: usize = 400;
/// Groups in a stage at most; IOS prunes likewise.
const GROUPS: usize = 4;

/// The best schedule of the operators before a position, of those that end on one processor.
#[derive(Clone)]
struct Prefix {
    walk: Walk,
    /// Index of its last stage in the history.
    last: usize,
}

/// A stage: its predecessor in the history, its operators, and their places by bit.
struct Stage {
    previous: usize,
    range: std::ops::Range<usize>,
    on_gpu: u32,
}

impl Scheduler for Ios {
    fn name(&self) -> &'static str {
        "ios"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let order: Vec<NodeId> = problem.topology.running().collect();
        let longest = STAGE[usize::from(order.len() > LARGE)];
        let start = Walk::new(problem.topology);
        let mut history = vec![Stage { previous: 0, range: 0..0, on_gpu: 0 }];
        // Prefixes that end at the last `longest` positions, oldest first.
        let mut recent: VecDeque<(usize, Vec<Prefix>)> = VecDeque::new();
        recent.push_back((0, vec![Prefix { walk: start, last: 0 }]));
        for end in 1..=order.len() {
            // By the processor of the stage's last operator: data are mostly there.
            let mut best: [Option<(f64, usize, usize, u32)>; 2] = [None, None];
            for (slot, (begin, prefixes)) in recent.iter_mut().enumerate() {
                let stage = &order[*begin..end];
                let Some(groups) = groups(problem, stage) else { continue };
                for (which, prefix) in prefixes.iter_mut().enumerate() {
                    for choice in 0..1u32 << groups.len() {
                        let on_gpu = mask(&groups, choice);
                        if !legal(problem, stage, on_gpu) {
                            continue;
                        }
                        let mark = prefix.walk.mark();
                        run(problem, &mut prefix.walk, stage, on_gpu);
                        let took = match end == order.len() {
                            true => prefix.walk.finish(problem.ground()),
                            false => prefix.walk.makespan(),
                        };
                        prefix.walk.rewind(mark);
                        let side = (on_gpu >> (stage.len() - 1) & 1) as usize;
                        if best[side].is_none_or(|(t, ..)| took < t) {
                            best[side] = Some((took, slot, which, on_gpu));
                        }
                    }
                }
            }
            let mut prefixes = Vec::with_capacity(2);
            for (_, slot, which, on_gpu) in best.into_iter().flatten() {
                let (begin, from) = &recent[slot];
                let mut prefix = from[which].clone();
                run(problem, &mut prefix.walk, &order[*begin..end], on_gpu);
                history.push(Stage { previous: prefix.last, range: *begin..end, on_gpu });
                prefix.last = history.len() - 1;
                prefixes.push(prefix);
            }
            recent.push_back((end, prefixes));
            if recent.len() > longest {
                recent.pop_front();
            }
        }
        let mut placement = Placement::uniform(problem.graph, Place::Cpu);
        let finished = recent.back().map_or(&[][..], |(_, prefixes)| prefixes);
        let best = finished.iter().min_by(|a, b| {
            a.walk.finish(problem.ground()).total_cmp(&b.walk.finish(problem.ground()))
        });
        let mut at = best.map_or(0, |p| p.last);
        while at != 0 {
            let Stage { previous, range, on_gpu } = &history[at];
            for (bit, id) in order[range.clone()].iter().enumerate() {
                placement.places[id.index()] = place(*on_gpu, bit);
            }
            at = *previous;
        }
        problem.legalize(&mut placement);
        Ok(placement)
    }
}

fn place(on_gpu: u32, bit: usize) -> Place {
    if on_gpu >> bit & 1 == 1 { Place::Gpu } else { Place::Cpu }
}

fn run(problem: &Problem<'_>, walk: &mut Walk, stage: &[NodeId], on_gpu: u32) {
    for (bit, id) in stage.iter().enumerate() {
        walk.step(problem.ground(), *id, place(on_gpu, bit));
    }
    walk.barrier();
}

fn legal(problem: &Problem<'_>, stage: &[NodeId], on_gpu: u32) -> bool {
    stage.iter().enumerate().all(|(bit, &id)| match (problem.pin(id), place(on_gpu, bit)) {
        (Some(Place::Split(_)), _) => true,
        (Some(pin), place) => pin == place,
        (None, Place::Gpu) => problem.gpu_runs(id),
        (None, _) => true,
    })
}

/// The operators of a stage in groups that do not depend on each other, as masks; `None` where
/// there are more groups than are tried.
fn groups(problem: &Problem<'_>, stage: &[NodeId]) -> Option<Vec<u32>> {
    let mut groups: Vec<u32> = Vec::new();
    for (i, id) in stage.iter().enumerate() {
        let mut group = 1u32 << i;
        for read in &problem.topology.nodes[id.index()].reads {
            for (j, other) in stage[..i].iter().enumerate() {
                let writes = &problem.topology.nodes[other.index()].writes;
                if writes.iter().any(|(store, _)| *store == read.store) {
                    group |= 1 << j;
                }
            }
        }
        groups.retain(|g| {
            let joined = g & group != 0;
            group |= if joined { *g } else { 0 };
            !joined
        });
        groups.push(group);
    }
    (groups.len() <= GROUPS).then_some(groups)
}

/// The operators of the chosen groups.
fn mask(groups: &[u32], choice: u32) -> u32 {
    groups.iter().enumerate().filter(|(i, _)| choice >> i & 1 == 1).fold(0, |m, (_, g)| m | g)
}
