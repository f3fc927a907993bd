//! What the scheduler is trained on: placing the operators of a random network on a random machine
//! in a random state, one by one.
//!
//! The reward of a step is by how much everything ends later for it, in units of what the better
//! processor alone would take; under the energy objective by how much energy it costs, likewise. The
//! last step also carries the difference between the walk's estimate and the simulation of the
//! compiled plan, so that a whole episode earns exactly what the simulator says.

use std::sync::Arc;

use rand::{Rng, RngExt as _};
use sparoa_core::{
    ir::{Model, Shapes, passes, specialize},
    plan::{Place, Placement, compile},
    predict::Thresholds,
    profile::{HardwareState, MachineModel, Profile},
    schedule::{
        Candidate, Ground, Objective, Problem, ScheduleError, Subject, candidates, simulate,
    },
    zoo,
};

use crate::{
    environment::{Environment, Step},
    machines,
    policy::LearnedThresholds,
    rollout::{Blinders, OBSERVATION, Rollout},
};

/// A built-in or random model, ready for planning.
pub(crate) fn ready(model: &Model) -> Subject {
    let graph = specialize(model, &Shapes::new()).expect("the zoo's models are whole").graph;
    Subject::new(Arc::new(passes::optimize(graph)))
}

/// A random network, ready for planning, its weights as sparse as its seed says.
///
/// Seeds below [`HELD_OUT`] are for training.
pub fn network(seed: u64, operators: usize) -> Subject {
    let mut subject = ready(&zoo::random(seed, operators));
    let mut rng: rand_pcg::Pcg32 = rand::SeedableRng::seed_from_u64(seed ^ 0x5ca1_ab1e);
    let pruned = rng.random_bool(0.5);
    for (work, node) in subject.workloads.iter_mut().zip(&mut subject.analysis.nodes) {
        // Placeholders are nearly all zeros.
        let zeros = if pruned { rng.random_range(0.0..0.98) } else { 0.0 };
        let has_weight = node.weight_sparsity.is_some();
        work.sparsity = if has_weight { zeros } else { 0.0 };
        node.weight_sparsity = has_weight.then_some(zeros);
        node.weight_zeros = None;
    }
    subject
}

/// Seeds of random networks from here on are for evaluation.
pub const HELD_OUT: u64 = 1 << 32;

/// One question: a network on a machine in a state.
pub struct Question {
    /// The network.
    pub subject: Arc<Subject>,
    /// Its costs in the state.
    pub profile: Profile,
    /// The state.
    pub state: HardwareState,
    /// The predicted thresholds.
    pub thresholds: Vec<Thresholds>,
    /// What is to be minimised.
    pub objective: Objective,
}

impl Question {
    /// Of a machine, by its nominal model.
    pub fn new(
        subject: Arc<Subject>,
        machine: &MachineModel,
        state: HardwareState,
        objective: Objective,
        predictor: Option<&LearnedThresholds>,
    ) -> Question {
        use sparoa_core::predict::ThresholdModel as _;
        let profile = subject.profile(&state.machine(machine));
        let thresholds = predictor.map_or_else(Vec::new, |model| {
            model.predict(&subject.graph, &subject.analysis, &profile)
        });
        Question { subject, profile, state, thresholds, objective }
    }

    /// A random one.
    pub fn random(
        subjects: &[Arc<Subject>],
        predictor: Option<&LearnedThresholds>,
        rng: &mut dyn Rng,
    ) -> Question {
        let subject = subjects[rng.random_range(0..subjects.len())].clone();
        let machine = machines::machine(rng);
        let state = machines::state(rng, machine.shared_memory);
        let objective = match rng.random_range(0..8) {
            0 => Objective::Energy,
            1 => Objective::Edp,
            _ => Objective::Latency,
        };
        Question::new(subject, &machine, state, objective, predictor)
    }

    /// The scheduler's form of it.
    pub fn problem(&self) -> Problem<'_> {
        Problem {
            thresholds: &self.thresholds,
            objective: self.objective,
            ..self.subject.problem(&self.profile, self.state)
        }
    }

    fn ground(&self) -> Ground<'_> {
        Ground { topology: &self.subject.topology, profile: &self.profile }
    }

    /// Makespan and energy of a placement, by the simulator; energy 0 where power is not known.
    fn simulated(&self, placement: &Placement) -> Result<[f64; 2], ScheduleError> {
        let Subject { graph, support, .. } = &*self.subject;
        let plan = compile(graph, placement, support, Some(&self.profile))?;
        let timeline = simulate(&plan, &self.profile);
        let energy = timeline.energy_j(&self.profile).unwrap_or(0.0);
        Ok([timeline.makespan_ns as f64, energy])
    }

    /// The best placement that the classical policies find, by simulation: the teacher.
    ///
    /// # Errors
    /// Those of the policies.
    pub fn teacher(&self) -> Result<Option<Candidate>, ScheduleError> {
        Ok(candidates(&self.problem())?.into_iter().next())
    }
}

/// See the module.
pub struct PlacementTask {
    subjects: Arc<Vec<Arc<Subject>>>,
    predictor: Option<Arc<LearnedThresholds>>,
    episode: Option<Episode>,
}

struct Episode {
    question: Question,
    rollout: Rollout,
    /// Before every look: the rollout looks ahead and goes back.
    seen: [f32; OBSERVATION],
    /// Makespan and energy so far.
    spent: [f64; 2],
    /// What both are measured in.
    unit: [f64; 2],
}

impl Episode {
    fn new(question: Question) -> Episode {
        let rollout = Rollout::new(&question.problem(), Blinders::default());
        let total = rollout.total_ns();
        let watts = question.profile.power.map_or(1.0, |p| p.idle_w + p.cpu_w + p.gpu_w);
        let mut episode = Episode {
            rollout,
            seen: [0.0; OBSERVATION],
            spent: [0.0; 2],
            // The energy of both processors for half that time.
            unit: [total, 0.5 * watts * total / 1e9],
            question,
        };
        episode.look();
        episode
    }

    fn look(&mut self) {
        if !self.rollout.done() {
            self.rollout.observe(self.question.ground(), &mut self.seen);
        }
    }

    fn step(&mut self, place: Place) -> Step {
        let on = self.question.ground();
        self.rollout.step(on, place);
        let done = self.rollout.done();
        let spent = match done {
            true => self
                .question
                .simulated(&self.rollout.placement())
                .unwrap_or_else(|_| self.estimated(on)),
            false => self.estimated(on),
        };
        let more = [0, 1].map(|i| (spent[i] - self.spent[i]) / self.unit[i].max(1e-12));
        self.spent = spent;
        let cost = match self.question.objective {
            Objective::Latency | Objective::Throughput => more[0],
            Objective::Energy => more[1],
            Objective::Edp => 0.5 * (more[0] + more[1]),
        };
        self.look();
        Step { reward: -cost as f32, done }
    }

    fn estimated(&self, on: Ground<'_>) -> [f64; 2] {
        let makespan = match self.rollout.done() {
            true => self.rollout.finish_ns(on),
            false => self.rollout.makespan_ns(),
        };
        let [cpu, gpu] = self.rollout.busy_ns().map(|ns| ns as u64);
        let power = self.question.profile.power;
        [makespan, power.map_or(0.0, |p| p.energy_j(makespan as u64, cpu, gpu))]
    }
}

impl PlacementTask {
    /// On these networks.
    pub fn new(
        subjects: Arc<Vec<Arc<Subject>>>,
        predictor: Option<Arc<LearnedThresholds>>,
    ) -> PlacementTask {
        PlacementTask { subjects, predictor, episode: None }
    }
}

impl Environment for PlacementTask {
    fn observation_len(&self) -> usize {
        OBSERVATION
    }

    fn reset(&mut self, rng: &mut dyn Rng) {
        let question = Question::random(&self.subjects, self.predictor.as_deref(), rng);
        self.episode = Some(Episode::new(question));
    }

    fn observe(&self, into: &mut [f32]) {
        if let Some(episode) = &self.episode {
            into.copy_from_slice(&episode.seen);
        }
    }

    fn step(&mut self, action: &[f32]) -> Step {
        let Some(episode) = &mut self.episode else { return Step { reward: 0.0, done: true } };
        let place = episode.rollout.place_of(episode.question.ground(), action[0]);
        episode.step(place)
    }
}

/// A step of a teacher: what was seen, the action, the reward, whether it was the last one.
pub type Shown = (Vec<f32>, f32, f32, bool);

/// A whole episode as a teacher plays it, or nothing when there is nothing to place.
///
/// # Errors
/// Those of the classical policies.
pub fn show(question: Question) -> Result<Vec<Shown>, ScheduleError> {
    let Some(best) = question.teacher()? else { return Ok(Vec::new()) };
    let order: Vec<_> = question.subject.topology.running().collect();
    let mut episode = Episode::new(question);
    let mut shown = Vec::with_capacity(order.len());
    for id in order {
        let on = episode.question.ground();
        let wanted = best.placement.places[id.index()];
        let action = episode.rollout.action_of(on, wanted);
        let place = episode.rollout.place_of(on, action);
        let seen = episode.seen.to_vec();
        let step = episode.step(place);
        shown.push((seen, action, step.reward, step.done));
    }
    Ok(shown)
}
