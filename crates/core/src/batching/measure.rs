//! A probe of a session: how long its batch takes and what memory it needs.

use std::time::{Duration, Instant};

use super::Probe;
use crate::{
    session::{Session, SessionError, random_tensor},
    tensor::Tensor,
};

/// How long to measure. The first run is warm-up whatever it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOptions {
    /// Fewest runs after the warm-up.
    pub runs: usize,
    /// Shortest measurement.
    pub time: Duration,
    /// No further run begins after this, whatever `runs` and `time` say; one is always made.
    pub most: Duration,
}

impl Default for ProbeOptions {
    fn default() -> ProbeOptions {
        ProbeOptions { runs: 7, time: Duration::from_millis(400), most: Duration::from_secs(4) }
    }
}

/// Runs a session on random inputs; its latency is the median.
///
/// # Errors
/// Those of [`Session::run_into`]: outputs that depend on run-time values cannot be batched.
pub fn measure_batch(session: &mut Session, options: &ProbeOptions) -> Result<Probe, SessionError> {
    let types = session.inputs().iter().filter_map(|input| input.ty.as_ref());
    let inputs = types.zip(0..).map(|(ty, seed)| session.upload_ready(random_tensor(ty, seed)));
    let inputs: Vec<Tensor> = inputs.collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let mut outputs = session.new_outputs();
    session.run_into(&inputs, &mut outputs)?;
    let start = Instant::now();
    let mut times = Vec::new();
    loop {
        let run = Instant::now();
        session.run_into(&inputs, &mut outputs)?;
        times.push(u64::try_from(run.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let enough = times.len() >= options.runs && start.elapsed() >= options.time;
        if enough || start.elapsed() >= options.most {
            break;
        }
    }
    times.sort_unstable();
    let engine = session.engine();
    Ok(Probe {
        latency_ns: times[times.len() / 2],
        bytes: engine.host_bytes() + engine.device_bytes(),
    })
}
