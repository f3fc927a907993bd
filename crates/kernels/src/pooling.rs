//! Pooling, channels last.

use std::ops::Range;

use crate::aligned::SharedMut;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::reduce::{ReduceOp, reduce};
use crate::simd::{self, Kernel, Simd};

/// The window of a pooling, height before width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2dParams {
    /// Window size.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Padding: top, left, bottom, right (the last two only count for averages).
    pub pads: [usize; 4],
}

/// The shape of an input in channels-last order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nhwc {
    /// Batch.
    pub n: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

/// Maximum over each window; padding never wins, NaN does. `out`: height and width.
pub fn max_pool2d(
    params: &Pool2dParams,
    shape: Nhwc,
    out: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    pool2d_with_isa(isa::best(), PoolKind::Max, params, shape, out, x, y, pool);
}

/// Mean over each window, of the input's elements only, or of the padding's too.
///
/// A window without any element gives NaN.
pub fn avg_pool2d(
    params: &Pool2dParams,
    shape: Nhwc,
    out: [usize; 2],
    count_include_pad: bool,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    let kind = PoolKind::Average { count_include_pad };
    pool2d_with_isa(isa::best(), kind, params, shape, out, x, y, pool);
}

/// Mean over all pixels: y is n x c.
pub fn global_avg_pool(shape: Nhwc, x: &[f32], y: &mut [f32], pool: &Pool) {
    reduce(ReduceOp::Mean, shape.n, shape.h * shape.w, shape.c, x, y, pool);
}

/// What a window becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Its maximum.
    Max,
    /// Its mean.
    Average {
        /// Whether padding (within `pads`) counts as zeros.
        count_include_pad: bool,
    },
}

/// Pooling for a given instruction set, which must be available.
pub fn pool2d_with_isa(
    isa: Isa,
    kind: PoolKind,
    params: &Pool2dParams,
    shape: Nhwc,
    out: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    let Nhwc { n, h, w, c } = shape;
    assert!(x.len() == n * h * w * c, "x has n * h * w * c elements");
    assert!(y.len() == n * out[0] * out[1] * c, "y has n * out h * out w * c elements");
    let p = *params;
    assert!(p.stride[0] > 0 && p.stride[1] > 0, "strides are positive");
    assert!(p.dilation[0] > 0 && p.dilation[1] > 0, "dilations are positive");
    if y.is_empty() {
        return;
    }
    let work = out[1] * c * p.kernel[0] * p.kernel[1];
    let y = SharedMut::new(y);
    pool.run_ranges(n * out[0], 16 * 1024 / work.max(1), &|rows| {
        simd::dispatch(isa, Rows { kind, p, shape, out, x, y, rows });
    });
}

/// The larger of two, NaN if either is.
#[inline(always)]
pub(crate) fn larger<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    // max gives b where either is NaN: right unless a is the NaN.
    s.select(s.is_nan(a), a, s.max(a, b))
}

struct Rows<'a> {
    kind: PoolKind,
    p: Pool2dParams,
    shape: Nhwc,
    out: [usize; 2],
    x: &'a [f32],
    y: SharedMut,
    rows: Range<usize>,
}

/// The taps of one dimension that lie in the image, and how many lie in it or its padding.
struct Taps {
    /// Position of the first tap, padding included.
    start: usize,
    inside: Range<usize>,
    padded: usize,
}

impl Taps {
    #[inline(always)]
    fn new(p: &Pool2dParams, d: usize, o: usize, size: usize) -> Taps {
        let (start, dilation) = (o * p.stride[d], p.dilation[d]);
        let below = |limit: usize| limit.saturating_sub(start).div_ceil(dilation).min(p.kernel[d]);
        let first = below(p.pads[d]);
        let last = below(p.pads[d] + size).max(first);
        Taps { start, inside: first..last, padded: below(p.pads[d] + size + p.pads[d + 2]) }
    }
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kind {
            PoolKind::Max => self.pool(s, true, false),
            PoolKind::Average { count_include_pad } => self.pool(s, false, count_include_pad),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    fn pool<S: Simd>(&self, s: S, max: bool, count_include_pad: bool) {
        let Nhwc { h, w, c, .. } = self.shape;
        let [oh, ow] = self.out;
        let identity = s.splat(if max { f32::NEG_INFINITY } else { 0.0 });
        for row in self.rows.clone() {
            let (image, oy) = (row / oh, row % oh);
            let vertical = Taps::new(&self.p, 0, oy, h);
            for ox in 0..ow {
                let horizontal = Taps::new(&self.p, 1, ox, w);
                let count = if count_include_pad {
                    vertical.padded * horizontal.padded
                } else {
                    vertical.inside.len() * horizontal.inside.len()
                };
                let scale = s.splat(1.0 / count as f32);
                let out = self.y.at((row * ow + ox) * c).ptr();
                let mut i = 0;
                while i < c {
                    let lanes = S::LANES.min(c - i);
                    let mut acc = identity;
                    for ky in vertical.inside.clone() {
                        let y = vertical.start + ky * self.p.dilation[0] - self.p.pads[0];
                        let line = &self.x[(image * h + y) * w * c..][..w * c];
                        for kx in horizontal.inside.clone() {
                            let x = horizontal.start + kx * self.p.dilation[1] - self.p.pads[1];
                            debug_assert!(x < w);
                            // SAFETY: pixel x < w of the line has c channels, i + lanes <= c.
                            let v = unsafe {
                                let p = line.as_ptr().add(x * c + i);
                                if lanes == S::LANES { s.load(p) } else { s.load_partial(p, lanes) }
                            };
                            acc = if max { larger(s, acc, v) } else { s.add(acc, v) };
                        }
                    }
                    if !max {
                        acc = s.mul(acc, scale);
                    }
                    // SAFETY: this output pixel is this task's alone and has c channels.
                    unsafe {
                        if lanes == S::LANES {
                            s.store(out.add(i), acc);
                        } else {
                            s.store_partial(out.add(i), lanes, acc);
                        }
                    }
                    i += lanes;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::random;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn windows_match_double_precision(
            kernel in [1usize..4, 1usize..4],
            stride in [1usize..4, 1usize..4],
            dilation in [1usize..3, 1usize..3],
            pads in [0usize..2, 0usize..2, 0usize..2, 0usize..2],
            size in [1usize..3, 1usize..9, 1usize..9, 1usize..40],
            more in 0usize..2,
        ) {
            let p = Pool2dParams { kernel, stride, dilation, pads };
            let [n, h, w, c] = size;
            let shape = Nhwc { n, h, w, c };
            let one = |d: usize, size: usize| {
                let span = dilation[d] * (kernel[d] - 1) + 1;
                let room = size + pads[d] + pads[d + 2];
                if room < span { 0 } else { (room - span) / stride[d] + 1 + more }
            };
            let out = [one(0, h), one(1, w)];
            let x = random(n * h * w * c, 1);
            let kinds = [
                PoolKind::Max,
                PoolKind::Average { count_include_pad: false },
                PoolKind::Average { count_include_pad: true },
            ];
            let pool = Pool::new(2);
            for (isa, kind) in Isa::available().flat_map(|isa| kinds.map(|kind| (isa, kind))) {
                let mut y = vec![0.0; n * out[0] * out[1] * c];
                pool2d_with_isa(isa, kind, &p, shape, out, &x, &mut y, &pool);
                for (at, &got) in y.iter().enumerate() {
                    let (ch, rest) = (at % c, at / c);
                    let (ox, rest) = (rest % out[1], rest / out[1]);
                    let (oy, b) = (rest % out[0], rest / out[0]);
                    let (mut values, mut padded) = (Vec::new(), 0);
                    for tap in 0..kernel[0] * kernel[1] {
                        let iy = oy * stride[0] + tap / kernel[1] * dilation[0];
                        let ix = ox * stride[1] + tap % kernel[1] * dilation[1];
                        if iy < h + pads[0] + pads[2] && ix < w + pads[1] + pads[3] {
                            padded += 1;
                        }
                        let (iy, ix) = (iy.wrapping_sub(pads[0]), ix.wrapping_sub(pads[1]));
                        if iy < h && ix < w {
                            values.push(f64::from(x[((b * h + iy) * w + ix) * c + ch]));
                        }
                    }
                    let sum: f64 = values.iter().sum();
                    let want = match kind {
                        PoolKind::Max => values.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v)),
                        PoolKind::Average { count_include_pad: true } => sum / f64::from(padded),
                        PoolKind::Average { .. } => sum / values.len() as f64,
                    };
                    let got = f64::from(got);
                    let ok = got == want
                        || (got - want).abs() < 1e-6
                        || (got.is_nan() && want.is_nan());
                    prop_assert!(ok, "{isa} {kind:?} {got} {want}");
                }
            }
        }
    }
}
