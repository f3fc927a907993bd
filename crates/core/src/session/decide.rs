//! How a session decides: what is measured, what is remembered, and `auto`'s contest.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{
    GuardEntry, GuardReport, Progress, SessionBuilder, SessionError, choose, choose_by_energy,
    inputs::random_inputs,
    measure::Measurer,
    nanoseconds,
    power::{measure_runs, model_runs},
    work::Work,
};
use crate::{
    backend::upload_ready,
    engine::Engine,
    plan::{Placement, compile, fingerprint},
    profile::{Profile, hash_text},
    schedule::{Candidate, Problem, candidates, finalists},
    tensor::Tensor,
};

/// What a policy or a user chose.
#[derive(Default)]
pub(super) struct Choice {
    pub placement: Placement,
    pub source: String,
    pub guard: Option<GuardReport>,
}

/// `auto`'s choice as the cache keeps it.
#[derive(Serialize, Deserialize)]
pub(super) struct Verdict {
    pub placement: Placement,
    pub source: String,
    pub report: GuardReport,
}

impl Work<'_> {
    /// Random inputs of the graph, where the accelerator reads them by itself.
    pub fn random_inputs(&self) -> Vec<Tensor> {
        let ready = |tensor| upload_ready(self.accelerator.as_deref(), tensor);
        random_inputs(self.graph).into_iter().map(ready).collect()
    }

    pub fn profile(&mut self, builder: &mut SessionBuilder) -> Result<Profile, SessionError> {
        let accelerator = self.accelerator.clone();
        let measurer = Measurer {
            graph: self.graph,
            support: self.support,
            pool: self.pool,
            kernels: self.kernels,
            accelerator: accelerator.as_deref(),
            options: builder.measure,
            memory_limit: self.memory_limit,
        };
        let cache = self.cache();
        let before = cache.clone();
        let profile = measurer.measure(cache, &mut |done, total| {
            builder.tell(Progress::Measuring { done, total });
        })?;
        if *cache != before {
            self.store();
        }
        Ok(profile)
    }

    /// What an earlier start decided on the same question.
    pub fn verdict(&mut self, builder: &SessionBuilder) -> Option<Verdict> {
        let key = self.question(builder);
        let value = self.cache().verdicts.get(&key)?.clone();
        let mut verdict: Verdict = serde_json::from_value(value).ok()?;
        verdict.report.cached = true;
        // The file may have been edited: only a placement that compiles counts.
        compile(self.graph, &verdict.placement, self.support, None).ok()?;
        Some(verdict)
    }

    /// Everything that `auto`'s choice depends on, besides the machine.
    fn question(&self, builder: &SessionBuilder) -> String {
        // Measured energies and simulated ones may choose differently.
        let metered = !builder.objective.is_time() && self.covering_meter().is_some();
        let text = format!(
            "{} {:?} {} {} {:?} {:?}{}{}",
            fingerprint(self.graph),
            builder.pins,
            builder.policy,
            builder.objective,
            self.pins,
            builder.guard,
            if metered { " metered" } else { "" },
            self.memory_limit.map_or(String::new(), |bytes| format!(" {bytes}")),
        );
        format!("{:016x}", hash_text(&text))
    }

    /// `auto`: the best candidates by simulation, measured against each processor alone.
    pub fn guarded(
        &mut self,
        builder: &mut SessionBuilder,
        problem: &Problem<'_>,
    ) -> Result<(Choice, Engine), SessionError> {
        let all = candidates(problem)?;
        let tensors = self.random_inputs();
        let tensors: Vec<&Tensor> = tensors.iter().collect();
        let outputs = self.graph.outputs.iter();
        let mut outputs: Vec<Tensor> =
            outputs.map(|&id| Tensor::zeros(self.graph.value(id).ty.clone())).collect();
        let mut scouted = Vec::new();
        // Under a memory limit plans may not fit beside one another, and energies take long.
        let free = self.memory_limit.is_none() && problem.objective.is_time();
        if free && builder.guard.finalists > 0 {
            builder.tell(Progress::Dividing);
            scouted = self.scout(problem, &tensors, &mut outputs, builder.guard.max_time)?;
        }
        let (found, mut ready): (Vec<Candidate>, Vec<Option<Engine>>) =
            scouted.into_iter().map(|s| (s.candidate, Some(s.engine))).unzip();
        let finalists = finalists(&all, &found, builder.guard.finalists);
        let meter = match problem.objective.is_time() {
            true => None,
            false => self.covering_meter(),
        };
        let total = finalists.len();
        let mut lineup = Lineup { engines: Vec::with_capacity(total), alone: None };
        let mut refusal = None;
        let mut entries = Vec::with_capacity(total);
        let mut kept: Vec<&Candidate> = Vec::with_capacity(total);
        for (done, candidate) in finalists.into_iter().enumerate() {
            builder.tell(Progress::Preparing { done, total });
            let at = found.iter().position(|f| std::ptr::eq(f, candidate));
            let ready = at.and_then(|at| ready[at].take());
            match ready.map_or_else(|| self.engine(&candidate.placement, Some(problem.profile)), Ok)
            {
                Ok(engine) => lineup.engines.push(Some(engine)),
                Err(e @ SessionError::MemoryLimit { .. }) => {
                    tracing::info!("candidate '{}' is out: {e}", candidate.name);
                    refusal.get_or_insert(e);
                    continue;
                }
                // The CPU alone must work; another that does not fit into memory is out.
                Err(e) if candidate.name == "cpu" => return Err(e),
                Err(e) => {
                    tracing::warn!("candidate '{}' is out: {e}", candidate.name);
                    continue;
                }
            }
            if self.memory_limit.is_some() {
                // Together they may not fit.
                lineup.engines.fill_with(|| None);
                self.kernels.forget_unused();
            }
            entries.push(GuardEntry {
                name: candidate.name.clone(),
                predicted_ns: candidate.timeline.makespan_ns,
                measured_ns: Vec::new(),
                measured_j: Vec::new(),
            });
            kept.push(candidate);
        }
        if let (true, Some(refusal)) = (kept.is_empty(), refusal) {
            return Err(refusal);
        }
        builder.tell(Progress::Preparing { done: total, total });
        let software = self.accelerator.as_ref().is_some_and(|a| a.info().software);
        let mut options = builder.guard;
        if self.memory_limit.is_some() {
            // Every turn prepares its engine anew.
            options.rounds = options.rounds.min(2);
        }
        let margin = if software { options.software_margin } else { options.margin };
        let runs = entries.len() * (options.rounds + 1);
        let mut done = 0;
        let mut begin = || {
            builder.tell(Progress::Guarding { done, total: runs });
            done += 1;
        };
        let power = problem.profile.power.filter(|_| !problem.objective.is_time());
        let report = match power {
            None => choose(entries, &options, margin, |i| -> Result<u64, SessionError> {
                begin();
                let (engine, cold) = lineup.engine(i, self, kept[i], problem.profile)?;
                if cold {
                    engine.run(&tensors, &mut outputs)?;
                }
                let start = Instant::now();
                engine.run(&tensors, &mut outputs)?;
                Ok(nanoseconds(start.elapsed()))
            })?,
            Some(power) => choose_by_energy(
                entries,
                &options,
                margin,
                problem.objective,
                |i| -> Result<(f64, u64), SessionError> {
                    begin();
                    let (engine, _) = lineup.engine(i, self, kept[i], problem.profile)?;
                    let run = match &meter {
                        Some(meter) => measure_runs(meter, engine, &tensors, &mut outputs)?,
                        None => model_runs(&power, engine, &tensors, &mut outputs)?,
                    };
                    Ok((run.joules, run.ns))
                },
            )?,
        };
        builder.tell(Progress::Guarding { done: runs, total: runs });
        let winner = kept[report.chosen];
        let choice = Choice {
            placement: winner.placement.clone(),
            source: format!("auto: {}", winner.name),
            guard: Some(report.clone()),
        };
        let verdict =
            Verdict { placement: choice.placement.clone(), source: choice.source.clone(), report };
        let key = self.question(builder);
        if let (Ok(value), Some(chosen)) =
            (serde_json::to_value(&verdict), verdict.report.entries.get(verdict.report.chosen))
            && !chosen.measured_ns.is_empty()
        {
            self.cache().verdicts.insert(key, value);
            self.store();
        }
        let engine = lineup.take(verdict.report.chosen, self, winner, problem.profile)?;
        Ok((choice, engine))
    }
}

/// The finalists' engines: all of them, or under a memory limit one at a time.
struct Lineup {
    engines: Vec<Option<Engine>>,
    /// The only one that is prepared, by index.
    alone: Option<usize>,
}

impl Lineup {
    /// A finalist's engine, and whether it was prepared just now.
    fn engine(
        &mut self,
        i: usize,
        work: &Work<'_>,
        candidate: &Candidate,
        profile: &Profile,
    ) -> Result<(&mut Engine, bool), SessionError> {
        let cold = self.engines[i].is_none();
        if cold {
            if let Some(other) = self.alone.replace(i) {
                self.engines[other] = None;
                work.kernels.forget_unused();
            }
            self.engines[i] = Some(work.engine(&candidate.placement, Some(profile))?);
        }
        Ok((self.engines[i].as_mut().expect("it is there, or was prepared"), cold))
    }

    fn take(
        mut self,
        i: usize,
        work: &Work<'_>,
        candidate: &Candidate,
        profile: &Profile,
    ) -> Result<Engine, SessionError> {
        self.engine(i, work, candidate, profile)?;
        Ok(self.engines.swap_remove(i).expect("it was prepared"))
    }
}
