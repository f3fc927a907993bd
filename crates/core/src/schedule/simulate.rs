//! The one simulator: what a plan would take on the costs of a profile. Deterministic; the
//! policies' objective, the predicted timeline and the tests' oracle.

use serde::{Deserialize, Serialize};

use crate::{
    backend::Device,
    plan::{Lane, Plan, Step},
    profile::Profile,
};

/// Predicted times of one run, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Steps that do work, in the order in which they end.
    pub events: Vec<TimelineEvent>,
    /// The end of the last lane.
    pub makespan_ns: u64,
    /// By lane: time in which it did work.
    pub busy_ns: [u64; 4],
    /// Uploaded and downloaded bytes.
    pub copied_bytes: (usize, usize),
}

impl Timeline {
    /// Energy of the run in joules, where the profile knows the power.
    pub fn energy_j(&self, profile: &Profile) -> Option<f64> {
        let [cpu, gpu, ..] = self.busy_ns;
        profile.power.map(|power| power.energy_j(self.makespan_ns, cpu, gpu))
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// The lane.
    pub lane: Lane,
    /// The step's index in its lane.
    pub index: usize,
    /// Its beginning.
    pub start_ns: u64,
    /// Its end.
    pub end_ns: u64,
}

#[derive(Clone, Copy, Default)]
struct LaneState {
    /// Next step.
    at: usize,
    /// The step under way, if any: its index (`None` for a wake-up) and beginning.
    busy: Option<(Option<usize>, f64)>,
    /// What is left of it, at full speed.
    left: f64,
    /// When the lane last stopped to wait.
    waiting_since: Option<f64>,
}

struct Simulation<'a> {
    plan: &'a Plan,
    profile: &'a Profile,
    now: f64,
    lanes: [LaneState; 4],
    signalled: Vec<Option<f64>>,
    /// When the submission that the GPU lane performs next could have been made.
    submittable: f64,
    timeline: Timeline,
}

/// Simulates one run of a plan.
pub fn simulate(plan: &Plan, profile: &Profile) -> Timeline {
    let mut s = Simulation {
        plan,
        profile,
        now: 0.0,
        lanes: [LaneState::default(); 4],
        signalled: vec![None; plan.events],
        submittable: 0.0,
        timeline: Timeline {
            events: Vec::with_capacity(plan.lanes.iter().map(Vec::len).sum()),
            makespan_ns: 0,
            busy_ns: [0; 4],
            copied_bytes: plan.copied_bytes(),
        },
    };
    loop {
        while Lane::ALL.into_iter().any(|lane| s.start(lane)) {}
        let contended = s.lanes[0].busy.is_some() && s.lanes[1].busy.is_some();
        let slowdown = [
            if contended { profile.contention.cpu.max(1.0) } else { 1.0 },
            if contended { profile.contention.gpu.max(1.0) } else { 1.0 },
            1.0,
            1.0,
        ];
        let next = (0..4)
            .filter(|&l| s.lanes[l].busy.is_some())
            .map(|l| s.lanes[l].left * slowdown[l])
            .min_by(f64::total_cmp);
        // Nothing under way: every lane has ended (a verified plan has no deadlock).
        let Some(next) = next else { break };
        s.now += next;
        for lane in Lane::ALL {
            s.progress(lane, next, slowdown[lane.index()]);
        }
    }
    s.timeline.makespan_ns = s.now.round() as u64;
    s.timeline
}

impl Simulation<'_> {
    /// Lets an idle lane begin its next step; true when it moved.
    fn start(&mut self, lane: Lane) -> bool {
        let l = lane.index();
        let state = self.lanes[l];
        if state.busy.is_some() {
            return false;
        }
        let Some(&step) = self.plan.lane(lane).get(state.at) else { return false };
        let cost = match step {
            Step::Signal(event) => {
                self.signalled[event] = Some(self.now);
                self.lanes[l].at += 1;
                return true;
            }
            Step::Wait(event) => {
                let Some(time) = self.signalled[event] else {
                    self.lanes[l].waiting_since.get_or_insert(self.now);
                    return false;
                };
                if lane == Lane::Gpu {
                    self.submittable = self.submittable.max(time);
                }
                self.lanes[l].at += 1;
                if self.lanes[l].waiting_since.take().is_some() {
                    // It slept: somebody has to wake it.
                    self.lanes[l].busy = Some((None, self.now));
                    self.lanes[l].left = self.profile.handoff_ns as f64;
                }
                return true;
            }
            Step::Run(task) => {
                let task = &self.plan.cpu[task];
                self.profile.part_ns(task.node, Device::Cpu, task.fraction())
            }
            Step::Submit(segment) => {
                let tasks = &self.plan.gpu[self.plan.segments[segment].clone()];
                let kernels: u64 = tasks
                    .iter()
                    .map(|t| self.profile.part_ns(t.node, Device::Gpu, t.fraction()))
                    .sum();
                // A submission made while the GPU was busy costs nothing of its time.
                let ready = self.submittable + self.profile.submit_ns as f64;
                kernels + (ready - self.now).max(0.0) as u64
            }
            Step::Copy(copy) if lane == Lane::HostToDevice => {
                self.profile.upload.copy_ns(self.plan.uploads[copy].range.len())
            }
            Step::Copy(copy) => {
                self.profile.download.copy_ns(self.plan.downloads[copy].range.len())
            }
        };
        self.lanes[l].busy = Some((Some(state.at), self.now));
        self.lanes[l].left = cost as f64;
        self.lanes[l].at += 1;
        true
    }

    /// Lets time pass on a lane.
    fn progress(&mut self, lane: Lane, elapsed: f64, slowdown: f64) {
        let l = lane.index();
        let Some((index, start)) = self.lanes[l].busy else { return };
        self.lanes[l].left -= elapsed / slowdown;
        // A thousandth of a nanosecond is rounding.
        if self.lanes[l].left > 1e-3 {
            return;
        }
        self.lanes[l].busy = None;
        if let Some(index) = index {
            let (start_ns, end_ns) = (start.round() as u64, self.now.round() as u64);
            self.timeline.busy_ns[l] += end_ns - start_ns;
            self.timeline.events.push(TimelineEvent { lane, index, start_ns, end_ns });
        }
    }
}
