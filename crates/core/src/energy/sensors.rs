//! Which of the sensors that were found are summed, so that nothing counts twice.

use std::path::Path;

use serde::Serialize;

use super::{
    Domain, EnergyError, EnergyMethod, EnergyReader, EnergySource,
    found::{Found, Role},
    hwmon, rapl,
};

/// A sensor that somebody else than this module knows to read: a graphics card's.
pub struct Sensor {
    /// What it is.
    pub source: EnergySource,
    /// Its reader, or why it cannot be read.
    pub reader: Result<Box<dyn EnergyReader>, EnergyError>,
}

/// A sensor as lists show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SensorInfo {
    /// Driver and part.
    pub name: String,
    /// What it covers.
    pub domain: Domain,
    /// Whether it counts joules or shows watts.
    pub method: EnergyMethod,
    /// Whether it is part of what is measured.
    pub used: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// Whether the reason is that it cannot be read.
    pub unreadable: bool,
}

/// All sensors below a root folder and the given ones: readers of those to be summed, and the list.
pub(super) fn open(
    root: &Path,
    given: Vec<Sensor>,
) -> (Vec<Box<dyn EnergyReader>>, Vec<SensorInfo>) {
    let mut found = hwmon::find(root);
    found.extend(rapl::find(root));
    found.extend(given.into_iter().map(|s| Found::new(s.source, s.reader, Role::Part)));
    let reasons = reasons(&found);
    let mut readers = Vec::new();
    let mut list = Vec::new();
    for (sensor, reason) in found.into_iter().zip(reasons) {
        let Found { source, reader, .. } = sensor;
        let (name, domain, method) = (source.name, source.domain, source.method);
        list.push(SensorInfo {
            name,
            domain,
            method,
            used: reason.is_none(),
            reason: reason.clone(),
            unreadable: reader.is_err(),
        });
        if let (Ok(reader), None) = (reader, reason) {
            readers.push(reader);
        }
    }
    (readers, list)
}

/// Why a sensor is not summed, for each; `None` for those that are.
fn reasons(found: &[Found]) -> Vec<Option<String>> {
    // A sum with a part missing would look like a smaller whole.
    let broken = |f: &Found| {
        let mut others = found.iter().filter(|o| chip(o) == chip(f) && o.role == f.role);
        let other = others.find(|o| o.source.domain == f.source.domain && o.reader.is_err());
        other.map(|o| o.source.name.clone())
    };
    let usable = |f: &Found| f.reader.is_ok() && broken(f).is_none();
    let any = |role: Role, domain: Option<Domain>| {
        let mut fitting = found.iter().filter(|f| f.role == role);
        fitting.any(|f| usable(f) && domain.is_none_or(|d| f.source.domain == d))
    };
    let whole = any(Role::Whole, None);
    let package = any(Role::Part, Some(Domain::Package));
    let again = any(Role::PackageAgain, None);
    let last = found.iter().position(|f| f.role == Role::LastResort && usable(f));
    let reason = |(i, f): (usize, &Found)| -> Option<String> {
        if let Err(e) = &f.reader {
            return Some(e.to_string());
        }
        match f.role {
            Role::Never(why) => return Some(why.to_owned()),
            Role::Whole => {}
            _ if whole => return Some("part of what the board's rails show".to_owned()),
            Role::PackageAgain if package => {
                return Some("the package is counted already".to_owned());
            }
            Role::LastResort if package || again => {
                return Some("it contains the package, which is counted".to_owned());
            }
            Role::LastResort if last != Some(i) => {
                return Some("the whole machine is counted already".to_owned());
            }
            Role::Part if last.is_some() && !package && !again => {
                return Some("part of what the whole machine's sensor shows".to_owned());
            }
            _ => {}
        }
        broken(f).map(|other| format!("{other} belongs to the same sum and cannot be read"))
    };
    found.iter().enumerate().map(reason).collect()
}

fn chip(found: &Found) -> &str {
    found.source.name.split(' ').next().unwrap_or("")
}

#[cfg(test)]
pub(super) mod tests;
