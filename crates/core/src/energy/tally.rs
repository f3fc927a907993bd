//! Joules of one sensor since a moment, from its readings.

use super::Sample;

/// What a sensor's readings add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// Joules since the first reading.
    pub joules: f64,
    last: Option<(f64, Sample)>,
}

impl Tally {
    /// Adds a reading at a time in seconds: a counter's step, or the trapezoid between two
    /// readings of watts.
    pub fn add(&mut self, seconds: f64, sample: Sample) {
        self.joules += match (self.last, sample) {
            (Some((_, Sample::Joules(before))), Sample::Joules(now)) => (now - before).max(0.0),
            (Some((then, Sample::Watts(before))), Sample::Watts(now)) => {
                (before + now) / 2.0 * (seconds - then).max(0.0)
            }
            _ => 0.0,
        };
        self.last = Some((seconds, sample));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count_from_the_first_reading() {
        let mut tally = Tally::default();
        for (t, joules) in [(0.0, 100.0), (1.0, 100.0), (2.0, 103.5)] {
            tally.add(t, Sample::Joules(joules));
        }
        assert_eq!(tally.joules, 3.5);
    }

    #[test]
    fn sampled_watts_integrate_to_the_curves_area() {
        // 10 W with a 4 W swing of 0.7 Hz, over 3 s, read at uneven times about 20 ms apart.
        let omega = std::f64::consts::TAU * 0.7;
        let mut tally = Tally::default();
        let (mut t, mut step) = (0.0, 0);
        while t < 3.0 {
            tally.add(t, Sample::Watts(10.0 + 4.0 * (omega * t).sin()));
            t += [0.018, 0.021, 0.020][step % 3];
            step += 1;
        }
        tally.add(3.0, Sample::Watts(10.0 + 4.0 * (omega * 3.0_f64).sin()));
        let exact = 10.0 * 3.0 + 4.0 / omega * (1.0 - (omega * 3.0).cos());
        assert!((tally.joules - exact).abs() < 1e-3 * exact, "{} {exact}", tally.joules);
        // Straight lines are exact whatever the step.
        let mut ramp = Tally::default();
        for t in [0.0, 0.5, 2.0, 2.25] {
            ramp.add(t, Sample::Watts(3.0 + 2.0 * t));
        }
        assert!((ramp.joules - (3.0 * 2.25 + 2.25 * 2.25)).abs() < 1e-12);
    }
}
