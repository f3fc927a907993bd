//! Seeded weights: the same bits on every platform, made in parallel.

use std::{sync::Mutex, thread};

use rand_pcg::{
    Pcg64Mcg,
    rand_core::{Rng, SeedableRng},
};

use crate::tensor::{Tensor, TensorType};

/// Elements that one generator makes; a tensor's chunks have seeds of their own.
const CHUNK: usize = 1 << 16;

/// How a tensor is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Init {
    /// Nearly normal: the sum of four uniform numbers, so never beyond 3.5 standard deviations.
    Normal {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        std: f32,
    },
    /// Uniform in a range.
    Uniform {
        /// Lower end.
        low: f32,
        /// Upper end.
        high: f32,
    },
}

/// A tensor to be made.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Its name; together with the model's seed it decides the contents.
    pub(super) name: String,
    /// Dimensions.
    pub(super) shape: Vec<usize>,
    /// Distribution.
    pub(super) init: Init,
    /// Percent of elements to zero, smallest magnitudes first.
    pub(super) pruned_percent: u8,
}

/// Makes all tensors on all processors.
pub(super) fn generate(seed: u64, requests: &[Request]) -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> =
        requests.iter().map(|r| Tensor::zeros(TensorType::f32(r.shape.clone()))).collect();
    let mut chunks = Vec::new();
    for (request, tensor) in requests.iter().zip(&mut tensors) {
        let data = tensor.as_slice_mut::<f32>().expect("the tensor was made as f32");
        let base = seed ^ hash(&request.name);
        chunks.extend(data.chunks_mut(CHUNK).enumerate().map(|(i, chunk)| {
            let seed = base.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            (seed, request.init, chunk)
        }));
    }
    parallel(chunks, |(seed, init, chunk)| fill(seed, init, chunk));
    let pruned = requests.iter().zip(&mut tensors).filter(|(r, _)| r.pruned_percent > 0);
    parallel(pruned.collect(), |(request, tensor)| {
        let data = tensor.as_slice_mut::<f32>().expect("the tensor was made as f32");
        zero_smallest(data, data.len() * usize::from(request.pruned_percent) / 100);
    });
    tensors
}

/// Tensors of the right types that differ from each other and cost next to nothing.
pub(super) fn placeholders(requests: &[Request]) -> Vec<Tensor> {
    let numbered = requests.iter().zip(1u16..).map(|(r, number)| {
        let mut tensor = Tensor::zeros(TensorType::f32(r.shape.clone()));
        if let Some(first) = tensor.as_slice_mut::<f32>().and_then(|data| data.first_mut()) {
            *first = f32::from(number);
        }
        tensor
    });
    numbered.collect()
}

/// Sets the `count` elements of smallest magnitude to zero (the first ones among equals).
pub(super) fn zero_smallest(data: &mut [f32], count: usize) {
    let Some(last) = count.min(data.len()).checked_sub(1) else { return };
    let mut magnitudes: Vec<f32> = data.iter().map(|v| v.abs()).collect();
    let (below, threshold, _) = magnitudes.select_nth_unstable_by(last, f32::total_cmp);
    let threshold = *threshold;
    // `below` holds `last` elements, some of which may equal the threshold.
    let mut ties = 1 + below.iter().filter(|v| **v == threshold).count();
    for v in data {
        if v.abs() < threshold {
            *v = 0.0;
        } else if v.abs() == threshold && ties > 0 {
            ties -= 1;
            *v = 0.0;
        }
    }
}

/// Share of the sum of squares that survives when `percent` of the elements of a normal
/// [`Init`] are pruned by magnitude.
pub(super) fn kept_energy(percent: u8) -> f32 {
    if percent == 0 {
        return 1.0;
    }
    let mut sample = vec![0.0; 1 << 12];
    fill(0, Init::Normal { mean: 0.0, std: 1.0 }, &mut sample);
    let energy = |data: &[f32]| data.iter().map(|v| v * v).sum::<f32>();
    let all = energy(&sample);
    let count = sample.len() * usize::from(percent) / 100;
    zero_smallest(&mut sample, count);
    energy(&sample) / all
}

/// FNV-1a: stable across platforms and Rust versions.
pub(super) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn fill(seed: u64, init: Init, out: &mut [f32]) {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    match init {
        Init::Normal { mean, std } => {
            // Four 16-bit lanes of variance (2^32 - 1) / 12 each.
            let scale = std / ((f64::from(u32::MAX) / 3.0).sqrt() as f32);
            for v in out {
                let bits = rng.next_u64();
                let lanes = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff);
                let sum = (lanes + (bits >> 48)) as i32 - 2 * 0xffff;
                *v = mean + sum as f32 * scale;
            }
        }
        Init::Uniform { low, high } => {
            let scale = (high - low) / (1u32 << 24) as f32;
            for v in out {
                *v = low + (rng.next_u64() >> 40) as f32 * scale;
            }
        }
    }
}

/// Calls `work` on every item, spread over the processors.
fn parallel<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let queue = Mutex::new(items.into_iter());
    let next = || queue.lock().ok().and_then(|mut q| q.next());
    let drain = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(drain);
        }
        drain();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(init: Init, pruned_percent: u8) -> Request {
        Request { name: "w".into(), shape: vec![300, 400], init, pruned_percent }
    }

    #[test]
    fn normal_has_its_moments_and_is_reproducible() {
        let r = request(Init::Normal { mean: 0.5, std: 2.0 }, 0);
        let tensors = generate(7, std::slice::from_ref(&r));
        let data = tensors[0].as_slice::<f32>().unwrap();
        let n = data.len() as f32;
        let mean = data.iter().sum::<f32>() / n;
        let variance = data.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((variance - 4.0).abs() < 0.05, "{variance}");
        assert_eq!(tensors, generate(7, std::slice::from_ref(&r)));
        assert_ne!(tensors, generate(8, &[r]));
    }

    #[test]
    fn bits_do_not_change_between_versions() {
        let mut out = [0.0; 3];
        fill(1, Init::Normal { mean: 0.0, std: 1.0 }, &mut out);
        assert_eq!(out.map(f32::to_bits), EXPECTED);
    }

    const EXPECTED: [u32; 3] = [0x3f97_afb7, 0xbf8f_9751, 0xbed3_110f];

    #[test]
    fn prunes_exactly() {
        let mut data = [3.0, -1.0, 1.0, -2.0, 0.5, 1.0];
        zero_smallest(&mut data, 3);
        assert_eq!(data, [3.0, 0.0, 0.0, -2.0, 0.0, 1.0]);
        let tensors = generate(7, &[request(Init::Normal { mean: 0.0, std: 1.0 }, 90)]);
        let zeros = tensors[0].as_slice::<f32>().unwrap().iter().filter(|v| **v == 0.0).count();
        assert_eq!(zeros, 300 * 400 * 9 / 10);
        assert!((0.35..0.5).contains(&kept_energy(90)));
    }
}
