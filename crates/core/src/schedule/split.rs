//! Splits: both processors work on the same operator. One common share keeps a chain's data where
//! they are: a batch exchanges nothing, rows exchange their halo.

use super::{Problem, ScheduleError, Scheduler};
use crate::{
    backend::Device,
    ir::NodeId,
    ops::axes::gcd,
    plan::{Place, Placement},
};

/// Splits every operator that splits and is worth it; the others go where they cost less.
#[derive(Clone, Copy, Debug)]
pub struct SplitAll {
    /// The GPU's share.
    pub share: f32,
    /// Operators that take less than this on the faster processor are not split.
    pub min_ns: u64,
}

impl Scheduler for SplitAll {
    fn name(&self) -> &'static str {
        "split"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let mut placement = Placement::uniform(problem.graph, Place::Cpu);
        for id in problem.graph.node_ids() {
            let cpu = problem.profile.part_ns(id, Device::Cpu, 1.0);
            let gpu = problem.profile.part_ns(id, Device::Gpu, 1.0);
            let runs = problem.gpu_runs(id);
            let splits = problem.support.split[id.index()].is_some();
            placement.places[id.index()] = if splits && cpu.min(gpu) >= self.min_ns {
                Place::Split(self.share)
            } else if runs && gpu < cpu {
                Place::Gpu
            } else {
                Place::Cpu
            };
        }
        problem.legalize(&mut placement);
        Ok(placement)
    }
}

/// Policy `split`: the best [`SplitAll`] by simulation.
#[derive(Clone, Copy, Debug)]
pub struct BestSplit;

impl Scheduler for BestSplit {
    fn name(&self) -> &'static str {
        "split"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let mut best: Option<(f64, Placement)> = None;
        for split in variants(problem) {
            let placement = split.place(problem)?;
            let (_, _, score) = problem.judge(&placement)?;
            if best.as_ref().is_none_or(|(s, _)| score < *s) {
                best = Some((score, placement));
            }
        }
        Ok(best.expect("there are variants").1)
    }
}

/// Splits worth judging: shares around the balance, small operators split or not. Where all
/// operators divide into the same number of parts, images of a batch for instance, first whole
/// numbers of these: any other share leaves some operators a border of their own, at which data
/// are exchanged.
pub fn variants(problem: &Problem<'_>) -> Vec<SplitAll> {
    let balance = common_share(problem);
    let parts = common_parts(problem);
    let below = (balance * parts as f32).floor();
    let whole = [0.0, 1.0, -1.0, 2.0].map(|step| (below + step) / parts as f32);
    let whole = whole.into_iter().filter(|&share| share > 0.0 && share < 1.0);
    let around = [1.0, 0.85, 1.15, 0.7, 1.4, 0.4].map(|f| (balance * f).clamp(0.02, 0.98));
    whole.chain(around).flat_map(with_share).collect()
}

/// The splits with one share: of all operators, or only of those that are worth it.
pub fn with_share(share: f32) -> [SplitAll; 3] {
    [0, 50_000, 400_000].map(|min_ns| SplitAll { share, min_ns })
}

/// Into how many equal parts every operator that splits can be divided: the batch, mostly.
pub fn common_parts(problem: &Problem<'_>) -> usize {
    let axes = problem.support.split.iter().flatten();
    axes.map(|axis| axis.extent / axis.unit.max(1)).fold(0, gcd).max(1)
}

/// The share of the splittable operators at which both processors take equally long, between 0
/// and 1.
pub fn common_share(problem: &Problem<'_>) -> f32 {
    let total = |device| -> f64 {
        problem
            .graph
            .node_ids()
            .filter(|id: &NodeId| problem.support.split[id.index()].is_some())
            .map(|id| problem.profile.part_ns(id, device, 1.0) as f64)
            .sum()
    };
    let (cpu, gpu) = (total(Device::Cpu), total(Device::Gpu));
    if cpu + gpu <= 0.0 { 0.5 } else { (cpu / (cpu + gpu)) as f32 }
}
