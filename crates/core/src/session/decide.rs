//! How a session decides: what is measured, what is remembered, and `auto`'s contest.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sparoa_kernels::pool::Pool;

use super::{
    GuardEntry, GuardReport, Progress, SessionBuilder, SessionError, choose, inputs::random_tensor,
    measure::Measurer,
};
use crate::{
    backend::Accelerator,
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
    /// Measure again whatever the cache knows.
    pub fresh: bool,
}

impl Work<'_> {
    fn cache(&mut self) -> &mut CostCache {
        self.cache.get_or_insert_with(|| match self.fresh {
            true => CostCache::new(&self.machine),
            false => CostCache::load(&self.cache_dir, &self.machine),
        })
    }

    /// Writes the cache; a failure costs the next start time, not this one its result.
    fn store(&mut self) {
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
        let text = format!(
            "{} {:?} {} {} {:?} {:?}",
            fingerprint(self.graph),
            builder.pins,
            builder.policy,
            builder.objective,
            self.pins,
            builder.guard,
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
        if !problem.objective.is_time() {
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
            });
            kept.push(candidate);
        }
        builder.tell(Progress::Preparing { done: total, total });
        let software = self.accelerator.as_ref().is_some_and(|a| a.info().software);
        let options = builder.guard;
        let margin = if software { options.software_margin } else { options.margin };
        let tensors: Vec<Tensor> = self
            .graph
            .inputs
            .iter()
            .zip(1..)
            .map(|(&id, seed)| random_tensor(&self.graph.value(id).ty, seed))
            .collect();
        let tensors: Vec<&Tensor> = tensors.iter().collect();
        let mut outputs: Vec<Tensor> = engines.first().map(Engine::new_outputs).unwrap_or_default();
        let runs = entries.len() * (options.rounds + 1);
        let mut done = 0;
        let report = choose(entries, &options, margin, |i| -> Result<u64, SessionError> {
            builder.tell(Progress::Guarding { done, total: runs });
            done += 1;
            let start = Instant::now();
            engines[i].run(&tensors, &mut outputs)?;
            Ok(nanoseconds(start.elapsed()))
        })?;
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
