//! The happens-before relation of a plan, as vector clocks: for each task and copy, how much of
//! every lane is certain to be complete when it begins.
//!
//! The GPU executes its tasks one after the other. A lane that learns that a segment was
//! submitted learns nothing of its completion; a download does, of what it copies and so of all
//! GPU work before that.

use super::{Arg, Lane, Plan, PlanError, Step};

/// Items (tasks, uploads, downloads) of each lane known to be complete.
pub(super) type Clock = [usize; 4];

/// A clock per item of each lane, by lane index.
pub(super) struct Clocks {
    pub start: [Vec<Clock>; 4],
    /// The clock at the end of the CPU lane.
    pub finish: Clock,
    /// Items of each lane, in the one order found to respect every wait: (lane, item).
    pub order: Vec<(Lane, usize)>,
}

impl Clocks {
    /// Whether an item of a lane is complete at a clock.
    pub fn done(clock: &Clock, lane: Lane, item: usize) -> bool {
        clock[lane.index()] > item
    }

    /// Walks the lanes side by side, each as far as its waits allow.
    pub fn of(plan: &Plan) -> Result<Clocks, PlanError> {
        let mut walk = Walk {
            plan,
            at: [0; 4],
            now: [[0; 4]; 4],
            events: vec![None; plan.events],
            waited: vec![false; plan.events],
            gpu_end: Vec::with_capacity(plan.gpu.len()),
            submitted: 0,
            clocks: Clocks {
                start: Default::default(),
                finish: [0; 4],
                order: Vec::with_capacity(plan.cpu.len() + plan.gpu.len()),
            },
        };
        loop {
            let mut moved = false;
            for lane in Lane::ALL {
                while walk.step(lane)? {
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        if let Some(&lane) = Lane::ALL.iter().find(|l| walk.at[l.index()] < plan.lane(**l).len()) {
            return Err(PlanError::Deadlock { lane });
        }
        if let Some(event) = walk.waited.iter().position(|w| !w) {
            return Err(PlanError::Event { event, what: "nobody waits for it" });
        }
        walk.clocks.finish = walk.now[Lane::Cpu.index()];
        Ok(walk.clocks)
    }
}

struct Walk<'a> {
    plan: &'a Plan,
    at: [usize; 4],
    now: [Clock; 4],
    /// Clock of each event's signal, with the signalling lane.
    events: Vec<Option<(Lane, Clock)>>,
    waited: Vec<bool>,
    /// Clock at the end of each GPU task.
    gpu_end: Vec<Clock>,
    /// GPU tasks that the download lane knows to be submitted.
    submitted: usize,
    clocks: Clocks,
}

impl Walk<'_> {
    /// Advances a lane by a step; false when it has ended or must wait.
    fn step(&mut self, lane: Lane) -> Result<bool, PlanError> {
        let l = lane.index();
        let Some(&step) = self.plan.lane(lane).get(self.at[l]) else { return Ok(false) };
        let wrong = || PlanError::WrongLane { lane, step };
        match (step, lane) {
            (Step::Run(task), Lane::Cpu) => self.item(lane, task, self.plan.cpu.len())?,
            (Step::Copy(copy), Lane::HostToDevice) => {
                self.item(lane, copy, self.plan.uploads.len())?;
            }
            (Step::Copy(copy), Lane::DeviceToHost) => {
                self.join_sources(copy)?;
                self.item(lane, copy, self.plan.downloads.len())?;
            }
            (Step::Submit(segment), Lane::Gpu) => {
                let tasks = self.plan.segments.get(segment).ok_or_else(wrong)?.clone();
                for task in tasks {
                    self.item(lane, task, self.plan.gpu.len())?;
                    self.gpu_end.push(self.now[l]);
                }
            }
            (Step::Signal(event), _) => {
                let now = self.now[l];
                match self.events.get_mut(event) {
                    None => return Err(PlanError::Event { event, what: "it does not exist" }),
                    Some(Some(_)) => {
                        return Err(PlanError::Event { event, what: "it is signalled twice" });
                    }
                    Some(slot) => *slot = Some((lane, now)),
                }
            }
            (Step::Wait(event), _) => {
                let Some(slot) = self.events.get(event) else {
                    return Err(PlanError::Event { event, what: "it does not exist" });
                };
                let Some((from, clock)) = *slot else { return Ok(false) };
                if from != lane.awaited() {
                    return Err(PlanError::Event { event, what: "the wrong lane waits for it" });
                }
                self.waited[event] = true;
                if from == Lane::Gpu {
                    self.submitted = self.submitted.max(clock[Lane::Gpu.index()]);
                } else {
                    join(&mut self.now[l], &clock);
                }
            }
            _ => return Err(wrong()),
        }
        self.at[l] += 1;
        Ok(true)
    }

    /// Performs the next item of a lane, which must be `item`.
    fn item(&mut self, lane: Lane, item: usize, items: usize) -> Result<(), PlanError> {
        let l = lane.index();
        if item != self.clocks.start[l].len() || item >= items {
            return Err(PlanError::Order { lane, item });
        }
        self.clocks.start[l].push(self.now[l]);
        self.clocks.order.push((lane, item));
        self.now[l][l] = item + 1;
        Ok(())
    }

    /// A download waits for the GPU tasks that wrote what it copies.
    fn join_sources(&mut self, copy: usize) -> Result<(), PlanError> {
        let Some(transfer) = self.plan.downloads.get(copy) else {
            return Err(PlanError::Order { lane: Lane::DeviceToHost, item: copy });
        };
        let writes = |task: &super::Task| {
            task.outputs.iter().any(|r| {
                let range = r.range();
                r.buffer == transfer.buffer
                    && range.start < transfer.range.end
                    && transfer.range.start < range.end
            })
        };
        let known = &self.plan.gpu[..self.submitted.min(self.plan.gpu.len())];
        if let Some(last) = known.iter().rposition(writes) {
            join(&mut self.now[Lane::DeviceToHost.index()], &self.gpu_end[last]);
        }
        Ok(())
    }
}

fn join(clock: &mut Clock, other: &Clock) {
    for (a, b) in clock.iter_mut().zip(other) {
        *a = (*a).max(*b);
    }
}

/// One touch of a buffer.
pub(super) struct Access<'a> {
    pub lane: Lane,
    pub item: usize,
    pub range: std::ops::Range<usize>,
    pub write: bool,
    /// On the host or on the device.
    pub host: bool,
    /// Clock at its start.
    pub clock: &'a Clock,
}

/// Every access of every buffer, by buffer; the caller's reading of the outputs not among them.
pub(super) fn accesses<'a>(
    plan: &Plan,
    clocks: &'a Clocks,
) -> Result<Vec<Vec<Access<'a>>>, PlanError> {
    let mut all: Vec<Vec<Access<'a>>> = plan.buffers.iter().map(|_| Vec::new()).collect();
    let mut add = |buffer: usize, access: Access<'a>| match all.get_mut(buffer) {
        None => Err(PlanError::Order { lane: access.lane, item: access.item }),
        Some(list) => {
            list.push(access);
            Ok(())
        }
    };
    for lane in [Lane::Cpu, Lane::Gpu] {
        let tasks = if lane == Lane::Cpu { &plan.cpu } else { &plan.gpu };
        let host = lane == Lane::Cpu;
        for (item, (task, clock)) in tasks.iter().zip(&clocks.start[lane.index()]).enumerate() {
            for arg in task.inputs.iter().flatten() {
                if let Arg::Region(r) = arg {
                    let range = r.range();
                    add(r.buffer, Access { lane, item, range, write: false, host, clock })?;
                }
            }
            for r in &task.outputs {
                let range = r.range();
                add(r.buffer, Access { lane, item, range, write: true, host, clock })?;
            }
        }
    }
    for lane in [Lane::HostToDevice, Lane::DeviceToHost] {
        let upload = lane == Lane::HostToDevice;
        let copies = if upload { &plan.uploads } else { &plan.downloads };
        for (item, (copy, clock)) in copies.iter().zip(&clocks.start[lane.index()]).enumerate() {
            for host in [true, false] {
                let range = copy.range.clone();
                // An upload writes the device's side, a download the host's.
                let write = host != upload;
                add(copy.buffer, Access { lane, item, range, write, host, clock })?;
            }
        }
    }
    Ok(all)
}

/// True when some CPU task may run while a GPU task runs. Otherwise one thread can walk all lanes
/// without losing anything.
pub(crate) fn overlapping_processors(plan: &Plan) -> Result<bool, PlanError> {
    let clocks = Clocks::of(plan)?;
    let cpu = &clocks.start[Lane::Cpu.index()];
    let gpu = &clocks.start[Lane::Gpu.index()];
    Ok(cpu.iter().enumerate().any(|(c, at_cpu)| {
        gpu.iter().enumerate().any(|(g, at_gpu)| {
            !Clocks::done(at_cpu, Lane::Gpu, g) && !Clocks::done(at_gpu, Lane::Cpu, c)
        })
    }))
}
