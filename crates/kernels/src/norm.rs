//! Layer, RMS, group and instance normalisation.

use std::ops::Range;

use crate::aligned::SharedMut;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// Elements below which a part is not worth handing to another thread.
const TASK_LEN: usize = 8 * 1024;

/// Scale and offset after a normalisation, one element per channel each.
#[derive(Clone, Copy)]
struct Affine<'a> {
    gamma: Option<&'a [f32]>,
    beta: Option<&'a [f32]>,
}

impl Affine<'_> {
    fn check(&self, len: usize) {
        assert!(self.gamma.is_none_or(|g| g.len() == len), "gamma has an element per channel");
        assert!(self.beta.is_none_or(|b| b.len() == len), "beta has an element per channel");
    }
}

/// y = (x - mean) / sqrt(variance + eps) * gamma + beta over each row of `len`.
pub fn layer_norm(
    rows: usize,
    len: usize,
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    eps: f32,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    row_norm(isa::best(), true, rows, len, Affine { gamma, beta }, eps, x, y, pool);
}

/// y = x / sqrt(mean square + eps) * gamma over each row of `len`.
pub fn rms_norm(
    rows: usize,
    len: usize,
    gamma: Option<&[f32]>,
    eps: f32,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    row_norm(isa::best(), false, rows, len, Affine { gamma, beta: None }, eps, x, y, pool);
}

fn row_norm(
    isa: Isa,
    centre: bool,
    rows: usize,
    len: usize,
    affine: Affine<'_>,
    eps: f32,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    assert!(x.len() == rows * len && y.len() == x.len(), "x and y have rows * len elements");
    affine.check(len);
    if x.is_empty() {
        return;
    }
    let y = SharedMut::new(y);
    pool.run_ranges(rows, TASK_LEN / len, &|rows| {
        simd::dispatch(isa, RowNorm { rows, len, centre, affine, eps, x, y });
    });
}

struct RowNorm<'a> {
    rows: Range<usize>,
    len: usize,
    centre: bool,
    affine: Affine<'a>,
    eps: f32,
    x: &'a [f32],
    y: SharedMut,
}

impl Kernel for RowNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let count = self.len as f32;
        for r in self.rows.clone() {
            let x = &self.x[r * self.len..][..self.len];
            // SAFETY: row r is this task's alone.
            let y = unsafe { self.y.slice(r * self.len, self.len) };
            let mean = if self.centre { sum(s, x, 0.0, false) / count } else { 0.0 };
            let variance = sum(s, x, mean, true) / count;
            let scale = 1.0 / (variance + self.eps).sqrt();
            apply(x, y, mean, scale, self.affine);
        }
    }
}

/// The sum of x - mean, or of its square.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], mean: f32, square: bool) -> f32 {
    let shift = s.splat(mean);
    let mut acc = [s.splat(0.0); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= x.len() {
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: i + 4 vectors <= len.
            let v = s.sub(unsafe { s.load(x.as_ptr().add(i + j * S::LANES)) }, shift);
            *acc = if square { s.mul_add(v, v, *acc) } else { s.add(*acc, v) };
        }
        i += 4 * S::LANES;
    }
    let mut sum = s.reduce_add(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])));
    for &x in &x[i..] {
        let v = x - mean;
        sum += if square { v * v } else { v };
    }
    sum
}

/// y = (x - mean) * scale * gamma + beta; plain code, vectorised for the kernel's instruction set.
#[inline(always)]
fn apply(x: &[f32], y: &mut [f32], mean: f32, scale: f32, affine: Affine<'_>) {
    let len = y.len();
    let x = &x[..len];
    match (affine.gamma, affine.beta) {
        (Some(gamma), Some(beta)) => {
            let (gamma, beta) = (&gamma[..len], &beta[..len]);
            for i in 0..len {
                y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
            }
        }
        (gamma, beta) => {
            for i in 0..len {
                y[i] = (x[i] - mean) * scale;
            }
            if let Some(gamma) = gamma {
                for (y, gamma) in y.iter_mut().zip(gamma) {
                    *y *= gamma;
                }
            }
            if let Some(beta) = beta {
                for (y, beta) in y.iter_mut().zip(beta) {
                    *y += beta;
                }
            }
        }
    }
}

/// Group normalisation of n x pixels x channels; groups = channels is instance normalisation.
pub fn group_norm(
    n: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    eps: f32,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    group_norm_with_isa(isa::best(), n, pixels, channels, groups, gamma, beta, eps, x, y, pool);
}

/// [`group_norm`] for a given instruction set, which must be available.
pub fn group_norm_with_isa(
    isa: Isa,
    n: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    eps: f32,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    assert!(groups > 0 && channels.is_multiple_of(groups), "channels are a multiple of groups");
    assert!(
        x.len() == n * pixels * channels && y.len() == x.len(),
        "x and y have n * pixels * channels elements"
    );
    let affine = Affine { gamma, beta };
    affine.check(channels);
    if x.is_empty() {
        return;
    }
    let y = SharedMut::new(y);
    let size = channels / groups;
    // Single channels go side by side in vectors.
    let (width, blocks) =
        if size == 1 { (simd::tile_of(isa).0, channels) } else { (size, groups * size) };
    let blocks = blocks.div_ceil(width);
    pool.run(n * blocks, &|task| {
        let (image, first) = (task / blocks, task % blocks * width);
        let x = &x[image * pixels * channels + first..];
        let y = y.at(image * pixels * channels + first);
        let width = width.min(channels - first);
        simd::dispatch(
            isa,
            GroupNorm { pixels, channels, first, width, separate: size == 1, affine, eps, x, y },
        );
    });
}

struct GroupNorm<'a> {
    pixels: usize,
    channels: usize,
    first: usize,
    width: usize,
    /// Statistics per channel instead of over all `width`, which is at most a vector then.
    separate: bool,
    affine: Affine<'a>,
    eps: f32,
    x: &'a [f32],
    y: SharedMut,
}

impl Kernel for GroupNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row = |p: usize| &self.x[p * self.channels..][..self.width];
        // SAFETY: these channels of this image are this task's alone.
        let out = |p: usize| unsafe { self.y.slice(p * self.channels, self.width) };
        let part = |v: Option<&[f32]>, c: usize| v.map(|v| v[self.first + c]);
        if self.separate {
            let lanes = self.width;
            let count = s.splat(self.pixels as f32);
            let mut total = s.splat(0.0);
            // SAFETY: every row has `width` <= LANES elements.
            unsafe {
                for p in 0..self.pixels {
                    total = s.add(total, s.load_partial(row(p).as_ptr(), lanes));
                }
                let mean = s.div(total, count);
                let mut squares = s.splat(0.0);
                for p in 0..self.pixels {
                    let v = s.sub(s.load_partial(row(p).as_ptr(), lanes), mean);
                    squares = s.mul_add(v, v, squares);
                }
                let deviation = s.sqrt(s.add(s.div(squares, count), s.splat(self.eps)));
                let (mut gamma, mut beta) = ([1.0; simd::MAX_LANES], [0.0; simd::MAX_LANES]);
                for c in 0..lanes {
                    gamma[c] = part(self.affine.gamma, c).unwrap_or(1.0);
                    beta[c] = part(self.affine.beta, c).unwrap_or(0.0);
                }
                let scale = s.div(s.load(gamma.as_ptr()), deviation);
                let beta = s.load(beta.as_ptr());
                for p in 0..self.pixels {
                    let v = s.sub(s.load_partial(row(p).as_ptr(), lanes), mean);
                    s.store_partial(out(p).as_mut_ptr(), lanes, s.mul_add(v, scale, beta));
                }
            }
            return;
        }
        let count = (self.pixels * self.width) as f32;
        let mut total = 0.0;
        for p in 0..self.pixels {
            total += sum(s, row(p), 0.0, false);
        }
        let mean = total / count;
        let mut squares = 0.0;
        for p in 0..self.pixels {
            squares += sum(s, row(p), mean, true);
        }
        let scale = 1.0 / (squares / count + self.eps).sqrt();
        let range = self.first..self.first + self.width;
        let affine = Affine {
            gamma: self.affine.gamma.map(|g| &g[range.clone()]),
            beta: self.affine.beta.map(|b| &b[range.clone()]),
        };
        for p in 0..self.pixels {
            apply(row(p), out(p), mean, scale, affine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn check(y: &[f32], want: &[f64], isa: Isa) {
        for (y, want) in y.iter().zip(want) {
            // Normalised values are of order 1 to 10; the sums' errors scale with eps sqrt(n).
            assert!((f64::from(*y) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{isa} {y} {want}");
        }
    }

    fn normalise(values: &[f64], eps: f64, centre: bool) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = if centre { values.iter().sum::<f64>() / count } else { 0.0 };
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        (mean, 1.0 / (variance + eps).sqrt())
    }

    #[test]
    fn rows_match_double_precision() {
        let pool = Pool::new(2);
        for (rows, len) in [(1, 1), (3, 33), (40, 768), (5, 100)] {
            let (x, gamma, beta) = (random(rows * len, 1), random(len, 2), random(len, 3));
            for (isa, centre) in Isa::available().flat_map(|isa| [(isa, true), (isa, false)]) {
                let mut y = vec![f32::NAN; rows * len];
                let affine = Affine { gamma: Some(&gamma), beta: centre.then_some(&beta) };
                row_norm(isa, centre, rows, len, affine, 1e-3, &x, &mut y, &pool);
                let mut want = Vec::new();
                for row in x.chunks_exact(len) {
                    let row: Vec<f64> = row.iter().map(|&v| v.into()).collect();
                    let (mean, scale) = normalise(&row, 1e-3, centre);
                    want.extend(row.iter().enumerate().map(|(i, v)| {
                        let beta = if centre { f64::from(beta[i]) } else { 0.0 };
                        (v - mean) * scale * f64::from(gamma[i]) + beta
                    }));
                }
                check(&y, &want, isa);
            }
        }
    }

    #[test]
    fn groups_match_double_precision() {
        let pool = Pool::new(2);
        for (n, pixels, channels, groups) in [(2, 9, 12, 3), (1, 25, 37, 37), (2, 5, 64, 2)] {
            let x = random(n * pixels * channels, 1);
            let (gamma, beta) = (random(channels, 2), random(channels, 3));
            let size = channels / groups;
            let mut want = vec![0.0; x.len()];
            for (b, g) in (0..n).flat_map(|b| (0..groups).map(move |g| (b, g))) {
                let places: Vec<usize> = (0..pixels)
                    .flat_map(|p| {
                        (0..size).map(move |c| (b * pixels + p) * channels + g * size + c)
                    })
                    .collect();
                let values: Vec<f64> = places.iter().map(|&i| x[i].into()).collect();
                let (mean, scale) = normalise(&values, 1e-3, true);
                for &i in &places {
                    let c = i % channels;
                    let v = (f64::from(x[i]) - mean) * scale;
                    want[i] = v * f64::from(gamma[c]) + f64::from(beta[c]);
                }
            }
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; x.len()];
                let (gamma, beta) = (Some(&gamma[..]), Some(&beta[..]));
                group_norm_with_isa(
                    isa, n, pixels, channels, groups, gamma, beta, 1e-3, &x, &mut y, &pool,
                );
                check(&y, &want, isa);
            }
        }
    }
}
