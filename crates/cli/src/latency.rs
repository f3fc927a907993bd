//! Latency statistics of one measurement.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Recorded latencies, in nanoseconds, to three significant digits.
pub struct Latencies {
    histogram: Histogram<u64>,
    sum_ns: u128,
}

/// Milliseconds, as `bench --json` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LatencyMs {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Fastest.
    pub min: f64,
    /// Slowest.
    pub max: f64,
}

impl LatencyMs {
    /// A predicted latency: the same every time.
    pub fn constant(ms: f64) -> LatencyMs {
        LatencyMs { mean: ms, p50: ms, p90: ms, p95: ms, p99: ms, min: ms, max: ms }
    }
}

impl Latencies {
    /// Nothing recorded.
    pub fn new() -> Latencies {
        Latencies { histogram: Histogram::new(3).expect("3 digits are legal"), sum_ns: 0 }
    }

    /// Adds one inference.
    pub fn record(&mut self, ns: u64) {
        self.histogram.record(ns.max(1)).expect("an auto-resizing histogram takes any value");
        self.sum_ns += u128::from(ns);
    }

    /// Number of inferences.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Time of all inferences together, in seconds.
    pub fn total_s(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// The statistics.
    pub fn summary(&self) -> LatencyMs {
        let h = &self.histogram;
        let quantile = |q| h.value_at_quantile(q) as f64 / 1e6;
        LatencyMs {
            mean: self.sum_ns as f64 / 1e6 / (h.len().max(1)) as f64,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
            min: h.min() as f64 / 1e6,
            max: h.max() as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ordered_and_right() {
        let mut l = Latencies::new();
        for i in 1..=1000u64 {
            l.record(i * 1_000_000);
        }
        let s = l.summary();
        assert_eq!(l.count(), 1000);
        assert!((s.mean - 500.5).abs() < 1e-9);
        assert!((s.p50 - 500.0).abs() < 1.0 && (s.p99 - 990.0).abs() < 1.0);
        assert!(s.min <= s.p50 && s.p50 <= s.p90 && s.p90 <= s.p95 && s.p99 <= s.max);
    }
}
