//! Zeros in tensors: how many, how they are arranged, how they vary.

use serde::{Deserialize, Serialize};
use sparoa_kernels::pool::Pool;

use super::{Analysis, WalkError, walk};
use crate::{
    ir::Graph,
    tensor::{DType, Tensor, TensorRef, count_zeros},
};

/// Exact zeros of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightZeros {
    /// Of all elements.
    pub share: f64,
    /// Share of the groups of four neighbours along the products' sum of which two or more are
    /// zero: 1 for weights pruned 2:4.
    pub two_of_four: f64,
    /// Share of the groups of four that are zero altogether: near `share` for block sparsity.
    pub blocks_of_four: f64,
}

/// Exact zeros of an operator's first run-time input, over calibration samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivationZeros {
    /// Samples seen.
    pub samples: usize,
    /// Mean share over the samples.
    pub mean: f64,
    /// Standard deviation over the samples.
    pub deviation: f64,
    /// Least and most of any sample.
    pub range: [f64; 2],
    /// Least, median and most of any channel, over all samples; `None` where channels are unknown.
    pub channels: Option<[f64; 3]>,
}

/// Exact zeros (of either sign) as a fraction of the elements; `None` for an empty tensor or one
/// that is not of f32.
pub fn zero_fraction(tensor: TensorRef<'_>) -> Option<f64> {
    if tensor.dtype != DType::F32 || tensor.bytes.is_empty() {
        return None;
    }
    let data = tensor.slice::<f32>();
    Some(count_zeros(data) as f64 / data.len() as f64)
}

/// The zeros of a weight; `None` as in [`zero_fraction`]. The products sum along dimension 1 of a
/// filter (its input channels); of a matrix along whichever dimension has more structure.
pub fn weight_zeros(tensor: TensorRef<'_>) -> Option<WeightZeros> {
    let share = zero_fraction(tensor)?;
    let mut found = WeightZeros { share, two_of_four: 0.0, blocks_of_four: 0.0 };
    if share == 0.0 {
        return Some(found);
    }
    let (data, shape) = (tensor.slice::<f32>(), tensor.shape);
    let axes = if shape.len() == 2 { 0..2 } else { 1..2 };
    for axis in axes.filter(|&axis| axis < shape.len()) {
        let (two, all) = groups_of_four(data, shape, axis);
        if (two, all) > (found.two_of_four, found.blocks_of_four) {
            (found.two_of_four, found.blocks_of_four) = (two, all);
        }
    }
    Some(found)
}

/// Shares of the whole groups of four along `axis` with at least two zeros, and with four.
fn groups_of_four(data: &[f32], shape: &[usize], axis: usize) -> (f64, f64) {
    let inner: usize = shape[axis + 1..].iter().product();
    let (mut groups, mut two, mut all) = (0usize, 0usize, 0usize);
    for slice in data.chunks_exact((shape[axis] * inner).max(1)) {
        for group in slice.chunks_exact(4 * inner) {
            for i in 0..inner {
                let zeros = (0..4).filter(|k| group[k * inner + i] == 0.0).count();
                groups += 1;
                two += usize::from(zeros >= 2);
                all += usize::from(zeros == 4);
            }
        }
    }
    let share = |n: usize| n as f64 / groups.max(1) as f64;
    (share(two), share(all))
}

/// Runs the graph node by node on each sample (inputs in the graph's order) and notes the zeros in
/// each node's first run-time input. `channels_last` says that channels are the last dimension.
///
/// # Errors
/// When a node refuses its inputs.
pub fn record_activation_sparsity(
    analysis: &mut Analysis,
    graph: &Graph,
    samples: &[Vec<Tensor>],
    channels_last: bool,
    pool: &Pool,
) -> Result<(), WalkError> {
    let mut shares = vec![Vec::new(); graph.nodes.len()];
    let mut channels: Vec<Vec<u64>> = vec![Vec::new(); graph.nodes.len()];
    let mut elements = vec![0u64; graph.nodes.len()];
    for inputs in samples {
        walk(graph, inputs, pool, |id, given, _| {
            let node = graph.node(id);
            let run_time = node.inputs.iter().zip(given).find_map(|(value, tensor)| {
                value.filter(|v| graph.value(*v).constant.is_none()).and(*tensor)
            });
            let Some(tensor) = run_time else { return };
            let Some(share) = zero_fraction(tensor.view()) else { return };
            let i = id.index();
            shares[i].push(share);
            if let (true, [_, .., last]) = (channels_last, tensor.shape()) {
                let counts = &mut channels[i];
                counts.resize(*last, 0);
                let data = tensor.as_slice::<f32>().expect("only f32 has a share of zeros");
                for pixel in data.chunks_exact(*last) {
                    for (count, v) in counts.iter_mut().zip(pixel) {
                        *count += u64::from(*v == 0.0);
                    }
                }
                elements[i] += (data.len() / last) as u64;
            }
        })?;
    }
    for (i, entry) in analysis.nodes.iter_mut().enumerate() {
        let channels = std::mem::take(&mut channels[i]);
        entry.activation_zeros = summary(&shares[i], channels, elements[i]);
        entry.activation_sparsity = entry.activation_zeros.map(|z| z.mean);
    }
    Ok(())
}

/// `counts` zeros per channel, each of so many elements.
fn summary(shares: &[f64], counts: Vec<u64>, elements: u64) -> Option<ActivationZeros> {
    if shares.is_empty() {
        return None;
    }
    let n = shares.len() as f64;
    let mean = shares.iter().sum::<f64>() / n;
    let variance = shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shares.iter().copied().fold(0.0, f64::max);
    let mut counts = counts;
    counts.sort_unstable();
    let of = |i: usize| counts[i] as f64 / elements.max(1) as f64;
    let channels =
        (!counts.is_empty()).then(|| [of(0), of(counts.len() / 2), of(counts.len() - 1)]);
    Some(ActivationZeros {
        samples: shares.len(),
        mean,
        deviation: variance.sqrt(),
        range: [least, most],
        channels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeros_of(shape: &[usize], data: &[f32]) -> WeightZeros {
        weight_zeros(Tensor::from_slice(shape, data).view()).unwrap()
    }

    #[test]
    fn structure_of_weights() {
        // Two of every four along the second dimension.
        let pruned = zeros_of(&[2, 8], &[1., 0., 0., 2., 0., 3., 4., 0.].repeat(2));
        assert_eq!((pruned.share, pruned.two_of_four, pruned.blocks_of_four), (0.5, 1.0, 0.0));
        // Whole blocks: the first half of every row.
        let blocks = zeros_of(&[2, 8], &[0., 0., 0., 0., 1., 2., 3., 4.].repeat(2));
        assert_eq!((blocks.share, blocks.two_of_four, blocks.blocks_of_four), (0.5, 0.5, 0.5));
        // A filter's input channels, whose taps lie between them.
        let filter: Vec<f32> = (0..4 * 9).map(|i| if i / 9 < 2 { 0.0 } else { 1.0 }).collect();
        assert_eq!(zeros_of(&[1, 4, 3, 3], &filter).two_of_four, 1.0);
        assert_eq!(zeros_of(&[2, 2], &[1.0; 4]).share, 0.0);
    }

    #[test]
    fn activations_over_samples_and_channels() {
        let s = summary(&[0.25, 0.75], vec![8, 0, 4], 8).unwrap();
        assert_eq!((s.samples, s.mean, s.deviation, s.range), (2, 0.5, 0.25, [0.25, 0.75]));
        assert_eq!(s.channels, Some([0.0, 0.5, 1.0]));
        assert_eq!(summary(&[], vec![], 0), None);
    }
}
