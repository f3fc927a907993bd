//! A graph made ready for planning on machines that are not here.

use std::sync::Arc;

use sparoa_kernels::Pool;

use super::{Objective, Problem, Topology};
use crate::{
    analyze::{Analysis, WalkError, analyze, record_activation_sparsity},
    backend::{Accelerator, SimulatedGpu},
    ir::Graph,
    plan::Support,
    profile::{HardwareState, MachineModel, Profile, Workload, workloads},
    tensor::Tensor,
};

/// What every simulated plan of a graph rests on.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The graph after its passes.
    pub graph: Arc<Graph>,
    /// Its operators' costs in principle.
    pub analysis: Analysis,
    /// Where they run on an ordinary GPU's machine.
    pub support: Support,
    /// What they read and write.
    pub topology: Topology,
    /// What they ask of a processor.
    pub workloads: Vec<Workload>,
    /// By node: whether the GPU runs it.
    pub gpu_runs: Vec<bool>,
}

impl Subject {
    /// Of a graph after its passes.
    pub fn new(graph: Arc<Graph>) -> Subject {
        let gpu = SimulatedGpu::new("an ordinary GPU", true);
        Subject::with(graph, &gpu)
    }

    /// [`Subject::new`] on a machine with this GPU.
    pub fn with(graph: Arc<Graph>, gpu: &dyn Accelerator) -> Subject {
        let analysis = analyze(&graph);
        let support = Support::of(&graph, Some(gpu));
        let topology = Topology::of(&graph, &support);
        let workloads = workloads(&graph, &analysis);
        let gpu_runs = support.gpu_runs();
        Subject { graph, analysis, support, topology, workloads, gpu_runs }
    }

    /// Runs samples (inputs in the graph's order) on this machine's CPU and notes the zeros that
    /// operators read: those that skip them cost less from then on.
    ///
    /// # Errors
    /// When an operator refuses its inputs.
    pub fn calibrate(&mut self, samples: &[Vec<Tensor>], pool: &Pool) -> Result<(), WalkError> {
        record_activation_sparsity(&mut self.analysis, &self.graph, samples, true, pool)?;
        self.workloads = workloads(&self.graph, &self.analysis);
        Ok(())
    }

    /// Its costs on a machine.
    pub fn profile(&self, machine: &MachineModel) -> Profile {
        machine.profile(&self.workloads, &self.gpu_runs)
    }

    /// The question where its operators should run, without pins, thresholds or learned policy.
    pub fn problem<'a>(&'a self, profile: &'a Profile, state: HardwareState) -> Problem<'a> {
        Problem {
            graph: &self.graph,
            support: &self.support,
            topology: &self.topology,
            analysis: &self.analysis,
            profile,
            thresholds: &[],
            state,
            pins: &[],
            objective: Objective::Latency,
            learned: None,
        }
    }
}
