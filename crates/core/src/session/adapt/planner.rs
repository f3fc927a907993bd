//! Plans in the background: watches the state of the hardware, and when it has left what the running
//! plan was made for, asks the policy again and prepares the engines that are to be tried.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Instant,
};

use sparoa_kernels::pool::Pool;

use super::{
    AdaptOptions, Challenger, Message, Shared, Tried,
    estimate::{CROWD, Estimator, Expected},
};
use crate::{
    analyze::Analysis,
    backend::Accelerator,
    engine::{Engine, KernelCache},
    ir::Graph,
    monitor::Monitor,
    plan::{Place, Placement, Support, compile},
    predict::ThresholdModel,
    profile::{HardwareState, Profile, StateBucket},
    schedule::{Objective, Policy, Problem, Ranked, Scheduler, Topology, shortlist},
    session::{SessionError, memory::Footprint},
};

/// An inference that takes this much more or less tells that something has changed.
const CHANGED: f64 = 1.25;

/// The same on a loaded machine, where inferences differ more.
const CHANGED_LOADED: f64 = 1.6;

/// A trial that is lost rests its plan for up to so many doublings, one processor alone on a loaded
/// machine for fewer: when the load goes or moves, that is what will be needed.
const DOUBLINGS: [u32; 2] = [5, 1];

/// By how many buckets two plans may see the same state differently.
const SETTLING: f64 = 3.0;

/// What plans are made from: one graph on one machine.
pub(super) struct Subject {
    pub graph: Arc<Graph>,
    pub support: Support,
    pub topology: Topology,
    pub analysis: Analysis,
    /// Costs in the nominal state.
    pub profile: Profile,
    pub pins: Vec<Option<Place>>,
    pub policy: Policy,
    pub objective: Objective,
    pub thresholds: Arc<dyn ThresholdModel>,
    pub learned: Option<Arc<dyn Scheduler>>,
    pub kernels: Arc<KernelCache>,
    pub pool: Arc<Pool>,
    pub accelerator: Option<Arc<dyn Accelerator>>,
    /// Bytes for the running plan and whatever is prepared beside it.
    pub memory_limit: Option<usize>,
}

/// Attempts with a placement that lost, in one bucket.
struct Refuted {
    placement: Placement,
    until: Instant,
    times: u32,
}

/// What was decided for states of one bucket.
#[derive(Default)]
struct Verdict {
    ranked: Vec<Ranked>,
    refuted: Vec<Refuted>,
}

pub(super) struct Planner {
    subject: Subject,
    shared: Arc<Shared>,
    options: AdaptOptions,
    monitor: Monitor,
    estimator: Estimator,
    /// The placement that runs, and where it comes from.
    placed: Placement,
    name: String,
    footprint: Footprint,
    expected: Expected,
    /// The state for which it was confirmed.
    planned: HardwareState,
    /// The next observation tells how that state looks to the plan that runs.
    settling: bool,
    /// Consecutive evaluations that found the state elsewhere.
    away: u32,
    /// Engines under way to the runner, or on trial there.
    outstanding: usize,
    rested: Instant,
    /// Series of trials in a row of which none was won, and whether the present one has a winner.
    lost: u32,
    won: bool,
    /// Nanoseconds of an inference lately, and when the last trials ended.
    latency_ns: f64,
    tried_at_ns: f64,
    /// Share of the cores' time that others took when a plan was asked for last.
    others: f64,
    verdicts: HashMap<StateBucket, Verdict>,
    /// Prepared engines that do not run, the latest used last.
    engines: Vec<(Placement, Box<Engine>)>,
}

/// Whether a proposal of this name leaves one processor out.
fn is_alone(name: &str) -> bool {
    matches!(name, "cpu" | "gpu")
}

impl Planner {
    pub fn new(
        subject: Subject,
        shared: Arc<Shared>,
        options: AdaptOptions,
        monitor: Monitor,
        placed: &Placement,
    ) -> Result<Planner, SessionError> {
        let plan = compile(&subject.graph, placed, &subject.support, Some(&subject.profile))?;
        Ok(Planner {
            expected: Expected::of(plan, &subject.profile),
            estimator: Estimator::new(subject.graph.nodes.len(), options.forget),
            subject,
            shared,
            options,
            monitor,
            placed: placed.clone(),
            name: String::new(),
            footprint: Footprint { host: 0, device: 0 },
            planned: HardwareState::default(),
            settling: false,
            away: 0,
            outstanding: 0,
            rested: Instant::now(),
            lost: 0,
            won: false,
            latency_ns: 0.0,
            tried_at_ns: 0.0,
            others: 0.0,
            verdicts: HashMap::new(),
            engines: Vec::new(),
        })
    }

    /// With the source of the placement that runs, and what its engine takes.
    pub fn running(mut self, source: &str, footprint: Footprint) -> Planner {
        source.clone_into(&mut self.name);
        self.footprint = footprint;
        self
    }

    /// The life of the planner's thread.
    pub fn serve(mut self, messages: &Receiver<Message>) {
        let mut next = Instant::now();
        let mut seen = 0;
        loop {
            let patience = next.saturating_duration_since(Instant::now());
            match messages.recv_timeout(patience) {
                Ok(Message::Observed(seen)) => {
                    let now = Instant::now();
                    self.latency_ns = seen.took_ns as f64 / f64::from(seen.runs.max(1));
                    self.estimator.observe(&self.expected, seen, now);
                    if std::mem::take(&mut self.settling) {
                        // A trial has just confirmed this plan, and it sees the state with an error
                        // of its own. What is further away has changed since.
                        let state = self.estimator.state(now);
                        self.tried_at_ns = self.latency_ns;
                        if self.planned.distance(&state) < SETTLING {
                            self.planned = state;
                        }
                    }
                    self.evaluate();
                }
                Ok(Message::Tried(tried)) => self.conclude(*tried),
                Ok(Message::Dropped(challengers)) => {
                    self.outstanding -= challengers.len().min(self.outstanding);
                    for Challenger { placement, engine, .. } in challengers {
                        self.keep(placement, engine);
                    }
                }
                Ok(Message::Propose(placement)) => {
                    let challenger = Ranked { name: "proposed".into(), placement, score: 0.0 };
                    let prepared = self.prepare(challenger, HardwareState::default(), true);
                    self.offer(prepared.into_iter().collect());
                }
                Err(RecvTimeoutError::Timeout) => {
                    next = Instant::now() + self.options.period;
                    // A session at rest has no state that matters.
                    let inferences = self.shared.inferences.load(Ordering::Relaxed);
                    if inferences != seen {
                        seen = inferences;
                        let snapshot = self.monitor.sample();
                        self.estimator.sense(snapshot);
                        self.evaluate();
                    }
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Plans anew when the state has left the running plan's bucket, twice in a row and not right
    /// after the last change. Where inferences take as long as after the last trials, that may be a
    /// phantom: such states are explored more and more rarely as long as that leads nowhere.
    fn evaluate(&mut self) {
        let now = Instant::now();
        let state = self.estimator.state(now);
        self.shared.with_report(|report| {
            report.state = state;
            report.snapshot = self.estimator.snapshot().clone();
            report.drift.clear();
            let nodes = &self.subject.graph.nodes;
            let drift = self.estimator.operator_drift();
            report.drift.extend(drift.map(|(node, ratio)| (nodes[node].name.clone(), ratio)));
        });
        let elsewhere = self.planned.distance(&state) >= 1.0;
        self.away = if elsewhere { self.away + 1 } else { 0 };
        let factor = if self.planned.is_loaded() { CHANGED_LOADED } else { CHANGED };
        let changed = (self.latency_ns / self.tried_at_ns).ln().abs() > factor.ln()
            || (self.estimator.others() - self.others).abs() > CROWD;
        let rest = match changed || self.tried_at_ns == 0.0 {
            true => self.options.dwell,
            false => self.options.forget * (1 << self.lost.min(5)),
        };
        if self.outstanding > 0 || now < self.rested + rest {
            return;
        }
        if self.away == 1 {
            self.shared.sample_now.store(true, Ordering::Relaxed);
        }
        if self.away >= self.options.confirm {
            self.plan(state);
        }
    }

    fn plan(&mut self, state: HardwareState) {
        self.away = 0;
        self.planned = state;
        self.others = self.estimator.others();
        let start = Instant::now();
        let (ranked, cached) = match self.verdicts.get(&state.bucket()) {
            Some(verdict) => (verdict.ranked.clone(), true),
            None => match self.decide(state) {
                Ok(ranked) => (ranked, false),
                Err(e) => {
                    tracing::warn!("no plan for the new state: {e}");
                    return;
                }
            },
        };
        let took = start.elapsed();
        self.shared.with_report(|report| {
            if cached {
                report.cache_hits += 1;
            } else {
                report.decisions += 1;
                report.slowest_decision = report.slowest_decision.max(took);
            }
        });
        let now = Instant::now();
        let verdict = self.verdicts.entry(state.bucket()).or_default();
        verdict.ranked = ranked;
        let open = |placement: &Placement| {
            !verdict.refuted.iter().any(|r| r.placement == *placement && r.until > now)
        };
        // What runs already is rated by the same estimate: only what promises more is tried.
        let bar = verdict
            .ranked
            .iter()
            .find(|r| r.placement == self.placed)
            .map_or(f64::INFINITY, |r| r.score);
        let others =
            || verdict.ranked.iter().filter(|r| r.placement != self.placed && open(&r.placement));
        // One processor alone needs no hand-over: what a loaded core does to those is the least
        // certain of all predictions. So it is tried first, and unless it is expected to take longer
        // than what has been measured.
        let alone = |r: &&Ranked| is_alone(&r.name);
        let measured = match state.is_loaded() {
            true => bar.max(self.latency_ns),
            false => bar,
        };
        let mut challengers: Vec<Ranked> =
            others().filter(alone).filter(|r| r.score < measured).take(2).cloned().collect();
        let promising = others().filter(|r| !alone(r) && r.score < bar);
        let room = (self.options.challengers + 1).saturating_sub(challengers.len());
        challengers.extend(promising.take(room.min(self.options.challengers)).cloned());
        if !state.is_loaded() {
            challengers.sort_by(|a, b| a.score.total_cmp(&b.score));
        }
        if self.subject.memory_limit.is_some() {
            challengers.truncate(1);
        }
        let names: Vec<&str> = challengers.iter().map(|c| &*c.name).collect();
        tracing::debug!(?state, cached, latency_ns = self.latency_ns, challengers = ?names, "planned");
        let prepared: Vec<Challenger> =
            challengers.into_iter().filter_map(|c| self.prepare(c, state, false)).collect();
        // Only now: to prepare one beside the trial of another would fall into its times.
        self.offer(prepared);
    }

    /// Asks the policy. What runs now is among the answers.
    fn decide(&self, state: HardwareState) -> Result<Vec<Ranked>, SessionError> {
        let s = &self.subject;
        let profile = state.slow(&self.estimator.corrected(&s.profile));
        let thresholds = s.thresholds.predict(&s.graph, &s.analysis, &profile);
        let problem = Problem {
            graph: &s.graph,
            support: &s.support,
            topology: &s.topology,
            analysis: &s.analysis,
            profile: &profile,
            thresholds: &thresholds,
            state,
            pins: &s.pins,
            objective: s.objective,
            learned: s.learned.as_deref(),
        };
        let mut ranked = shortlist(&problem, s.policy)?;
        if !ranked.iter().any(|r| r.placement == self.placed) {
            let placement = self.placed.clone();
            let score = problem.estimate(&placement)?;
            let at = ranked.partition_point(|r| r.score <= score);
            ranked.insert(at, Ranked { name: self.name.clone(), placement, score });
        }
        Ok(ranked)
    }

    fn prepare(
        &mut self,
        ranked: Ranked,
        state: HardwareState,
        unconditional: bool,
    ) -> Option<Challenger> {
        let Ranked { name, placement, score } = ranked;
        match self.engine(&placement) {
            Ok(engine) => Some(Challenger { engine, placement, name, score, state, unconditional }),
            Err(e) => {
                tracing::warn!("plan '{name}' cannot be prepared: {e}");
                self.shared.with_report(|report| report.refused += 1);
                None
            }
        }
    }

    /// Hands challengers to the runner.
    fn offer(&mut self, prepared: Vec<Challenger>) {
        self.outstanding += prepared.len();
        prepared.into_iter().for_each(|challenger| self.shared.offer(challenger));
    }

    fn engine(&mut self, placement: &Placement) -> Result<Box<Engine>, SessionError> {
        if let Some(at) = self.engines.iter().position(|(p, _)| p == placement) {
            return Ok(self.engines.remove(at).1);
        }
        let s = &self.subject;
        let plan = compile(&s.graph, placement, &s.support, Some(&s.profile))?;
        // Beside the running engine.
        let room = s.memory_limit.map(|limit| limit.saturating_sub(self.footprint.total()));
        Footprint::least(&plan, &s.graph).within(room)?;
        let accelerator = s.accelerator.as_deref();
        let engine = Engine::new_beside(plan, &s.graph, &s.kernels, &s.pool, accelerator)?;
        Footprint::of(&engine).within(room)?;
        Ok(Box::new(engine))
    }

    /// Learns from a trial.
    fn conclude(&mut self, tried: Tried) {
        let now = Instant::now();
        self.outstanding = self.outstanding.saturating_sub(1);
        self.rested = now;
        let Tried { placement, won, engine, footprint, seen, name, state, failed } = tried;
        if won {
            self.settling = true;
            self.won = true;
            self.name = name;
            self.footprint = footprint;
            let old = std::mem::replace(&mut self.placed, placement);
            self.expected = self.expectation(&self.placed);
            if let Some(seen) = seen {
                self.estimator.observe(&self.expected, seen, now);
            }
            self.keep(old, engine);
        } else {
            let bucket = self.verdicts.entry(state.bucket()).or_default();
            let refuted = &mut bucket.refuted;
            let at = refuted.iter().position(|r| r.placement == placement).unwrap_or_else(|| {
                refuted.push(Refuted { placement: placement.clone(), until: now, times: 0 });
                refuted.len() - 1
            });
            // Twice as long every time: a load that stays is not asked about again and again.
            let tough = state.is_loaded() && is_alone(&name);
            let times_lost = refuted[at].times.min(DOUBLINGS[usize::from(tough)]);
            refuted[at].times += 1;
            refuted[at].until = now + self.options.forget * (1 << times_lost);
            if let Some(seen) = seen {
                // It has seen processors that the running plan may not use.
                let expected = self.expectation(&placement);
                self.estimator.observe(&expected, seen, now);
            }
            if !failed {
                self.keep(placement, engine);
            }
        }
        if self.outstanding == 0 {
            self.lost = if std::mem::take(&mut self.won) { 0 } else { self.lost + 1 };
        }
        self.tried_at_ns = self.latency_ns;
        self.subject.kernels.forget_unused();
    }

    fn expectation(&self, placement: &Placement) -> Expected {
        let s = &self.subject;
        let plan = compile(&s.graph, placement, &s.support, Some(&s.profile))
            .expect("the placement of an engine that was prepared compiles");
        Expected::of(plan, &s.profile)
    }

    /// Keeps an engine for its bucket's return, as long as there is room.
    fn keep(&mut self, placement: Placement, engine: Box<Engine>) {
        self.engines.push((placement, engine));
        let room = if self.subject.memory_limit.is_some() { 0 } else { self.options.engines };
        let spare = self.engines.len().saturating_sub(room);
        self.engines.drain(..spare);
    }
}
