//! The no-regret guard: finalists are measured in turns against the CPU alone and the GPU alone,
//! and the fastest wins. Prediction proposes, measurement decides.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How much the guard may spend, and what counts as faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardOptions {
    /// Placements measured besides `cpu` and `gpu`, at most.
    pub finalists: usize,
    /// Most measurements of each.
    pub rounds: usize,
    /// No new round begins after this.
    pub max_time: Duration,
    /// The fraction by which anything must beat the CPU alone.
    pub margin: f64,
    /// The same where the GPU is a software rasteriser, which competes for the CPU's cores.
    pub software_margin: f64,
}

impl Default for GuardOptions {
    fn default() -> GuardOptions {
        GuardOptions {
            finalists: 4,
            rounds: 9,
            max_time: Duration::from_secs(3),
            margin: 0.01,
            software_margin: 0.05,
        }
    }
}

/// One contender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardEntry {
    /// Its name.
    pub name: String,
    /// Simulated time of one inference.
    pub predicted_ns: u64,
    /// Measured times, in the order of the rounds.
    pub measured_ns: Vec<u64>,
}

impl GuardEntry {
    /// The median of the measurements; `u64::MAX` without any.
    pub fn median_ns(&self) -> u64 {
        let mut sorted = self.measured_ns.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(u64::MAX)
    }
}

/// The evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardReport {
    /// The contenders; `cpu` is the first.
    pub entries: Vec<GuardEntry>,
    /// Index of the winner.
    pub chosen: usize,
    /// Taken from an earlier start on the same machine.
    pub cached: bool,
}

/// Measures the contenders in turns and picks one. The first contender is the one to beat by
/// `margin`; one that is hopelessly slower than the best drops out early. `measure` runs a
/// contender once and returns its time.
///
/// # Errors
/// The first error of `measure`.
pub fn choose<E>(
    mut entries: Vec<GuardEntry>,
    options: &GuardOptions,
    margin: f64,
    mut measure: impl FnMut(usize) -> Result<u64, E>,
) -> Result<GuardReport, E> {
    let start = Instant::now();
    let mut racing = vec![true; entries.len()];
    // The warm-up tells who has no chance.
    let mut best = u64::MAX;
    let mut warm = Vec::with_capacity(entries.len());
    for i in 0..entries.len() {
        let time = measure(i)?;
        warm.push(time);
        best = best.min(time);
    }
    for (i, &time) in warm.iter().enumerate() {
        if time / 4 > best {
            racing[i] = false;
            entries[i].measured_ns.push(time);
        }
    }
    // Two rounds whatever they cost: one measurement proves nothing.
    for round in 0..options.rounds.max(2) {
        if round >= 2 && start.elapsed() >= options.max_time {
            break;
        }
        for i in (0..entries.len()).filter(|&i| racing[i]) {
            entries[i].measured_ns.push(measure(i)?);
        }
        if round == 2 {
            let best = entries.iter().map(GuardEntry::median_ns).min().unwrap_or(0);
            for (entry, racing) in entries.iter().zip(&mut racing) {
                // Half as slow again is out of reach of noise.
                *racing &= entry.median_ns() <= best + best / 2;
            }
        }
    }
    let fastest = (0..entries.len()).min_by_key(|&i| entries[i].median_ns()).unwrap_or(0);
    let bar = entries.first().map_or(0.0, |e| e.median_ns() as f64 * (1.0 - margin));
    let wins = entries.get(fastest).is_some_and(|e| (e.median_ns() as f64) < bar);
    Ok(GuardReport { entries, chosen: if wins { fastest } else { 0 }, cached: false })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn contest(times: &[u64], margin: f64) -> GuardReport {
        let entries = times
            .iter()
            .map(|t| GuardEntry { name: t.to_string(), predicted_ns: 0, measured_ns: vec![] })
            .collect();
        choose(entries, &GuardOptions::default(), margin, |i| Ok::<_, Infallible>(times[i]))
            .unwrap()
    }

    #[test]
    fn the_fastest_wins_by_a_margin_only() {
        assert_eq!(contest(&[100, 50, 70], 0.01).chosen, 1);
        assert_eq!(contest(&[100, 5000, 120], 0.01).chosen, 0);
        assert_eq!(contest(&[100, 97, 120], 0.05).chosen, 0);
        assert_eq!(contest(&[100, 94, 120], 0.05).chosen, 1);
    }

    #[test]
    fn the_hopeless_are_measured_once() {
        let report = contest(&[100, 5000, 90, 180], 0.01);
        assert_eq!(report.entries[1].measured_ns.len(), 1);
        assert_eq!(report.entries[3].measured_ns.len(), 3);
        assert_eq!(report.entries[2].measured_ns.len(), GuardOptions::default().rounds);
        assert_eq!(report.chosen, 2);
    }

    #[test]
    fn errors_end_the_contest() {
        let entry = GuardEntry { name: String::new(), predicted_ns: 0, measured_ns: vec![] };
        let result = choose(vec![entry], &GuardOptions::default(), 0.0, |_| Err("lost"));
        assert_eq!(result.unwrap_err(), "lost");
    }
}
