//! What placement policies need of a graph, worked out once: what each operator reads and writes
//! of which store, and how much of its inputs a part needs.

use crate::{
    ir::{Graph, NodeId, ValueId},
    plan::{Place, SplitAxis, Support, part_reads},
};

/// A graph as a scheduler sees it. Views are seen through: values that share bytes are one store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// By node index.
    pub nodes: Vec<Operator>,
    /// Stores.
    pub stores: usize,
    /// Stores that hold the graph's inputs: on the host from the start.
    pub inputs: Vec<usize>,
    /// Stores that must be on the host in the end, with their bytes.
    pub outputs: Vec<(usize, usize)>,
}

/// One operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    /// Runs nowhere: it renames its input, or nothing reads it.
    pub idle: bool,
    /// The GPU has a kernel for it.
    pub gpu: bool,
    /// How it splits.
    pub split: Option<SplitAxis>,
    /// What it reads at run time.
    pub reads: Vec<Read>,
    /// Stores that it writes, with their bytes.
    pub writes: Vec<(usize, usize)>,
}

impl Operator {
    /// A place as far as it can take it: the processor with the larger share where it cannot be split.
    pub fn settled(&self, place: Place) -> Place {
        match place {
            Place::Split(share) if self.split.is_none() => match self.gpu {
                true if share >= 0.5 => Place::Gpu,
                _ => Place::Cpu,
            },
            Place::Gpu if !self.gpu => Place::Cpu,
            place => place,
        }
    }
}

/// One input of an operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Read {
    /// Which store.
    pub store: usize,
    /// Its bytes.
    pub bytes: usize,
    /// What a part of the operator needs: its own share of the input and this share beyond it.
    /// `None`: all of it.
    pub halo: Option<f32>,
}

impl Topology {
    /// Of a graph on processors that support this of it.
    pub fn of(graph: &Graph, support: &Support) -> Topology {
        // The store of each value; constants have none.
        let mut store: Vec<Option<usize>> = vec![None; graph.values.len()];
        let mut stores = 0;
        let mut new = || {
            stores += 1;
            stores - 1
        };
        let inputs: Vec<usize> =
            graph.inputs.iter().map(|id| *store[id.index()].get_or_insert_with(&mut new)).collect();
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for (i, node) in graph.nodes.iter().enumerate() {
            let view = support.view.get(i).copied().unwrap_or(false);
            let split = support.split.get(i).copied().flatten();
            let halos = split.and_then(|axis| {
                graph.with_operands(node, |x| part_reads(node.op.as_ref(), x, axis))
            });
            let reads = node
                .inputs
                .iter()
                .enumerate()
                .filter_map(|(input, value)| {
                    let value = (*value)?;
                    let halo = halos.as_ref().and_then(|h| h.get(input).copied().flatten());
                    let bytes = graph.value(value).ty.bytes();
                    Some(Read { store: store[value.index()]?, bytes, halo })
                })
                .collect();
            let outputs = || node.outputs.iter().flatten();
            if view {
                let first = node.inputs.first().copied().flatten();
                let shared = first.and_then(|v: ValueId| store[v.index()]);
                for output in outputs() {
                    store[output.index()] = shared;
                }
            }
            let writes = match view {
                true => Vec::new(),
                false => outputs()
                    .map(|v| {
                        let id = *store[v.index()].insert(new());
                        (id, graph.value(*v).ty.bytes())
                    })
                    .collect(),
            };
            let gpu = support.gpu.get(i).is_some_and(Result::is_ok);
            nodes.push(Operator { idle: view, gpu, split, reads, writes });
        }
        let outputs = graph
            .outputs
            .iter()
            .filter_map(|v| Some((store[v.index()]?, graph.value(*v).ty.bytes())))
            .collect();
        let mut topology = Topology { nodes, stores, inputs, outputs };
        topology.mark_dead();
        topology
    }

    /// Nodes that lead to no output do not run.
    fn mark_dead(&mut self) {
        let mut wanted = vec![false; self.stores];
        for (store, _) in &self.outputs {
            wanted[*store] = true;
        }
        for node in self.nodes.iter_mut().rev() {
            if node.idle {
                continue;
            }
            if node.writes.iter().any(|(store, _)| wanted[*store]) {
                for read in &node.reads {
                    wanted[read.store] = true;
                }
            } else {
                node.idle = true;
            }
        }
    }

    /// The operators that run, in the graph's order.
    pub fn running(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().enumerate().filter(|(_, n)| !n.idle).map(|(i, _)| NodeId::new(i))
    }
}
