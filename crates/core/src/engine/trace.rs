//! When each step of a run began and ended.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;

use crate::plan::{Lane, Plan, Step};

/// Measured times of one run, in nanoseconds from its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trace {
    /// Steps that did work, by lane and start.
    pub events: Vec<TraceEvent>,
    /// From the start of the run to the end of its last step.
    pub makespan_ns: u64,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceEvent {
    /// The lane.
    pub lane: Lane,
    /// The step's index in its lane.
    pub index: usize,
    /// What it did: a task's name, a segment's tasks, a copied value.
    pub name: String,
    /// Its beginning.
    pub start_ns: u64,
    /// Its end; for a submission, the end of its execution.
    pub end_ns: u64,
}

impl Trace {
    /// Time in which a lane did work.
    pub fn busy_ns(&self, lane: Lane) -> u64 {
        self.events.iter().filter(|e| e.lane == lane).map(|e| e.end_ns - e.start_ns).sum()
    }

    /// Time in which the CPU and the GPU computed at once.
    pub fn overlap_ns(&self) -> u64 {
        let of = |lane| self.events.iter().filter(move |e| e.lane == lane);
        of(Lane::Cpu)
            .flat_map(|a| of(Lane::Gpu).map(move |b| (a, b)))
            .map(|(a, b)| a.end_ns.min(b.end_ns).saturating_sub(a.start_ns.max(b.start_ns)))
            .sum()
    }
}

/// How long each step of a run took, in nanoseconds, by lane and index; 0 for signals and waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes(pub [Vec<u64>; 4]);

impl StepTimes {
    /// Adds another run of the same plan.
    pub fn add(&mut self, other: &StepTimes) {
        for (sums, times) in self.0.iter_mut().zip(&other.0) {
            sums.resize(times.len(), 0);
            sums.iter_mut().zip(times).for_each(|(sum, ns)| *sum += ns);
        }
    }
}

/// Where the lanes note their times; allocated before the run.
pub(super) struct Recorder {
    epoch: OnceLock<Instant>,
    /// By lane and step: start and end.
    times: [Vec<[AtomicU64; 2]>; 4],
}

impl Recorder {
    pub fn new(plan: &Plan) -> Recorder {
        let times =
            Lane::ALL.map(|lane| plan.lane(lane).iter().map(|_| Default::default()).collect());
        Recorder { epoch: OnceLock::new(), times }
    }

    /// Sets the origin of time.
    pub fn start(&self) {
        self.epoch.get_or_init(Instant::now);
    }

    pub fn now_ns(&self) -> u64 {
        let elapsed = self.epoch.get_or_init(Instant::now).elapsed();
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes that a step which began at `start` ends now.
    pub fn record(&self, lane: Lane, index: usize, start: u64) {
        let [s, e] = &self.times[lane.index()][index];
        s.store(start, Ordering::Relaxed);
        e.store(self.now_ns().max(start), Ordering::Release);
    }

    /// The durations of the last run, into memory that is there already after the first time.
    pub fn durations(&self, into: &mut StepTimes) {
        for (durations, times) in into.0.iter_mut().zip(&self.times) {
            durations.clear();
            durations.extend(
                times.iter().map(|[s, e]| {
                    e.load(Ordering::Acquire).saturating_sub(s.load(Ordering::Relaxed))
                }),
            );
        }
    }

    pub fn trace(&self, plan: &Plan) -> Trace {
        let mut events = Vec::new();
        for lane in Lane::ALL {
            for (index, (&step, [s, e])) in
                plan.lane(lane).iter().zip(&self.times[lane.index()]).enumerate()
            {
                if matches!(step, Step::Signal(_) | Step::Wait(_)) {
                    continue;
                }
                let end_ns = e.load(Ordering::Acquire);
                let start_ns = s.load(Ordering::Relaxed);
                let name = plan.step_name(lane, step);
                events.push(TraceEvent { lane, index, name, start_ns, end_ns });
            }
        }
        let makespan_ns = events.iter().map(|e| e.end_ns).max().unwrap_or(0);
        Trace { events, makespan_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_cpu_and_gpu_only() {
        let event = |lane, start_ns, end_ns| TraceEvent {
            lane,
            index: 0,
            name: String::new(),
            start_ns,
            end_ns,
        };
        let trace = Trace {
            events: vec![
                event(Lane::Cpu, 0, 10),
                event(Lane::Cpu, 20, 30),
                event(Lane::Gpu, 5, 25),
                event(Lane::HostToDevice, 0, 30),
            ],
            makespan_ns: 30,
        };
        assert_eq!(trace.overlap_ns(), 10);
        assert_eq!(trace.busy_ns(Lane::Cpu), 20);
    }
}
