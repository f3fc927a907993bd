//! Pooling, channels last.

use crate::pool::Pool;

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

/// Maximum over each window; padding never wins. `out`: height and width.
pub fn max_pool2d(
    p: &Pool2dParams,
    shape: Nhwc,
    out: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    let _ = pool;
    windows(p, shape, out, x, y, |values, _| {
        values.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m || v.is_nan() { v } else { m })
    });
}

/// Mean over each window, of the input's elements only, or of the padding's too.
pub fn avg_pool2d(
    p: &Pool2dParams,
    shape: Nhwc,
    out: [usize; 2],
    count_include_pad: bool,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    let _ = pool;
    windows(p, shape, out, x, y, |values, padded| {
        let count = if count_include_pad { padded } else { values.len() };
        values.iter().sum::<f32>() / count as f32
    });
}

fn windows(
    p: &Pool2dParams,
    s: Nhwc,
    [oh, ow]: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    f: impl Fn(&[f32], usize) -> f32,
) {
    assert!(x.len() == s.n * s.h * s.w * s.c, "x has n * h * w * c elements");
    assert!(y.len() == s.n * oh * ow * s.c, "y has n * out h * out w * c elements");
    let mut values = Vec::new();
    for (at, y) in y.iter_mut().enumerate() {
        let (c, rest) = (at % s.c, at / s.c);
        let (ox, rest) = (rest % ow, rest / ow);
        let (oy, b) = (rest % oh, rest / oh);
        values.clear();
        let mut padded = 0;
        for ky in 0..p.kernel[0] {
            for kx in 0..p.kernel[1] {
                let iy = oy * p.stride[0] + ky * p.dilation[0];
                let ix = ox * p.stride[1] + kx * p.dilation[1];
                if iy < s.h + p.pads[0] + p.pads[2] && ix < s.w + p.pads[1] + p.pads[3] {
                    padded += 1;
                }
                if iy >= p.pads[0]
                    && ix >= p.pads[1]
                    && iy - p.pads[0] < s.h
                    && ix - p.pads[1] < s.w
                {
                    values.push(x[((b * s.h + iy - p.pads[0]) * s.w + ix - p.pads[1]) * s.c + c]);
                }
            }
        }
        *y = f(&values, padded);
    }
}

/// Mean over all pixels: y is n x c.
pub fn global_avg_pool(shape: Nhwc, x: &[f32], y: &mut [f32], pool: &Pool) {
    crate::reduce::reduce(
        crate::reduce::ReduceOp::Mean,
        shape.n,
        shape.h * shape.w,
        shape.c,
        x,
        y,
        pool,
    );
}
