//! Scaled dot-product attention without the matrix of scores.

use crate::pool::Pool;

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Batch.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Query rows.
    pub q_len: usize,
    /// Key and value rows.
    pub kv_len: usize,
    /// Elements of a query or key row.
    pub head_dim: usize,
    /// Elements of a value or output row.
    pub v_dim: usize,
}

/// Distances in elements between batches, heads and rows; a row itself has no gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// Between batches.
    pub batch: usize,
    /// Between heads.
    pub head: usize,
    /// Between rows.
    pub row: usize,
}

/// What is added to the scores before the softmax: q_len x kv_len matrices.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBias<'a> {
    /// The matrices.
    pub data: &'a [f32],
    /// Batch b uses the matrices of batch b % batch_modulo.
    pub batch_modulo: usize,
    /// Distance between batches; 0 broadcasts.
    pub batch_stride: usize,
    /// Distance between heads; 0 broadcasts.
    pub head_stride: usize,
    /// Distance between query rows; 0 broadcasts one row of kv_len.
    pub row_stride: usize,
}

/// How many elements of scratch [`attention`] needs on a pool of `threads`.
pub fn scratch_len(shape: &AttentionShape, threads: usize) -> usize {
    shape.kv_len * threads
}

/// out = softmax(scale q k^T + bias) v for each batch and head.
///
/// `causal`: query row i sees key rows 0 ..= i + kv_len - q_len. A row that sees nothing gives zeros.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    shape: &AttentionShape,
    q: (&[f32], Strides),
    k: (&[f32], Strides),
    v: (&[f32], Strides),
    scale: f32,
    bias: Option<AttentionBias<'_>>,
    causal: bool,
    out: (&mut [f32], Strides),
    scratch: &mut [f32],
    pool: &Pool,
) {
    assert!(
        scratch.len() >= scratch_len(shape, pool.threads()),
        "scratch has scratch_len elements"
    );
    let s = shape;
    for b in 0..s.batch {
        for h in 0..s.heads {
            for i in 0..s.q_len {
                let row = |t: Strides, r: usize| b * t.batch + h * t.head + r * t.row;
                let q_row = &q.0[row(q.1, i)..][..s.head_dim];
                let visible = if causal {
                    (i + 1 + s.kv_len).saturating_sub(s.q_len).min(s.kv_len)
                } else {
                    s.kv_len
                };
                let scores = &mut scratch[..visible];
                for (j, score) in scores.iter_mut().enumerate() {
                    let k_row = &k.0[row(k.1, j)..][..s.head_dim];
                    *score = scale * q_row.iter().zip(k_row).map(|(q, k)| q * k).sum::<f32>();
                    if let Some(bias) = &bias {
                        *score += bias.data[b % bias.batch_modulo * bias.batch_stride
                            + h * bias.head_stride
                            + i * bias.row_stride
                            + j];
                    }
                }
                let max = scores.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
                let mut sum = 0.0;
                for score in scores.iter_mut() {
                    *score = if max == f32::NEG_INFINITY { 0.0 } else { (*score - max).exp() };
                    sum += *score;
                }
                let out = &mut out.0[row(out.1, i)..][..s.v_dim];
                out.fill(0.0);
                if sum == 0.0 {
                    continue;
                }
                for (j, &p) in scores.iter().enumerate() {
                    let v_row = &v.0[row(v.1, j)..][..s.v_dim];
                    for (o, v) in out.iter_mut().zip(v_row) {
                        *o += p / sum * v;
                    }
                }
            }
        }
    }
}
