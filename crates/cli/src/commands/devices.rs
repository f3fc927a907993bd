//! `sparoa devices`.

use serde::Serialize;
use sparoa::{
    DeviceInfo, DeviceProfile, ModelledPower, Pool, Roofline, SensorInfo, measure_roofline,
    modelled_power, peaks, system_root,
};

use crate::{
    args::DevicesArgs,
    environment::Environment,
    error::CliResult,
    output::Output,
    sessions::{Machine, session_error},
    table::{Table, scaled},
};

#[derive(Serialize)]
struct Document {
    devices: Vec<DeviceInfo>,
    gpu_unavailable: Option<String>,
    /// Energy sensors, used or not.
    energy_sensors: Vec<SensorInfo>,
    /// What energies are modelled from where no sensor can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    energy_modelled: Option<String>,
    /// Names for `--target`.
    profiles: Vec<&'static str>,
    environment: Environment,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
}

/// The roofline of this machine.
#[derive(Serialize)]
struct Measured {
    /// Threads of the CPU that all its figures are of.
    threads: usize,
    cpu_peak_flops_per_s: f64,
    cpu_bf16_peak_flops_per_s: Option<f64>,
    /// Sequential reads of so many bytes in all.
    cpu_read: Vec<ReadRate>,
    #[serde(flatten)]
    roofline: Roofline,
}

#[derive(Serialize)]
struct ReadRate {
    bytes: usize,
    bytes_per_s: f64,
}

/// Sizes that lie in the first, second and third-level caches and in memory.
const READ: [usize; 4] = [16 << 10, 256 << 10, 4 << 20, 256 << 20];

impl Measured {
    fn new(machine: &Machine) -> CliResult<Measured> {
        let pool: &Pool = &machine.pool;
        let threads = pool.threads();
        let read = |bytes_per_thread: usize| {
            let bytes = if bytes_per_thread < READ[2] {
                bytes_per_thread * threads
            } else {
                bytes_per_thread
            };
            ReadRate { bytes, bytes_per_s: peaks::read_bytes_per_s(pool, bytes) }
        };
        Ok(Measured {
            threads,
            cpu_peak_flops_per_s: peaks::pool_fma_peak_flops(pool),
            cpu_bf16_peak_flops_per_s: peaks::bf16_peak_flops().map(|one| one * threads as f64),
            cpu_read: READ.map(read).into(),
            roofline: measure_roofline(machine.gpu.as_deref(), &machine.pool)
                .map_err(session_error)?,
        })
    }

    fn text(&self) -> String {
        let rate = |v: f64| scaled(v, "FLOP/s");
        let bandwidth = |v: f64| scaled(v, "B/s");
        let mut text = format!(
            "\ncpu, {} threads: multiply-add peak {}",
            self.threads,
            rate(self.cpu_peak_flops_per_s)
        );
        if let Some(bf16) = self.cpu_bf16_peak_flops_per_s {
            text.push_str(&format!(", bf16 {} (one thread's, times threads)", rate(bf16)));
        }
        text.push('\n');
        for read in &self.cpu_read {
            let (bytes, rate) = (scaled(read.bytes as f64, "B"), bandwidth(read.bytes_per_s));
            text.push_str(&format!("cpu, reading {bytes}: {rate}\n"));
        }
        for a in &self.roofline.attained {
            text.push_str(&format!(
                "{}, attained: {} (matrix product), {} (elementwise); arithmetic bounds above {:.1} \
                 FLOP/byte\n",
                a.device,
                rate(a.flops_per_s),
                bandwidth(a.bytes_per_s),
                a.ridge_intensity()
            ));
        }
        for (name, link) in
            [("to the gpu", &self.roofline.upload), ("from the gpu", &self.roofline.download)]
        {
            if let Some(link) = link {
                text.push_str(&format!(
                    "copies {name}: {:.1} us + {}\n",
                    link.latency_ns as f64 * 1e-3,
                    bandwidth(link.bytes_per_s)
                ));
            }
        }
        text
    }
}

fn modelled(machine: &Machine) -> String {
    let gpu = machine.gpu.as_ref().map(|gpu| gpu.info());
    let ModelledPower { basis, .. } = modelled_power(&system_root(), &machine.cpu, gpu);
    basis
}

impl Document {
    fn energy_text(&self) -> String {
        let mut text = String::from("\n");
        if !self.energy_sensors.is_empty() {
            let mut table = Table::new(&["energy sensor", "covers", "kind", "used"]);
            for s in &self.energy_sensors {
                let used = match &s.reason {
                    None => "yes".to_owned(),
                    Some(reason) => format!("no: {reason}"),
                };
                table.row([s.name.clone(), s.domain.to_string(), s.method.to_string(), used]);
            }
            text.push_str(&table.render());
        }
        if let Some(basis) = &self.energy_modelled {
            text.push_str(&format!("no energy sensor can be read; energies are {basis}\n"));
        }
        text
    }
}

/// Lists processors.
///
/// # Errors
/// Device errors, where a processor was asked for that is absent.
pub fn run(args: &DevicesArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device, false)?;
    let document = Document {
        environment: Environment::read(&machine),
        devices: machine.devices(),
        gpu_unavailable: machine.gpu_unavailable.clone(),
        energy_sensors: machine.meter().sensors().to_vec(),
        energy_modelled: machine.meter().is_empty().then(|| modelled(&machine)),
        profiles: DeviceProfile::names(),
        measured: args.measure.then(|| Measured::new(&machine)).transpose()?,
    };
    out.print(&document, || {
        let mut table = Table::new(&["device", "name", "driver", "memory", "features"]);
        for d in &document.devices {
            let mut features = d.features.clone();
            features.extend(d.threads.map(|t| format!("{t} threads")));
            if d.software {
                features.push("software (emulated on the CPU)".to_owned());
            }
            if d.unified_memory {
                features.push("shares the CPU's memory".to_owned());
            }
            table.row([
                d.device.to_string(),
                d.name.clone(),
                d.driver.clone(),
                d.memory_bytes.map_or("-".to_owned(), |b| scaled(b as f64, "B")),
                features.join(", "),
            ]);
        }
        let mut text = table.render();
        if let Some(why) = &document.gpu_unavailable {
            text.push_str(&format!("gpu     {why}\n"));
        }
        text.push_str(&document.energy_text());
        if let Some(measured) = &document.measured {
            text.push_str(&measured.text());
        }
        text.push_str(&format!(
            "\ndevice profiles for --target: {}\n",
            document.profiles.join(", ")
        ));
        text
    })
}
