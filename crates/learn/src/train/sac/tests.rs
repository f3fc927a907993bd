//! Tests of soft actor-critic: it learns, it repeats bit for bit, it resumes bit for bit.

use rand::{Rng, RngExt};

use super::*;
use crate::environment::Step;
use crate::train::parameters::{matrix, values};

/// Placing loads: every step shows a load and where it costs less, and the best share is known.
///
/// An episode has `len` steps; step t shows (load, affinity, part done) and costs
/// load * (share - best)^2 with best = 0.2 + 0.6 * affinity.
struct Placing {
    len: usize,
    step: usize,
    loads: Vec<(f32, f32)>,
}

impl Placing {
    fn several(n: usize, len: usize) -> Vec<Placing> {
        (0..n).map(|_| Placing { len, step: 0, loads: Vec::new() }).collect()
    }

    fn best(affinity: f32) -> f32 {
        0.2 + 0.6 * affinity
    }
}

impl Environment for Placing {
    fn observation_len(&self) -> usize {
        4
    }

    fn reset(&mut self, rng: &mut dyn Rng) {
        self.step = 0;
        self.loads = (0..self.len).map(|_| (0.5 + rng.random::<f32>(), rng.random())).collect();
    }

    fn observe(&self, into: &mut [f32]) {
        let (load, affinity) = self.loads[self.step];
        let done = self.step as f32 / self.len as f32;
        into.copy_from_slice(&[load, affinity, 1.0 - affinity, done]);
    }

    fn step(&mut self, action: &[f32]) -> Step {
        let (load, affinity) = self.loads[self.step];
        let error = action[0] - Placing::best(affinity);
        self.step += 1;
        Step { reward: -load * error * error, done: self.step == self.len }
    }
}

/// A filling tank: the action now decides what every later step costs.
///
/// The level moves towards the action; each step costs the level's distance from the goal.
struct Tank {
    level: f32,
    goal: f32,
    step: usize,
}

impl Environment for Tank {
    fn observation_len(&self) -> usize {
        3
    }

    fn reset(&mut self, rng: &mut dyn Rng) {
        (self.level, self.goal, self.step) = (rng.random(), 0.2 + 0.6 * rng.random::<f32>(), 0);
    }

    fn observe(&self, into: &mut [f32]) {
        into.copy_from_slice(&[self.level, self.goal, self.step as f32 / 10.0]);
    }

    fn step(&mut self, action: &[f32]) -> Step {
        self.level += 0.5 * (action[0] - self.level);
        self.step += 1;
        Step { reward: -(self.level - self.goal).abs(), done: self.step == 10 }
    }
}

/// The mean return of the actor's most likely actions over fixed episodes.
fn mean_return<E: Environment>(
    act: &mut dyn FnMut(&[f32]) -> f32,
    mut env: E,
    episodes: u64,
) -> f64 {
    let mut observation = vec![0.0; env.observation_len()];
    let mut sum = 0.0;
    for episode in 0..episodes {
        env.reset(&mut Pcg64::seed_from_u64(1000 + episode));
        loop {
            env.observe(&mut observation);
            let step = env.step(&[act(&observation)]);
            sum += f64::from(step.reward);
            if step.done {
                break;
            }
        }
    }
    sum / episodes as f64
}

fn small(seed: u64) -> SacConfig {
    SacConfig {
        hidden: vec![32, 32],
        gamma: 1.0,
        batch: 64,
        capacity: 4000,
        actor_rate: 2e-3,
        critic_rate: 2e-3,
        temperature_rate: 2e-3,
        tau: 0.02,
        random_steps: 200,
        seed,
        ..SacConfig::default()
    }
}

fn run(updates: u64) -> RunOptions<'static> {
    RunOptions { updates, ..RunOptions::default() }
}

/// All trained bits.
fn bits(t: &SacTrainer) -> Vec<u32> {
    let nets = t.nets().into_iter().map(|(_, net, _)| net).chain(&t.targets);
    let values = nets.flat_map(|net| net.list().iter().flat_map(|p| &p.value));
    values.map(|v| v.to_bits()).collect()
}

#[test]
fn it_learns_where_to_place_loads() {
    let place = || Placing { len: 20, step: 0, loads: Vec::new() };
    let config = SacConfig { reward_scale: 10.0, n_step: 2, ..small(1) };
    let mut trainer = SacTrainer::new(config, 4, 1).unwrap();
    let options = RunOptions { updates: 3000, evaluate_every: 500, ..RunOptions::default() };
    let mut evaluate =
        |actor: &mut Actor, _: &Progress| mean_return(&mut |o| actor.act(o)[0], place(), 50);
    trainer.train(&mut Placing::several(8, 20), &options, &mut evaluate).unwrap();
    // The optimum is 0. A constant share of a half costs load * 0.36 / 12 per step.
    let constant = mean_return(&mut |_| 0.5, place(), 50);
    let (score, weights) = trainer.best().unwrap();
    assert!(score > 0.05 * constant, "{score} against {constant} of a constant share");
    let mut best = Actor::from_weights(weights.clone()).unwrap();
    let again = mean_return(&mut |o| best.act(o)[0], place(), 50);
    assert_eq!(again, score, "the best actor is kept as it was scored");
    assert_eq!(trainer.curve().len(), 6);
    assert!(trainer.curve().iter().all(|p| p.score.is_some_and(f64::is_finite)));
    assert!(trainer.curve()[5].mean_return > trainer.curve()[0].mean_return);
}

#[test]
fn it_learns_what_pays_later() {
    let tank = || Tank { level: 0.0, goal: 0.0, step: 0 };
    // The best policy of a tank jumps so that the level reaches the goal at once, if it can.
    let mut planned = |o: &[f32]| (o[0] + (o[1] - o[0]) / 0.5).clamp(0.0, 1.0);
    let optimal = mean_return(&mut planned, tank(), 100);
    let constant = mean_return(&mut |_| 0.5, tank(), 100);
    let mut trainer = SacTrainer::new(small(2), 3, 1).unwrap();
    let mut envs: Vec<Tank> = (0..8).map(|_| tank()).collect();
    let mut score =
        |actor: &mut Actor, _: &Progress| mean_return(&mut |o| actor.act(o)[0], tank(), 100);
    let options = RunOptions { updates: 4000, evaluate_every: 500, ..RunOptions::default() };
    trainer.train(&mut envs, &options, &mut score).unwrap();
    let (best, _) = trainer.best().unwrap();
    let regret = (optimal - best) / (optimal - constant);
    assert!(regret < 0.2, "optimal {optimal}, learned {best}, constant {constant}");
}

#[test]
fn the_run_time_actor_gives_what_was_trained() {
    let mut rng = Pcg64::seed_from_u64(9);
    for actions in [1, 2] {
        let config = SacConfig { hidden: vec![128, 128], ..small(9) };
        let mut trainer = SacTrainer::new(config, 64, actions).unwrap();
        // Beyond the small first outputs.
        trainer
            .actor
            .list_mut()
            .iter_mut()
            .for_each(|p| p.value.iter_mut().for_each(|v| *v *= 3.0));
        let device = Device::flex();
        let rows = 50;
        let seen = losses::noise(rows * 64, &mut rng);
        let x = matrix(seen.clone(), rows, 64, &device);
        let leaves = trainer.actor.leaves(&device, false);
        let (mean, _) = losses::distribution(&leaves, trainer.layers(), x);
        let expected = values(mean.tanh().add_scalar(1.0).div_scalar(2.0));
        let mut actor = trainer.actor().unwrap();
        for (o, e) in seen.chunks_exact(64).zip(expected.chunks_exact(actions)) {
            for (a, e) in actor.act(o).iter().zip(e) {
                assert!((a - e).abs() < 1e-5, "{a} {e}");
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_bits() {
    let train = |seed: u64| {
        let mut t = SacTrainer::new(small(seed), 4, 1).unwrap();
        t.train(&mut Placing::several(4, 12), &run(60), &mut |_, _| 0.0).unwrap();
        bits(&t)
    };
    assert_eq!(train(5), train(5));
    assert_ne!(train(5), train(6));
}

#[test]
fn a_resumed_training_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sac.safetensors");
    // An odd ratio of updates to steps leaves a fraction owed; a small replay wraps.
    let config = SacConfig { updates_per_step: 0.7, capacity: 500, n_step: 3, ..small(7) };
    let envs = || Placing::several(4, 13);
    let mut score = |actor: &mut Actor, _: &Progress| {
        mean_return(&mut |o| actor.act(o)[0], Placing { len: 5, step: 0, loads: vec![] }, 3)
    };
    let mut straight = SacTrainer::new(config.clone(), 4, 1).unwrap();
    let teach = |t: &mut SacTrainer| {
        for i in 0..30 {
            let observation = [1.0, i as f32 / 30.0, 1.0, 0.0];
            let done = i % 10 == 9;
            let t_ = Transition { observation: &observation, action: &[0.5], reward: -0.1, done };
            t.push(&t_).unwrap();
        }
    };
    teach(&mut straight);
    let every = RunOptions { updates: 400, evaluate_every: 50, ..RunOptions::default() };
    straight.train(&mut envs(), &every, &mut score).unwrap();

    // A training that was extended is the same as a long one.
    let mut extended = SacTrainer::new(config.clone(), 4, 1).unwrap();
    teach(&mut extended);
    let mut tasks = envs();
    for updates in [101, 399, 400] {
        extended.train(&mut tasks, &run(updates), &mut score).unwrap();
    }
    assert_eq!(bits(&extended), bits(&straight));

    let mut killed = SacTrainer::new(config.clone(), 4, 1).unwrap();
    teach(&mut killed);
    let saving = RunOptions { checkpoint_every: 60, checkpoint: Some(path.clone()), ..every };
    // Stopped in an evaluation, some updates after the last checkpoint, and its file kept aside as a
    // kill would leave it.
    let stop = AtomicBool::new(false);
    let stopping = RunOptions { stop: Some(&stop), ..saving.clone() };
    let aside = folder.path().join("left-by-the-kill");
    let mut until = |actor: &mut Actor, p: &Progress| {
        if p.update >= 250 {
            std::fs::copy(&path, &aside).unwrap();
            stop.store(true, Ordering::Relaxed);
        }
        score(actor, p)
    };
    killed.train(&mut envs(), &stopping, &mut until).unwrap();
    assert!((250..300).contains(&killed.updates()));
    drop(killed);

    let mut tasks = envs();
    let mut resumed = SacTrainer::resume(config.clone(), &aside, &mut tasks).unwrap();
    assert!((240..250).contains(&resumed.updates()), "the last checkpoint before the kill");
    resumed.train(&mut tasks, &saving, &mut score).unwrap();
    assert_eq!(resumed.updates(), straight.updates());
    assert_eq!(bits(&resumed), bits(&straight));
    assert_eq!(resumed.curve(), straight.curve());
    assert_eq!(resumed.best().unwrap().0, straight.best().unwrap().0);
    assert_eq!(resumed.best().unwrap().1.arrays(), straight.best().unwrap().1.arrays());
    assert_eq!(resumed.replay, straight.replay);

    // The stop's own checkpoint resumes as well.
    let mut tasks = envs();
    let mut stopped = SacTrainer::resume(config.clone(), &path, &mut tasks).unwrap();
    stopped.train(&mut tasks, &saving, &mut score).unwrap();
    assert_eq!(bits(&stopped), bits(&straight));

    // Other settings, other tasks and damaged files are told apart.
    let other = SacConfig { tau: 0.5, ..config.clone() };
    let error = SacTrainer::resume(other, &path, &mut envs()).err().unwrap();
    assert!(matches!(error, TrainError::Checkpoint { .. }), "{error}");
    let error = SacTrainer::resume(config.clone(), &path, &mut Placing::several(4, 14));
    assert!(matches!(error.err().unwrap(), TrainError::Environment { .. }));
    let error = SacTrainer::resume(config.clone(), &path, &mut Placing::several(3, 13));
    assert!(matches!(error.err().unwrap(), TrainError::Checkpoint { .. }));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = SacTrainer::resume(config, &path, &mut envs()).err().unwrap();
    assert!(matches!(error, TrainError::Weights(_)), "{error}");
}

#[test]
fn a_cloned_actor_acts_like_its_teacher() {
    let mut rng = Pcg64::seed_from_u64(3);
    let mut trainer = SacTrainer::new(small(8), 4, 1).unwrap();
    let observations: Vec<f32> = (0..4 * 500).map(|_| rng.random()).collect();
    let best = |o: &[f32]| Placing::best(o[1]);
    let actions: Vec<f32> = observations.chunks_exact(4).map(best).collect();
    let config = CloneConfig { steps: 800, batch: 64, learning_rate: 3e-3, spread: 0.1 };
    let losses = trainer.pretrain(&observations, &actions, &config).unwrap();
    assert!(losses[799] < losses[0] / 10.0);
    let mut actor = trainer.actor().unwrap();
    let mut draws = 0.0;
    for (o, a) in observations.chunks_exact(4).zip(&actions) {
        assert!((actor.act(o)[0] - a).abs() < 0.1, "{} {a}", actor.act(o)[0]);
        draws += (actor.sample(o, &mut rng)[0] - a).abs();
    }
    // It explores around the teacher, but not far.
    assert!((0.01..0.1).contains(&(draws / 500.0)), "{}", draws / 500.0);
    assert!(trainer.pretrain(&observations, &actions[1..], &config).is_err());
}

#[test]
fn broken_contracts_are_errors() {
    struct Broken;
    impl Environment for Broken {
        fn observation_len(&self) -> usize {
            1
        }
        fn reset(&mut self, _: &mut dyn Rng) {}
        fn observe(&self, into: &mut [f32]) {
            into[0] = 0.0;
        }
        fn step(&mut self, _: &[f32]) -> Step {
            Step { reward: f32::NAN, done: false }
        }
    }
    let mut t = SacTrainer::new(small(1), 1, 1).unwrap();
    let error = t.train(&mut [Broken], &run(10), &mut |_, _| 0.0).unwrap_err();
    assert_eq!(error.to_string(), "environment 0: its reward is NaN");
    let mut t = SacTrainer::new(small(1), 2, 1).unwrap();
    assert!(t.train(&mut [Broken], &run(10), &mut |_, _| 0.0).is_err());
    assert!(t.train(&mut Vec::<Broken>::new(), &run(10), &mut |_, _| 0.0).is_err());
    let wrong = |action: f32, len: usize| {
        let observation = vec![0.0; len];
        let t_ =
            Transition { observation: &observation, action: &[action], reward: 0.0, done: true };
        SacTrainer::new(small(1), 2, 1).unwrap().push(&t_)
    };
    assert!(wrong(0.5, 2).is_ok() && wrong(1.5, 2).is_err() && wrong(0.5, 3).is_err());
    for config in [
        SacConfig { gamma: 1.1, ..small(1) },
        SacConfig { batch: 0, ..small(1) },
        SacConfig { updates_per_step: f32::NAN, ..small(1) },
    ] {
        assert!(matches!(SacTrainer::new(config, 2, 1), Err(TrainError::Setting { .. })));
    }
}
