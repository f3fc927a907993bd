//! Tests of the training of predictors: gradients, parity with the run time, learning, repetition.

use burn_tensor::activation::tanh;
use rand::RngExt;

use super::super::parameters::{Leaves, values};
use super::*;
use crate::dataset::Sequence;

fn draws(n: usize, rng: &mut Pcg64) -> Vec<f32> {
    (0..n).map(|_| crate::actor::standard_normal(rng)).collect()
}

/// A direction of the LSTM through the graph, an operator at a time: [T, inputs] to [T, hidden].
fn lstm_by_graph(leaves: &Leaves, direction: &str, x: Tensor<2>, device: &Device) -> Tensor<2> {
    let steps = x.dims()[0];
    let recurrent = leaves.matrix(&format!("lstm.{direction}.recurrent.weight"));
    let n = recurrent.dims()[0];
    let given = leaves.dense(&format!("lstm.{direction}.input"), x);
    let (mut state, mut cell) =
        (Tensor::<2>::zeros([1, n], device), Tensor::<2>::zeros([1, n], device));
    let mut states = Vec::new();
    for i in 0..steps {
        let row = if direction == "backward" { steps - 1 - i } else { i };
        let gates = given.clone().slice([row..row + 1, 0..4 * n]) + state.matmul(recurrent.clone());
        let gate = |i: usize| gates.clone().slice([0..1, i * n..(i + 1) * n]);
        let open = |i: usize| burn_tensor::activation::sigmoid(gate(i));
        cell = open(1) * cell + open(0) * tanh(gate(3));
        state = open(2) * tanh(cell.clone());
        states.push(state.clone());
    }
    if direction == "backward" {
        states.reverse();
    }
    Tensor::cat(states, 0)
}

/// The whole net through the graph, for a batch of one sequence without padding.
fn net_by_graph(
    config: &PredictorConfig,
    leaves: &Leaves,
    batch: &Batch,
    device: &Device,
) -> Tensor<2> {
    let mut x = net::encode(config, leaves, batch, device);
    if config.architecture.has_lstm() {
        let forward = lstm_by_graph(leaves, "forward", x.clone(), device);
        x = Tensor::cat(vec![forward, lstm_by_graph(leaves, "backward", x, device)], 1);
    }
    net::head(leaves, x)
}

fn random_sequence(steps: usize, features: usize, rng: &mut Pcg64) -> Sequence {
    Sequence {
        features: draws(steps * features, rng),
        targets: (0..steps * OUTPUTS).map(|_| rng.random()).collect(),
        weights: (0..steps * OUTPUTS).map(|_| f32::from(rng.random::<f32>() < 0.8)).collect(),
    }
}

#[test]
fn the_run_time_gives_what_was_trained() {
    let mut rng = Pcg64::seed_from_u64(21);
    let features = 12;
    for architecture in Architecture::ALL {
        // The default window and one that long sequences cross many times.
        for window in [128, 16] {
            let config = PredictorConfig { architecture, window, ..PredictorConfig::default() };
            let parameters = net::parameters(&config, features, &mut rng);
            for steps in [1, 2, 37, 300] {
                let sequence = random_sequence(steps, features, &mut rng);
                let data = Dataset { features, sequences: vec![sequence] };
                let statistics = Statistics::of(&data);
                let batch = batch::padded(&data, &[0], &statistics);
                let device = Device::flex();
                let leaves = parameters.leaves(&device, false);
                let expected = values(net_by_graph(&config, &leaves, &batch, &device));
                let weights = export(&config, &statistics, &parameters);
                // Through bytes, as a file would go.
                let bytes = weights.to_bytes().unwrap();
                let net = Predictor::from_bytes("test", &bytes).unwrap();
                let found = net.predict(&data.sequences[0].features).unwrap();
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-5, "{architecture} {steps}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn gradients_of_padded_batches_are_those_of_the_graph() {
    let mut rng = Pcg64::seed_from_u64(22);
    let features = 5;
    for architecture in Architecture::ALL {
        let config = PredictorConfig {
            architecture,
            width: 8,
            heads: 2,
            feed: 16,
            window: 4,
            lstm: 6,
            ..PredictorConfig::default()
        };
        let parameters = net::parameters(&config, features, &mut rng);
        let lengths = [1, 3, 7, 10];
        let sequences: Vec<Sequence> =
            lengths.iter().map(|n| random_sequence(*n, features, &mut rng)).collect();
        let data = Dataset { features, sequences };
        let statistics = Statistics::of(&data);
        let whole = batch::padded(&data, &[0, 1, 2, 3], &statistics);
        let (loss, found) = gradients(&config, &parameters, &whole);
        // The same, sequence after sequence, all by the graph.
        let device = Device::flex().autodiff();
        let leaves = parameters.leaves(&device, true);
        let mut total: Option<Tensor<1>> = None;
        for i in 0..lengths.len() {
            let one = batch::padded(&data, &[i], &statistics);
            if one.weight == 0.0 {
                continue;
            }
            let y = net_by_graph(&config, &leaves, &one, &device);
            let part = net::loss(config.loss, y, &one, &device) * (one.weight / whole.weight);
            total = Some(match total {
                Some(sum) => sum + part,
                None => part,
            });
        }
        let total = total.unwrap();
        let expected = leaves.gradients(&total.backward());
        assert!((values(total)[0] - loss).abs() < 1e-6);
        for ((p, a), b) in parameters.list().iter().zip(&found).zip(&expected) {
            let largest = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() < 1e-4 * largest, "{architecture} {}: {a} {b}", p.name);
            }
        }
    }
}

/// Thresholds that depend on the neighbours and on what was seen before.
fn synthetic(sequences: usize, seed: u64) -> Dataset {
    let mut rng = Pcg64::seed_from_u64(seed);
    let features = 4;
    let sequence = |_| {
        let steps = rng.random_range(10..40);
        let x = draws(steps * features, &mut rng);
        let at = |t: usize, f: usize| x[t * features + f];
        let mut decayed = 0.0f32;
        let mut targets = Vec::new();
        for t in 0..steps {
            decayed = 0.7 * decayed + 0.5 * at(t, 0);
            let next = if t + 1 < steps { at(t + 1, 1) } else { 0.0 };
            let own = at(t, 2) * at(t, 3);
            let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
            targets.extend([sigmoid(1.5 * decayed + 0.5 * own), sigmoid(next - own)]);
        }
        Sequence { weights: vec![1.0; targets.len()], features: x, targets }
    };
    Dataset { features, sequences: (0..sequences).map(sequence).collect() }
}

fn quick(architecture: Architecture) -> PredictorConfig {
    PredictorConfig {
        architecture,
        width: 32,
        layers: 2,
        feed: 64,
        lstm: 32,
        epochs: 25,
        learning_rate: 4e-3,
        patience: 0,
        ..PredictorConfig::default()
    }
}

#[test]
fn nets_fit_what_a_linear_model_cannot() {
    let (train, validation) = (synthetic(200, 31), synthetic(60, 32));
    let error = |architecture: Architecture| {
        let mut seen = 0;
        let mut on_epoch = |_: &Epoch| {
            seen += 1;
            ControlFlow::Continue(())
        };
        let run =
            train_predictor(&quick(architecture), &train, &validation, &mut on_epoch).unwrap();
        assert_eq!((run.epochs.len(), seen), (25, 25));
        let best = run.epochs[run.best_epoch - 1];
        let (loss, error) = validate(quick(architecture).loss, &run.weights, &validation).unwrap();
        assert_eq!((loss, error), (best.validation_loss, best.validation_error));
        error
    };
    let linear = error(Architecture::Linear);
    for (architecture, part) in [
        (Architecture::Lstm, 0.6),
        (Architecture::Transformer, 0.8),
        (Architecture::TransformerLstm, 0.6),
    ] {
        let found = error(architecture);
        assert!(found < part * linear, "{architecture}: {found}, linear: {linear}");
    }
}

#[test]
fn a_seed_gives_the_same_bits() {
    let (train, validation) = (synthetic(30, 41), synthetic(5, 42));
    let weights = |seed: u64| {
        let config = PredictorConfig { epochs: 2, seed, ..quick(Architecture::TransformerLstm) };
        let mut go = |_: &Epoch| ControlFlow::Continue(());
        train_predictor(&config, &train, &validation, &mut go).unwrap().weights.to_bytes().unwrap()
    };
    assert!(weights(1) == weights(1));
    assert!(weights(1) != weights(2));
}

#[test]
fn a_training_ends_early() {
    let (train, validation) = (synthetic(20, 51), synthetic(5, 52));
    let config = quick(Architecture::Linear);
    let mut halt = |e: &Epoch| match e.epoch {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let run = train_predictor(&config, &train, &validation, &mut halt).unwrap();
    assert_eq!(run.epochs.len(), 3);
    // Targets of noise: the validation loss soon rises, and patience ends it.
    let mut noise = train.clone();
    let mut rng = Pcg64::seed_from_u64(53);
    for s in &mut noise.sequences {
        s.targets.iter_mut().for_each(|t| *t = rng.random());
    }
    let config = PredictorConfig { patience: 3, epochs: 500, ..quick(Architecture::Lstm) };
    let mut go = |_: &Epoch| ControlFlow::Continue(());
    let run = train_predictor(&config, &noise, &validation, &mut go).unwrap();
    assert!(run.epochs.len() < 500);
    assert_eq!(run.epochs.len(), run.best_epoch + 3);
}

#[test]
fn unusable_data_and_settings_are_errors() {
    let good = synthetic(3, 61);
    let mut go = |_: &Epoch| ControlFlow::Continue(());
    let mut train =
        |config: &PredictorConfig, a: &Dataset, b: &Dataset| train_predictor(config, a, b, &mut go);
    let config = PredictorConfig { epochs: 1, ..quick(Architecture::Linear) };
    let empty = Dataset { features: 4, sequences: Vec::new() };
    assert!(matches!(train(&config, &empty, &good), Err(TrainError::Dataset(_))));
    assert!(matches!(train(&config, &good, &empty), Err(TrainError::Dataset(_))));
    let mut narrow = good.clone();
    narrow.features = 2;
    narrow.sequences.iter_mut().for_each(|s| s.features.truncate(2 * s.len()));
    assert!(matches!(train(&config, &good, &narrow), Err(TrainError::Dataset(_))));
    for bad in [
        PredictorConfig { heads: 5, ..config.clone() },
        PredictorConfig { batch: 0, ..config.clone() },
        PredictorConfig { learning_rate: f32::NAN, ..config.clone() },
        PredictorConfig { loss: Loss::Huber { delta: 0.0 }, ..config.clone() },
    ] {
        assert!(matches!(train(&bad, &good, &good), Err(TrainError::Setting { .. })));
    }
}
