//! The meter: sensors that are read at both ends of a run and, where they need it, in between by a
//! thread that lives as long as the run.

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Domain, EnergyError, EnergyMethod, EnergyReader, EnergySource,
    sensors::{self, Sensor, SensorInfo},
    tally::Tally,
};
use crate::{
    backend::{Device, DeviceInfo},
    profile::Power,
};

type Readers = Arc<Mutex<Vec<Box<dyn EnergyReader>>>>;

/// This machine's energy sensors. Clones read the same ones.
#[derive(Clone)]
pub struct EnergyMeter {
    readers: Readers,
    sources: Arc<[EnergySource]>,
    list: Arc<[SensorInfo]>,
}

/// An energy and how it came to be known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Of everything that the sources cover.
    pub joules: f64,
    /// Over which time.
    pub seconds: f64,
    /// How: sampled, if any part of it is.
    pub method: EnergyMethod,
    /// The sensors, or what a model rests on.
    pub sources: Vec<String>,
    /// What they cover; nothing else of the machine is in the figure.
    pub domains: Vec<Domain>,
}

impl Measured {
    /// Average power.
    pub fn watts(&self) -> f64 {
        self.joules / self.seconds.max(1e-9)
    }

    /// What is in the figure, in words: `board`, `cpu package + memory`, `cpu package only`.
    pub fn coverage(&self) -> String {
        coverage(&self.domains)
    }

    /// What a run is modelled to take: of its seconds so many with the CPU and with the GPU busy.
    pub fn modelled(power: &Power, basis: &str, seconds: f64, busy_s: [f64; 2]) -> Measured {
        let ns = |s: f64| (s * 1e9) as u64;
        Measured {
            joules: power.energy_j(ns(seconds), ns(busy_s[0]), ns(busy_s[1])),
            seconds,
            method: EnergyMethod::Modelled,
            sources: vec![basis.to_owned()],
            domains: vec![Domain::Board],
        }
    }
}

fn coverage(domains: &[Domain]) -> String {
    match domains {
        [] => "nothing".to_owned(),
        [Domain::Board] => Domain::Board.to_string(),
        [only] => format!("{only} only"),
        several => several.iter().map(Domain::to_string).collect::<Vec<_>>().join(" + "),
    }
}

impl EnergyMeter {
    /// The sensors below a root folder (`/`, or see [`system_root`](super::system_root)) and those
    /// of graphics cards, which the caller knows how to read. Never fails: what cannot be read is
    /// in [`EnergyMeter::sensors`] with its reason.
    pub fn open(root: &Path, gpu: Vec<Sensor>) -> EnergyMeter {
        let (readers, list) = sensors::open(root, gpu);
        let sources = readers.iter().map(|r| r.source().clone()).collect();
        EnergyMeter { readers: Arc::new(Mutex::new(readers)), sources, list: list.into() }
    }

    /// Every sensor that was found, used or not.
    pub fn sensors(&self) -> &[SensorInfo] {
        &self.list
    }

    /// Whether there is nothing that can be read.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Whether what a run on these processors takes is in the figure: the CPU's package, and the
    /// GPU's card where it has one of its own.
    pub fn covers(&self, gpu: Option<&DeviceInfo>) -> bool {
        let has = |domain: Domain| self.sources.iter().any(|s| s.domain == domain);
        let gpu_covered = match gpu {
            Some(gpu) if gpu.device == Device::Gpu && !gpu.unified_memory => {
                self.sources.iter().any(|s| s.domain == Domain::Gpu && is_of(s, &gpu.name))
            }
            _ => true,
        };
        has(Domain::Board) || (has(Domain::Package) && gpu_covered)
    }

    /// The shortest run whose energy is more than the sensors' steps: 20 new figures of the
    /// slowest, and 300 ms at least.
    pub fn shortest(&self) -> Duration {
        (20 * slowest(&self.sources)).max(Duration::from_millis(300))
    }

    /// Begins to measure. Several runs may be measured at once.
    pub fn start(&self) -> Running {
        let shared = Arc::new(Shared {
            readers: self.readers.clone(),
            began: Instant::now(),
            state: Mutex::new(State {
                tallies: vec![Tally::default(); self.sources.len()],
                seconds: 0.0,
                failure: self.is_empty().then_some(EnergyError::NoSensor),
                ended: false,
            }),
            end: Condvar::new(),
        });
        shared.read();
        let period = self.sources.iter().filter_map(|s| s.read_every).min();
        let thread = period.and_then(|period| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("sparoa-energy".to_owned());
            thread
                .spawn({
                    let shared = shared.clone();
                    move || shared.read_every(period)
                })
                .inspect_err(|e| shared.fail("the sampling thread", &e.to_string()))
                .ok()
        });
        Running { shared, sources: self.sources.clone(), thread }
    }
}

/// Whether a graphics card's sensor is that of the adapter with this name.
fn is_of(source: &EnergySource, adapter: &str) -> bool {
    let adapter = adapter.to_lowercase();
    let vendors: &[&str] = match source.name.split(' ').next() {
        Some("nvml") => &["nvidia"],
        Some("amdgpu") => &["amd", "radeon"],
        Some("i915" | "xe") => &["intel"],
        _ => &[],
    };
    vendors.iter().any(|vendor| adapter.contains(vendor))
}

fn slowest(sources: &[EnergySource]) -> Duration {
    sources.iter().map(|s| s.update).max().unwrap_or_default()
}

/// A measurement under way; dropping it ends it.
pub struct Running {
    shared: Arc<Shared>,
    sources: Arc<[EnergySource]>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    readers: Readers,
    began: Instant,
    state: Mutex<State>,
    end: Condvar,
}

struct State {
    /// By reader.
    tallies: Vec<Tally>,
    /// Of the last reading, from the beginning.
    seconds: f64,
    failure: Option<EnergyError>,
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, sensor: &str, reason: &str) {
        let (sensor, reason) = (sensor.to_owned(), reason.to_owned());
        self.state().failure.get_or_insert(EnergyError::Device { sensor, reason });
    }

    /// One reading of every sensor, in order. After a failure the sum is not known any more.
    fn read(&self) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        if state.failure.is_some() {
            return;
        }
        state.seconds = self.began.elapsed().as_secs_f64();
        for (i, reader) in readers.iter_mut().enumerate() {
            let sample = reader.read();
            // A reading may take milliseconds: its own time counts.
            let seconds = self.began.elapsed().as_secs_f64();
            match sample {
                Ok(sample) => state.tallies[i].add(seconds, sample),
                Err(e) => state.failure = Some(e),
            }
        }
    }

    fn read_every(&self, period: Duration) {
        let mut next = Instant::now() + period;
        loop {
            let state = self.state();
            let wait = next.saturating_duration_since(Instant::now());
            let waited = self.end.wait_timeout_while(state, wait, |s| !s.ended);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.ended || state.failure.is_some() {
                return;
            }
            drop(state);
            self.read();
            // After a stall no readings in a row to catch up.
            next = (next + period).max(Instant::now());
        }
    }
}

impl Running {
    /// The energy since the start; measuring goes on. Differences of two such figures are as good
    /// as figures of their own.
    ///
    /// # Errors
    /// When a sensor failed, or there is none.
    pub fn so_far(&self) -> Result<Measured, EnergyError> {
        self.shared.read();
        let state = self.shared.state();
        if let Some(e) = &state.failure {
            return Err(e.clone());
        }
        let mut domains: Vec<Domain> = self.sources.iter().map(|s| s.domain).collect();
        domains.sort_unstable();
        domains.dedup();
        Ok(Measured {
            joules: state.tallies.iter().map(|t| t.joules).sum(),
            seconds: state.seconds,
            method: self.sources.iter().map(|s| s.method).max().unwrap_or(EnergyMethod::Counter),
            sources: self.sources.iter().map(|s| s.name.clone()).collect(),
            domains,
        })
    }

    /// The energy of the whole run.
    ///
    /// # Errors
    /// When a sensor failed, there is none, or none has moved: the run was too short, or the
    /// machine only pretends to count.
    pub fn stop(self) -> Result<Measured, EnergyError> {
        let measured = self.so_far()?;
        if measured.joules > 0.0 {
            return Ok(measured);
        }
        Err(EnergyError::Still {
            sensors: measured.sources.join(", "),
            seconds: measured.seconds,
            update_ms: slowest(&self.sources).as_millis(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.end.notify_all();
        if let Some(thread) = self.thread.take() {
            // At worst in the middle of a reading; what it panicked of has been told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
