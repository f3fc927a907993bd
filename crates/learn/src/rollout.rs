//! A placement in the making, as the learned policy sees it: operators are placed in the graph's
//! order, each after one look at an observation. Used by training and by planning alike. All
//! choices of observation and action are ours.

use sparoa_core::{
    backend::Device,
    ir::NodeId,
    plan::{Place, Placement},
    predict::Thresholds,
    profile::{HardwareState, Profile},
    schedule::{Ground, Mark, Objective, Operator, Problem, Walk, upward_ranks},
};

/// Numbers that are known of an operator before the first step.
const STATIC: usize = 23;
/// Numbers that hold for the whole episode.
const GLOBAL: usize = 16;
/// Numbers that depend on what has been placed.
const DYNAMIC: usize = 16;
/// Length of an observation.
pub const OBSERVATION: usize = STATIC + GLOBAL + DYNAMIC;

/// Actions below are the CPU's, actions above one minus it the GPU's, those between are splits.
pub const SNAP: f32 = 0.2;
/// Actions this near to the middle keep the base share of a split.
const HOLD: f32 = 0.1;
/// Operators that the two looks ahead go over.
const AHEAD: [usize; 2] = [3, 10];

/// What a policy must do without, to see what it is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blinders {
    /// The predicted thresholds are those that are fixed.
    pub predictor: bool,
    /// Sparsity is not seen.
    pub sparsity: bool,
    /// Intensity is not seen.
    pub intensity: bool,
    /// The state of the hardware is taken to be the nominal one.
    pub hardware: bool,
    /// No operator is split.
    pub split: bool,
    /// The placement is the actor's alone: nothing is looked at again.
    pub second_look: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Rollout {
    order: Vec<NodeId>,
    at: usize,
    walk: Walk,
    places: Vec<Place>,
    pins: Vec<Option<Place>>,
    statics: Vec<[f32; STATIC]>,
    globals: [f32; GLOBAL],
    /// By position: the share at which the coming splittable operators take equally long.
    balance: Vec<f32>,
    /// Mean time of an operator on the better processor: what times are measured in.
    unit: f64,
    /// The better processor's time for everything.
    total: f64,
    last: Place,
    without_splits: bool,
}

fn squash(x: f64) -> f32 {
    (x / (1.0 + x.abs())) as f32
}

impl Rollout {
    /// Before the first operator of a problem.
    pub fn new(problem: &Problem<'_>, blinders: Blinders) -> Rollout {
        let topology = problem.topology;
        let order: Vec<NodeId> = topology.running().collect();
        let time = |id: NodeId, device| problem.profile.part_ns(id, device, 1.0) as f64;
        let sum = |device: Device| order.iter().map(|&id| time(id, device)).sum::<f64>();
        let (cpu, gpu) = (sum(Device::Cpu), sum(Device::Gpu));
        let total = cpu.min(gpu).max(1.0);
        let unit = total / order.len().max(1) as f64;
        let statics = statics(problem, &order, unit, blinders);
        Rollout {
            globals: globals(problem, unit, cpu, gpu, blinders),
            balance: balance(problem, &order),
            statics,
            at: 0,
            walk: Walk::new(topology),
            places: vec![Place::Cpu; topology.nodes.len()],
            pins: order.iter().map(|&id| problem.pin(id)).collect(),
            order,
            unit,
            total,
            last: Place::Cpu,
            without_splits: blinders.split,
        }
    }

    /// Whether every operator has its place.
    pub fn done(&self) -> bool {
        self.at == self.order.len()
    }

    /// What the better processor would take for everything, in nanoseconds.
    pub fn total_ns(&self) -> f64 {
        self.total
    }

    /// The end of what has been placed.
    pub fn makespan_ns(&self) -> f64 {
        self.walk.makespan()
    }

    /// The end, with the outputs on the host.
    pub fn finish_ns(&self, on: Ground<'_>) -> f64 {
        self.walk.finish(on)
    }

    /// How long each processor computes for what has been placed, in nanoseconds.
    pub fn busy_ns(&self) -> [f64; 2] {
        self.walk.busy()
    }

    /// The placement so far.
    pub fn placement(&self) -> Placement {
        Placement { places: self.places.clone() }
    }

    /// The operator at a position.
    fn operator<'a>(&self, on: Ground<'a>, at: usize) -> &'a Operator {
        &on.topology.nodes[self.order[at].index()]
    }

    /// The GPU's share of a split that leaves data where they are, or that balances what comes.
    fn base_share(&self, on: Ground<'_>) -> f32 {
        let largest = self.operator(on, self.at).reads.iter().max_by_key(|r| r.bytes);
        let held = largest.map_or(0.0, |r| self.walk.gpu_share_of(r.store) as f32);
        match self.last {
            Place::Split(share) if held > 0.02 && held < 0.98 => share,
            _ => self.balance[self.at],
        }
    }

    /// The place that an action in [0, 1] stands for, as far as the next operator can take it.
    pub fn place_of(&self, on: Ground<'_>, action: f32) -> Place {
        if let Some(pin) = self.pins[self.at] {
            return pin;
        }
        let operator = self.operator(on, self.at);
        let whole = |gpu: bool| if gpu && operator.gpu { Place::Gpu } else { Place::Cpu };
        if !(SNAP..=1.0 - SNAP).contains(&action) {
            return whole(action > 0.5);
        }
        if operator.split.is_none() || self.without_splits {
            return whole(action >= 0.5);
        }
        let base = self.base_share(on).clamp(0.02, 0.98);
        let off = action - 0.5;
        if off.abs() <= HOLD {
            return Place::Split(base);
        }
        // On the scale of the ratio of both shares, so that it stays between 0 and 1.
        let odds = base / (1.0 - base) * ((off - HOLD.copysign(off)) * 8.0).exp();
        Place::Split((odds / (1.0 + odds)).clamp(0.02, 0.98))
    }

    /// The action that stands for a place of the next operator, the nearest one for splits.
    pub fn action_of(&self, on: Ground<'_>, place: Place) -> f32 {
        match place {
            Place::Cpu => 0.03,
            Place::Gpu => 0.97,
            Place::Split(share) => {
                let base = self.base_share(on).clamp(0.02, 0.98);
                let share = share.clamp(0.02, 0.98);
                let ratio = (share / (1.0 - share) / (base / (1.0 - base))).ln() / 8.0;
                if ratio.abs() < 0.02 {
                    return 0.5;
                }
                (0.5 + ratio + HOLD.copysign(ratio)).clamp(SNAP + 0.01, 0.99 - SNAP)
            }
        }
    }

    /// Places the next operator; returns by how much everything ends later, in nanoseconds.
    pub fn step(&mut self, on: Ground<'_>, place: Place) -> f64 {
        let before = self.walk.makespan();
        let id = self.order[self.at];
        self.walk.step(on, id, place);
        self.places[id.index()] = place;
        self.last = place;
        self.at += 1;
        self.walk.makespan() - before
    }

    /// What the policy sees before the next operator: [`OBSERVATION`] numbers of order one.
    pub fn observe(&mut self, on: Ground<'_>, into: &mut [f32]) {
        let (statics, rest) = into.split_at_mut(STATIC);
        let (globals, dynamic) = rest.split_at_mut(GLOBAL);
        statics.copy_from_slice(&self.statics[self.at]);
        globals.copy_from_slice(&self.globals);
        let id = self.order[self.at];
        let start = self.walk.makespan();
        let free = self.walk.free();
        let base = self.base_share(on);
        let operator = self.operator(on, self.at);
        let splits = operator.split.is_some() && !self.without_splits;
        let options = [
            Some(Place::Cpu),
            operator.gpu.then_some(Place::Gpu),
            splits.then_some(Place::Split(base)),
        ];
        let unit = self.unit;
        let late = |end: f64| squash((end - start) / unit);
        // 1 is as bad as it gets: not possible.
        let looks = options.map(|p| p.map_or(1.0, |p| late(self.walk.look(on, id, p).end())));
        let mut ahead = [[1.0f32; 3]; AHEAD.len()];
        let mark = self.walk.mark();
        for (option, place) in options.into_iter().enumerate() {
            let Some(place) = place else { continue };
            let ends = self.run_ahead(on, place, mark);
            for (row, end) in ahead.iter_mut().zip(ends) {
                row[option] = late(end);
            }
        }
        let largest = operator.reads.iter().max_by_key(|r| r.bytes);
        let last = match self.last {
            Place::Cpu => 0.0,
            Place::Gpu => 1.0,
            Place::Split(share) => share,
        };
        dynamic.copy_from_slice(&[
            looks[0],
            looks[1],
            looks[2],
            ahead[0][0],
            ahead[0][1],
            ahead[0][2],
            ahead[1][0],
            ahead[1][1],
            ahead[1][2],
            squash((free[0] - free[1]) / unit),
            squash((start - free[0]) / unit),
            squash((start - free[1]) / unit),
            largest.map_or(0.0, |r| self.walk.gpu_share_of(r.store) as f32),
            last,
            f32::from(u8::from(matches!(self.last, Place::Split(_)))),
            base,
        ]);
    }

    /// Ends of the next operators in one place, after so many of them as [`AHEAD`] says.
    fn run_ahead(&mut self, on: Ground<'_>, place: Place, mark: Mark) -> [f64; AHEAD.len()] {
        let mut ends = [0.0; AHEAD.len()];
        let mut taken = 0;
        for (end, until) in ends.iter_mut().zip(AHEAD) {
            while taken < until && self.at + taken < self.order.len() {
                let position = self.at + taken;
                let place = self.operator(on, position).settled(place);
                self.walk.step(on, self.order[position], place);
                taken += 1;
            }
            *end = self.walk.makespan();
        }
        self.walk.rewind(mark);
        ends
    }
}

/// By position: the share of the GPU at which both take equally long for the next operators that
/// split.
fn balance(problem: &Problem<'_>, order: &[NodeId]) -> Vec<f32> {
    let cost = |id: NodeId, device| {
        let c = problem.profile.cost(id, device).unwrap_or_default();
        [c.fixed_ns as f64, (c.latency_ns - c.fixed_ns) as f64]
    };
    let splits = |id: &&NodeId| problem.topology.nodes[id.index()].split.is_some();
    let share = |at: usize| {
        let mut sums = [0.0; 4];
        for &id in order[at..].iter().filter(splits).take(AHEAD[1]) {
            let (cpu, gpu) = (cost(id, Device::Cpu), cost(id, Device::Gpu));
            for (sum, part) in sums.iter_mut().zip([cpu[0], cpu[1], gpu[0], gpu[1]]) {
                *sum += part;
            }
        }
        let [cpu_fixed, cpu, gpu_fixed, gpu] = sums;
        (((cpu_fixed + cpu - gpu_fixed) / (cpu + gpu).max(1.0)) as f32).clamp(0.02, 0.98)
    };
    (0..order.len()).map(share).collect()
}

fn globals(
    problem: &Problem<'_>,
    unit: f64,
    cpu: f64,
    gpu: f64,
    blinders: Blinders,
) -> [f32; GLOBAL] {
    let state = if blinders.hardware { HardwareState::default() } else { problem.state };
    let p: &Profile = problem.profile;
    let [idle_w, cpu_w, gpu_w] = p.power.map_or([1.0; 3], |p| [p.idle_w, p.cpu_w, p.gpu_w]);
    let watts = (idle_w + cpu_w + gpu_w).max(1e-9);
    let objective = problem.objective;
    [
        state.cpu_busy as f32,
        state.gpu_busy as f32,
        state.cpu_rate as f32,
        state.gpu_rate as f32,
        state.memory as f32,
        state.link as f32,
        squash(p.submit_ns as f64 / unit),
        squash(p.handoff_ns as f64 / unit),
        squash(p.upload.latency_ns as f64 / unit),
        squash(p.download.latency_ns as f64 / unit),
        ((cpu / gpu.max(1.0)).max(1e-9).ln() / 4.0).clamp(-1.0, 1.0) as f32,
        p.contention.cpu.min(3.0) as f32 - 1.0,
        p.contention.gpu.min(3.0) as f32 - 1.0,
        match objective {
            Objective::Latency | Objective::Throughput => 0.0,
            Objective::Edp => 0.5,
            Objective::Energy => 1.0,
        },
        (cpu_w / watts) as f32,
        (gpu_w / watts) as f32,
    ]
}

fn statics(
    problem: &Problem<'_>,
    order: &[NodeId],
    unit: f64,
    blinders: Blinders,
) -> Vec<[f32; STATIC]> {
    let ranks = upward_ranks(problem);
    let longest = order.iter().map(|id| ranks[id.index()]).fold(1.0, f64::max);
    let mut readers = vec![0usize; problem.topology.stores];
    for id in order {
        for read in &problem.topology.nodes[id.index()].reads {
            readers[read.store] += 1;
        }
    }
    let fixed = sparoa_core::predict::FixedThresholds::default().0;
    let ratio = |id: NodeId| {
        let time = |device| problem.profile.part_ns(id, device, 1.0) as f64;
        let ratio = (time(Device::Cpu) / time(Device::Gpu).max(1.0)).max(1e-9).ln() / 4.0;
        if problem.gpu_runs(id) { ratio.clamp(-1.0, 1.0) as f32 } else { -1.0 }
    };
    let ratios: Vec<f32> = order.iter().map(|&id| ratio(id)).collect();
    let mean = |range: &[f32]| range.iter().sum::<f32>() / range.len().max(1) as f32;
    let window = |at: usize, length: usize| at..(at + length).min(order.len());
    let row = |at: usize| {
        let id = order[at];
        let operator = &problem.topology.nodes[id.index()];
        let node = problem.analysis.node(id);
        let cost = |device| problem.profile.cost(id, device).unwrap_or_default();
        let (cpu, gpu) = (cost(Device::Cpu), cost(Device::Gpu));
        let part = |c: sparoa_core::profile::Cost| c.fixed_ns as f32 / c.latency_ns.max(1) as f32;
        let thresholds: Thresholds = match blinders.predictor {
            true => fixed,
            false => problem.thresholds_of(id),
        };
        let log = |v: f64| v.max(1e-3).log10() / 4.0;
        let intense = log(node.intensity()) - log(thresholds.intensity);
        let sparse = node.sparsity() - thresholds.sparsity;
        let seen = |blind: bool, v: f64| if blind { 0.0 } else { v.clamp(-1.0, 1.0) as f32 };
        let splits = |&id: &NodeId| problem.topology.nodes[id.index()].split.is_some();
        let ahead = &order[window(at, 8)];
        let split_share =
            ahead.iter().filter(|id| splits(id)).count() as f32 / ahead.len().max(1) as f32;
        let up: u64 = operator.reads.iter().map(|r| problem.profile.upload.copy_ns(r.bytes)).sum();
        let down: u64 = operator.writes.iter().map(|w| problem.profile.download.copy_ns(w.1)).sum();
        let fan_out: usize = operator.writes.iter().map(|(store, _)| readers[*store]).sum();
        [
            ratios[at],
            squash(cpu.latency_ns as f64 / unit),
            squash(gpu.latency_ns as f64 / unit),
            f32::from(u8::from(operator.gpu)),
            f32::from(u8::from(operator.split.is_some() && !blinders.split)),
            part(cpu),
            part(gpu),
            seen(blinders.sparsity, sparse),
            seen(blinders.sparsity, node.sparsity()),
            seen(blinders.intensity, intense),
            seen(blinders.intensity, log(node.intensity())),
            squash(up as f64 / unit),
            squash(down as f64 / unit),
            (ranks[id.index()] / longest) as f32,
            at as f32 / order.len() as f32,
            mean(&ratios[window(at, 4)]),
            mean(&ratios[window(at, 16)]),
            mean(&ratios[window(at + 1, 1)]),
            split_share,
            operator.reads.len().min(4) as f32 / 4.0,
            fan_out.min(4) as f32 / 4.0,
            f32::from(u8::from(operator.reads.iter().any(|r| r.halo.is_none()))),
            1.0 / (order.len() - at) as f32,
        ]
    };
    (0..order.len()).map(row).collect()
}
