//! Placement -> Plan: order the actions, cut GPU segments, insert the fewest signals and waits,
//! place buffers, verify.

use super::{
    Buffer, HostPlace, Lane, Place, Placement, Plan, PlanError, Step, Support,
    dataflow::{self, Action, Dataflow, Work},
    memory, order, verify,
};
use crate::{ir::Graph, profile::Profile};

/// Why a placement cannot be compiled.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The placement belongs to another graph.
    #[error("the placement has {places} places, the graph {nodes} nodes: plan this model again")]
    Length {
        /// Places given.
        places: usize,
        /// Nodes of the graph.
        nodes: usize,
    },
    /// A node was put where it cannot run.
    #[error("node '{node}' ({op_type}) cannot be placed on {place}: {reason}; place it on cpu")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// Where it was put.
        place: Place,
        /// Why not.
        reason: String,
    },
    /// The compiled plan failed verification: a defect of the compiler, never of the placement.
    #[error("internal error: the compiled plan is unsound: {0}")]
    Unsound(#[from] PlanError),
}

/// Compiles a placement. With a profile, independent work is ordered by the longest path behind
/// it; without, by the graph's order.
///
/// # Errors
/// When the placement is of another graph or puts a node where it cannot run.
pub fn compile(
    graph: &Graph,
    placement: &Placement,
    support: &Support,
    profile: Option<&Profile>,
) -> Result<Plan, CompileError> {
    let flow = dataflow::build(graph, placement, support)?;
    let order = order::order(&flow.actions, profile);
    let mut plan = lower(graph, flow, &order);
    memory::assign(&mut plan)?;
    verify(&plan)?;
    Ok(plan)
}

/// Signals and waits around a lane's items (tasks or copies).
#[derive(Default)]
struct Fences {
    wait_before: Vec<Option<usize>>,
    signal_after: Vec<Option<usize>>,
    /// Items of the awaited lane that are known to be complete by now.
    known: usize,
}

struct Fencing {
    lanes: [Fences; 4],
    events: usize,
}

impl Fencing {
    /// The event to wait for before `lane` may rely on the first `need` items of its awaited
    /// lane; `None` when an earlier wait covers them.
    fn wait(&mut self, lane: Lane, need: usize) -> Option<usize> {
        if need <= self.lanes[lane.index()].known {
            return None;
        }
        self.lanes[lane.index()].known = need;
        let events = &mut self.events;
        let signal = &mut self.lanes[lane.awaited().index()].signal_after[need - 1];
        Some(*signal.get_or_insert_with(|| {
            *events += 1;
            *events - 1
        }))
    }
}

fn lower(graph: &Graph, flow: Dataflow, order: &[usize]) -> Plan {
    let mut fencing = Fencing { lanes: Default::default(), events: 0 };
    // Place of each action in its lane.
    let mut item = vec![0usize; flow.actions.len()];
    let lane_of: Vec<Lane> = flow.actions.iter().map(|a| a.lane).collect();
    let need = |item: &[usize], lane: Lane, deps: &[usize]| {
        let foreign = deps.iter().filter(|&&d| lane_of[d] != lane);
        foreign
            .map(|&d| {
                debug_assert_eq!(lane_of[d], lane.awaited(), "data move in a circle");
                item[d] + 1
            })
            .max()
            .unwrap_or(0)
    };
    for &a in order {
        let lane = lane_of[a];
        let wait = fencing.wait(lane, need(&item, lane, &flow.actions[a].deps));
        let fences = &mut fencing.lanes[lane.index()];
        item[a] = fences.wait_before.len();
        fences.wait_before.push(wait);
        fences.signal_after.push(None);
    }
    let last_wait = fencing.wait(Lane::Cpu, need(&item, Lane::Cpu, &flow.finish));

    let mut plan = Plan {
        model: graph.name.clone(),
        cpu: Vec::new(),
        gpu: Vec::new(),
        segments: Vec::new(),
        uploads: Vec::new(),
        downloads: Vec::new(),
        lanes: Default::default(),
        events: fencing.events,
        buffers: Vec::new(),
        arena_bytes: 0,
        slots: Vec::new(),
        outputs: flow.outputs,
    };
    for store in flow.stores {
        let host = store.input.map(HostPlace::Input);
        plan.buffers.push(Buffer { name: store.name, bytes: store.bytes, host, slot: None });
    }
    let mut actions: Vec<Option<Action>> = flow.actions.into_iter().map(Some).collect();
    for &a in order {
        let Some(action) = actions[a].take() else { continue };
        match (action.work, action.lane) {
            (Work::Task(task), Lane::Gpu) => plan.gpu.push(*task),
            (Work::Task(task), _) => plan.cpu.push(*task),
            (Work::Copy(copy), Lane::HostToDevice) => plan.uploads.push(copy),
            (Work::Copy(copy), _) => plan.downloads.push(copy),
        }
    }
    for lane in Lane::ALL {
        let fences = &fencing.lanes[lane.index()];
        let steps = &mut plan.lanes[lane.index()];
        let mut segment_start = 0;
        let items = fences.wait_before.len();
        for i in 0..items {
            if let Some(event) = fences.wait_before[i] {
                steps.push(Step::Wait(event));
            }
            match lane {
                Lane::Cpu => steps.push(Step::Run(i)),
                Lane::HostToDevice | Lane::DeviceToHost => steps.push(Step::Copy(i)),
                Lane::Gpu => {
                    // A segment ends where somebody awaits it or its successor awaits something.
                    let last = i + 1 == items;
                    let cut = last
                        || fences.signal_after[i].is_some()
                        || fences.wait_before[i + 1].is_some();
                    if cut {
                        steps.push(Step::Submit(plan.segments.len()));
                        plan.segments.push(segment_start..i + 1);
                        segment_start = i + 1;
                    }
                }
            }
            if let Some(event) = fences.signal_after[i] {
                steps.push(Step::Signal(event));
            }
        }
    }
    plan.lanes[Lane::Cpu.index()].extend(last_wait.map(Step::Wait));
    plan
}
