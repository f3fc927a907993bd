//! Temperatures, and whether heat or power slows a processor now.

use std::path::{Path, PathBuf};

use super::{
    cores::{core_dir, spread},
    watched::{Watched, entries, text},
};

/// Sensors of one processor's temperature.
#[derive(Debug)]
pub(super) struct Temperature(Vec<Watched>);

impl Temperature {
    /// Of the CPU: its thermal zones, else its driver's own sensors, else the board's.
    pub fn of_cpu(root: &Path) -> Temperature {
        let cpu = |kind: &str| {
            ["cpu", "x86_pkg_temp", "soc", "bigcore", "littlecore", "tcpu"]
                .iter()
                .any(|name| kind.starts_with(name))
        };
        let driver = |name: &str| ["coretemp", "k10temp", "zenpower"].contains(&name);
        let found = zones(root, cpu);
        let found =
            if found.is_empty() { hwmon(&root.join("sys/class/hwmon"), driver) } else { found };
        Temperature(if found.is_empty() { zones(root, |kind| kind == "acpitz") } else { found })
    }

    /// Of a GPU on the CPU's chip.
    pub fn of_soc_gpu(root: &Path) -> Temperature {
        Temperature(zones(root, |kind| kind.starts_with("gpu")))
    }

    /// Of the card with this device folder.
    pub fn of_card(device: &Path) -> Temperature {
        Temperature(hwmon(&device.join("hwmon"), |_| true))
    }

    /// The hottest, in degrees Celsius.
    pub fn sample(&mut self) -> Option<f64> {
        let celsius = |sensor: &mut Watched| Some(sensor.number::<f64>()? * 1e-3);
        // A sensor that is switched off says -256, an unconnected one 0 or 255.
        let plausible = |t: &f64| (-40.0..150.0).contains(t) && *t != 0.0;
        self.0.iter_mut().filter_map(celsius).filter(plausible).max_by(f64::total_cmp)
    }
}

/// Temperatures of the thermal zones whose type, in lower case, is wanted.
fn zones(root: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Watched> {
    entries(&root.join("sys/class/thermal"))
        .into_iter()
        .filter(|dir| text(&dir.join("type")).is_some_and(|kind| wanted(&kind.to_lowercase())))
        .filter_map(|dir| Watched::open(&dir.join("temp")))
        .collect()
}

/// First temperatures of the monitoring chips whose driver is wanted: of the package or the edge
/// of a card, the ones that the drivers list first.
fn hwmon(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Watched> {
    entries(dir)
        .into_iter()
        .filter(|chip| text(&chip.join("name")).is_some_and(|name| wanted(&name)))
        .filter_map(|chip| Watched::open(&chip.join("temp1_input")))
        .collect()
}

/// What tells that a processor is slowed down.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Counters of events, and their sum at the last sample.
    counters: Vec<Watched>,
    last: Option<u64>,
    /// Devices that cool by slowing down; above zero they do.
    cooling: Vec<Watched>,
    /// The Raspberry Pi's firmware: bits in base 16.
    firmware: Option<Watched>,
}

impl Throttle {
    pub fn find(root: &Path, cores: &[usize]) -> Throttle {
        let counter = |core| {
            let dir = core_dir(root, core).join("thermal_throttle");
            ["core_throttle_count", "package_throttle_count"].map(|file| dir.join(file))
        };
        let counters: Vec<PathBuf> = spread(cores).flat_map(counter).collect();
        let cooling = entries(&root.join("sys/class/thermal"))
            .into_iter()
            .filter(|dir| text(&dir.join("type")).is_some_and(|kind| slows(&kind.to_lowercase())))
            .filter_map(|dir| Watched::open(&dir.join("cur_state")));
        let mut throttle = Throttle {
            counters: counters.iter().filter_map(|path| Watched::open(path)).collect(),
            last: None,
            cooling: cooling.collect(),
            firmware: Watched::open(
                &root.join("sys/devices/platform/soc/soc:firmware/get_throttled"),
            ),
        };
        throttle.last = throttle.count();
        throttle
    }

    fn count(&mut self) -> Option<u64> {
        self.counters
            .iter_mut()
            .filter_map(Watched::number::<u64>)
            .reduce(|a, b| a.saturating_add(b))
    }

    /// Whether any of them has told so since the last sample.
    pub fn sample(&mut self) -> Option<bool> {
        let count = self.count();
        let rising = self.last.zip(count).map(|(last, now)| now > last);
        self.last = count;
        // intel_powerclamp says -1 when it is idle.
        let cooling = self.cooling.iter_mut().filter_map(Watched::number::<i64>).map(|s| s > 0);
        let cooling = cooling.reduce(|a, b| a || b);
        // Bits 0 to 3 are of now: low voltage, capped, throttled, soft limit of temperature.
        let firmware = self.firmware.as_mut().and_then(|bits| {
            let text = bits.text()?.trim();
            u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
        });
        let firmware = firmware.map(|bits| bits & 0xf != 0);
        [rising, cooling, firmware].into_iter().flatten().reduce(|a, b| a || b)
    }
}

/// Whether a cooling device of this type slows a processor; fans and screens do not.
fn slows(kind: &str) -> bool {
    ["processor", "cpu", "gpu", "devfreq", "powerclamp"].iter().any(|name| kind.contains(name))
        && !kind.contains("fan")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::Tree;

    fn zone(tree: &Tree, index: usize, kind: &str, temp: &str) {
        tree.write(&format!("sys/class/thermal/thermal_zone{index}/type"), kind);
        tree.write(&format!("sys/class/thermal/thermal_zone{index}/temp"), temp);
    }

    #[test]
    fn the_hottest_zone_of_the_cpu_counts() {
        let tree = Tree::new();
        let cpu = || Temperature::of_cpu(tree.root()).sample();
        assert_eq!(cpu(), None);
        zone(&tree, 9, "acpitz", "27800\n");
        assert_eq!(cpu(), Some(27.8));
        tree.write("sys/class/hwmon/hwmon0/name", "nvme\n");
        tree.write("sys/class/hwmon/hwmon0/temp1_input", "70000\n");
        tree.write("sys/class/hwmon/hwmon1/name", "k10temp\n");
        tree.write("sys/class/hwmon/hwmon1/temp1_input", "51000\n");
        assert_eq!(cpu(), Some(51.0));
        zone(&tree, 0, "CPU-therm", "48500");
        zone(&tree, 1, "GPU-therm", "90000");
        zone(&tree, 2, "SOC0-therm", "49000");
        assert_eq!(cpu(), Some(49.0));
        assert_eq!(Temperature::of_soc_gpu(tree.root()).sample(), Some(90.0));
        for off in ["-256000", "0", "garbage", "255000", ""] {
            zone(&tree, 2, "SOC0-therm", off);
            zone(&tree, 1, "GPU-therm", off);
            assert_eq!(cpu(), Some(48.5), "{off}");
            assert_eq!(Temperature::of_soc_gpu(tree.root()).sample(), None, "{off}");
        }
    }

    #[test]
    fn without_indications_nothing_is_said() {
        let tree = Tree::new();
        tree.write("sys/class/thermal/cooling_device0/type", "pwm-fan");
        tree.write("sys/class/thermal/cooling_device0/cur_state", "3");
        tree.write("sys/class/thermal/cooling_device1/type", "cpufreq-cpu0");
        tree.dir("sys/class/thermal/cooling_device1/cur_state");
        assert_eq!(Throttle::find(tree.root(), &[0, 1]).sample(), None);
    }

    #[test]
    fn rising_counters_and_active_cooling_are_throttling() {
        let tree = Tree::new();
        let count = |core: usize, n: &str| {
            tree.write(
                &format!("sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count"),
                n,
            );
        };
        count(0, "5");
        count(1, "7");
        let mut throttle = Throttle::find(tree.root(), &[0, 1]);
        assert_eq!(throttle.sample(), Some(false));
        count(1, "8");
        assert_eq!(throttle.sample(), Some(true));
        assert_eq!(throttle.sample(), Some(false));
        count(1, "2");
        assert_eq!(throttle.sample(), Some(false), "backwards is a restart");
        count(0, "x");
        count(1, "");
        assert_eq!(throttle.sample(), None);

        tree.write("sys/class/thermal/cooling_device0/type", "Processor");
        tree.write("sys/class/thermal/cooling_device0/cur_state", "0");
        tree.write("sys/class/thermal/cooling_device1/type", "intel_powerclamp");
        tree.write("sys/class/thermal/cooling_device1/cur_state", "-1");
        let mut throttle = Throttle::find(tree.root(), &[]);
        assert_eq!(throttle.sample(), Some(false));
        tree.write("sys/class/thermal/cooling_device0/cur_state", "2");
        assert_eq!(throttle.sample(), Some(true));

        let pi = Tree::new();
        let bits = "sys/devices/platform/soc/soc:firmware/get_throttled";
        pi.write(bits, "50000\n");
        let mut throttle = Throttle::find(pi.root(), &[]);
        assert_eq!(throttle.sample(), Some(false), "it was, and is no longer");
        pi.write(bits, "0x50004\n");
        assert_eq!(throttle.sample(), Some(true));
        pi.write(bits, "?");
        assert_eq!(throttle.sample(), None);
    }
}
