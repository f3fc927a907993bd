//! Machines that are not here: device profiles by name, and models made ready to be planned for
//! them. Everything that comes of them is simulated.

use std::sync::Arc;

use sparoa::{
    DeviceProfile, HardwareState, MachineModel, Objective, Place, Placement, Plan, Policy,
    Precision, Problem, Profile, ProfileError, ScheduleError, Subject, Thresholds, Timeline,
    candidates, compile, passes, simulate, specialize,
};

use crate::{
    error::{CliError, CliResult, Kind},
    learned::{STAND_IN, learned},
    sessions::BuildRequest,
};

/// A board and its roofline.
pub struct Target {
    /// Its published figures.
    pub board: DeviceProfile,
    /// It, in its nominal mode.
    pub machine: MachineModel,
}

impl Target {
    /// A built-in profile by name, or a file.
    ///
    /// # Errors
    /// Names that are unknown, files that are no profile, precisions without published rates.
    pub fn find(name: &str, precision: &str) -> CliResult<Target> {
        let board = DeviceProfile::find(name).map_err(|e| {
            let kind = match &e {
                ProfileError::Unknown { .. } => Kind::Usage,
                _ => Kind::Input,
            };
            CliError::new(kind, format!("--target: {e}"))
        })?;
        let precision: Precision = precision.parse().map_err(|_| {
            CliError::usage(format!(
                "--precision {precision}: device profiles have no rates for it, use fp32 or fp16"
            ))
        })?;
        Ok(Target { machine: board.machine(precision), board })
    }
}

/// A model ready for planning, and what made the rest of it data-dependent, if there is such a
/// rest: it is not planned.
///
/// # Errors
/// Models that cannot be loaded, and shapes that do not fit.
pub fn subject(request: &BuildRequest) -> CliResult<(Subject, Option<String>)> {
    let model = request.model()?;
    let shapes = request.resolve_shapes()?.into_iter().collect();
    let specialized = specialize(&model, &shapes).map_err(|e| {
        let kind = if e.is_usage() { Kind::Usage } else { Kind::Model };
        CliError::new(kind, e)
    })?;
    let graph = passes::optimize(specialized.graph);
    Ok((Subject::new(Arc::new(graph)), specialized.tail.map(|t| t.cause)))
}

/// What a policy made of a model on a board in its nominal state.
pub struct Simulated {
    /// Where each operator runs.
    pub placement: Placement,
    /// What came of it.
    pub plan: Plan,
    /// Its run.
    pub timeline: Timeline,
    /// Energy of an inference, in joules.
    pub energy_j: Option<f64>,
    /// Where the placement comes from: `auto: heft, improved`.
    pub source: String,
}

/// A model on a board in its nominal state.
pub struct Question<'a> {
    /// The model.
    pub subject: &'a Subject,
    /// Its costs there.
    pub profile: &'a Profile,
    /// Fixed places, by node.
    pub pins: &'a [Option<Place>],
    /// What to minimise.
    pub objective: Objective,
    /// The thresholds of its operators there.
    pub thresholds: &'a [Thresholds],
}

/// The thresholds of a model's operators on the machine of a profile.
pub fn thresholds(subject: &Subject, profile: &Profile) -> Vec<Thresholds> {
    learned().thresholds.predict(&subject.graph, &subject.analysis, profile)
}

impl Question<'_> {
    /// A policy's answer.
    ///
    /// # Errors
    /// When the policy or the objective cannot be had for this model and board.
    pub fn answer(&self, policy: Policy) -> CliResult<Simulated> {
        let problem = Problem {
            thresholds: self.thresholds,
            pins: self.pins,
            objective: self.objective,
            learned: learned().policy.as_deref(),
            ..self.subject.problem(self.profile, HardwareState::default())
        };
        self.decide(policy, &problem).map_err(CliError::usage)
    }

    fn decide(&self, policy: Policy, problem: &Problem<'_>) -> Result<Simulated, ScheduleError> {
        self.objective.judgeable(self.profile)?;
        let (placement, source) = match policy {
            Policy::Auto => match candidates(problem)?.into_iter().next() {
                Some(best) => (best.placement, format!("auto: {}", best.name)),
                None => (policy.scheduler().place(problem)?, policy.to_string()),
            },
            Policy::Sac if problem.learned.is_none() => {
                (policy.scheduler().place(problem)?, format!("sac ({STAND_IN})"))
            }
            _ => (policy.scheduler().place(problem)?, policy.to_string()),
        };
        let plan = compile(problem.graph, &placement, problem.support, Some(self.profile))?;
        let timeline = simulate(&plan, self.profile);
        let energy_j = timeline.energy_j(self.profile);
        Ok(Simulated { placement, plan, timeline, energy_j, source })
    }
}
