//! A model made ready to run on this machine: [`SessionBuilder`] walks the whole pipeline from
//! model to engine, [`Session`] runs it.

mod adapt;
mod builder;
mod crossover;
mod decide;
mod error;
mod guard;
mod inputs;
mod measure;
mod memory;
mod power;
mod roofline;
mod scout;
mod tolerance;
mod verify;
mod work;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sparoa_kernels::pool::Pool;

use crate::{
    analyze::Analysis,
    backend::{Accelerator, DeviceInfo, upload_ready},
    engine::{Engine, KernelCache, Trace},
    ir::{Graph, Model, OutputSource, Shapes, Tail, interpret},
    ops::{
        Variant,
        variant::{self, SPARSE},
    },
    plan::{Hardware, Placement, Plan, PlanFile, Support, compile},
    predict::{ThresholdModel, Thresholds},
    profile::{HardwareState, Profile},
    schedule::{
        Objective, Pin, Policy, Problem, Scheduler, Timeline, Topology, resolve_pins, simulate,
    },
    tensor::{Tensor, TensorType},
};

pub use adapt::{AdaptOptions, AdaptReport, LOGGED, Switch};
pub use builder::{Progress, SessionBuilder};
pub use crossover::{Crossover, TRIED, crossover};
pub use error::SessionError;
pub use guard::{GuardEntry, GuardOptions, GuardReport, choose, choose_by_energy};
pub use inputs::random_tensor;
pub use measure::MeasureOptions;
pub use memory::Footprint;
pub use roofline::{Attained, Roofline, measure_roofline};
pub use tolerance::{Tolerance, product_depth};
pub use verify::{
    Divergence, Mismatch, OutputCheck, Verification, compare, random_placement, reference,
};

/// Name and type of an input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Its name in the model.
    pub name: String,
    /// Its type; `None` for an output whose shape depends on run-time values.
    pub ty: Option<TensorType>,
}

impl ValueInfo {
    /// Those of a graph's inputs, in its order.
    pub fn inputs_of(graph: &Graph) -> Vec<ValueInfo> {
        let values = graph.inputs.iter().map(|id| graph.value(*id));
        values.map(|v| ValueInfo { name: v.name.clone(), ty: Some(v.ty.clone()) }).collect()
    }
}

/// What [`SessionBuilder::build`] decided, and on which grounds.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The policy asked for.
    pub policy: Policy,
    /// Where the placement comes from: a policy's name, `auto: heft, improved`, `plan file`.
    pub source: String,
    /// What was to be minimised.
    pub objective: Objective,
    /// Pins in force.
    pub pins: Vec<Pin>,
    /// `auto`'s measurements.
    pub guard: Option<GuardReport>,
    /// Why the GPU that the policy wanted is not used, when it fell back.
    pub fallback: Option<String>,
}

/// A model ready to run.
pub struct Session {
    model: Arc<Model>,
    shapes: Shapes,
    graph: Arc<Graph>,
    tail: Option<Tail>,
    sources: Vec<OutputSource>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    engine: Engine,
    buffers: Vec<Tensor>,
    placement: Placement,
    decision: Decision,
    profile: Option<Profile>,
    thresholds: Arc<dyn ThresholdModel>,
    learned: Option<Arc<dyn Scheduler>>,
    analysis: Analysis,
    /// Worked out when somebody asks, where the plan did not need it.
    support: OnceLock<Support>,
    kernels: Arc<KernelCache>,
    runner: Option<adapt::Runner>,
    memory_limit: Option<usize>,
    pool: Arc<Pool>,
    accelerator: Option<Arc<dyn Accelerator>>,
    cpu: DeviceInfo,
}

impl Session {
    /// A session with the defaults: policy `auto`, all threads, no GPU.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn new(model: Model) -> Result<Session, SessionError> {
        SessionBuilder::new(model).build()
    }

    /// Inputs, in the model's order.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// Outputs, in the model's order.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    /// The model as imported.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The input shapes that were asked for.
    pub fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// The graph that runs, after the passes.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Costs and sparsity of the graph's operators.
    pub fn analysis(&self) -> &Analysis {
        &self.analysis
    }

    /// Measured costs, if the policy needed them or they were given.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// The thresholds on both axes, by node.
    pub fn thresholds(&self) -> Vec<Thresholds> {
        let empty = Profile::default();
        let costs = self.profile.as_ref().unwrap_or(&empty);
        self.thresholds.predict(&self.graph, &self.analysis, costs)
    }

    /// Where each node can run.
    pub fn support(&self) -> &Support {
        self.support.get_or_init(|| Support::of(&self.graph, self.accelerator.as_deref()))
    }

    /// Where each node runs.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }

    /// Why it is this plan.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// The engine, for its figures.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The CPU as this session uses it.
    pub fn cpu(&self) -> &DeviceInfo {
        &self.cpu
    }

    /// The pool on which the CPU's kernels run.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The accelerator.
    pub fn accelerator(&self) -> Option<&Arc<dyn Accelerator>> {
        self.accelerator.as_ref()
    }

    /// The data-dependent rest of the model that runs on the CPU after the graph, if any, with
    /// what made it so.
    pub fn tail_cause(&self) -> Option<&str> {
        self.tail.as_ref().map(|t| t.cause.as_str())
    }

    /// The predicted run, where costs are known.
    pub fn timeline(&self) -> Option<Timeline> {
        self.profile.as_ref().map(|profile| simulate(self.plan(), profile))
    }

    /// The run that other costs of the same graph predict for this plan.
    pub fn timeline_with(&self, profile: &Profile) -> Timeline {
        simulate(self.plan(), profile)
    }

    /// The plan as a file.
    pub fn plan_file(&self) -> PlanFile {
        let gpu = self.accelerator.as_ref().map(|a| a.info());
        let hardware = Hardware::of(&self.cpu, gpu);
        let mut file = PlanFile::new(&self.graph, &self.placement, hardware, self.profile());
        for (id, method) in self.engine.cpu_methods() {
            let node = self.graph.node(id);
            let zeros = self.analysis.node(id).weight_sparsity;
            let chosen = node.op.with_variant(Variant::Dense).is_some()
                && zeros.is_some_and(|share| share >= variant::FLOOR);
            file.nodes[id.index()].kernel = match method {
                SPARSE => Some(Variant::Sparse),
                _ => chosen.then_some(Variant::Dense),
            };
        }
        file.policy = self.decision.policy.to_string();
        file.objective = self.decision.objective.to_string();
        file.pins = self.decision.pins.iter().map(ToString::to_string).collect();
        file.predicted_ns = self.timeline().map(|t| t.makespan_ns);
        file
    }

    /// Computes all outputs from inputs by name, in the model's order.
    ///
    /// # Errors
    /// When an input is missing, unknown or of another type, or the engine fails.
    pub fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
    ) -> Result<Vec<(String, Tensor)>, SessionError> {
        self.run_graph(inputs, false)?;
        self.collect()
    }

    /// [`Session::run`] with the start and end of every step of the plan.
    ///
    /// # Errors
    /// Those of [`Session::run`].
    pub fn run_traced(
        &mut self,
        inputs: &[(&str, Tensor)],
    ) -> Result<(Vec<(String, Tensor)>, Trace), SessionError> {
        let trace = self.run_graph(inputs, true)?;
        Ok((self.collect()?, trace.unwrap_or_default()))
    }

    /// The hot path: inputs in the model's order, outputs (from [`Session::new_outputs`]) filled
    /// in place, nothing allocated.
    ///
    /// # Errors
    /// Those of [`Session::run`]; [`SessionError::Dynamic`] for a model whose output shapes
    /// depend on run-time values.
    pub fn run_into(
        &mut self,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
    ) -> Result<(), SessionError> {
        if let Some(tail) = &self.tail {
            return Err(SessionError::Dynamic { cause: tail.cause.clone() });
        }
        inputs::check(&self.inputs, inputs)?;
        self.infer(inputs, outputs)
    }

    fn infer(&mut self, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<(), SessionError> {
        let Some(runner) = &mut self.runner else { return Ok(self.engine.run(inputs, outputs)?) };
        if let Some(adopted) = runner.run(&mut self.engine, inputs, outputs)? {
            self.placement = adopted.placement;
            self.decision.source = adopted.name;
            self.decision.guard = None;
        }
        Ok(())
    }

    /// Zeroed outputs for [`Session::run_into`].
    pub fn new_outputs(&self) -> Vec<Tensor> {
        self.engine.new_outputs()
    }

    fn run_graph(
        &mut self,
        inputs: &[(&str, Tensor)],
        traced: bool,
    ) -> Result<Option<Trace>, SessionError> {
        let ordered = inputs::by_name(&self.inputs, inputs)?;
        if traced {
            return Ok(Some(self.engine.run_traced(&ordered, &mut self.buffers)?));
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        let result = self.infer(&ordered, &mut buffers);
        self.buffers = buffers;
        result.map(|()| None)
    }

    /// The model's outputs from the graph's, the data-dependent rest computed.
    fn collect(&mut self) -> Result<Vec<(String, Tensor)>, SessionError> {
        let tail = match &self.tail {
            None => Vec::new(),
            Some(tail) => {
                let feeds: Vec<Tensor> =
                    tail.feeds.iter().map(|&i| self.buffers[i].clone()).collect();
                interpret(&tail.model, &feeds, &self.pool)?
            }
        };
        let results = self.sources.iter().map(|source| match source {
            OutputSource::Graph(i) => self.buffers[*i].clone(),
            OutputSource::Tail(i) => tail[*i].clone(),
        });
        let named = self.outputs.iter().map(|o| o.name.clone()).zip(results).collect();
        // The buffers are shared with the caller now; the next run fills fresh ones.
        self.buffers = self.engine.new_outputs();
        Ok(named)
    }

    /// Bytes that the prepared plan takes.
    pub fn footprint(&self) -> Footprint {
        Footprint::of(&self.engine)
    }

    /// Runs the same model with another placement from now on. A session that adapted no longer
    /// does; [`Session::propose`] changes the placement of one that does.
    ///
    /// # Errors
    /// When the placement is not legal or its plan cannot be prepared; the session then keeps its
    /// old one.
    pub fn set_placement(
        &mut self,
        placement: Placement,
        source: impl Into<String>,
    ) -> Result<(), SessionError> {
        let plan = compile(&self.graph, &placement, self.support(), self.profile.as_ref())?;
        let accelerator = self.accelerator.as_deref();
        let engine = Engine::new(plan, &self.graph, &self.kernels, &self.pool, accelerator)?;
        Footprint::of(&engine).within(self.memory_limit)?;
        self.engine = engine;
        self.kernels.forget_unused();
        self.runner = None;
        self.placement = placement;
        self.decision.source = source.into();
        self.decision.guard = None;
        Ok(())
    }

    /// The placement that a policy makes of this session's graph, pins respected, with the costs
    /// that the session has; for [`Session::set_placement`].
    ///
    /// # Errors
    /// When the objective cannot be judged on these costs.
    pub fn place_with(&self, policy: Policy) -> Result<Placement, SessionError> {
        let empty = Profile::default();
        let pins = resolve_pins(&self.graph, self.support(), &self.decision.pins)?;
        let policy = if self.profile.is_some() { policy } else { policy.without_costs() };
        Ok(policy.scheduler().place(&Problem {
            graph: &self.graph,
            support: self.support(),
            topology: &Topology::of(&self.graph, self.support()),
            analysis: &self.analysis,
            profile: self.profile.as_ref().unwrap_or(&empty),
            thresholds: &self.thresholds(),
            state: HardwareState::default(),
            pins: &pins,
            objective: self.decision.objective,
            learned: self.learned.as_deref(),
        })?)
    }

    /// The tensor's values in memory from which the plan's GPU takes them by itself, where it has
    /// such: an input that is there is copied once in a run, over the bus, instead of twice. Keep the
    /// tensor and write each next input into it.
    pub fn upload_ready(&self, tensor: Tensor) -> Tensor {
        let accelerator = self.accelerator.as_deref().filter(|_| self.plan().uses_gpu());
        upload_ready(accelerator, tensor)
    }

    /// Random inputs of the right types, by name.
    pub fn random_inputs(&self, seed: u64) -> BTreeMap<String, Tensor> {
        self.inputs
            .iter()
            .zip(seed..)
            .filter_map(|(input, seed)| {
                Some((input.name.clone(), random_tensor(input.ty.as_ref()?, seed)))
            })
            .collect()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, {})", self.graph.name, self.decision.source)
    }
}

#[cfg(test)]
mod tests;
