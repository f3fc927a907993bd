//! Times of the nets: a step of the actor, a forward pass of the predictor and, with the feature
//! `train`, updates per second of both trainings. Prints one line per measurement: the fastest and
//! the median of many runs.

use std::hint::black_box;
use std::time::Instant;

use sparoa_learn::predictor::{self, position_encoding};
use sparoa_learn::{Actor, Architecture, Predictor, Weights, actor};

/// Runs `f` for about half a second and prints microseconds per call.
fn measure(name: &str, mut f: impl FnMut()) {
    f();
    let start = Instant::now();
    f();
    // Runs of about a millisecond, so that reading the clock does not count.
    let calls = (1e-3 / start.elapsed().as_secs_f64()).clamp(1.0, 1e4) as usize;
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed().as_millis() < 500 || times.len() < 5 {
        let start = Instant::now();
        (0..calls).for_each(|_| f());
        times.push(start.elapsed().as_secs_f64() * 1e6 / calls as f64);
    }
    times.sort_by(f64::total_cmp);
    println!("{name:<44} {:>10.2} us fastest {:>10.2} us median", times[0], times[times.len() / 2]);
}

/// Values that are neither equal nor special.
fn filler(n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| scale * ((i as f32 * 0.7).sin())).collect()
}

fn dense(w: &mut Weights, name: &str, inputs: usize, outputs: usize) {
    let scale = 1.0 / (inputs as f32).sqrt();
    w.insert(&format!("{name}.weight"), &[inputs, outputs], filler(inputs * outputs, scale));
    w.insert(&format!("{name}.bias"), &[outputs], filler(outputs, scale));
}

fn actor_weights() -> Weights {
    let mut w = Weights::new(actor::KIND);
    w.set_note("layers", "3");
    dense(&mut w, "layers.0", 64, 128);
    dense(&mut w, "layers.1", 128, 128);
    dense(&mut w, "layers.2", 128, 2);
    w
}

fn predictor_weights(architecture: Architecture, features: usize) -> Weights {
    let (d, h) = (64, 64);
    let mut w = Weights::new(predictor::KIND);
    w.set_note("architecture", architecture.name());
    w.insert("input.mean", &[features], vec![0.0; features]);
    w.insert("input.deviation", &[features], vec![1.0; features]);
    let mut width = features;
    if architecture != Architecture::Linear {
        dense(&mut w, "embed", features, d);
        width = d;
    }
    let norm = |w: &mut Weights, name: &str| {
        w.insert(&format!("{name}.scale"), &[d], vec![1.0; d]);
        w.insert(&format!("{name}.offset"), &[d], vec![0.0; d]);
    };
    if architecture.has_encoder() {
        for (key, value) in [("window", "128"), ("heads", "4"), ("layers", "2")] {
            w.set_note(key, value);
        }
        for i in 0..2 {
            norm(&mut w, &format!("layers.{i}.attention_norm"));
            norm(&mut w, &format!("layers.{i}.feed_norm"));
            dense(&mut w, &format!("layers.{i}.qkv"), d, 3 * d);
            dense(&mut w, &format!("layers.{i}.out"), d, d);
            dense(&mut w, &format!("layers.{i}.feed_in"), d, 128);
            dense(&mut w, &format!("layers.{i}.feed_out"), 128, d);
        }
        norm(&mut w, "final_norm");
    }
    if architecture.has_lstm() {
        for direction in ["forward", "backward"] {
            dense(&mut w, &format!("lstm.{direction}.input"), d, 4 * h);
            let name = format!("lstm.{direction}.recurrent.weight");
            w.insert(&name, &[h, 4 * h], filler(4 * h * h, 0.1));
        }
        width = 2 * h;
    }
    dense(&mut w, "head", width, 2);
    w
}

fn main() {
    let mut net = Actor::from_weights(actor_weights()).expect("the weights are whole");
    let observation = filler(64, 1.0);
    measure("actor 64-128-128-1, one step", || {
        black_box(net.act(black_box(&observation)));
    });
    let features = 32;
    for architecture in Architecture::ALL {
        let weights = predictor_weights(architecture, features);
        let net = Predictor::from_weights(weights).expect("the weights are whole");
        for operators in [200, 2000] {
            let x = filler(operators * features, 1.0);
            measure(&format!("predictor {architecture}, {operators} operators"), || {
                black_box(net.predict(black_box(&x)).expect("the features fit"));
            });
        }
    }
    measure("position encoding, 2000 operators", || {
        black_box(position_encoding(2000, 64));
    });
    #[cfg(feature = "train")]
    training::run();
}

#[cfg(feature = "train")]
mod training {
    use super::*;
    use rand::Rng;
    use sparoa_learn::train::sac::{CloneConfig, RunOptions};
    use sparoa_learn::train::{PredictorConfig, SacConfig, SacTrainer, train_predictor};
    use sparoa_learn::{Dataset, Environment, Sequence, Step};
    use std::ops::ControlFlow;

    /// An environment that costs no time.
    struct Nothing(usize);

    impl Environment for Nothing {
        fn observation_len(&self) -> usize {
            64
        }
        fn reset(&mut self, _: &mut dyn Rng) {
            self.0 = 0;
        }
        fn observe(&self, into: &mut [f32]) {
            into.fill(self.0 as f32 * 0.01);
        }
        fn step(&mut self, action: &[f32]) -> Step {
            self.0 += 1;
            Step { reward: -action[0], done: self.0 == 100 }
        }
    }

    pub(super) fn run() {
        let config = SacConfig { random_steps: 1024, ..SacConfig::default() };
        let mut trainer = SacTrainer::new(config, 64, 1).expect("the settings are good");
        let mut envs: Vec<Nothing> = (0..16).map(|_| Nothing(0)).collect();
        let mut until = |updates: u64| {
            let options = RunOptions { updates, ..RunOptions::default() };
            trainer.train(&mut envs, &options, &mut |_, _| 0.0).expect("it trains");
        };
        until(32);
        // The best of several parts: other processes disturb some.
        let rates = (1..=8).map(|i| {
            let start = Instant::now();
            until(32 + 64 * i);
            64.0 / start.elapsed().as_secs_f64()
        });
        let rate = rates.fold(0.0, f64::max);
        println!("SAC, batch 256, 64-128-128, one step per update   {rate:>8.1} updates/s");
        let (seen, done) = (filler(64 * 1000, 1.0), vec![0.3; 1000]);
        let clone = CloneConfig { steps: 500, ..CloneConfig::default() };
        let start = Instant::now();
        trainer.pretrain(&seen, &done, &clone).expect("it clones");
        let rate = 500.0 / start.elapsed().as_secs_f64();
        println!("cloning, batch 256                                {rate:>8.1} updates/s");
        let (features, steps) = (32, 200);
        let sequence = Sequence {
            features: filler(steps * features, 1.0),
            targets: vec![0.5; 2 * steps],
            weights: vec![1.0; 2 * steps],
        };
        let data = Dataset { features, sequences: vec![sequence; 48] };
        for architecture in Architecture::ALL {
            let config = PredictorConfig { architecture, epochs: 2, ..PredictorConfig::default() };
            let start = Instant::now();
            train_predictor(&config, &data, &data, &mut |_| ControlFlow::Continue(()))
                .expect("it trains");
            let ms = start.elapsed().as_secs_f64() * 1e3 / 96.0;
            println!(
                "{architecture}, batch 16 x 200 operators, with validation: {ms:.2} ms/sequence"
            );
        }
    }
}
