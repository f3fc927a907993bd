//! What measuring energy costs: one reading, a whole measurement, and the share of one core that
//! sampling takes. On files as sysfs has them; a sensor behind an I2C bus takes longer to answer,
//! which is waiting, not computing. `cargo bench -p sparoa-core --bench energy`.

use std::{fs, path::Path, time::Instant};

use sparoa_core::energy::EnergyMeter;

/// Times of the reading threads.
fn computed_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    let of = |task: fs::DirEntry| -> Option<u64> {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(|task| of(task.ok()?)).sum()
}

fn report(name: &str, root: &Path) {
    let meter = EnergyMeter::open(root, Vec::new());
    assert!(!meter.is_empty(), "{name}: {:?}", meter.sensors());
    let running = meter.start();
    let start = Instant::now();
    for _ in 0..1000 {
        running.so_far().expect("readable");
    }
    let reading_us = start.elapsed().as_secs_f64() * 1e3;
    drop(running);
    let start = Instant::now();
    for _ in 0..200 {
        drop(meter.start());
    }
    let start_us = start.elapsed().as_secs_f64() * 1e6 / 200.0;
    let before = computed_ns();
    let running = meter.start();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let share = (computed_ns() - before) as f64 / 3e9 * 100.0;
    drop(running);
    println!(
        "{name}: reading {reading_us:.1} us, start {start_us:.1} us, while it runs {share:.3} % of a core"
    );
}

fn main() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let write = |path: &str, text: &str| {
        let path = dir.path().join("sys/class").join(path);
        fs::create_dir_all(path.parent().expect("not the root")).expect("writable");
        fs::write(path, text).expect("writable");
    };
    for (zone, name) in [("intel-rapl:0", "package-0"), ("intel-rapl:0:1", "dram")] {
        write(&format!("powercap/{zone}/name"), name);
        write(&format!("powercap/{zone}/max_energy_range_uj"), "262143328850");
        write(&format!("powercap/{zone}/energy_uj"), "1");
    }
    report("2 counters", dir.path());
    write("hwmon/hwmon0/name", "ina3221");
    for (n, label) in [(1, "VDD_GPU_SOC"), (2, "VDD_CPU_CV"), (3, "VIN_SYS_5V0")] {
        write(&format!("hwmon/hwmon0/in{n}_label"), label);
        write(&format!("hwmon/hwmon0/in{n}_input"), "5000");
        write(&format!("hwmon/hwmon0/curr{n}_input"), "1000");
    }
    report("3 rails", dir.path());
}
