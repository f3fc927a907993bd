//! What a queue counts.

use std::{collections::BTreeMap, time::Instant};

use super::rule::Cut;

/// Figures of a queue since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueStats {
    /// Requests taken in.
    pub submitted: u64,
    /// Requests answered with outputs.
    pub answered: u64,
    /// Requests answered with an error of the session.
    pub failed: u64,
    /// Requests refused because the queue was full.
    pub rejected: u64,
    /// Requests that could not meet their deadline and were not computed.
    pub expired: u64,
    /// Requests that nobody waited for any more and were not computed.
    pub cancelled: u64,
    /// Batches computed, by the size of the session that computed them.
    pub batches: BTreeMap<usize, u64>,
    /// Rows computed for requests.
    pub rows: u64,
    /// Rows computed for nothing, to fill a session's batch.
    pub padded: u64,
    /// Why batches were not made to wait for more.
    pub cuts: Cuts,
    /// Nanoseconds that requests spent in the queue, all together.
    pub wait_ns: u64,
    /// Nanoseconds that batches took, all together.
    pub compute_ns: u64,
    /// Requests waiting now.
    pub waiting: usize,
    /// Rows that come per second, by the last few arrivals; `None` before the second.
    pub arrivals_per_s: Option<f64>,
    /// What each prepared size takes now: batch and nanoseconds.
    pub latency_ns: Vec<(usize, u64)>,
}

/// Batches by what cut them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// As large as a batch may be.
    pub full: u64,
    /// Waiting for more did not pay.
    pub ready: u64,
    /// Waited as long as they may.
    pub waited: u64,
    /// A deadline or the SLO pressed.
    pub pressed: u64,
}

impl Cuts {
    pub(super) fn count(&mut self, cut: Cut) {
        *match cut {
            Cut::Full => &mut self.full,
            Cut::Ready => &mut self.ready,
            Cut::Waited => &mut self.waited,
            Cut::Pressed => &mut self.pressed,
        } += 1;
    }
}

/// When rows come.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    last: Option<Instant>,
    gap_ns: Option<f64>,
}

impl Arrivals {
    /// The weight of the last gap in the mean.
    const WEIGHT: f64 = 0.125;

    pub fn observe(&mut self, now: Instant, rows: usize) {
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last).as_nanos() as f64 / rows.max(1) as f64;
            let mean = self.gap_ns.get_or_insert(gap);
            *mean += (gap - *mean) * Self::WEIGHT;
        }
        self.last = Some(now);
    }

    /// Expected nanoseconds to the next row: the mean gap, or longer where none came for longer.
    pub fn gap_ns(&self, now: Instant) -> Option<f64> {
        let since = now.saturating_duration_since(self.last?).as_nanos() as f64;
        Some(self.gap_ns?.max(since))
    }

    pub fn per_s(&self) -> Option<f64> {
        self.gap_ns.map(|gap| 1e9 / gap.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn arrivals_follow_the_gaps() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.gap_ns(start), None);
        for i in 0..40 {
            arrivals.observe(start + Duration::from_millis(2 * i), 1);
        }
        let end = start + Duration::from_millis(78);
        assert_eq!(arrivals.gap_ns(end), Some(2e6));
        assert_eq!(arrivals.per_s(), Some(500.0));
        assert_eq!(arrivals.gap_ns(end + Duration::from_millis(9)), Some(9e6));
        // Two rows at once come half as far apart.
        arrivals.observe(end + Duration::from_millis(2), 2);
        assert_eq!(arrivals.gap_ns(end + Duration::from_millis(2)), Some(1.875e6));
    }
}
