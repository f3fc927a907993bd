//! `bench --batch auto`: the batch with the best throughput.

use std::fmt;

use serde::Serialize;
use sparoa::{BatchLimits, ProbeOptions, Probed, SearchError, find_batch, measure_batch};

use crate::{
    args::BenchArgs,
    error::{CliError, CliResult, Kind},
    progress::Bars,
    sessions::{BuildRequest, Machine, session_error},
    shapes::BatchArg,
    table::ms,
};

/// How the batch was found, as JSON and as a line.
#[derive(Serialize)]
pub struct BatchSearch {
    probes: Vec<Tried>,
    /// The batch.
    pub chosen: usize,
    /// Why no other.
    reason: String,
}

#[derive(Serialize)]
struct Tried {
    batch: usize,
    latency_ms: Option<f64>,
    /// Host and device memory of the session.
    bytes: Option<usize>,
    /// Why it could not be run.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Reads `--slo-ms` and `--memory-limit`.
///
/// # Errors
/// An SLO that is no time, or given where nothing is searched.
pub fn limits(args: &BenchArgs) -> CliResult<BatchLimits> {
    let searches = args.batch.contains(&BatchArg::Auto);
    if args.slo_ms.is_some() && !searches {
        return Err(CliError::usage("--slo-ms: only --batch auto heeds it, add that"));
    }
    let slo_ns = match args.slo_ms {
        Some(slo) if !(slo.is_finite() && slo > 0.0) => {
            return Err(CliError::usage("--slo-ms: must be a number of milliseconds above 0"));
        }
        slo => slo.map(|ms| (ms * 1e6) as u64),
    };
    let memory_bytes = args.policy_args.memory_limit.map(|limit| limit.0);
    Ok(BatchLimits { slo_ns, memory_bytes, ..BatchLimits::default() })
}

/// Finds the batch of a model under a policy.
///
/// # Errors
/// Models that cannot be built, or whose batch is fixed; limits that batch 1 misses.
pub fn search(
    machine: &Machine,
    bars: &Bars,
    request: &BuildRequest,
    limits: &BatchLimits,
) -> CliResult<BatchSearch> {
    let choice = find_batch(limits, |batch| {
        let mut request = request.clone();
        request.batch = Some(batch);
        let mut session = machine.build(&request, bars)?;
        measure_batch(&mut session, &ProbeOptions::default()).map_err(session_error)
    });
    let mut choice = choice.map_err(|e| match e {
        SearchError::Probe(e) => e,
        e => CliError::usage(format!("--batch auto: {e}")),
    })?;
    // A batch that the flags or the model forbid is no limit of this machine.
    let forbidden = |p: &Probed<CliError>| matches!(&p.outcome, Err(e) if e.kind == Kind::Usage);
    if let Some(at) = choice.probes.iter().position(forbidden)
        && let Err(e) = choice.probes.swap_remove(at).outcome
    {
        return Err(e);
    }
    let tried = |p: &Probed<CliError>| Tried {
        batch: p.batch,
        latency_ms: p.outcome.as_ref().ok().map(|p| p.latency_ns as f64 / 1e6),
        bytes: p.outcome.as_ref().ok().map(|p| p.bytes),
        error: p.outcome.as_ref().err().map(ToString::to_string),
    };
    Ok(BatchSearch {
        probes: choice.probes.iter().map(tried).collect(),
        chosen: choice.batch,
        reason: choice.stopped.to_string(),
    })
}

impl fmt::Display for BatchSearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {} chosen, {} (probed", self.chosen, self.reason)?;
        for (i, probe) in self.probes.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match (probe.latency_ms, &probe.error) {
                (Some(latency), _) => write!(f, "{comma} {}: {} ms", probe.batch, ms(latency))?,
                (None, error) => {
                    let error = error.as_deref().unwrap_or("failed");
                    write!(f, "{comma} {}: {error}", probe.batch)?;
                }
            }
        }
        f.write_str(")")
    }
}
