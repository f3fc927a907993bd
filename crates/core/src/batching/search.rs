//! The batch with the best throughput from a few probes. Ours: of the paper's batch optimisation
//! (its Algorithm 2 follows the gradient of throughput) only the outline is known.
//!
//! One image is probed first, then at most [`STRIDE`] times as many as before, as long as the
//! curve allows a larger batch to be better: that follows the gradient of throughput upwards.
//! Where it turns, the next probe is the batch that could be best if latency were convex
//! ([`LatencyCurve::floor_ns`]), and the search ends when none could gain [`GAIN`]. What is left
//! of the probes looks for the knee: a smaller batch with nearly the same throughput, because a
//! larger one only makes every image wait longer.
//!
//! The constants are from simulated searches: affine, superlinear and kinked curves, stairs of
//! devices that work on several images at once, exact and with 2 % of noise.

use std::fmt;

use super::LatencyCurve;

/// A batch must be able to raise throughput by this share to be worth a probe.
const GAIN: f64 = 0.02;
/// Of batches whose throughput is within this share of the best the smallest is chosen.
const KNEE: f64 = 0.015;
/// A probe is at least this factor away from all others: closer ones measure noise.
const APART: f64 = 1.3;
/// A probe is at most this many times the largest before.
const STRIDE: usize = 6;
/// Probes are round, with so many significant bits: devices work on several images at once, and
/// odd batches leave a part of the last group idle.
const BITS: u32 = 3;

/// What a batch must keep to, and how long to look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The longest latency of a batch, in nanoseconds.
    pub slo_ns: Option<u64>,
    /// The most memory of a session with the batch, in bytes.
    pub memory_bytes: Option<usize>,
    /// The largest batch to consider.
    pub most: usize,
    /// The most probes.
    pub probes: usize,
}

impl Default for BatchLimits {
    fn default() -> BatchLimits {
        BatchLimits { slo_ns: None, memory_bytes: None, most: 64, probes: 6 }
    }
}

/// What a probe of one batch found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Latency of the whole batch, in nanoseconds.
    pub latency_ns: u64,
    /// Memory of a session with it, in bytes.
    pub bytes: usize,
}

/// One probe.
#[derive(Clone, Debug)]
pub struct Probed<E> {
    /// The batch.
    pub batch: usize,
    /// What was found; the error of a batch that could not be run ended the search above it.
    pub outcome: Result<Probe, E>,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct BatchChoice<E> {
    /// The batch.
    pub batch: usize,
    /// What its probe found.
    pub probe: Probe,
    /// Latency over the batch as far as it was probed.
    pub curve: LatencyCurve,
    /// All probes, in their order.
    pub probes: Vec<Probed<E>>,
    /// Why there is no better one.
    pub stopped: Stopped,
}

/// Why a search ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By the curve no other batch is faster per image.
    Knee,
    /// Larger batches may be faster per image, but take longer than the SLO.
    Slo,
    /// Larger batches may be faster per image, but take more memory than allowed.
    Memory,
    /// Larger batches may be faster per image, but the next one could not be run.
    Refused,
    /// It is the largest batch that was to be considered.
    Most,
    /// The probes were used up; another batch may still be faster per image.
    Probes,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stopped::Knee => "no other batch is faster per image by the curve",
            Stopped::Slo => "a larger batch would miss the SLO",
            Stopped::Memory => "a larger batch would pass the memory limit",
            Stopped::Refused => "a larger batch could not be run",
            Stopped::Most => "it is the largest batch considered",
            Stopped::Probes => "all probes are used, another batch may be faster per image",
        })
    }
}

/// A search without an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError<E> {
    /// A single image takes too long.
    #[error(
        "batch 1 takes {:.3} ms, more than the SLO of {:.3} ms: raise the SLO or choose a faster \
         policy or model", *latency_ns as f64 / 1e6, *slo_ns as f64 / 1e6
    )]
    Slo {
        /// What was asked for, in nanoseconds.
        slo_ns: u64,
        /// What batch 1 takes, in nanoseconds.
        latency_ns: u64,
    },
    /// A single image takes too much memory.
    #[error("batch 1 needs {bytes} bytes of memory, more than the limit of {limit}: raise it")]
    Memory {
        /// What was asked for.
        limit: usize,
        /// What batch 1 needs.
        bytes: usize,
    },
    /// Nothing may be tried.
    #[error("the search for a batch needs at least one probe and a largest batch of at least 1")]
    Nothing,
    /// Batch 1 cannot be run.
    #[error(transparent)]
    Probe(E),
}

/// Finds the batch with the best throughput within the limits. `probe` measures one batch; its
/// errors end the search above that batch, unless it is the first.
///
/// # Errors
/// When batch 1 already misses a limit or cannot be run.
pub fn find_batch<E>(
    limits: &BatchLimits,
    mut probe: impl FnMut(usize) -> Result<Probe, E>,
) -> Result<BatchChoice<E>, SearchError<E>> {
    if limits.most == 0 || limits.probes == 0 {
        return Err(SearchError::Nothing);
    }
    let first = probe(1).map_err(SearchError::Probe)?;
    if let Some(slo_ns) = limits.slo_ns.filter(|&slo| first.latency_ns > slo) {
        return Err(SearchError::Slo { slo_ns, latency_ns: first.latency_ns });
    }
    if let Some(limit) = limits.memory_bytes.filter(|&limit| first.bytes > limit) {
        return Err(SearchError::Memory { limit, bytes: first.bytes });
    }
    let mut search = Search {
        limits: *limits,
        curve: LatencyCurve::new(),
        probes: vec![Probed { batch: 1, outcome: Ok(first) }],
        refused: None,
    };
    search.curve.insert(1, first.latency_ns);
    while search.probes.len() < limits.probes
        && let Some(batch) = search.next()
    {
        let outcome = probe(batch);
        match &outcome {
            Ok(found) => search.curve.insert(batch, found.latency_ns),
            Err(_) => search.refused = Some(batch),
        }
        search.probes.push(Probed { batch, outcome });
    }
    let (batch, probe) = search.choice();
    let stopped = search.stopped();
    let Search { curve, probes, .. } = search;
    Ok(BatchChoice { batch, probe, curve, probes, stopped })
}

struct Search<E> {
    limits: BatchLimits,
    curve: LatencyCurve,
    probes: Vec<Probed<E>>,
    /// The smallest batch that could not be run.
    refused: Option<usize>,
}

impl<E> Search<E> {
    fn found(&self) -> impl Iterator<Item = (usize, Probe)> {
        self.probes.iter().filter_map(|p| Some((p.batch, *p.outcome.as_ref().ok()?)))
    }

    /// Probed batches within the limits.
    fn allowed(&self) -> impl Iterator<Item = (usize, Probe)> {
        let Limited { slo_ns, bytes } = Limited::of(&self.limits);
        self.found().filter(move |(_, p)| p.latency_ns <= slo_ns && p.bytes <= bytes)
    }

    fn best(&self) -> f64 {
        self.allowed().map(|(b, p)| throughput(b, p.latency_ns as f64)).fold(0.0, f64::max)
    }

    /// The smallest of the probed batches whose throughput is nearly the best.
    fn choice(&self) -> (usize, Probe) {
        let enough = self.best() * (1.0 - KNEE);
        self.allowed()
            .filter(|&(b, p)| throughput(b, p.latency_ns as f64) >= enough)
            .min_by_key(|(b, _)| *b)
            .expect("batch 1 is within the limits")
    }

    /// The next batch to probe, if one is worth it.
    fn next(&self) -> Option<usize> {
        let largest = self.curve.points().last().map_or(1, |p| p.0);
        let reach = match self.refused {
            // Nothing is known of what lies between: halfway, by factors.
            Some(refused) => refused.saturating_mul(largest).isqrt(),
            None => self.limits.most.min(largest.saturating_mul(STRIDE)),
        };
        let best = self.best();
        let last = self.last();
        let open = |b: &usize| self.is_open(*b, last);
        let candidates = (2..=reach).filter(open);
        if let Some(batch) = candidates.max_by(|a, b| self.ceiling(*a).total_cmp(&self.ceiling(*b)))
            && self.ceiling(batch) > best * (1.0 + GAIN)
        {
            return Some(batch);
        }
        // The knee: worth a probe where it saves a quarter of the batch.
        let chosen = self.choice().0;
        let enough = best * (1.0 - KNEE);
        let expected = |b: usize| throughput(b, self.curve.estimate_ns(b).unwrap_or(f64::MAX));
        let knee = (2..chosen).filter(open).find(|&b| expected(b) >= enough)?;
        (knee <= chosen * 3 / 4).then_some(knee)
    }

    /// The largest batch that the limits allow: worth as much as a round one.
    fn last(&self) -> Option<usize> {
        if self.refused.is_some() {
            return None;
        }
        (2..=self.limits.most).rev().find(|&b| self.limit(b).is_none())
    }

    /// Whether a batch may be probed.
    fn is_open(&self, batch: usize, last: Option<usize>) -> bool {
        let new = || self.probes.iter().all(|p| p.batch != batch);
        self.limit(batch).is_none()
            && (is_round(batch) && self.is_apart(batch) || last == Some(batch) && new())
    }

    /// Images per nanosecond that a batch can reach if latency is convex.
    fn ceiling(&self, batch: usize) -> f64 {
        throughput(batch, self.curve.floor_ns(batch).unwrap_or(f64::MAX))
    }

    fn is_apart(&self, batch: usize) -> bool {
        self.probes.iter().all(|p| {
            let (small, large) = (p.batch.min(batch), p.batch.max(batch));
            large as f64 >= small as f64 * APART
        })
    }

    /// The limit that a batch is expected to pass.
    fn limit(&self, batch: usize) -> Option<Stopped> {
        let Limited { slo_ns, bytes } = Limited::of(&self.limits);
        if self.refused.is_some_and(|r| batch >= r) {
            Some(Stopped::Refused)
        } else if self.curve.estimate_ns(batch).unwrap_or(0.0) > slo_ns as f64 {
            Some(Stopped::Slo)
        } else if self.expected_bytes(batch) > bytes as f64 {
            Some(Stopped::Memory)
        } else {
            None
        }
    }

    /// Memory is a fixed part, mostly weights, plus a part per image.
    fn expected_bytes(&self, batch: usize) -> f64 {
        let mut points: Vec<(usize, f64)> =
            self.found().map(|(b, p)| (b, p.bytes as f64)).collect();
        points.sort_by_key(|p| p.0);
        match points[..] {
            [(a, from), .., (b, to)] => from + (to - from) * (batch - a) as f64 / (b - a) as f64,
            // Of one point alone the split is unknown: two images are tried, more only where
            // everything may grow with them.
            [(_, bytes)] if batch > 2 => bytes * batch as f64,
            [(_, bytes)] => bytes,
            [] => 0.0,
        }
    }

    /// Why there is no better batch: what keeps the one from being tried that could be better.
    fn stopped(&self) -> Stopped {
        if self.choice().0 == self.limits.most {
            return Stopped::Most;
        }
        let enough = self.best() * (1.0 + GAIN);
        let last = self.last();
        let promising = |b: &usize| self.ceiling(*b) > enough;
        let why = |b: usize| match self.limit(b) {
            Some(limit) => Some(limit),
            None => self.is_open(b, last).then_some(Stopped::Probes),
        };
        (2..=self.limits.most).filter(promising).find_map(why).unwrap_or(Stopped::Knee)
    }
}

/// The limits as numbers.
struct Limited {
    slo_ns: u64,
    bytes: usize,
}

impl Limited {
    fn of(limits: &BatchLimits) -> Limited {
        Limited {
            slo_ns: limits.slo_ns.unwrap_or(u64::MAX),
            bytes: limits.memory_bytes.unwrap_or(usize::MAX),
        }
    }
}

fn is_round(batch: usize) -> bool {
    batch.ilog2() < batch.trailing_zeros() + BITS
}

fn throughput(batch: usize, latency_ns: f64) -> f64 {
    batch as f64 / latency_ns.max(1.0)
}

#[cfg(test)]
mod tests;
