//! What on this machine costs speed or makes measurements noisy: a table of checks, each reading
//! below a root folder.

mod container;
mod cpu;
mod gpu;
mod memory;
mod power;
mod sensors;
mod tree;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde::Serialize;
use sparoa::{DeviceInfo, Monitor, NvmlGpu, SensorInfo, Snapshot, isa};

use crate::sessions::{GpuState, Machine};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Costs some speed, or makes timings noisy.
    Warn,
    /// Costs much speed, or keeps a processor from being used.
    Problem,
    /// Cannot be told here.
    Unavailable,
}

impl Status {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Problem => "problem",
            Status::Unavailable => "unavailable",
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Its name, stable for scripts.
    pub check: &'static str,
    /// How bad it is.
    pub status: Status,
    /// What was read.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// A finding before it has its check's name.
#[derive(Debug, PartialEq)]
struct Verdict {
    status: Status,
    found: String,
    advice: Option<String>,
}

impl Verdict {
    fn ok(found: impl Into<String>) -> Verdict {
        Verdict { status: Status::Ok, found: found.into(), advice: None }
    }

    fn warn(found: impl Into<String>, advice: impl Into<String>) -> Verdict {
        Verdict { status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn problem(found: impl Into<String>, advice: impl Into<String>) -> Verdict {
        Verdict { status: Status::Problem, found: found.into(), advice: Some(advice.into()) }
    }

    fn unavailable(found: impl Into<String>) -> Verdict {
        Verdict { status: Status::Unavailable, found: found.into(), advice: None }
    }

    fn advise(mut self, advice: impl Into<String>) -> Verdict {
        self.advice = Some(advice.into());
        self
    }
}

/// What the checks look at.
struct Subject<'a> {
    /// Holds `proc`, `sys`, `dev`, `etc`, `usr`, `var`.
    root: &'a Path,
    /// Taken while this process kept its threads busy.
    sensors: Snapshot,
    /// Nanoseconds until one thread sees what another wrote, where there are two.
    transfer_ns: Option<f64>,
    gpu: GpuState,
    /// NVML's answer, where the GPU is NVIDIA's: `Err` says why there is none.
    nvml: Option<Result<(), String>>,
    /// Every energy sensor, used or not.
    energy: Vec<SensorInfo>,
    /// CPU threads of the engine.
    threads: usize,
    /// The instruction set in use and the machine's best.
    isa: (isa::Isa, isa::Isa),
    /// The environment variable, if set.
    lp_num_threads: Option<String>,
}

impl Subject<'_> {
    fn gpu_info(&self) -> Option<&DeviceInfo> {
        match &self.gpu {
            GpuState::Open(info) => Some(info),
            GpuState::Failed(_) | GpuState::Unused(_) => None,
        }
    }
}

type Check = fn(&Subject<'_>) -> Verdict;

/// All checks, in the order of the report.
const CHECKS: [(&str, Check); 23] = [
    ("cpu-governor", power::governor),
    ("cpu-clock", power::clock),
    ("cpu-boost", power::boost),
    ("power-mode", power::mode),
    ("power-supply", power::supply),
    ("throttling", power::throttling),
    ("cpu-threads", cpu::threads),
    ("cpu-affinity", cpu::affinity),
    ("cpu-load", cpu::load),
    ("core-distance", cpu::distance),
    ("cpu-isa", cpu::isa_cap),
    ("cpu-features", cpu::features),
    ("virtual-machine", cpu::virtual_machine),
    ("container-cpus", container::cpus),
    ("container-memory", container::memory),
    ("memory", memory::available),
    ("huge-pages", memory::huge_pages),
    ("gpu-driver", gpu::driver),
    ("gpu-access", gpu::access),
    ("gpu-memory", gpu::unified_memory),
    ("software-gpu", gpu::software_threads),
    ("sensors", sensors::monitor),
    ("energy-sensors", sensors::energy),
];

fn findings(subject: &Subject<'_>) -> Vec<Finding> {
    let run = |&(check, f): &(&'static str, Check)| {
        let Verdict { status, found, advice } = f(subject);
        Finding { check, status, found, advice }
    };
    CHECKS.iter().map(run).collect()
}

/// What was found on this machine.
#[derive(Debug)]
pub struct Examination {
    /// One finding per check.
    pub findings: Vec<Finding>,
    /// The sensors while this process kept its threads busy.
    pub sensors: Snapshot,
    /// cpufreq's governor, by name.
    pub governor: Option<String>,
    /// The board's or firmware's power mode, by name.
    pub power_mode: Option<String>,
}

/// How long the threads are kept busy: clocks rise within it, and shares of time can be told.
const SPIN: Duration = Duration::from_millis(100);

/// Runs every check; takes a tenth of a second, in which the CPU threads are busy.
pub fn examine(machine: &Machine) -> Examination {
    let root = Path::new("/");
    let threads = machine.cpu.threads.unwrap_or(1);
    let gpu = machine.gpu_state();
    let mut monitor = Monitor::new();
    let mut nvml = None;
    if let GpuState::Open(info) = &gpu
        && info.name.to_lowercase().contains("nvidia")
    {
        nvml = Some(match NvmlGpu::open(&info.name) {
            Ok(card) => {
                monitor = monitor.with_gpu(Box::new(card));
                Ok(())
            }
            Err(e) => Err(e.to_string()),
        });
    }
    let best = isa::Isa::available().last().unwrap_or(isa::Isa::Scalar);
    let subject = Subject {
        root,
        sensors: sample_busy(&mut monitor, threads),
        transfer_ns: (threads > 1).then(cpu::transfer_ns),
        gpu,
        nvml,
        energy: machine.meter().sensors().to_vec(),
        threads,
        isa: (isa::best(), best),
        lp_num_threads: std::env::var("LP_NUM_THREADS").ok(),
    };
    Examination {
        findings: findings(&subject),
        governor: power::governor_name(root),
        power_mode: power::mode_name(root),
        sensors: subject.sensors,
    }
}

/// A sample of the time in which this many threads spin.
fn sample_busy(monitor: &mut Monitor, threads: usize) -> Snapshot {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        std::thread::sleep(SPIN);
        let snapshot = monitor.sample();
        done.store(true, Ordering::Relaxed);
        snapshot
    })
}

/// The findings of this status.
pub fn of_status(findings: &[Finding], status: Status) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(move |f| f.status == status)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
