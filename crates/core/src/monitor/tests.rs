//! The monitor as a whole: on nothing, on a tree, with given sensors, on this machine.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{testing::Tree, *};

struct Fixed(GpuReadings);

impl GpuSensors for Fixed {
    fn read(&mut self) -> GpuReadings {
        self.0
    }
}

#[test]
fn nothing_is_there_and_nothing_is_zero() {
    let mut monitor = Monitor::at(Tree::new().root());
    let snapshot = monitor.sample();
    assert_eq!(snapshot, Snapshot::default());
    let text = snapshot.to_string();
    assert_eq!(text.matches("unavailable").count(), 12, "{text}");
    assert!(!text.contains('0'), "{text}");
    let json = serde_json::to_value(&snapshot).unwrap();
    assert!(json.as_object().unwrap().values().all(|v| v.is_null()), "{json}");
}

#[test]
fn a_snapshot_is_one_line() {
    let snapshot = Snapshot {
        cpu_busy: Some(0.125),
        cpu_temperature_c: Some(48.5),
        memory_available_bytes: Some(3 << 29),
        throttled: Some(false),
        ..Snapshot::default()
    };
    assert_eq!(
        snapshot.to_string(),
        "cpu: others 12 %, waiting unavailable, pressure unavailable, clock unavailable, 48 C; \
         gpu: busy unavailable, clock unavailable, unavailable; memory: 1.5 GiB of unavailable, \
         pressure unavailable; throttled: no"
    );
    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
}

#[test]
fn given_sensors_replace_a_card_and_complete_a_chip() {
    let given = GpuReadings { clock: Some(0.5), throttled: Some(true), ..GpuReadings::default() };
    let card = Tree::new();
    card.write("sys/class/drm/card0/device/gpu_busy_percent", "40");
    assert_eq!(Monitor::at(card.root()).sample().gpu_busy, Some(0.4));
    let snapshot = Monitor::at(card.root()).with_gpu(Box::new(Fixed(given))).sample();
    assert_eq!((snapshot.gpu_busy, snapshot.gpu_clock), (None, Some(0.5)));
    assert_eq!(snapshot.throttled, Some(true));

    let chip = Tree::new();
    chip.write("sys/class/devfreq/17000000.ga10b/device/load", "300");
    let snapshot = Monitor::at(chip.root()).with_gpu(Box::new(Fixed(given))).sample();
    assert_eq!((snapshot.gpu_busy, snapshot.gpu_clock), (Some(0.3), Some(0.5)));
}

#[test]
fn this_machine_is_plausible() {
    let mut monitor = Monitor::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(150) {
        std::hint::spin_loop();
    }
    let s = monitor.sample();
    println!("{s}");
    for share in [s.cpu_busy, s.cpu_wait, s.cpu_pressure, s.gpu_busy, s.memory_pressure] {
        assert!(share.is_none_or(|v| (0.0..=1.0).contains(&v)), "{s:?}");
    }
    // Boost clocks may lie above what the driver calls the highest.
    assert!(s.cpu_clock.is_none_or(|v| v > 0.0 && v < 3.0), "{s:?}");
    if let (Some(available), Some(total)) = (s.memory_available_bytes, s.memory_total_bytes) {
        assert!(available <= total, "{s:?}");
    }
    if !Path::new("/proc/stat").exists() {
        println!("skipped: this system has no /proc");
        return;
    }
    assert!(s.cpu_busy.is_some() && s.memory_total_bytes.is_some(), "{s:?}");
}
