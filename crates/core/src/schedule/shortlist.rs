//! What a policy can say within milliseconds, for decisions beside a running model: placements ranked
//! by the incremental estimate instead of compiled and simulated plans, and no local search.

use super::{
    CoDl, CpuOnly, GpuOnly, Greedy, Policy, Problem, ScheduleError, Scheduler, split::variants,
};
use crate::plan::Placement;

/// A placement and what it is estimated to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Where it comes from: a policy's name, `split 0.30`.
    pub name: String,
    /// The placement.
    pub placement: Placement,
    /// [`Problem::estimate`] of it.
    pub score: f64,
}

/// The placements that a policy would try, best first. `auto` compares the policies that take well
/// under a millisecond on hundreds of operators; every other policy has one answer.
///
/// # Errors
/// When the objective needs figures that the profile lacks.
pub fn shortlist(problem: &Problem<'_>, policy: Policy) -> Result<Vec<Ranked>, ScheduleError> {
    let mut found: Vec<Ranked> = Vec::new();
    let mut add = |name: &str, placement: Placement| -> Result<(), ScheduleError> {
        if !found.iter().any(|r| r.placement == placement) {
            let score = problem.estimate(&placement)?;
            found.push(Ranked { name: name.to_owned(), placement, score });
        }
        Ok(())
    };
    if policy != Policy::Auto {
        add(policy.name(), policy.scheduler().place(problem)?)?;
        return Ok(found);
    }
    let quick: [&dyn Scheduler; 4] = [&CpuOnly, &GpuOnly, &Greedy, &CoDl];
    for policy in quick.into_iter().chain(problem.learned) {
        add(policy.name(), policy.place(problem)?)?;
    }
    if problem.support.split.iter().any(Option::is_some) {
        for split in variants(problem) {
            add(&format!("split {:.2}", split.share), split.place(problem)?)?;
        }
    }
    found.sort_by(|a, b| a.score.total_cmp(&b.score));
    Ok(found)
}
