//! Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905): a squashed Gaussian actor, twin
//! critics with slowly following targets, a temperature that keeps the entropy at a target.
//!
//! Ours: n-step returns, several environments in lock-step, a warm start by cloning a teacher, and
//! the best actor by the caller's own score. Episodes are finite and ends are terminal, so that a
//! discount of 1 is sound. Inside, actions are in [-1, 1], as tanh gives them; outside in [0, 1].

mod replay;
mod losses;
mod cloning;
mod rollout;
mod checkpoint;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use burn_tensor::Device;
use rand::SeedableRng;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::adam::{Adam, clip};
use super::mlp::mlp_parameters;
use super::parameters::Parameters;
use crate::actor::{Actor, KIND};
use crate::environment::Environment;
use crate::weights::Weights;
pub use cloning::CloneConfig;
use replay::Replay;
use rollout::Worker;

/// Settings of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SacConfig {
    /// Widths of the hidden layers of actor and critics.
    pub hidden: Vec<usize>,
    /// Discount per step, in (0, 1].
    pub gamma: f32,
    /// Rewards are multiplied by it; rewards of order one learn best.
    pub reward_scale: f32,
    /// Rewards summed before the critics take over.
    pub n_step: usize,
    /// Transitions per update.
    pub batch: usize,
    /// Transitions remembered, over all environments.
    pub capacity: usize,
    /// Pushed transitions remembered, beside `capacity`.
    pub pushed_capacity: usize,
    /// Updates per step of one environment.
    pub updates_per_step: f32,
    /// Learning rate of the actor.
    pub actor_rate: f32,
    /// Learning rate of the critics.
    pub critic_rate: f32,
    /// Learning rate of the temperature's logarithm; 0 keeps the temperature.
    pub temperature_rate: f32,
    /// The temperature at the start.
    pub initial_temperature: f32,
    /// The wanted entropy of actions in [-1, 1], in nats; `None`: minus the number of actions.
    pub target_entropy: Option<f32>,
    /// How far targets follow their critics per update.
    pub tau: f32,
    /// Limit of a gradient's norm.
    pub clip: f32,
    /// Steps with uniformly random actions before the first update. Without any, the actor's own
    /// actions are taken from the start, as fits a cloned actor.
    pub random_steps: u64,
    /// First updates that leave the actor alone, so that a cloned actor meets trained critics.
    pub critic_warmup: u64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for SacConfig {
    fn default() -> SacConfig {
        SacConfig {
            hidden: vec![128, 128],
            gamma: 0.99,
            reward_scale: 1.0,
            n_step: 1,
            batch: 256,
            capacity: 200_000,
            pushed_capacity: 50_000,
            updates_per_step: 1.0,
            actor_rate: 3e-4,
            critic_rate: 3e-4,
            temperature_rate: 3e-4,
            initial_temperature: 0.1,
            target_entropy: None,
            tau: 0.005,
            clip: 10.0,
            random_steps: 1000,
            critic_warmup: 0,
            seed: 0,
        }
    }
}

impl SacConfig {
    fn check(&self) -> Result<(), TrainError> {
        let within = |low: f32, high: f32| move |v: f32| v > low && v <= high;
        let positive = within(0.0, f32::MAX);
        let settings: [(&'static str, f32, bool, &'static str); 13] = [
            ("hidden", self.hidden.len() as f32, self.hidden.iter().all(|h| *h > 0), "above 0"),
            ("gamma", self.gamma, within(0.0, 1.0)(self.gamma), "in (0, 1]"),
            ("reward_scale", self.reward_scale, positive(self.reward_scale), "above 0"),
            ("n_step", self.n_step as f32, self.n_step > 0, "at least 1"),
            ("batch", self.batch as f32, self.batch > 0, "at least 1"),
            ("capacity", self.capacity as f32, self.capacity > 0, "at least 1"),
            (
                "updates_per_step",
                self.updates_per_step,
                positive(self.updates_per_step) && self.updates_per_step < 1e3,
                "in (0, 1000)",
            ),
            ("actor_rate", self.actor_rate, positive(self.actor_rate), "above 0"),
            ("critic_rate", self.critic_rate, positive(self.critic_rate), "above 0"),
            (
                "temperature_rate",
                self.temperature_rate,
                self.temperature_rate >= 0.0 && self.temperature_rate.is_finite(),
                "at least 0",
            ),
            (
                "initial_temperature",
                self.initial_temperature,
                positive(self.initial_temperature),
                "above 0",
            ),
            ("tau", self.tau, within(0.0, 1.0)(self.tau), "in (0, 1]"),
            ("clip", self.clip, positive(self.clip), "above 0"),
        ];
        match settings.into_iter().find(|(_, _, good, _)| !good) {
            Some((name, value, _, expected)) => {
                Err(TrainError::Setting { name, value: value.to_string(), expected })
            }
            None => Ok(()),
        }
    }
}

/// One step of a teacher or any other source.
#[derive(Clone, Copy, Debug)]
pub struct Transition<'a> {
    /// What was seen before the action.
    pub observation: &'a [f32],
    /// The actions, each in [0, 1].
    pub action: &'a [f32],
    /// The reward, unscaled.
    pub reward: f32,
    /// Whether the episode ended.
    pub done: bool,
}

/// Where a training stands; means since the last entry of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub update: u64,
    /// Steps taken in environments.
    pub steps: u64,
    /// Episodes finished.
    pub episodes: u64,
    /// Mean return of the episodes that ended since the last entry, unscaled; of the last entry if
    /// none ended.
    pub mean_return: f64,
    /// Mean squared error of both critics.
    pub critic_loss: f64,
    /// The actor's loss.
    pub actor_loss: f64,
    /// Mean entropy of the actor's actions in [-1, 1], nats.
    pub entropy: f64,
    /// The temperature.
    pub temperature: f64,
    /// The caller's score of the actor, NaN-free; absent while it is being evaluated.
    pub score: Option<f64>,
}

/// How far and how to run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions<'a> {
    /// Run until this many updates are done, counted from the trainer's start.
    pub updates: u64,
    /// Updates between evaluations; 0: only at the end.
    pub evaluate_every: u64,
    /// Updates between checkpoints; 0: only at the end.
    pub checkpoint_every: u64,
    /// Where checkpoints go; none are written without.
    pub checkpoint: Option<PathBuf>,
    /// Set it from elsewhere to stop: a checkpoint is written, then `train` returns.
    pub stop: Option<&'a AtomicBool>,
}

/// Sums since the last entry of the curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    updates: u64,
    critic_loss: f64,
    actor_updates: u64,
    actor_loss: f64,
    entropy: f64,
    returns: f64,
    episodes: u64,
    last_mean_return: f64,
}

/// A training under way.
pub struct SacTrainer {
    config: SacConfig,
    observation_len: usize,
    action_len: usize,
    actor: Parameters,
    critics: [Parameters; 2],
    targets: [Parameters; 2],
    actor_adam: Adam,
    critic_adams: [Adam; 2],
    temperature: Parameters,
    temperature_adam: Adam,
    replay: Replay,
    workers: Vec<Worker>,
    rng: Pcg64,
    updates: u64,
    steps: u64,
    episodes: u64,
    /// Updates owed for steps taken.
    owed: f64,
    sums: Sums,
    curve: Vec<Progress>,
    best: Option<(f64, Weights)>,
}

impl SacTrainer {
    /// A fresh training.
    ///
    /// # Errors
    /// [`TrainError::Setting`].
    pub fn new(
        config: SacConfig,
        observation_len: usize,
        action_len: usize,
    ) -> Result<SacTrainer, TrainError> {
        config.check()?;
        for (name, len) in [("observation_len", observation_len), ("action_len", action_len)] {
            if len == 0 {
                let value = len.to_string();
                return Err(TrainError::Setting { name, value, expected: "at least 1" });
            }
        }
        let mut rng = Pcg64::seed_from_u64(config.seed);
        let sizes = |inputs: usize, outputs: usize| {
            let hidden = config.hidden.iter().copied();
            std::iter::once(inputs).chain(hidden).chain([outputs]).collect::<Vec<usize>>()
        };
        let actor = mlp_parameters(&sizes(observation_len, 2 * action_len), &mut rng);
        let mut critic = || mlp_parameters(&sizes(observation_len + action_len, 1), &mut rng);
        let critics = [critic(), critic()];
        let mut temperature = Parameters::default();
        temperature.push("log", &[1], vec![config.initial_temperature.ln()]);
        Ok(SacTrainer {
            observation_len,
            action_len,
            actor_adam: Adam::new(&actor),
            critic_adams: [Adam::new(&critics[0]), Adam::new(&critics[1])],
            temperature_adam: Adam::new(&temperature),
            targets: critics.clone(),
            replay: Replay::new(observation_len, action_len, config.pushed_capacity),
            actor,
            critics,
            temperature,
            workers: Vec::new(),
            rng,
            updates: 0,
            steps: 0,
            episodes: 0,
            owed: 0.0,
            sums: Sums::default(),
            curve: Vec::new(),
            best: None,
            config,
        })
    }

    /// Remembers a step of a teacher. Steps of an episode come in order and its last says `done`.
    ///
    /// # Errors
    /// [`TrainError::Environment`] if a length is wrong or a value is not finite.
    pub fn push(&mut self, t: &Transition<'_>) -> Result<(), TrainError> {
        let index = self.replay.pushed_len();
        let bad = |cause: &str| TrainError::Environment { index, cause: cause.to_owned() };
        if t.observation.len() != self.observation_len || t.action.len() != self.action_len {
            return Err(bad("the pushed transition has another length"));
        }
        if !t.observation.iter().all(|v| v.is_finite()) || !t.reward.is_finite() {
            return Err(bad("the pushed transition is not finite"));
        }
        if !t.action.iter().all(|v| (0.0..=1.0).contains(v)) {
            return Err(bad("the pushed action is not in [0, 1]"));
        }
        let action: Vec<f32> = t.action.iter().map(|v| 2.0 * v - 1.0).collect();
        self.replay.push_teacher(t.observation, &action, t.reward, t.done);
        Ok(())
    }

    /// Steps the environments in lock-step and updates the nets until `options.updates`.
    ///
    /// `evaluate` scores the current actor, higher being better; the best actor is kept. A score
    /// that is NaN counts as the worst.
    ///
    /// # Errors
    /// [`TrainError`]: divergence, an environment that breaks its contract, a checkpoint that cannot
    /// be written.
    pub fn train<E: Environment>(
        &mut self,
        environments: &mut [E],
        options: &RunOptions<'_>,
        evaluate: &mut dyn FnMut(&mut Actor, &Progress) -> f64,
    ) -> Result<(), TrainError> {
        self.start_workers(environments)?;
        let stopped = || options.stop.is_some_and(|s| s.load(Ordering::Relaxed));
        let passed = |every: u64, before: u64, now: u64| every > 0 && before / every != now / every;
        while self.updates < options.updates && !stopped() {
            let before = self.updates;
            self.round(environments, options.updates)?;
            let end = self.updates >= options.updates;
            if end || passed(options.evaluate_every, before, self.updates) {
                self.evaluate(evaluate)?;
            }
            if passed(options.checkpoint_every, before, self.updates) && !end {
                self.checkpoint(options)?;
            }
        }
        self.checkpoint(options)
    }

    /// One step of every environment and the updates owed for it. A run that reached its limit in
    /// the middle owes the rest, which the next run pays before it steps: two runs give the same
    /// bits as one.
    fn round<E: Environment>(&mut self, envs: &mut [E], limit: u64) -> Result<(), TrainError> {
        if self.owed < 1.0 {
            self.step_environments(envs)?;
            if self.steps < self.config.random_steps || !self.replay.ready(self.config.n_step) {
                return Ok(());
            }
            self.owed += f64::from(self.config.updates_per_step) * envs.len() as f64;
        }
        while self.owed >= 1.0 && self.updates < limit {
            self.owed -= 1.0;
            self.update()?;
        }
        Ok(())
    }

    fn update(&mut self) -> Result<(), TrainError> {
        let c = &self.config;
        let batch = self.replay.sample(c.batch, c.n_step, c.gamma, c.reward_scale, &mut self.rng);
        let wanted = self.wanted_values(&batch);
        let device = Device::flex().autodiff();
        let mut loss_sum = 0.0;
        for i in 0..2 {
            let (loss, mut gradients) =
                losses::critic(&self.critics[i], self.layers(), &batch, &wanted, &device);
            clip(&mut gradients, self.config.clip);
            let rate = self.config.critic_rate;
            self.critic_adams[i].step(&mut self.critics[i], &gradients, rate, 0.0);
            loss_sum += f64::from(loss);
        }
        self.sums.critic_loss += loss_sum / 2.0;
        if self.updates >= self.config.critic_warmup {
            self.update_actor(&batch)?;
        }
        for (target, critic) in self.targets.iter_mut().zip(&self.critics) {
            target.follow(critic, self.config.tau);
        }
        self.updates += 1;
        self.sums.updates += 1;
        if loss_sum.is_finite() {
            Ok(())
        } else {
            Err(TrainError::Diverged { update: self.updates })
        }
    }

    /// The trained nets with their moments, by their name in checkpoints.
    fn nets(&self) -> [(&'static str, &Parameters, &Adam); 4] {
        [
            ("actor", &self.actor, &self.actor_adam),
            ("critic.0", &self.critics[0], &self.critic_adams[0]),
            ("critic.1", &self.critics[1], &self.critic_adams[1]),
            ("temperature", &self.temperature, &self.temperature_adam),
        ]
    }

    fn nets_mut(&mut self) -> [(&'static str, &mut Parameters, &mut Adam); 4] {
        let [critic_0, critic_1] = &mut self.critics;
        let [adam_0, adam_1] = &mut self.critic_adams;
        [
            ("actor", &mut self.actor, &mut self.actor_adam),
            ("critic.0", critic_0, adam_0),
            ("critic.1", critic_1, adam_1),
            ("temperature", &mut self.temperature, &mut self.temperature_adam),
        ]
    }

    fn layers(&self) -> usize {
        self.config.hidden.len() + 1
    }

    fn alpha(&self) -> f32 {
        self.temperature.list()[0].value[0].exp()
    }

    fn evaluate(
        &mut self,
        evaluate: &mut dyn FnMut(&mut Actor, &Progress) -> f64,
    ) -> Result<(), TrainError> {
        let mut actor = self.actor()?;
        let mut entry = self.entry();
        let score = evaluate(&mut actor, &entry);
        let score = if score.is_nan() { f64::MIN } else { score.clamp(f64::MIN, f64::MAX) };
        entry.score = Some(score);
        self.curve.push(entry);
        if self.best.as_ref().is_none_or(|(best, _)| score > *best) {
            let mut weights = actor.weights().clone();
            weights.set_note("score", &score.to_string());
            weights.set_note("updates", &self.updates.to_string());
            self.best = Some((score, weights));
        }
        let last_mean_return = entry.mean_return;
        self.sums = Sums { last_mean_return, ..Sums::default() };
        Ok(())
    }

    fn entry(&self) -> Progress {
        let s = &self.sums;
        let mean = |sum: f64, n: u64| if n == 0 { 0.0 } else { sum / n as f64 };
        Progress {
            update: self.updates,
            steps: self.steps,
            episodes: self.episodes,
            mean_return: if s.episodes == 0 {
                s.last_mean_return
            } else {
                mean(s.returns, s.episodes)
            },
            critic_loss: mean(s.critic_loss, s.updates),
            actor_loss: mean(s.actor_loss, s.actor_updates),
            entropy: mean(s.entropy, s.actor_updates),
            temperature: f64::from(self.alpha()),
            score: None,
        }
    }

    /// The current actor.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if its weights are not finite.
    pub fn actor(&self) -> Result<Actor, TrainError> {
        if !self.actor.is_finite() {
            return Err(TrainError::Diverged { update: self.updates });
        }
        let mut weights = Weights::new(KIND);
        weights.set_note("layers", &self.layers().to_string());
        self.actor.store("", &mut weights);
        Ok(Actor::from_weights(weights)?)
    }

    /// The best score so far and the weights of the actor that had it.
    pub fn best(&self) -> Option<(f64, &Weights)> {
        self.best.as_ref().map(|(score, weights)| (*score, weights))
    }

    /// The learning curve: an entry per evaluation.
    pub fn curve(&self) -> &[Progress] {
        &self.curve
    }

    /// Updates done.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Steps taken in environments.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

#[cfg(test)]
mod tests;
