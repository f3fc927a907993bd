//! RAPL through the kernel's powercap files: Intel's, and AMD's under the same names. Counters of
//! microjoules that start again at `max_energy_range_uj`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Domain, EnergyError, EnergyMethod, EnergyReader, EnergySource, Sample,
    found::{Found, Role},
    number,
};

/// The counters change about once in a millisecond.
const UPDATE: Duration = Duration::from_millis(1);

/// More than any package draws: a counter that is read before so many watts can have filled half
/// of it has started again once at most. The smallest range in use, 2^32 x 15.3 uJ = 65.7 kJ,
/// gives 16 seconds.
const MOST_WATTS: f64 = 2000.0;

const REMEDY: &str = "run as root, or allow it until the next start of the machine: sudo chmod \
                      a+r /sys/class/powercap/intel-rapl:*/energy_uj \
                      /sys/class/powercap/intel-rapl:*/intel-rapl:*/energy_uj";

/// Packages, their memory, and the platform. Other subzones (core, uncore) are parts of their
/// package, and `intel-rapl-mmio` shows the same packages once more: neither is listed.
pub(super) fn find(root: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for (zone, dir) in number::entries(&root.join("sys/class/powercap")) {
        let Some(ids) = zone.strip_prefix("intel-rapl:") else { continue };
        let name = match number::text(&dir.join("name"), REMEDY) {
            Ok(name) => name,
            Err(e) => {
                let source = source(zone, Domain::Package, None);
                found.push(Found::new(source, Err(e), Role::Part));
                continue;
            }
        };
        let (name, domain, role) = match (ids.split_once(':'), name.as_str()) {
            (None, "psys") => (name, Domain::Board, Role::LastResort),
            (None, package) if package.starts_with("package") => {
                (name, Domain::Package, Role::Part)
            }
            (Some((package, _)), "dram") => (format!("dram {package}"), Domain::Dram, Role::Part),
            _ => continue,
        };
        // Without a range the counter is good until it falls.
        let range_uj = number::read(&dir.join("max_energy_range_uj"), REMEDY).ok();
        let source = source(name, domain, range_uj);
        let mut reader = Counter {
            source: source.clone(),
            file: dir.join("energy_uj"),
            range_uj,
            last_uj: None,
            total_uj: 0,
        };
        let reader = reader.read().map(|_| Box::new(reader) as Box<dyn EnergyReader>);
        found.push(Found::new(source, reader, role));
    }
    found
}

fn source(name: String, domain: Domain, range_uj: Option<u64>) -> EnergySource {
    let fills = range_uj.map(|uj| Duration::from_secs_f64(uj as f64 / 1e6 / MOST_WATTS / 2.0));
    EnergySource {
        name: format!("rapl {name}"),
        domain,
        method: EnergyMethod::Counter,
        update: UPDATE,
        // A range that is too small to be one must not make the meter spin.
        read_every: fills.map(|d| d.max(Duration::from_millis(100))),
    }
}

/// A file of microjoules. Counts on where it starts again.
struct Counter {
    source: EnergySource,
    file: PathBuf,
    range_uj: Option<u64>,
    last_uj: Option<u64>,
    total_uj: u64,
}

impl EnergyReader for Counter {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        let now = number::read(&self.file, REMEDY)?;
        let last = self.last_uj.unwrap_or(now);
        let step = match self.range_uj {
            _ if now >= last => now - last,
            Some(range) if range >= last => range - last + now,
            _ => {
                return Err(EnergyError::Fell {
                    sensor: self.source.name.clone(),
                    from_uj: last,
                    to_uj: now,
                });
            }
        };
        self.last_uj = Some(now);
        self.total_uj = self.total_uj.saturating_add(step);
        Ok(Sample::Joules(self.total_uj as f64 / 1e6))
    }
}
