//! A pre-norm encoder layer: windowed attention, then a feed-forward net with GELU.

use std::ops::Range;

use sparoa_kernels::activation::Residual;
use sparoa_kernels::attention::{AttentionShape, Strides, attention, scratch_len};
use sparoa_kernels::norm::layer_norm;
use sparoa_kernels::{Activation, Epilogue, Pool};

use super::NORM_EPS;
use crate::dense::Dense;
use crate::weights::{Weights, WeightsError};

/// A layer norm over the features of a row.
pub(super) struct Norm {
    scale: Vec<f32>,
    offset: Vec<f32>,
}

impl Norm {
    /// The tensors `name.scale` and `name.offset`, both [width].
    pub(super) fn from_weights(
        weights: &Weights,
        name: &str,
        width: usize,
    ) -> Result<Norm, WeightsError> {
        let read = |part: &str| weights.tensor(&format!("{name}.{part}"), &[width]);
        Ok(Norm { scale: read("scale")?.to_vec(), offset: read("offset")?.to_vec() })
    }

    pub(super) fn apply(&self, rows: usize, x: &[f32], y: &mut [f32], pool: &Pool) {
        let (scale, offset) = (Some(&self.scale[..]), Some(&self.offset[..]));
        layer_norm(rows, self.scale.len(), scale, offset, NORM_EPS, x, y, pool);
    }
}

/// One layer: x += attention(norm(x)); x += feed_forward(norm(x)).
pub(super) struct EncoderLayer {
    heads: usize,
    attention_norm: Norm,
    /// Queries, keys and values of all heads, in this order.
    qkv: Dense,
    out: Dense,
    feed_norm: Norm,
    feed_in: Dense,
    feed_out: Dense,
}

impl EncoderLayer {
    pub(super) fn from_weights(
        w: &Weights,
        name: &str,
        width: usize,
        heads: usize,
    ) -> Result<EncoderLayer, WeightsError> {
        let part = |p: &str| format!("{name}.{p}");
        let hidden = w.matrix_shape(&part("feed_in.weight"))?.1;
        Ok(EncoderLayer {
            heads,
            attention_norm: Norm::from_weights(w, &part("attention_norm"), width)?,
            qkv: Dense::from_weights(w, &part("qkv"), width, 3 * width)?,
            out: Dense::from_weights(w, &part("out"), width, width)?,
            feed_norm: Norm::from_weights(w, &part("feed_norm"), width)?,
            feed_in: Dense::from_weights(w, &part("feed_in"), width, hidden)?,
            feed_out: Dense::from_weights(w, &part("feed_out"), hidden, width)?,
        })
    }

    /// Transforms `x`, rows x width, in place; rows attend to rows of their own window.
    pub(super) fn apply(
        &self,
        rows: usize,
        windows: impl Iterator<Item = Range<usize>>,
        x: &mut [f32],
        pool: &Pool,
    ) {
        let width = x.len() / rows;
        let mut normed = vec![0.0; x.len()];
        self.attention_norm.apply(rows, x, &mut normed, pool);
        let mut qkv = vec![0.0; 3 * x.len()];
        self.qkv.apply(rows, &normed, &Epilogue::NONE, &mut qkv, pool);
        // `normed` is free again: it takes the attention's result.
        for window in windows {
            self.attend(&qkv[3 * width * window.start..3 * width * window.end], {
                &mut normed[width * window.start..width * window.end]
            });
        }
        let mut sum = vec![0.0; x.len()];
        self.out.apply(rows, &normed, &added(x), &mut sum, pool);
        self.feed_norm.apply(rows, &sum, &mut normed, pool);
        let mut hidden = vec![0.0; rows * self.feed_in.outputs()];
        let gelu = Epilogue::activation(Activation::Gelu);
        self.feed_in.apply(rows, &normed, &gelu, &mut hidden, pool);
        self.feed_out.apply(rows, &hidden, &added(&sum), x, pool);
    }

    /// `qkv`: n x 3 width; `out`: n x width.
    fn attend(&self, qkv: &[f32], out: &mut [f32]) {
        let width = self.qkv.inputs();
        let n = out.len() / width;
        let head_dim = width / self.heads;
        let shape = AttentionShape {
            batch: 1,
            heads: self.heads,
            q_len: n,
            kv_len: n,
            head_dim,
            v_dim: head_dim,
        };
        let read = Strides { batch: 0, head: head_dim, row: 3 * width };
        let write = Strides { batch: 0, head: head_dim, row: width };
        let pool = Pool::single();
        let mut scratch = vec![0.0; scratch_len(&shape, 1)];
        attention(
            &shape,
            (qkv, read),
            (&qkv[width..], read),
            (&qkv[2 * width..], read),
            1.0 / (head_dim as f32).sqrt(),
            None,
            false,
            (out, write),
            &mut scratch,
            &pool,
        );
    }
}

/// An epilogue that adds what the sub-layer bypasses.
fn added(x: &[f32]) -> Epilogue<'_> {
    Epilogue { activation: Activation::None, residual: Residual::AfterActivation(x) }
}
