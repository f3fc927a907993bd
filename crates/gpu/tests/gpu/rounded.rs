//! Products on matrix units: operators of sizes that no block divides, their results in double
//! precision, and how far results of rounded operands may be off.

use std::sync::Arc;

use sparoa_core::{
    ops::{
        Op,
        attention::{Attention, HeadLayout},
        conv::{Conv, Layout, Window},
        gemm::Linear,
    },
    tensor::Tensor,
};
use sparoa_kernels::Activation;

/// What rounding a number errs by at most.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// Relative to the number.
    pub share: f64,
    /// Absolutely, below the normal numbers.
    pub tiny: f64,
}

impl Rounding {
    /// To f16, and to tf32, which has its 11 significant bits but f32's range.
    pub const F16: Rounding = Rounding { share: 1.0 / 2048.0, tiny: 1.0 / (1u64 << 25) as f64 };
    /// To bf16, of 8 significant bits, and f32's range.
    pub const BF16: Rounding = Rounding { share: 1.0 / 256.0, tiny: f32::MIN_POSITIVE as f64 };
}

/// What an operation in f32 errs by, with room for the order of sums.
const SINGLE: f64 = 1.0 / (1u64 << 23) as f64;

/// An operator on values, and what must come out.
pub struct Sample {
    pub name: String,
    pub op: Arc<dyn Op>,
    /// Values, and whether they are constants.
    pub inputs: Vec<(Tensor, bool)>,
    pub expected: Vec<f64>,
    pub bound: Vec<f64>,
    /// The bound of operands that are not rounded.
    pub exact: Vec<f64>,
    pub rounding: Rounding,
}

/// A sum of products, and the sum of what its terms may be off: both operands rounded, and the sum
/// in f32.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    count: f64,
    size: f64,
    operands: f64,
}

impl Sum {
    fn add(&mut self, a: f32, b: f32) {
        let (a, b) = (f64::from(a), f64::from(b));
        self.value += a * b;
        self.size += (a * b).abs();
        self.operands += a.abs() + b.abs();
        self.count += 1.0;
    }

    fn bound(&self, Rounding { share, tiny }: Rounding) -> f64 {
        (2.0 * share + share * share) * self.size + tiny * self.operands + self.exact()
    }

    fn exact(&self) -> f64 {
        self.count * SINGLE * self.size + f64::from(f32::MIN_POSITIVE)
    }
}

/// Deterministic values in -1..1, different for each seed.
pub fn values(shape: &[usize], seed: u32) -> Tensor {
    let len: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let data: Vec<f32> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(shape.to_vec(), &data)
}

fn floats(tensor: &Tensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("made of f32")
}

pub fn linear([m, k, n]: [usize; 3], trans_b: bool, rounding: Rounding) -> Sample {
    let x = values(&[m, k], 1);
    let w = values(&if trans_b { [n, k] } else { [k, n] }, 2);
    let (a, b) = (floats(&x), floats(&w));
    let sums: Vec<Sum> = (0..m * n)
        .map(|i| {
            let mut sum = Sum::default();
            for j in 0..k {
                let at = if trans_b { i % n * k + j } else { j * n + i % n };
                sum.add(a[i / n * k + j], b[at]);
            }
            sum
        })
        .collect();
    Sample {
        name: format!("linear {m}x{k}x{n}"),
        op: Arc::new(Linear { trans_b, ..Linear::default() }),
        expected: sums.iter().map(|s| s.value).collect(),
        bound: sums.iter().map(|s| s.bound(rounding)).collect(),
        exact: sums.iter().map(Sum::exact).collect(),
        rounding,
        inputs: vec![(x, false), (w, true)],
    }
}

/// GELU of a product. Its slope is at most 1.13; its error is that of its approximation, and of sums
/// in f32.
fn gelu([m, k, n]: [usize; 3], rounding: Rounding) -> Sample {
    let Sample { inputs, expected, bound, exact, .. } = linear([m, k, n], true, rounding);
    // By Simpson's rule: off by less than 1e-9 for the values that occur here.
    let erf = |x: f64| {
        let (steps, h) = (1000, x / 1000.0);
        let weight = |i: usize| match i {
            0 | 1000 => 1.0,
            _ => 2.0 + 2.0 * (i % 2) as f64,
        };
        let sum: f64 = (0..=steps).map(|i| weight(i) * (-(i as f64 * h).powi(2)).exp()).sum();
        sum * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
    };
    let half = |v: f64| 0.5 * (1.0 + erf(v / std::f64::consts::SQRT_2));
    let widened = |bound: &[f64]| -> Vec<f64> {
        let pairs = expected.iter().zip(bound);
        pairs.map(|(v, b)| 1.13 * b + 3e-7 + 3.0 * SINGLE * v.abs()).collect()
    };
    Sample {
        name: format!("GELU of {m}x{k}x{n}"),
        op: Arc::new(Linear { trans_b: true, activation: Activation::Gelu, ..Linear::default() }),
        bound: widened(&bound),
        exact: widened(&exact),
        expected: expected.into_iter().map(|v| v * half(v)).collect(),
        inputs,
        rounding,
    }
}

/// A convolution 3 x 3 of `groups` parts, NHWC.
pub fn conv(
    size: usize,
    groups: usize,
    [ci, co]: [usize; 2],
    stride: usize,
    rounding: Rounding,
) -> Sample {
    let (c_in, c_out) = (ci * groups, co * groups);
    let x = values(&[1, size, size, c_in], 3);
    let w = values(&[c_out, ci, 3, 3], 4);
    let (a, b) = (floats(&x), floats(&w));
    let out = (size - 1) / stride + 1;
    let mut sums = Vec::new();
    for i in 0..out * out * c_out {
        let (oh, ow, c) = (i / c_out / out, i / c_out % out, i % c_out);
        let mut sum = Sum::default();
        for (kh, kw) in (0..9).map(|tap| (tap / 3, tap % 3)) {
            let (h, v) = (oh * stride + kh, ow * stride + kw);
            if (1..=size).contains(&h) && (1..=size).contains(&v) {
                for j in 0..ci {
                    let at = ((h - 1) * size + v - 1) * c_in + c / co * ci + j;
                    sum.add(a[at], b[((c * ci + j) * 3 + kh) * 3 + kw]);
                }
            }
        }
        sums.push(sum);
    }
    let op = Conv {
        window: Window::new(&[3, 3], &[stride, stride], &[1, 1, 1, 1]),
        group: groups,
        layout: Layout::Nhwc,
        ..Conv::default()
    };
    Sample {
        name: format!("{size} x {size} of {groups} x {ci} to {co}, stride {stride}"),
        op: Arc::new(op),
        expected: sums.iter().map(|s| s.value).collect(),
        bound: sums.iter().map(|s| s.bound(rounding)).collect(),
        exact: sums.iter().map(Sum::exact).collect(),
        rounding,
        inputs: vec![(x, false), (w, true)],
    }
}

/// Attention of two heads. A score that is off by e changes weights by a factor of exp(e), both
/// its own and, through the sum, all others.
fn attention(
    [rows, keys]: [usize; 2],
    [d, vd]: [usize; 2],
    causal: bool,
    rounding: Rounding,
) -> Sample {
    let q = values(&[1, 2, rows, d], 5);
    let k = values(&[1, 2, keys, d], 6);
    let v = values(&[1, 2, keys, vd], 7);
    let scale = 0.5f32;
    let (mut expected, mut bound) = (Vec::new(), Vec::new());
    for i in 0..2 * rows {
        let (head, row) = (i / rows, i % rows);
        let seen = if causal { row + 1 + keys - rows } else { keys };
        let scores: Vec<Sum> = (0..seen)
            .map(|key| {
                let mut sum = Sum::default();
                for j in 0..d {
                    sum.add(floats(&q)[i * d + j], floats(&k)[(head * keys + key) * d + j]);
                }
                sum
            })
            .collect();
        let bounds = scores.iter().map(|s| s.bound(rounding) * f64::from(scale));
        let off = bounds.fold(0.0, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s.value * f64::from(scale)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let share = (2.0 * off).exp() - 1.0 + 2.0 * rounding.share + 64.0 * SINGLE;
        for j in 0..vd {
            let terms = || {
                weights
                    .iter()
                    .enumerate()
                    .map(|(key, w)| w / total * f64::from(floats(&v)[(head * keys + key) * vd + j]))
            };
            expected.push(terms().sum());
            // Weights below f16's normal numbers lose up to so much each, relative to the largest, 1.
            let tiny = rounding.tiny * seen as f64 + keys as f64 * SINGLE;
            bound.push(1.01 * share * terms().map(f64::abs).sum::<f64>() + tiny);
        }
    }
    let layout = HeadLayout::Bhsd;
    let op = Attention {
        heads: 2,
        q_layout: layout,
        k_layout: layout,
        v_layout: layout,
        out_layout: layout,
        packed: false,
        scale,
        causal,
    };
    Sample {
        name: format!("attention {rows} x {keys}, heads of {d} and {vd}, causal {causal}"),
        op: Arc::new(op),
        inputs: vec![(q, false), (k, false), (v, false)],
        expected,
        exact: bound.clone(),
        bound,
        rounding,
    }
}

/// Every block, cut and uncut, whole slices and not, elements one by one and four by four.
pub fn samples(rounding: Rounding) -> Vec<Sample> {
    let linear = |m, k, n, trans_b| linear([m, k, n], trans_b, rounding);
    let conv = |size, groups, channels, stride| conv(size, groups, channels, stride, rounding);
    let attention = |rows, keys, d, vd, causal| attention([rows, keys], [d, vd], causal, rounding);
    vec![
        linear(9, 7, 5, false),
        linear(13, 64, 64, true),
        linear(33, 129, 66, true),
        linear(70, 100, 36, false),
        linear(130, 48, 300, true),
        linear(258, 96, 257, false),
        linear(190, 36, 130, true),
        linear(49, 700, 72, false),
        linear(130, 520, 257, true),
        linear(67, 600, 130, false),
        gelu([40, 100, 36], rounding),
        conv(7, 1, [3, 20], 2),
        conv(6, 1, [4, 9], 1),
        conv(5, 2, [12, 7], 1),
        conv(9, 1, [24, 130], 1),
        conv(8, 2, [16, 20], 2),
        conv(12, 1, [64, 128], 1),
        linear(300, 192, 160, true),
        attention(19, 37, 32, 32, false),
        attention(70, 70, 64, 64, true),
        attention(5, 131, 64, 40, false),
        attention(33, 33, 32, 8, true),
    ]
}

/// The greatest share of what an element may be off by that one is off, and which. `stored`: results are
/// rounded as well; that inputs are is what the bound has operands be.
pub fn worst(
    expected: &[f64],
    bound: &[f64],
    got: &[f32],
    stored: Option<Rounding>,
) -> (f64, usize) {
    let shares = got.iter().zip(expected.iter().zip(bound)).map(|(&got, (expected, bound))| {
        let again = stored.map_or(0.0, |r| r.share * (expected.abs() + bound) + r.tiny);
        (f64::from(got) - expected).abs() / (bound + again)
    });
    // What is no number is beyond every bound.
    let shares = shares.map(|share| if share.is_nan() { f64::INFINITY } else { share });
    let places = shares.enumerate().map(|(i, share)| (share, i));
    places.fold((0.0, 0), |worst, place| if place.0 > worst.0 { place } else { worst })
}

/// Panics where a result is off by more than it may.
pub fn check(sample: &Sample, got: &[f32], stored: bool, how: &str) {
    let Sample { name, expected, bound, rounding, .. } = sample;
    let stored = stored.then_some(*rounding);
    assert_eq!(expected.len(), got.len(), "{name}");
    let (share, i) = worst(expected, bound, got, stored);
    assert!(
        share <= 1.0,
        "{name} {how}: element {i} is {}, {} in double precision, off by {share} of what it may",
        got[i],
        expected[i]
    );
}
