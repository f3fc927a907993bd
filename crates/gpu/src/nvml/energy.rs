//! Energy of an NVIDIA card: its counter (Volta and newer), else its momentary power.

use std::time::Duration;

use nvml_wrapper::{Device, error::NvmlError};
use sparoa_core::{
    backend::DeviceInfo,
    energy::{Domain, EnergyError, EnergyMethod, EnergyReader, EnergySource, Sample, Sensor},
};

use super::NvmlGpu;

/// Both figures are renewed ten times a second (seen on an H100).
const UPDATE: Duration = Duration::from_millis(100);
/// Power is sampled five times as often, so that no figure is missed.
const SAMPLING: Duration = Duration::from_millis(20);

/// The sensor of an adapter's card: none for other vendors' and emulated ones; one that cannot be
/// read, with the reason, where NVML does not tell (Jetsons: their rails do).
pub fn energy_sensors(gpu: &DeviceInfo) -> Vec<Sensor> {
    if gpu.software || !gpu.name.to_lowercase().contains("nvidia") {
        return Vec::new();
    }
    let name = match gpu.name.as_str() {
        card if card.starts_with("NVIDIA") => format!("nvml {card}"),
        card => format!("nvml NVIDIA {card}"),
    };
    let opened = NvmlGpu::open(&gpu.name).map_err(|e| refused(&name, e.to_string()));
    let reader = opened.and_then(|card| NvmlReader::new(card, name.clone()));
    vec![match reader {
        Ok(reader) => Sensor { source: reader.source.clone(), reader: Ok(Box::new(reader)) },
        Err(e) => Sensor { source: source(name, EnergyMethod::Counter), reader: Err(e) },
    }]
}

fn source(name: String, method: EnergyMethod) -> EnergySource {
    let read_every = (method == EnergyMethod::Sampled).then_some(SAMPLING);
    EnergySource { name, domain: Domain::Gpu, method, update: UPDATE, read_every }
}

fn refused(sensor: &str, reason: String) -> EnergyError {
    EnergyError::Device { sensor: sensor.to_owned(), reason }
}

struct NvmlReader {
    card: NvmlGpu,
    source: EnergySource,
}

impl NvmlReader {
    /// Reads once, to learn which of the two figures there is.
    fn new(card: NvmlGpu, name: String) -> Result<NvmlReader, EnergyError> {
        let mut reader = NvmlReader { card, source: source(name, EnergyMethod::Counter) };
        if reader.read().is_err() {
            reader.source = source(reader.source.name, EnergyMethod::Sampled);
            reader.read()?;
        }
        Ok(reader)
    }

    /// A figure of the card, or why it is not told.
    fn ask<T>(&self, f: impl FnOnce(&Device) -> Result<T, NvmlError>) -> Result<T, EnergyError> {
        let mut reason = "the card does not answer".to_owned();
        let figure = self.card.with_device(|d| f(d).inspect_err(|e| reason = e.to_string()));
        figure.ok_or_else(|| refused(&self.source.name, reason))
    }
}

impl EnergyReader for NvmlReader {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        match self.source.method {
            EnergyMethod::Sampled => self.ask(|d| d.power_usage()).map(of_milliwatts),
            _ => self.ask(|d| d.total_energy_consumption()).map(of_millijoules),
        }
    }
}

fn of_millijoules(mj: u64) -> Sample {
    Sample::Joules(mj as f64 / 1e3)
}

fn of_milliwatts(mw: u32) -> Sample {
    Sample::Watts(f64::from(mw) / 1e3)
}

#[cfg(test)]
mod tests {
    use sparoa_core::{backend::Device as Processor, energy::EnergyMeter};

    use super::*;

    fn gpu(name: &str, software: bool) -> DeviceInfo {
        DeviceInfo {
            device: Processor::Gpu,
            name: name.to_owned(),
            driver: String::new(),
            software,
            unified_memory: false,
            threads: None,
            memory_bytes: None,
            features: Vec::new(),
        }
    }

    #[test]
    fn figures_become_joules_and_watts() {
        assert_eq!(of_millijoules(2_198_695), Sample::Joules(2198.695));
        assert_eq!(of_milliwatts(72_364), Sample::Watts(72.364));
    }

    #[test]
    fn only_nvidia_cards_have_one_and_a_missing_library_is_told() {
        assert!(energy_sensors(&gpu("AMD Radeon RX 7600", false)).is_empty());
        assert!(energy_sensors(&gpu("NVIDIA on llvmpipe", true)).is_empty());
        let sensors = energy_sensors(&gpu("NVIDIA of no kind", false));
        let root = tempfile::tempdir().unwrap();
        let meter = EnergyMeter::open(root.path(), sensors);
        let [sensor] = meter.sensors() else { panic!("{:?}", meter.sensors()) };
        assert!(!sensor.used && sensor.name == "nvml NVIDIA of no kind", "{sensor:?}");
        assert!(sensor.reason.as_ref().unwrap().contains("NVML"), "{sensor:?}");
    }

    #[test]
    fn a_card_counts() {
        let adapters = crate::adapters();
        let card = adapters.iter().find(|a| a.name.contains("NVIDIA") && !a.software);
        let Some(card) = card else {
            println!("skipped: no NVIDIA card");
            return;
        };
        let root = tempfile::tempdir().unwrap();
        let meter = EnergyMeter::open(root.path(), energy_sensors(card));
        let running = meter.start();
        std::thread::sleep(5 * UPDATE);
        let m = running.stop().unwrap();
        assert!((1.0..2000.0).contains(&m.watts()), "{m:?}");
    }
}
