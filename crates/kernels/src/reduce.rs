//! Reductions over the middle one of three dimensions.

use std::ops::Range;

use crate::aligned::SharedMut;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// Elements below which a part is not worth handing to another thread.
const TASK_LEN: usize = 16 * 1024;

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Mean; NaN over nothing.
    Mean,
    /// Largest; NaN if any is NaN.
    Max,
    /// Smallest; NaN if any is NaN.
    Min,
    /// Product.
    Prod,
    /// Sum of squares.
    SumSquare,
    /// Sum of absolute values.
    L1,
}

/// y[o][i] = op over l of x[o][l][i].
pub fn reduce(
    op: ReduceOp,
    outer: usize,
    len: usize,
    inner: usize,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    reduce_with_isa(isa::best(), op, outer, len, inner, x, y, pool);
}

/// [`reduce`] for a given instruction set, which must be available.
pub fn reduce_with_isa(
    isa: Isa,
    op: ReduceOp,
    outer: usize,
    len: usize,
    inner: usize,
    x: &[f32],
    y: &mut [f32],
    pool: &Pool,
) {
    assert!(x.len() == outer * len * inner, "x has outer * len * inner elements");
    assert!(y.len() == outer * inner, "y has outer * inner elements");
    if y.is_empty() {
        return;
    }
    // Wide inner dimensions are cut too: a task is some columns of one outer index.
    let lanes = simd::tile_of(isa).0;
    let enough = pool.threads() == 1 || outer >= 4 * pool.threads();
    let parts = if enough { 1 } else { (inner / (4 * lanes)).clamp(1, 4 * pool.threads()) };
    let y = SharedMut::new(y);
    pool.run_ranges(outer * parts, TASK_LEN * parts / (len * inner).max(1), &|tasks| {
        simd::dispatch(isa, Columns { op, len, inner, parts, tasks, x, y });
    });
}

struct Columns<'a> {
    op: ReduceOp,
    len: usize,
    inner: usize,
    parts: usize,
    tasks: Range<usize>,
    x: &'a [f32],
    y: SharedMut,
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for task in self.tasks.clone() {
            let (outer, part) = (task / self.parts, task % self.parts);
            let columns = part * self.inner / self.parts..(part + 1) * self.inner / self.parts;
            let x = &self.x[outer * self.len * self.inner..][..self.len * self.inner];
            // SAFETY: these outputs are this task's alone.
            let y = unsafe { self.y.slice(outer * self.inner + columns.start, columns.len()) };
            // One arm per operation: the constant makes `step` branchless in each.
            match self.op {
                ReduceOp::Sum => some(s, ReduceOp::Sum, self.inner, columns.start, x, y),
                ReduceOp::Mean => {
                    some(s, ReduceOp::Sum, self.inner, columns.start, x, y);
                    for y in y {
                        *y /= self.len as f32;
                    }
                }
                ReduceOp::Max => some(s, ReduceOp::Max, self.inner, columns.start, x, y),
                ReduceOp::Min => some(s, ReduceOp::Min, self.inner, columns.start, x, y),
                ReduceOp::Prod => some(s, ReduceOp::Prod, self.inner, columns.start, x, y),
                ReduceOp::SumSquare => {
                    some(s, ReduceOp::SumSquare, self.inner, columns.start, x, y);
                }
                ReduceOp::L1 => some(s, ReduceOp::L1, self.inner, columns.start, x, y),
            }
        }
    }
}

#[inline(always)]
fn some<S: Simd>(s: S, op: ReduceOp, inner: usize, first: usize, x: &[f32], y: &mut [f32]) {
    if inner == 1 {
        y[0] = row(s, op, x);
    } else {
        columns(s, op, inner, first, x, y);
    }
}

fn identity(op: ReduceOp) -> f32 {
    match op {
        ReduceOp::Max => f32::NEG_INFINITY,
        ReduceOp::Min => f32::INFINITY,
        ReduceOp::Prod => 1.0,
        _ => 0.0,
    }
}

#[inline(always)]
fn step<S: Simd>(s: S, op: ReduceOp, acc: S::V, x: S::V) -> S::V {
    match op {
        ReduceOp::Sum | ReduceOp::Mean => s.add(acc, x),
        // max and min give x where either is NaN: right unless acc is the NaN.
        ReduceOp::Max => s.select(s.is_nan(acc), acc, s.max(acc, x)),
        ReduceOp::Min => s.select(s.is_nan(acc), acc, s.min(acc, x)),
        ReduceOp::Prod => s.mul(acc, x),
        ReduceOp::SumSquare => s.mul_add(x, x, acc),
        ReduceOp::L1 => s.add(acc, s.abs(x)),
    }
}

/// Combines two partial results.
fn merge(op: ReduceOp, a: f32, b: f32) -> f32 {
    match op {
        ReduceOp::Max if a.is_nan() || a > b => a,
        ReduceOp::Min if a.is_nan() || a < b => a,
        ReduceOp::Max | ReduceOp::Min => b,
        ReduceOp::Prod => a * b,
        _ => a + b,
    }
}

#[inline(always)]
fn row<S: Simd>(s: S, op: ReduceOp, x: &[f32]) -> f32 {
    let mut acc = [s.splat(identity(op)); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= x.len() {
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: i + 4 vectors <= len.
            *acc = step(s, op, *acc, unsafe { s.load(x.as_ptr().add(i + j * S::LANES)) });
        }
        i += 4 * S::LANES;
    }
    let mut lanes = [0.0; 4 * simd::MAX_LANES];
    for (j, acc) in acc.into_iter().enumerate() {
        // SAFETY: four vectors fit.
        unsafe { s.store(lanes.as_mut_ptr().add(j * S::LANES), acc) };
    }
    let mut result = identity(op);
    for &lane in &lanes[..4 * S::LANES] {
        result = merge(op, result, lane);
    }
    for &x in &x[i..] {
        let x = match op {
            ReduceOp::SumSquare => x * x,
            ReduceOp::L1 => x.abs(),
            _ => x,
        };
        result = merge(op, result, x);
    }
    result
}

#[inline(always)]
fn columns<S: Simd>(s: S, op: ReduceOp, inner: usize, first: usize, x: &[f32], y: &mut [f32]) {
    let len = x.len() / inner;
    assert!(first + y.len() <= inner);
    let mut i = 0;
    while i + 4 * S::LANES <= y.len() {
        let mut acc = [s.splat(identity(op)); 4];
        for l in 0..len {
            for (j, acc) in acc.iter_mut().enumerate() {
                let at = l * inner + first + i + j * S::LANES;
                // SAFETY: column first + i + 4 vectors <= inner of row l < len.
                *acc = step(s, op, *acc, unsafe { s.load(x.as_ptr().add(at)) });
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            // SAFETY: i + 4 vectors <= y.len().
            unsafe { s.store(y.as_mut_ptr().add(i + j * S::LANES), acc) };
        }
        i += 4 * S::LANES;
    }
    while i < y.len() {
        let lanes = S::LANES.min(y.len() - i);
        let mut acc = s.splat(identity(op));
        for l in 0..len {
            // SAFETY: column first + i + lanes <= inner of row l < len.
            let v = unsafe { s.load_partial(x.as_ptr().add(l * inner + first + i), lanes) };
            acc = step(s, op, acc, v);
        }
        // SAFETY: i + lanes <= y.len().
        unsafe { s.store_partial(y.as_mut_ptr().add(i), lanes, acc) };
        i += lanes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    const OPS: [ReduceOp; 7] = [
        ReduceOp::Sum,
        ReduceOp::Mean,
        ReduceOp::Max,
        ReduceOp::Min,
        ReduceOp::Prod,
        ReduceOp::SumSquare,
        ReduceOp::L1,
    ];

    fn reference(op: ReduceOp, values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let count = values.clone().count() as f64;
        let size: f64 = values.clone().map(f64::abs).sum();
        let bound = count * f64::from(f32::EPSILON) * size + 1e-30;
        match op {
            ReduceOp::Sum => (values.sum(), bound),
            ReduceOp::Mean => (values.sum::<f64>() / count, bound / count),
            ReduceOp::Max => (values.fold(f64::NEG_INFINITY, f64::max), 0.0),
            ReduceOp::Min => (values.fold(f64::INFINITY, f64::min), 0.0),
            ReduceOp::Prod => (values.product(), bound),
            ReduceOp::SumSquare => (values.map(|v| v * v).sum(), bound),
            ReduceOp::L1 => (size, bound),
        }
    }

    #[test]
    fn matches_double_precision() {
        let pool = Pool::new(2);
        for (outer, len, inner) in
            [(1, 1, 1), (3, 0, 2), (3, 70, 1), (2, 49, 130), (9, 5, 3), (1, 3, 20000)]
        {
            let x = random(outer * len * inner, 7);
            for (isa, op) in Isa::available().flat_map(|isa| OPS.map(|op| (isa, op))) {
                let mut y = vec![0.0; outer * inner];
                reduce_with_isa(isa, op, outer, len, inner, &x, &mut y, &pool);
                for (at, &y) in y.iter().enumerate() {
                    let (o, i) = (at / inner, at % inner);
                    let values = (0..len).map(|l| f64::from(x[(o * len + l) * inner + i]));
                    let want = reference(op, values);
                    let ok = crate::testing::close(y, want) || f64::from(y) == want.0;
                    assert!(ok, "{isa} {op:?} {y} {want:?}");
                }
            }
        }
    }

    #[test]
    fn extremes_propagate_nan() {
        let pool = Pool::single();
        for place in [0, 3, 40] {
            let mut x = random(41, 1);
            x[place] = f32::NAN;
            for (isa, op) in
                Isa::available().flat_map(|isa| [(isa, ReduceOp::Max), (isa, ReduceOp::Min)])
            {
                let mut y = [0.0];
                reduce_with_isa(isa, op, 1, 41, 1, &x, &mut y, &pool);
                assert!(y[0].is_nan(), "{isa} {op:?}");
            }
        }
    }
}
