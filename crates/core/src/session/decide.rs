//! How a session decides: what is measured, what is remembered, and `auto`'s contest.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sparoa_kernels::pool::Pool;

use super::{
    GuardEntry, GuardReport, Progress, SessionBuilder, SessionError, choose, choose_by_energy,
    inputs::random_tensor, measure::Measurer, power::measure_runs,
};
use crate::{
    backend::{Accelerator, DeviceInfo},
    energy::EnergyMeter,
    engine::{Engine, KernelCache},
    ir::Graph,
    ops::variant,
    plan::{Place, Placement, Support, compile, fingerprint},
    profile::{CostCache, Profile, hash_text},
    schedule::{Candidate, Problem, candidates},
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

/// What the later stages share.
pub(super) struct Work<'a> {
    pub graph: &'a Arc<Graph>,
    pub support: &'a Support,
    pub pool: &'a Arc<Pool>,
    pub kernels: &'a KernelCache,
    pub accelerator: Option<Arc<dyn Accelerator>>,
    pub pins: &'a [Option<Place>],
    /// The processors, as text: the cache's key.
    pub machine: String,
    pub cache_dir: PathBuf,
    pub cache: Option<CostCache>,
    /// The CPU as the session uses it.
    pub cpu: &'a DeviceInfo,
    /// The machine's energy sensors.
    pub meter: Option<EnergyMeter>,
    /// Measure again whatever the cache knows.
    pub fresh: bool,
}

impl Work<'_> {
    pub fn cache(&mut self) -> &mut CostCache {
        self.cache.get_or_insert_with(|| match self.fresh {
            true => CostCache::new(&self.machine),
            false => CostCache::load(&self.cache_dir, &self.machine),
        })
    }

    /// Writes the cache; a failure costs the next start time, not this one its result.
    pub fn store(&mut self) {
        if let Some(cache) = &self.cache
            && let Err(e) = cache.store(&self.cache_dir)
        {
            tracing::warn!("{e}");
        }
    }

    /// Tells the operators which kernels were chosen for pruned weights before.
    pub fn recall_variants(&mut self) {
        variant::learn(&self.cache().variants);
    }

    /// Keeps what was chosen since.
    pub fn keep_variants(&mut self) {
        let choices = variant::choices();
        if self.cache().variants != choices {
            self.cache().variants = choices;
            self.store();
        }
    }

    pub fn engine(
        &self,
        placement: &Placement,
        profile: Option<&Profile>,
    ) -> Result<Engine, SessionError> {
        let plan = compile(self.graph, placement, self.support, profile)?;
        let accelerator = self.accelerator.as_deref();
        Ok(Engine::new(plan, self.graph, self.kernels, self.pool, accelerator)?)
    }

    /// Random inputs of the graph.
    pub fn random_inputs(&self) -> Vec<Tensor> {
        let types = self.graph.inputs.iter().map(|&id| &self.graph.value(id).ty);
        types.zip(1..).map(|(ty, seed)| random_tensor(ty, seed)).collect()
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
            "{} {:?} {} {} {:?} {:?}{}",
            fingerprint(self.graph),
            builder.pins,
            builder.policy,
            builder.objective,
            self.pins,
            builder.guard,
            if metered { " metered" } else { "" },
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
        let mut finalists: Vec<&Candidate> = Vec::new();
        for name in ["cpu", "gpu"] {
            finalists.extend(all.iter().find(|c| c.name == name));
        }
        let others = all.iter().filter(|c| c.name != "cpu" && c.name != "gpu");
        finalists.extend(others.take(builder.guard.finalists));
        let meter = match problem.objective.is_time() {
            true => None,
            false => self.covering_meter(),
        };
        if !problem.objective.is_time() && meter.is_none() {
            // Without a meter the simulation's word stands.
            finalists = all.iter().take(1).collect();
        }
        let total = finalists.len();
        let mut engines = Vec::with_capacity(total);
        let mut entries = Vec::with_capacity(total);
        let mut kept: Vec<&Candidate> = Vec::with_capacity(total);
        for (done, candidate) in finalists.into_iter().enumerate() {
            builder.tell(Progress::Preparing { done, total });
            match self.engine(&candidate.placement, Some(problem.profile)) {
                Ok(engine) => engines.push(engine),
                // The CPU alone must work; another that does not fit into memory is out.
                Err(e) if candidate.name == "cpu" => return Err(e),
                Err(e) => {
                    tracing::warn!("candidate '{}' is out: {e}", candidate.name);
                    continue;
                }
            }
            entries.push(GuardEntry {
                name: candidate.name.clone(),
                predicted_ns: candidate.timeline.makespan_ns,
                measured_ns: Vec::new(),
                measured_j: Vec::new(),
            });
            kept.push(candidate);
        }
        builder.tell(Progress::Preparing { done: total, total });
        let software = self.accelerator.as_ref().is_some_and(|a| a.info().software);
        let options = builder.guard;
        let margin = if software { options.software_margin } else { options.margin };
        let tensors = self.random_inputs();
        let tensors: Vec<&Tensor> = tensors.iter().collect();
        let mut outputs: Vec<Tensor> = engines.first().map(Engine::new_outputs).unwrap_or_default();
        let runs = entries.len() * (options.rounds + 1);
        let mut done = 0;
        let mut begin = || {
            builder.tell(Progress::Guarding { done, total: runs });
            done += 1;
        };
        let report = match &meter {
            None => choose(entries, &options, margin, |i| -> Result<u64, SessionError> {
                begin();
                let start = Instant::now();
                engines[i].run(&tensors, &mut outputs)?;
                Ok(nanoseconds(start.elapsed()))
            })?,
            Some(meter) => choose_by_energy(
                entries,
                &options,
                margin,
                problem.objective,
                |i| -> Result<(f64, u64), SessionError> {
                    begin();
                    let run = measure_runs(meter, &mut engines[i], &tensors, &mut outputs)?;
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
        let chosen = verdict.report.chosen;
        Ok((choice, engines.swap_remove(chosen)))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
