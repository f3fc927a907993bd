//! SparOA: hybrid CPU+GPU inference of ONNX models.
//!
//! ```no_run
//! use std::sync::Arc;
//! use sparoa::{Policy, SessionBuilder, Tensor, WgpuBackend, WgpuOptions};
//!
//! let mut builder = SessionBuilder::from_path("model.onnx").policy(Policy::Auto);
//! if let Ok(gpu) = WgpuBackend::new(&WgpuOptions::from_env()) {
//!     builder = builder.accelerator(Arc::new(gpu));
//! }
//! let mut session = builder.build()?;
//! let image = Tensor::from_slice([1, 3, 224, 224], &vec![0f32; 3 * 224 * 224]);
//! for (name, output) in session.run(&[("input", image)])? {
//!     println!("{name}: {}", output.ty());
//! }
//! # Ok::<(), sparoa::SessionError>(())
//! ```
//!
//! What runs take, of whatever this machine can measure; a session that is to save energy
//! (`Objective::Energy`) gets the same meter by [`SessionBuilder::energy_meter`]:
//!
//! ```no_run
//! use sparoa::{EnergyMeter, SessionBuilder, Tensor, energy_sensors, system_root};
//!
//! let mut session = SessionBuilder::from_path("model.onnx").build()?;
//! let image = Tensor::from_slice([1, 3, 224, 224], &vec![0f32; 3 * 224 * 224]);
//! // Graphics cards are asked through their own library; the rest is found below `/sys`.
//! let gpu = session.accelerator().map_or(Vec::new(), |gpu| energy_sensors(gpu.info()));
//! let meter = EnergyMeter::open(&system_root(), gpu);
//! let running = meter.start();
//! for _ in 0..100 {
//!     session.run(&[("input", image.clone())])?;
//! }
//! match running.stop() {
//!     Ok(m) => println!("{} J each ({}, {})", m.joules / 100.0, m.method, m.coverage()),
//!     Err(e) => println!("not known: {e}"),
//! }
//! # Ok::<(), sparoa::SessionError>(())
//! ```
//!
//! A [`Session`] is a model made ready for this machine: imported, optimised, measured, placed and
//! planned. Its stages are plain values that can be looked at ([`Graph`], [`Analysis`],
//! [`Profile`], [`Placement`], [`Plan`]).

pub use half::f16;
pub use sparoa_core::{
    analyze::{ActivationZeros, Analysis, NodeAnalysis, WeightZeros, record_activation_sparsity},
    backend::{Accelerator, BackendError, Device, DeviceInfo, available_threads, cpu_info},
    batching::{
        BatchChoice, BatchLimits, BatchQueue, Cuts, LatencyCurve, Probe, ProbeOptions, Probed,
        QueueError, QueueOptions, QueueStats, SearchError, Stopped, Target, Ticket, find_batch,
        ladder, measure_batch,
    },
    energy::{
        Domain, EnergyError, EnergyMeter, EnergyMethod, EnergyReader, EnergySource, Measured,
        ModelledPower, Running, Sample, Sensor, SensorInfo, modelled_power, system_root,
    },
    engine::{Engine, EngineError, Trace, TraceSource, chrome_trace},
    ir::{Dim, Graph, Model, NodeId, Shapes, SpecializeError, passes, specialize},
    monitor::{self, ContainerLimits, GpuReadings, GpuSensors, Monitor, Snapshot},
    onnx,
    ops::{
        Variant,
        variant::{SKIPPING, SPARSE},
    },
    plan::{CompileError, Hardware, Place, Placement, Plan, PlanFile, compile, dot},
    predict::{FixedThresholds, Quadrant, ThresholdModel, Thresholds},
    profile::{
        Conditions, CostCache, DeviceProfile, HardwareState, Link, MachineModel, Power,
        PowerSource, Precision, Profile, ProfileError, PublishedLatency, Workload,
        default_cache_dir,
    },
    schedule::{
        Candidate, Contest, Decides, Objective, Outcome, Pin, PinError, PinTo, Policy, Problem,
        ScheduleError, Scheduler, Subject, Timeline, candidates, resolve_pins, simulate,
    },
    session::{
        AdaptOptions, AdaptReport, Attained, Crossover, Decision, GuardReport, Progress, Roofline,
        Session, SessionBuilder, SessionError, Switch, TRIED, Tolerance, ValueInfo, Verification,
        compare, crossover, measure_roofline, product_depth, random_placement, random_tensor,
        reference,
    },
    tensor::{DType, Element, Tensor, TensorType},
    zoo,
};
pub use sparoa_gpu::{
    CudaBackend, CudaOptions, GpuOptions, GpuPrecision, NvmlGpu, NvmlUnavailable, WgpuBackend,
    WgpuOptions, cuda_devices, nvml::energy_sensors, open_gpu,
};
pub use sparoa_kernels::{Arithmetic, isa, peaks, pool::Pool};
/// The learned parts: predictor of thresholds, policy `sac`, their weights, figures and training.
pub use sparoa_learn as learn;
