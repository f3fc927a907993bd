//! A session that follows its machine: when the state of the hardware leaves what the running plan
//! was made for, the policy is asked again in the background, and what it proposes is tried against
//! the running plan, inference by inference, before it is adopted. Prediction proposes, measurement
//! decides; between the two the model runs on.
//!
//! The caller's thread ([`runner`]) swaps engines between two inferences and times some of them; a
//! thread of its own ([`planner`]) watches, plans and prepares.

mod estimate;
mod planner;
mod runner;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{Session, SessionError, memory::Footprint};
use crate::{
    engine::Engine,
    monitor::{Monitor, Snapshot},
    plan::Placement,
    profile::HardwareState,
    schedule::{Policy, Topology, resolve_pins},
};
use estimate::Observation;
use planner::{Planner, Subject};

pub(super) use runner::Runner;

/// How a session adapts. The defaults suit models of one millisecond to one second.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptOptions {
    /// Between two looks at the sensors.
    pub period: Duration,
    /// Between two samples of step times, at least; a jump of the latency is sampled at once.
    pub sample_period: Duration,
    /// No new plan sooner than this after the last trial.
    pub dwell: Duration,
    /// Evaluations in a row that must find the state elsewhere.
    pub confirm: u32,
    /// Placements tried per change, at most.
    pub challengers: usize,
    /// Prepared engines kept beside the running one; each holds an arena, and on the GPU slots.
    pub engines: usize,
    /// Time that a trial gives each side, about; 7 to 64 inferences.
    pub trial: Duration,
    /// The fraction by which a challenger must beat the running plan.
    pub margin: f64,
    /// Evidence of a processor that the running plan does not use is believed for so long. While
    /// inferences take as long as they did, other plans are tried no more often than this, and half as
    /// often after every round of trials that is lost, down to a 32nd.
    pub forget: Duration,
}

impl Default for AdaptOptions {
    fn default() -> AdaptOptions {
        AdaptOptions {
            period: Duration::from_millis(100),
            sample_period: Duration::from_millis(100),
            dwell: Duration::from_millis(300),
            confirm: 2,
            challengers: 3,
            engines: 3,
            trial: Duration::from_millis(100),
            margin: 0.04,
            forget: Duration::from_secs(5),
        }
    }
}

/// What an adaptive session has seen and done.
#[derive(Clone, Debug, Default)]
pub struct AdaptReport {
    /// The state of the hardware, relative to that in which the profile was measured.
    pub state: HardwareState,
    /// What the sensors said last.
    pub snapshot: Snapshot,
    /// Measured over predicted time of the operators that the CPU runs, by node name.
    pub drift: Vec<(String, f64)>,
    /// Times that the policy was asked.
    pub decisions: u64,
    /// Times that a plan of the cache served instead.
    pub cache_hits: u64,
    /// The longest that the policy took, predicting thresholds included.
    pub slowest_decision: Duration,
    /// Trials begun.
    pub trials: u64,
    /// Plans that could not be prepared, or failed when they were tried.
    pub refused: u64,
    /// Changes of the running plan.
    pub switches: u64,
    /// The last of them, oldest first; at most [`LOGGED`].
    pub log: Vec<Switch>,
}

/// Entries of [`AdaptReport::log`], at most.
pub const LOGGED: usize = 256;

/// A change of the running plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Switch {
    /// The first inference that the new plan ran alone, counted from the start of adapting.
    pub inference: u64,
    /// What ran before.
    pub from: String,
    /// What runs now.
    pub to: String,
    /// The state of the hardware that led to it.
    pub state: HardwareState,
    /// Median times of the old and the new plan in the trial, where there was one.
    pub medians_ns: Option<(u64, u64)>,
}

/// From the runner to the planner.
enum Message {
    Observed(Observation),
    Tried(Box<Tried>),
    /// Challengers that need no trial any more.
    Dropped(Vec<Challenger>),
    Propose(Placement),
    Stop,
}

/// The outcome of a trial.
struct Tried {
    placement: Placement,
    won: bool,
    /// The loser's.
    engine: Box<Engine>,
    /// The challenger's.
    footprint: Footprint,
    /// The challenger's step times.
    seen: Option<Observation>,
    name: String,
    state: HardwareState,
    /// It gave an error.
    failed: bool,
}

/// A prepared plan on its way to the runner.
struct Challenger {
    engine: Box<Engine>,
    placement: Placement,
    name: String,
    /// What it is expected to take.
    score: f64,
    state: HardwareState,
    /// To be adopted without a trial.
    unconditional: bool,
}

/// What both threads see.
#[derive(Default)]
struct Shared {
    inferences: AtomicU64,
    /// The planner wants step times.
    sample_now: AtomicBool,
    /// Something is in `offers`: spares the runner the lock.
    ready: AtomicBool,
    offers: Mutex<VecDeque<Challenger>>,
    report: Mutex<AdaptReport>,
}

impl Shared {
    fn offer(&self, challenger: Challenger) {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.push_back(challenger);
        self.ready.store(true, Ordering::Release);
    }

    fn take(&self) -> Option<Challenger> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let first = offers.pop_front();
        self.ready.store(!offers.is_empty(), Ordering::Release);
        first
    }

    /// Takes back what waits for a trial and promises no more than `score`.
    fn drop_from(&self, score: f64) -> Vec<Challenger> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let (dropped, left): (VecDeque<_>, _) =
            offers.drain(..).partition(|c| !c.unconditional && c.score >= score);
        *offers = left;
        self.ready.store(!offers.is_empty(), Ordering::Release);
        Vec::from(dropped)
    }

    fn with_report<T>(&self, f: impl FnOnce(&mut AdaptReport) -> T) -> T {
        f(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The background half of an adaptive session; ends its thread when dropped.
pub(super) struct Background {
    messages: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Background {
    fn drop(&mut self) {
        // The thread is gone only if it has panicked: nothing is left to stop.
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Session {
    /// Follows the state of the hardware from now on; see the module. `monitor` reads the sensors
    /// ([`Monitor::new`] for this machine's).
    ///
    /// # Errors
    /// [`SessionError::NotAdaptable`] when there is nothing to decide (no GPU, no costs, or a
    /// placement that the user gave), or the objective is not one of time.
    pub fn adapt(&mut self, options: AdaptOptions, monitor: Monitor) -> Result<(), SessionError> {
        let refuse = |reason: &str| SessionError::NotAdaptable { reason: reason.to_owned() };
        if self.accelerator.is_none() {
            return Err(refuse("there is no GPU"));
        }
        if matches!(self.decision.policy, Policy::Cpu | Policy::Gpu) {
            return Err(refuse("the policy leaves nothing to decide; use policy auto"));
        }
        if !self.decision.objective.is_time() {
            return Err(refuse("a trial between inferences can measure time, not energy"));
        }
        let Some(profile) = self.profile.clone() else {
            return Err(refuse("the placement was given, and no costs are known"));
        };
        let support = self.support().clone();
        let pins = resolve_pins(&self.graph, &support, &self.decision.pins)?;
        let subject = Subject {
            graph: self.graph.clone(),
            topology: Topology::of(&self.graph, &support),
            support,
            analysis: self.analysis.clone(),
            profile,
            pins,
            policy: self.decision.policy,
            objective: self.decision.objective,
            thresholds: self.thresholds.clone(),
            learned: self.learned.clone(),
            kernels: self.kernels.clone(),
            pool: self.pool.clone(),
            accelerator: self.accelerator.clone(),
            memory_limit: self.memory_limit,
        };
        let shared = Arc::<Shared>::default();
        let planner =
            Planner::new(subject, shared.clone(), options.clone(), monitor, &self.placement)?
                .running(&self.decision.source, self.footprint());
        let (messages, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("sparoa-planner".to_owned())
            .spawn(move || planner.serve(&inbox))
            .map_err(|e| refuse(&format!("the system starts no thread: {e}")))?;
        let background = Background { messages, shared, thread: Some(thread) };
        let name = self.decision.source.clone();
        self.runner = Some(Runner::new(background, options, name));
        Ok(())
    }

    /// What adapting has seen and done; `None` for a session that does not adapt.
    pub fn adaptation(&self) -> Option<AdaptReport> {
        self.runner.as_ref().map(Runner::report)
    }

    /// Prepares another placement in the background and changes to it between two inferences, without
    /// a trial. Whether it could be prepared, [`Session::adaptation`] tells (`switches`, `refused`).
    ///
    /// # Errors
    /// [`SessionError::NotAdaptable`] for a session that does not adapt.
    pub fn propose(&self, placement: Placement) -> Result<(), SessionError> {
        let runner = self.runner.as_ref().ok_or_else(|| SessionError::NotAdaptable {
            reason: "Session::adapt was not called".to_owned(),
        })?;
        runner.propose(placement);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
