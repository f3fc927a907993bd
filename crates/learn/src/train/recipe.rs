//! The whole training: networks and machines, the four threshold predictors, the scheduler. Its
//! output folder holds the weights that ship; a training that was killed goes on from there.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sparoa_core::schedule::{ScheduleError, Subject};

use super::{
    Loss, PredictorConfig, Progress, SacConfig, SacTrainer, TrainError, Transition, curve,
    predictor::Epoch,
    sac::{CloneConfig, RunOptions},
    train_predictor,
};
use crate::{
    actor::Actor,
    atomic_file,
    dataset::Dataset,
    machines,
    policy::{LearnedThresholds, SacPolicy},
    predictor::{Architecture, Predictor},
    rollout::OBSERVATION,
    shipped::{ACTOR_FILE, predictor_file},
    sweep::sequence,
    task::{PlacementTask, Question, network, show},
    weights::Weights,
};

/// Environments in lock-step.
const ENVIRONMENTS: usize = 16;
/// Seeds of the parts of a training, added to the recipe's.
const MACHINES: u64 = 11;
const TEACHER: u64 = 13;
const VALIDATION: u64 = 17;

/// How much to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// Random networks; one in eight is for validation.
    pub networks: usize,
    /// Machines per network from which the predictor learns.
    pub machines: usize,
    /// Passes of the predictors over their data.
    pub epochs: usize,
    /// Episodes that the teacher shows.
    pub shown: usize,
    /// Updates that copy the teacher.
    pub clone_steps: u64,
    /// Updates of soft actor-critic.
    pub updates: u64,
    /// Questions on which actors are compared.
    pub validation: usize,
}

impl Default for Recipe {
    /// What ships: minutes on two cores.
    fn default() -> Recipe {
        Recipe {
            seed: 1,
            networks: 240,
            machines: 8,
            epochs: 25,
            shown: 2_000,
            clone_steps: 25_000,
            updates: 20_000,
            validation: 48,
        }
    }
}

impl Recipe {
    /// Seconds instead of minutes: shows that everything works, and learns little.
    pub fn tiny() -> Recipe {
        Recipe {
            seed: 1,
            networks: 8,
            machines: 2,
            epochs: 2,
            shown: 8,
            clone_steps: 50,
            updates: 60,
            validation: 4,
        }
    }
}

/// How far a training has come.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// Networks are being made.
    Networks {
        /// Done.
        done: usize,
        /// Of so many.
        of: usize,
    },
    /// A predictor learns.
    Predictor {
        /// Which.
        architecture: Architecture,
        /// The epoch.
        epoch: Epoch,
        /// Of so many.
        of: usize,
    },
    /// The teacher plays.
    Teacher {
        /// Episodes.
        done: usize,
        /// Of so many.
        of: usize,
    },
    /// The scheduler learns.
    Scheduler {
        /// Where it stands.
        progress: Progress,
        /// Updates in all.
        of: u64,
    },
}

/// Why the whole training stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// A net could not be trained.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A question could not be made.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A file could not be written.
    #[error("{}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl From<crate::weights::WeightsError> for RecipeError {
    fn from(e: crate::weights::WeightsError) -> RecipeError {
        RecipeError::Train(e.into())
    }
}

/// Trains everything into a folder, which may hold a training that was interrupted. `tell` hears how
/// far it has come, from two threads.
///
/// # Errors
/// See [`RecipeError`].
pub fn train(
    recipe: Recipe,
    folder: &Path,
    tell: &(dyn Fn(Stage) + Sync),
) -> Result<(), RecipeError> {
    std::fs::create_dir_all(folder)
        .map_err(|e| RecipeError::Write { path: folder.to_owned(), reason: e.to_string() })?;
    let subjects = networks(recipe, tell);
    let held = (recipe.networks / 8).max(1);
    let (validation, training) = subjects.split_at(held);
    let data = [dataset(recipe, training, 0)?, dataset(recipe, validation, 1)?];
    let others = [Architecture::Linear, Architecture::Lstm, Architecture::Transformer];
    thread::scope(|scope| {
        // The scheduler needs one of the predictors; the others are for comparison.
        let compared = scope.spawn(|| -> Result<(), RecipeError> {
            for architecture in others {
                predictor(recipe, architecture, &data, folder, tell)?;
            }
            Ok(())
        });
        let weights = predictor(recipe, Architecture::TransformerLstm, &data, folder, tell)?;
        let thresholds = LearnedThresholds::new(Predictor::from_weights(weights)?)?;
        scheduler(recipe, training, validation, Arc::new(thresholds), folder, tell)?;
        compared.join().expect("a training thread does not panic")
    })
}

/// Random networks, small ones as often as large ones.
fn networks(recipe: Recipe, tell: &(dyn Fn(Stage) + Sync)) -> Vec<Arc<Subject>> {
    let mut rng = Pcg64::seed_from_u64(recipe.seed);
    let of = recipe.networks.max(2);
    (0..of)
        .map(|done| {
            tell(Stage::Networks { done, of });
            let operators = 5.0 * 50f64.powf(rng.random_range(0.0..1.0));
            Arc::new(network(recipe.seed.wrapping_mul(100_003) + done as u64, operators as usize))
        })
        .collect()
}

fn dataset(recipe: Recipe, subjects: &[Arc<Subject>], part: u64) -> Result<Dataset, RecipeError> {
    let mut rng = Pcg64::seed_from_u64(recipe.seed + MACHINES + part);
    let mut sequences = Vec::with_capacity(subjects.len() * recipe.machines);
    for subject in subjects {
        for _ in 0..recipe.machines {
            let nominal = machines::machine(&mut rng);
            let state = machines::state(&mut rng, nominal.shared_memory);
            sequences.push(sequence(subject, &state.machine(&nominal))?);
        }
    }
    Ok(Dataset { features: crate::features::FEATURES, sequences })
}

/// Trains one predictor, or takes what an earlier run of the same recipe left.
fn predictor(
    recipe: Recipe,
    architecture: Architecture,
    data: &[Dataset; 2],
    folder: &Path,
    tell: &(dyn Fn(Stage) + Sync),
) -> Result<Weights, RecipeError> {
    let path = folder.join(predictor_file(architecture));
    let Recipe { seed, networks, machines, epochs, .. } = recipe;
    let made_by = format!("seed {seed}, {networks} networks, {machines} machines, {epochs} epochs");
    if let Ok(weights) = Weights::load(&path)
        && weights.note("recipe") == Some(&made_by)
    {
        return Ok(weights);
    }
    let config = PredictorConfig {
        architecture,
        width: 48,
        feed: 96,
        lstm: 48,
        epochs: recipe.epochs,
        loss: Loss::L1,
        patience: 0,
        seed: recipe.seed,
        ..PredictorConfig::default()
    };
    let mut on_epoch = |epoch: &Epoch| {
        tell(Stage::Predictor { architecture, epoch: *epoch, of: config.epochs });
        ControlFlow::Continue(())
    };
    let run = train_predictor(&config, &data[0], &data[1], &mut on_epoch)?;
    let point = |f: fn(&Epoch) -> f64| -> Vec<(f64, f64)> {
        run.epochs.iter().map(|e| (e.epoch as f64, f(e))).collect()
    };
    let series = [
        curve::Series { name: "training".into(), points: point(|e| e.train_loss) },
        curve::Series { name: "validation".into(), points: point(|e| e.validation_loss) },
    ];
    let title = format!("threshold predictor, {}", architecture.name());
    let svg = curve::svg(&title, "epoch", "mean absolute error", &series)?;
    write(&folder.join(format!("predictor-{}.svg", architecture.name())), svg.as_bytes())?;
    let mut weights = run.weights;
    weights.set_note("recipe", &made_by);
    weights.save(&path)?;
    Ok(weights)
}

fn scheduler(
    recipe: Recipe,
    training: &[Arc<Subject>],
    validation: &[Arc<Subject>],
    thresholds: Arc<LearnedThresholds>,
    folder: &Path,
    tell: &(dyn Fn(Stage) + Sync),
) -> Result<(), RecipeError> {
    let path = folder.join(ACTOR_FILE);
    let made_by = format!("{recipe:?}");
    if let Ok(weights) = Weights::load(&path)
        && weights.note("recipe") == Some(&made_by)
    {
        return Ok(());
    }
    let config = SacConfig {
        gamma: 1.0,
        reward_scale: 50.0,
        n_step: 10,
        batch: 256,
        capacity: 100_000,
        updates_per_step: 1.0 / ENVIRONMENTS as f32,
        actor_rate: 5e-6,
        critic_rate: 5e-4,
        temperature_rate: 3e-4,
        initial_temperature: 0.003,
        target_entropy: Some(-4.0),
        random_steps: 0,
        critic_warmup: recipe.updates / 4,
        seed: recipe.seed,
        ..SacConfig::default()
    };
    let networks = Arc::new(training.to_vec());
    let mut tasks: Vec<PlacementTask> = (0..ENVIRONMENTS)
        .map(|_| PlacementTask::new(networks.clone(), Some(thresholds.clone())))
        .collect();
    let checkpoint = folder.join("scheduler.checkpoint");
    let copy = folder.join("scheduler.copy");
    let mut trainer = match checkpoint.exists() && copy.exists() {
        true => SacTrainer::resume(config, &checkpoint, &mut tasks)?,
        false => {
            let mut trainer = SacTrainer::new(config, OBSERVATION, 1)?;
            learn_from_teacher(recipe, training, &thresholds, &mut trainer, tell)?;
            trainer.actor()?.weights().save(&copy)?;
            trainer
        }
    };
    let questions = questions(recipe, validation, &thresholds)?;
    let options = RunOptions {
        updates: recipe.updates,
        evaluate_every: (recipe.updates / 20).max(1),
        checkpoint_every: (recipe.updates / 20).max(1),
        checkpoint: Some(checkpoint.clone()),
        stop: None,
    };
    // The start counts as well: training must not make a copy of the teacher worse.
    let cloned = Weights::load(&copy)?;
    let start = -mean_ratio(Actor::from_weights(cloned.clone())?, &questions)?;
    let failure: Mutex<Option<RecipeError>> = Mutex::new(None);
    trainer.train(&mut tasks, &options, &mut |actor, progress| {
        let weights = actor.weights().clone();
        let ratio = Actor::from_weights(weights)
            .map_err(RecipeError::from)
            .and_then(|actor| mean_ratio(actor, &questions));
        let score = match ratio {
            Ok(ratio) => -ratio,
            Err(e) => {
                failure.lock().expect("not poisoned").get_or_insert(e);
                f64::NAN
            }
        };
        let progress = Progress { score: Some(score), ..*progress };
        tell(Stage::Scheduler { progress, of: recipe.updates });
        score
    })?;
    if let Some(e) = failure.into_inner().expect("not poisoned") {
        return Err(e);
    }
    let mut weights = match trainer.best() {
        Some((score, weights)) if score > start => weights.clone(),
        _ => cloned,
    };
    let points: Vec<(f64, f64)> = std::iter::once((0.0, -start))
        .chain(trainer.curve().iter().filter_map(|p| Some((p.update as f64, -p.score?))))
        .collect();
    let series = [curve::Series { name: "held-out networks".into(), points }];
    let svg = curve::svg("scheduler", "update", "time over the teacher's", &series)?;
    write(&folder.join("scheduler.svg"), svg.as_bytes())?;
    weights.set_note("recipe", &made_by);
    weights.save(&path)?;
    // Both are of no use any more, and large.
    for file in [&checkpoint, &copy] {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

/// The teacher plays, the actor copies it, the critics remember.
fn learn_from_teacher(
    recipe: Recipe,
    subjects: &[Arc<Subject>],
    thresholds: &LearnedThresholds,
    trainer: &mut SacTrainer,
    tell: &(dyn Fn(Stage) + Sync),
) -> Result<(), RecipeError> {
    let mut rng = Pcg64::seed_from_u64(recipe.seed + TEACHER);
    let (mut observations, mut actions) = (Vec::new(), Vec::new());
    for done in 0..recipe.shown {
        tell(Stage::Teacher { done, of: recipe.shown });
        let question = Question::random(subjects, Some(thresholds), &mut rng);
        for (seen, action, reward, done) in show(question)? {
            trainer.push(&Transition { observation: &seen, action: &[action], reward, done })?;
            observations.extend(seen);
            actions.push(action);
        }
    }
    let clone = CloneConfig { steps: recipe.clone_steps, ..CloneConfig::default() };
    trainer.pretrain(&observations, &actions, &clone)?;
    Ok(())
}

/// Fixed questions with the teacher's scores.
fn questions(
    recipe: Recipe,
    subjects: &[Arc<Subject>],
    thresholds: &LearnedThresholds,
) -> Result<Vec<(Question, f64)>, RecipeError> {
    let mut rng = Pcg64::seed_from_u64(recipe.seed + VALIDATION);
    let mut questions = Vec::with_capacity(recipe.validation);
    while questions.len() < recipe.validation {
        let question = Question::random(subjects, Some(thresholds), &mut rng);
        if let Some(best) = question.teacher()? {
            questions.push((question, best.score));
        }
    }
    Ok(questions)
}

/// Geometric mean of an actor's scores over the teacher's, as the policy would use it.
fn mean_ratio(actor: Actor, questions: &[(Question, f64)]) -> Result<f64, RecipeError> {
    use sparoa_core::schedule::Scheduler as _;
    let policy = SacPolicy::new(actor)?;
    let mut sum = 0.0;
    for (question, best) in questions {
        let problem = question.problem();
        let placement = policy.place(&problem)?;
        sum += (problem.judge(&placement)?.2 / best.max(1e-12)).ln();
    }
    Ok((sum / questions.len().max(1) as f64).exp())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), RecipeError> {
    atomic_file::write(path, bytes)
        .map_err(|e| RecipeError::Write { path: path.to_owned(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_training_repeats_and_goes_on_after_a_stop() {
        let runs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let quiet = |_: Stage| {};
        for run in &runs {
            train(Recipe::tiny(), run.path(), &quiet).unwrap();
        }
        let read = |run: &tempfile::TempDir, file: &str| {
            std::fs::read(run.path().join(file)).expect("the training wrote it")
        };
        let mut files: Vec<String> = Architecture::ALL.map(predictor_file).to_vec();
        files.push(ACTOR_FILE.to_owned());
        for file in &files {
            assert_eq!(read(&runs[0], file), read(&runs[1], file), "{file}");
        }
        // What is finished stays; what is missing is made again, the same.
        let actor = read(&runs[0], ACTOR_FILE);
        std::fs::remove_file(runs[0].path().join(ACTOR_FILE)).unwrap();
        train(Recipe::tiny(), runs[0].path(), &quiet).unwrap();
        assert_eq!(read(&runs[0], ACTOR_FILE), actor);
    }
}
