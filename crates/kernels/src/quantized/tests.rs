//! Quantised kernels against plain integer loops, on every instruction set of the machine.

use proptest::prelude::*;

use super::add::add_with_isa;
use super::pool::global_average_pool_with_isa;
use super::{Activations, AddOperand, QuantizedConv2d, QuantizedGemm, Requantize};
use crate::conv::Conv2dParams;
use crate::int8::Bytes;
use crate::isa::Isa;
use crate::pool::Pool;

/// Bytes without a pattern that sums could cancel over.
fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn value(byte: u8, signed: bool) -> i64 {
    if signed { i64::from(byte as i8) } else { i64::from(byte) }
}

/// A tensor of bytes with its type and zero point.
#[derive(Clone, Copy, Debug)]
struct Kind {
    signed: bool,
    zero: i32,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (-128i32..128).prop_map(|zero| Kind { signed: true, zero }),
        (0i32..256).prop_map(|zero| Kind { signed: false, zero }),
        Just(Kind { signed: true, zero: -128 }),
        Just(Kind { signed: true, zero: 0 }),
    ]
}

fn requantize(channels: usize, per_channel: bool, y: Kind, clamp: bool, k: usize) -> Requantize {
    let base = 1.0 / (64.0 * (k as f32).sqrt() + 1.0);
    let count = if per_channel { channels } else { 1 };
    let multipliers = (0..count).map(|i| base * (0.3 + (i % 7) as f32 * 0.13)).collect();
    let mut bounds = if y.signed { [-128, 127] } else { [0, 255] };
    if clamp {
        bounds = [y.zero.min(bounds[1] - 9), (y.zero + 100).clamp(bounds[0] + 9, bounds[1])];
    }
    Requantize { multipliers, zero: y.zero, bounds }
}

/// The definition: one exact sum, one rounding.
fn reference(sum: i64, requantize: &Requantize, channel: usize) -> u8 {
    let at = if requantize.multipliers.len() == 1 { 0 } else { channel };
    let scaled = (sum as i32 as f32 * requantize.multipliers[at]).round_ties_even();
    let value = scaled as i64 + i64::from(requantize.zero);
    let [low, high] = requantize.bounds.map(i64::from);
    value.clamp(low, high) as u8
}

fn params() -> impl Strategy<Value = Conv2dParams> {
    let groups_and_channels = prop_oneof![
        (1usize..40, 1usize..70).prop_map(|(ci, co)| (1, ci, co)),
        (2usize..150).prop_map(|g| (g, g, g)),
        // Neighbouring pixels fill whole vectors.
        (1usize..7).prop_map(|g| (16 * g, 16 * g, 16 * g)),
        (2usize..20, 2usize..3).prop_map(|(g, m)| (g, g, g * m)),
        (2usize..4, 1usize..20, 1usize..20).prop_map(|(g, ci, co)| (g, g * ci, g * co)),
    ];
    let two = |range: std::ops::Range<usize>| [range.clone(), range];
    (groups_and_channels, two(1..4), two(1..4), two(1..3), [0usize..3, 0..3, 0..3, 0..3]).prop_map(
        |((groups, c_in, c_out), kernel, stride, dilation, pads)| Conv2dParams {
            c_in,
            c_out,
            groups,
            kernel,
            stride,
            dilation,
            pads,
        },
    )
}

/// Exact sums of a convolution without its bias.
fn conv_sums(
    p: &Conv2dParams,
    [n, h, w]: [usize; 3],
    x: impl Fn(usize) -> i64,
    weight: impl Fn(usize, usize) -> i64,
) -> Vec<i64> {
    let [oh, ow] = p.output_size(h, w);
    let (ci, co, taps) = (p.c_in / p.groups, p.c_out / p.groups, p.taps());
    let mut sums = Vec::new();
    for (b, oy, ox) in itertools3(n, oh, ow) {
        for o in 0..p.c_out {
            let mut sum = 0;
            for (tap, c) in (0..taps).flat_map(|t| (0..ci).map(move |c| (t, c))) {
                let iy =
                    (oy * p.stride[0] + tap / p.kernel[1] * p.dilation[0]).wrapping_sub(p.pads[0]);
                let ix =
                    (ox * p.stride[1] + tap % p.kernel[1] * p.dilation[1]).wrapping_sub(p.pads[1]);
                if iy < h && ix < w {
                    let at = ((b * h + iy) * w + ix) * p.c_in + o / co * ci + c;
                    sum += x(at) * weight(o, c * taps + tap);
                }
            }
            sums.push(sum);
        }
    }
    sums
}

fn itertools3(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

fn activations(kind: Kind) -> Activations {
    Activations { signed: kind.signed, zero: kind.zero }
}

fn as_bytes(data: &[u8], signed: bool) -> Bytes<'_> {
    if signed { Bytes::I8(bytemuck::cast_slice(data)) } else { Bytes::U8(data) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolutions_are_exact(
        p in params(),
        size in [1usize..3, 1usize..12, 1usize..20],
        (x_kind, w_kind, y_kind) in (kind(), kind(), kind()),
        zero_per_channel in any::<bool>(),
        bias in any::<bool>(),
        per_channel in any::<bool>(),
        clamp in any::<bool>(),
        threads in 1usize..4,
    ) {
        let [n, h, w] = size;
        let (ci, taps) = (p.c_in / p.groups, p.kernel[0] * p.kernel[1]);
        let x = bytes(n * h * w * p.c_in, 1);
        let weight = bytes(p.c_out * ci * taps, 2);
        let zeros: Vec<i32> = if zero_per_channel {
            let range = if w_kind.signed { (-128, 127) } else { (0, 255) };
            (0..p.c_out as i32).map(|o| (w_kind.zero + o % 3).clamp(range.0, range.1)).collect()
        } else {
            vec![w_kind.zero]
        };
        let bias = bias.then(|| (0..p.c_out as i32).map(|o| o * 97 - 800).collect::<Vec<_>>());
        let requantize = requantize(p.c_out, per_channel, y_kind, clamp, ci * taps);
        let mut sums = conv_sums(
            &p,
            size,
            |at| value(x[at], x_kind.signed) - i64::from(x_kind.zero),
            |o, i| {
                let zero = zeros[if zeros.len() == 1 { 0 } else { o }];
                value(weight[o * ci * taps + i], w_kind.signed) - i64::from(zero)
            },
        );
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += bias.as_ref().map_or(0, |b| i64::from(b[i % p.c_out]));
        }
        let want: Vec<u8> =
            sums.iter().enumerate().map(|(i, &s)| reference(s, &requantize, i % p.c_out)).collect();
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            let conv = QuantizedConv2d::new_with_isa(
                isa,
                p,
                activations(x_kind),
                as_bytes(&weight, w_kind.signed),
                &zeros,
                bias.as_deref(),
                &requantize,
            );
            let mut y = vec![0xaa; want.len()];
            let mut scratch = vec![0x55; conv.scratch_len(n, h, w, threads)];
            conv.run(size, &x, &mut y, &mut scratch, &pool);
            prop_assert_eq!(&y, &want, "{} {}", isa, conv.algorithm());
        }
    }

    #[test]
    fn products_are_exact(
        m in 1usize..40,
        n in 1usize..100,
        k in prop_oneof![1usize..20, 500usize..700],
        (a_kind, b_kind, y_kind) in (kind(), kind(), kind()),
        transposed in any::<bool>(),
        per_channel in any::<bool>(),
        threads in 1usize..4,
    ) {
        let (a, b) = (bytes(m * k, 1), bytes(k * n, 2));
        let bias: Vec<i32> = (0..n as i32).map(|j| j * 31 - 500).collect();
        let requantize = requantize(n, per_channel, y_kind, false, k);
        let mut want = Vec::new();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let mut sum = i64::from(bias[j]);
            for p in 0..k {
                let b = b[if transposed { j * k + p } else { p * n + j }];
                sum += (value(a[i * k + p], a_kind.signed) - i64::from(a_kind.zero))
                    * (value(b, b_kind.signed) - i64::from(b_kind.zero));
            }
            prop_assert_eq!(i64::from(requantize.apply(sum as i32, j) as u8),
                i64::from(reference(sum, &requantize, j)));
            want.push(reference(sum, &requantize, j));
        }
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            let gemm = QuantizedGemm::new_with_isa(
                isa,
                [k, n],
                activations(a_kind),
                as_bytes(&b, b_kind.signed),
                transposed,
                &[b_kind.zero],
                Some(&bias),
                &requantize,
            );
            let mut c = vec![0xaa; m * n];
            let mut scratch = vec![0x55; gemm.scratch_len(threads)];
            gemm.run(m, &a, &mut c, &mut scratch, &pool);
            prop_assert_eq!(&c, &want, "{}", isa);
        }
    }

    #[test]
    fn sums_and_means_are_exact(
        n in 1usize..3,
        pixels in 1usize..60,
        c in 1usize..150,
        (a_kind, b_kind, y_kind) in (kind(), kind(), kind()),
        clamp in any::<bool>(),
    ) {
        let (a, b) = (bytes(n * pixels * c, 1), bytes(n * pixels * c, 2));
        let (a_scale, b_scale, y_scale) = (0.037f32, 0.0211f32, 0.05f32);
        let mut grid = requantize(1, false, y_kind, clamp, 1);
        let operand = |kind: Kind, scale| AddOperand { signed: kind.signed, zero: kind.zero, scale };
        let steps = |byte, kind: Kind| (value(byte, kind.signed) - i64::from(kind.zero)) as f32;
        let [low, high] = grid.bounds.map(i64::from);
        let want: Vec<u8> = a.iter().zip(&b).map(|(&a, &b)| {
            let sum = steps(a, a_kind) * a_scale + steps(b, b_kind) * b_scale;
            let scaled = (sum / y_scale).round_ties_even() as i64;
            (scaled + i64::from(grid.zero)).clamp(low, high) as u8
        }).collect();
        let pool = Pool::new(2);
        for isa in Isa::available() {
            let mut y = vec![0xaa; a.len()];
            let sides = ((&a[..], operand(a_kind, a_scale)), (&b[..], operand(b_kind, b_scale)));
            add_with_isa(isa, sides.0, sides.1, &mut y, y_scale, &grid, &pool);
            prop_assert_eq!(&y, &want, "{}", isa);
        }
        grid.multipliers = vec![a_scale / (pixels as f32 * y_scale)];
        let mut want = Vec::new();
        for (image, channel) in (0..n).flat_map(|i| (0..c).map(move |c| (i, c))) {
            let at = |p: usize| value(a[(image * pixels + p) * c + channel], a_kind.signed);
            let sum = (0..pixels).map(|p| at(p) - i64::from(a_kind.zero)).sum();
            want.push(reference(sum, &grid, 0));
        }
        for isa in Isa::available() {
            let mut y = vec![0xaa; want.len()];
            let sizes = [n, pixels, c];
            global_average_pool_with_isa(isa, sizes, &a, activations(a_kind), &grid, &mut y, &pool);
            prop_assert_eq!(&y, &want, "{}", isa);
        }
    }
}
