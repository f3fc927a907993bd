//! The learned parts as the core asks for them: a threshold model and a scheduler.

mod second_look;

use std::sync::{Mutex, PoisonError};

use sparoa_core::{
    analyze::Analysis,
    ir::{Graph, NodeId},
    plan::Placement,
    predict::{FixedThresholds, ThresholdModel, Thresholds},
    profile::Profile,
    schedule::{CpuOnly, GpuOnly, Heft, Problem, ScheduleError, Scheduler},
};

use crate::{
    actor::Actor,
    features::{FEATURES, features, thresholds},
    predictor::Predictor,
    rollout::{Blinders, OBSERVATION, Rollout, SNAP},
    weights::WeightsError,
};

/// The policy that soft actor-critic has learned: one pass over the graph, each operator placed
/// after one look, and a [second look](second_look) at those it was least sure of. The better
/// processor alone is kept in hand: where the policy's placement would end later, that is what is
/// looked at again.
pub struct SacPolicy {
    actor: Mutex<Actor>,
    blinders: Blinders,
}

impl SacPolicy {
    /// Of an actor.
    ///
    /// # Errors
    /// When the actor was trained on other observations.
    pub fn new(actor: Actor) -> Result<SacPolicy, WeightsError> {
        actor.weights().tensor("layers.0.weight", &[OBSERVATION, first_width(&actor)])?;
        Ok(SacPolicy { actor: Mutex::new(actor), blinders: Blinders::default() })
    }

    /// The same policy without some of what it sees.
    #[must_use]
    pub fn with_blinders(mut self, blinders: Blinders) -> SacPolicy {
        self.blinders = blinders;
        self
    }

    /// The actor's own placement with how sure it was of every operator, in order; `None` when it
    /// answers anything but numbers.
    fn rollout(&self, problem: &Problem<'_>) -> Option<(Placement, Vec<f32>)> {
        let on = problem.ground();
        let mut rollout = Rollout::new(problem, self.blinders);
        let mut actor = self.actor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = [0.0; OBSERVATION];
        let mut sure = Vec::new();
        while !rollout.done() {
            rollout.observe(on, &mut seen);
            let action = actor.act(&seen)[0];
            if !action.is_finite() {
                return None;
            }
            let place = rollout.place_of(on, action);
            sure.push((action - SNAP).abs().min((action - 1.0 + SNAP).abs()));
            rollout.step(on, place);
        }
        Some((rollout.placement(), sure))
    }
}

fn first_width(actor: &Actor) -> usize {
    actor.weights().matrix_shape("layers.0.weight").map_or(0, |(_, width)| width)
}

impl Scheduler for SacPolicy {
    fn name(&self) -> &'static str {
        "sac"
    }

    fn place(&self, problem: &Problem<'_>) -> Result<Placement, ScheduleError> {
        let Some((mut placement, sure)) = self.rollout(problem) else {
            return Heft.place(problem);
        };
        let mut score = problem.estimate(&placement)?;
        let alone: [&dyn Scheduler; 2] = [&GpuOnly, &CpuOnly];
        for policy in alone {
            let other = policy.place(problem)?;
            let own = problem.estimate(&other)?;
            if own < score {
                (score, placement) = (own, other);
            }
        }
        if !self.blinders.second_look {
            second_look::improve(problem, &mut placement, score, &sure, !self.blinders.split)?;
        }
        problem.legalize(&mut placement);
        Ok(placement)
    }
}

/// The thresholds that the predictor has learned.
pub struct LearnedThresholds {
    predictor: Predictor,
}

impl LearnedThresholds {
    /// Of a predictor.
    ///
    /// # Errors
    /// When the predictor was trained on other features.
    pub fn new(predictor: Predictor) -> Result<LearnedThresholds, WeightsError> {
        if predictor.features() != FEATURES {
            return Err(WeightsError::Setting {
                file: predictor.weights().source().to_owned(),
                key: "features".to_owned(),
                found: predictor.features().to_string(),
                expected: FEATURES.to_string(),
            });
        }
        Ok(LearnedThresholds { predictor })
    }
}

/// The operators that the predictor sees: those that are not views.
pub fn seen(graph: &Graph) -> Vec<NodeId> {
    graph.node_ids().filter(|id| !graph.node(*id).op.is_view()).collect()
}

impl ThresholdModel for LearnedThresholds {
    fn name(&self) -> &str {
        self.predictor.architecture().name()
    }

    fn predict(&self, graph: &Graph, analysis: &Analysis, profile: &Profile) -> Vec<Thresholds> {
        let mut all = FixedThresholds::default().predict(graph, analysis, profile);
        if profile.nodes.len() != graph.nodes.len() {
            return all;
        }
        let running = seen(graph);
        // What is not a pair of numbers between 0 and 1 leaves the fixed thresholds in place.
        let Ok(predicted) = self.predictor.predict(&features(analysis, profile, &running)) else {
            return all;
        };
        for (id, pair) in running.iter().zip(predicted.chunks_exact(2)) {
            if let Some(own) = thresholds(pair[0], pair[1]) {
                all[id.index()] = own;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests;
