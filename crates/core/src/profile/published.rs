//! What the roofline predicts for the latencies that others have published: how far the profiles
//! can be trusted.

use super::{DeviceProfile, HardwareState, MachineModel, PowerMode, PublishedLatency, Workload};

/// A published latency and what the profile predicts for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction<'a> {
    /// The published row.
    pub row: &'a PublishedLatency,
    /// The prediction.
    pub predicted_ms: f64,
}

impl Prediction<'_> {
    /// The prediction over the published figure, less 1.
    pub fn error(&self) -> f64 {
        self.predicted_ms / self.row.latency_ms - 1.0
    }

    /// Whether it is off by a quarter at most.
    pub fn holds(&self) -> bool {
        self.error().abs() <= 0.25
    }
}

/// Predictions of a profile's rows for models whose workloads at batch 1 are given by name. Rows
/// of eager frameworks are left out, as are those of other models and batches.
pub fn predictions<'a>(
    board: &'a DeviceProfile,
    models: &[(&str, Vec<Workload>)],
) -> Vec<Prediction<'a>> {
    board
        .published_latencies
        .iter()
        .filter(|row| !row.eager && row.batch == 1)
        .filter_map(|row| {
            let (_, work) = models.iter().find(|(name, _)| *name == row.model)?;
            Some(Prediction { row, predicted_ms: predict_ms(board, row, work) })
        })
        .collect()
}

/// What a profile predicts for a row: its precision, power mode, threads and engine honoured. The
/// sum of the operators: published figures leave out how the input came to the processor.
pub fn predict_ms(board: &DeviceProfile, row: &PublishedLatency, work: &[Workload]) -> f64 {
    let nominal = board.machine(row.precision);
    let mut machine = match mode(board, row) {
        Some(mode) => in_mode(board, mode).machine(&nominal),
        None => nominal,
    };
    let on_cpu = row.processor == "cpu";
    if let (true, Some(threads)) = (on_cpu, row.threads) {
        use_threads(board, &mut machine, threads);
    }
    let running = work.iter().filter(|w| !w.view);
    let total_ns: f64 = running
        .map(|w| match on_cpu {
            true => machine.cpu_cost(w, w.sparsity).latency_ns as f64,
            false => machine.gpu_cost(w).latency_ns as f64,
        })
        .sum();
    let engine = board.engine_time_factor.get(&row.framework).map_or(1.0, |f| f.value);
    total_ns * engine / 1e6
}

fn mode<'a>(board: &'a DeviceProfile, row: &PublishedLatency) -> Option<&'a PowerMode> {
    let name = row.power_mode.as_deref()?;
    board.power_modes.iter().find(|m| m.name == name)
}

/// A mode as a state of the idle board. Cores that it switches off are the threads' business.
fn in_mode(board: &DeviceProfile, mode: &PowerMode) -> HardwareState {
    let nominal = &board.power_modes[0];
    HardwareState {
        cpu_rate: mode.cpu_clock_ghz / nominal.cpu_clock_ghz,
        gpu_rate: mode.gpu_rate(nominal),
        memory: mode.memory_rate(nominal),
        ..HardwareState::default()
    }
}

/// Fewer threads than cores: arithmetic spreads over them less its serial share, caches are those
/// of the cores in use. What a kernel pays whatever its size stays.
fn use_threads(board: &DeviceProfile, machine: &mut MachineModel, threads: f64) {
    let cores = board.cpu.cores.value;
    let serial = board.cpu.serial_share.as_ref().map_or(0.0, |f| f.value);
    let time = |n: f64| serial + (1.0 - serial) / n;
    let slowdown = time(threads.clamp(1.0, cores)) / time(cores);
    for rate in &mut machine.cpu.flops_per_s {
        *rate /= slowdown;
    }
    if board.cpu.cache_bandwidth_gbs.is_some() {
        machine.cpu.cache_bytes_per_s *= (threads / cores).min(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ops::KernelClass, profile::Precision};

    fn row(threads: Option<f64>, power_mode: Option<&str>) -> PublishedLatency {
        PublishedLatency {
            model: "m".to_owned(),
            processor: "cpu".to_owned(),
            precision: Precision::Fp32,
            batch: 1,
            latency_ms: 1.0,
            threads,
            framework: "f".to_owned(),
            power_mode: power_mode.map(str::to_owned),
            hardware: None,
            note: String::new(),
            source: String::new(),
            fit: false,
            eager: false,
        }
    }

    #[test]
    fn fewer_threads_and_lower_modes_take_longer() {
        let mut board = DeviceProfile::find("jetson-agx-orin").unwrap();
        let products = vec![(KernelClass::Convolution, 1e9)];
        let work = [Workload { products, bytes: 1e6, kernels: 1, ..Workload::default() }];
        let ms = |row: &PublishedLatency| predict_ms(&board, row, &work);
        let all = ms(&row(None, None));
        assert_eq!(all, ms(&row(Some(12.0), Some("MAXN"))));
        let (one, six) = (ms(&row(Some(1.0), None)), ms(&row(Some(6.0), None)));
        assert!(one > 4.0 * all && one < 12.0 * all, "{one} {all}: the serial share stays");
        assert!(six > all && six < 2.0 * all, "{six} {all}");
        let slow = ms(&row(None, Some("50W")));
        assert!((slow / all - 2.2016 / 1.4976).abs() < 0.01, "{slow} {all}: the clock decides");

        board.published_latencies = vec![row(None, None)];
        board.published_latencies.push(PublishedLatency { eager: true, ..row(None, None) });
        let models = [("m", work.to_vec())];
        let found = predictions(&board, &models);
        assert_eq!(found.len(), 1, "eager rows are left out");
        assert!((found[0].error() - (all - 1.0)).abs() < 1e-9);
    }
}
