//! Tests of the predictor that need no training: windows, refusals, shapes and speed's premise.

use rand::SeedableRng;
use rand_pcg::Pcg64;

use super::*;
use crate::actor::standard_normal;

/// Random weights of a net with `features` inputs.
fn net(architecture: Architecture, features: usize, window: usize) -> Weights {
    let (d, h, ff) = (16, 8, 32);
    let mut rng = Pcg64::seed_from_u64(11);
    let mut w = Weights::new(KIND);
    w.set_note("architecture", architecture.name());
    let mut put = |w: &mut Weights, name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let scale = 1.0 / (shape[0] as f32).sqrt();
        w.insert(name, shape, (0..n).map(|_| scale * standard_normal(&mut rng)).collect());
    };
    let mut dense = |w: &mut Weights, name: &str, inputs: usize, outputs: usize| {
        put(w, &format!("{name}.weight"), &[inputs, outputs]);
        put(w, &format!("{name}.bias"), &[outputs]);
    };
    let norm = |w: &mut Weights, name: &str| {
        w.insert(&format!("{name}.scale"), &[d], vec![1.0; d]);
        w.insert(&format!("{name}.offset"), &[d], vec![0.0; d]);
    };
    w.insert("input.mean", &[features], vec![0.5; features]);
    w.insert("input.deviation", &[features], vec![2.0; features]);
    let mut width = features;
    if architecture != Architecture::Linear {
        dense(&mut w, "embed", features, d);
        width = d;
    }
    if architecture.has_encoder() {
        for (key, value) in [("window", window), ("heads", 4), ("layers", 2)] {
            w.set_note(key, &value.to_string());
        }
        for i in 0..2 {
            let part = |p: &str| format!("layers.{i}.{p}");
            norm(&mut w, &part("attention_norm"));
            norm(&mut w, &part("feed_norm"));
            dense(&mut w, &part("qkv"), d, 3 * d);
            dense(&mut w, &part("out"), d, d);
            dense(&mut w, &part("feed_in"), d, ff);
            dense(&mut w, &part("feed_out"), ff, d);
        }
        norm(&mut w, "final_norm");
    }
    if architecture.has_lstm() {
        for direction in ["forward", "backward"] {
            dense(&mut w, &format!("lstm.{direction}.input"), width, 4 * h);
            let mut rng = Pcg64::seed_from_u64(12);
            let values = (0..4 * h * h).map(|_| 0.3 * standard_normal(&mut rng)).collect();
            w.insert(&format!("lstm.{direction}.recurrent.weight"), &[h, 4 * h], values);
        }
        width = 2 * h;
    }
    dense(&mut w, "head", width, OUTPUTS);
    w
}

fn inputs(rows: usize, features: usize) -> Vec<f32> {
    let mut rng = Pcg64::seed_from_u64(13);
    (0..rows * features).map(|_| standard_normal(&mut rng)).collect()
}

#[test]
fn nets_go_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Predictor>();
    shared::<crate::Actor>();
}

#[test]
fn windows_cover_every_operator_once() {
    for window in [2, 3, 8, 128] {
        for rows in [1, 2, 7, 8, 9, 64, 300] {
            for layer in 0..2 {
                let mut next = 0;
                for range in windows(rows, window, layer) {
                    assert_eq!(range.start, next);
                    assert!(range.len() <= window);
                    next = range.end;
                }
                assert_eq!(next, rows, "window {window}, rows {rows}, layer {layer}");
            }
        }
    }
}

#[test]
fn outputs_are_thresholds_at_any_length() {
    for architecture in Architecture::ALL {
        let p = Predictor::from_weights(net(architecture, 5, 8)).unwrap();
        assert_eq!(p.architecture().to_string().parse(), Ok(architecture));
        for rows in [0, 1, 2, 37, 300] {
            let y = p.predict(&inputs(rows, 5)).unwrap();
            assert_eq!(y.len(), rows * OUTPUTS);
            assert!(y.iter().all(|v| (0.0..=1.0).contains(v)));
        }
        // The largest floats are cut off, not an overflow.
        let y = p.predict(&[f32::MAX, f32::MIN, 0.0, 1.0, -1.0]).unwrap();
        assert!(y.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn what_an_architecture_sees() {
    // Change the last operator: the linear model's earlier outputs stay, the LSTM's all move, the
    // encoder's move within two windows and a half.
    let rows = 64;
    let x = inputs(rows, 5);
    let mut changed = x.clone();
    changed[rows * 5 - 1] += 1.0;
    for architecture in Architecture::ALL {
        let p = Predictor::from_weights(net(architecture, 5, 8)).unwrap();
        let (a, b) = (p.predict(&x).unwrap(), p.predict(&changed).unwrap());
        let moved = |row: usize| a[2 * row..2 * row + 2] != b[2 * row..2 * row + 2];
        assert!(moved(rows - 1));
        assert_eq!(moved(rows - 2), architecture != Architecture::Linear);
        assert_eq!(moved(rows - 12), architecture != Architecture::Linear);
        assert_eq!(moved(rows - 14), architecture.has_lstm(), "{architecture}");
    }
}

#[test]
fn features_of_another_width_or_not_finite_are_refused() {
    let p = Predictor::from_weights(net(Architecture::Linear, 5, 8)).unwrap();
    assert_eq!(p.predict(&[0.0; 7]), Err(FeaturesError::Length { len: 7, expected: 5 }));
    let mut x = inputs(3, 5);
    x[7] = f32::NAN;
    assert_eq!(p.predict(&x), Err(FeaturesError::NonFinite { operator: 1, feature: 2 }));
}

#[test]
fn files_that_are_no_predictor_are_refused() {
    let whole = net(Architecture::TransformerLstm, 5, 8);
    for name in whole.arrays().keys() {
        let mut w = Weights::new(KIND);
        for key in ["architecture", "window", "heads", "layers"] {
            w.set_note(key, whole.note(key).unwrap());
        }
        for (other, array) in whole.arrays() {
            if other != name {
                w.insert(other, &array.shape, array.data.clone());
            }
        }
        let error = Predictor::from_weights(w.clone()).err().expect("a tensor is missing");
        assert!(matches!(error, WeightsError::MissingTensor { tensor, .. } if tensor == *name));
        w.insert(name, &[1, 1, 7], vec![1.0; 7]);
        let error = Predictor::from_weights(w).err().expect("a tensor has a wrong shape");
        assert!(matches!(error, WeightsError::WrongShape { .. }), "{name}: {error}");
    }
    for (key, value) in
        [("architecture", "mamba"), ("window", "0"), ("heads", "3"), ("layers", "99")]
    {
        let mut w = whole.clone();
        w.set_note(key, value);
        let error = Predictor::from_weights(w).err().expect("a setting is wrong");
        assert!(matches!(error, WeightsError::Setting { key: k, .. } if k == key));
    }
    let mut w = whole.clone();
    w.insert("input.deviation", &[5], vec![0.0; 5]);
    assert!(matches!(Predictor::from_weights(w), Err(WeightsError::Corrupt { .. })));
}
