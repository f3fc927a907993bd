//! From arguments to processors and sessions.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use serde::Serialize;
use sparoa::{
    Accelerator, Arithmetic, BackendError, DeviceInfo, EnergyMeter, EngineError, GpuOptions,
    GpuPrecision, Model, Monitor, NvmlGpu, Objective, Pin, Plan, PlanFile, Policy, Pool, Session,
    SessionBuilder, SessionError, available_threads, cpu_info, default_cache_dir, energy_sensors,
    isa, onnx, open_gpu, system_root, zoo,
};

use crate::{
    args::{DeviceArgs, PolicyArgs},
    error::{CliError, CliResult, Kind},
    learned::learned,
    progress::Bars,
    shapes::ShapeArg,
};

/// What became of the GPU.
#[derive(Clone, Debug)]
pub enum GpuState {
    /// It is open.
    Open(DeviceInfo),
    /// There is none, or it cannot be opened; why.
    Failed(String),
    /// Nobody asked for it; why.
    Unused(String),
}

/// The processors of this machine, opened once per command.
pub struct Machine {
    /// The CPU.
    pub cpu: DeviceInfo,
    /// The GPU, if there is one and it may be used.
    pub gpu: Option<Arc<dyn Accelerator>>,
    /// Why there is none.
    pub gpu_unavailable: Option<String>,
    /// Whether a GPU was looked for.
    gpu_wanted: bool,
    /// The CPU's threads.
    pub pool: Arc<Pool>,
    meter: OnceLock<EnergyMeter>,
    arithmetic: Arithmetic,
    /// The GPU's products are of bf16.
    pub gpu_bf16: bool,
    allow_fallback: bool,
    gpu_only: bool,
}

impl Machine {
    /// Opens the processors that the arguments allow. `fresh`: what was measured of the GPU's libraries
    /// before does not count.
    ///
    /// # Errors
    /// When `--device gpu` or `--gpu NAME` asks for a GPU that is absent, or the GPU lacks the
    /// precision (unless `--allow-fallback`), `--cpus` names cores that are not there, or `--exact` contradicts
    /// `--precision`.
    pub fn open(args: &DeviceArgs, fresh: bool) -> CliResult<Machine> {
        Machine::with_gpu(args, true, fresh)
    }

    /// [`Machine::open`] for these policies (none is the default one). Where all of them use the
    /// CPU alone the GPU stays closed: its driver takes time and memory.
    ///
    /// # Errors
    /// As [`Machine::open`].
    pub fn open_for(
        args: &DeviceArgs,
        policies: &[&str],
        plan: Option<&Path>,
        given: &PolicyArgs,
    ) -> CliResult<Machine> {
        let asked = args.device == "gpu" || args.gpu.is_some();
        let cpu = policies.iter().all(|name| *name == Policy::Cpu.to_string());
        let wanted = asked || !cpu || plan.is_some() || !given.pin.is_empty();
        Machine::with_gpu(args, wanted, given.fresh)
    }

    fn with_gpu(args: &DeviceArgs, wanted: bool, fresh: bool) -> CliResult<Machine> {
        isa::from_env().map_err(CliError::usage)?;
        let mut arithmetic = arithmetic(args)?;
        let mut gpu: Option<Arc<dyn Accelerator>> = None;
        let mut gpu_unavailable = None;
        let mut gpu_bf16 = false;
        if args.device == "cpu" {
            gpu_unavailable = Some("not used (--device cpu)".to_owned());
        } else if !wanted {
            gpu_unavailable = Some("not used (the policy is cpu)".to_owned());
        } else {
            let named = GpuOptions {
                name: args.gpu.clone().or(GpuOptions::from_env().name),
                allow_software: true,
                cache_dir: Some(default_cache_dir()),
                fresh,
                ..GpuOptions::default()
            };
            let precision = match args.precision.as_str() {
                "tf32" => GpuPrecision::Tf32,
                "fp16" => GpuPrecision::Fp16,
                // Beside a CPU that computes bf16 other GPUs compute fp32; alone they refuse.
                "bf16" if named.is_cuda() || args.device == "gpu" => GpuPrecision::Bf16,
                _ => GpuPrecision::Fp32,
            };
            match open_gpu(&GpuOptions { precision, ..named }) {
                Ok(backend) => {
                    gpu = Some(backend);
                    gpu_bf16 = precision == GpuPrecision::Bf16;
                    // Beside such a GPU a CPU that has no bf16 computes fp32.
                    if gpu_bf16 && isa::bf16().is_err() {
                        arithmetic = Arithmetic::Fast;
                    }
                }
                Err(e) => {
                    let asked = args.device == "gpu" || args.gpu.is_some();
                    // A GPU that is there must not be left out because of its arithmetic unasked.
                    let other = matches!(e, BackendError::Precision { .. });
                    if (asked || other) && !args.allow_fallback {
                        return Err(CliError::new(Kind::Device, e));
                    }
                    gpu_unavailable = Some(e.to_string());
                }
            }
        }
        // After the GPU's driver has started its threads: those keep all cores.
        if let Some(cores) = &args.cpus {
            pin_to(cores)?;
        }
        let threads = match (args.threads, &args.cpus) {
            (Some(n), _) => usize::from(n),
            (None, Some(cores)) => cores.len(),
            (None, None) => available_threads(),
        };
        Ok(Machine {
            cpu: cpu_info(threads),
            gpu_only: args.device == "gpu" && gpu.is_some(),
            gpu,
            gpu_unavailable,
            gpu_wanted: wanted && args.device != "cpu",
            pool: Arc::new(Pool::new(threads)),
            meter: OnceLock::new(),
            arithmetic,
            gpu_bf16,
            allow_fallback: args.allow_fallback,
        })
    }

    /// What became of the GPU.
    pub fn gpu_state(&self) -> GpuState {
        match &self.gpu {
            Some(gpu) => GpuState::Open(gpu.info().clone()),
            None => {
                let why = self.gpu_unavailable.clone().unwrap_or_default();
                if self.gpu_wanted { GpuState::Failed(why) } else { GpuState::Unused(why) }
            }
        }
    }

    /// Every processor's description.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let gpu = self.gpu.as_ref().map(|g| g.info().clone());
        std::iter::once(self.cpu.clone()).chain(gpu).collect()
    }

    /// The energy sensors, opened when somebody asks: graphics cards take their time.
    pub fn meter(&self) -> &EnergyMeter {
        self.meter.get_or_init(|| {
            let gpu = self.gpu.as_ref().map_or(Vec::new(), |gpu| energy_sensors(gpu.info()));
            EnergyMeter::open(&system_root(), gpu)
        })
    }

    /// The sensors of this machine, an NVIDIA GPU's through its own library.
    pub fn monitor(&self) -> Monitor {
        let monitor = Monitor::new();
        let nvml = self.gpu.as_ref().and_then(|gpu| NvmlGpu::open(&gpu.info().name).ok());
        match nvml {
            Some(gpu) => monitor.with_gpu(Box::new(gpu)),
            None => monitor,
        }
    }

    /// Whether the CPU's products are of bf16.
    pub fn cpu_bf16(&self) -> bool {
        self.arithmetic == Arithmetic::Bf16
    }

    /// The policy of this name; without a name the one that measures nothing: `gpu` where
    /// `--device gpu` says so, else `cpu`.
    ///
    /// # Errors
    /// When no policy has the name.
    pub fn policy(&self, name: Option<&str>) -> CliResult<Policy> {
        match name {
            Some(name) => name.parse().map_err(|e| CliError::usage(format!("--policy: {e}"))),
            None if self.gpu_only => Ok(Policy::Gpu),
            None => Ok(Policy::Cpu),
        }
    }

    /// Builds a session.
    ///
    /// # Errors
    /// Model, plan and device errors, with their exit codes.
    pub fn build(&self, request: &BuildRequest, bars: &Bars) -> CliResult<Session> {
        let mut builder = match &request.source {
            ModelSource::File(path) => SessionBuilder::from_path(path),
            ModelSource::Zoo(model) => SessionBuilder::new(model.clone()),
        };
        let shapes = request.resolve_shapes()?;
        for (name, dims) in shapes {
            builder = builder.shape(name, dims);
        }
        if let Some(batch) = request.batch {
            builder = builder.batch(batch);
        }
        builder = builder
            .pool(self.pool.clone())
            .policy(request.policy.unwrap_or_default())
            .objective(request.objective)
            .pins(request.pins.iter().cloned())
            .allow_fallback(self.allow_fallback)
            .always_profile(request.always_profile)
            .fresh(request.fresh)
            .optimize(request.optimize)
            .arithmetic(request.arithmetic.unwrap_or(self.arithmetic))
            .on_progress(bars.build(&request.label));
        if let Some(gpu) = &self.gpu {
            builder = builder.accelerator(gpu.clone());
            // Only where there is something to decide.
            let learned = learned();
            builder = builder.thresholds(learned.thresholds.clone());
            if let Some(policy) = &learned.policy {
                builder = builder.learned(policy.clone());
            }
        }
        if request.always_profile || !request.objective.is_time() {
            builder = builder.energy_meter(self.meter().clone());
        }
        if let Some(bytes) = request.memory_limit {
            builder = builder.memory_limit(bytes);
        }
        if let Some(why) = &self.gpu_unavailable {
            builder = builder.no_gpu_reason(why.clone());
        }
        if let Some(path) = &request.plan {
            builder = builder.plan(PlanFile::read(path).map_err(CliError::input)?);
        }
        builder.build().map_err(session_error)
    }
}

/// How the CPU computes products.
fn arithmetic(args: &DeviceArgs) -> CliResult<Arithmetic> {
    match (args.precision.as_str(), args.exact) {
        (precision @ ("bf16" | "bf16x2"), true) => Err(CliError::usage(format!(
            "--exact: contradicts --precision {precision}, leave one of them out"
        ))),
        ("bf16", false) => Ok(Arithmetic::Bf16),
        ("bf16x2", false) => Ok(Arithmetic::Bf16x2),
        (_, true) => Ok(Arithmetic::Exact),
        (_, false) => Ok(Arithmetic::Fast),
    }
}

/// Restricts this thread, and the threads that it starts from now on, to these cores.
fn pin_to(cores: &[usize]) -> CliResult {
    let mut set = rustix::thread::CpuSet::new();
    for &core in cores {
        if core >= rustix::thread::CpuSet::MAX_CPU {
            return Err(CliError::usage(format!("--cpus: there is no core {core}")));
        }
        set.set(core);
    }
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|e| CliError::usage(format!("--cpus {cores:?}: {e}")))
}

#[derive(Clone)]
enum ModelSource {
    File(PathBuf),
    Zoo(Arc<Model>),
}

/// What to build.
#[derive(Clone)]
pub struct BuildRequest {
    label: String,
    source: ModelSource,
    shapes: Vec<ShapeArg>,
    /// Overrides the leading dimension of every input.
    pub batch: Option<usize>,
    /// How to place; `auto` if unset.
    pub policy: Option<Policy>,
    /// What to minimise.
    pub objective: Objective,
    /// Pinned nodes.
    pub pins: Vec<Pin>,
    /// A plan file instead of a policy.
    pub plan: Option<PathBuf>,
    /// Measure operators even where the policy does not need it.
    pub always_profile: bool,
    /// Ignore cached measurements.
    pub fresh: bool,
    /// Bytes that the prepared plan may take.
    pub memory_limit: Option<usize>,
    /// Run the graph passes.
    pub optimize: bool,
    /// How the CPU computes products, whatever the flags say.
    pub arithmetic: Option<Arithmetic>,
}

impl BuildRequest {
    /// A request for `MODEL` with `--shape`s.
    ///
    /// # Errors
    /// Unknown zoo names.
    pub fn new(model: &str, shapes: &[ShapeArg]) -> CliResult<BuildRequest> {
        let source = match model.strip_prefix("zoo:") {
            Some(name) => {
                let model = zoo::build(name).map_err(|e| CliError::new(Kind::Model, e))?;
                ModelSource::Zoo(Arc::new(model))
            }
            None => ModelSource::File(model.into()),
        };
        Ok(BuildRequest {
            label: model.to_owned(),
            source,
            shapes: shapes.to_vec(),
            batch: None,
            policy: None,
            objective: Objective::Latency,
            pins: Vec::new(),
            plan: None,
            always_profile: false,
            fresh: false,
            memory_limit: None,
            optimize: true,
            arithmetic: None,
        })
    }

    /// Reads `--pin`, `--objective` and `--fresh`.
    ///
    /// # Errors
    /// Malformed pins and unknown objectives.
    pub fn with_policy_args(&mut self, args: &PolicyArgs) -> CliResult {
        self.objective =
            args.objective.parse().map_err(|e| CliError::usage(format!("--objective: {e}")))?;
        self.pins = args
            .pin
            .iter()
            .map(|p| p.parse().map_err(|e| CliError::usage(format!("--pin: {e}"))))
            .collect::<CliResult<_>>()?;
        self.fresh = args.fresh;
        self.memory_limit = args.memory_limit.map(|limit| limit.0);
        Ok(())
    }

    /// Shapes by input name: `--shape` with the name filled in.
    ///
    /// # Errors
    /// Shapes without a name where the model has several inputs.
    pub fn resolve_shapes(&self) -> CliResult<Vec<(String, Vec<usize>)>> {
        if self.shapes.iter().all(|s| s.name.is_some()) {
            let named = |s: &ShapeArg| Some((s.name.clone()?, s.dims.clone()));
            return Ok(self.shapes.iter().filter_map(named).collect());
        }
        let model = self.model()?;
        let mut shapes = Vec::new();
        for shape in &self.shapes {
            let name = match (&shape.name, model.inputs.as_slice()) {
                (Some(name), _) => name.clone(),
                (None, [only]) => only.name.clone(),
                (None, several) => {
                    let names: Vec<&str> = several.iter().map(|i| i.name.as_str()).collect();
                    return Err(CliError::usage(format!(
                        "--shape: write NAME:DIMS, the model has several inputs: {}",
                        names.join(", ")
                    )));
                }
            };
            shapes.push((name, shape.dims.clone()));
        }
        Ok(shapes)
    }

    /// The model.
    ///
    /// # Errors
    /// When the file is no model that can be read.
    pub fn model(&self) -> CliResult<Arc<Model>> {
        match &self.source {
            ModelSource::Zoo(model) => Ok(model.clone()),
            ModelSource::File(path) => onnx::load(path, &onnx::LoadOptions::default())
                .map(Arc::new)
                .map_err(|e| CliError::new(Kind::Model, e)),
        }
    }

    /// The model as ONNX bytes: the file itself, or the built-in model exported.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn model_bytes(&self) -> CliResult<Vec<u8>> {
        match &self.source {
            ModelSource::File(path) => std::fs::read(path)
                .map_err(|e| CliError::new(Kind::Model, format!("{}: {e}", path.display()))),
            ModelSource::Zoo(model) => onnx::to_bytes(&**model, &onnx::SaveOptions::default())
                .map_err(|e| CliError::new(Kind::Model, e)),
        }
    }
}

/// Operators per processor.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    /// On the CPU.
    pub cpu: usize,
    /// On the GPU.
    pub gpu: usize,
    /// On both.
    pub split: usize,
}

impl Counts {
    /// Of a session's plan; operators that only rename dimensions are not counted.
    pub fn of(session: &Session) -> Counts {
        Counts::of_plan(session.plan())
    }

    /// Of a plan.
    pub fn of_plan(plan: &Plan) -> Counts {
        let (cpu, gpu, split) = plan.node_counts();
        Counts { cpu, gpu, split }
    }

    /// `cpu`, `gpu` or `cpu+gpu`: the processors that really compute.
    pub fn device(self) -> &'static str {
        match (self.cpu + self.split > 0, self.gpu + self.split > 0) {
            (true, true) => "cpu+gpu",
            (false, true) => "gpu",
            _ => "cpu",
        }
    }
}

/// An error of building or running a session, with its exit code.
pub fn session_error(e: SessionError) -> CliError {
    let kind = match &e {
        SessionError::Load(_) | SessionError::Tail(_) | SessionError::Reference(_) => Kind::Model,
        SessionError::Specialize(s) if s.is_usage() => Kind::Usage,
        SessionError::Specialize(_) => Kind::Model,
        SessionError::Pin(_) | SessionError::Schedule(_) => Kind::Usage,
        SessionError::PlanFile(_) | SessionError::Compile(_) => Kind::Input,
        SessionError::Device(_)
        | SessionError::NoGpu { .. }
        | SessionError::NoBf16 { .. }
        | SessionError::Energy(_) => Kind::Device,
        SessionError::Engine(e) => engine_kind(e),
        _ => Kind::Input,
    };
    CliError::new(kind, e)
}

fn engine_kind(e: &EngineError) -> Kind {
    match e {
        EngineError::Prepare { .. } => Kind::Model,
        EngineError::Device(_) | EngineError::NoAccelerator | EngineError::Panic { .. } => {
            Kind::Device
        }
        _ => Kind::Input,
    }
}
