//! Energy objectives end to end: on a machine whose sensor the test plays, and on one without.

use std::{path::Path, sync::Arc, time::Instant};

use crate::{
    backend::{Accelerator as _, NullAccelerator, NullOptions},
    energy::{Domain, EnergyError, EnergyMethod, EnergyReader, EnergySource, Sample, Sensor},
    plan::Place,
    profile::PowerSource,
    schedule::{Objective, Policy},
    session::tests::{builder, inputs},
};

use super::*;

/// A board of 10 W at rest, 20 W more while this thread computes, and a joule for every submission
/// to the GPU.
struct Board {
    source: EnergySource,
    gpu: Arc<NullAccelerator>,
    began: Instant,
    /// Counts nothing, as the files of some virtual machines.
    stuck: bool,
}

impl EnergyReader for Board {
    fn source(&self) -> &EnergySource {
        &self.source
    }

    fn read(&mut self) -> Result<Sample, EnergyError> {
        if self.stuck {
            return Ok(Sample::Joules(0.0));
        }
        let computed = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let computed_ns: f64 = computed.split(' ').next().unwrap().parse().unwrap();
        let submissions = self.gpu.submissions() as f64;
        let joules = 10.0 * self.began.elapsed().as_secs_f64() + 20e-9 * computed_ns + submissions;
        Ok(Sample::Joules(joules))
    }
}

fn meter(gpu: &Arc<NullAccelerator>, stuck: bool) -> EnergyMeter {
    let source = EnergySource {
        name: "played board".to_owned(),
        domain: Domain::Board,
        method: EnergyMethod::Counter,
        update: Duration::from_micros(1),
        read_every: None,
    };
    let gpu = gpu.clone();
    let reader = Board { source: source.clone(), gpu, began: Instant::now(), stuck };
    let sensor = Sensor { source, reader: Ok(Box::new(reader)) };
    EnergyMeter::open(Path::new("/nonexistent"), vec![sensor])
}

#[test]
fn watts_are_measured_once_and_energies_decide() {
    if !Path::new("/proc/thread-self/schedstat").exists() {
        println!("skipped: this kernel does not tell how long a thread computed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let null = NullAccelerator::new(NullOptions::default());
    let build = || {
        let builder = builder(&null, &dir).objective(Objective::Energy);
        builder.energy_meter(meter(&null, false)).build().unwrap()
    };
    let session = build();
    let power = session.profile().unwrap().power.unwrap();
    assert_eq!(power.source, PowerSource::Measured);
    assert!((8.0..16.0).contains(&power.idle_w), "{power:?}");
    assert!((1.0..30.0).contains(&power.cpu_w) && power.gpu_w > 30.0, "{power:?}");
    // A joule for every submission: the CPU alone takes far less, whatever the times are.
    assert_eq!(session.placement().places, [Place::Cpu; 5]);
    let guard = session.decision().guard.clone().unwrap();
    assert_eq!(guard.entries[guard.chosen].name, "cpu");
    let gpu = guard.entries.iter().find(|e| e.name == "gpu").expect("gpu alone is measured");
    let (cpu, gpu) = (guard.entries[0].median_j().unwrap(), gpu.median_j().unwrap());
    assert!(gpu > 1.0 && cpu < 0.5, "cpu {cpu} J, gpu {gpu} J");
    // The second start measures nothing.
    let submissions = null.submissions();
    let again = build();
    let known = again.profile().unwrap().power.unwrap();
    assert!((known.cpu_w / power.cpu_w - 1.0).abs() < 1e-9, "{known:?} {power:?}");
    assert!(again.decision().guard.as_ref().unwrap().cached);
    assert_eq!(null.submissions(), submissions);
}

#[test]
fn without_a_sensor_that_counts_watts_are_modelled() {
    let dir = tempfile::tempdir().unwrap();
    let null = NullAccelerator::new(NullOptions::default());
    for stuck in [false, true] {
        let mut builder = builder(&null, &dir).objective(Objective::Edp);
        if stuck {
            builder = builder.fresh(true).energy_meter(meter(&null, true));
        }
        let session = builder.build().unwrap();
        let power = session.profile().unwrap().power.unwrap();
        assert_eq!(power.source, PowerSource::Modelled);
        assert!(power.idle_w > 0.0 && power.cpu_w > 0.0, "{power:?}");
        let guard = session.decision().guard.clone().unwrap();
        // The model's watts over measured times decide, and the CPU alone is never beaten by less.
        let joules = |i: usize| guard.entries[i].median_j().unwrap();
        assert!(joules(guard.chosen) <= joules(0), "{guard:?}");
    }
}

#[test]
fn a_modelled_energy_follows_the_busy_times() {
    let dir = tempfile::tempdir().unwrap();
    let null = NullAccelerator::new(NullOptions::default());
    let mut session = builder(&null, &dir).policy(Policy::Cpu).build().unwrap();
    let given = inputs(&session);
    let m = session.modelled_energy(&given, 0.5).unwrap();
    assert_eq!((m.method, m.seconds), (EnergyMethod::Modelled, 0.5));
    let power = modelled_power(&system_root(), session.cpu(), Some(null.info())).power;
    let (rest, full) = (0.5 * power.idle_w, 0.5 * (power.idle_w + power.cpu_w));
    assert!(m.joules > rest && m.joules <= full * 1.001, "{m:?}");
    assert!(m.sources[0].starts_with("modelled: "), "{m:?}");
}
