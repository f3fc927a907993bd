//! The truth that the threshold predictor learns: for each operator, the sparsity from which the
//! CPU wins and the intensity from which the GPU wins, found by sweeping its zeros and its
//! arithmetic on a cost model. An operator is swept in its context: what it must copy counts, and
//! that depends on where its neighbours are in a good plan.

use sparoa_core::{
    backend::Device,
    ir::NodeId,
    plan::{Place, Placement},
    profile::{HardwareState, MachineModel, Profile, Workload},
    schedule::{Dp, ScheduleError, Scheduler, Subject},
};

use crate::{
    dataset::Sequence,
    features::{INTENSITY_RANGE, features},
    policy::seen,
};

/// Halvings of an interval in a sweep.
const STEPS: usize = 24;

/// The truth about one operator, on the predictor's scale: 0 to 1 each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Truth {
    /// Sparsity from which the CPU is faster; 1 if it never is.
    pub sparsity: f64,
    /// Intensity from which the GPU is faster, on a logarithmic scale over [`INTENSITY_RANGE`]; 1
    /// if it never is.
    pub intensity: f64,
}

/// The truth about every operator that is not a view, in order.
///
/// # Errors
/// When the reference plan cannot be made.
pub fn truths(subject: &Subject, machine: &MachineModel) -> Result<Vec<Truth>, ScheduleError> {
    let profile = subject.profile(machine);
    let problem = subject.problem(&profile, HardwareState::default());
    let reference = Dp::default().place(&problem)?;
    let context = Context::new(subject, &profile, &reference);
    let truth = |id: NodeId| {
        let work = &subject.workloads[id.index()];
        if !subject.gpu_runs[id.index()] {
            return Truth { sparsity: 0.0, intensity: 1.0 };
        }
        let [cpu_extra, gpu_extra] = context.extra(id);
        let gpu = machine.gpu_cost(work).latency_ns as f64 + gpu_extra;
        let cpu_wins =
            |zeros: f64| machine.cpu_cost(work, zeros).latency_ns as f64 + cpu_extra <= gpu;
        let gpu_wins = |unit: f64| {
            let scaled = with_intensity(work, unit);
            machine.gpu_cost(&scaled).latency_ns as f64 + gpu_extra
                <= machine.cpu_cost(&scaled, work.sparsity).latency_ns as f64 + cpu_extra
        };
        Truth { sparsity: first(cpu_wins), intensity: first(gpu_wins) }
    };
    Ok(seen(&subject.graph).into_iter().map(truth).collect())
}

/// Features and truth of a graph on a machine, for training.
///
/// # Errors
/// As [`truths`].
pub fn sequence(subject: &Subject, machine: &MachineModel) -> Result<Sequence, ScheduleError> {
    let running = seen(&subject.graph);
    let profile = subject.profile(machine);
    let truths = truths(subject, machine)?;
    let targets: Vec<f32> =
        truths.iter().flat_map(|t| [t.sparsity as f32, t.intensity as f32]).collect();
    Ok(Sequence {
        features: features(&subject.analysis, &profile, &running),
        weights: vec![1.0; targets.len()],
        targets,
    })
}

/// The least number in [0, 1] from which a condition holds that, once true, stays true; 1 if it
/// never does.
fn first(holds: impl Fn(f64) -> bool) -> f64 {
    if holds(0.0) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    if !holds(high) {
        return 1.0;
    }
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// The operator with as much arithmetic per byte as this point of the scale says.
fn with_intensity(work: &Workload, unit: f64) -> Workload {
    let (low, high) = INTENSITY_RANGE;
    let flops = low * (high / low).powf(unit) * work.bytes;
    let own = work.flops();
    let mut scaled = work.clone();
    for (_, f) in &mut scaled.products {
        *f *= if own > 0.0 { flops / own } else { 0.0 };
    }
    scaled
}

/// Where everything is in the reference plan.
struct Context<'a> {
    subject: &'a Subject,
    profile: &'a Profile,
    /// By store: the processor that makes it (the host makes the graph's inputs).
    made: Vec<Device>,
    /// By store: whether the CPU or the GPU reads it.
    read: Vec<[usize; 2]>,
}

impl<'a> Context<'a> {
    fn new(subject: &'a Subject, profile: &'a Profile, plan: &Placement) -> Context<'a> {
        let topology = &subject.topology;
        let mut made = vec![Device::Cpu; topology.stores];
        let mut read = vec![[0, 0]; topology.stores];
        for id in topology.running() {
            let device = match plan.places[id.index()] {
                Place::Gpu => Device::Gpu,
                _ => Device::Cpu,
            };
            let operator = &topology.nodes[id.index()];
            for (store, _) in &operator.writes {
                made[*store] = device;
            }
            for input in &operator.reads {
                read[input.store][device as usize] += 1;
            }
        }
        // The caller reads the outputs on the host.
        for (store, _) in &topology.outputs {
            read[*store][Device::Cpu as usize] += 1;
        }
        Context { subject, profile, made, read }
    }

    /// Copies, submissions and wake-ups that running an operator on the CPU or on the GPU entails,
    /// in nanoseconds.
    fn extra(&self, id: NodeId) -> [f64; 2] {
        let operator = &self.subject.topology.nodes[id.index()];
        let p = self.profile;
        let home = |bytes: usize| (p.download.copy_ns(bytes) + p.handoff_ns) as f64;
        let away = |bytes: usize| (p.upload.copy_ns(bytes) + p.handoff_ns + p.submit_ns) as f64;
        let (mut cpu, mut gpu) = (0.0, 0.0);
        for input in &operator.reads {
            match self.made[input.store] {
                Device::Cpu => gpu += away(input.bytes),
                Device::Gpu => cpu += home(input.bytes),
            }
        }
        for &(store, bytes) in &operator.writes {
            let [on_cpu, on_gpu] = self.read[store];
            cpu += if on_gpu > 0 { away(bytes) } else { 0.0 };
            gpu += if on_cpu > 0 { home(bytes) } else { 0.0 };
        }
        [cpu, gpu]
    }
}
