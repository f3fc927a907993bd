//! Minibatches: sequences of like length, padded to the longest.

use rand::RngExt;
use rand_pcg::Pcg64;

use super::Statistics;
use crate::dataset::Dataset;
use crate::predictor::{FEATURE_LIMIT, OUTPUTS};

/// Padded sequences, sequence after sequence.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Batch {
    /// Sequences.
    pub(super) rows: usize,
    /// Length of the longest.
    pub(super) steps: usize,
    /// [rows, steps, features], normalised; zeros where padded.
    pub(super) features: Vec<f32>,
    /// [rows, steps]: 1 for operators, 0 for padding.
    pub(super) mask: Vec<f32>,
    /// [rows, steps, 2]
    pub(super) targets: Vec<f32>,
    /// [rows, steps, 2], 0 where padded.
    pub(super) weights: Vec<f32>,
    /// Sum of the weights.
    pub(super) weight: f32,
}

/// How many batches are sorted by length together: enough that lengths are alike, few enough that
/// batches differ from epoch to epoch.
const SORTED: usize = 8;

/// All batches of an epoch that hold a weight, in random order.
pub(super) fn batches(
    data: &Dataset,
    order: &[usize],
    rows: usize,
    statistics: &Statistics,
    rng: &mut Pcg64,
) -> Vec<Batch> {
    let order: Vec<usize> =
        order.iter().copied().filter(|i| !data.sequences[*i].is_empty()).collect();
    let mut groups = Vec::new();
    for part in order.chunks(rows * SORTED) {
        let mut part = part.to_vec();
        part.sort_by_key(|i| data.sequences[*i].len());
        groups.extend(part.chunks(rows).map(<[usize]>::to_vec));
    }
    for i in (1..groups.len()).rev() {
        groups.swap(i, rng.random_range(0..=i));
    }
    let batches = groups.iter().map(|g| padded(data, g, statistics));
    batches.filter(|b| b.weight > 0.0).collect()
}

pub(super) fn padded(data: &Dataset, group: &[usize], statistics: &Statistics) -> Batch {
    let sequences = || group.iter().map(|i| &data.sequences[*i]);
    let (rows, f) = (group.len(), data.features);
    let steps = sequences().map(|s| s.len()).max().unwrap_or(0);
    let mut batch = Batch {
        rows,
        steps,
        features: vec![0.0; rows * steps * f],
        mask: vec![0.0; rows * steps],
        targets: vec![0.0; rows * steps * OUTPUTS],
        weights: vec![0.0; rows * steps * OUTPUTS],
        weight: 0.0,
    };
    for (row, s) in sequences().enumerate() {
        let first = row * steps;
        for (i, v) in s.features.iter().enumerate() {
            let (mean, deviation) = (statistics.mean[i % f], statistics.deviation[i % f]);
            let v = ((v - mean) / deviation).clamp(-FEATURE_LIMIT, FEATURE_LIMIT);
            batch.features[first * f + i] = v;
        }
        batch.mask[first..first + s.len()].fill(1.0);
        let outputs = first * OUTPUTS..(first + s.len()) * OUTPUTS;
        batch.targets[outputs.clone()].copy_from_slice(&s.targets);
        batch.weights[outputs].copy_from_slice(&s.weights);
    }
    batch.weight = batch.weights.iter().sum();
    batch
}
