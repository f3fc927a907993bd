//! Clocks and power: governor, boost, power modes, battery, throttling.

use std::{collections::BTreeMap, path::Path};

use sparoa::monitor::allowed_cores;

use super::{
    Subject, Verdict,
    tree::{entries, name, text},
};

fn cpufreq(root: &Path, core: usize, file: &str) -> Option<String> {
    text(root, format!("sys/devices/system/cpu/cpu{core}/cpufreq/{file}"))
}

/// Governors of the cores that this process may use, and on how many of them each is set.
fn governors(root: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for core in allowed_cores(root).unwrap_or_default() {
        if let Some(governor) = cpufreq(root, core, "scaling_governor") {
            *counts.entry(governor).or_default() += 1;
        }
    }
    counts
}

/// The governors' names.
pub(super) fn governor_name(root: &Path) -> Option<String> {
    let names: Vec<String> = governors(root).into_keys().collect();
    (!names.is_empty()).then(|| names.join(", "))
}

const PERFORMANCE: &str = "echo performance | sudo tee \
                           /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";

pub(super) fn governor(subject: &Subject<'_>) -> Verdict {
    let root = subject.root;
    let counts = governors(root);
    if counts.is_empty() {
        return Verdict::unavailable("no cpufreq: firmware or the virtual machine's host decides");
    }
    let list: Vec<String> =
        counts.iter().map(|(governor, n)| format!("{governor} on {n} cores")).collect();
    let list = list.join(", ");
    if counts.keys().all(|g| g == "performance") {
        return Verdict::ok(list);
    }
    // These drivers scale by themselves under `powersave`, as far as the preference lets them.
    let core = allowed_cores(root).and_then(|c| c.first().copied()).unwrap_or(0);
    let driver = cpufreq(root, core, "scaling_driver").unwrap_or_default();
    let scales = ["intel_pstate", "amd-pstate-epp"].contains(&driver.as_str());
    if counts.contains_key("powersave") && scales {
        let preference = cpufreq(root, core, "energy_performance_preference");
        let preference = preference.unwrap_or_else(|| "unknown".to_owned());
        let found = format!("{list}; {driver} with preference {preference}");
        return if preference.ends_with("power") {
            Verdict::problem(found, PERFORMANCE)
        } else {
            Verdict::warn(found, PERFORMANCE)
        };
    }
    if counts.contains_key("powersave") {
        return Verdict::problem(format!("{list}: the lowest clock"), PERFORMANCE);
    }
    Verdict::warn(format!("{list}: clocks rise late in short inferences"), PERFORMANCE)
}

pub(super) fn clock(subject: &Subject<'_>) -> Verdict {
    let root = subject.root;
    let capped: Vec<usize> = allowed_cores(root)
        .unwrap_or_default()
        .into_iter()
        .filter(|&core| {
            let khz = |file| cpufreq(root, core, file)?.parse::<f64>().ok();
            let limits = khz("scaling_max_freq").zip(khz("cpuinfo_max_freq"));
            limits.is_some_and(|(cap, most)| cap < 0.99 * most)
        })
        .collect();
    let Some(share) = subject.sensors.cpu_clock else {
        return Verdict::unavailable("no clocks can be read");
    };
    let found = format!("{:.0} % of the highest while all threads run", share * 100.0);
    if !capped.is_empty() {
        return Verdict::warn(
            format!("{found}; {} cores are capped below what they can", capped.len()),
            "for c in /sys/devices/system/cpu/cpu*/cpufreq; do sudo tee $c/scaling_max_freq < \
             $c/cpuinfo_max_freq; done",
        );
    }
    // All cores together stay below the highest boost clock, by up to a third on large chips.
    if share < 0.6 {
        return Verdict::warn(
            found,
            "look at cpu-governor, cpu-boost, power-mode and throttling in this report",
        );
    }
    Verdict::ok(found)
}

pub(super) fn boost(subject: &Subject<'_>) -> Verdict {
    let dir = "sys/devices/system/cpu";
    let no_turbo = text(subject.root, format!("{dir}/intel_pstate/no_turbo"));
    let boost = text(subject.root, format!("{dir}/cpufreq/boost"));
    match (no_turbo.as_deref(), boost.as_deref()) {
        (Some("1"), _) => {
            let path = format!("/{dir}/intel_pstate/no_turbo");
            Verdict::warn("off (intel_pstate/no_turbo is 1)", format!("echo 0 | sudo tee {path}"))
        }
        (_, Some("0")) => {
            let path = format!("/{dir}/cpufreq/boost");
            Verdict::warn("off (cpufreq/boost is 0)", format!("echo 1 | sudo tee {path}"))
        }
        (Some("0"), _) | (_, Some("1")) => Verdict::ok("on"),
        _ => Verdict::unavailable("the system does not tell"),
    }
}

/// A Jetson's modes and the current one, by `nvpmodel`.
struct Nvpmodel {
    current: (String, String),
    /// Number and name of the mode with the highest limit.
    best: (String, String),
}

impl Nvpmodel {
    fn read(root: &Path) -> Option<Nvpmodel> {
        let conf = text(root, "etc/nvpmodel.conf")?;
        let attribute = |line: &str, key: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
            Some(value.trim_end_matches('>').to_owned())
        };
        let modes: Vec<(String, String)> = conf
            .lines()
            .filter(|line| line.contains("POWER_MODEL") && !line.trim().starts_with('#'))
            .filter_map(|line| Some((attribute(line, "ID=")?, attribute(line, "NAME=")?)))
            .collect();
        let default = conf
            .lines()
            .filter(|line| line.contains("PM_CONFIG"))
            .find_map(|line| attribute(line, "DEFAULT="));
        let number = text(root, "var/lib/nvpmodel/status")
            .and_then(|status| attribute(&status, "pmode:")?.parse::<u32>().ok())
            .map(|n| n.to_string())
            .or(default)?;
        // MAXN has no limit; of the others the name is one, in watts.
        let rank = |name: &str| match name.strip_prefix("MAXN") {
            Some(_) => u32::MAX,
            None => {
                let watts: String = name.chars().take_while(char::is_ascii_digit).collect();
                watts.parse().unwrap_or(0)
            }
        };
        Some(Nvpmodel {
            current: modes.iter().find(|(id, _)| *id == number)?.clone(),
            best: modes.iter().max_by_key(|(_, name)| rank(name))?.clone(),
        })
    }
}

/// The board's mode, else the firmware's.
pub(super) fn mode_name(root: &Path) -> Option<String> {
    Nvpmodel::read(root)
        .map(|model| model.current.1)
        .or_else(|| text(root, "sys/firmware/acpi/platform_profile"))
}

pub(super) fn mode(subject: &Subject<'_>) -> Verdict {
    let root = subject.root;
    if let Some(Nvpmodel { current, best }) = Nvpmodel::read(root) {
        let found = format!("nvpmodel {}", current.1);
        return if current == best {
            Verdict::ok(found)
        } else {
            let (id, name) = best;
            let advice = format!("sudo nvpmodel -m {id} && sudo jetson_clocks    ({name})");
            Verdict::warn(found, advice)
        };
    }
    let path = "sys/firmware/acpi/platform_profile";
    let Some(profile) = text(root, path) else {
        return Verdict::unavailable("neither a platform profile nor nvpmodel");
    };
    let choices = text(root, format!("{path}_choices")).unwrap_or_default();
    let found = format!("platform profile {profile}");
    let best = choices.split_whitespace().any(|choice| choice == "performance");
    if profile == "performance" || !best {
        return Verdict::ok(found);
    }
    let advice = format!("echo performance | sudo tee /{path}");
    match profile.as_str() {
        "low-power" | "quiet" | "cool" => Verdict::problem(found, advice),
        _ => Verdict::warn(found, advice),
    }
}

pub(super) fn supply(subject: &Subject<'_>) -> Verdict {
    let root = subject.root;
    let dir = "sys/class/power_supply";
    if !root.join(dir).is_dir() {
        return Verdict::unavailable("the system does not tell");
    }
    let mut batteries = Vec::new();
    for supply in entries(root, dir) {
        let field = |file: &str| text(root, supply.join(file));
        // Mice and headphones have batteries too.
        let ours = field("scope").is_none_or(|scope| scope != "Device");
        if ours && field("type").as_deref() == Some("Battery") {
            batteries.push((name(&supply), field("status").unwrap_or_default()));
        }
    }
    if let Some((battery, _)) = batteries.iter().find(|(_, status)| status == "Discharging") {
        return Verdict::warn(format!("on battery ({battery})"), "connect the power supply");
    }
    Verdict::ok(if batteries.is_empty() { "no battery" } else { "not on battery" })
}

/// Degrees Celsius below a trip point at which it is near.
const NEAR_C: f64 = 5.0;

/// Zones that are about to slow the machine: name, temperature and trip point in degrees Celsius.
fn near_trip(root: &Path) -> Option<(String, f64, f64)> {
    entries(root, "sys/class/thermal").into_iter().find_map(|zone| {
        let celsius = |file: String| {
            let millis = text(root, zone.join(file))?.parse::<f64>().ok()?;
            Some(millis * 1e-3).filter(|t| *t > 0.0)
        };
        let now = celsius("temp".to_owned())?;
        let trip = (0..16)
            .filter(|i| {
                let kind = text(root, zone.join(format!("trip_point_{i}_type")));
                kind.is_some_and(|k| ["passive", "hot", "critical"].contains(&k.as_str()))
            })
            .filter_map(|i| celsius(format!("trip_point_{i}_temp")))
            .min_by(f64::total_cmp)?;
        let kind = text(root, zone.join("type")).unwrap_or_else(|| name(&zone));
        (now > trip - NEAR_C).then_some((kind, now, trip))
    })
}

pub(super) fn throttling(subject: &Subject<'_>) -> Verdict {
    let sensors = &subject.sensors;
    let cool = "cool it better, or choose a lower power mode that it can hold; let it cool down \
                before measuring";
    if sensors.throttled == Some(true) {
        return Verdict::problem("heat or power slows a processor now", cool);
    }
    if let Some((zone, now, trip)) = near_trip(subject.root) {
        return Verdict::warn(format!("{zone} is at {now:.0} C, slowed at {trip:.0} C"), cool);
    }
    let temperatures: Vec<String> =
        [("cpu", sensors.cpu_temperature_c), ("gpu", sensors.gpu_temperature_c)]
            .into_iter()
            .filter_map(|(what, t)| Some(format!("{what} {:.0} C", t?)))
            .collect();
    match (sensors.throttled, temperatures.is_empty()) {
        (None, true) => Verdict::unavailable("no counters and no temperatures can be read"),
        (None, false) => Verdict::ok(format!("{}; no counters", temperatures.join(", "))),
        (Some(_), true) => Verdict::ok("none"),
        (Some(_), false) => Verdict::ok(format!("none; {}", temperatures.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Status::{Ok, Problem, Unavailable, Warn},
        testing::{check_cases, expect, machine, subject},
    };

    const CORES: (&str, &str) = ("proc/self/status", "Cpus_allowed_list:\t0-1\n");
    const CPU0: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    const CPU1: &str = "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor";
    const CPU2: &str = "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor";
    const DRIVER: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver";
    const PREFERENCE: &str = "sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference";

    #[test]
    fn governors_of_the_allowed_cores() {
        let intel = (DRIVER, "intel_pstate\n");
        check_cases(
            governor,
            &[
                (&[CORES], Unavailable, "no cpufreq", ""),
                (&[CORES, (CPU0, "DIR")], Unavailable, "no cpufreq", ""),
                (&[CORES, (CPU0, "performance\n"), (CPU2, "powersave\n")], Ok, "on 1 cores", ""),
                (
                    &[CORES, (CPU0, "schedutil"), (CPU1, "performance")],
                    Warn,
                    "schedutil on 1",
                    "tee",
                ),
                (&[CORES, (CPU0, "powersave")], Problem, "lowest clock", "scaling_governor"),
                (&[CORES, (CPU0, "powersave"), intel], Warn, "unknown", "performance"),
                (
                    &[CORES, (CPU0, "powersave"), intel, (PREFERENCE, "balance_performance")],
                    Warn,
                    "balance_performance",
                    "performance",
                ),
                (
                    &[CORES, (CPU0, "powersave"), intel, (PREFERENCE, "balance_power")],
                    Problem,
                    "balance_power",
                    "performance",
                ),
            ],
        );
        let root = machine(&[CORES, (CPU0, "schedutil"), (CPU1, "performance")]);
        assert_eq!(governor_name(root.path()).as_deref(), Some("performance, schedutil"));
        assert_eq!(governor_name(machine(&[CORES]).path()), None);
    }

    #[test]
    fn clocks_under_load() {
        let cap = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq";
        let most = "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq";
        let free = machine(&[CORES, (cap, "3000000"), (most, "3000000")]);
        let capped = machine(&[CORES, (cap, "2000000"), (most, "3000000")]);
        for (root, share, status, found, advice) in [
            (&free, None, Unavailable, "no clocks", ""),
            (&free, Some(0.95), Ok, "95 %", ""),
            (&free, Some(0.4), Warn, "40 %", "power-mode"),
            (&capped, Some(0.66), Warn, "1 cores are capped", "scaling_max_freq"),
        ] {
            let mut subject = subject(root.path());
            subject.sensors.cpu_clock = share;
            expect(&clock(&subject), status, found, advice);
        }
    }

    #[test]
    fn boost_of_either_driver() {
        let intel = "sys/devices/system/cpu/intel_pstate/no_turbo";
        let other = "sys/devices/system/cpu/cpufreq/boost";
        check_cases(
            boost,
            &[
                (&[], Unavailable, "does not tell", ""),
                (&[(intel, "x"), (other, "DIR")], Unavailable, "does not tell", ""),
                (&[(intel, "0\n")], Ok, "on", ""),
                (&[(other, "1\n")], Ok, "on", ""),
                (&[(intel, "1\n")], Warn, "no_turbo", "echo 0"),
                (&[(other, "0\n")], Warn, "boost", "echo 1"),
            ],
        );
    }

    const NVPMODEL: &str = "# < POWER_MODEL ID=9 NAME=MAXN >\n\
                            < POWER_MODEL ID=0 NAME=15W >\n\
                            CPU_ONLINE CORE_0 1\n\
                            < POWER_MODEL ID=1 NAME=7W >\n\
                            < PM_CONFIG DEFAULT=1 >\n";

    #[test]
    fn power_modes_of_boards_and_firmware() {
        let conf = "etc/nvpmodel.conf";
        let status = "var/lib/nvpmodel/status";
        let maxn = "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=1 NAME=25W >\n";
        let profile = "sys/firmware/acpi/platform_profile";
        let choices =
            ("sys/firmware/acpi/platform_profile_choices", "low-power balanced performance");
        check_cases(
            mode,
            &[
                (&[], Unavailable, "neither", ""),
                (&[(conf, "garbage")], Unavailable, "neither", ""),
                (&[(conf, NVPMODEL), (status, "pmode:0000 fmode:quiet\n")], Ok, "15W", ""),
                (&[(conf, NVPMODEL), (status, "pmode:0001")], Warn, "7W", "nvpmodel -m 0"),
                (&[(conf, NVPMODEL)], Warn, "7W", "jetson_clocks"),
                (&[(conf, maxn), (status, "pmode:0001")], Warn, "25W", "nvpmodel -m 2"),
                (&[(conf, maxn), (status, "pmode:0002")], Ok, "MAXN_SUPER", ""),
                (&[(profile, "performance\n"), choices], Ok, "performance", ""),
                (&[(profile, "balanced\n"), choices], Warn, "balanced", "tee"),
                (&[(profile, "low-power\n"), choices], Problem, "low-power", "tee"),
                (&[(profile, "balanced\n")], Ok, "balanced", ""),
            ],
        );
        let root = machine(&[(conf, NVPMODEL), (status, "pmode:0000")]);
        assert_eq!(mode_name(root.path()).as_deref(), Some("15W"));
        assert_eq!(mode_name(machine(&[]).path()), None);
    }

    #[test]
    fn batteries_that_feed_the_machine() {
        let kind = ("sys/class/power_supply/BAT0/type", "Battery\n");
        let status = "sys/class/power_supply/BAT0/status";
        let mouse = ("sys/class/power_supply/BAT0/scope", "Device\n");
        check_cases(
            supply,
            &[
                (&[], Unavailable, "does not tell", ""),
                (&[("sys/class/power_supply/AC/type", "Mains\n")], Ok, "no battery", ""),
                (&[kind, (status, "Charging\n")], Ok, "not on battery", ""),
                (&[kind, (status, "DIR")], Ok, "not on battery", ""),
                (&[kind, (status, "Discharging\n")], Warn, "BAT0", "connect"),
                (&[kind, (status, "Discharging\n"), mouse], Ok, "no battery", ""),
            ],
        );
    }

    #[test]
    fn throttling_now_and_soon() {
        let zone = "sys/class/thermal/thermal_zone0/";
        let at = |temp: &'static str| {
            [
                ("sys/class/thermal/thermal_zone0/type", "cpu-thermal"),
                ("sys/class/thermal/thermal_zone0/temp", temp),
                ("sys/class/thermal/thermal_zone0/trip_point_0_type", "active"),
                ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "50000"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_type", "passive"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_temp", "95000"),
            ]
        };
        assert!(at("1").iter().all(|(path, _)| path.starts_with(zone)));
        for (temp, throttled, celsius, status, found) in [
            ("60000", None, None, Unavailable, "no counters"),
            ("x", None, Some(60.0), Ok, "cpu 60 C; no counters"),
            ("60000", Some(false), Some(60.0), Ok, "none; cpu 60 C"),
            ("60000", Some(false), None, Ok, "none"),
            ("93000", Some(false), Some(93.0), Warn, "cpu-thermal is at 93 C, slowed at 95 C"),
            ("60000", Some(true), None, Problem, "slows a processor now"),
        ] {
            let root = machine(&at(temp));
            let mut subject = subject(root.path());
            subject.sensors.throttled = throttled;
            subject.sensors.cpu_temperature_c = celsius;
            expect(&throttling(&subject), status, found, "");
        }
    }
}
