//! Costs estimated from peak rates, for processors that are not in this machine.

use serde::{Deserialize, Serialize};

use super::{Contention, Cost, Link, NodeCosts, Power, Profile};
use crate::ir::Graph;

/// A processor as the roofline sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceModel {
    /// Its name.
    pub name: String,
    /// Attainable fp32 operations per second.
    pub flops_per_s: f64,
    /// Attainable memory bytes per second.
    pub bytes_per_s: f64,
    /// Start of one kernel.
    pub launch_ns: u64,
}

impl DeviceModel {
    /// Estimated cost of an operator: the launch, plus whichever of arithmetic and memory takes
    /// longer.
    pub fn cost(&self, flops: u64, bytes: u64) -> Cost {
        let arithmetic = flops as f64 / self.flops_per_s;
        let memory = bytes as f64 / self.bytes_per_s;
        let body_ns = (arithmetic.max(memory) * 1e9) as u64;
        Cost { latency_ns: self.launch_ns + body_ns, fixed_ns: self.launch_ns }
    }
}

/// A machine of a CPU and a GPU as the roofline sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineModel {
    /// The machine's name.
    pub name: String,
    /// Its CPU, all cores together.
    pub cpu: DeviceModel,
    /// Its GPU.
    pub gpu: DeviceModel,
    /// Host to device.
    pub upload: Link,
    /// Device to host.
    pub download: Link,
    /// See [`Profile::submit_ns`].
    pub submit_ns: u64,
    /// See [`Profile::handoff_ns`].
    pub handoff_ns: u64,
    /// See [`Contention`].
    #[serde(default)]
    pub contention: Contention,
    /// Electrical power, where it is published.
    #[serde(default)]
    pub power: Option<Power>,
}

impl MachineModel {
    /// The estimated profile of a graph; `gpu_runs` says of each node, by index, whether the GPU
    /// has a kernel for it.
    pub fn profile(&self, graph: &Graph, gpu_runs: &[bool]) -> Profile {
        let nodes = graph
            .nodes
            .iter()
            .enumerate()
            .map(|(i, node)| {
                let view = node.op.is_view();
                let (flops, bytes) = graph.with_operands(node, |x| (node.op.flops(x), x.bytes()));
                let cost =
                    |d: &DeviceModel| if view { Cost::default() } else { d.cost(flops, bytes) };
                NodeCosts {
                    name: node.name.clone(),
                    op_type: node.op.op_type().to_owned(),
                    cpu: Some(cost(&self.cpu)),
                    gpu: gpu_runs.get(i).copied().unwrap_or(false).then(|| cost(&self.gpu)),
                }
            })
            .collect();
        Profile {
            simulated: true,
            machine: self.name.clone(),
            nodes,
            upload: self.upload,
            download: self.download,
            submit_ns: self.submit_ns,
            handoff_ns: self.handoff_ns,
            contention: self.contention,
            power: self.power,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_arithmetic_and_memory_decides() {
        let device =
            DeviceModel { name: "d".into(), flops_per_s: 1e9, bytes_per_s: 1e9, launch_ns: 100 };
        assert_eq!(device.cost(2000, 10).latency_ns, 2100);
        assert_eq!(device.cost(10, 3000).latency_ns, 3100);
        assert_eq!(device.cost(2000, 10).part_ns(0.5), 1100);
    }
}
