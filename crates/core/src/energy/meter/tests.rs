//! Runs measured on trees whose counters move while they run.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::energy::{Sample, sensors::tests::Tree};

fn gpu(name: &str, unified_memory: bool) -> DeviceInfo {
    DeviceInfo {
        device: Device::Gpu,
        name: name.to_owned(),
        driver: String::new(),
        software: false,
        unified_memory,
        threads: None,
        memory_bytes: None,
        features: Vec::new(),
    }
}

#[test]
fn a_run_takes_what_its_counters_moved() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "package-0", 1_000_000);
    tree.zone("intel-rapl:0:0", "dram", 262_143_328_000);
    let meter = EnergyMeter::open(tree.root(), Vec::new());
    let running = meter.start();
    tree.zone("intel-rapl:0", "package-0", 3_000_000);
    let half = running.so_far().unwrap();
    assert_eq!((half.joules, half.method), (2.0, EnergyMethod::Counter));
    tree.zone("intel-rapl:0", "package-0", 4_000_000);
    // This one starts again: 850 uJ to its end.
    tree.zone("intel-rapl:0:0", "dram", 499_150);
    let whole = running.stop().unwrap();
    assert!((whole.joules - 3.5).abs() < 1e-9, "{whole:?}");
    assert_eq!(whole.sources, ["rapl package-0", "rapl dram 0"]);
    assert_eq!(whole.coverage(), "cpu package + memory");
    assert!(whole.seconds > 0.0 && whole.watts() > 0.0);
}

#[test]
fn nothing_known_is_an_error_and_not_a_zero() {
    let tree = Tree::new(&[]);
    let meter = EnergyMeter::open(tree.root(), Vec::new());
    assert!(meter.is_empty() && !meter.covers(None));
    assert_eq!(meter.start().stop(), Err(EnergyError::NoSensor));

    tree.zone("intel-rapl:0", "package-0", 0);
    let meter = EnergyMeter::open(tree.root(), Vec::new());
    let error = meter.start().stop().unwrap_err().to_string();
    assert!(error.contains("rapl package-0 did not move"), "{error}");

    let running = meter.start();
    fs::remove_file(tree.root().join("sys/class/powercap/intel-rapl:0/energy_uj")).unwrap();
    assert!(matches!(running.so_far(), Err(EnergyError::Unreadable { .. })));
    // Once a reading is lost, so is the sum.
    tree.zone("intel-rapl:0", "package-0", 9);
    assert!(matches!(running.stop(), Err(EnergyError::Unreadable { .. })));
}

/// A card that always draws 40 W.
struct Steady {
    source: EnergySource,
    readings: Arc<AtomicU64>,
}

impl EnergyReader for Steady {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        self.readings.fetch_add(1, Ordering::Relaxed);
        Ok(Sample::Watts(40.0))
    }
}

fn steady(name: &str, readings: &Arc<AtomicU64>) -> Sensor {
    let source = EnergySource {
        name: name.to_owned(),
        domain: Domain::Gpu,
        method: EnergyMethod::Sampled,
        update: Duration::from_millis(100),
        read_every: Some(Duration::from_millis(2)),
    };
    let reader = Steady { source: source.clone(), readings: readings.clone() };
    Sensor { source, reader: Ok(Box::new(reader)) }
}

#[test]
fn watts_are_sampled_as_long_as_the_run_lasts() {
    let tree = Tree::new(&[]);
    let readings = Arc::new(AtomicU64::new(0));
    let meter = EnergyMeter::open(tree.root(), vec![steady("nvml RTX", &readings)]);
    assert_eq!(meter.shortest(), Duration::from_secs(2), "20 new figures");
    assert_eq!(readings.load(Ordering::Relaxed), 0, "nothing samples before a run");
    let running = meter.start();
    while readings.load(Ordering::Relaxed) < 10 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let m = running.stop().unwrap();
    assert!((m.watts() - 40.0).abs() < 4.0, "{m:?}");
    assert_eq!((m.method, m.coverage().as_str()), (EnergyMethod::Sampled, "gpu only"));
    let after = readings.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(readings.load(Ordering::Relaxed), after, "nothing samples after it");
}

#[test]
fn a_card_of_its_own_needs_its_own_sensor() {
    let tree = Tree::new(&[]);
    tree.zone("intel-rapl:0", "package-0", 0);
    let meter = EnergyMeter::open(tree.root(), Vec::new());
    let card = gpu("NVIDIA GeForce RTX 4060", false);
    assert!(meter.covers(None) && meter.covers(Some(&gpu("Intel UHD", true))));
    assert!(!meter.covers(Some(&card)));
    let nvml = steady("nvml NVIDIA GeForce RTX 4060", &Arc::default());
    let meter = EnergyMeter::open(tree.root(), vec![nvml]);
    assert!(meter.covers(Some(&card)));
    assert!(!meter.covers(Some(&gpu("AMD Radeon RX 7600", false))), "another card's sensor");
}

#[test]
fn a_model_says_that_it_is_one() {
    let power = Power {
        idle_w: 10.0,
        cpu_w: 20.0,
        gpu_w: 40.0,
        source: crate::profile::PowerSource::Modelled,
    };
    let m = Measured::modelled(&power, "modelled: by hand", 2.0, [1.0, 0.5]);
    assert!((m.joules - 60.0).abs() < 1e-6 && (m.watts() - 30.0).abs() < 1e-6);
    assert_eq!(m.method, EnergyMethod::Modelled);
    assert_eq!(serde_json::to_value(&m).unwrap()["method"], "modelled");
}
