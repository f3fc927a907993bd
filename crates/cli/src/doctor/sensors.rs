//! Which sensors there are: of the monitor, and of energy.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Subject, Verdict,
    tree::{entries, shown, text},
};

pub(super) fn monitor(subject: &Subject<'_>) -> Verdict {
    let s = &subject.sensors;
    let known = [
        ("load", s.cpu_busy.is_some()),
        ("waiting", s.cpu_wait.is_some()),
        ("pressure", s.cpu_pressure.is_some()),
        ("clock", s.cpu_clock.is_some()),
        ("temperature", s.cpu_temperature_c.is_some()),
        ("gpu load", s.gpu_busy.is_some()),
        ("gpu clock", s.gpu_clock.is_some()),
        ("gpu temperature", s.gpu_temperature_c.is_some()),
        ("memory", s.memory_available_bytes.is_some()),
        ("throttling", s.throttled.is_some()),
    ];
    let list = |there: bool| {
        let names: Vec<&str> = known.iter().filter(|(_, t)| *t == there).map(|(n, _)| *n).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let found = format!("there: {}; unavailable: {}", list(true), list(false));
    if let Some(Err(why)) = &subject.nvml {
        return Verdict::warn(
            format!("{found}; {why}"),
            "install the part of NVIDIA's driver that holds libnvidia-ml.so.1 (Debian: \
             libnvidia-ml1; Ubuntu: libnvidia-compute-VERSION); in a container run with --gpus all",
        );
    }
    if known.iter().any(|(_, there)| *there) {
        Verdict::ok(found)
    } else {
        Verdict::unavailable(found)
    }
}

/// Files of energy or power that can be read, and those that are there and cannot.
fn energy_files(root: &Path) -> (Vec<String>, Vec<String>) {
    let mut files = Vec::new();
    for zone in entries(root, "sys/class/powercap") {
        // Sub-zones are parts of the packages.
        let package = text(root, zone.join("name")).is_some_and(|n| n.starts_with("package"));
        files.extend(package.then(|| zone.join("energy_uj")));
    }
    for chip in entries(root, "sys/class/hwmon") {
        let power = ["power1_average", "power1_input", "energy1_input"].map(|f| chip.join(f));
        files.extend(power.into_iter().find(|path| path.exists()));
        let rails = text(root, chip.join("name")).is_some_and(|n| n.starts_with("ina"));
        files.extend(rails.then(|| chip.join("curr1_input")).filter(|path| path.exists()));
    }
    let (readable, refused): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|path| fs::read_to_string(path).is_ok());
    let shown = |paths: Vec<PathBuf>| paths.iter().map(|p| shown(root, p)).collect();
    (shown(readable), shown(refused))
}

pub(super) fn energy(subject: &Subject<'_>) -> Verdict {
    let (mut readable, refused) = energy_files(subject.root);
    if subject.nvml == Some(Ok(())) {
        readable.push("NVML".to_owned());
    }
    if !refused.is_empty() {
        let there = if readable.is_empty() { "none".to_owned() } else { readable.join(", ") };
        return Verdict::warn(
            format!("{} cannot be read; readable: {there}", refused.join(", ")),
            format!(
                "sudo chmod a+r {} (until the next start; other users can then guess at what runs \
                 from it)",
                refused.join(" ")
            ),
        );
    }
    if readable.is_empty() {
        return Verdict::unavailable("no energy counter and no power sensor");
    }
    Verdict::ok(readable.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Status::{Ok, Unavailable, Warn},
        testing::{check_cases, expect, machine, subject},
    };

    #[test]
    fn sensors_of_the_monitor() {
        let root = machine(&[]);
        let mut subject = subject(root.path());
        expect(&monitor(&subject), Unavailable, "there: none; unavailable: load,", "");
        subject.sensors.cpu_busy = Some(0.0);
        subject.sensors.memory_available_bytes = Some(1);
        expect(&monitor(&subject), Ok, "there: load, memory; unavailable: waiting,", "");
        subject.nvml = Some(Err("unavailable: no library".to_owned()));
        expect(&monitor(&subject), Warn, "no library", "libnvidia-ml");
        subject.nvml = Some(std::result::Result::Ok(()));
        expect(&monitor(&subject), Ok, "load", "");
    }

    #[test]
    fn counters_of_energy() {
        let package = ("sys/class/powercap/intel-rapl:0/name", "package-0\n");
        let core = ("sys/class/powercap/intel-rapl:0:0/name", "core\n");
        let counter = "sys/class/powercap/intel-rapl:0/energy_uj";
        let rail = ("sys/class/hwmon/hwmon1/name", "ina3221\n");
        check_cases(
            energy,
            &[
                (&[], Unavailable, "no energy counter", ""),
                (&[core], Unavailable, "no energy counter", ""),
                (&[package, (counter, "12\n")], Ok, "intel-rapl:0/energy_uj", ""),
                (
                    &[package, core, (counter, "DIR")],
                    Warn,
                    "cannot be read",
                    "chmod a+r /sys/class",
                ),
                (&[("sys/class/hwmon/hwmon0/power1_input", "1")], Ok, "power1_input", ""),
                (&[rail, ("sys/class/hwmon/hwmon1/curr1_input", "1")], Ok, "curr1_input", ""),
            ],
        );
        let root = machine(&[]);
        let mut subject = subject(root.path());
        subject.nvml = Some(std::result::Result::Ok(()));
        expect(&energy(&subject), Ok, "NVML", "");
    }
}
