//! Latency over the batch, from a few measured points.
//!
//! The latency of a batch is roughly a fixed part plus a part per image, and the part per image
//! grows where caches overflow: it is close to convex. What convexity allows bounds how good a
//! batch that was not measured can be.

/// Measurements are not exact: slopes are taken this much flatter where they exclude a batch.
const NOISE: f64 = 0.01;

/// Latency over the batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatencyCurve {
    /// Batch and nanoseconds, by batch.
    points: Vec<(usize, u64)>,
}

impl LatencyCurve {
    /// No points.
    pub fn new() -> LatencyCurve {
        LatencyCurve::default()
    }

    /// Adds a measurement, or replaces the one of this batch.
    pub fn insert(&mut self, batch: usize, latency_ns: u64) {
        match self.points.binary_search_by_key(&batch, |p| p.0) {
            Ok(i) => self.points[i].1 = latency_ns,
            Err(i) => self.points.insert(i, (batch, latency_ns)),
        }
    }

    /// The measurements, by batch: batch and nanoseconds.
    pub fn points(&self) -> &[(usize, u64)] {
        &self.points
    }

    /// Nanoseconds expected of a batch: between points the line through them, beyond the last
    /// the line through the last two, at least the last. `None` without points.
    pub fn estimate_ns(&self, batch: usize) -> Option<f64> {
        let (below, above) = self.around(batch);
        Some(match (below, above) {
            ([.., l], [r, ..]) => line(*l, *r, batch, 0.0),
            ([.., k, l], []) => line(*k, *l, batch, 0.0).max(l.1 as f64),
            ([l], []) => l.1 as f64,
            // One image is always measured first; less than the first point takes no longer.
            ([], [r, ..]) => r.1 as f64,
            ([], []) => return None,
        })
    }

    /// The least nanoseconds that a batch can take if latency is convex. `None` without points.
    pub fn floor_ns(&self, batch: usize) -> Option<f64> {
        let (below, above) = self.around(batch);
        let mut floor = below.last().map_or(0.0, |l| l.1 as f64);
        // Every chord on either side bounds it; of close points noise leaves little.
        if let [before @ .., l] = below {
            floor = before.iter().map(|k| line(*k, *l, batch, -NOISE)).fold(floor, f64::max);
        }
        if let [r, after @ ..] = above {
            floor = after.iter().map(|s| line(*r, *s, batch, NOISE)).fold(floor, f64::max);
        }
        match above.is_empty() {
            true => Some(floor),
            false => Some(floor.min(self.estimate_ns(batch)?)),
        }
    }

    /// The points below a batch (or at it), and those above.
    fn around(&self, batch: usize) -> (&[(usize, u64)], &[(usize, u64)]) {
        self.points.split_at(self.points.partition_point(|p| p.0 <= batch))
    }
}

/// The line through two points at `batch`; `tilt` makes it steeper by that share of the points'
/// sum.
fn line(l: (usize, u64), r: (usize, u64), batch: usize, tilt: f64) -> f64 {
    let (y, z) = (l.1 as f64, r.1 as f64);
    let slope = (z - y + tilt * (z + y)) / (r.0 - l.0) as f64;
    // From the nearer point.
    match batch > r.0 {
        true => z + slope * (batch - r.0) as f64,
        false => y + slope * (batch as f64 - l.0 as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(usize, u64)]) -> LatencyCurve {
        let mut curve = LatencyCurve::new();
        for &(batch, ns) in points {
            curve.insert(batch, ns);
        }
        curve
    }

    #[test]
    fn estimates_lie_on_the_lines() {
        let c = curve(&[(4, 500), (1, 200), (16, 1700)]);
        assert_eq!(c.points(), [(1, 200), (4, 500), (16, 1700)]);
        let at = |b| c.estimate_ns(b).unwrap();
        assert_eq!((at(1), at(2), at(8), at(32)), (200.0, 300.0, 900.0, 3300.0));
        assert_eq!(curve(&[(1, 7)]).estimate_ns(5), Some(7.0));
        assert_eq!(LatencyCurve::new().estimate_ns(1), None);
    }

    #[test]
    fn the_floor_is_what_convexity_leaves() {
        // Flat to 8, then steep: between them the two lines meet.
        let c = curve(&[(1, 1000), (4, 1000), (16, 4000), (64, 16000)]);
        assert!(c.floor_ns(8).unwrap() < c.estimate_ns(8).unwrap());
        // The right line at 7, a little steeper than measured.
        assert!((c.floor_ns(7).unwrap() - 1712.5).abs() < 1e-6);
        // Beyond the last point the last slope holds at least, less the noise.
        let beyond = c.floor_ns(80).unwrap();
        assert!(beyond > 19_900.0 && beyond < 20_000.0, "{beyond}");
        // Noise that bends the curve the other way leaves the chord.
        let c = curve(&[(1, 1000), (4, 2000), (16, 2100), (64, 9000)]);
        assert!(c.floor_ns(8).unwrap() <= c.estimate_ns(8).unwrap());
    }
}
