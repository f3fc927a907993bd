//! Layer, RMS, group and instance normalisation.

use crate::pool::Pool;

/// y = (x - mean) / sqrt(variance + eps) * gamma + beta over each row of `len`.
#[allow(clippy::too_many_arguments)]
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
    group(rows, 1, len, len, gamma, beta, eps, x, y, pool);
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
    let _ = pool;
    assert!(x.len() == rows * len && y.len() == x.len(), "x and y have rows * len elements");
    for r in 0..rows {
        let x = &x[r * len..(r + 1) * len];
        let square = x.iter().map(|v| v * v).sum::<f32>() / len as f32;
        let scale = 1.0 / (square + eps).sqrt();
        for i in 0..len {
            y[r * len + i] = x[i] * scale * gamma.map_or(1.0, |g| g[i]);
        }
    }
}

/// Group normalisation of n x pixels x channels; groups = channels is instance normalisation.
#[allow(clippy::too_many_arguments)]
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
    assert!(groups > 0 && channels % groups == 0, "channels are a multiple of groups");
    group(n, pixels, channels, channels / groups, gamma, beta, eps, x, y, pool);
}

#[allow(clippy::too_many_arguments)]
fn group(
    n: usize,
    pixels: usize,
    channels: usize,
    size: usize,
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    eps: f32,
    x: &[f32],
    y: &mut [f32],
    _pool: &Pool,
) {
    assert!(
        x.len() == n * pixels * channels && y.len() == x.len(),
        "x and y have n * pixels * channels elements"
    );
    for b in 0..n {
        for g in 0..channels / size {
            let at = |p: usize, c: usize| (b * pixels + p) * channels + g * size + c;
            let count = (pixels * size) as f32;
            let (mut sum, mut square) = (0.0, 0.0);
            for p in 0..pixels {
                for c in 0..size {
                    sum += x[at(p, c)];
                }
            }
            let mean = sum / count;
            for p in 0..pixels {
                for c in 0..size {
                    square += (x[at(p, c)] - mean).powi(2);
                }
            }
            let scale = 1.0 / (square / count + eps).sqrt();
            for p in 0..pixels {
                for c in 0..size {
                    let i = g * size + c;
                    y[at(p, c)] = (x[at(p, c)] - mean) * scale * gamma.map_or(1.0, |v| v[i])
                        + beta.map_or(0.0, |v| v[i]);
                }
            }
        }
    }
}
