//! Power sensors among the kernel's hardware monitors: INA3221 (the rails of Jetson boards), amdgpu,
//! Intel's graphics cards, ACPI power meters. Chips that measure who knows what are left out.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Domain, EnergyError, EnergyMethod, EnergyReader, EnergySource, Sample,
    found::{Found, Role},
    number,
};

/// Time between two samples of watts: short against a run that is worth measuring, long against
/// the reading of a sensor behind an I2C bus.
const SAMPLING: Duration = Duration::from_millis(20);

const REMEDY: &str = "run as root, or allow it until the next start of the machine: sudo chmod \
                      a+r /sys/class/hwmon/hwmon*/*_input";

/// Rails that carry all of a Jetson module; the others are parts of them.
const TOTALS: [&str; 2] = ["VDD_IN", "POM_5V_IN"];

/// Fed by VIN_SYS_5V0 (it is measured at 5 V on the AGX Orin): already counted there.
const FED_BY_ANOTHER: &str = "VDDQ_VDD2_1V8AO";

pub(super) fn find(root: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for (_, dir) in number::entries(&root.join("sys/class/hwmon")) {
        let Ok(chip) = number::text(&dir.join("name"), REMEDY) else { continue };
        match chip.as_str() {
            "ina3221" => found.extend(rails(&dir)),
            "amdgpu" => found.extend(amdgpu(&dir)),
            // Energy counters of discrete cards; integrated ones have none.
            "i915" | "xe" => found.extend(counter(&dir, &chip)),
            "power_meter" => found.extend(power(&dir, &chip, Domain::Board, Role::LastResort)),
            _ => {}
        }
    }
    choose_rails(&mut found);
    found
}

/// The channels of an INA3221 that are in use.
fn rails(dir: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for channel in 1..=3 {
        let file = |name: String| dir.join(name);
        let (volts, amps) =
            (file(format!("in{channel}_input")), file(format!("curr{channel}_input")));
        let enabled = number::read(&file(format!("in{channel}_enable")), REMEDY);
        if !volts.exists() || enabled == Ok(0) {
            continue;
        }
        let label = number::text(&file(format!("in{channel}_label")), REMEDY).unwrap_or_default();
        if label == "NC" {
            continue;
        }
        let role = match label.as_str() {
            "" => Role::Never("its rails have no names: what they feed is not known"),
            FED_BY_ANOTHER => Role::Never("fed by VIN_SYS_5V0, which is counted"),
            _ => Role::Whole,
        };
        let label = if label.is_empty() { format!("channel {channel}") } else { label };
        let milliseconds = number::read(&file("update_interval".to_owned()), REMEDY);
        let source = EnergySource {
            name: format!("ina3221 {label}"),
            domain: Domain::Board,
            method: EnergyMethod::Sampled,
            update: milliseconds.map_or(SAMPLING, Duration::from_millis).max(SAMPLING),
            read_every: Some(SAMPLING),
        };
        found.push(readable(Rail { source, millivolts: volts, milliamperes: amps }, role));
    }
    found
}

/// Where one rail carries everything, the others would count twice.
fn choose_rails(found: &mut [Found]) {
    let total = |f: &Found| TOTALS.iter().any(|t| f.source.name == format!("ina3221 {t}"));
    if !found.iter().any(|f| total(f) && f.reader.is_ok()) {
        return;
    }
    for rail in found.iter_mut().filter(|f| f.role == Role::Whole && !total(f)) {
        rail.role = Role::Never("part of the rail that carries the whole board");
    }
}

/// A card's power; on chips with CPU and GPU in one, which alone have the northbridge's voltage,
/// that of the package.
fn amdgpu(dir: &Path) -> Option<Found> {
    match dir.join("in1_input").exists() {
        true => power(dir, "amdgpu", Domain::Package, Role::PackageAgain),
        false => power(dir, "amdgpu", Domain::Gpu, Role::Part),
    }
}

/// `power1_average` or `power1_input`, whichever the driver has.
fn power(dir: &Path, chip: &str, domain: Domain, role: Role) -> Option<Found> {
    let average = dir.join("power1_average");
    let file = if average.exists() { average } else { dir.join("power1_input") };
    if !file.exists() {
        return None;
    }
    let interval = number::read(&dir.join("power1_average_interval"), REMEDY);
    let source = EnergySource {
        name: named(chip, dir),
        domain,
        method: EnergyMethod::Sampled,
        // Firmware averages over about so long where nothing says otherwise.
        update: interval.map_or(Duration::from_millis(100), Duration::from_millis).max(SAMPLING),
        read_every: Some(SAMPLING),
    };
    Some(readable(Power { source, microwatts: file }, role))
}

fn counter(dir: &Path, chip: &str) -> Option<Found> {
    let file = dir.join("energy1_input");
    if !file.exists() {
        return None;
    }
    let source = EnergySource {
        name: named(chip, dir),
        domain: Domain::Gpu,
        method: EnergyMethod::Counter,
        update: Duration::from_millis(1),
        // The driver counts in 64 bits, and over its register's end if it is read in time.
        read_every: Some(Duration::from_secs(10)),
    };
    Some(readable(Energy { source, microjoules: file }, Role::Part))
}

/// Chip and monitor: a machine may have several cards.
fn named(chip: &str, dir: &Path) -> String {
    let monitor = dir.file_name().unwrap_or_default().to_string_lossy();
    format!("{chip} {monitor}")
}

/// A sensor that has been read once, or why it cannot be.
fn readable(mut reader: impl EnergyReader + 'static, role: Role) -> Found {
    let source = reader.source().clone();
    let reader = reader.read().map(|_| Box::new(reader) as Box<dyn EnergyReader>);
    Found::new(source, reader, role)
}

struct Rail {
    source: EnergySource,
    millivolts: PathBuf,
    milliamperes: PathBuf,
}

impl EnergyReader for Rail {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        let millivolts = number::read(&self.millivolts, REMEDY)? as f64;
        let milliamperes = number::read(&self.milliamperes, REMEDY)? as f64;
        Ok(Sample::Watts(millivolts * milliamperes / 1e6))
    }
}

struct Power {
    source: EnergySource,
    microwatts: PathBuf,
}

impl EnergyReader for Power {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        Ok(Sample::Watts(number::read(&self.microwatts, REMEDY)? as f64 / 1e6))
    }
}

struct Energy {
    source: EnergySource,
    microjoules: PathBuf,
}

impl EnergyReader for Energy {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        Ok(Sample::Joules(number::read(&self.microjoules, REMEDY)? as f64 / 1e6))
    }
}
