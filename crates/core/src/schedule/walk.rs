//! A schedule in the making: operators are given their places one by one, and each answers when it
//! would end. An estimate of the simulation that costs nanoseconds per operator: policies look
//! ahead with it, and the learned one sees the machine through it. Whole plans are judged by
//! [`simulate`](super::simulate).

use super::Topology;
use crate::{backend::Device, ir::NodeId, plan::Place, profile::Profile};

const CPU: usize = 0;
const GPU: usize = 1;

/// Where a store is, and since when, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seat {
    /// When all of it is on each processor; infinite where it is not.
    whole: [f64; 2],
    /// The share that the GPU made of a store that was written by both.
    share: f64,
    /// When each processor's own part of it was made.
    part: [f64; 2],
}

const NOWHERE: Seat = Seat { whole: [f64::INFINITY; 2], share: 0.0, part: [f64::INFINITY; 2] };

/// When an operator would run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outlook {
    /// When its inputs are where it runs (the later of both, if it is split).
    pub ready: f64,
    /// When it ends on each processor; 0 where it does not run.
    pub ends: [f64; 2],
    /// How long each processor computes.
    pub work: [f64; 2],
}

impl Outlook {
    /// When it ends.
    pub fn end(&self) -> f64 {
        self.ends[CPU].max(self.ends[GPU])
    }
}

/// What a walk goes over.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The operators.
    pub topology: &'a Topology,
    /// Their costs.
    pub profile: &'a Profile,
}

/// See the module. Every call takes the ground that it was made for.
#[derive(Clone, Debug)]
pub struct Walk {
    /// When each processor is free.
    free: [f64; 2],
    /// When the way to each processor is free.
    link: [f64; 2],
    /// How long each processor has computed.
    busy: [f64; 2],
    seats: Vec<Seat>,
    /// What steps have changed, for going back.
    journal: Vec<(usize, Seat)>,
}

/// A point to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    free: [f64; 2],
    link: [f64; 2],
    busy: [f64; 2],
    journal: usize,
}

impl Walk {
    /// Before the first operator.
    pub fn new(topology: &Topology) -> Walk {
        let mut walk = Walk {
            free: [0.0; 2],
            link: [0.0; 2],
            busy: [0.0; 2],
            seats: vec![NOWHERE; topology.stores],
            journal: Vec::with_capacity(64),
        };
        walk.reset(topology);
        walk
    }

    /// Back to the start.
    pub fn reset(&mut self, topology: &Topology) {
        self.free = [0.0; 2];
        self.link = [0.0; 2];
        self.busy = [0.0; 2];
        self.seats.clear();
        self.seats.resize(topology.stores, NOWHERE);
        self.journal.clear();
        for &store in &topology.inputs {
            self.seats[store].whole[CPU] = 0.0;
        }
    }

    /// A point to [`Walk::rewind`] to.
    pub fn mark(&self) -> Mark {
        Mark { free: self.free, link: self.link, busy: self.busy, journal: self.journal.len() }
    }

    /// Undoes what was done since.
    pub fn rewind(&mut self, mark: Mark) {
        while self.journal.len() > mark.journal {
            let (store, seat) = self.journal.pop().expect("longer than the mark");
            self.seats[store] = seat;
        }
        self.free = mark.free;
        self.link = mark.link;
        self.busy = mark.busy;
    }

    /// When each processor is free.
    pub fn free(&self) -> [f64; 2] {
        self.free
    }

    /// How long each processor has computed.
    pub fn busy(&self) -> [f64; 2] {
        self.busy
    }

    /// The end of everything so far.
    pub fn makespan(&self) -> f64 {
        self.free[CPU].max(self.free[GPU])
    }

    /// The end, with the outputs on the host.
    pub fn finish(&self, on: Ground<'_>) -> f64 {
        let mut link = self.link;
        let home = |end: f64, &(store, bytes): &(usize, usize)| {
            end.max(self.bring(on, store, bytes, CPU, None, &mut link).0)
        };
        on.topology.outputs.iter().fold(self.makespan(), home)
    }

    /// Where a store is: the share of it that is on the GPU and absent from the CPU, from 0 (all
    /// on the CPU) to 1. Half where both have it.
    pub fn gpu_share_of(&self, store: usize) -> f64 {
        let seat = &self.seats[store];
        match (seat.whole[CPU].is_finite(), seat.whole[GPU].is_finite()) {
            (true, true) => 0.5,
            (true, false) => 0.0,
            (false, true) => 1.0,
            (false, false) => seat.share,
        }
    }

    /// When this place would run the operator, if it came next.
    pub fn look(&self, on: Ground<'_>, node: NodeId, place: Place) -> Outlook {
        let mut link = self.link;
        self.route(on, node, place, &mut link)
    }

    /// Gives an operator its place.
    pub fn step(&mut self, on: Ground<'_>, node: NodeId, place: Place) -> Outlook {
        let operator = &on.topology.nodes[node.index()];
        if operator.idle {
            return Outlook::default();
        }
        let mut link = self.link;
        let outlook = self.route(on, node, place, &mut link);
        self.link = link;
        for device in [CPU, GPU] {
            if outlook.ends[device] > 0.0 {
                self.free[device] = outlook.ends[device];
            }
            self.busy[device] += outlook.work[device];
        }
        // What was brought whole stays for later readers.
        for read in &operator.reads {
            let whole = match place {
                Place::Cpu => [true, false],
                Place::Gpu => [false, true],
                Place::Split(_) => [read.halo.is_none(); 2],
            };
            for device in [CPU, GPU] {
                if whole[device] && self.seats[read.store].whole[device].is_infinite() {
                    self.note(read.store);
                    self.seats[read.store].whole[device] = outlook.ready;
                }
            }
        }
        let mut made = NOWHERE;
        match effective(on, node, place) {
            Place::Cpu => made.whole[CPU] = outlook.ends[CPU],
            Place::Gpu => made.whole[GPU] = outlook.ends[GPU],
            Place::Split(share) => {
                made.share = f64::from(share);
                made.part = outlook.ends;
            }
        }
        for &(store, _) in &operator.writes {
            self.note(store);
            self.seats[store] = made;
        }
        outlook
    }

    /// Both processors wait for each other.
    pub fn barrier(&mut self) {
        let end = self.makespan();
        self.free = [end; 2];
    }

    fn note(&mut self, store: usize) {
        self.journal.push((store, self.seats[store]));
    }

    fn route(&self, on: Ground<'_>, node: NodeId, place: Place, link: &mut [f64; 2]) -> Outlook {
        let operator = &on.topology.nodes[node.index()];
        let mut outlook = Outlook::default();
        let mut starts = [0.0; 2];
        if operator.idle {
            return outlook;
        }
        let profile = on.profile;
        let place = effective(on, node, place);
        let shares: [Option<f64>; 2] = match place {
            Place::Cpu => [Some(1.0), None],
            Place::Gpu => [None, Some(1.0)],
            Place::Split(share) => [Some(1.0 - f64::from(share)), Some(f64::from(share))],
        };
        for device in [CPU, GPU] {
            let Some(share) = shares[device] else { continue };
            let part = matches!(place, Place::Split(_)).then_some(share);
            let (mut ready, mut brought) = (0.0f64, false);
            for read in &operator.reads {
                let wanted = part.and_then(|share| Some((share, f64::from(read.halo?))));
                let (at, copied) = self.bring(on, read.store, read.bytes, device, wanted, link);
                ready = ready.max(at);
                brought |= copied;
            }
            outlook.ready = outlook.ready.max(ready);
            let mut start = ready.max(self.free[device]);
            if device == GPU && brought {
                start = start.max(ready + profile.submit_ns as f64);
            } else if device == CPU && brought && ready > self.free[CPU] {
                start += profile.handoff_ns as f64;
            }
            let which = if device == GPU { Device::Gpu } else { Device::Cpu };
            let time = profile.part_ns(node, which, share) as f64;
            starts[device] = start;
            outlook.work[device] = time;
            outlook.ends[device] = start + time.max(1e-3);
        }
        if matches!(place, Place::Split(_)) {
            contend(on.profile, starts, &mut outlook.ends);
        }
        outlook
    }

    /// When a device has what it needs of a store, and whether that takes a copy.
    /// `part` is the share of the work that it does and the halo beyond it; `None` needs all.
    fn bring(
        &self,
        on: Ground<'_>,
        store: usize,
        bytes: usize,
        device: usize,
        part: Option<(f64, f64)>,
        link: &mut [f64; 2],
    ) -> (f64, bool) {
        let seat = &self.seats[store];
        if seat.whole[device].is_finite() {
            return (seat.whole[device], false);
        }
        let other = 1 - device;
        let needed = part.map_or(1.0, |(share, halo)| (share + halo).min(1.0));
        let (has, own) = match (seat.share > 0.0, device) {
            (false, _) => (0.0, 0.0),
            // Both made a part: the GPU the leading one.
            (true, GPU) => (seat.share, seat.part[GPU]),
            (true, _) => (1.0 - seat.share, seat.part[CPU]),
        };
        let source = seat.whole[other].min(seat.part[other]);
        let copied = (needed - has).max(0.0) * bytes as f64;
        if copied < 1.0 {
            return (own, false);
        }
        let way = if device == GPU { on.profile.upload } else { on.profile.download };
        let asleep = if source > link[device] { on.profile.handoff_ns as f64 } else { 0.0 };
        let start = source.max(link[device]) + asleep;
        let end = start + way.copy_ns(copied as usize) as f64;
        link[device] = end;
        (end.max(own), true)
    }
}

/// A share that rounds to nothing or everything is no split.
fn effective(on: Ground<'_>, node: NodeId, place: Place) -> Place {
    let Place::Split(share) = place else { return place };
    let Some(axis) = on.topology.nodes[node.index()].split else { return Place::Cpu };
    match axis.gpu_extent(share) {
        0 => Place::Cpu,
        units if units == axis.extent => Place::Gpu,
        units => Place::Split(units as f32 / axis.extent as f32),
    }
}

/// Two parts slow each other down for as long as both run.
fn contend(profile: &Profile, starts: [f64; 2], ends: &mut [f64; 2]) {
    let factors = [profile.contention.cpu.max(1.0), profile.contention.gpu.max(1.0)];
    let begin = starts[CPU].max(starts[GPU]);
    // What is left of each when both run, at full speed.
    let left = [ends[CPU] - begin, ends[GPU] - begin];
    if left[CPU] <= 0.0 || left[GPU] <= 0.0 {
        return;
    }
    let slowed = [left[CPU] * factors[CPU], left[GPU] * factors[GPU]];
    let first = if slowed[CPU] <= slowed[GPU] { CPU } else { GPU };
    let second = 1 - first;
    ends[first] = begin + slowed[first];
    ends[second] = ends[first] + left[second] - slowed[first] / factors[second];
}
