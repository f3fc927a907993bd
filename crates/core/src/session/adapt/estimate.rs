//! The state of the hardware as a running model shows it: measured times of its steps against the
//! predicted ones; where it does not use a processor, what the sensors say of it.

use std::time::{Duration, Instant};

use crate::{
    engine::StepTimes,
    monitor::Snapshot,
    plan::{Lane, Plan, Step},
    profile::{HardwareState, Profile},
    schedule::simulate,
};

/// A processor seen slower or faster than this says more of the measurement than of itself.
const SHARES: [f64; 2] = [0.02, 2.0];

/// How much longer evidence is believed while the sensors see as much of others as when it was found.
const PATIENCE: u32 = 8;

/// Observations after which an operator's own drift counts as much as its processor's.
const TRUSTED: f64 = 8.0;

/// Copies that take less than this share of a run say nothing about the link.
const COPIES: f64 = 0.1;

/// A CPU whose steps take this many times longer shares its core with others.
const CROWDED: f64 = 1.5;

/// On a crowded core, a thread that has slept is served after what others have begun: a scheduler's
/// slice is about so long. Who waits for segments much shorter than a few slices sees those instead.
const SLICE_NS: u64 = 3_000_000;

/// Others that take this share of all cores' time crowd a core.
pub(super) const CROWD: f64 = 0.25;

/// What one plan's steps were predicted to take in the nominal state.
pub(super) struct Expected {
    plan: Plan,
    /// By lane and step.
    times: StepTimes,
    makespan_ns: u64,
}

impl Expected {
    pub fn of(plan: Plan, nominal: &Profile) -> Expected {
        let mut times = StepTimes(Lane::ALL.map(|lane| vec![0; plan.lane(lane).len()]));
        let timeline = simulate(&plan, nominal);
        for event in timeline.events {
            times.0[event.lane.index()][event.index] += event.end_ns - event.start_ns;
        }
        Expected { plan, times, makespan_ns: timeline.makespan_ns }
    }

    /// The end of a run whose steps take so long and whose lanes are woken at once, and how many waits
    /// find that they must sleep.
    fn prompt(&self, times: &StepTimes) -> (u64, u64) {
        let mut signalled: Vec<Option<u64>> = vec![None; self.plan.events];
        let (mut at, mut now, mut sleeps) = ([0usize; 4], [0u64; 4], 0);
        loop {
            let before = at;
            for lane in Lane::ALL {
                let l = lane.index();
                while let Some(step) = self.plan.lane(lane).get(at[l]) {
                    match step {
                        Step::Signal(event) => signalled[*event] = Some(now[l]),
                        Step::Wait(event) => {
                            let Some(time) = signalled[*event] else { break };
                            sleeps += u64::from(time > now[l]);
                            now[l] = now[l].max(time);
                        }
                        _ => now[l] += times.0[l].get(at[l]).copied().unwrap_or(0),
                    }
                    at[l] += 1;
                }
            }
            if at == before {
                return (now.into_iter().max().unwrap_or(0), sleeps);
            }
        }
    }
}

/// Sums over some runs of one plan.
pub(super) struct Observation {
    pub times: StepTimes,
    pub runs: u32,
    /// The runs as wholes.
    pub took_ns: u64,
    /// Whether the lanes had threads of their own.
    pub concurrent: bool,
}

/// A smoothed ratio of measured to predicted time.
#[derive(Clone, Copy, Debug)]
struct Drift {
    ratio: f64,
    at: Instant,
    /// Share of the cores' time that others took.
    others: f64,
}

/// What is known of the hardware at the moment.
pub(super) struct Estimator {
    cpu: Option<Drift>,
    gpu: Option<Drift>,
    link: Option<f64>,
    /// How much later lanes are woken, and when that was seen.
    wake: Option<(f64, Instant)>,
    /// By node: the CPU's ratio and the number of observations behind it.
    operators: Vec<(f64, f64)>,
    snapshot: Snapshot,
    /// Share of the cores' time that others take, smoothed.
    others: f64,
    /// Without evidence for so long, the GPU is taken to be free again.
    forget: Duration,
}

impl Estimator {
    pub fn new(nodes: usize, forget: Duration) -> Estimator {
        Estimator {
            cpu: None,
            gpu: None,
            link: None,
            wake: None,
            operators: vec![(1.0, 0.0); nodes],
            snapshot: Snapshot::default(),
            others: 0.0,
            forget,
        }
    }

    pub fn sense(&mut self, snapshot: Snapshot) {
        if let Some(busy) = snapshot.cpu_busy {
            self.others += 0.7 * (busy - self.others);
        }
        self.snapshot = snapshot;
    }

    /// Share of the cores' time that others take, smoothed.
    pub fn others(&self) -> f64 {
        self.others
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Takes what runs of the plan `expected` have shown.
    pub fn observe(&mut self, expected: &Expected, seen: Observation, at: Instant) {
        let runs = u64::from(seen.runs.max(1));
        let mut times = seen.times;
        times.0.iter_mut().flatten().for_each(|ns| *ns /= runs);
        let ratio = |times: &StepTimes, lanes: &[Lane], least_ns: u64| {
            let sum = |t: &StepTimes| -> u64 {
                lanes.iter().map(|lane| t.0[lane.index()].iter().sum::<u64>()).sum()
            };
            let predicted = sum(&expected.times);
            (predicted > least_ns).then(|| sum(times) as f64 / predicted as f64)
        };
        let (prompt_ns, sleeps) = expected.prompt(&times);
        let mut late_ns = 0;
        if seen.concurrent && sleeps > 0 {
            late_ns = (seen.took_ns / runs).saturating_sub(prompt_ns) / sleeps;
            self.wake = Some((late_ns as f64, at));
        }
        // A segment ends when its lane has woken: that is not the GPU's time.
        let slept = expected.times.0[Lane::Gpu.index()].iter().zip(&mut times.0[Lane::Gpu.index()]);
        for (&predicted, measured) in slept {
            *measured = measured.saturating_sub(late_ns).max((*measured).min(predicted / 2));
        }
        // A thread that mostly sleeps gets its core at once, however crowded: what little it runs says
        // nothing about a plan that runs much.
        let idle = if self.others > CROWD { SLICE_NS } else { 0 };
        smooth(&mut self.cpu, ratio(&times, &[Lane::Cpu], idle), at, self.others);
        // Then lateness would pass for a slow GPU, and forbid the one plan that hardly suffers from it.
        let crowded = self.cpu.is_some_and(|drift| drift.ratio > CROWDED);
        let segments = expected.times.0[Lane::Gpu.index()].iter().filter(|ns| **ns > 0).count();
        let gpu_ns: u64 = expected.times.0[Lane::Gpu.index()].iter().sum();
        if !crowded || !seen.concurrent || gpu_ns > 4 * SLICE_NS * segments as u64 {
            smooth(&mut self.gpu, ratio(&times, &[Lane::Gpu], 0), at, self.others);
        }
        let copies = (COPIES * expected.makespan_ns as f64) as u64;
        if let Some(ratio) = ratio(&times, &[Lane::HostToDevice, Lane::DeviceToHost], copies) {
            // The host's share of a copy slows with the CPU.
            let cpu = self.cpu.map_or(1.0, |drift| drift.ratio.max(1.0));
            self.link = Some((cpu / ratio.max(1e-3)).clamp(0.1, 1.0));
        }
        let steps = expected.plan.lane(Lane::Cpu).iter().zip(&expected.times.0[0]).zip(&times.0[0]);
        for ((step, &predicted), &measured) in steps {
            if let Step::Run(item) = *step
                && predicted > 0
            {
                let node = expected.plan.cpu[item].node.index();
                let (mean, count) = &mut self.operators[node];
                *count += 1.0;
                *mean += (measured as f64 / predicted as f64 - *mean) / count.min(TRUSTED);
            }
        }
    }

    /// The present state, relative to the one in which the profile was measured.
    pub fn state(&self, now: Instant) -> HardwareState {
        let fresh = |drift: Option<Drift>| {
            drift.filter(|d| {
                let alike = (d.others - self.others).abs() < CROWD;
                // As long as others take as much as they did, there is no reason to think that they
                // left; when they have left, what was seen beside them is past.
                match (d.others > CROWD, alike) {
                    (true, true) => now - d.at < self.forget * PATIENCE,
                    (true, false) => self.others > d.others && now - d.at < self.forget,
                    _ => now - d.at < self.forget,
                }
            })
        };
        let share = |ratio: f64| (1.0 / ratio).clamp(SHARES[0], SHARES[1]);
        let sensed = |busy: Option<f64>, clock: Option<f64>| {
            // A fair scheduler leaves a second claimant half at least.
            busy.map_or(1.0, |b| (1.0 - b).max(0.5)) * clock.unwrap_or(1.0).min(1.0)
        };
        let seen = &self.snapshot;
        let cpu = fresh(self.cpu)
            .map_or_else(|| sensed(seen.cpu_busy, seen.cpu_clock), |d| share(d.ratio));
        let gpu = self
            .gpu
            .filter(|d| now - d.at < self.forget)
            .map_or_else(|| sensed(seen.gpu_busy, seen.gpu_clock), |d| share(d.ratio));
        // How much of it others take is told by the run queue; the rest is the clock's.
        let busy = seen.cpu_wait.unwrap_or(0.0).clamp(0.0, (1.0 - cpu).max(0.0));
        // A plan without hand-overs does not show how late they are.
        let wake = self.wake.filter(|(_, at)| now - *at < self.forget).map_or(0.0, |(ns, _)| ns);
        let wake = if busy > 0.0 { wake.max(busy * SLICE_NS as f64) } else { wake };
        HardwareState {
            cpu_busy: busy,
            cpu_rate: cpu / (1.0 - busy),
            gpu_busy: (1.0 - gpu).max(0.0),
            gpu_rate: gpu.max(1.0),
            link: self.link.unwrap_or(1.0),
            wake_ns: wake,
            ..HardwareState::default()
        }
    }

    /// The nominal profile with what each operator's own times have taught, the drift that it
    /// shares with its processor left out.
    pub fn corrected(&self, nominal: &Profile) -> Profile {
        let mut profile = nominal.clone();
        let Some(common) = self.cpu else { return profile };
        for (node, &(ratio, count)) in profile.nodes.iter_mut().zip(&self.operators) {
            if let Some(cost) = &mut node.cpu
                && count > 0.0
            {
                let own = (ratio / common.ratio).clamp(0.5, 2.0);
                let factor = own.powf(count / (count + TRUSTED));
                cost.latency_ns = (cost.latency_ns as f64 * factor) as u64;
                cost.fixed_ns = (cost.fixed_ns as f64 * factor) as u64;
            }
        }
        profile
    }

    /// Measured over predicted time of the operators that have run on the CPU, by node.
    pub fn operator_drift(&self) -> impl Iterator<Item = (usize, f64)> {
        let seen = self.operators.iter().enumerate().filter(|(_, (_, count))| *count > 0.0);
        seen.map(|(node, (ratio, _))| (node, *ratio))
    }
}

fn smooth(drift: &mut Option<Drift>, ratio: Option<f64>, at: Instant, others: f64) {
    let Some(ratio) = ratio else { return };
    let smoothed = match drift {
        // An older one belongs to another time, a far one to another state.
        Some(old)
            if at - old.at < Duration::from_secs(2)
                && (ratio / old.ratio).ln().abs() < 1.2_f64.ln() =>
        {
            0.5 * (old.ratio + ratio)
        }
        _ => ratio,
    };
    *drift = Some(Drift { ratio: smoothed, at, others });
}
