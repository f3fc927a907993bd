//! Random machines for training: the published boards stay unseen. Rates are drawn from wide ranges
//! around what edge machines have, each on its own, so that a policy cannot learn one machine by
//! heart (domain randomisation).

use rand::{Rng, RngExt as _};
use sparoa_core::profile::{
    Conditions, Contention, DeviceModel, HardwareState, Link, MachineModel, Power, PowerSource,
};

/// Uniform on a logarithmic scale.
fn log_uniform(rng: &mut dyn Rng, low: f64, high: f64) -> f64 {
    low * (high / low).powf(rng.random_range(0.0..1.0))
}

/// A machine in its nominal state.
pub fn machine(rng: &mut dyn Rng) -> MachineModel {
    let shared_memory = rng.random_bool(0.7);
    let cpu_gflops = log_uniform(rng, 40.0, 1_500.0);
    let gpu_gflops = cpu_gflops * log_uniform(rng, 0.3, 30.0);
    let cpu_gbs = log_uniform(rng, 8.0, 100.0);
    let gpu_gbs = match shared_memory {
        true => cpu_gbs * log_uniform(rng, 0.8, 2.5),
        false => log_uniform(rng, 100.0, 500.0),
    };
    let cpu = processor(rng, "cpu", cpu_gflops, cpu_gbs, (0.5, 3.0), (1e6, 6e6));
    let gpu = processor(rng, "gpu", gpu_gflops, gpu_gbs, (2.0, 40.0), (4e5, 2e7));
    let link = Link {
        latency_ns: log_uniform(rng, 3e3, 3e4) as u64,
        bytes_per_s: match shared_memory {
            true => 1e9 * cpu_gbs * rng.random_range(0.3..0.8),
            false => log_uniform(rng, 5e9, 3e10),
        },
    };
    let slowdown = |rng: &mut dyn Rng| match shared_memory {
        true => rng.random_range(1.0..1.35),
        false => 1.0,
    };
    let contention = Contention { cpu: slowdown(rng), gpu: slowdown(rng) };
    let cpu_w = log_uniform(rng, 4.0, 80.0);
    MachineModel {
        name: "a random machine".to_owned(),
        cpu: DeviceModel { sparse_efficiency: rng.random_range(0.35..0.6), ..cpu },
        gpu,
        upload: link,
        download: link,
        shared_memory,
        submit_ns: log_uniform(rng, 8e3, 8e4) as u64,
        handoff_ns: log_uniform(rng, 8e2, 4e3) as u64,
        contention,
        power: Some(Power {
            idle_w: log_uniform(rng, 2.0, 50.0),
            cpu_w,
            gpu_w: cpu_w * log_uniform(rng, 0.4, 2.5),
            source: PowerSource::Modelled,
        }),
    }
}

fn processor(
    rng: &mut dyn Rng,
    name: &str,
    gflops: f64,
    gbs: f64,
    launch_us: (f64, f64),
    half_rate_flops: (f64, f64),
) -> DeviceModel {
    let shares =
        [rng.random_range(0.3..0.8), rng.random_range(0.2..0.85), log_uniform(rng, 0.03, 0.15)];
    let half_rate = log_uniform(rng, half_rate_flops.0, half_rate_flops.1);
    let attained = [shares[0], shares[1], shares[2], 1.0].map(|share| share * gflops * 1e9);
    DeviceModel {
        name: name.to_owned(),
        flops_per_s: attained,
        bytes_per_s: gbs * 1e9,
        cache_bytes_per_s: gbs * 1e9 * rng.random_range(1.0..6.0),
        cache_bytes: log_uniform(rng, 0.5, 24.0) * 1048576.0,
        launch_ns: 1e3 * log_uniform(rng, launch_us.0, launch_us.1),
        fill_ns: attained.map(|rate| half_rate / rate * 1e9),
        sparse_efficiency: 0.0,
    }
}

/// A state of a machine: the distribution that results are quoted over, with random power modes in
/// place of a board's own; sometimes the nominal one.
pub fn state(rng: &mut dyn Rng, shared_memory: bool) -> HardwareState {
    if rng.random_bool(0.1) {
        return HardwareState::default();
    }
    let slow =
        [rng.random_range(0.25..1.0), rng.random_range(0.25..1.0), rng.random_range(0.6..1.0)];
    let modes = vec![[1.0; 3], slow];
    let mut conditions = Conditions::of_modes(modes, shared_memory, rng.random());
    conditions.next().map_or_else(HardwareState::default, |(state, _)| state)
}
