//! What a contender's inferences take: the sensors' figures at the borders of its own slices, or
//! what it is modelled to take where they do not tell.

use serde::Serialize;
use sparoa::{EnergyError, EnergyMeter, EnergyMethod, Measured, Running, Session, Tensor};

use crate::{error::CliResult, sessions::session_error};

/// The energy of a row, as `bench --json` has it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Energy {
    /// Joules of one inference (of the whole batch).
    pub energy_j: Option<f64>,
    /// Average power while it ran.
    pub average_w: Option<f64>,
    /// How both are known.
    pub energy_method: Option<EnergyMethod>,
    /// The sensors, or what the model rests on.
    pub energy_sources: Vec<String>,
    /// What of the machine is in the figures.
    pub energy_covers: Option<String>,
    /// Why it is modelled although there are sensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_note: Option<String>,
}

impl Energy {
    /// Of `inferences` that an energy was measured or modelled over.
    pub fn of(m: Measured, inferences: f64, note: Option<String>) -> Energy {
        Energy {
            energy_j: Some(m.joules / inferences),
            average_w: Some(m.watts()),
            energy_method: Some(m.method),
            energy_covers: Some(m.coverage()),
            energy_sources: m.sources,
            energy_note: note,
        }
    }

    /// A figure with its label, for a table's cell.
    pub fn cell(&self, figure: Option<f64>, digits: usize) -> String {
        match (figure, self.energy_method) {
            (None, _) => "-".to_owned(),
            (Some(v), Some(EnergyMethod::Modelled)) => format!("{v:.digits$} (modelled)"),
            (Some(v), _) => format!("{v:.digits$}"),
        }
    }
}

/// Sums a contender's slices.
#[derive(Default)]
pub struct Slices {
    sum: Option<Result<Measured, EnergyError>>,
    inferences: u64,
}

impl Slices {
    /// Adds what was measured between two borders, with the inferences between them.
    pub fn add(
        &mut self,
        before: Option<Result<Measured, EnergyError>>,
        running: Option<&Running>,
        inferences: u64,
    ) {
        let (Some(before), Some(running)) = (before, running) else { return };
        if inferences == 0 || matches!(self.sum, Some(Err(_))) {
            return;
        }
        let slice = before.and_then(|before| {
            let after = running.so_far()?;
            let (joules, seconds) = (after.joules - before.joules, after.seconds - before.seconds);
            Ok(Measured { joules, seconds, ..after })
        });
        self.inferences += inferences;
        self.sum = Some(match (self.sum.take(), slice) {
            (Some(Ok(sum)), Ok(slice)) => Ok(Measured {
                joules: sum.joules + slice.joules,
                seconds: sum.seconds + slice.seconds,
                ..sum
            }),
            (_, slice) => slice,
        });
    }

    /// The energy of one inference; modelled, with the reason, where the sensors did not tell.
    ///
    /// # Errors
    /// When the model cannot run any more.
    pub fn energy(
        self,
        meter: &EnergyMeter,
        session: &mut Session,
        inputs: &[(&str, Tensor)],
        mean_s: f64,
    ) -> CliResult<Energy> {
        let needed = meter.shortest().as_secs_f64();
        let why = match self.sum {
            None => None,
            Some(Err(e)) => Some(e.to_string()),
            Some(Ok(m)) if m.seconds < needed => Some(format!(
                "ran for {:.2} s, and the sensors need {needed:.1} s: raise --min-time-s",
                m.seconds
            )),
            Some(Ok(m)) if m.joules <= 0.0 => {
                Some(format!("{} did not move in {:.1} s", m.sources.join(", "), m.seconds))
            }
            Some(Ok(m)) => return Ok(Energy::of(m, self.inferences as f64, None)),
        };
        let modelled = session.modelled_energy(inputs, mean_s).map_err(session_error)?;
        Ok(Energy::of(modelled, 1.0, why))
    }
}
