//! Figures on what neither net has seen: the built-in models and the published boards, which no
//! training uses.

use serde::Serialize;
use sparoa_core::{
    predict::{FixedThresholds, Quadrant, ThresholdModel, Thresholds},
    profile::{Conditions, DeviceProfile, HardwareState, Precision},
    schedule::{
        CoDl, Contest, Decides, Dp, Greedy, Heft, MOST_OPERATORS, Optimal, Problem, ScheduleError,
        Scheduler, Subject,
    },
    zoo,
};

use crate::{
    features::{intensity_to_unit, thresholds},
    policy::{LearnedThresholds, SacPolicy, seen},
    sweep::truths,
    task::{HELD_OUT, network, ready},
};

/// The published boards.
///
/// # Errors
/// When a built-in profile is broken.
pub fn boards() -> Result<Vec<DeviceProfile>, sparoa_core::profile::ProfileError> {
    DeviceProfile::names().into_iter().map(DeviceProfile::find).collect()
}

/// A built-in model, ready for planning.
///
/// # Errors
/// When there is no such model.
pub fn subject(name: &str) -> Result<Subject, zoo::ZooError> {
    Ok(ready(&zoo::build(name)?))
}

/// How well thresholds are predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ThresholdFigures {
    /// Mean absolute error of both thresholds, each on a scale from 0 to 1.
    pub error: f64,
    /// Share of operators that land in the right quadrant.
    pub quadrant_accuracy: f64,
    /// Operators.
    pub operators: usize,
}

/// Compares a threshold model with the truth, over models and boards in their nominal state.
///
/// # Errors
/// When a reference plan cannot be made.
pub fn threshold_figures(
    model: &dyn ThresholdModel,
    subjects: &[Subject],
    boards: &[DeviceProfile],
) -> Result<ThresholdFigures, ScheduleError> {
    let (mut error, mut right, mut count) = (0.0, 0usize, 0usize);
    for subject in subjects {
        for board in boards {
            let machine = board.machine(Precision::Fp32);
            let profile = subject.profile(&machine);
            let predicted = model.predict(&subject.graph, &subject.analysis, &profile);
            let truths = truths(subject, &machine)?;
            for (id, truth) in seen(&subject.graph).into_iter().zip(truths) {
                let own = predicted[id.index()];
                error += (own.sparsity - truth.sparsity).abs();
                error += (intensity_to_unit(own.intensity) - truth.intensity).abs();
                let node = subject.analysis.node(id);
                let wanted = thresholds(truth.sparsity as f32, truth.intensity as f32);
                let quadrant = |t: Thresholds| -> Quadrant { t.quadrant(node) };
                right += usize::from(wanted.is_some_and(|t| quadrant(t) == quadrant(own)));
                count += 1;
            }
        }
    }
    let n = count.max(1) as f64;
    Ok(ThresholdFigures {
        error: error / (2.0 * n),
        quadrant_accuracy: right as f64 / n,
        operators: count,
    })
}

/// How well operators are placed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PolicyFigures {
    /// Mean of makespan over that of `optimal`, on small random networks over boards and states.
    pub mean_ratio_to_optimal: f64,
    /// Questions behind it.
    pub small_questions: usize,
    /// The worst, over models and boards, of mean latency over that of the best of greedy, heft,
    /// dp and codl planned once for the nominal state.
    pub worst_ratio_to_best_classical: f64,
    /// The same against the best of them planned anew in every state, which they know.
    pub worst_ratio_to_best_replanned: f64,
    /// Geometric means of the last two ratios.
    pub mean_ratio_to_best_classical: f64,
    /// See above.
    pub mean_ratio_to_best_replanned: f64,
    /// Median time to place a model, in microseconds, on this computer.
    pub decision_us_p50: f64,
    /// The longest of the models' medians.
    pub decision_us_max: f64,
}

/// How much is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// States per model and board.
    pub states: usize,
    /// Small networks held against `optimal`.
    pub small: usize,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { states: 60, small: 12 }
    }
}

/// Plays a policy on models, boards and states.
///
/// # Errors
/// Those of the policies.
pub fn policy_figures(
    policy: &SacPolicy,
    predictor: Option<&LearnedThresholds>,
    subjects: &[Subject],
    boards: &[DeviceProfile],
    effort: Effort,
) -> Result<PolicyFigures, ScheduleError> {
    let fixed = FixedThresholds::default();
    let thresholds: &dyn ThresholdModel = match predictor {
        Some(learned) => learned,
        None => &fixed,
    };
    let mut figures = PolicyFigures::default();
    let (mut classical, mut replanned, mut decisions) = (Vec::new(), Vec::new(), Vec::new());
    let dp = Dp::default();
    let others: [&dyn Scheduler; 4] = [&Greedy, &Heft, &dp, &CoDl];
    for subject in subjects {
        for board in boards {
            let machine = board.machine(Precision::Fp32);
            let states: Vec<_> = Conditions::new(board, 1).take(effort.states).collect();
            let contest =
                Contest { subject, nominal: &machine, states: &states, thresholds, learned: None };
            let own = contest.play(policy, Decides::Always)?;
            let best = |decides| -> Result<f64, ScheduleError> {
                let mut best = f64::INFINITY;
                for other in others {
                    best = best.min(contest.play(other, decides)?.latency_ms);
                }
                Ok(best)
            };
            classical.push(own.latency_ms / best(Decides::Once)?);
            replanned.push(own.latency_ms / best(Decides::Always)?);
            decisions.push(own.decision_us);
        }
    }
    let worst = |ratios: &[f64]| ratios.iter().copied().fold(0.0, f64::max);
    let mean = |ratios: &[f64]| {
        (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp()
    };
    figures.worst_ratio_to_best_classical = worst(&classical);
    figures.worst_ratio_to_best_replanned = worst(&replanned);
    figures.mean_ratio_to_best_classical = mean(&classical);
    figures.mean_ratio_to_best_replanned = mean(&replanned);
    figures.decision_us_max = worst(&decisions);
    decisions.sort_by(f64::total_cmp);
    figures.decision_us_p50 = decisions.get(decisions.len() / 2).copied().unwrap_or(0.0);
    let ratios = ratios_to_optimal(policy, thresholds, boards, effort.small)?;
    figures.small_questions = ratios.len();
    figures.mean_ratio_to_optimal = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
    Ok(figures)
}

/// Makespans over those of `optimal`, on small held-out networks.
fn ratios_to_optimal(
    policy: &SacPolicy,
    thresholds: &dyn ThresholdModel,
    boards: &[DeviceProfile],
    wanted: usize,
) -> Result<Vec<f64>, ScheduleError> {
    /// Operators of a network that every placement of can be tried in a moment.
    const SMALL: usize = 9;
    const _: () = assert!(SMALL <= MOST_OPERATORS);
    let mut ratios = Vec::new();
    let small = (HELD_OUT..)
        .map(|seed| network(seed, 5))
        .filter(|s| (3..=SMALL).contains(&s.topology.running().count()));
    for (i, subject) in small.take(wanted).enumerate() {
        for board in boards {
            let machine = board.machine(Precision::Fp32);
            let state = match i % 4 {
                0 => HardwareState::default(),
                n => Conditions::new(board, n as u64 + 100)
                    .next()
                    .map_or_else(HardwareState::default, |(state, _)| state),
            };
            let profile = subject.profile(&state.machine(&machine));
            let predicted = thresholds.predict(&subject.graph, &subject.analysis, &profile);
            let problem = Problem { thresholds: &predicted, ..subject.problem(&profile, state) };
            let optimal = problem.judge(&Optimal.place(&problem)?)?.2;
            let own = problem.judge(&policy.place(&problem)?)?.2;
            ratios.push(own / optimal.max(1.0));
        }
    }
    Ok(ratios)
}
