//! Electrical energy of a run: the machine's counters and power sensors behind one trait, read
//! around the run and, where they need it, during it. Where there are none, what the run would take
//! by figures of its board or by stated assumptions, which is called modelled everywhere.
//!
//! ```no_run
//! use std::path::Path;
//! use sparoa_core::energy::EnergyMeter;
//!
//! let meter = EnergyMeter::open(Path::new("/"), Vec::new());
//! let running = meter.start();
//! // ... what is to be measured ...
//! match running.stop() {
//!     Ok(m) => println!("{:.2} J, {:.1} W ({})", m.joules, m.watts(), m.coverage()),
//!     Err(e) => println!("energy is not known: {e}"),
//! }
//! ```

mod error;
mod found;
mod hwmon;
mod meter;
mod modelled;
mod number;
mod rapl;
mod sensors;
mod tally;

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use error::EnergyError;
pub use meter::{EnergyMeter, Measured, Running};
pub use modelled::{ModelledPower, modelled_power};
pub use sensors::{Sensor, SensorInfo};

/// What a sensor covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// The whole board or machine.
    Board,
    /// The CPU's package: cores, caches, memory controller and, where it has one, its GPU.
    Package,
    /// Memory modules.
    Dram,
    /// A graphics card.
    Gpu,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Domain::Board => "board",
            Domain::Package => "cpu package",
            Domain::Dram => "memory",
            Domain::Gpu => "gpu",
        })
    }
}

/// How an energy came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnergyMethod {
    /// The hardware counts joules.
    Counter,
    /// Momentary watts were read again and again.
    Sampled,
    /// Nothing was measured: busy times and watts of the board, or assumed ones.
    Modelled,
}

impl fmt::Display for EnergyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EnergyMethod::Counter => "counter",
            EnergyMethod::Sampled => "sampled",
            EnergyMethod::Modelled => "modelled",
        })
    }
}

/// A sensor, by what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnergySource {
    /// Driver and part: `rapl package-0`, `ina3221 VDD_IN`, `nvml NVIDIA GeForce RTX 4060`.
    pub name: String,
    /// What it covers.
    pub domain: Domain,
    /// Whether its readings are joules so far or watts of the moment.
    pub method: EnergyMethod,
    /// How often its figure changes.
    pub update: Duration,
    /// The longest time between two readings that loses nothing; `None` for counters that are as
    /// good when they are read at both ends of a run only.
    pub read_every: Option<Duration>,
}

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// Joules since some moment before the reader was made; never falls.
    Joules(f64),
    /// Watts at this moment.
    Watts(f64),
}

/// Reads one sensor.
pub trait EnergyReader: Send {
    /// What it is.
    fn source(&self) -> &EnergySource;

    /// Its figure now.
    ///
    /// # Errors
    /// See [`EnergyError`].
    fn read(&mut self) -> Result<Sample, EnergyError>;
}

/// Below which folder `sys` and `proc` are looked for: `$SPAROA_SYS_ROOT`, for containers that see
/// the host's elsewhere, or `/`.
pub fn system_root() -> PathBuf {
    std::env::var_os("SPAROA_SYS_ROOT").filter(|v| !v.is_empty()).map_or("/".into(), PathBuf::from)
}
