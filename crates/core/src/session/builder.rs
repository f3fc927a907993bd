//! From model to session: specialise, optimise, analyse, measure, schedule, compile, prepare,
//! guard.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use sparoa_kernels::{Arithmetic, isa, pool::Pool};

use super::{
    Decision, GuardOptions, MeasureOptions, Session, SessionError, ValueInfo,
    decide::{Choice, Verdict},
    work::Work,
};
use crate::{
    analyze::analyze,
    backend::{Accelerator, available_threads, cpu_info},
    energy::EnergyMeter,
    engine::KernelCache,
    ir::{Graph, Model, OutputSource, Shapes, passes, set_batch, specialize},
    onnx::{self, LoadOptions},
    plan::{Hardware, Placement, PlanFile, Support},
    predict::{FixedThresholds, ThresholdModel},
    profile::{HardwareState, Profile, default_cache_dir},
    schedule::{
        Objective, Pin, Policy, Problem, Scheduler, Topology, resolve_pins, resolve_variants,
    },
};

/// How far [`SessionBuilder::build`] has come. Stages that may take long count their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Progress {
    Loading,
    Specializing,
    Optimizing,
    Analyzing,
    /// Measuring operators and links.
    Measuring {
        done: usize,
        total: usize,
    },
    Scheduling,
    /// Packing weights, loading device programs: plans done of all plans.
    Preparing {
        done: usize,
        total: usize,
    },
    /// Measuring how to divide the work.
    Dividing,
    /// Measuring `auto`'s finalists: runs done, of at most so many.
    Guarding {
        done: usize,
        total: usize,
    },
}

type Callback = Box<dyn FnMut(Progress) + Send>;

enum Source {
    Model(Arc<Model>),
    Path(PathBuf, LoadOptions),
}

/// Builds a [`Session`].
pub struct SessionBuilder {
    source: Source,
    shapes: Shapes,
    batch: Option<usize>,
    threads: Option<usize>,
    pool: Option<Arc<Pool>>,
    pub(super) policy: Policy,
    pub(super) objective: Objective,
    pub(super) pins: Vec<Pin>,
    plan: Option<PlanFile>,
    placement: Option<Placement>,
    profile: Option<Profile>,
    accelerator: Option<Arc<dyn Accelerator>>,
    no_gpu_reason: String,
    meter: Option<EnergyMeter>,
    allow_fallback: bool,
    memory_limit: Option<usize>,
    always_profile: bool,
    fresh: bool,
    optimize: bool,
    arithmetic: Arithmetic,
    cache_dir: Option<PathBuf>,
    pub(super) measure: MeasureOptions,
    pub(super) guard: GuardOptions,
    thresholds: Option<Arc<dyn ThresholdModel>>,
    learned: Option<Arc<dyn Scheduler>>,
    progress: Option<Callback>,
}

impl SessionBuilder {
    /// For a model in memory.
    pub fn new(model: impl Into<Arc<Model>>) -> SessionBuilder {
        SessionBuilder::from_source(Source::Model(model.into()))
    }

    /// For an ONNX file.
    pub fn from_path(path: impl Into<PathBuf>) -> SessionBuilder {
        SessionBuilder::from_source(Source::Path(path.into(), LoadOptions::default()))
    }

    /// For an ONNX file, with limits of one's own.
    pub fn from_path_with(path: impl Into<PathBuf>, options: LoadOptions) -> SessionBuilder {
        SessionBuilder::from_source(Source::Path(path.into(), options))
    }

    fn from_source(source: Source) -> SessionBuilder {
        SessionBuilder {
            source,
            shapes: Shapes::new(),
            batch: None,
            threads: None,
            pool: None,
            policy: Policy::Auto,
            objective: Objective::Latency,
            pins: Vec::new(),
            plan: None,
            placement: None,
            profile: None,
            accelerator: None,
            no_gpu_reason: "none was given".to_owned(),
            meter: None,
            allow_fallback: false,
            memory_limit: None,
            always_profile: false,
            fresh: false,
            optimize: true,
            arithmetic: Arithmetic::Fast,
            cache_dir: None,
            measure: MeasureOptions::default(),
            guard: GuardOptions::default(),
            thresholds: None,
            learned: None,
            progress: None,
        }
    }

    /// The shape of an input.
    #[must_use]
    pub fn shape(mut self, input: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        self.shapes.insert(input.into(), shape.into());
        self
    }

    /// Shapes of inputs by name.
    #[must_use]
    pub fn shapes(mut self, shapes: Shapes) -> Self {
        self.shapes.extend(shapes);
        self
    }

    /// The batch: the leading dimension of every input, whatever [`SessionBuilder::shape`] says.
    #[must_use]
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = Some(batch);
        self
    }

    /// CPU threads, the caller's included; by default all that the process may use.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// A pool shared with others, instead of one of its own.
    #[must_use]
    pub fn pool(mut self, pool: Arc<Pool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// How to place operators; `auto` by default.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What to minimise; latency by default.
    #[must_use]
    pub fn objective(mut self, objective: Objective) -> Self {
        self.objective = objective;
        self
    }

    /// Fixes places; later pins win.
    #[must_use]
    pub fn pins(mut self, pins: impl IntoIterator<Item = Pin>) -> Self {
        self.pins.extend(pins);
        self
    }

    /// A plan file instead of a policy.
    #[must_use]
    pub fn plan(mut self, plan: PlanFile) -> Self {
        self.plan = Some(plan);
        self
    }

    /// A placement instead of a policy.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// Costs instead of measurements; of the graph after the passes.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = Some(profile);
        self
    }

    /// The GPU.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Arc<dyn Accelerator>) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// Why there is no GPU, for the error that a policy which needs one gives.
    #[must_use]
    pub fn no_gpu_reason(mut self, reason: impl Into<String>) -> Self {
        self.no_gpu_reason = reason.into();
        self
    }

    /// The machine's energy sensors, for its watts and to confirm `auto`'s choice by energy.
    /// Without them both are modelled.
    #[must_use]
    pub fn energy_meter(mut self, meter: EnergyMeter) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Whether a policy that needs a GPU may go without.
    #[must_use]
    pub fn allow_fallback(mut self, allow: bool) -> Self {
        self.allow_fallback = allow;
        self
    }

    /// Bytes that the prepared plan may take on both processors together: weights, values, scratch,
    /// staging. Plans that take more are out of the question, and finalists of `auto` are then measured
    /// one after the other, so that one at a time is prepared.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Measure costs even if the policy does not need them, for reports.
    #[must_use]
    pub fn always_profile(mut self, always: bool) -> Self {
        self.always_profile = always;
        self
    }

    /// Measure again instead of reading cached measurements and choices.
    #[must_use]
    pub fn fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }

    /// Whether the graph passes run; true by default.
    #[must_use]
    pub fn optimize(mut self, optimize: bool) -> Self {
        self.optimize = optimize;
        self
    }

    /// How the CPU computes products; [`Arithmetic::Fast`] by default. The GPU computes in f32.
    #[must_use]
    pub fn arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.arithmetic = arithmetic;
        self
    }

    /// Predicts the thresholds on both axes; fixed ones by default.
    #[must_use]
    pub fn thresholds(mut self, model: Arc<dyn ThresholdModel>) -> Self {
        self.thresholds = Some(model);
        self
    }

    /// The learned policy, for `sac` and as a candidate of `auto`.
    #[must_use]
    pub fn learned(mut self, policy: Arc<dyn Scheduler>) -> Self {
        self.learned = Some(policy);
        self
    }

    /// Where measurements are kept; [`default_cache_dir`] by default.
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Limits of measuring.
    #[must_use]
    pub fn measure_options(mut self, options: MeasureOptions) -> Self {
        self.measure = options;
        self
    }

    /// Limits of `auto`'s confirmation.
    #[must_use]
    pub fn guard_options(mut self, options: GuardOptions) -> Self {
        self.guard = options;
        self
    }

    /// Is told how far `build` has come.
    #[must_use]
    pub fn on_progress(mut self, callback: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(callback));
        self
    }

    pub(super) fn tell(&mut self, progress: Progress) {
        if let Some(callback) = &mut self.progress {
            callback(progress);
        }
    }

    /// Does all the work.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn build(mut self) -> Result<Session, SessionError> {
        let (precision, available) = match self.arithmetic {
            Arithmetic::Bf16 => ("bf16", isa::bf16()),
            Arithmetic::Bf16x2 => ("bf16x2", isa::amx()),
            Arithmetic::Fast | Arithmetic::Exact | Arithmetic::Reference => ("fp32", Ok(())),
        };
        available.map_err(|reason| SessionError::NoBf16 { precision, reason })?;
        let model = match &self.source {
            Source::Model(model) => model.clone(),
            Source::Path(path, options) => {
                let (path, options) = (path.clone(), options.clone());
                self.tell(Progress::Loading);
                Arc::new(onnx::load(&path, &options)?)
            }
        };
        if let Some(plan) = &self.plan {
            // A plan knows its shapes; what the user says otherwise is found out below.
            for (name, shape) in &plan.shapes {
                if model.inputs.iter().any(|i| i.name == *name) && !self.shapes.contains_key(name) {
                    self.shapes.insert(name.clone(), shape.clone());
                }
            }
        }
        if let Some(batch) = self.batch {
            set_batch(&model, batch, &mut self.shapes)?;
        }
        self.tell(Progress::Specializing);
        let mut specialized = specialize(&model, &self.shapes)?;
        let inputs = ValueInfo::inputs_of(&specialized.graph);
        let outputs = output_infos(&model, &specialized.graph, &specialized.outputs);
        self.tell(Progress::Optimizing);
        if let Some(tail) = &mut specialized.tail
            && self.arithmetic != Arithmetic::Fast
        {
            tail.model = tail.model.with_arithmetic(self.arithmetic);
        }
        let graph = match self.optimize {
            true => passes::optimize_for(specialized.graph, self.arithmetic),
            false => {
                passes::set_arithmetic(passes::as_integers(specialized.graph), self.arithmetic)
            }
        };
        let mut variants = self.plan.as_ref().map_or(Vec::new(), |plan| plan.kernels(&graph));
        variants.extend(resolve_variants(&graph, &self.pins)?);
        let graph = passes::set_variants(graph, &variants)
            .expect("only operators with such kernels were resolved");
        let graph = Arc::new(graph);
        self.tell(Progress::Analyzing);
        let analysis = analyze(&graph);

        let pool = self
            .pool
            .take()
            .unwrap_or_else(|| Arc::new(Pool::new(self.threads.unwrap_or_else(available_threads))));
        let cpu = cpu_info(pool.threads());
        let fallback = match (&self.accelerator, self.policy) {
            (None, Policy::Gpu) if self.allow_fallback => Some(self.no_gpu_reason.clone()),
            (None, Policy::Gpu) if self.plan.is_none() && self.placement.is_none() => {
                let reason = self.no_gpu_reason.clone();
                return Err(SessionError::NoGpu { policy: "gpu", reason });
            }
            _ => None,
        };
        // To ask the GPU about every operator takes time: not where nothing can come of it.
        let gpu_matters = self.policy != Policy::Cpu
            || self.plan.is_some()
            || self.placement.is_some()
            || self.always_profile
            || !self.pins.is_empty();
        let support = Support::of(&graph, self.accelerator.as_deref().filter(|_| gpu_matters));
        let pins = resolve_pins(&graph, &support, &self.pins)?;
        let hardware = Hardware::of(&cpu, self.accelerator.as_ref().map(|a| a.info()));
        let kernels = Arc::new(KernelCache::new());
        let mut work = Work {
            graph: &graph,
            support: &support,
            pool: &pool,
            kernels: &kernels,
            accelerator: self.accelerator.clone(),
            pins: &pins,
            machine: format!("sparoa {}; {hardware}", env!("CARGO_PKG_VERSION")),
            cache_dir: self.cache_dir.clone().unwrap_or_else(default_cache_dir),
            cache: None,
            cpu: &cpu,
            meter: self.meter.take(),
            fresh: self.fresh,
            memory_limit: self.memory_limit,
        };
        work.check_limit()?;

        work.recall_variants();
        let mut choice = Choice::default();
        if let Some(plan) = &self.plan {
            choice.placement = plan.placement(&graph, &support, &hardware)?;
            "plan file".clone_into(&mut choice.source);
        } else if let Some(placement) = self.placement.take() {
            choice.placement = placement;
            "given placement".clone_into(&mut choice.source);
        }
        let given = !choice.source.is_empty();
        if given {
            for (place, pin) in choice.placement.places.iter_mut().zip(&pins) {
                *place = pin.unwrap_or(*place);
            }
        }
        // With one processor there is nothing to decide, and nothing to measure.
        let decides = self.policy.needs_profile() && !given && self.accelerator.is_some();
        let remembered = if decides && self.profile.is_none() { work.verdict(&self) } else { None };
        let mut profile = match self.profile.take() {
            Some(profile) => Some(profile),
            // A verdict is stored after the measurements on which it rests: they are known too.
            None if decides || self.always_profile => Some(work.profile(&mut self)?),
            None => None,
        };
        if let Some(profile) = &mut profile
            && profile.power.is_none()
        {
            let measure = self.always_profile || !self.objective.is_time();
            profile.power = Some(work.power(measure, profile)?);
        }
        let thresholds: Arc<dyn ThresholdModel> =
            self.thresholds.take().unwrap_or_else(|| Arc::new(FixedThresholds::default()));
        let mut prepared = None;
        if let Some(Verdict { placement, source, report }) = remembered {
            choice = Choice { placement, source, guard: Some(report) };
        } else if !given {
            self.tell(Progress::Scheduling);
            let mut empty = Profile::default();
            if profile.is_none() {
                empty.power = Some(work.power(false, &empty)?);
            }
            let costs = profile.as_ref().unwrap_or(&empty);
            let (topology, predicted) = match decides {
                true => {
                    (Topology::of(&graph, &support), thresholds.predict(&graph, &analysis, costs))
                }
                false => Default::default(),
            };
            let learned = self.learned.clone();
            let problem = Problem {
                graph: &graph,
                support: &support,
                topology: &topology,
                analysis: &analysis,
                profile: costs,
                thresholds: &predicted,
                state: HardwareState::default(),
                pins: &pins,
                objective: self.objective,
                learned: learned.as_deref(),
            };
            if decides && self.policy == Policy::Auto {
                let (c, engine) = work.guarded(&mut self, &problem)?;
                choice = c;
                prepared = Some(engine);
            } else {
                let policy = if decides { self.policy } else { self.policy.without_costs() };
                // Refuses an objective that cannot be judged, whatever the policy.
                self.objective.judgeable(problem.profile)?;
                choice.placement = policy.scheduler().place(&problem)?;
                choice.source = match (policy, &self.learned) {
                    (Policy::Sac, None) => "heft (no weights of the learned policy)".to_owned(),
                    _ => policy.to_string(),
                };
            }
        }
        let engine = match prepared {
            Some(engine) => engine,
            None => {
                self.tell(Progress::Preparing { done: 0, total: 1 });
                let engine = work.engine(&choice.placement, profile.as_ref())?;
                self.tell(Progress::Preparing { done: 1, total: 1 });
                engine
            }
        };
        work.keep_variants();
        kernels.forget_unused();
        let decision = Decision {
            policy: self.policy,
            source: choice.source,
            objective: self.objective,
            pins: self.pins,
            guard: choice.guard,
            fallback,
        };
        Ok(Session {
            model,
            shapes: self.shapes,
            tail: specialized.tail,
            sources: specialized.outputs,
            inputs,
            outputs,
            buffers: engine.new_outputs(),
            engine,
            placement: choice.placement,
            decision,
            profile,
            thresholds,
            learned: self.learned,
            analysis,
            support: if gpu_matters { OnceLock::from(support) } else { OnceLock::new() },
            kernels,
            runner: None,
            memory_limit: self.memory_limit,
            pool,
            accelerator: self.accelerator,
            cpu,
            graph,
        })
    }
}

fn output_infos(model: &Model, graph: &Graph, sources: &[OutputSource]) -> Vec<ValueInfo> {
    model
        .outputs
        .iter()
        .zip(sources)
        .map(|(id, source)| ValueInfo {
            name: model.values[id.index()].clone(),
            ty: match source {
                OutputSource::Graph(i) => Some(graph.value(graph.outputs[*i]).ty.clone()),
                OutputSource::Tail(_) => None,
            },
        })
        .collect()
}
