//! Measures a profile: every operator alone on each processor, the links, the hand-overs. What an
//! earlier session measured on the same machine comes from the cache.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sparoa_kernels::pool::Pool;

use super::{SessionError, inputs::random_inputs, memory::Footprint, nanoseconds, work::alone};
use crate::{
    backend::{Accelerator, BackendError, Device, ProgramSpec, View},
    engine::{Engine, KernelCache, handoff_ns},
    ir::{Graph, NodeId},
    plan::{Place, Placement, Support, compile},
    profile::{Contention, Cost, CostCache, Link, Links, NodeCosts, Profile},
    tensor::Tensor,
};

/// See [`Profile::sparse_efficiency`]: the kernels that skip zeros of weights break even between half
/// and two thirds zeros on the machines where that was measured (see
/// [`crossover`](super::crossover())).
const SPARSE_EFFICIENCY: f64 = 0.45;

/// How much measuring may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasureOptions {
    /// Passes over the graph per processor, at most; the median counts.
    pub passes: usize,
    /// No new pass begins after this time per processor.
    pub max_time: Duration,
    /// Graphs that take longer than this on a processor are not measured in parts there: their
    /// splits are assumed to scale.
    pub max_parts: Duration,
}

impl Default for MeasureOptions {
    fn default() -> MeasureOptions {
        MeasureOptions {
            passes: 7,
            max_time: Duration::from_millis(1500),
            max_parts: Duration::from_secs(2),
        }
    }
}

pub(super) struct Measurer<'a> {
    pub graph: &'a Arc<Graph>,
    pub support: &'a Support,
    pub pool: &'a Arc<Pool>,
    pub kernels: &'a KernelCache,
    pub accelerator: Option<&'a dyn Accelerator>,
    pub options: MeasureOptions,
    /// Bytes that prepared plans may take; what no longer runs is let go where there is a limit.
    pub memory_limit: Option<usize>,
}

/// Median latency by node and which fraction of it that is of.
type Times = HashMap<NodeId, (u64, f64)>;

/// The part that is measured beside the whole, where a node can be divided so: about a quarter, because
/// the fixed share is what a part takes beyond its fraction, and errors of a larger part look like one.
/// Two rows still halve.
const PART: f32 = 0.26;

impl Measurer<'_> {
    /// The graph's profile; new figures are added to the cache. `progress` is told (done, total)
    /// stages.
    pub fn measure(
        &self,
        cache: &mut CostCache,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Profile, SessionError> {
        let signatures: Vec<String> =
            self.graph.nodes.iter().map(|n| CostCache::signature(self.graph, n)).collect();
        let used = |i: usize| !self.support.view[i];
        let missing = |cache: &CostCache, device: Device| {
            (0..signatures.len()).any(|i| {
                used(i)
                    && (device == Device::Cpu || self.support.gpu[i].is_ok())
                    && cache.get(device, &signatures[i]).is_none()
            })
        };
        progress(0, 3);
        if missing(cache, Device::Cpu) {
            let (whole, part) = self.cpu_times()?;
            remember(cache, Device::Cpu, &signatures, &whole, &part);
            self.let_go();
        }
        progress(1, 3);
        if let Some(accelerator) = self.accelerator
            && missing(cache, Device::Gpu)
        {
            let (whole, part) = self.gpu_times(accelerator)?;
            remember(cache, Device::Gpu, &signatures, &whole, &part);
            self.let_go();
        }
        progress(2, 3);
        let links = match (cache.links, self.accelerator) {
            (Some(links), _) => links,
            (None, None) => Links {
                upload: Link::default(),
                download: Link::default(),
                submit_ns: 0,
                handoff_ns: 0,
                contention: Contention::default(),
            },
            (None, Some(accelerator)) => {
                let (links, complete) = self.links(accelerator)?;
                if complete {
                    cache.links = Some(links);
                }
                links
            }
        };
        progress(3, 3);
        let nodes = self
            .graph
            .nodes
            .iter()
            .enumerate()
            .map(|(i, node)| {
                let cost = |device| match used(i) {
                    true => cache.get(device, &signatures[i]),
                    false => Some(Cost::default()),
                };
                NodeCosts {
                    name: node.name.clone(),
                    op_type: node.op.op_type().to_owned(),
                    cpu: cost(Device::Cpu),
                    gpu: self.support.gpu[i].is_ok().then(|| cost(Device::Gpu)).flatten(),
                }
            })
            .collect();
        Ok(Profile {
            simulated: false,
            machine: cache.machine.clone(),
            nodes,
            upload: links.upload,
            download: links.download,
            submit_ns: links.submit_ns,
            handoff_ns: links.handoff_ns,
            contention: links.contention,
            power: None,
            sparse_efficiency: SPARSE_EFFICIENCY,
        })
    }

    fn let_go(&self) {
        if self.memory_limit.is_some() {
            self.kernels.forget_unused();
        }
    }

    fn engine(&self, place: Place, kernels: &KernelCache) -> Result<Engine, SessionError> {
        let mut placement = Placement::uniform(self.graph, place);
        for (i, p) in placement.places.iter_mut().enumerate() {
            let legal = match place {
                Place::Cpu => true,
                Place::Gpu => self.support.gpu[i].is_ok(),
                Place::Split(_) => self.support.split[i].is_some(),
            };
            if !legal {
                *p = Place::Cpu;
            }
        }
        let plan = compile(self.graph, &placement, self.support, None)?;
        Ok(Engine::new(plan, self.graph, kernels, self.pool, self.accelerator)?)
    }

    /// Runs once on random inputs, so that memory holds plausible values; then repeats `pass`.
    fn passes(
        &self,
        engine: &mut Engine,
        mut pass: impl FnMut(&mut Engine, &[&Tensor]) -> Result<Vec<u64>, SessionError>,
    ) -> Result<Vec<u64>, SessionError> {
        let inputs = random_inputs(self.graph);
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let mut outputs = engine.new_outputs();
        engine.run(&inputs, &mut outputs)?;
        let start = Instant::now();
        let mut samples: Vec<Vec<u64>> = Vec::new();
        while samples.len() < self.options.passes.max(1)
            && (samples.len() < 2 || start.elapsed() < self.options.max_time)
        {
            samples.push(pass(engine, &inputs)?);
        }
        let median = |item: usize| {
            let mut times: Vec<u64> = samples.iter().map(|s| s[item]).collect();
            times.sort_unstable();
            times[times.len() / 2]
        };
        Ok((0..samples[0].len()).map(median).collect())
    }

    fn cpu_times(&self) -> Result<(Times, Times), SessionError> {
        let time = |place, kernels: &KernelCache| -> Result<Times, SessionError> {
            let mut engine = self.engine(place, kernels)?;
            let times = self.passes(&mut engine, |e, inputs| Ok(e.time_cpu_tasks(inputs)?))?;
            let tasks = engine.plan().cpu.iter().zip(times);
            Ok(tasks
                .filter(|(t, _)| place == Place::Cpu || t.part.is_some())
                .map(|(t, ns)| (t.node, (ns, t.fraction())))
                .collect())
        };
        let whole = time(Place::Cpu, self.kernels)?;
        let part = match self.parts(&whole) {
            // The parts' kernels are of no further use: a cache of their own.
            true => time(Place::Split(1.0 - PART), &KernelCache::new())?,
            false => Times::new(),
        };
        Ok((whole, part))
    }

    fn gpu_times(&self, accelerator: &dyn Accelerator) -> Result<(Times, Times), SessionError> {
        let time = |place, kernels: &KernelCache| -> Result<Times, SessionError> {
            let mut engine = self.engine(place, kernels)?;
            let times = self.passes(&mut engine, |e, _| gpu_pass(e, accelerator))?;
            let tasks = engine.plan().gpu.iter().zip(times);
            Ok(tasks
                .filter(|(t, _)| place == Place::Gpu || t.part.is_some())
                .map(|(t, ns)| (t.node, (ns, t.fraction())))
                .collect())
        };
        let whole = time(Place::Gpu, self.kernels)?;
        let part = match self.parts(&whole) {
            true => time(Place::Split(PART), &KernelCache::new())?,
            false => Times::new(),
        };
        Ok((whole, part))
    }

    /// Whether parts are worth measuring: something splits, and it does not take too long.
    fn parts(&self, whole: &Times) -> bool {
        let total: u64 = whole.values().map(|(ns, _)| ns).sum();
        u128::from(total) < self.options.max_parts.as_nanos()
            && self.support.split.iter().any(Option::is_some)
    }

    /// The links, and whether everything was measured: both processors at work take the memory of
    /// both, which a limit may not allow.
    fn links(&self, accelerator: &dyn Accelerator) -> Result<(Links, bool), SessionError> {
        const LARGE: usize = 4 << 20;
        let view = |bytes| View { slot: 0, offset: 0, bytes };
        let copies = vec![view(4), view(LARGE)];
        let program = accelerator.load(ProgramSpec {
            slots: vec![LARGE],
            uploads: copies.clone(),
            downloads: copies,
            ..ProgramSpec::default()
        })?;
        let mut bytes = vec![0u8; LARGE];
        let upload = link(LARGE, |copy, n| {
            program.upload(copy, &bytes[..n], self.pool)?;
            program.wait_idle()
        })?;
        let download = link(LARGE, |copy, n| program.download(copy, &mut bytes[..n]))?;
        let mut links = Links {
            upload,
            download,
            submit_ns: 0,
            handoff_ns: handoff_ns(),
            contention: Contention::default(),
        };
        drop(program);
        let mut gpu = self.engine(Place::Gpu, self.kernels)?;
        let inputs = random_inputs(self.graph);
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        if !gpu.plan().gpu.is_empty() {
            gpu.run(&inputs, &mut gpu.new_outputs())?;
            links.submit_ns = submit_ns(&gpu, accelerator)?;
            let cpu_alone = alone(self.graph, self.support, Place::Cpu);
            let cpu_plan = compile(self.graph, &cpu_alone, self.support, None)?;
            let both =
                Footprint::of(&gpu).total() + Footprint::least(&cpu_plan, self.graph).total();
            if self.memory_limit.is_some_and(|limit| both > limit) {
                return Ok((links, false));
            }
            let mut cpu = self.engine(Place::Cpu, self.kernels)?;
            cpu.run(&inputs, &mut cpu.new_outputs())?;
            links.contention = self.contention(&mut cpu, &gpu, &inputs)?;
        }
        Ok((links, true))
    }

    /// How much both processors slow each other down: each runs the graph again and again beside
    /// the other. Taken as no effect where one pass takes too long to try.
    fn contention(
        &self,
        cpu: &mut Engine,
        gpu: &Engine,
        inputs: &[&Tensor],
    ) -> Result<Contention, SessionError> {
        let Some(program) = gpu.program() else { return Ok(Contention::default()) };
        let segments = gpu.plan().segments.len();
        let gpu_pass = || -> Result<u64, BackendError> {
            let start = Instant::now();
            for segment in 0..segments {
                program.launch(segment)?;
            }
            program.wait_idle()?;
            Ok(nanoseconds(start.elapsed()))
        };
        let gpu_alone = gpu_pass()?.min(gpu_pass()?).max(1);
        let cpu_pass = |cpu: &mut Engine| -> Result<u64, SessionError> {
            Ok(cpu.time_cpu_tasks(inputs)?.iter().sum())
        };
        let cpu_alone = cpu_pass(cpu)?.min(cpu_pass(cpu)?).max(1);
        if u128::from(gpu_alone + cpu_alone) > self.options.max_parts.as_nanos() {
            return Ok(Contention::default());
        }
        let (stop, fastest) = (AtomicBool::new(false), AtomicU64::new(u64::MAX));
        let window = Duration::from_nanos(gpu_alone.max(cpu_alone) * 2);
        let (cpu_beside, error) = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    fastest.fetch_min(gpu_pass()?, Ordering::Relaxed);
                }
                Ok::<(), BackendError>(())
            });
            let start = Instant::now();
            let mut samples = Vec::new();
            let mut failure = None;
            while start.elapsed() < window || samples.is_empty() {
                match cpu_pass(cpu) {
                    Ok(sample) => samples.push(sample),
                    Err(e) => {
                        failure = Some(e);
                        break;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            if let Ok(Err(e)) = other.join() {
                failure.get_or_insert(e.into());
            }
            // The fastest of either: against the fastest alone, a mean would be noise as well.
            (samples.into_iter().min().unwrap_or(cpu_alone), failure)
        });
        if let Some(error) = error {
            return Err(error);
        }
        let gpu_beside = match fastest.into_inner() {
            u64::MAX => gpu_alone,
            ns => ns,
        };
        let factor = |beside: u64, alone: u64| (beside as f64 / alone as f64).clamp(1.0, 4.0);
        Ok(Contention { cpu: factor(cpu_beside, cpu_alone), gpu: factor(gpu_beside, gpu_alone) })
    }
}

/// Nanoseconds of every GPU task: by timestamps, or where there are none by giving each task a
/// submission of its own and taking off what an empty one costs.
fn gpu_pass(engine: &mut Engine, accelerator: &dyn Accelerator) -> Result<Vec<u64>, SessionError> {
    let Some(program) = engine.program() else { return Ok(Vec::new()) };
    let mut times = Vec::with_capacity(engine.plan().gpu.len());
    for segment in 0..engine.plan().segments.len() {
        match program.time_segment(segment) {
            Ok(segment) => times.extend(segment),
            Err(BackendError::NoTimestamps(_)) => return task_by_task(engine, accelerator),
            Err(e) => return Err(e.into()),
        }
    }
    // A time stamp between two small kernels takes longer than the way from one to the other: what
    // all of them take together, unmeasured, is what they may come to.
    let all = fastest(2, || {
        (0..engine.plan().segments.len()).try_for_each(|segment| program.launch(segment))?;
        program.wait_idle()
    })?;
    let sum: u64 = times.iter().sum();
    if all < sum {
        let share = |ns: u64| (u128::from(ns) * u128::from(all) / u128::from(sum)) as u64;
        times.iter_mut().for_each(|ns| *ns = share(*ns).max(1));
    }
    Ok(times)
}

fn task_by_task(engine: &Engine, accelerator: &dyn Accelerator) -> Result<Vec<u64>, SessionError> {
    let mut spec = engine.program_spec()?;
    let tasks = spec.tasks.len();
    spec.segments = (0..tasks).map(|i| i..i + 1).collect();
    let program = accelerator.load(spec)?;
    let idle = fastest(5, || program.wait_idle())?;
    (0..tasks)
        .map(|task| {
            let time = fastest(3, || {
                program.launch(task)?;
                program.wait_idle()
            })?;
            Ok(time.saturating_sub(idle).max(1))
        })
        .collect()
}

/// What a submission costs beyond its kernels.
fn submit_ns(engine: &Engine, accelerator: &dyn Accelerator) -> Result<u64, SessionError> {
    let mut spec = engine.program_spec()?;
    // The cheapest kernel's submission is mostly overhead.
    let Some(task) = (0..spec.tasks.len())
        .min_by_key(|&i| spec.tasks[i].outputs.iter().map(|(view, _)| view.bytes).sum::<usize>())
    else {
        return Ok(0);
    };
    spec.tasks = vec![spec.tasks.swap_remove(task)];
    spec.segments = vec![0..1];
    spec.values.clear();
    let program = accelerator.load(spec)?;
    let whole = fastest(9, || {
        program.launch(0)?;
        program.wait_idle()
    })?;
    let kernel = match program.time_segment(0) {
        Ok(times) => times.iter().sum(),
        Err(BackendError::NoTimestamps(_)) => 0,
        Err(e) => return Err(e.into()),
    };
    Ok(whole.saturating_sub(kernel))
}

/// Latency and rate of copies: a tiny one and a large one. `copy` gets index and size.
fn link(
    large: usize,
    mut copy: impl FnMut(usize, usize) -> Result<(), BackendError>,
) -> Result<Link, SessionError> {
    let latency_ns = fastest(15, || copy(0, 4))?;
    let large_ns = fastest(5, || copy(1, large))?;
    let body = large_ns.saturating_sub(latency_ns).max(1) as f64;
    Ok(Link { latency_ns, bytes_per_s: large as f64 / body * 1e9 })
}

/// The shortest of several runs: what the device can do, the scheduler's whims taken off.
fn fastest(
    times: usize,
    mut f: impl FnMut() -> Result<(), BackendError>,
) -> Result<u64, BackendError> {
    let mut best = u64::MAX;
    for _ in 0..times {
        let start = Instant::now();
        f()?;
        best = best.min(nanoseconds(start.elapsed()));
    }
    Ok(best)
}

fn remember(
    cache: &mut CostCache,
    device: Device,
    signatures: &[String],
    whole: &Times,
    part: &Times,
) {
    // Nodes with one signature cost the same: the median of all of them.
    let mut groups: HashMap<&str, Vec<Cost>> = HashMap::new();
    for (node, &(ns, _)) in whole {
        let cost = Cost::from_samples(ns, part.get(node).copied());
        groups.entry(&signatures[node.index()]).or_default().push(cost);
    }
    for (signature, mut costs) in groups {
        costs.sort_by_key(|c| (c.latency_ns, c.fixed_ns));
        cache.insert(device, signature, costs[costs.len() / 2]);
    }
}
