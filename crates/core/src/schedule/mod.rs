//! Policies: from measured costs to a placement. A policy returns a placement and can do nothing
//! else; every one is judged by the one simulator.

mod auto;
mod codl;
mod contest;
mod dp;
mod eft;
mod ios;
mod learned;
mod optimal;
mod pins;
mod shortlist;
mod simulate;
mod single;
mod split;
mod subject;
mod threshold;
mod topology;
mod walk;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    analyze::Analysis,
    backend::Device,
    ir::{Graph, NodeId},
    plan::{CompileError, Place, Placement, Plan, Support, compile},
    predict::{FixedThresholds, Thresholds},
    profile::{HardwareState, Profile},
};

pub use auto::{Candidate, candidates, finalists, split_of};
pub use codl::{CoDl, places};
pub use contest::{Contest, Decides, Outcome};
pub use dp::Dp;
pub use eft::{Greedy, Heft, upward_ranks};
pub use ios::Ios;
pub use learned::Sac;
pub use optimal::{MOST_OPERATORS, Optimal};
pub use pins::{Pin, PinError, PinTo, resolve_pins, resolve_variants};
pub use shortlist::{Ranked, shortlist};
pub use simulate::{Timeline, TimelineEvent, simulate};
pub use single::{CpuOnly, GpuOnly};
pub use split::{BestSplit, SplitAll, common_parts, common_share};
pub use subject::Subject;
pub use threshold::Threshold;
pub use topology::{Operator, Read, Topology};
pub use walk::{Ground, Mark, Outlook, Walk};

/// What a policy knows.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Where its nodes can run.
    pub support: &'a Support,
    /// What its nodes read and write; of the same graph and support.
    pub topology: &'a Topology,
    /// What its nodes cost in principle.
    pub analysis: &'a Analysis,
    /// What they cost there.
    pub profile: &'a Profile,
    /// Where the quadrants meet, by node; empty for the fixed ones.
    pub thresholds: &'a [Thresholds],
    /// The state of the hardware for which `profile` holds.
    pub state: HardwareState,
    /// Places that the user has fixed, by node; see [`resolve_pins`].
    pub pins: &'a [Option<Place>],
    /// What to minimise.
    pub objective: Objective,
    /// The learned policy, where there is one.
    pub learned: Option<&'a dyn Scheduler>,
}

impl<'a> Problem<'a> {
    /// What a [`Walk`] goes over.
    pub fn ground(&self) -> Ground<'a> {
        Ground { topology: self.topology, profile: self.profile }
    }

    /// The processors on which a node may run whole; one when it is pinned to one.
    pub fn devices(&self, node: NodeId) -> &'static [Device] {
        match self.pin(node) {
            Some(Place::Cpu) => &[Device::Cpu],
            Some(Place::Gpu) => &[Device::Gpu],
            _ if self.gpu_runs(node) => &[Device::Cpu, Device::Gpu],
            _ => &[Device::Cpu],
        }
    }

    /// The place that the user has fixed.
    pub fn pin(&self, node: NodeId) -> Option<Place> {
        self.pins.get(node.index()).copied().flatten()
    }

    /// Whether the GPU has a kernel for a node.
    pub fn gpu_runs(&self, node: NodeId) -> bool {
        self.support.gpu.get(node.index()).is_some_and(Result::is_ok)
    }

    /// Whether a node only renames its input.
    pub fn is_view(&self, node: NodeId) -> bool {
        self.support.view.get(node.index()).copied().unwrap_or(false)
    }

    /// A node's thresholds: the predicted ones, or the fixed ones.
    pub fn thresholds_of(&self, node: NodeId) -> Thresholds {
        let fixed = FixedThresholds::default().0;
        self.thresholds.get(node.index()).copied().unwrap_or(fixed)
    }

    /// What a [`Walk`] says of a placement: an estimate of [`Problem::judge`]'s score that costs a
    /// hundredth of it.
    ///
    /// # Errors
    /// When the objective needs figures that the profile lacks.
    pub fn estimate(&self, placement: &Placement) -> Result<f64, ScheduleError> {
        let on = self.ground();
        let mut walk = Walk::new(self.topology);
        for id in self.topology.running() {
            walk.step(on, id, placement.places[id.index()]);
        }
        self.estimate_of(&walk)
    }

    /// [`Problem::estimate`] of a walk that has come to its end.
    ///
    /// # Errors
    /// When the objective needs figures that the profile lacks.
    pub fn estimate_of(&self, walk: &Walk) -> Result<f64, ScheduleError> {
        let busy = walk.busy().map(|ns| ns as u64);
        self.objective.score_of(walk.finish(self.ground()) as u64, busy, self.profile)
    }

    /// A place as far as a node can take it: its pin, else see [`Operator::settled`].
    pub fn settled(&self, node: NodeId, place: Place) -> Place {
        self.pin(node).unwrap_or_else(|| self.topology.nodes[node.index()].settled(place))
    }

    /// Overwrites a placement with the pins, and moves what the GPU cannot run to the CPU.
    pub fn legalize(&self, placement: &mut Placement) {
        for (i, place) in placement.places.iter_mut().enumerate() {
            let node = NodeId::new(i);
            if let Some(pin) = self.pin(node) {
                *place = pin;
            }
            if let Place::Split(share) = *place {
                *place = match self.support.split.get(i).copied().flatten() {
                    None if self.gpu_runs(node) => Place::Gpu,
                    None => Place::Cpu,
                    // A share that rounds to nothing or everything is no split: equal plans have
                    // equal placements.
                    Some(axis) if axis.gpu_extent(share) == 0 => Place::Cpu,
                    Some(axis) if axis.gpu_extent(share) == axis.extent => Place::Gpu,
                    Some(_) => *place,
                };
            }
            if *place == Place::Gpu && !self.gpu_runs(node) {
                *place = Place::Cpu;
            }
        }
    }

    /// Compiles and simulates a placement; the score is what the objective minimises.
    ///
    /// # Errors
    /// When the placement is not legal, or the objective needs figures that the profile lacks.
    pub fn judge(&self, placement: &Placement) -> Result<(Plan, Timeline, f64), ScheduleError> {
        let plan = compile(self.graph, placement, self.support, Some(self.profile))?;
        let timeline = simulate(&plan, self.profile);
        let score = self.objective.score(&timeline, self.profile)?;
        Ok((plan, timeline, score))
    }
}

/// Decides where each node runs.
pub trait Scheduler: Send + Sync {
    /// Its name, as `--policy` knows it.
    fn name(&self) -> &'static str;

    /// A placement of every node; see [`Problem::legalize`] for what it may contain.
    ///
    /// # Errors
    /// See [`ScheduleError`].
    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError>;
}

/// Why a policy has no placement.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The policy's placement does not compile: a defect of the policy.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The policy tries every placement, and there are too many.
    #[error(
        "policy optimal tries every placement of up to {most} operators, this graph has \
         {operators}: use another policy"
    )]
    TooLarge {
        /// Operators of the graph.
        operators: usize,
        /// Operators at most.
        most: usize,
    },
    /// The objective needs figures that the profile does not have.
    #[error(
        "--objective {objective} needs power figures, and this profile has none: use --objective \
         latency, or a profile with power"
    )]
    NoPower {
        /// The objective.
        objective: Objective,
    },
}

/// The policies, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Everything on the CPU.
    Cpu,
    /// Everything that the GPU runs on the GPU.
    Gpu,
    /// By quadrant of sparsity and intensity.
    Threshold,
    /// Each operator, in the graph's order, where it ends first.
    Greedy,
    /// Each operator, longest remaining path first, where it ends first.
    Heft,
    /// Dynamic programming: exact on chains, beam search elsewhere.
    Dp,
    /// Dynamic programming over stages of operators that run at the same time.
    Ios,
    /// Operators divided at their own ratios, in chains.
    Codl,
    /// Both processors on every operator that splits, at the best common share.
    Split,
    /// Learned: soft actor-critic.
    Sac,
    /// Every placement of a small graph.
    Optimal,
    /// The best of all policies and splits by simulation, confirmed by measurement.
    #[default]
    Auto,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Policy; 12] = [
        Policy::Cpu,
        Policy::Gpu,
        Policy::Threshold,
        Policy::Greedy,
        Policy::Heft,
        Policy::Dp,
        Policy::Ios,
        Policy::Codl,
        Policy::Split,
        Policy::Sac,
        Policy::Optimal,
        Policy::Auto,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Cpu => "cpu",
            Policy::Gpu => "gpu",
            Policy::Threshold => "threshold",
            Policy::Greedy => "greedy",
            Policy::Heft => "heft",
            Policy::Dp => "dp",
            Policy::Ios => "ios",
            Policy::Codl => "codl",
            Policy::Split => "split",
            Policy::Sac => "sac",
            Policy::Optimal => "optimal",
            Policy::Auto => "auto",
        }
    }

    /// Whether it decides by measured costs.
    pub fn needs_profile(self) -> bool {
        !matches!(self, Policy::Cpu | Policy::Gpu)
    }

    /// What remains of the policy on a machine with one processor, or without costs.
    pub fn without_costs(self) -> Policy {
        match self {
            Policy::Gpu => Policy::Gpu,
            _ => Policy::Cpu,
        }
    }

    /// The policy as a scheduler. `auto` is its best candidate by simulation; the session
    /// confirms it by measurement.
    pub fn scheduler(self) -> Box<dyn Scheduler> {
        match self {
            Policy::Cpu => Box::new(CpuOnly),
            Policy::Gpu => Box::new(GpuOnly),
            Policy::Threshold => Box::new(Threshold),
            Policy::Greedy => Box::new(Greedy),
            Policy::Heft => Box::new(Heft),
            Policy::Dp => Box::new(Dp::default()),
            Policy::Ios => Box::new(Ios),
            Policy::Codl => Box::new(CoDl),
            Policy::Split => Box::new(BestSplit),
            Policy::Sac => Box::new(Sac),
            Policy::Optimal => Box::new(Optimal),
            Policy::Auto => Box::new(auto::Auto),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        Policy::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names = Policy::ALL.map(Policy::name).join(", ");
            format!("unknown policy '{text}': give one of {names}")
        })
    }
}

/// What a plan is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Time of one inference.
    #[default]
    Latency,
    /// Inferences per second. A session runs one inference at a time, so this too is the time of
    /// one inference; the batch size is the user's.
    Throughput,
    /// Energy of one inference.
    Energy,
    /// Energy times latency.
    Edp,
}

impl Objective {
    /// Every objective.
    pub const ALL: [Objective; 4] =
        [Objective::Latency, Objective::Throughput, Objective::Energy, Objective::Edp];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Objective::Latency => "latency",
            Objective::Throughput => "throughput",
            Objective::Energy => "energy",
            Objective::Edp => "edp",
        }
    }

    /// Whether it is a matter of time alone, which a clock can confirm.
    pub fn is_time(self) -> bool {
        matches!(self, Objective::Latency | Objective::Throughput)
    }

    /// Whether a profile has the figures that it needs.
    ///
    /// # Errors
    /// [`ScheduleError::NoPower`] when it has not.
    pub fn judgeable(self, profile: &Profile) -> Result<(), ScheduleError> {
        if self.is_time() || profile.power.is_some() {
            return Ok(());
        }
        Err(ScheduleError::NoPower { objective: self })
    }

    /// What it minimises: nanoseconds, joules, or joule-nanoseconds.
    ///
    /// # Errors
    /// [`ScheduleError::NoPower`] when it needs power figures that the profile lacks.
    pub fn score(self, timeline: &Timeline, profile: &Profile) -> Result<f64, ScheduleError> {
        let busy = [timeline.busy_ns[0], timeline.busy_ns[1]];
        self.score_of(timeline.makespan_ns, busy, profile)
    }

    /// [`Objective::score`] of a makespan and the times that the CPU and the GPU compute.
    ///
    /// # Errors
    /// As [`Objective::score`].
    pub fn score_of(
        self,
        makespan_ns: u64,
        busy_ns: [u64; 2],
        profile: &Profile,
    ) -> Result<f64, ScheduleError> {
        let latency = makespan_ns as f64;
        if self.is_time() {
            return Ok(latency);
        }
        let power = profile.power.ok_or(ScheduleError::NoPower { objective: self })?;
        let energy = power.energy_j(makespan_ns, busy_ns[0], busy_ns[1]);
        Ok(if self == Objective::Energy { energy } else { energy * latency })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Objective, String> {
        Objective::ALL.into_iter().find(|o| o.name() == text).ok_or_else(|| {
            let names = Objective::ALL.map(Objective::name).join(", ");
            format!("unknown objective '{text}': give one of {names}")
        })
    }
}

#[cfg(test)]
mod tests;
