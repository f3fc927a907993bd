//! Policy `dp`: partial schedules extended node by node, dominated ones dropped. On a chain few
//! survive and the result is exact for this cost model; elsewhere the beam's width bounds them.

use super::{Problem, ScheduleError, Scheduler};
use crate::{
    backend::Device,
    ir::{NodeId, ValueId},
    plan::{Place, Placement},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Dp {
    /// Partial schedules kept per node.
    pub width: usize,
}

impl Default for Dp {
    fn default() -> Dp {
        Dp { width: 48 }
    }
}

/// A schedule of the nodes so far.
#[derive(Clone)]
struct Partial {
    /// When each processor is free: cpu, gpu.
    free: [f64; 2],
    /// When each live value is on each processor, in the order of `live`.
    here: Vec<[f64; 2]>,
    /// Index of the decision that led here, in the history.
    last: usize,
}

impl Partial {
    /// Whether this is at least as good as the other in every respect.
    fn dominates(&self, other: &Partial) -> bool {
        let le = |a: &[f64; 2], b: &[f64; 2]| a[0] <= b[0] && a[1] <= b[1];
        le(&self.free, &other.free) && self.here.iter().zip(&other.here).all(|(a, b)| le(a, b))
    }

    fn bound(&self) -> f64 {
        let latest = self.here.iter().map(|h| h[0].min(h[1])).fold(0.0, f64::max);
        latest.max(self.free[0]).max(self.free[1]) + 1e-6 * (self.free[0] + self.free[1])
    }
}

impl Scheduler for Dp {
    fn name(&self) -> &'static str {
        "dp"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let graph = problem.graph;
        let mut search = Search::new(problem);
        // Decisions with their predecessors: the placements share their beginnings.
        let mut history: Vec<(usize, Device)> = vec![(0, Device::Cpu)];
        let mut beam = vec![Partial { free: [0.0; 2], here: search.start(), last: 0 }];
        for id in graph.node_ids() {
            let node_view = problem.is_view(id);
            let mut next: Vec<(Partial, Device)> = Vec::with_capacity(2 * beam.len());
            for partial in &beam {
                if node_view {
                    next.push((search.view(partial, id), Device::Cpu));
                    continue;
                }
                for &device in problem.devices(id) {
                    next.push((search.extend(partial, id, device), device));
                }
            }
            search.retire(id, &mut next);
            next.sort_by(|a, b| a.0.bound().total_cmp(&b.0.bound()));
            beam.clear();
            for (mut partial, device) in next {
                if beam.len() == self.width {
                    break;
                }
                if beam.iter().any(|kept| kept.dominates(&partial)) {
                    continue;
                }
                history.push((partial.last, device));
                partial.last = history.len() - 1;
                beam.push(partial);
            }
        }
        // What is live at the end are the outputs: they must be on the host.
        let end = |p: &Partial| {
            search
                .homecomings()
                .zip(&p.here)
                .fold(p.free[0].max(p.free[1]), |end, (copy, h)| end.max(h[0].min(h[1] + copy)))
        };
        let best = beam.iter().min_by(|a, b| end(a).total_cmp(&end(b)));
        let mut placement = Placement::uniform(graph, Place::Cpu);
        let mut at = best.map_or(0, |p| p.last);
        for place in placement.places.iter_mut().rev() {
            let (previous, device) = history[at];
            *place = if device == Device::Gpu { Place::Gpu } else { Place::Cpu };
            at = previous;
        }
        problem.legalize(&mut placement);
        Ok(placement)
    }
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    /// Values that a later node or the caller reads.
    live: Vec<ValueId>,
    /// Readers left per value, the caller counted.
    readers: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>) -> Search<'a> {
        let graph = problem.graph;
        let mut readers: Vec<usize> = graph.consumers().iter().map(Vec::len).collect();
        for id in &graph.outputs {
            readers[id.index()] += 1;
        }
        Search { problem, live: graph.inputs.clone(), readers }
    }

    fn start(&self) -> Vec<[f64; 2]> {
        self.live.iter().map(|_| [0.0, f64::INFINITY]).collect()
    }

    fn at(&self, value: ValueId) -> Option<usize> {
        self.live.iter().position(|v| *v == value)
    }

    fn outputs(&self, id: NodeId) -> impl Iterator<Item = ValueId> + use<'a> {
        self.problem.graph.node(id).outputs.iter().flatten().copied()
    }

    fn view(&self, partial: &Partial, id: NodeId) -> Partial {
        let mut next = partial.clone();
        let input = self.problem.graph.node(id).inputs.first().copied().flatten();
        let here = input.and_then(|v| self.at(v)).map_or([0.0; 2], |i| partial.here[i]);
        next.here.extend(self.outputs(id).map(|_| here));
        next
    }

    fn extend(&self, partial: &Partial, id: NodeId, device: Device) -> Partial {
        let Problem { graph, profile, .. } = *self.problem;
        let d = device as usize;
        let mut next = partial.clone();
        let mut ready: f64 = next.free[d];
        for v in graph.node(id).inputs.iter().flatten() {
            let Some(i) = self.at(*v) else { continue };
            let link = if device == Device::Gpu { profile.upload } else { profile.download };
            let copied = next.here[i][1 - d] + link.copy_ns(graph.value(*v).ty.bytes()) as f64;
            next.here[i][d] = next.here[i][d].min(copied);
            ready = ready.max(next.here[i][d]);
        }
        // A segment that the GPU does not have in its queue already must be submitted.
        let submit = if device == Device::Gpu && ready > partial.free[d] {
            profile.submit_ns as f64
        } else {
            0.0
        };
        let end = ready + submit + profile.part_ns(id, device, 1.0) as f64;
        next.free[d] = end;
        let mut made = [f64::INFINITY; 2];
        made[d] = end;
        next.here.extend(self.outputs(id).map(|_| made));
        next
    }

    /// After a node: its outputs live, and values without readers left do not.
    fn retire(&mut self, id: NodeId, next: &mut [(Partial, Device)]) {
        let graph = self.problem.graph;
        self.live.extend(self.outputs(id));
        for v in graph.node(id).inputs.iter().flatten() {
            self.readers[v.index()] -= 1;
        }
        let keep: Vec<bool> = self.live.iter().map(|v| self.readers[v.index()] > 0).collect();
        for (partial, _) in next {
            let mut flags = keep.iter();
            partial.here.retain(|_| *flags.next().expect("one flag per live value"));
        }
        let mut flags = keep.iter();
        self.live.retain(|_| *flags.next().expect("one flag per live value"));
    }

    /// Download times of the live values.
    fn homecomings(&self) -> impl Iterator<Item = f64> {
        let Problem { graph, profile, .. } = *self.problem;
        self.live.iter().map(move |v| profile.download.copy_ns(graph.value(*v).ty.bytes()) as f64)
    }
}
