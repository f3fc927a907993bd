//! Reductions over the middle one of three dimensions.

use crate::pool::Pool;

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
    let _ = pool;
    assert!(x.len() == outer * len * inner, "x has outer * len * inner elements");
    assert!(y.len() == outer * inner, "y has outer * inner elements");
    for o in 0..outer {
        for i in 0..inner {
            let values = (0..len).map(|l| x[(o * len + l) * inner + i]);
            y[o * inner + i] = match op {
                ReduceOp::Sum => values.sum(),
                ReduceOp::Mean => values.sum::<f32>() / len as f32,
                ReduceOp::Max => {
                    values.fold(f32::NEG_INFINITY, |m, v| if v > m || v.is_nan() { v } else { m })
                }
                ReduceOp::Min => {
                    values.fold(f32::INFINITY, |m, v| if v < m || v.is_nan() { v } else { m })
                }
                ReduceOp::Prod => values.product(),
                ReduceOp::SumSquare => values.map(|v| v * v).sum(),
                ReduceOp::L1 => values.map(f32::abs).sum(),
            };
        }
    }
}
