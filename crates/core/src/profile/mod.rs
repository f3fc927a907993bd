//! What operators and transfers cost on the processors of one machine: measured, or estimated by
//! a roofline. Inert values; measuring is the session's work.

mod cache;
mod device;
mod published;
mod roofline;
mod state;
mod workload;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{backend::Device, ir::NodeId};

pub use cache::{CacheError, CostCache, Links, default_cache_dir, hash_text, write_atomically};
pub use device::{
    DeviceProfile, Figure, PowerMode, Precision, ProfileError, PublishedLatency, profile_of_board,
};
pub use published::{Prediction, predict_ms, predictions};
pub use roofline::{DeviceModel, MachineModel};
pub use state::{Conditions, HardwareState, StateBucket};
pub use workload::{Workload, workloads};

/// Costs of one graph on one machine. Nodes are those of the graph it was made for, by index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// True when any figure is estimated instead of measured.
    pub simulated: bool,
    /// The processors, as text: part of every report.
    pub machine: String,
    /// Costs per node, by [`NodeId`].
    pub nodes: Vec<NodeCosts>,
    /// Host to device.
    pub upload: Link,
    /// Device to host.
    pub download: Link,
    /// From the submission of a segment to the start of its first kernel on an idle GPU, plus the
    /// notice of its end.
    pub submit_ns: u64,
    /// From a signal on one lane to the wake-up of a lane that waits for it.
    pub handoff_ns: u64,
    /// How both processors slow each other down.
    pub contention: Contention,
    /// Electrical power, where it is known.
    pub power: Option<Power>,
    /// Rate per multiply-add with a non-zero weight of the CPU's sparse kernels, over its dense
    /// kernels' rate; 0 where it is not known.
    #[serde(default)]
    pub sparse_efficiency: f64,
}

/// Costs of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeCosts {
    /// The node's name.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// On the CPU. Views cost nothing and have `Some(Cost::default())`.
    pub cpu: Option<Cost>,
    /// On the GPU; `None` where the GPU cannot run it or nothing was measured.
    pub gpu: Option<Cost>,
}

/// Latency of an operator on one processor, and how it shrinks when only a part is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Of the whole operator.
    pub latency_ns: u64,
    /// The share of `latency_ns` that a part of any size pays in full.
    pub fixed_ns: u64,
}

impl Cost {
    /// A cost from the latency of the whole and, where it was measured, of a part: its latency and which
    /// fraction of the whole it is, below 1. The smaller the part, the less an error in either latency
    /// is enlarged.
    pub fn from_samples(whole_ns: u64, part: Option<(u64, f64)>) -> Cost {
        let fixed = part.map_or(0.0, |(ns, fraction)| {
            (ns as f64 - fraction * whole_ns as f64) / (1.0 - fraction).max(1e-3)
        });
        Cost { latency_ns: whole_ns, fixed_ns: (fixed.max(0.0).round() as u64).min(whole_ns) }
    }

    /// Latency of `fraction` (0 to 1) of the operator.
    pub fn part_ns(&self, fraction: f64) -> u64 {
        if fraction >= 1.0 {
            return self.latency_ns;
        }
        let variable = self.latency_ns.saturating_sub(self.fixed_ns) as f64;
        self.fixed_ns + (variable * fraction.max(0.0)) as u64
    }
}

/// A transfer direction: `latency_ns + bytes / bytes_per_s`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Of an empty copy.
    pub latency_ns: u64,
    /// Sustained rate.
    pub bytes_per_s: f64,
}

impl Link {
    /// Time of one copy.
    pub fn copy_ns(&self, bytes: usize) -> u64 {
        let rate = if self.bytes_per_s > 0.0 { self.bytes_per_s } else { 1e9 };
        self.latency_ns + (bytes as f64 / rate * 1e9) as u64
    }
}

impl Default for Link {
    fn default() -> Link {
        Link { latency_ns: 10_000, bytes_per_s: 8e9 }
    }
}

/// Factors by which a kernel takes longer while the other processor computes; 1 is no effect.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contention {
    /// On CPU kernels.
    pub cpu: f64,
    /// On GPU kernels.
    pub gpu: f64,
}

impl Default for Contention {
    fn default() -> Contention {
        Contention { cpu: 1.0, gpu: 1.0 }
    }
}

/// Electrical power in watts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Power {
    /// Drawn by the whole machine whatever it does.
    pub idle_w: f64,
    /// Added while the CPU computes.
    pub cpu_w: f64,
    /// Added while the GPU computes.
    pub gpu_w: f64,
    /// Where the figures come from.
    #[serde(default)]
    pub source: PowerSource,
}

/// Where figures of electrical power come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerSource {
    /// This machine's own sensors.
    Measured,
    /// The profile of a board that is not here.
    Published,
    /// Figures of a board of this kind, or stated assumptions.
    #[default]
    Modelled,
}

impl fmt::Display for PowerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PowerSource::Measured => "measured",
            PowerSource::Published => "published",
            PowerSource::Modelled => "modelled",
        })
    }
}

impl Power {
    /// Energy of an inference in joules.
    pub fn energy_j(&self, makespan_ns: u64, cpu_busy_ns: u64, gpu_busy_ns: u64) -> f64 {
        (self.idle_w * makespan_ns as f64
            + self.cpu_w * cpu_busy_ns as f64
            + self.gpu_w * gpu_busy_ns as f64)
            / 1e9
    }
}

impl Profile {
    /// Cost of a node on a processor, if it was measured.
    pub fn cost(&self, node: NodeId, device: Device) -> Option<Cost> {
        let costs = self.nodes.get(node.index())?;
        match device {
            Device::Cpu => costs.cpu,
            Device::Gpu => costs.gpu,
        }
    }

    /// Latency of a part of a node. A processor that was not measured is taken to cost as much
    /// as the other: the caller has decided to run it there all the same.
    pub fn part_ns(&self, node: NodeId, device: Device, fraction: f64) -> u64 {
        let other = match device {
            Device::Cpu => Device::Gpu,
            Device::Gpu => Device::Cpu,
        };
        self.cost(node, device)
            .or_else(|| self.cost(node, other))
            .map_or(1_000, |c| c.part_ns(fraction))
    }

    /// Sum of the nodes' latencies on one processor, counting those it cannot run as `None`.
    pub fn total_ns(&self, device: Device) -> Option<u64> {
        self.nodes
            .iter()
            .map(|n| match device {
                Device::Cpu => n.cpu.map(|c| c.latency_ns),
                Device::Gpu => n.gpu.map(|c| c.latency_ns),
            })
            .sum()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.simulated { "simulated" } else { "measured" };
        writeln!(f, "profile ({kind}) on {}", self.machine)?;
        let us = |cost: Option<Cost>| match cost {
            Some(c) => format!("{:.1}", c.latency_ns as f64 / 1e3),
            None => "-".to_owned(),
        };
        for n in &self.nodes {
            writeln!(
                f,
                "  {} ({}): cpu {} us, gpu {} us",
                n.name,
                n.op_type,
                us(n.cpu),
                us(n.gpu)
            )?;
        }
        for (name, link) in [("upload", self.upload), ("download", self.download)] {
            writeln!(
                f,
                "  {name}: {:.1} us + {:.2} GB/s",
                link.latency_ns as f64 / 1e3,
                link.bytes_per_s / 1e9
            )?;
        }
        writeln!(f, "  submit {:.1} us", self.submit_ns as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_pays_the_fixed_share_in_full() {
        let cost = Cost::from_samples(1000, Some((600, 0.5)));
        assert_eq!(cost.fixed_ns, 200);
        assert_eq!(cost.part_ns(0.5), 600);
        assert_eq!(cost.part_ns(1.0), 1000);
        assert_eq!(cost.part_ns(0.0), 200);
        assert_eq!(Cost::from_samples(1000, Some((400, 0.25))), cost);
        assert_eq!(Cost::from_samples(1000, Some((100, 0.25))).fixed_ns, 0);
        // A half that is dearer than the whole cannot make a part dearer than the whole.
        assert_eq!(Cost::from_samples(1000, Some((2000, 0.5))).part_ns(0.3), 1000);
    }

    #[test]
    fn a_broken_link_does_not_divide_by_zero() {
        assert_eq!(Link { latency_ns: 5, bytes_per_s: 0.0 }.copy_ns(1000), 1005);
    }
}
