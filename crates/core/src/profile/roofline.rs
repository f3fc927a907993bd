//! Costs estimated from attained rates, for processors that are not in this machine: the roofline
//! model (Williams, Waterman, Patterson 2009), with what keeps small kernels off the roof.

use serde::{Deserialize, Serialize};

use super::{Contention, Cost, Link, NodeCosts, Power, Profile, workload::Workload};

/// A processor as the roofline sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceModel {
    /// Its name.
    pub name: String,
    /// Operations per second that large kernels attain, by [`KernelClass`](crate::ops::KernelClass) (the
    /// last one is not used: memory decides).
    pub flops_per_s: [f64; 4],
    /// Memory bytes per second that kernels attain.
    pub bytes_per_s: f64,
    /// The same for operands that the last cache holds.
    pub cache_bytes_per_s: f64,
    /// Bytes that the last cache holds.
    pub cache_bytes: f64,
    /// Start of one kernel.
    pub launch_ns: f64,
    /// What every product takes beyond its arithmetic, in nanoseconds, by class: small
    /// ones do not fill the processor.
    pub fill_ns: [f64; 4],
    /// Rate per multiply-add with a non-zero weight of kernels that skip zeros, over the dense
    /// kernels' rate; 0 where there are none.
    pub sparse_efficiency: f64,
}

/// What a product takes that skips zeros of its input, over what it takes dense: this, and that for
/// each element that is not zero. Fitted to measured times between 50 and 90 % zeros
/// (docs/activation-sparsity.md); the kernel decides by itself, so that it never takes longer.
const SKIPPING: [f64; 2] = [0.27, 1.15];

impl DeviceModel {
    /// Estimated cost of an operator in `kernels` launches that move `bytes`: launching, plus
    /// whichever of arithmetic and memory takes longer. This share of the weights is zeros; they
    /// count where skipping them pays, and so do the input's where the dense kernel runs.
    pub fn cost(&self, work: &Workload, kernels: u32, bytes: f64, sparsity: f64) -> Cost {
        let launch = self.launch_ns * f64::from(kernels.max(1));
        let skips = if self.sparse_efficiency > 0.0 { work.skipped } else { 0.0 };
        let factor = SKIPPING[0] + SKIPPING[1] * (1.0 - skips);
        let dense = self.body_ns(work, factor.min(1.0), bytes);
        let mut body = dense;
        if self.sparse_efficiency > 0.0 && sparsity > 0.0 && work.weight_bytes > 0.0 {
            let kept = 1.0 - sparsity.min(1.0);
            // A non-zero takes an index beside its value: six bytes instead of four.
            let weights = (work.weight_bytes * kept * 1.5).min(work.weight_bytes);
            let sparse = self.body_ns(
                work,
                kept / self.sparse_efficiency,
                bytes - work.weight_bytes + weights,
            );
            if sparse.0 + sparse.1 < dense.0 + dense.1 {
                body = sparse;
            }
        }
        let fixed = launch + body.0;
        Cost { latency_ns: (fixed + body.1).round() as u64, fixed_ns: fixed.round() as u64 }
    }

    /// What the kernels pay whatever their size, and the rest, in nanoseconds.
    fn body_ns(&self, work: &Workload, flops_factor: f64, bytes: f64) -> (f64, f64) {
        let in_cache = bytes <= 0.5 * self.cache_bytes;
        let rate = if in_cache { self.cache_bytes_per_s } else { self.bytes_per_s };
        let memory = bytes / rate.max(1.0) * 1e9;
        let (mut fill, mut arithmetic) = (0.0, 0.0);
        for &(class, flops) in &work.products {
            fill += self.fill_ns[class as usize];
            arithmetic += flops * flops_factor / self.flops_per_s[class as usize].max(1.0) * 1e9;
        }
        // What fills the processor fills its memory queues as well.
        (fill, arithmetic.max(memory - fill).max(0.0))
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
    /// Whether both processors use the same memory.
    pub shared_memory: bool,
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
    /// The machine with an engine whose GPU kernels take `factor` times as long.
    #[must_use]
    pub fn with_gpu_time_factor(mut self, factor: f64) -> MachineModel {
        let gpu = &mut self.gpu;
        for rate in &mut gpu.flops_per_s {
            *rate /= factor;
        }
        for ns in &mut gpu.fill_ns {
            *ns *= factor;
        }
        gpu.bytes_per_s /= factor;
        gpu.cache_bytes_per_s /= factor;
        gpu.launch_ns *= factor;
        self
    }

    /// An operator on the CPU, with this share of zeros among its weights.
    pub fn cpu_cost(&self, work: &Workload, sparsity: f64) -> Cost {
        self.cpu.cost(work, 1, work.bytes, sparsity)
    }

    /// An operator on the GPU, where what lies between its kernels is written and read.
    pub fn gpu_cost(&self, work: &Workload) -> Cost {
        let bytes = work.bytes + 2.0 * work.between_bytes;
        self.gpu.cost(work, work.kernels, bytes, work.sparsity)
    }

    /// The estimated profile of a graph's operators; `gpu_runs` says of each, by index, whether
    /// the GPU has a kernel for it.
    pub fn profile(&self, work: &[Workload], gpu_runs: &[bool]) -> Profile {
        let mut profile = Profile {
            simulated: true,
            machine: self.name.clone(),
            nodes: work
                .iter()
                .map(|w| NodeCosts {
                    name: w.name.clone(),
                    op_type: w.op_type.clone(),
                    ..NodeCosts::default()
                })
                .collect(),
            ..Profile::default()
        };
        self.profile_into(work, gpu_runs, &mut profile);
        profile
    }

    /// [`MachineModel::profile`] into a profile of the same operators, keeping their names.
    pub fn profile_into(&self, work: &[Workload], gpu_runs: &[bool], profile: &mut Profile) {
        for (i, (w, costs)) in work.iter().zip(&mut profile.nodes).enumerate() {
            let runs = gpu_runs.get(i).copied().unwrap_or(false);
            let free = Some(Cost::default());
            costs.cpu = if w.view { free } else { Some(self.cpu_cost(w, w.sparsity)) };
            costs.gpu = match (runs, w.view) {
                (false, _) => None,
                (true, true) => free,
                (true, false) => Some(self.gpu_cost(w)),
            };
        }
        profile.upload = self.upload;
        profile.download = self.download;
        profile.submit_ns = self.submit_ns;
        profile.handoff_ns = self.handoff_ns;
        profile.contention = self.contention;
        profile.power = self.power;
        profile.sparse_efficiency = self.cpu.sparse_efficiency;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::KernelClass;

    fn device() -> DeviceModel {
        DeviceModel {
            name: "d".into(),
            flops_per_s: [1e9; 4],
            bytes_per_s: 1e9,
            cache_bytes_per_s: 4e9,
            cache_bytes: 2000.0,
            launch_ns: 100.0,
            fill_ns: [0.0; 4],
            sparse_efficiency: 0.0,
        }
    }

    fn cost(d: &DeviceModel, flops: f64, bytes: f64, kernels: u32) -> Cost {
        let products = vec![(KernelClass::Matmul, flops)];
        d.cost(&Workload { products, ..Workload::default() }, kernels, bytes, 0.0)
    }

    #[test]
    fn the_slower_of_arithmetic_and_memory_decides() {
        let d = device();
        assert_eq!(cost(&d, 2000.0, 10.0, 1).latency_ns, 2100);
        assert_eq!(cost(&d, 10.0, 3000.0, 1).latency_ns, 3100);
        assert_eq!(cost(&d, 2000.0, 10.0, 1).part_ns(0.5), 1100);
        // What the cache holds comes faster; three kernels are launched thrice.
        assert_eq!(cost(&d, 10.0, 1000.0, 3).latency_ns, 550);
    }

    #[test]
    fn small_kernels_stay_off_the_roof() {
        let d = DeviceModel { fill_ns: [1000.0; 4], ..device() };
        let cost = cost(&d, 1000.0, 1.0, 1);
        assert_eq!((cost.latency_ns, cost.fixed_ns), (100 + 2000, 100 + 1000));
    }

    #[test]
    fn zeros_count_where_skipping_pays() {
        let d = DeviceModel { sparse_efficiency: 0.5, ..device() };
        let products = vec![(KernelClass::Matmul, 10_000.0)];
        let w = Workload { products, weight_bytes: 800.0, ..Workload::default() };
        let at = |d: &DeviceModel, sparsity| d.cost(&w, 1, 1000.0, sparsity).latency_ns;
        assert_eq!(at(&d, 0.0), 10_100);
        assert_eq!(at(&d, 0.4), 10_100, "below the crossover the dense kernel runs");
        assert_eq!(at(&d, 0.9), 100 + 2_000);
        assert_eq!(at(&device(), 0.9), 10_100, "no such kernel");
    }

    #[test]
    fn zeros_of_the_input_count_where_the_dense_kernel_skips_them() {
        let d = DeviceModel { sparse_efficiency: 0.5, ..device() };
        let at = |d: &DeviceModel, skipped, sparsity| {
            let products = vec![(KernelClass::Matmul, 10_000.0)];
            let w = Workload { products, weight_bytes: 800.0, skipped, ..Workload::default() };
            d.cost(&w, 1, 1000.0, sparsity).latency_ns
        };
        assert_eq!(at(&d, 0.3, 0.0), 10_100, "few zeros: the kernel does not try");
        assert_eq!(at(&d, 0.8, 0.0), 100 + 5_000);
        assert_eq!(at(&d, 0.8, 0.9), 100 + 2_000, "zeros among the weights save more");
        assert_eq!(at(&d, 0.8, 0.6), 100 + 5_000, "and less here");
        assert_eq!(at(&device(), 0.8, 0.0), 10_100, "no such kernel");
    }
}
