//! The replay memory: rings of consecutive steps, each observation stored once.
//!
//! Every environment has a ring, and so have pushed transitions. The observation after a step is the
//! next slot's, so a step can be drawn once its n successors are there or its episode has ended.

use rand::{Rng, RngExt};

use crate::weights::{Weights, WeightsError};

/// Consecutive steps of one source, the oldest overwritten first.
#[derive(Clone, Debug, PartialEq)]
struct Ring {
    capacity: usize,
    /// Slot that is written next.
    head: usize,
    len: usize,
    observations: Vec<f32>,
    actions: Vec<f32>,
    rewards: Vec<f32>,
    /// 1 where the step ended its episode, else 0.
    ends: Vec<f32>,
}

impl Ring {
    fn new(capacity: usize) -> Ring {
        let none = Vec::new;
        let (observations, actions, rewards, ends) = (none(), none(), none(), none());
        Ring { capacity, head: 0, len: 0, observations, actions, rewards, ends }
    }

    fn push(&mut self, observation: &[f32], action: &[f32], reward: f32, done: bool) {
        let end = if done { 1.0 } else { 0.0 };
        if self.rewards.len() < self.capacity {
            self.observations.extend_from_slice(observation);
            self.actions.extend_from_slice(action);
            self.rewards.push(reward);
            self.ends.push(end);
        } else {
            let (o, a) = (observation.len(), action.len());
            self.observations[self.head * o..][..o].copy_from_slice(observation);
            self.actions[self.head * a..][..a].copy_from_slice(action);
            self.rewards[self.head] = reward;
            self.ends[self.head] = end;
        }
        self.head = (self.head + 1) % self.capacity;
        self.len = (self.len + 1).min(self.capacity);
    }

    /// The slot of a step by age, 0 being the oldest.
    fn slot(&self, age: usize) -> usize {
        (self.head + self.capacity - self.len + age) % self.capacity
    }
}

/// A batch, ready to become tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) rows: usize,
    /// [rows, observation]
    pub(super) observations: Vec<f32>,
    /// [rows, action], in [-1, 1]
    pub(super) actions: Vec<f32>,
    /// Discounted, scaled sums of up to n rewards.
    pub(super) returns: Vec<f32>,
    /// What the value of the observation after them counts: gamma^n, or 0 after an end.
    pub(super) discounts: Vec<f32>,
    /// [rows, observation]; where the discount is 0, zeros.
    pub(super) next_observations: Vec<f32>,
}

/// All rings; the first is for pushed transitions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Replay {
    observation_len: usize,
    action_len: usize,
    rings: Vec<Ring>,
}

impl Replay {
    pub(super) fn new(observation_len: usize, action_len: usize, pushed: usize) -> Replay {
        Replay { observation_len, action_len, rings: vec![Ring::new(pushed.max(1))] }
    }

    /// Rings for `sources` environments that share `capacity`.
    pub(super) fn open(&mut self, sources: usize, capacity: usize) {
        self.rings.truncate(1);
        let each = capacity.div_ceil(sources).max(1);
        self.rings.extend((0..sources).map(|_| Ring::new(each)));
    }

    pub(super) fn push_teacher(&mut self, o: &[f32], a: &[f32], reward: f32, done: bool) {
        self.rings[0].push(o, a, reward, done);
    }

    pub(super) fn push(&mut self, source: usize, o: &[f32], a: &[f32], reward: f32, done: bool) {
        self.rings[source + 1].push(o, a, reward, done);
    }

    pub(super) fn pushed_len(&self) -> usize {
        self.rings[0].len
    }

    /// Whether a batch can be drawn.
    pub(super) fn ready(&self, n_step: usize) -> bool {
        self.rings.iter().any(|r| r.len > n_step)
    }

    /// Draws steps uniformly, with repetition. Panics unless [`Replay::ready`].
    pub(super) fn sample(
        &self,
        rows: usize,
        n_step: usize,
        gamma: f32,
        reward_scale: f32,
        rng: &mut dyn Rng,
    ) -> Batch {
        assert!(self.ready(n_step), "there are steps to draw");
        let total: usize = self.rings.iter().map(|r| r.len).sum();
        let mut batch = Batch { rows, ..Batch::default() };
        while batch.returns.len() < rows {
            let mut age = rng.random_range(0..total);
            let mut rings = self.rings.iter();
            let ring = loop {
                let ring = rings.next().expect("the draw is below the total");
                if age < ring.len {
                    break ring;
                }
                age -= ring.len;
            };
            self.draw(ring, age, (n_step, gamma, reward_scale), &mut batch);
        }
        batch
    }

    /// Appends the step of that age to the batch, unless its successors are not known yet.
    fn draw(
        &self,
        ring: &Ring,
        age: usize,
        (n_step, gamma, scale): (usize, f32, f32),
        batch: &mut Batch,
    ) {
        let (mut sum, mut discount, mut last) = (0.0, 1.0, age);
        let mut ended = false;
        while !ended && last < age + n_step {
            if last >= ring.len {
                return;
            }
            let slot = ring.slot(last);
            sum += discount * ring.rewards[slot];
            discount *= gamma;
            ended = ring.ends[slot] == 1.0;
            last += 1;
        }
        if !ended && last >= ring.len {
            return;
        }
        let (o, a) = (self.observation_len, self.action_len);
        let slot = ring.slot(age);
        batch.observations.extend_from_slice(&ring.observations[slot * o..][..o]);
        batch.actions.extend_from_slice(&ring.actions[slot * a..][..a]);
        batch.returns.push(scale * sum);
        batch.discounts.push(if ended { 0.0 } else { discount });
        if ended {
            batch.next_observations.resize(batch.next_observations.len() + o, 0.0);
        } else {
            let next = ring.slot(last);
            batch.next_observations.extend_from_slice(&ring.observations[next * o..][..o]);
        }
    }

    /// Adds all rings to a checkpoint.
    pub(super) fn store(&self, weights: &mut Weights) {
        for (i, ring) in self.rings.iter().enumerate() {
            let lists = [
                ("observations", &ring.observations),
                ("actions", &ring.actions),
                ("rewards", &ring.rewards),
                ("ends", &ring.ends),
            ];
            for (name, list) in lists {
                weights.insert(&format!("replay.{i}.{name}"), &[list.len()], list.clone());
            }
            weights.set_note(&format!("replay.{i}.head"), &ring.head.to_string());
        }
    }

    /// Reads them back; the rings must be open as they were.
    pub(super) fn restore(&mut self, weights: &Weights) -> Result<(), WeightsError> {
        for (i, ring) in self.rings.iter_mut().enumerate() {
            let name = |part: &str| format!("replay.{i}.{part}");
            let len = weights.array(&name("rewards"))?.data.len();
            if len > ring.capacity {
                let found = len.to_string();
                let expected = format!("at most {} steps", ring.capacity);
                return Err(weights.setting(&name("rewards"), Some(&found), expected));
            }
            let read = |part: &str, width: usize| {
                weights.tensor(&name(part), &[len * width]).map(<[f32]>::to_vec)
            };
            ring.rewards = read("rewards", 1)?;
            ring.ends = read("ends", 1)?;
            ring.observations = read("observations", self.observation_len)?;
            ring.actions = read("actions", self.action_len)?;
            ring.len = len;
            ring.head = weights.number(&name("head"), 0..=ring.capacity - 1)?;
            // Before the first wrap the next slot is the end of the list.
            if len < ring.capacity && ring.head != len {
                let found = ring.head.to_string();
                return Err(weights.setting(&name("head"), Some(&found), len.to_string()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    /// Step t of an episode observes [t], acts [t / 100] and earns t.
    fn filled(capacity: usize, steps: usize, episode: usize) -> Replay {
        let mut replay = Replay::new(1, 1, 1);
        replay.open(1, capacity);
        for t in 0..steps {
            let v = t as f32;
            replay.push(0, &[v], &[v / 100.0], v, (t + 1) % episode == 0);
        }
        replay
    }

    #[test]
    fn a_batch_has_the_sums_and_successors_of_its_steps() {
        // Wraps once: steps 3..13 are there.
        let replay = filled(10, 13, 5);
        let mut rng = Pcg64::seed_from_u64(1);
        for n in [1, 2, 3, 9] {
            let batch = replay.sample(500, n, 0.5, 10.0, &mut rng);
            for row in 0..batch.rows {
                let t = batch.observations[row] as usize;
                let end = t / 5 * 5 + 4;
                let last = (t + n - 1).min(end);
                let sum: f32 = (t..=last).map(|s| 0.5f32.powi((s - t) as i32) * s as f32).sum();
                assert!((batch.returns[row] - 10.0 * sum).abs() < 1e-3);
                assert_eq!(batch.actions[row], t as f32 / 100.0);
                if t + n > end {
                    assert!(last <= 12, "a drawn episode has ended");
                    assert_eq!((batch.discounts[row], batch.next_observations[row]), (0.0, 0.0));
                } else {
                    assert_eq!(batch.discounts[row], 0.5f32.powi(n as i32));
                    assert_eq!(batch.next_observations[row], (t + n) as f32);
                    assert!(t + n <= 12, "the successor is known");
                }
            }
            let drawn = |t: usize| batch.observations.contains(&(t as f32));
            assert!((3..10).all(drawn) && !(0..3).any(drawn), "all that is remembered is drawn");
        }
    }

    #[test]
    fn pushed_steps_are_drawn_too() {
        let mut replay = Replay::new(1, 1, 4);
        assert!(!replay.ready(1));
        replay.open(2, 8);
        replay.push_teacher(&[7.0], &[0.0], 1.0, false);
        replay.push_teacher(&[8.0], &[0.0], 1.0, true);
        assert!(replay.ready(1));
        let batch = replay.sample(50, 1, 1.0, 1.0, &mut Pcg64::seed_from_u64(1));
        assert!(batch.observations.contains(&7.0) && batch.observations.contains(&8.0));
    }

    #[test]
    fn a_checkpoint_gives_it_back() {
        for steps in [4, 13] {
            let replay = filled(10, steps, 5);
            let mut w = Weights::new("toy");
            replay.store(&mut w);
            let mut read = filled(10, 0, 5);
            read.restore(&w).unwrap();
            assert_eq!(read, replay);
            let mut small = filled(3, 0, 5);
            assert!(small.restore(&w).is_err());
        }
    }
}
