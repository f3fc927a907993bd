//! The machine's sensors: what others use of it, clocks, temperatures, memory. Read from `/proc`
//! and `/sys`, cheaply enough to be asked ten times a second; where a system has neither, all of
//! it is unavailable.

mod watched;
mod cores;
mod cpu;
mod container;
mod memory;
mod thermal;
mod gpu;

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use cores::Clocks;
use cpu::{OthersTime, Pressure, RunQueue};
use gpu::SysfsGpu;
use memory::Memory;
use thermal::{Temperature, Throttle};

pub use container::ContainerLimits;
pub use cores::{allowed_cores, parse_list};
pub use gpu::{GpuReadings, GpuSensors};
pub use memory::field as meminfo_field;

/// What the machine's sensors say at one moment. `None` is a sensor that is not there or cannot be
/// read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Share of the time of the cores that this process may use which other processes, interrupts
    /// and other guests of the host took since the last sample, 0 to 1.
    pub cpu_busy: Option<f64>,
    /// Of the time that this process's threads wanted to run since the last sample, the share they
    /// waited for a core; `None` when they hardly wanted to.
    pub cpu_wait: Option<f64>,
    /// Share of the last ten seconds in which some process waited for a core.
    pub cpu_pressure: Option<f64>,
    /// Current over highest frequency of the cores that this process may use.
    pub cpu_clock: Option<f64>,
    /// The CPU's hottest sensor, in degrees Celsius.
    pub cpu_temperature_c: Option<f64>,
    /// Share of the time in which something ran on the GPU, our own work included, 0 to 1.
    pub gpu_busy: Option<f64>,
    /// The GPU's current clock over its highest.
    pub gpu_clock: Option<f64>,
    /// The GPU's temperature, in degrees Celsius.
    pub gpu_temperature_c: Option<f64>,
    /// Memory that this process can still take without swapping, within its container's limit.
    pub memory_available_bytes: Option<u64>,
    /// Memory of the machine, or the container's limit.
    pub memory_total_bytes: Option<u64>,
    /// Share of the last ten seconds in which some process waited for memory.
    pub memory_pressure: Option<f64>,
    /// Whether heat or power slows a processor, or has since the last sample.
    pub throttled: Option<bool>,
}

/// The sensors of this machine, found once and read for every sample.
pub struct Monitor {
    others: OthersTime,
    queue: RunQueue,
    cpu_pressure: Pressure,
    clocks: Clocks,
    temperature: Temperature,
    memory: Memory,
    memory_pressure: Pressure,
    throttle: Throttle,
    sysfs_gpu: Option<SysfsGpu>,
    gpu: Option<Box<dyn GpuSensors>>,
}

impl Monitor {
    /// The sensors of this machine and the cores that this process may use now. What is counted
    /// between samples is counted from here on.
    pub fn new() -> Monitor {
        Monitor::at(Path::new("/"))
    }

    /// The sensors of the tree below a folder that holds `proc` and `sys`.
    pub fn at(root: &Path) -> Monitor {
        let cores = allowed_cores(root).unwrap_or_default();
        Monitor {
            others: OthersTime::find(root, &cores),
            queue: RunQueue::find(root),
            cpu_pressure: Pressure::find(root, "cpu"),
            clocks: Clocks::find(root, &cores),
            temperature: Temperature::of_cpu(root),
            memory: Memory::find(root),
            memory_pressure: Pressure::find(root, "memory"),
            throttle: Throttle::find(root, &cores),
            sysfs_gpu: SysfsGpu::find(root),
            gpu: None,
        }
    }

    /// Reads the GPU through these sensors instead of `/sys`. Only on a chip that holds the GPU,
    /// which is then the same one, `/sys` still tells what they do not.
    #[must_use]
    pub fn with_gpu(mut self, sensors: Box<dyn GpuSensors>) -> Monitor {
        self.gpu = Some(sensors);
        self
    }

    /// Reads all sensors.
    pub fn sample(&mut self) -> Snapshot {
        let gpu = self.gpu_readings();
        let (memory_available_bytes, memory_total_bytes) = self.memory.sample();
        Snapshot {
            cpu_busy: self.others.sample(),
            cpu_wait: self.queue.sample(),
            cpu_pressure: self.cpu_pressure.sample(),
            cpu_clock: self.clocks.sample(),
            cpu_temperature_c: self.temperature.sample(),
            gpu_busy: gpu.busy,
            gpu_clock: gpu.clock,
            gpu_temperature_c: gpu.temperature_c,
            memory_available_bytes,
            memory_total_bytes,
            memory_pressure: self.memory_pressure.sample(),
            throttled: either(self.throttle.sample(), gpu.throttled),
        }
    }

    fn gpu_readings(&mut self) -> GpuReadings {
        let Some(sensors) = &mut self.gpu else {
            return self.sysfs_gpu.as_mut().map(SysfsGpu::read).unwrap_or_default();
        };
        let given = sensors.read();
        let Some(chip) = self.sysfs_gpu.as_mut().filter(|gpu| gpu.soc) else { return given };
        let chip = chip.read();
        GpuReadings {
            busy: given.busy.or(chip.busy),
            clock: given.clock.or(chip.clock),
            temperature_c: given.temperature_c.or(chip.temperature_c),
            throttled: either(given.throttled, chip.throttled),
        }
    }
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor::new()
    }
}

/// Whether one of two indications says so, of those that are there.
fn either(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    a.into_iter().chain(b).reduce(|a, b| a || b)
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |value: Option<String>| value.unwrap_or_else(|| "unavailable".to_owned());
        let share = |value: Option<f64>| word(value.map(|v| format!("{:.0} %", v * 100.0)));
        let celsius = |value: Option<f64>| word(value.map(|v| format!("{v:.0} C")));
        let gib = |value: Option<u64>| {
            word(value.map(|v| format!("{:.1} GiB", v as f64 / f64::from(1 << 30))))
        };
        write!(
            f,
            "cpu: others {}, waiting {}, pressure {}, clock {}, {}; gpu: busy {}, clock {}, {}; \
             memory: {} of {}, pressure {}; throttled: {}",
            share(self.cpu_busy),
            share(self.cpu_wait),
            share(self.cpu_pressure),
            share(self.cpu_clock),
            celsius(self.cpu_temperature_c),
            share(self.gpu_busy),
            share(self.gpu_clock),
            celsius(self.gpu_temperature_c),
            gib(self.memory_available_bytes),
            gib(self.memory_total_bytes),
            share(self.memory_pressure),
            word(self.throttled.map(|t| if t { "yes" } else { "no" }.to_owned())),
        )
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
