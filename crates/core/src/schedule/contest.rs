//! Policies against each other on a machine that is not here, over the states of its hardware: what
//! they were planned for, and what came. All figures are simulated.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Problem, ScheduleError, Scheduler, Subject, simulate};
use crate::{
    plan::{Plan, compile},
    predict::ThresholdModel,
    profile::{HardwareState, MachineModel, Profile},
};

/// When a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decides {
    /// Once, for the nominal state, as a deployed static plan.
    Once,
    /// Anew in every state, which it knows.
    Always,
}

/// What came of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The policy.
    pub policy: String,
    /// When it decided.
    pub decides: Decides,
    /// Mean time of an inference over the states.
    pub latency_ms: f64,
    /// Mean energy of an inference, where the machine's power is known.
    pub energy_j: Option<f64>,
    /// Median time to decide, on this computer.
    pub decision_us: f64,
}

/// A model on a machine over a sequence of states.
pub struct Contest<'a> {
    /// The model.
    pub subject: &'a Subject,
    /// The machine in its nominal state.
    pub nominal: &'a MachineModel,
    /// The states and for how many inferences each holds.
    pub states: &'a [(HardwareState, u32)],
    /// Predicts the thresholds.
    pub thresholds: &'a dyn ThresholdModel,
    /// The policy that `sac` stands for.
    pub learned: Option<&'a dyn Scheduler>,
}

impl Contest<'_> {
    /// Plays one policy.
    ///
    /// # Errors
    /// When it cannot place the model.
    pub fn play(&self, policy: &dyn Scheduler, decides: Decides) -> Result<Outcome, ScheduleError> {
        let mut decisions = Vec::with_capacity(self.states.len());
        let fixed = match decides {
            Decides::Once => {
                let profile = self.subject.profile(self.nominal);
                let state = HardwareState::default();
                Some(self.decide(policy, &profile, state, &mut decisions)?)
            }
            Decides::Always => None,
        };
        let (mut weight, mut latency, mut energy) = (0.0, 0.0, Some(0.0));
        for &(state, inferences) in self.states {
            let profile = self.subject.profile(&state.machine(self.nominal));
            let fresh = match &fixed {
                Some(_) => None,
                None => Some(self.decide(policy, &profile, state, &mut decisions)?),
            };
            let Some(plan) = fixed.as_ref().or(fresh.as_ref()) else { continue };
            let timeline = simulate(plan, &profile);
            let n = f64::from(inferences);
            weight += n;
            latency += n * timeline.makespan_ns as f64;
            energy = energy.zip(timeline.energy_j(&profile)).map(|(sum, own)| sum + n * own);
        }
        decisions.sort_by(f64::total_cmp);
        Ok(Outcome {
            policy: policy.name().to_owned(),
            decides,
            latency_ms: latency / f64::max(weight, 1.0) / 1e6,
            energy_j: energy.map(|sum: f64| sum / f64::max(weight, 1.0)),
            decision_us: decisions.get(decisions.len() / 2).copied().unwrap_or(0.0),
        })
    }

    fn decide(
        &self,
        policy: &dyn Scheduler,
        profile: &Profile,
        state: HardwareState,
        decisions: &mut Vec<f64>,
    ) -> Result<Plan, ScheduleError> {
        let Subject { graph, analysis, .. } = self.subject;
        let thresholds = self.thresholds.predict(graph, analysis, profile);
        let problem = Problem {
            thresholds: &thresholds,
            learned: self.learned,
            ..self.subject.problem(profile, state)
        };
        let start = Instant::now();
        let placement = policy.place(&problem)?;
        decisions.push(start.elapsed().as_secs_f64() * 1e6);
        Ok(compile(graph, &placement, &self.subject.support, Some(profile))?)
    }
}
