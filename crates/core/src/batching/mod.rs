//! Batches: which size is best ([`find_batch`]), and making them of single requests
//! ([`BatchQueue`]).

mod curve;
mod measure;
pub mod queue;
mod search;

pub use curve::LatencyCurve;
pub use measure::{ProbeOptions, measure_batch};
pub use queue::{BatchQueue, Cuts, QueueError, QueueOptions, QueueStats, Target, Ticket, ladder};
pub use search::{BatchChoice, BatchLimits, Probe, Probed, SearchError, Stopped, find_batch};

#[cfg(test)]
mod tests;
