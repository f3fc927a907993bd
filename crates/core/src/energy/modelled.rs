//! Watts of a machine that has no sensor: those of its board's profile, or assumptions by the class
//! of its processors.

use std::path::Path;

use super::number;
use crate::{
    backend::DeviceInfo,
    profile::{DeviceProfile, Power, PowerSource, profile_of_board},
};

/// Watts and what they rest on.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelledPower {
    /// The watts; their source is [`PowerSource::Modelled`].
    pub power: Power,
    /// In words.
    pub basis: String,
}

/// A class of CPUs: how it is told, its watts at rest with all of its machine, and per busy core.
struct CpuClass {
    name: &'static str,
    words: &'static [&'static str],
    idle_w: f64,
    core_w: f64,
}

/// The first class whose words a CPU's name holds; the last takes all.
const CPUS: [CpuClass; 4] = [
    // EPYC 9654: 360 W / 96 cores; Xeon 8480+: 350 W / 56. Boards, fans and memory at rest.
    CpuClass { name: "server", words: &["EPYC", "Xeon", "Neoverse"], idle_w: 60.0, core_w: 5.0 },
    // M1 to M3: about 20 W / 4 performance cores.
    CpuClass { name: "Apple", words: &["Apple"], idle_w: 5.0, core_w: 5.0 },
    // Core i5-13400: 65 to 148 W / 6 performance cores; Ryzen 7 7840HS: 54 W / 8.
    CpuClass { name: "PC", words: &["Intel", "AMD", "x86"], idle_w: 15.0, core_w: 8.0 },
    // Cortex-A76 and A78AE at 2 GHz: 7 to 8 W / 4, 22 W / 12; boards of 3 to 9 W at rest.
    CpuClass { name: "Arm board", words: &[], idle_w: 4.0, core_w: 2.0 },
];

/// The class of a GPU, its watts at rest, and what it adds while it computes.
fn gpu_class(gpu: &DeviceInfo) -> (&'static str, f64, f64) {
    const DATA_CENTRE: [&str; 7] = ["A100", "H100", "H200", "B200", "L40", "V100", "Instinct"];
    match gpu {
        // Boards of 300 to 700 W; an H100 draws about 75 W at rest.
        g if DATA_CENTRE.iter().any(|name| g.name.contains(name)) => ("data-centre", 70.0, 350.0),
        // Radeon 780M: about 30 W of a 54 W package; Orin: 12 to 30 W. At rest it is the package's.
        g if g.unified_memory => ("integrated", 0.0, 15.0),
        // GeForce RTX 4060: 115 W board power, 15 W of it at rest.
        _ => ("discrete", 15.0, 100.0),
    }
}

/// Watts by this machine's profile or class. `cpu.threads` threads compute.
pub fn modelled_power(root: &Path, cpu: &DeviceInfo, gpu: Option<&DeviceInfo>) -> ModelledPower {
    let threads = cpu.threads.unwrap_or(1) as f64;
    let names = ["proc/device-tree/model", "sys/class/dmi/id/product_name"];
    let told = names.iter().filter_map(|file| number::text(&root.join(file), "").ok());
    let profile = told.chain([cpu.name.clone()]).find_map(|name| profile_of_board(&name));
    if let Some(board) = profile.and_then(|name| DeviceProfile::find(name).ok()) {
        let used = (threads / board.cpu.cores.value).min(1.0);
        let cpu_w = board.cpu.power_w.value * used;
        let power = Power {
            idle_w: board.idle_w.value,
            cpu_w,
            gpu_w: if gpu.is_some_and(|g| g.software) { cpu_w } else { board.gpu.power_w.value },
            source: PowerSource::Modelled,
        };
        let basis = format!("modelled: watts of the device profile {}", board.name);
        return ModelledPower { power, basis };
    }
    let holds = |class: &&CpuClass| class.words.iter().any(|w| cpu.name.contains(w));
    let class = CPUS.iter().find(holds).unwrap_or(&CPUS[CPUS.len() - 1]);
    let mut power = Power {
        idle_w: class.idle_w,
        cpu_w: class.core_w * threads,
        gpu_w: 0.0,
        source: PowerSource::Modelled,
    };
    let mut basis = format!(
        "modelled: assumed {} W at rest and {} W for each of {threads} {} cores",
        class.idle_w, class.core_w, class.name
    );
    match gpu {
        None => {}
        Some(gpu) if gpu.software => {
            power.gpu_w = power.cpu_w;
            basis.push_str(", as much again while the emulated GPU computes");
        }
        Some(gpu) => {
            let (name, rest, busy) = gpu_class(gpu);
            power.idle_w += rest;
            power.gpu_w = busy;
            basis.push_str(&format!(", {rest} W and {busy} W for a {name} GPU"));
        }
    }
    ModelledPower { power, basis }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::backend::Device;

    fn device(device: Device, name: &str, threads: usize) -> DeviceInfo {
        DeviceInfo {
            device,
            name: name.to_owned(),
            driver: String::new(),
            software: false,
            unified_memory: device == Device::Cpu,
            threads: Some(threads),
            memory_bytes: None,
            features: Vec::new(),
        }
    }

    #[test]
    fn a_board_with_a_profile_has_its_watts() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/device-tree")).unwrap();
        let model = root.path().join("proc/device-tree/model");
        fs::write(model, "NVIDIA Jetson Orin Nano Developer Kit\0").unwrap();
        let cpu = device(Device::Cpu, "ARMv8 Processor rev 1 (v8l)", 3);
        let gpu = device(Device::Gpu, "NVIDIA Tegra Orin (nvgpu)", 0);
        let m = modelled_power(root.path(), &cpu, Some(&gpu));
        assert!(m.basis.contains("jetson-orin-nano"), "{}", m.basis);
        assert_eq!((m.power.idle_w, m.power.cpu_w, m.power.gpu_w), (5.0, 3.5, 12.0));
        assert_eq!(m.power.source, PowerSource::Modelled);
    }

    #[test]
    fn others_are_assumed_by_class_and_say_so() {
        let root = tempfile::tempdir().unwrap();
        let of = |cpu: &str, gpu: Option<&DeviceInfo>| {
            modelled_power(root.path(), &device(Device::Cpu, cpu, 4), gpu)
        };
        let server = of("Intel(R) Xeon(R) Processor", None);
        assert_eq!(
            (server.power.idle_w, server.power.cpu_w, server.power.gpu_w),
            (60.0, 20.0, 0.0)
        );
        assert!(server.basis.starts_with("modelled: assumed"), "{}", server.basis);
        assert_eq!(of("Cortex-A72", None).power.cpu_w, 8.0);
        let card = device(Device::Gpu, "AMD Radeon RX 7600 (RADV NAVI33)", 0);
        let pc = of("AMD Ryzen 5 5600X", Some(&card)).power;
        assert_eq!((pc.idle_w, pc.gpu_w), (30.0, 100.0));
        let software = DeviceInfo { software: true, unified_memory: true, ..card };
        assert_eq!(of("AMD Ryzen 5 5600X", Some(&software)).power.gpu_w, 32.0);
    }
}
