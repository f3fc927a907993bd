//! The no-regret guard: finalists are measured in turns against the CPU alone and the GPU alone,
//! and the fastest wins. Prediction proposes, measurement decides.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::schedule::Objective;

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
            finalists: 5,
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
    /// Joules per inference, likewise, where energy is the matter: of the sensors, or where they do
    /// not tell the model's over the measured times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured_j: Vec<f64>,
}

impl GuardEntry {
    /// The median of the measurements; `u64::MAX` without any.
    pub fn median_ns(&self) -> u64 {
        let mut sorted = self.measured_ns.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(u64::MAX)
    }

    /// The median of the joules, if there are any.
    pub fn median_j(&self) -> Option<f64> {
        let mut sorted = self.measured_j.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
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

/// [`choose`] by energy, or by energy times latency. `measure` runs a contender as often as the
/// sensors need and returns joules and nanoseconds of one inference.
///
/// # Errors
/// The first error of `measure`.
pub fn choose_by_energy<E>(
    mut entries: Vec<GuardEntry>,
    options: &GuardOptions,
    margin: f64,
    objective: Objective,
    mut measure: impl FnMut(usize) -> Result<(f64, u64), E>,
) -> Result<GuardReport, E> {
    let start = Instant::now();
    let score = |entry: &GuardEntry| {
        let joules = entry.median_j().unwrap_or(f64::INFINITY);
        if objective == Objective::Edp { joules * entry.median_ns() as f64 } else { joules }
    };
    let mut racing = vec![true; entries.len()];
    for round in 0..options.rounds.max(2) {
        if round >= 2 && start.elapsed() >= options.max_time {
            break;
        }
        for i in (0..entries.len()).filter(|&i| racing[i]) {
            let (joules, ns) = measure(i)?;
            entries[i].measured_j.push(joules);
            entries[i].measured_ns.push(ns);
        }
        if round == 0 {
            // A measurement is a mean over many runs: twice the best is out of reach of noise.
            let best = entries.iter().map(&score).fold(f64::INFINITY, f64::min);
            for (entry, racing) in entries.iter().zip(&mut racing) {
                *racing = score(entry) <= 2.0 * best;
            }
        }
    }
    let scores: Vec<f64> = entries.iter().map(score).collect();
    let best = (0..scores.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
    let wins = scores.get(best).is_some_and(|&s| s < scores[0] * (1.0 - margin));
    Ok(GuardReport { entries, chosen: if wins { best } else { 0 }, cached: false })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn entry(name: &str) -> GuardEntry {
        let name = name.to_owned();
        GuardEntry { name, predicted_ns: 0, measured_ns: vec![], measured_j: vec![] }
    }

    fn contest(times: &[u64], margin: f64) -> GuardReport {
        let entries = times.iter().map(|t| entry(&t.to_string())).collect();
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
    fn energy_and_its_product_with_time_choose_differently() {
        // The third takes the least energy, the second is fastest; the fourth has no chance.
        let figures = [(2.0, 100), (1.8, 40), (1.0, 90), (9.0, 30)];
        let contest = |objective| {
            let entries = figures.iter().map(|_| entry("")).collect();
            let measure = |i: usize| Ok::<_, Infallible>(figures[i]);
            choose_by_energy(entries, &GuardOptions::default(), 0.01, objective, measure).unwrap()
        };
        let report = contest(Objective::Energy);
        assert_eq!((report.chosen, report.entries[2].median_j()), (2, Some(1.0)));
        assert_eq!(report.entries[3].measured_j.len(), 1);
        assert_eq!(contest(Objective::Edp).chosen, 1);
    }

    #[test]
    fn errors_end_the_contest() {
        let result = choose(vec![entry("")], &GuardOptions::default(), 0.0, |_| Err("lost"));
        assert_eq!(result.unwrap_err(), "lost");
    }
}
