//! Stepping environments in lock-step, and bringing them back to where a checkpoint left them.

use burn_tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::SacTrainer;
use super::losses::{draw, noise};
use crate::environment::Environment;
use crate::train::TrainError;
use crate::train::parameters::{matrix, values};

/// What the trainer knows of one environment: enough to replay its episode.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worker {
    /// Its generator, after the episode's reset.
    pub(super) rng: Pcg64,
    /// The same before the reset.
    pub(super) start: Pcg64,
    /// The episode's actions so far, in [-1, 1].
    pub(super) actions: Vec<f32>,
    /// What it shows now.
    pub(super) observation: Vec<f32>,
    /// The episode's rewards so far.
    pub(super) earned: f64,
}

impl Worker {
    fn begin<E: Environment>(&mut self, environment: &mut E) {
        self.start = self.rng.clone();
        environment.reset(&mut self.rng);
        self.actions.clear();
        self.earned = 0.0;
        environment.observe(&mut self.observation);
    }
}

impl SacTrainer {
    /// Resets the environments on the first call; later calls must bring the same number.
    pub(super) fn start_workers<E: Environment>(
        &mut self,
        envs: &mut [E],
    ) -> Result<(), TrainError> {
        self.check_environments(envs)?;
        if self.workers.is_empty() {
            self.replay.open(envs.len(), self.config.capacity);
            for (i, env) in envs.iter_mut().enumerate() {
                // Streams of one generator never meet: each has its own increment.
                let rng = Pcg64::seed_from_u64(
                    self.config.seed ^ (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
                );
                let mut worker = Worker {
                    start: rng.clone(),
                    rng,
                    actions: Vec::new(),
                    observation: vec![0.0; self.observation_len],
                    earned: 0.0,
                };
                worker.begin(env);
                check_observation(i, &worker.observation)?;
                self.workers.push(worker);
            }
        }
        if self.workers.len() != envs.len() {
            let cause = format!("{} environments, {} before", envs.len(), self.workers.len());
            return Err(TrainError::Environment { index: envs.len(), cause });
        }
        Ok(())
    }

    pub(super) fn check_environments<E: Environment>(&self, envs: &[E]) -> Result<(), TrainError> {
        if envs.is_empty() {
            let cause = "there is none; give at least one".to_owned();
            return Err(TrainError::Environment { index: 0, cause });
        }
        for (index, env) in envs.iter().enumerate() {
            let (o, a) = (env.observation_len(), env.action_len());
            if (o, a) != (self.observation_len, self.action_len) {
                let cause = format!(
                    "{o} observations and {a} actions, the trainer has {} and {}",
                    self.observation_len, self.action_len
                );
                return Err(TrainError::Environment { index, cause });
            }
        }
        Ok(())
    }

    /// One step of every environment, the actions drawn in one forward pass.
    pub(super) fn step_environments<E: Environment>(
        &mut self,
        envs: &mut [E],
    ) -> Result<(), TrainError> {
        let (rows, a) = (envs.len(), self.action_len);
        let actions = if self.steps < self.config.random_steps {
            (0..rows * a).map(|_| 2.0 * self.rng.random::<f32>() - 1.0).collect()
        } else {
            let device = Device::flex();
            let seen = self.workers.iter().flat_map(|w| &w.observation).copied().collect();
            let seen = matrix(seen, rows, self.observation_len, &device);
            let noise = matrix(noise(rows * a, &mut self.rng), rows, a, &device);
            let leaves = self.actor.leaves(&device, false);
            values(draw(&leaves, self.layers(), seen, noise).actions)
        };
        for (i, env) in envs.iter_mut().enumerate() {
            let action = &actions[i * a..(i + 1) * a];
            let worker = &mut self.workers[i];
            let step = env.step(&shares(action));
            if !step.reward.is_finite() {
                let cause = format!("its reward is {}", step.reward);
                return Err(TrainError::Environment { index: i, cause });
            }
            self.replay.push(i, &worker.observation, action, step.reward, step.done);
            worker.earned += f64::from(step.reward);
            self.steps += 1;
            if step.done {
                self.episodes += 1;
                self.sums.episodes += 1;
                self.sums.returns += worker.earned;
                worker.begin(env);
            } else {
                worker.actions.extend_from_slice(action);
                env.observe(&mut worker.observation);
            }
            check_observation(i, &worker.observation)?;
        }
        Ok(())
    }

    /// Brings fresh environments to where the workers are, by replaying the episodes under way.
    pub(super) fn replay_episodes<E: Environment>(
        &mut self,
        envs: &mut [E],
    ) -> Result<(), TrainError> {
        let a = self.action_len;
        for (index, (env, worker)) in envs.iter_mut().zip(&self.workers).enumerate() {
            let other = |what: &str| TrainError::Environment {
                index,
                cause: format!("{what} when its episode is replayed; resume with the same tasks"),
            };
            let mut rng = worker.start.clone();
            env.reset(&mut rng);
            for action in worker.actions.chunks_exact(a) {
                if env.step(&shares(action)).done {
                    return Err(other("it ends early"));
                }
            }
            let mut observation = vec![0.0; self.observation_len];
            env.observe(&mut observation);
            if observation != worker.observation || rng != worker.rng {
                return Err(other("it shows something else"));
            }
        }
        Ok(())
    }
}

/// Actions in [-1, 1] as environments take them, in [0, 1].
fn shares(actions: &[f32]) -> Vec<f32> {
    actions.iter().map(|v| ((v + 1.0) / 2.0).clamp(0.0, 1.0)).collect()
}

fn check_observation(index: usize, observation: &[f32]) -> Result<(), TrainError> {
    match observation.iter().position(|v| !v.is_finite()) {
        Some(i) => {
            let cause = format!("its observation {i} is {}", observation[i]);
            Err(TrainError::Environment { index, cause })
        }
        None => Ok(()),
    }
}
