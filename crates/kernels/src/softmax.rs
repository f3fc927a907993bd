//! Softmax and its logarithm.

use crate::pool::Pool;

/// y[o][l][i] = exp(x[o][l][i]) / sum over l; `inner` is 1 for contiguous rows.
pub fn softmax(outer: usize, len: usize, inner: usize, x: &[f32], y: &mut [f32], pool: &Pool) {
    each(outer, len, inner, x, y, pool, false);
}

/// The logarithm of [`softmax`].
pub fn log_softmax(outer: usize, len: usize, inner: usize, x: &[f32], y: &mut [f32], pool: &Pool) {
    each(outer, len, inner, x, y, pool, true);
}

fn each(outer: usize, len: usize, inner: usize, x: &[f32], y: &mut [f32], _pool: &Pool, log: bool) {
    assert!(x.len() == outer * len * inner, "x has outer * len * inner elements");
    assert!(y.len() == x.len(), "input and output have one length");
    for o in 0..outer {
        for i in 0..inner {
            let at = |l: usize| (o * len + l) * inner + i;
            let max = (0..len).fold(f32::NEG_INFINITY, |m, l| m.max(x[at(l)]));
            let sum: f32 = (0..len).map(|l| (x[at(l)] - max).exp()).sum();
            for l in 0..len {
                let v = x[at(l)] - max;
                y[at(l)] = if log { v - sum.ln() } else { v.exp() / sum };
            }
        }
    }
}
