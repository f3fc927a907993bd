//! What an agent learns in: the interface between the simulator and the trainer.

use rand::Rng;

/// The outcome of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The step's reward, finite.
    pub reward: f32,
    /// Whether the episode ended with it. Ends are terminal: nothing is earned after them.
    pub done: bool,
}

/// A task of finite episodes with continuous actions.
///
/// All randomness of an episode comes from the generator given to [`Environment::reset`]: after a
/// reset with the same generator state, the same actions give the same observations, rewards and
/// ends. Resuming a training relies on it, and checks it.
pub trait Environment {
    /// Elements of an observation; constant.
    fn observation_len(&self) -> usize;

    /// Actions per step; constant. 1 or 2 in practice.
    fn action_len(&self) -> usize {
        1
    }

    /// Starts an episode.
    fn reset(&mut self, rng: &mut dyn Rng);

    /// Writes what the agent sees now: [`Environment::observation_len`] finite values, best of order
    /// one. Not called after the end of an episode.
    fn observe(&self, into: &mut [f32]);

    /// Takes one step with [`Environment::action_len`] actions in [0, 1].
    fn step(&mut self, action: &[f32]) -> Step;
}
