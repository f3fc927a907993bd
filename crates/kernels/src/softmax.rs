//! Softmax and its logarithm.

use std::ops::Range;

use crate::aligned::SharedMut;
use crate::isa::{self, Isa};
use crate::permute;
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};
use crate::vmath;

/// Elements below which a part is not worth handing to another thread.
const TASK_LEN: usize = 8 * 1024;

/// y[o][l][i] = exp(x[o][l][i]) / sum over l; `inner` is 1 for contiguous rows.
///
/// Results below 2^-126 of the row's sum may be 0. A row of -inf gives NaN, as in ONNX.
pub fn softmax(outer: usize, len: usize, inner: usize, x: &[f32], y: &mut [f32], pool: &Pool) {
    softmax_with_isa(isa::best(), false, outer, len, inner, x, y, pool);
}

/// The logarithm of [`softmax`].
pub fn log_softmax(outer: usize, len: usize, inner: usize, x: &[f32], y: &mut [f32], pool: &Pool) {
    softmax_with_isa(isa::best(), true, outer, len, inner, x, y, pool);
}

/// [`softmax`], or its logarithm, for a given instruction set, which must be available.
pub fn softmax_with_isa(
    isa: Isa,
    log: bool,
    outer: usize,
    len: usize,
    inner: usize,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    assert!(x.len() == outer * len * inner, "x has outer * len * inner elements");
    assert!(y.len() == x.len(), "input and output have one length");
    if x.is_empty() {
        return;
    }
    let y = SharedMut::new(y);
    pool.run_ranges(outer, TASK_LEN / (len * inner), &|outer| {
        simd::dispatch(isa, Rows { outer, len, inner, x, y, log });
    });
}

struct Rows<'a> {
    outer: Range<usize>,
    len: usize,
    inner: usize,
    x: &'a [f32],
    y: SharedMut,
    log: bool,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let size = self.len * self.inner;
        if self.inner == 1 && self.len <= S::LANES {
            // SAFETY: these rows are this task's alone.
            let y = unsafe { self.y.slice(self.outer.start * size, self.outer.len() * size) };
            return short_rows(
                s,
                self.len,
                &self.x[self.outer.start * size..][..y.len()],
                y,
                self.log,
            );
        }
        for o in self.outer.clone() {
            let x = &self.x[o * size..][..size];
            // SAFETY: outer index o is this task's alone.
            let y = unsafe { self.y.slice(o * size, size) };
            if self.inner == 1 {
                row(s, x, y, self.log);
            } else {
                columns(s, self.len, self.inner, x, y, self.log);
            }
        }
    }
}

/// max over x, ignoring NaN.
#[inline(always)]
pub(crate) fn maximum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut acc = [s.splat(f32::NEG_INFINITY); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= x.len() {
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: i + 4 vectors <= len.
            *acc = s.max(unsafe { s.load(x.as_ptr().add(i + j * S::LANES)) }, *acc);
        }
        i += 4 * S::LANES;
    }
    while i + S::LANES <= x.len() {
        // SAFETY: i + a vector <= len.
        acc[0] = s.max(unsafe { s.load(x.as_ptr().add(i)) }, acc[0]);
        i += S::LANES;
    }
    if i < x.len() && x.len() >= S::LANES {
        // The last vector, of which some may have been seen before.
        i = x.len();
        // SAFETY: x has at least a vector.
        acc[1] = s.max(unsafe { s.load(x.as_ptr().add(i - S::LANES)) }, acc[1]);
    }
    let acc = s.max(s.max(acc[0], acc[1]), s.max(acc[2], acc[3]));
    let mut max = s.reduce_max(acc);
    for &x in &x[i..] {
        max = if x > max { x } else { max };
    }
    max
}

#[inline(always)]
fn row<S: Simd>(s: S, x: &[f32], y: &mut [f32], log: bool) {
    let max = maximum(s, x);
    if log {
        let sum = exp_sum(s, x, y, max);
        let shift = max + sum.ln();
        // x - max first would round differently for large max; the error is in the last place.
        let (max, log_sum) = (s.splat(max), s.splat(shift - max));
        map(s, x, y, |v| s.sub(s.sub(v, max), log_sum));
    } else {
        let sum = exp_sum(s, x, y, max);
        let scale = 1.0 / sum;
        scale_in_place(s, y, scale);
    }
}

/// y = exp(x - max); returns the sum. max is at least every x.
#[inline(always)]
pub(crate) fn exp_sum<S: Simd>(s: S, x: &[f32], y: &mut [f32], max: f32) -> f32 {
    assert!(x.len() == y.len());
    // SAFETY: x and y have len elements.
    unsafe { exp_sum_raw(s, x.as_ptr(), y.as_mut_ptr(), x.len(), max) }
}

/// [`exp_sum`] by pointers, which may be equal.
///
/// # Safety
/// `len` elements at x are readable and at y writable.
#[inline(always)]
pub(crate) unsafe fn exp_sum_raw<S: Simd>(
    s: S,
    x: *const f32,
    y: *mut f32,
    len: usize,
    max: f32,
) -> f32 {
    let shift = s.splat(max);
    let mut acc = [s.splat(0.0); 2];
    let mut i = 0;
    // SAFETY: all accesses are below len.
    unsafe {
        while i + 2 * S::LANES <= len {
            for (j, acc) in acc.iter_mut().enumerate() {
                let at = i + j * S::LANES;
                let e = vmath::exp_nonpositive(s, s.sub(s.load(x.add(at)), shift));
                s.store(y.add(at), e);
                *acc = s.add(*acc, e);
            }
            i += 2 * S::LANES;
        }
        while i < len {
            let lanes = S::LANES.min(len - i);
            let e = vmath::exp_nonpositive(s, s.sub(s.load_partial(x.add(i), lanes), shift));
            s.store_partial(y.add(i), lanes, e);
            // Lanes that are not there count as zeros.
            acc[0] = s.add(acc[0], s.load_partial(y.add(i), lanes));
            i += lanes;
        }
        s.reduce_add(s.add(acc[0], acc[1]))
    }
}

#[inline(always)]
pub(crate) fn scale_in_place<S: Simd>(_: S, y: &mut [f32], scale: f32) {
    // Plain code: it is compiled for the instruction set of the kernel around it.
    for y in y {
        *y *= scale;
    }
}

#[inline(always)]
fn map<S: Simd>(s: S, x: &[f32], y: &mut [f32], f: impl Fn(S::V) -> S::V) {
    let len = x.len().min(y.len());
    let mut i = 0;
    while i < len {
        let lanes = S::LANES.min(len - i);
        // SAFETY: i + lanes <= len of both.
        unsafe {
            if lanes == S::LANES {
                s.store(y.as_mut_ptr().add(i), f(s.load(x.as_ptr().add(i))));
            } else {
                let v = f(s.load_partial(x.as_ptr().add(i), lanes));
                s.store_partial(y.as_mut_ptr().add(i), lanes, v);
            }
        }
        i += lanes;
    }
}

/// Rows of at most as many elements as a vector has, a block of them at a time as the columns of its
/// transpose.
#[inline(always)]
fn short_rows<S: Simd>(s: S, len: usize, x: &[f32], y: &mut [f32], log: bool) {
    const ROWS: usize = 64;
    let (mut turned, mut result) = ([0.0; ROWS * MAX_LANES], [0.0; ROWS * MAX_LANES]);
    for (x, y) in x.chunks(ROWS * len).zip(y.chunks_mut(ROWS * len)) {
        let rows = x.len() / len;
        let (turned, result) = (&mut turned[..x.len()], &mut result[..x.len()]);
        permute::transpose(s, x, rows, len, turned);
        columns(s, len, rows, turned, result, log);
        permute::transpose(s, result, len, rows, y);
    }
}

/// One softmax per column of a len x inner matrix, a vector of columns at a time.
#[inline(always)]
fn columns<S: Simd>(s: S, len: usize, inner: usize, x: &[f32], y: &mut [f32], log: bool) {
    assert!(x.len() == len * inner && y.len() == len * inner);
    let mut i = 0;
    while i < inner {
        let lanes = S::LANES.min(inner - i);
        // SAFETY: row l < len has `inner` elements, `lanes` from i on.
        unsafe {
            let load = |p: *const f32| {
                if lanes == S::LANES { s.load(p) } else { s.load_partial(p, lanes) }
            };
            let mut max = s.splat(f32::NEG_INFINITY);
            for l in 0..len {
                max = s.max(load(x.as_ptr().add(l * inner + i)), max);
            }
            let mut sum = s.splat(0.0);
            for l in 0..len {
                let at = l * inner + i;
                let v = s.sub(load(x.as_ptr().add(at)), max);
                let e = vmath::exp_nonpositive(s, v);
                sum = s.add(sum, e);
                s.store_partial(y.as_mut_ptr().add(at), lanes, if log { v } else { e });
            }
            let last = if log { vmath::log(s, sum) } else { s.div(s.splat(1.0), sum) };
            for l in 0..len {
                let p = y.as_mut_ptr().add(l * inner + i);
                let v = load(p);
                s.store_partial(p, lanes, if log { s.sub(v, last) } else { s.mul(v, last) });
            }
        }
        i += lanes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn matches_double_precision() {
        let pool = Pool::new(2);
        let short = [(150, 2, 1), (70, 3, 1), (65, 5, 1), (64, 8, 1), (200, 10, 1), (130, 16, 1)];
        let others = [(1, 1, 1), (3, 7, 1), (50, 197, 1), (5, 1000, 1), (3, 21, 37)];
        for (outer, len, inner) in short.into_iter().chain(others) {
            let x: Vec<f32> = random(outer * len * inner, 5).iter().map(|v| v * 20.0).collect();
            for isa in Isa::available() {
                for log in [false, true] {
                    let mut y = vec![f32::NAN; x.len()];
                    softmax_with_isa(isa, log, outer, len, inner, &x, &mut y, &pool);
                    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
                        let at = |l: usize| (o * len + l) * inner + i;
                        let sum: f64 = (0..len).map(|l| f64::from(x[at(l)]).exp()).sum();
                        for l in 0..len {
                            let log_want = f64::from(x[at(l)]) - sum.ln();
                            let got = f64::from(y[at(l)]);
                            let (want, scale) =
                                if log { (log_want, 40.0) } else { (log_want.exp(), 1.0) };
                            // Each exp errs by its argument's rounding, at most 40 eps.
                            let bound = 80.0
                                * f64::from(f32::EPSILON)
                                * if log { scale } else { want.max(1e-30) };
                            assert!((got - want).abs() <= bound, "{isa} {log} {got} {want}");
                        }
                    }
                }
            }
        }
    }
}
