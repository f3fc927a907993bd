//! Which sensors there are: of the monitor, and of energy.

use sparoa::SensorInfo;

use super::{Subject, Verdict};

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

pub(super) fn energy(subject: &Subject<'_>) -> Verdict {
    let names = |of: &dyn Fn(&SensorInfo) -> bool| {
        let names: Vec<&str> =
            subject.energy.iter().filter(|s| of(s)).map(|s| s.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let used = names(&|s| s.used);
    if let Some(SensorInfo { reason: Some(why), .. }) = subject.energy.iter().find(|s| s.unreadable)
    {
        // What to do about a missing permission, the sensor itself knows.
        let remedy = why.split_once("permission denied; ").map(|(_, remedy)| remedy);
        return Verdict::warn(
            format!("{} cannot be read ({why}); in use: {used}", names(&|s| s.unreadable)),
            remedy.unwrap_or("energies leave it out; its driver may say more in the system's log"),
        );
    }
    match (used.as_str(), subject.energy.is_empty()) {
        (_, true) => Verdict::unavailable("no energy counter and no power sensor"),
        ("none", _) => Verdict::unavailable(format!("none can be used: {}", names(&|_| true))),
        _ => Verdict::ok(used),
    }
}

#[cfg(test)]
mod tests {
    use sparoa::{Domain, EnergyMethod};

    use super::*;
    use crate::doctor::{
        Status::{Ok, Unavailable, Warn},
        testing::{expect, machine, subject},
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
        let root = machine(&[]);
        let sensor = |name: &str, reason: Option<&str>, unreadable| SensorInfo {
            name: name.to_owned(),
            domain: Domain::Package,
            method: EnergyMethod::Counter,
            used: reason.is_none(),
            reason: reason.map(str::to_owned),
            unreadable,
        };
        let check = |sensors: Vec<SensorInfo>, status, found, advice| {
            let subject = Subject { energy: sensors, ..subject(root.path()) };
            expect(&energy(&subject), status, found, advice);
        };
        let package = || sensor("rapl package-0", None, false);
        check(vec![], Unavailable, "no energy counter", "");
        check(vec![package()], Ok, "rapl package-0", "");
        let core = sensor("rapl core", Some("part of the package"), false);
        check(vec![core.clone()], Unavailable, "none can be used: rapl core", "");
        check(vec![package(), core], Ok, "rapl package-0", "");
        let denied = Some("/sys/x: permission denied; sudo chmod a+r /sys/x");
        let denied = sensor("rapl psys", denied, true);
        check(vec![denied, package()], Warn, "in use: rapl package-0", "sudo chmod a+r /sys/x");
        let broken = sensor("ina3221 VDD_IN", Some("/sys/y: no such device"), true);
        check(vec![broken], Warn, "no such device); in use: none", "leave it out");
    }
}
