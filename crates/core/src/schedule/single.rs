//! Policies `cpu` and `gpu`: one processor for everything it can run.

use super::{Problem, ScheduleError, Scheduler};
use crate::plan::{Place, Placement};

/// Everything on the CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuOnly;

impl Scheduler for CpuOnly {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let mut placement = Placement::uniform(problem.graph, Place::Cpu);
        problem.legalize(&mut placement);
        Ok(placement)
    }
}

/// Everything that the GPU runs on the GPU, the rest on the CPU.
#[derive(Clone, Copy, Debug)]
pub struct GpuOnly;

impl Scheduler for GpuOnly {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let mut placement = Placement::uniform(problem.graph, Place::Gpu);
        problem.legalize(&mut placement);
        Ok(placement)
    }
}
