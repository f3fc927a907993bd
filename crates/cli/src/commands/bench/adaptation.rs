//! `bench --adapt`: sessions whose plans follow the machine while they are measured, and what they did.

use serde::Serialize;
use sparoa::{AdaptOptions, Session, SessionError};

use crate::{
    error::{CliError, CliResult},
    sessions::{Machine, session_error},
};

/// What an adaptive session did, as JSON and as a line.
#[derive(Serialize)]
pub struct Adaptation {
    switches: u64,
    trials: u64,
    /// Times that the policy was asked, and that the plan cache answered instead.
    decisions: u64,
    cache_hits: u64,
    /// The longest that the policy took.
    slowest_decision_ms: f64,
    /// Plans that could not be prepared, or failed.
    refused: u64,
    /// Where the plans came from that ran one after the other.
    plans: Vec<String>,
}

impl Adaptation {
    /// Of a session; `None` for one that does not adapt.
    pub fn of(session: &Session) -> Option<Adaptation> {
        let report = session.adaptation()?;
        let first = report.log.first().map(|switch| switch.from.clone());
        Some(Adaptation {
            switches: report.switches,
            trials: report.trials,
            decisions: report.decisions,
            cache_hits: report.cache_hits,
            slowest_decision_ms: report.slowest_decision.as_secs_f64() * 1e3,
            refused: report.refused,
            plans: first.into_iter().chain(report.log.iter().map(|s| s.to.clone())).collect(),
        })
    }

    /// One line.
    pub fn text(&self) -> String {
        format!(
            "{} changes of plan after {} trials; the policy was asked {} times, {:.2} ms at most, the \
             plan cache {} times{}",
            self.switches,
            self.trials,
            self.decisions,
            self.slowest_decision_ms,
            self.cache_hits,
            if self.plans.is_empty() {
                String::new()
            } else {
                format!(": {}", self.plans.join(" > "))
            }
        )
    }
}

/// Lets every session adapt that can.
///
/// # Errors
/// When none can: the reason of the last.
pub fn start<'a>(machine: &Machine, sessions: impl Iterator<Item = &'a mut Session>) -> CliResult {
    let (mut adapts, mut reason) = (false, None);
    for session in sessions {
        match session.adapt(AdaptOptions::default(), machine.monitor()) {
            Ok(()) => adapts = true,
            Err(SessionError::NotAdaptable { reason: why }) => reason = Some(why),
            Err(e) => return Err(session_error(e)),
        }
    }
    match reason {
        Some(why) if !adapts => Err(CliError::usage(format!("--adapt: {why}"))),
        _ => Ok(()),
    }
}
