//! Checkpoints: all that a training needs to go on to the same bits as without an interruption.
//!
//! One safetensors file holds nets, targets, moments, temperature and replay memory; its note holds
//! settings, counters, generators and the curve. Environments are not stored: their episodes under
//! way are replayed from their generator and actions, and must show the same again. The file appears
//! whole or not at all, so that a kill at any moment leaves the last complete checkpoint.

use std::path::Path;

use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::rollout::Worker;
use super::{Progress, RunOptions, SacConfig, SacTrainer, Sums};
use crate::actor;
use crate::environment::Environment;
use crate::train::TrainError;
use crate::weights::Weights;

/// The kind of checkpoint files.
const KIND: &str = "sac-checkpoint";

#[derive(Serialize, Deserialize)]
struct State {
    config: SacConfig,
    observation_len: usize,
    action_len: usize,
    updates: u64,
    steps: u64,
    episodes: u64,
    owed: f64,
    sums: Sums,
    curve: Vec<Progress>,
    best_score: Option<f64>,
    rng: Pcg64,
    workers: Vec<WorkerState>,
}

#[derive(Serialize, Deserialize)]
struct WorkerState {
    rng: Pcg64,
    start: Pcg64,
    earned: f64,
}

impl SacTrainer {
    /// Writes a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Weights`].
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let mut w = Weights::new(KIND);
        for (name, net, adam) in self.nets() {
            net.store(&format!("{name}."), &mut w);
            adam.store(&format!("{name}.adam."), &mut w);
        }
        for (i, target) in self.targets.iter().enumerate() {
            target.store(&format!("target.{i}."), &mut w);
        }
        self.replay.store(&mut w);
        for (i, worker) in self.workers.iter().enumerate() {
            let lists = [("actions", &worker.actions), ("observation", &worker.observation)];
            for (name, list) in lists {
                w.insert(&format!("worker.{i}.{name}"), &[list.len()], list.clone());
            }
        }
        if let Some((_, best)) = &self.best {
            for (name, array) in best.arrays() {
                w.insert(&format!("best.{name}"), &array.shape, array.data.clone());
            }
            for key in ["score", "updates"] {
                w.set_note(&format!("best.{key}"), best.note(key).unwrap_or_default());
            }
        }
        let worker = |w: &Worker| WorkerState {
            rng: w.rng.clone(),
            start: w.start.clone(),
            earned: w.earned,
        };
        let state = State {
            config: self.config.clone(),
            observation_len: self.observation_len,
            action_len: self.action_len,
            updates: self.updates,
            steps: self.steps,
            episodes: self.episodes,
            owed: self.owed,
            sums: self.sums.clone(),
            curve: self.curve.clone(),
            best_score: self.best.as_ref().map(|(score, _)| *score),
            rng: self.rng.clone(),
            workers: self.workers.iter().map(worker).collect(),
        };
        let state = serde_json::to_string(&state).expect("plain values have a JSON form");
        w.set_note("state", &state);
        Ok(w.save(path)?)
    }

    /// Goes on from a checkpoint, with fresh environments of the same tasks in the same order.
    ///
    /// # Errors
    /// [`TrainError::Weights`] if the file is not an intact checkpoint, [`TrainError::Checkpoint`] if
    /// its settings differ from `config`, [`TrainError::Environment`] if an episode under way cannot
    /// be replayed.
    pub fn resume<E: Environment>(
        config: SacConfig,
        path: &Path,
        environments: &mut [E],
    ) -> Result<SacTrainer, TrainError> {
        let w = Weights::load(path)?;
        w.expect("kind", KIND)?;
        let misfit = |cause: String| TrainError::Checkpoint { file: w.source().to_owned(), cause };
        let state: State = serde_json::from_str(w.note("state").unwrap_or_default())
            .map_err(|e| misfit(format!("its state is not readable: {e}")))?;
        if state.config != config {
            return Err(misfit(format!("it was made with {:?}", state.config)));
        }
        let mut t = SacTrainer::new(config, state.observation_len, state.action_len)?;
        t.check_environments(environments)?;
        if !state.workers.is_empty() {
            if state.workers.len() != environments.len() {
                let (then, now) = (state.workers.len(), environments.len());
                return Err(misfit(format!("it has {then} environments, not {now}")));
            }
            t.replay.open(environments.len(), t.config.capacity);
        }
        for (name, net, adam) in t.nets_mut() {
            net.restore(&format!("{name}."), &w)?;
            adam.restore(&format!("{name}.adam."), &w)?;
        }
        for (i, target) in t.targets.iter_mut().enumerate() {
            target.restore(&format!("target.{i}."), &w)?;
        }
        t.replay.restore(&w)?;
        for (i, worker) in state.workers.into_iter().enumerate() {
            let actions = w.array(&format!("worker.{i}.actions"))?.data.clone();
            let observation = w.tensor(&format!("worker.{i}.observation"), &[t.observation_len])?;
            t.workers.push(Worker {
                rng: worker.rng,
                start: worker.start,
                actions,
                observation: observation.to_vec(),
                earned: worker.earned,
            });
        }
        if let Some(score) = state.best_score {
            let mut net = t.actor.clone();
            net.restore("best.", &w)?;
            let mut best = Weights::new(actor::KIND);
            best.set_note("layers", &t.layers().to_string());
            for key in ["score", "updates"] {
                best.set_note(key, w.note(&format!("best.{key}")).unwrap_or_default());
            }
            net.store("", &mut best);
            t.best = Some((score, best));
        }
        t.rng = state.rng;
        (t.updates, t.steps, t.episodes) = (state.updates, state.steps, state.episodes);
        (t.owed, t.sums, t.curve) = (state.owed, state.sums, state.curve);
        t.replay_episodes(environments)?;
        Ok(t)
    }

    pub(super) fn checkpoint(&self, options: &RunOptions<'_>) -> Result<(), TrainError> {
        match &options.checkpoint {
            Some(path) => self.save(path),
            None => Ok(()),
        }
    }
}
