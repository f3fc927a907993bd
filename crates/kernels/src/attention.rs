//! Scaled dot-product attention without the matrix of scores.

use crate::Epilogue;
use crate::aligned::{SharedMut, align_scratch};
use crate::gemm::driver::{Block, Product, Rows};
use crate::gemm::{PackedB, pack_panels};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};
use crate::softmax::{exp_sum_raw, scale_in_place};

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

/// Query rows whose scores are in memory at a time, and how many more a last block may have: a
/// little beyond the block is better than a second, tiny one.
const Q_BLOCK: usize = 48;
const Q_MORE: usize = Q_BLOCK / 4;
/// Key rows packed at a time.
const KV_BLOCK: usize = 512;

/// How a worker's scratch is laid out.
#[derive(Clone, Copy)]
struct Layout {
    kv_block: usize,
    scores_stride: usize,
    keys: usize,
    values: usize,
    scores: usize,
    total: usize,
}

impl Layout {
    fn new(isa: Isa, shape: &AttentionShape) -> Layout {
        // As with queries: no tiny last block.
        let blocks = (shape.kv_len.saturating_sub(KV_BLOCK / 4)).div_ceil(KV_BLOCK).max(1);
        let kv_block = shape.kv_len.div_ceil(blocks).next_multiple_of(16);
        let scores_stride = kv_block + 16;
        let keys = PackedB::empty(isa, shape.head_dim, kv_block).packed_len();
        let values = PackedB::empty(isa, kv_block, shape.v_dim).packed_len();
        let scores = (Q_BLOCK + Q_MORE) * scores_stride;
        let total = (keys + values + scores + 2 * shape.q_len).next_multiple_of(16);
        Layout { kv_block, scores_stride, keys, values, scores, total }
    }
}

/// How many elements of scratch [`attention`] needs on a pool of `threads`.
pub fn scratch_len(shape: &AttentionShape, threads: usize) -> usize {
    scratch_len_with_isa(isa::best(), shape, threads)
}

/// [`scratch_len`] for a given instruction set, which must be available.
pub fn scratch_len_with_isa(isa: Isa, shape: &AttentionShape, threads: usize) -> usize {
    16 + threads * Layout::new(isa, shape).total
}

/// out = softmax(scale q k^T + bias) v for each batch and head.
///
/// `causal`: query row i sees key rows 0 ..= i + kv_len - q_len. A row that sees nothing gives
/// zeros. Scores exist for a block of queries and keys at a time; sums are rescaled from block to
/// block of keys.
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
    attention_with_isa(isa::best(), shape, q, k, v, scale, bias, causal, out, scratch, pool);
}

/// [`attention`] for a given instruction set, which must be available.
pub fn attention_with_isa(
    isa: Isa,
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
    let s = *shape;
    if s.batch * s.heads * s.q_len * s.v_dim == 0 {
        return;
    }
    let end = |strides: Strides, rows: usize, len: usize| {
        if rows == 0 || len == 0 {
            return 0;
        }
        (s.batch - 1) * strides.batch
            + (s.heads - 1) * strides.head
            + (rows - 1) * strides.row
            + len
    };
    assert!(q.0.len() >= end(q.1, s.q_len, s.head_dim), "q has all its rows");
    assert!(k.0.len() >= end(k.1, s.kv_len, s.head_dim), "k has all its rows");
    assert!(v.0.len() >= end(v.1, s.kv_len, s.v_dim), "v has all its rows");
    assert!(out.0.len() >= end(out.1, s.q_len, s.v_dim), "out has all its rows");
    assert!(out.1.is_disjoint(&s), "the rows of out do not overlap");
    if let Some(b) = &bias {
        assert!(b.batch_modulo > 0, "the bias has a batch");
        let batches = b.batch_modulo.min(s.batch);
        let last = (batches - 1) * b.batch_stride
            + (s.heads - 1) * b.head_stride
            + (s.q_len - 1) * b.row_stride
            + s.kv_len;
        assert!(b.data.len() >= last, "the bias has all its rows");
    }
    let layout = Layout::new(isa, shape);
    assert!(
        scratch.len() >= scratch_len_with_isa(isa, shape, pool.threads()),
        "scratch has scratch_len elements"
    );
    let scratch = SharedMut::new(align_scratch(scratch));
    let (out, out_strides) = (SharedMut::new(out.0), out.1);
    // Parts of a head repeat the packing: only as many as give every thread something to do.
    let heads = s.batch * s.heads;
    let wanted = if pool.threads() == 1 { 1 } else { (2 * pool.threads()).div_ceil(heads) };
    let parts = wanted.min(s.q_len.div_ceil(Q_BLOCK));
    pool.run_with_worker(heads * parts, &|task, worker| {
        let (head, part) = (task / parts, task % parts);
        let (batch, head) = (head / s.heads, head % s.heads);
        let rows = part * s.q_len / parts..(part + 1) * s.q_len / parts;
        // SAFETY: each worker has its own part, and runs one task at a time.
        let scratch = unsafe { scratch.slice(worker * layout.total, layout.total) };
        let at = |t: Strides| batch * t.batch + head * t.head;
        let bias = bias.map(|b| {
            let from = batch % b.batch_modulo * b.batch_stride + head * b.head_stride;
            (&b.data[from..], b.row_stride)
        });
        let part = Part {
            isa,
            shape: s,
            layout,
            rows,
            q: (tail(q.0, at(q.1)), q.1.row),
            k: (tail(k.0, at(k.1)), k.1.row),
            v: (tail(v.0, at(v.1)), v.1.row),
            scale,
            bias,
            causal,
            out: (out.at(at(out_strides)), out_strides.row),
            scratch,
        };
        simd::dispatch(isa, part);
    });
}

impl Strides {
    /// Whether no two rows of an output share elements.
    fn is_disjoint(&self, s: &AttentionShape) -> bool {
        let mut levels = [(self.batch, s.batch), (self.head, s.heads), (self.row, s.q_len)].map(
            |(stride, len)| {
                // A dimension of one element has no say.
                if len == 1 { (usize::MAX, 1) } else { (stride, len) }
            },
        );
        levels.sort_unstable();
        let mut extent = s.v_dim;
        for (stride, len) in levels {
            if len > 1 {
                if stride < extent {
                    return false;
                }
                extent += stride * (len - 1);
            }
        }
        true
    }
}

fn tail(slice: &[f32], start: usize) -> &[f32] {
    slice.get(start..).unwrap_or(&[])
}

/// Some query rows of one head.
struct Part<'a> {
    isa: Isa,
    shape: AttentionShape,
    layout: Layout,
    rows: std::ops::Range<usize>,
    q: (&'a [f32], usize),
    k: (&'a [f32], usize),
    v: (&'a [f32], usize),
    scale: f32,
    bias: Option<(&'a [f32], usize)>,
    causal: bool,
    out: (SharedMut, usize),
    scratch: &'a mut [f32],
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, layout) = (self.shape, self.layout);
        let (keys, rest) = self.scratch.split_at_mut(layout.keys);
        let (values, rest) = rest.split_at_mut(layout.values);
        let (scores, rest) = rest.split_at_mut(layout.scores);
        let (maxima, rest) = rest.split_at_mut(shape.q_len);
        let sums = &mut rest[..shape.q_len];
        maxima.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        let visible = |row: usize| {
            if self.causal {
                (row + 1 + shape.kv_len).saturating_sub(shape.q_len).min(shape.kv_len)
            } else {
                shape.kv_len
            }
        };
        let (out, out_stride) = self.out;
        let mut first_key = 0;
        loop {
            let count = layout.kv_block.min(shape.kv_len - first_key);
            let k_part = tail(self.k.0, first_key * self.k.1);
            let v_part = tail(self.v.0, first_key * self.v.1);
            let key_shape = PackedB::empty(self.isa, shape.head_dim, count);
            let value_shape = PackedB::empty(self.isa, count, shape.v_dim);
            let (dim, v_dim) = (shape.head_dim, shape.v_dim);
            let panels = 0..key_shape.panels();
            pack_panels(self.isa, dim, count, k_part, self.k.1, true, panels, keys);
            let panels = 0..value_shape.panels();
            pack_panels(self.isa, count, v_dim, v_part, self.v.1, false, panels, values);
            let mut row = self.rows.start;
            while row < self.rows.end {
                let rest = self.rows.end - row;
                let m = if rest <= Q_BLOCK + Q_MORE { rest } else { Q_BLOCK };
                let last_visible = visible(row + m - 1);
                if first_key > 0 && last_visible <= first_key {
                    row += m;
                    continue;
                }
                let c = SharedMut::new(scores);
                let stride = layout.scores_stride;
                let mut product = Product::new(&key_shape, 1, None, &Epilogue::NONE, c, stride);
                product.packed = keys;
                product.finish.alpha = self.scale;
                let q = &tail(self.q.0, row * self.q.1);
                let rows = Rows::Dense { a: q.as_ptr(), lda: self.q.1 };
                let panels = 0..key_shape.panels();
                s.call(Block { product: &product, rows, m, first_row: 0, panels });
                let bias = self.bias.map(|(b, stride)| (&b[row * stride + first_key..], stride));
                let seen = |r: usize| visible(row + r).saturating_sub(first_key).min(count);
                let [maxima, sums] =
                    [&mut *maxima, &mut *sums].map(|running| &mut running[row..][..m]);
                let rescale = |r: usize, factor: f32| {
                    if first_key > 0 {
                        // SAFETY: this row of out is this task's alone.
                        let out = unsafe { out.slice((row + r) * out_stride, v_dim) };
                        scale_in_place(s, out, factor);
                    }
                };
                s.call(Weights { scores, stride, count, bias, seen, maxima, sums, rescale });
                let c = out.at(row * out_stride);
                let mut product =
                    Product::new(&value_shape, 1, None, &Epilogue::NONE, c, out_stride);
                product.packed = values;
                product.accumulate = first_key > 0;
                let rows = Rows::Dense { a: scores.as_ptr(), lda: stride };
                let panels = 0..value_shape.panels();
                s.call(Block { product: &product, rows, m, first_row: 0, panels });
                row += m;
            }
            first_key += count;
            if first_key >= shape.kv_len {
                break;
            }
        }
        for row in self.rows.clone() {
            // SAFETY: this row of out is this task's alone.
            let out = unsafe { out.slice(row * out_stride, shape.v_dim) };
            let sum = sums[row];
            if sum == 0.0 {
                out.fill(0.0);
            } else {
                scale_in_place(s, out, 1.0 / sum);
            }
        }
    }
}

/// Turns rows of scores into weights relative to the running maxima.
struct Weights<'a, Seen, Rescale> {
    /// Rows of `count` scores, and a vector of anything behind each.
    scores: &'a mut [f32],
    stride: usize,
    count: usize,
    /// What is added to the scores, and the distance between its rows.
    bias: Option<(&'a [f32], usize)>,
    /// How many scores of a row count; the others get the weight 0.
    seen: Seen,
    /// Per row: the largest score so far, and the sum of weights.
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
    /// Is told by what factor a row's earlier weights shrink, where they do.
    rescale: Rescale,
}

/// Added to the last vector of a row, from where zeros for its scores come first.
const BEYOND: [f32; 2 * MAX_LANES] = {
    let mut beyond = [0.0; 2 * MAX_LANES];
    let mut i = MAX_LANES;
    while i < 2 * MAX_LANES {
        beyond[i] = f32::NEG_INFINITY;
        i += 1;
    }
    beyond
};

impl<Seen: Fn(usize) -> usize, Rescale: Fn(usize, f32)> Kernel for Weights<'_, Seen, Rescale> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.scores.chunks_mut(self.stride);
        let running = self.maxima.iter_mut().zip(self.sums);
        for (r, (row, (running_max, running_sum))) in rows.zip(running).enumerate() {
            let seen = (self.seen)(r);
            let (whole, rest) = (seen / S::LANES * S::LANES, seen % S::LANES);
            let end = whole + if rest > 0 { S::LANES } else { 0 };
            let row = &mut row[..self.count + MAX_LANES];
            row[end.min(self.count)..self.count].fill(0.0);
            let bias = self.bias.map(|(bias, stride)| bias[r * stride..][..seen].as_ptr());
            let at = row.as_mut_ptr();
            let mut largest = [s.splat(f32::NEG_INFINITY); 2];
            // SAFETY: a row has a vector more than its `count` elements, of which `seen` count, and
            // the bias has `seen`; BEYOND has a vector from MAX_LANES - rest on.
            let (max, sum) = unsafe {
                let mut i = 0;
                while i < whole {
                    let mut v = s.load(at.add(i));
                    if let Some(bias) = bias {
                        v = s.add(v, s.load(bias.add(i)));
                        s.store(at.add(i), v);
                    }
                    largest = [largest[1], s.max(v, largest[0])];
                    i += S::LANES;
                }
                if rest > 0 {
                    let mut v = s.load_partial(at.add(i), rest);
                    if let Some(bias) = bias {
                        v = s.add(v, s.load_partial(bias.add(i), rest));
                    }
                    v = s.add(v, s.load(BEYOND.as_ptr().add(MAX_LANES - rest)));
                    s.store(at.add(i), v);
                    largest[0] = s.max(v, largest[0]);
                }
                let max = s.reduce_max(s.max(largest[0], largest[1]));
                let max = if max > *running_max { max } else { *running_max };
                // A row of -inf so far: any finite shift makes its weights 0.
                let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
                (max, exp_sum_raw(s, at, at, end, shift))
            };
            let mut earlier = *running_sum;
            if max > *running_max && earlier != 0.0 {
                let factor = (*running_max - max).exp();
                (self.rescale)(r, factor);
                earlier *= factor;
            }
            *running_sum = earlier + sum;
            *running_max = max;
        }
    }
}

#[cfg(test)]
mod tests;
