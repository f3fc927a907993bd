//! Sensors on trees of files as machines have them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::*;
use crate::energy::Sample;

/// A root folder with files.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new(files: &[(&str, &str)]) -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        for (path, text) in files {
            tree.write(path, text);
        }
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join("sys/class").join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // As sysfs shows it: whole or not at all.
        let temporary = path.with_extension("new");
        fs::write(&temporary, format!("{text}\n")).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    /// A RAPL zone.
    pub(crate) fn zone(&self, zone: &str, name: &str, energy_uj: u64) {
        self.write(&format!("powercap/{zone}/name"), name);
        self.write(&format!("powercap/{zone}/max_energy_range_uj"), "262143328850");
        self.write(&format!("powercap/{zone}/energy_uj"), &energy_uj.to_string());
    }

    /// An INA3221 with labelled rails of millivolts and milliamperes.
    fn rails(&self, monitor: &str, rails: &[(&str, u32, u32)]) {
        self.write(&format!("hwmon/{monitor}/name"), "ina3221");
        for (n, (label, millivolts, milliamperes)) in (1..).zip(rails) {
            let file = |name: &str| format!("hwmon/{monitor}/{name}");
            if !label.is_empty() {
                self.write(&file(&format!("in{n}_label")), label);
            }
            self.write(&file(&format!("in{n}_input")), &millivolts.to_string());
            self.write(&file(&format!("curr{n}_input")), &milliamperes.to_string());
        }
        // The sum of the shunts, which is no rail.
        self.write(&format!("hwmon/{monitor}/in7_label"), "sum of shunt voltages");
    }

    fn open(&self) -> (Vec<Box<dyn EnergyReader>>, Vec<SensorInfo>) {
        open(self.root(), Vec::new())
    }
}

fn used(list: &[SensorInfo]) -> Vec<&str> {
    list.iter().filter(|s| s.used).map(|s| s.name.as_str()).collect()
}

fn reason<'a>(list: &'a [SensorInfo], name: &str) -> &'a str {
    let sensor = list.iter().find(|s| s.name == name);
    sensor.unwrap_or_else(|| panic!("{name}: {list:?}")).reason.as_deref().unwrap_or("")
}

fn joules(reader: &mut Box<dyn EnergyReader>) -> f64 {
    match reader.read().unwrap() {
        Sample::Joules(joules) => joules,
        watts => panic!("{watts:?}"),
    }
}

fn watts(readers: &mut [Box<dyn EnergyReader>]) -> f64 {
    let watts = |r: &mut Box<dyn EnergyReader>| match r.read().unwrap() {
        Sample::Watts(watts) => watts,
        joules => panic!("{joules:?}"),
    };
    readers.iter_mut().map(watts).sum()
}

#[test]
fn nothing_is_found_in_nothing() {
    let (readers, list) = Tree::new(&[]).open();
    assert!(readers.is_empty() && list.is_empty());
}

#[test]
fn packages_and_memory_are_summed_and_their_parts_are_not() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "package-0", 5_000_000);
    tree.zone("intel-rapl:0:0", "core", 1_000_000);
    tree.zone("intel-rapl:0:1", "dram", 2_000_000);
    tree.zone("intel-rapl:1", "package-1", 9_000_000);
    tree.zone("intel-rapl:2", "psys", 1);
    tree.zone("intel-rapl-mmio:0", "package-0", 5_000_000);
    tree.write("powercap/intel-rapl/enabled", "1");
    let (mut readers, list) = tree.open();
    assert_eq!(used(&list), ["rapl package-0", "rapl dram 0", "rapl package-1"]);
    assert_eq!(list.len(), 4, "{list:?}");
    assert!(reason(&list, "rapl psys").contains("contains the package"), "{list:?}");
    assert_eq!(joules(&mut readers[0]), 0.0);
    tree.zone("intel-rapl:0", "package-0", 7_500_000);
    assert_eq!(joules(&mut readers[0]), 2.5);
}

#[test]
fn the_platform_counts_where_no_package_does() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "psys", 1);
    let (_, list) = tree.open();
    assert_eq!((used(&list), list[0].domain), (vec!["rapl psys"], Domain::Board));
}

#[test]
fn a_counter_that_starts_again_goes_on() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "package-0", 262_143_000_000);
    let (mut readers, _) = tree.open();
    let source = readers[0].source().clone();
    // Read so often that it cannot start again twice: 262 kJ at 2 kW, halved.
    assert!(source.read_every.unwrap() < Duration::from_secs(66), "{source:?}");
    tree.zone("intel-rapl:0", "package-0", 671_150);
    assert!((joules(&mut readers[0]) - 1.0).abs() < 1e-9);
    tree.zone("intel-rapl:0", "package-0", 2_671_150);
    assert!((joules(&mut readers[0]) - 3.0).abs() < 1e-9);

    // Without a range a fall cannot be told from a fault.
    fs::remove_file(tree.at("powercap/intel-rapl:0/max_energy_range_uj")).unwrap();
    let (mut readers, _) = tree.open();
    tree.write("powercap/intel-rapl:0/energy_uj", "5");
    let error = readers[0].read().unwrap_err();
    assert!(error.to_string().contains("fell from 2671150 to 5"), "{error}");
    // The same where the counter stood above its own range.
    tree.write("powercap/intel-rapl:0/max_energy_range_uj", "3");
    let (mut readers, _) = tree.open();
    tree.write("powercap/intel-rapl:0/energy_uj", "4");
    assert!(matches!(readers[0].read(), Err(EnergyError::Fell { .. })));
}

#[test]
fn what_cannot_be_read_is_named_with_the_reason() {
    let tree = Tree::new(&[("powercap/intel-rapl:0/enabled", "1")]);
    let (_, list) = tree.open();
    assert!(reason(&list, "rapl intel-rapl:0").contains("name: No such file"), "{list:?}");

    tree.write("powercap/intel-rapl:0/name", "package-0");
    let (readers, list) = tree.open();
    assert!(readers.is_empty());
    assert!(reason(&list, "rapl package-0").contains("energy_uj: No such file"), "{list:?}");

    for garbage in ["", "many", "-7", "1.5", "99999999999999999999999"] {
        tree.write("powercap/intel-rapl:0/energy_uj", garbage);
        let (readers, list) = tree.open();
        assert!(readers.is_empty());
        assert!(reason(&list, "rapl package-0").contains("is not a number"), "{list:?}");
    }

    fs::remove_file(tree.at("powercap/intel-rapl:0/energy_uj")).unwrap();
    fs::create_dir(tree.at("powercap/intel-rapl:0/energy_uj")).unwrap();
    let (_, list) = tree.open();
    assert!(reason(&list, "rapl package-0").contains("irectory"), "{list:?}");
}

#[test]
fn a_missing_permission_names_the_remedy() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "package-0", 1);
    let file = tree.at("powercap/intel-rapl:0/energy_uj");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&file).is_ok() {
        println!("skipped: root may read everything");
        return;
    }
    let (readers, list) = tree.open();
    assert!(readers.is_empty());
    let reason = reason(&list, "rapl package-0");
    assert!(reason.contains("permission denied") && reason.contains("chmod a+r"), "{reason}");
}

#[test]
fn a_sum_with_a_part_missing_is_no_sum() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "package-0", 1);
    tree.zone("intel-rapl:1", "package-1", 1);
    fs::remove_file(tree.at("powercap/intel-rapl:1/energy_uj")).unwrap();
    let (_, list) = tree.open();
    assert_eq!(used(&list), [""; 0]);
    assert!(reason(&list, "rapl package-0").contains("package-1 belongs to the same sum"));
}

#[test]
fn a_jetson_with_a_total_rail_uses_it_alone() {
    let tree = Tree::new(&[]);
    let rails = [("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("VDD_SOC", 5000, 400)];
    tree.rails("hwmon3", &rails);
    let (mut readers, list) = tree.open();
    assert_eq!(used(&list), ["ina3221 VDD_IN"]);
    assert_eq!(list.len(), 3, "the sum of shunts is no rail: {list:?}");
    assert!(reason(&list, "ina3221 VDD_SOC").contains("whole board"));
    assert!((watts(&mut readers) - 10.0).abs() < 1e-9);
}

#[test]
fn a_jetson_without_one_sums_its_rails() {
    let tree = Tree::new(&[]);
    let rails =
        [("VDD_GPU_SOC", 20_000, 400), ("VDD_CPU_CV", 20_000, 100), ("VIN_SYS_5V0", 5000, 1000)];
    tree.rails("hwmon3", &rails);
    tree.rails("hwmon4", &[("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200)]);
    tree.write("hwmon/hwmon3/update_interval", "35");
    let (mut readers, list) = tree.open();
    assert_eq!(used(&list), ["ina3221 VDD_GPU_SOC", "ina3221 VDD_CPU_CV", "ina3221 VIN_SYS_5V0"]);
    assert!(reason(&list, "ina3221 VDDQ_VDD2_1V8AO").contains("VIN_SYS_5V0"));
    assert!((watts(&mut readers) - 15.0).abs() < 1e-9);
    assert_eq!(readers[0].source().update, Duration::from_millis(35));
    // A rail that is switched off is none.
    tree.write("hwmon/hwmon3/in2_enable", "0");
    assert_eq!(used(&tree.open().1).len(), 2);
}

#[test]
fn rails_without_names_are_listed_and_not_used() {
    let tree = Tree::new(&[]);
    tree.rails("hwmon0", &[("", 5000, 1000)]);
    let (_, list) = tree.open();
    assert_eq!(used(&list), [""; 0]);
    assert!(reason(&list, "ina3221 channel 1").contains("no names"), "{list:?}");
}

#[test]
fn graphics_cards_count_beside_the_package_and_integrated_ones_within_it() {
    let tree = Tree::new(&[
        ("hwmon/hwmon1/name", "amdgpu"),
        ("hwmon/hwmon1/power1_average", "65000000"),
        ("hwmon/hwmon2/name", "nvme"),
        ("hwmon/hwmon2/power1_input", "3000000"),
        ("hwmon/hwmon5/name", "i915"),
        ("hwmon/hwmon5/energy1_input", "12000000"),
    ]);
    let (_, list) = tree.open();
    assert_eq!(used(&list), ["amdgpu hwmon1", "i915 hwmon5"]);
    assert_eq!(list[0].domain, Domain::Gpu);
    tree.zone("intel-rapl:0", "package-0", 1);
    assert_eq!(used(&tree.open().1), ["amdgpu hwmon1", "i915 hwmon5", "rapl package-0"]);
    // One with a northbridge is the CPU's own.
    tree.write("hwmon/hwmon1/in1_input", "900");
    let (_, list) = tree.open();
    assert_eq!(used(&list), ["i915 hwmon5", "rapl package-0"]);
    assert!(reason(&list, "amdgpu hwmon1").contains("counted already"), "{list:?}");
    fs::remove_dir_all(tree.at("powercap")).unwrap();
    assert_eq!(tree.open().1[0].domain, Domain::Package);
    assert_eq!(used(&tree.open().1), ["amdgpu hwmon1", "i915 hwmon5"]);
}

#[test]
fn a_machines_own_meter_is_the_last_resort() {
    let tree = Tree::new(&[
        ("hwmon/hwmon0/name", "power_meter"),
        ("hwmon/hwmon0/power1_average", "230000000"),
        ("hwmon/hwmon0/power1_average_interval", "1000"),
    ]);
    let (mut readers, list) = tree.open();
    assert_eq!(used(&list), ["power_meter hwmon0"]);
    assert_eq!(readers[0].source().update, Duration::from_secs(1));
    assert_eq!(watts(&mut readers), 230.0);
    tree.zone("intel-rapl:0", "package-0", 1);
    assert_eq!(used(&tree.open().1), ["rapl package-0"]);
}
