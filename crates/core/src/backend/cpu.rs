//! The CPU as a device: its name and abilities. Its kernels are the operators' own.

use super::{Device, DeviceInfo};
use sparoa_kernels::isa::{self, Isa};

/// What the CPU is, with `threads` worker threads.
pub fn cpu_info(threads: usize) -> DeviceInfo {
    DeviceInfo {
        device: Device::Cpu,
        name: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        driver: isa::best().name().to_owned(),
        software: false,
        unified_memory: true,
        threads: Some(threads),
        memory_bytes: memory_bytes(),
        features: Isa::available().map(|isa| isa.name().to_owned()).collect(),
    }
}

/// Hardware threads that this process may use.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(k, _)| k.trim() == key)
            .map(|(_, v)| v.trim().to_owned())
    };
    field("model name").or_else(|| field("Model")).or_else(|| field("Hardware"))
}

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
