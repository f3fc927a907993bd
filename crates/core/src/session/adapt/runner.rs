//! The caller's half of an adaptive session: runs inferences, times some of them, tries challengers
//! against the running engine and swaps. Allocates when a sample or a trial ends, not per inference.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    AdaptOptions, AdaptReport, Background, Challenger, LOGGED, Message, Observation, Switch, Tried,
};
use crate::{
    engine::{Engine, EngineError, StepTimes},
    plan::Placement,
    session::{memory::Footprint, nanoseconds},
    tensor::Tensor,
};

/// The last latencies, for medians.
const RECENT: usize = 8;

/// A median that has moved by this factor is a jump.
const JUMP: f64 = 1.15;

/// Step times are gathered over so much time and so many inferences, or over this many. A single
/// inference on a loaded core takes between nothing and twice the usual longer.
const BURST: (Duration, u32, u32) = (Duration::from_millis(20), 3, 16);

/// Of all inferences, one in so many is timed step by step while nothing happens.
const SPARSELY: u64 = 16;

/// Inferences that each side of a trial gets.
const TRIAL: (usize, usize) = (7, 64);

/// Inferences of either side after which a trial may end early: what every one of them shows.
const CLEAR: usize = 3;

/// A trial in which the running plan's times change by this factor is repeated.
const MOVED: f64 = 1.5;

/// A challenger that takes this many times longer than the running plan's median is out after two
/// inferences, one that takes the square root of it after [`CLEAR`].
const HOPELESS: f64 = 2.25;

/// What the session runs from now on.
pub(in crate::session) struct Adopted {
    pub placement: Placement,
    pub name: String,
}

pub(in crate::session) struct Runner {
    background: Background,
    options: AdaptOptions,
    /// Where the running placement comes from.
    name: String,
    inferences: u64,
    recent: [u64; RECENT],
    /// The median when step times were last gathered.
    reference_ns: u64,
    burst: Option<Burst>,
    last_burst: (Instant, u64),
    /// Inferences that the last burst took.
    last_runs: u32,
    times: StepTimes,
    trial: Option<Trial>,
}

/// Step times being gathered.
#[derive(Default)]
struct Burst {
    sums: StepTimes,
    runs: u32,
    took: Duration,
}

/// A challenger against the running engine: a block of inferences each, because who has just used much
/// of a loaded core gets less of it. The running engine's latencies before the trial count as well.
struct Trial {
    challenger: Challenger,
    /// Measurements that each block gives.
    goal: usize,
    challenging: Vec<u64>,
    /// Whether this is the second attempt.
    repeated: bool,
    /// Before the trial, and in it.
    before: Vec<u64>,
    running: Vec<u64>,
    /// Inferences of the present block that only warm up, so far, and when it began.
    warming: (u32, Instant),
    burst: Burst,
}

/// A block's first inferences count for nothing: so many, and for so long.
const WARM_UP: (u32, Duration) = (2, Duration::from_millis(40));

impl Trial {
    /// Whether the present inference only warms up.
    fn warms_up(&mut self, now: Instant) -> bool {
        let (inferences, begin) = &mut self.warming;
        if *inferences == 0 {
            *begin = now;
        }
        *inferences += 1;
        *inferences <= WARM_UP.0 || now - *begin < WARM_UP.1
    }

    /// Whether the challenger's first inferences tell that it cannot win: a trial of a plan that takes
    /// ten times longer must not cost ten times a trial.
    fn is_hopeless(&self) -> bool {
        let (Some(&best), Some(&worst)) = (self.challenging.iter().min(), self.before.iter().max())
        else {
            return false;
        };
        let usual = middle(&self.before) as f64;
        match self.challenging.len() {
            1 => false,
            n if n < CLEAR => best as f64 > HOPELESS * usual,
            _ => best as f64 > HOPELESS.sqrt() * usual || best > worst,
        }
    }

    /// Whether no more inferences are needed: all have been run, or every one of a side is faster
    /// than every one of the other.
    fn is_decided(&self) -> bool {
        let apart = |fast: &[u64], slow: &[u64]| fast.iter().max() < slow.iter().min();
        let (new, old) = (&self.challenging, &self.running);
        old.len() >= self.goal || old.len() >= CLEAR && (apart(new, old) || apart(old, new))
    }

    /// Whether the state has changed since the trial began: what the running plan takes now is not
    /// what it took before. Then its challenger has been measured in another state than it.
    fn is_disturbed(&self) -> bool {
        let (old, now) = (middle(&self.before) as f64, middle(&self.running) as f64);
        !self.before.is_empty() && !self.repeated && (now / old).ln().abs() > MOVED.ln()
    }

    /// Begins anew, once, in the state that is found now.
    fn again(&mut self) {
        self.repeated = true;
        self.before = std::mem::take(&mut self.running);
        self.challenging.clear();
        self.warming.0 = 0;
    }

    /// Medians of the running plan and of the challenger. What the running plan took before the trial
    /// counts where it agrees with what it takes in it: the state may have changed.
    fn medians(&self) -> (u64, u64) {
        let now = middle(&self.running);
        let old = match self.before.iter().min().zip(self.before.iter().max()) {
            Some((least, most)) if (least..=most).contains(&&now) => {
                middle(&[&self.before[..], &self.running].concat())
            }
            _ => now,
        };
        (old, middle(&self.challenging))
    }
}

impl Runner {
    pub(super) fn new(background: Background, options: AdaptOptions, name: String) -> Runner {
        Runner {
            background,
            options,
            name,
            inferences: 0,
            recent: [0; RECENT],
            reference_ns: 0,
            burst: None,
            last_burst: (Instant::now(), 0),
            last_runs: 1,
            times: StepTimes::default(),
            trial: None,
        }
    }

    pub fn report(&self) -> AdaptReport {
        self.background.shared.with_report(|report| report.clone())
    }

    /// Puts a challenger before the running engine, as the planner does.
    #[cfg(test)]
    pub(super) fn offer(&self, challenger: Challenger) {
        self.background.shared.offer(challenger);
    }

    pub fn propose(&self, placement: Placement) {
        self.tell(Message::Propose(placement));
    }

    /// One inference; what was adopted after it, if anything was.
    pub fn run(
        &mut self,
        engine: &mut Engine,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
    ) -> Result<Option<Adopted>, EngineError> {
        self.inferences += 1;
        self.background.shared.inferences.store(self.inferences, Ordering::Relaxed);
        if self.trial.is_none()
            && self.background.shared.ready.load(Ordering::Acquire)
            && let Some(mut challenger) = self.begin()
        {
            match challenger.engine.run(inputs, outputs) {
                Ok(()) => return Ok(Some(self.adopt(engine, challenger, None, None))),
                Err(error) => self.failed(challenger, &error),
            }
        }
        if self.trial.is_some() {
            return self.compete(engine, inputs, outputs);
        }
        let start = Instant::now();
        if self.burst.is_none() && self.wants_times(start) {
            self.burst = Some(Burst::default());
        }
        match &mut self.burst {
            Some(burst) => {
                engine.run_timed(inputs, outputs, &mut self.times)?;
                burst.add(&self.times, start.elapsed());
            }
            None => engine.run(inputs, outputs)?,
        }
        let took = start.elapsed();
        self.recent[self.inferences as usize % RECENT] = nanoseconds(took);
        if let Some(burst) = self.burst.take_if(|b| b.complete()) {
            self.last_burst = (start + took, self.inferences);
            self.last_runs = burst.runs;
            self.reference_ns = self.median();
            self.tell(Message::Observed(burst.observation(engine)));
        }
        Ok(None)
    }

    fn tell(&self, message: Message) {
        // A planner that has panicked plans no more; the model runs on.
        let _ = self.background.messages.send(message);
    }

    fn median(&self) -> u64 {
        let mut sorted = self.recent;
        sorted.sort_unstable();
        sorted[RECENT / 2]
    }

    /// Step times are due: rarely while nothing happens, soon after the latency has moved or when the
    /// planner asks.
    fn wants_times(&self, now: Instant) -> bool {
        if self.inferences <= RECENT as u64 {
            return false;
        }
        let (at, inference) = self.last_burst;
        let since = self.inferences - inference;
        let waited = now - at >= self.options.sample_period;
        let rested = now - at >= BURST.0 && since >= RECENT as u64 / 2;
        let moved = || {
            let (new, old) = (self.median() as f64, self.reference_ns as f64);
            new > JUMP * old || new * JUMP < old
        };
        let asked = || self.background.shared.sample_now.swap(false, Ordering::Relaxed);
        waited && since >= SPARSELY * u64::from(self.last_runs)
            || rested && (moved() || asked())
            || self.reference_ns == 0
    }

    /// Takes the next challenger: to a trial, or to be adopted at once, which it returns.
    fn begin(&mut self) -> Option<Challenger> {
        let challenger = self.background.shared.take()?;
        self.burst = None;
        if challenger.unconditional {
            return Some(challenger);
        }
        self.background.shared.with_report(|report| report.trials += 1);
        let one = u128::from(self.median().max(1));
        let goal = (self.options.trial.as_nanos() / one).clamp(TRIAL.0 as u128, TRIAL.1 as u128);
        self.trial = Some(Trial {
            challenger,
            goal: goal as usize,
            challenging: Vec::with_capacity(goal as usize),
            repeated: false,
            before: self.recent.into_iter().filter(|&ns| ns > 0).collect(),
            running: Vec::with_capacity(goal as usize),
            warming: (0, Instant::now()),
            burst: Burst::default(),
        });
        None
    }

    /// One inference of a trial. A challenger that fails is out, and the running engine computes what
    /// it could not.
    fn compete(
        &mut self,
        engine: &mut Engine,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
    ) -> Result<Option<Adopted>, EngineError> {
        let Some(trial) = &mut self.trial else { return Ok(None) };
        let start = Instant::now();
        let warm = trial.warms_up(start);
        if trial.challenging.len() < trial.goal {
            let own = &mut trial.challenger.engine;
            // The first inference builds up what the engine keeps, the second is timed step by step.
            let timed = trial.warming.0 == 2;
            let result = match timed {
                true => own.run_timed(inputs, outputs, &mut self.times),
                false => own.run(inputs, outputs),
            };
            let took = start.elapsed();
            if let Err(error) = result {
                let trial = self.trial.take().expect("there is one");
                self.failed(trial.challenger, &error);
                engine.run(inputs, outputs)?;
                return Ok(None);
            }
            if timed {
                trial.burst.add(&self.times, took);
            } else if !warm {
                trial.challenging.push(nanoseconds(took));
            }
            if trial.is_hopeless() {
                let trial = self.trial.take().expect("there is one");
                let times = &trial.challenging;
                tracing::debug!(plan = trial.challenger.name, ?times, "hopeless");
                self.lost(trial);
            } else if trial.challenging.len() == trial.goal {
                trial.warming.0 = 0;
            }
            return Ok(None);
        }
        engine.run(inputs, outputs)?;
        if !warm {
            trial.running.push(nanoseconds(start.elapsed()));
        }
        if !trial.is_decided() {
            return Ok(None);
        }
        if trial.is_disturbed() {
            trial.again();
            return Ok(None);
        }
        let trial = self.trial.take().expect("there is one");
        let (old, new) = trial.medians();
        tracing::debug!(plan = trial.challenger.name, old, new, "trial");
        if (new as f64) < old as f64 * (1.0 - self.options.margin) {
            let seen = trial.burst.observation(&trial.challenger.engine);
            return Ok(Some(self.adopt(engine, trial.challenger, Some(seen), Some((old, new)))));
        }
        self.lost(trial);
        Ok(None)
    }

    fn lost(&mut self, trial: Trial) {
        let engine = &trial.challenger.engine;
        let seen = (trial.burst.runs > 0).then(|| trial.burst.observation(engine));
        self.rejected(trial.challenger, seen, false);
    }

    fn failed(&mut self, challenger: Challenger, error: &EngineError) {
        tracing::warn!("plan '{}' failed and is out: {error}", challenger.name);
        self.background.shared.with_report(|report| report.refused += 1);
        self.rejected(challenger, None, true);
    }

    fn rejected(&mut self, challenger: Challenger, seen: Option<Observation>, failed: bool) {
        let Challenger { engine, placement, name, state, .. } = challenger;
        let footprint = Footprint::of(&engine);
        let tried = Tried { placement, won: false, engine, footprint, seen, name, state, failed };
        self.tell(Message::Tried(Box::new(tried)));
    }

    fn adopt(
        &mut self,
        engine: &mut Engine,
        challenger: Challenger,
        seen: Option<Observation>,
        medians_ns: Option<(u64, u64)>,
    ) -> Adopted {
        let Challenger { engine: mut other, placement, name, score, state, .. } = challenger;
        std::mem::swap(engine, &mut *other);
        let from = std::mem::replace(&mut self.name, name.clone());
        let to = name.clone();
        tracing::info!("plan '{from}' -> '{to}' at inference {}: {state:?}", self.inferences);
        let switch = Switch { inference: self.inferences, from, to, state, medians_ns };
        self.background.shared.with_report(|report| {
            report.switches += 1;
            if report.log.len() == LOGGED {
                report.log.remove(0);
            }
            report.log.push(switch);
        });
        self.recent = [medians_ns.map_or(0, |(_, new)| new); RECENT];
        self.reference_ns = 0;
        let tried = Tried {
            placement: placement.clone(),
            won: true,
            engine: other,
            footprint: Footprint::of(engine),
            seen,
            name: name.clone(),
            state,
            failed: false,
        };
        if medians_ns.is_some() {
            // Those behind it were to beat what no longer runs.
            self.tell(Message::Dropped(self.background.shared.drop_from(score)));
        }
        self.tell(Message::Tried(Box::new(tried)));
        Adopted { placement, name }
    }
}

impl Burst {
    fn add(&mut self, times: &StepTimes, took: Duration) {
        self.sums.add(times);
        self.runs += 1;
        self.took += took;
    }

    fn observation(self, engine: &Engine) -> Observation {
        Observation {
            times: self.sums,
            runs: self.runs,
            took_ns: nanoseconds(self.took),
            concurrent: engine.is_concurrent(),
        }
    }

    fn complete(&self) -> bool {
        self.took >= BURST.0 && self.runs >= BURST.1 || self.runs >= BURST.2
    }
}

fn middle(times: &[u64]) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(u64::MAX)
}
