//! The machine a measurement was taken on, recorded in every bench.

use std::fs;

use serde::Serialize;
use sparoa::DeviceInfo;

/// What can move a measurement; `None` where the system does not tell.
#[derive(Debug, Serialize)]
pub struct Environment {
    /// Version of SparOA.
    pub sparoa: &'static str,
    /// Operating system and architecture.
    pub os: String,
    /// Processors used.
    pub devices: Vec<DeviceInfo>,
    /// cpufreq governor of the first core.
    pub governor: Option<String>,
    /// Cores of CPU time allowed by the container, if limited.
    pub cgroup_cpus: Option<f64>,
    /// Runnable processes per core over the last minute, before the measurement.
    pub load_per_core: Option<f64>,
    /// Threads of Mesa's software rasteriser, if limited.
    pub lp_num_threads: Option<String>,
}

impl Environment {
    /// Reads the machine's state now.
    pub fn read(devices: Vec<DeviceInfo>) -> Environment {
        let load = fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok());
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Environment {
            sparoa: env!("CARGO_PKG_VERSION"),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            devices,
            governor: read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            cgroup_cpus: read_line("/sys/fs/cgroup/cpu.max").as_deref().and_then(cgroup_cpus),
            load_per_core: load.map(|l| l / cores),
            lp_num_threads: std::env::var("LP_NUM_THREADS").ok(),
        }
    }
}

fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

/// `200000 100000` is two cores; `max 100000` is no limit.
fn cgroup_cpus(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

/// Highest resident set of this process so far, in bytes; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_limits_parse() {
        assert_eq!(cgroup_cpus("150000 100000"), Some(1.5));
        assert_eq!(cgroup_cpus("max 100000"), None);
        assert_eq!(cgroup_cpus("nonsense"), None);
    }
}
