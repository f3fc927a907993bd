//! Watts and joules of a session: what this machine draws, what a finalist's inference takes, and
//! what it is modelled to take where no sensor tells.

use std::time::{Duration, Instant};

use super::{
    Session, SessionError,
    work::{Work, alone},
};
use crate::{
    energy::{EnergyError, EnergyMeter, Measured, ModelledPower, modelled_power, system_root},
    engine::{Engine, StepTimes},
    plan::{Lane, Place},
    profile::{Power, PowerSource, Profile},
    schedule::simulate,
    tensor::Tensor,
};

/// Energy and time of one inference, means over many.
#[derive(Clone, Copy, Debug)]
pub(super) struct PerInference {
    pub joules: f64,
    pub ns: u64,
    pub watts: f64,
}

/// Runs for as long as the meter needs to see it; the first run is not counted.
pub(super) fn measure_runs(
    meter: &EnergyMeter,
    engine: &mut Engine,
    inputs: &[&Tensor],
    outputs: &mut [Tensor],
) -> Result<PerInference, SessionError> {
    engine.run(inputs, outputs)?;
    let (start, running, mut runs) = (Instant::now(), meter.start(), 0.0);
    while start.elapsed() < meter.shortest() {
        engine.run(inputs, outputs)?;
        runs += 1.0;
    }
    let measured = running.stop()?;
    let ns = (measured.seconds * 1e9 / runs) as u64;
    Ok(PerInference { joules: measured.joules / runs, ns, watts: measured.watts() })
}

/// The same without sensors: the watts of the model over the measured times of both processors.
pub(super) fn model_runs(
    power: &Power,
    engine: &mut Engine,
    inputs: &[&Tensor],
    outputs: &mut [Tensor],
) -> Result<PerInference, SessionError> {
    const RUNS: u32 = 3;
    engine.run(inputs, outputs)?;
    let (mut times, mut sums) = (StepTimes::default(), StepTimes::default());
    let mut took = Duration::ZERO;
    for _ in 0..RUNS {
        let start = Instant::now();
        engine.run_timed(inputs, outputs, &mut times)?;
        took += start.elapsed();
        sums.add(&times);
    }
    let busy = |lane: Lane| sums.0[lane.index()].iter().sum::<u64>() / u64::from(RUNS);
    let ns = (took / RUNS).as_nanos() as u64;
    let joules = power.energy_j(ns, busy(Lane::Cpu), busy(Lane::Gpu));
    Ok(PerInference { joules, ns, watts: joules / (ns.max(1) as f64 / 1e9) })
}

impl Work<'_> {
    /// The meter, where it covers every processor that may compute.
    pub fn covering_meter(&self) -> Option<EnergyMeter> {
        let gpu = self.accelerator.as_ref().map(|a| a.info());
        self.meter.as_ref().filter(|meter| meter.covers(gpu)).cloned()
    }

    /// This machine's watts: measured once, where that is wanted and sensors cover it, else
    /// modelled.
    pub fn power(&mut self, measure: bool, profile: &Profile) -> Result<Power, SessionError> {
        if let Some(power) = self.cache().power {
            return Ok(power);
        }
        if measure && let Some(meter) = self.covering_meter() {
            match self.measured_power(&meter, profile) {
                Ok(power) => {
                    self.cache().power = Some(power);
                    self.store();
                    return Ok(power);
                }
                Err(SessionError::Energy(e)) => {
                    tracing::warn!("this machine's watts are modelled: {e}");
                    self.meter = None;
                }
                Err(e) => return Err(e),
            }
        }
        let gpu = self.accelerator.as_ref().map(|a| a.info());
        Ok(modelled_power(&system_root(), self.cpu, gpu).power)
    }

    /// At rest, while the CPU runs this model, while the GPU does.
    fn measured_power(
        &self,
        meter: &EnergyMeter,
        profile: &Profile,
    ) -> Result<Power, SessionError> {
        // Threads that have just computed still spin.
        std::thread::sleep(Duration::from_millis(50));
        let running = meter.start();
        std::thread::sleep(meter.shortest());
        let idle_w = running.stop()?.watts();
        let inputs = self.random_inputs();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let busy = |place: Place| -> Result<(f64, [f64; 2]), SessionError> {
            let placement = alone(self.graph, self.support, place);
            let mut engine = self.engine(&placement, Some(profile))?;
            let timeline = simulate(engine.plan(), profile);
            let share = |ns: u64| ns as f64 / timeline.makespan_ns.max(1) as f64;
            let shares = [share(timeline.busy_ns[0]), share(timeline.busy_ns[1])];
            let mut outputs = engine.new_outputs();
            let run = measure_runs(meter, &mut engine, &inputs, &mut outputs)?;
            Ok((run.watts, shares))
        };
        let (watts, shares) = busy(Place::Cpu)?;
        let cpu_w = added(idle_w, watts, 0.0, shares[0])?;
        let gpu_w = match self.accelerator {
            None => 0.0,
            Some(_) => {
                let (watts, shares) = busy(Place::Gpu)?;
                added(idle_w, watts, cpu_w * shares[0], shares[1])?
            }
        };
        Ok(Power { idle_w, cpu_w, gpu_w, source: PowerSource::Measured })
    }
}

/// What a processor adds while it computes, which it did for this share of the time.
fn added(idle_w: f64, watts: f64, other_w: f64, share: f64) -> Result<f64, EnergyError> {
    let added = (watts - idle_w - other_w) / share.max(1e-3);
    match added > 0.0 {
        true => Ok(added),
        false => Err(EnergyError::Indistinct { idle_w, busy_w: watts }),
    }
}

impl Session {
    /// What one inference that takes so many seconds is modelled to take, for machines without an
    /// energy sensor: watts of [`modelled_power`], busy times of both processors from three traced
    /// runs.
    ///
    /// # Errors
    /// Those of [`Session::run_traced`].
    pub fn modelled_energy(
        &mut self,
        inputs: &[(&str, Tensor)],
        seconds: f64,
    ) -> Result<Measured, SessionError> {
        let (mut busy, mut whole) = ([0, 0], 0);
        for _ in 0..3 {
            let (_, trace) = self.run_traced(inputs)?;
            busy[0] += trace.busy_ns(Lane::Cpu);
            busy[1] += trace.busy_ns(Lane::Gpu);
            whole += trace.makespan_ns;
        }
        let busy = busy.map(|ns| (ns as f64 / whole.max(1) as f64).min(1.0) * seconds);
        let gpu = self.accelerator.as_ref().map(|a| a.info());
        let ModelledPower { power, basis } = modelled_power(&system_root(), &self.cpu, gpu);
        Ok(Measured::modelled(&power, &basis, seconds, busy))
    }
}

#[cfg(test)]
mod tests;
