//! The machine a measurement was taken on, recorded in every bench.

use std::{fs, path::Path};

use serde::Serialize;
use sparoa::{ContainerLimits, DeviceInfo, Snapshot};

use crate::{
    doctor::{self, Examination, Finding, Status},
    sessions::Machine,
};

/// What can move a measurement; `None` where the system does not tell.
#[derive(Debug, Serialize)]
pub struct Environment {
    /// Version of SparOA.
    pub sparoa: &'static str,
    /// Operating system and architecture.
    pub os: String,
    /// Processors used.
    pub devices: Vec<DeviceInfo>,
    /// cpufreq's governor on the cores used; several, separated by commas, where they differ.
    pub governor: Option<String>,
    /// The board's or firmware's power mode.
    pub power_mode: Option<String>,
    /// The sensors before the measurement, while SparOA's threads were kept busy.
    pub sensors: Snapshot,
    /// Cores of CPU time allowed by the container, if limited.
    pub cgroup_cpus: Option<f64>,
    /// Runnable processes per core over the last minute, before the measurement.
    pub load_per_core: Option<f64>,
    /// Threads of Mesa's software rasteriser, if limited.
    pub lp_num_threads: Option<String>,
    /// Findings of `sparoa doctor` that are not `ok`.
    pub doctor: Vec<Noted>,
}

/// A finding without its advice.
#[derive(Debug, Serialize)]
pub struct Noted {
    /// See [`Finding`].
    pub check: &'static str,
    /// See [`Finding`].
    pub status: Status,
    /// See [`Finding`].
    pub found: String,
}

impl Environment {
    /// Reads the machine's state now; takes a tenth of a second.
    pub fn read(machine: &Machine) -> Environment {
        Environment::of(machine, &doctor::examine(machine))
    }

    /// The state that an examination found.
    pub fn of(machine: &Machine, examination: &Examination) -> Environment {
        let load = fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok());
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let note = |f: &Finding| Noted { check: f.check, status: f.status, found: f.found.clone() };
        let noted = examination.findings.iter().filter(|f| f.status != Status::Ok);
        Environment {
            sparoa: env!("CARGO_PKG_VERSION"),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            devices: machine.devices(),
            governor: examination.governor.clone(),
            power_mode: examination.power_mode.clone(),
            sensors: examination.sensors.clone(),
            cgroup_cpus: ContainerLimits::read(Path::new("/")).cpus,
            load_per_core: load.map(|l| l / cores),
            lp_num_threads: std::env::var("LP_NUM_THREADS").ok(),
            doctor: noted.map(note).collect(),
        }
    }

    /// One line on what costs speed here; empty where nothing does.
    pub fn warning(&self) -> String {
        let costly = |n: &&Noted| matches!(n.status, Status::Warn | Status::Problem);
        let names: Vec<&str> = self.doctor.iter().filter(costly).map(|n| n.check).collect();
        if names.is_empty() {
            return String::new();
        }
        format!(
            "{} of this machine may cost speed or make timings noisy: run `sparoa doctor`\n",
            names.join(", ")
        )
    }
}

/// Highest resident set of this process so far, in bytes; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
