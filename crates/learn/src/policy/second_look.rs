//! A second look at a placement: from where the policy was least sure, operators in a row are moved to
//! another place if everything then ends earlier by the estimate. A good heuristic errs in few places
//! and near its borders, so that little search makes good much of what it misses (limited discrepancy
//! search, Harvey and Ginsberg 1995; here the rest stays as it was instead of being placed anew).

use sparoa_core::{
    ir::NodeId,
    plan::{Place, Placement},
    schedule::{Problem, ScheduleError, Walk, places},
};

/// Operators in a row that move together.
const LENGTHS: [usize; 4] = [1, 2, 4, 8];
/// Steps of a walk that a second look may take, about 30 ns each: a whole decision shall stay below a
/// millisecond on one core.
const STEPS: usize = 3_000;
/// What of them goes to the first look, per operator: large graphs have less left.
const STEPS_OF_FIRST: usize = 8;
/// What trying one place takes beside its walk, in steps.
const STEPS_OF_LOOK: usize = 20;
/// An improvement by less is none.
const LEAST: f64 = 1e-6;

/// Improves a placement with this estimated `score`, of which the policy was `sure`, by position in the
/// order of what runs.
///
/// # Errors
/// When the objective needs figures that the profile lacks.
pub(super) fn improve(
    problem: &Problem<'_>,
    placement: &mut Placement,
    mut score: f64,
    sure: &[f32],
    splits: bool,
) -> Result<(), ScheduleError> {
    let order: Vec<NodeId> = problem.topology.running().collect();
    let mut left = STEPS.saturating_sub(STEPS_OF_FIRST * order.len());
    loop {
        let chosen = least_sure(sure, &mut left);
        let found = pass(problem, &order, &chosen, placement, score, splits)?;
        if chosen.len() < order.len() || found >= score * (1.0 - LEAST) {
            return Ok(());
        }
        score = found;
    }
}

/// As many positions as can be paid for, those first of which the policy was least sure; in order.
fn least_sure(sure: &[f32], left: &mut usize) -> Vec<usize> {
    let mut doubts: Vec<usize> = (0..sure.len()).collect();
    doubts.sort_by(|a, b| sure[*a].total_cmp(&sure[*b]));
    let mut chosen = Vec::new();
    for at in doubts {
        // Two other places for every length.
        let cost = 2 * LENGTHS.len() * (sure.len() - at + STEPS_OF_LOOK);
        if cost <= *left {
            *left -= cost;
            chosen.push(at);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// Walks through the placement once and changes it for the better at the chosen positions. Returns
/// the score that it has then.
fn pass(
    problem: &Problem<'_>,
    order: &[NodeId],
    chosen: &[usize],
    placement: &mut Placement,
    mut score: f64,
    splits: bool,
) -> Result<f64, ScheduleError> {
    let on = problem.ground();
    let mut walk = Walk::new(problem.topology);
    let mut position = 0;
    for &at in chosen {
        for &id in &order[position..at] {
            walk.step(on, id, placement.places[id.index()]);
        }
        position = at;
        let mut best = None;
        for length in LENGTHS.into_iter().filter(|length| at + length <= order.len()) {
            let (chain, rest) = order[at..].split_at(length);
            for place in places(problem, chain) {
                let same =
                    |id: &NodeId| placement.places[id.index()] == problem.settled(*id, place);
                let split = matches!(place, Place::Split(_));
                if split && !splits || chain.iter().all(same) {
                    continue;
                }
                let mark = walk.mark();
                for &id in chain {
                    walk.step(on, id, problem.settled(id, place));
                }
                for &id in rest {
                    walk.step(on, id, placement.places[id.index()]);
                }
                let found = problem.estimate_of(&walk)?;
                walk.rewind(mark);
                if found < score * (1.0 - LEAST) {
                    score = found;
                    best = Some((length, place));
                }
            }
        }
        if let Some((length, place)) = best {
            for &id in &order[at..at + length] {
                placement.places[id.index()] = problem.settled(id, place);
            }
        }
    }
    Ok(score)
}

#[cfg(test)]
mod tests {
    use sparoa_core::{
        profile::{DeviceProfile, HardwareState, Precision},
        schedule::Policy,
    };

    use super::*;
    use crate::task::{HELD_OUT, network};

    /// From several classical placements.
    #[test]
    fn never_worse_and_legal_and_without_splits_if_told_so() {
        let board = DeviceProfile::find("jetson-orin-nano").unwrap().machine(Precision::Fp32);
        let (mut better, mut splits) = (0, 0);
        for seed in HELD_OUT + 30..HELD_OUT + 40 {
            let subject = network(seed, 4 + 9 * (seed - HELD_OUT - 30) as usize);
            let profile = subject.profile(&board);
            let order: Vec<NodeId> = subject.topology.running().collect();
            let mut pins = vec![None; subject.graph.nodes.len()];
            pins[order[order.len() / 2].index()] = Some(Place::Cpu);
            let problem =
                Problem { pins: &pins, ..subject.problem(&profile, HardwareState::default()) };
            let sure: Vec<f32> = (0..order.len()).map(|i| (i * 7 % 5) as f32).collect();
            for policy in [Policy::Cpu, Policy::Gpu, Policy::Greedy, Policy::Dp] {
                let first = policy.scheduler().place(&problem).unwrap();
                let before = problem.estimate(&first).unwrap();
                for with_splits in [false, true] {
                    let mut second = first.clone();
                    improve(&problem, &mut second, before, &sure, with_splits).unwrap();
                    let after = problem.estimate(&second).unwrap();
                    assert!(after <= before, "{policy} of {seed}: {after} after {before}");
                    better += usize::from(after < before);
                    let mut legal = second.clone();
                    problem.legalize(&mut legal);
                    assert!(problem.judge(&legal).is_ok());
                    assert_eq!(second.places[order[order.len() / 2].index()], Place::Cpu);
                    let any = second.places.iter().any(|p| matches!(p, Place::Split(_)));
                    assert!(with_splits || !any || policy == Policy::Dp);
                    splits += usize::from(any && with_splits);
                }
            }
        }
        assert!(better > 20 && splits > 5, "{better} better, {splits} with splits");
    }

    #[test]
    fn those_least_sure_of_come_first_as_far_as_steps_go() {
        let sure = [0.5, 0.1, 0.4, 0.0];
        let cost = |at: usize| 2 * LENGTHS.len() * (4 - at + STEPS_OF_LOOK);
        let mut left = cost(3) + cost(1);
        assert_eq!((least_sure(&sure, &mut left), left), (vec![1, 3], 0));
        let mut all = STEPS;
        assert_eq!(least_sure(&sure, &mut all), [0, 1, 2, 3]);
        assert_eq!(least_sure(&[], &mut all), [0usize; 0]);
    }
}
