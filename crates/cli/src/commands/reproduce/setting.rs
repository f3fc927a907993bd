//! The engines whose costs are assumed: the same board is another machine under each.

use serde::Serialize;
use sparoa::{DeviceProfile, MachineModel, Precision};

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Setting {
    /// A compiled engine: the profile as it is.
    Compiled,
    /// An eager framework's launches on the GPU.
    Eager,
    /// Kernels as those of a Vulkan engine.
    Vulkan,
}

/// The engine whose published rows tell how much slower Vulkan kernels are.
const VULKAN_ENGINE: &str = "ncnn (Vulkan)";

/// The board that has such rows.
const VULKAN_BOARD: &str = "jetson-agx-orin";

impl Setting {
    /// Every setting; the first is the main one.
    pub const ALL: [Setting; 3] = [Setting::Compiled, Setting::Eager, Setting::Vulkan];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Setting::Compiled => "compiled",
            Setting::Eager => "eager",
            Setting::Vulkan => "vulkan",
        }
    }

    /// What it assumes.
    pub const fn says(self) -> &'static str {
        match self {
            Setting::Compiled => "GPU costs of a compiled engine (TensorRT set the efficiencies)",
            Setting::Eager => {
                "an eager framework's launch costs on the GPU; closest to the paper's setting"
            }
            Setting::Vulkan => "GPU kernels as much slower as published Vulkan rows are",
        }
    }

    /// A board under it, and what had to be assumed about the board.
    pub fn machine(self, board: &DeviceProfile) -> (MachineModel, Option<String>) {
        let compiled = board.machine(Precision::Fp32);
        match self {
            Setting::Compiled => (compiled, None),
            Setting::Eager => (board.eager_machine(Precision::Fp32), None),
            Setting::Vulkan => {
                let (factor, note) = vulkan_factor(board);
                (compiled.with_gpu_time_factor(factor), note)
            }
        }
    }
}

/// How many times as long Vulkan kernels take.
fn vulkan_factor(board: &DeviceProfile) -> (f64, Option<String>) {
    if let Some(own) = board.engine_time_factor.get(VULKAN_ENGINE) {
        return (own.value, None);
    }
    let other = DeviceProfile::find(VULKAN_BOARD).expect("built in");
    let factor = other.engine_time_factor.get(VULKAN_ENGINE).map_or(1.0, |f| f.value);
    let chip = |b: &DeviceProfile| b.gpu.model.split(',').next().map(str::to_owned);
    let why = match chip(board) == chip(&other) {
        true => "the same GPU architecture",
        false => "another GPU, so a guess",
    };
    let name = &board.name;
    (factor, Some(format!("{name}: assumed, the factor {factor} of {VULKAN_BOARD}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_slow_the_gpu_only_and_assumptions_are_said() {
        let nano = DeviceProfile::find("jetson-orin-nano").unwrap();
        let [compiled, eager, vulkan] = Setting::ALL.map(|s| s.machine(&nano));
        assert_eq!(compiled.0.cpu, eager.0.cpu);
        assert_eq!(compiled.0.cpu, vulkan.0.cpu);
        assert!(eager.0.gpu.launch_ns > compiled.0.gpu.launch_ns);
        assert!(vulkan.0.gpu.flops_per_s[0] < compiled.0.gpu.flops_per_s[0]);
        assert!(vulkan.1.unwrap().contains("the same GPU architecture"));
        let orin = DeviceProfile::find("jetson-agx-orin").unwrap();
        assert_eq!(Setting::Vulkan.machine(&orin).1, None);
    }
}
