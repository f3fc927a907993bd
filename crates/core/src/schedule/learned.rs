//! Policy `sac`: whatever learned policy the problem brings. The weights and the net that read them
//! live in a crate of their own; without them a classical policy stands in.

use super::{Heft, Problem, ScheduleError, Scheduler};
use crate::plan::Placement;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Sac;

impl Scheduler for Sac {
    fn name(&self) -> &'static str {
        "sac"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        match problem.learned {
            Some(learned) => learned.place(problem),
            None => Heft.place(problem),
        }
    }
}
