//! Attention: softmax(scale q k^T + bias) v for each head, without the matrix of scores. Made by
//! the attention pass out of products and a softmax.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::attention::{AttentionBias, AttentionShape, Strides, attention, scratch_len};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, KernelClass, Op,
    OpError, OpSpec, Operand, Operands, Part, PartInput, Scratch, axes, floats, gpu, kernel_with,
};
use crate::tensor::{DType, TensorType};

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "Attention",
    domain: "ai.sparoa",
    since: 1,
    inputs: (1, 4),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(Attention::parse(a)?)),
    examples,
}];

/// Order of the dimensions of queries, keys, values or the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadLayout {
    /// Batch, heads, rows, elements.
    #[default]
    Bhsd,
    /// Batch, rows, heads, elements: what a projection gives, without a transposition.
    Bshd,
}

impl HeadLayout {
    fn name(self) -> &'static str {
        match self {
            HeadLayout::Bhsd => "BHSD",
            HeadLayout::Bshd => "BSHD",
        }
    }

    fn shape(self, batch: usize, heads: usize, rows: usize, elements: usize) -> [usize; 4] {
        match self {
            HeadLayout::Bhsd => [batch, heads, rows, elements],
            HeadLayout::Bshd => [batch, rows, heads, elements],
        }
    }

    fn strides(self, heads: usize, rows: usize, elements: usize) -> Strides {
        let batch = heads * rows * elements;
        match self {
            HeadLayout::Bhsd => Strides { batch, head: rows * elements, row: elements },
            HeadLayout::Bshd => Strides { batch, head: elements, row: heads * elements },
        }
    }
}

/// Attention of several heads. Inputs: q, k, v, optional bias; or with `packed` one tensor
/// [batch, rows, 3, heads, elements] as q, no k and v, and the bias still as input 3. q, k and v
/// have four dimensions in the order of their layouts, or three ([batch, rows, heads * elements])
/// for [`HeadLayout::Bshd`]. The bias broadcasts to [batch, heads, query rows, key rows], all but
/// the last dimension possibly 1; its batch may also divide the batch (index modulo). The output
/// has four dimensions in the order of `out_layout`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Order of q's dimensions.
    pub q_layout: HeadLayout,
    /// Order of k's dimensions.
    pub k_layout: HeadLayout,
    /// Order of v's dimensions.
    pub v_layout: HeadLayout,
    /// Order of the output's dimensions.
    pub out_layout: HeadLayout,
    /// q, k and v are one input.
    pub packed: bool,
    /// Factor of the scores.
    pub scale: f32,
    /// Query row i sees key rows up to i + key rows - query rows.
    pub causal: bool,
}

/// Index of the bias among the inputs.
pub const BIAS_INPUT: usize = 3;

/// Longest dimensions of a bias, in elements: batch, heads, query rows.
type BiasDims = [usize; 3];

impl Attention {
    fn parse(attributes: &Attributes) -> Result<Attention, OpError> {
        let layout = |name: &str| match attributes.string(name)?.as_deref() {
            None | Some("BHSD") => Ok(HeadLayout::Bhsd),
            Some("BSHD") => Ok(HeadLayout::Bshd),
            Some(other) => Err(OpError::invalid(format!(
                "attribute {name} is '{other}', must be BHSD or BSHD"
            ))),
        };
        let heads = attributes.int("heads")?.unwrap_or(0);
        Ok(Attention {
            heads: usize::try_from(heads).ok().filter(|&h| h > 0).ok_or_else(|| {
                OpError::invalid(format!("attribute heads is {heads}, must be 1 or more"))
            })?,
            q_layout: layout("q_layout")?,
            k_layout: layout("k_layout")?,
            v_layout: layout("v_layout")?,
            out_layout: layout("out_layout")?,
            packed: attributes.flag("packed", false)?,
            scale: attributes.float_or("scale", 1.0)?,
            causal: attributes.flag("causal", false)?,
        })
    }

    /// Batch, rows and elements per head of one of q, k and v.
    fn rows(
        &self,
        operand: &Operand,
        layout: HeadLayout,
        name: &str,
    ) -> Result<[usize; 3], OpError> {
        let (heads, found) = match (operand.shape(), layout) {
            (&[b, h, s, d], HeadLayout::Bhsd) | (&[b, s, h, d], HeadLayout::Bshd) => (h, [b, s, d]),
            (&[b, s, hd], HeadLayout::Bshd) if hd % self.heads == 0 => {
                (self.heads, [b, s, hd / self.heads])
            }
            _ => (0, [0; 3]),
        };
        if heads == self.heads {
            return Ok(found);
        }
        Err(OpError::invalid(format!(
            "{name} has shape {:?}, must be {} with {} heads",
            operand.shape(),
            layout.name(),
            self.heads
        )))
    }

    /// Sizes for these inputs.
    ///
    /// # Errors
    /// When the inputs contradict each other or the attributes.
    pub fn shape(&self, inputs: &[Option<Operand>]) -> Result<AttentionShape, OpError> {
        let q = inputs.required(0, "q")?;
        let heads = self.heads;
        let shape = if self.packed {
            match *q.shape() {
                [batch, rows, 3, h, d] if h == heads => AttentionShape {
                    batch,
                    heads,
                    q_len: rows,
                    kv_len: rows,
                    head_dim: d,
                    v_dim: d,
                },
                _ => {
                    return Err(OpError::invalid(format!(
                        "the packed input has shape {:?}, must be [batch, rows, 3, {heads}, \
                         elements]",
                        q.shape()
                    )));
                }
            }
        } else {
            let (k, v) = (inputs.required(1, "k")?, inputs.required(2, "v")?);
            let [batch, q_len, head_dim] = self.rows(q, self.q_layout, "q")?;
            let k_rows = self.rows(k, self.k_layout, "k")?;
            let [_, kv_len, v_dim] = self.rows(v, self.v_layout, "v")?;
            if k_rows != [batch, kv_len, head_dim] || self.rows(v, self.v_layout, "v")?[0] != batch
            {
                return Err(OpError::invalid(format!(
                    "q {:?}, k {:?} and v {:?} do not fit each other",
                    q.shape(),
                    k.shape(),
                    v.shape()
                )));
            }
            AttentionShape { batch, heads, q_len, kv_len, head_dim, v_dim }
        };
        for operand in inputs.iter().flatten() {
            if operand.ty.dtype != q.ty.dtype {
                return Err(OpError::invalid("q, k, v and bias differ in element type"));
            }
        }
        self.bias_dims(inputs, &shape)?;
        Ok(shape)
    }

    /// The bias's own batch, heads and rows, if there is one.
    fn bias_dims(
        &self,
        inputs: &[Option<Operand>],
        s: &AttentionShape,
    ) -> Result<Option<BiasDims>, OpError> {
        let Some(bias) = inputs.optional(BIAS_INPUT) else { return Ok(None) };
        match *bias.shape() {
            [b, h, r, t]
                if t == s.kv_len
                    && (r == 1 || r == s.q_len)
                    && (h == 1 || h == s.heads)
                    && b > 0
                    && s.batch.is_multiple_of(b) =>
            {
                Ok(Some([b, h, r]))
            }
            _ => Err(OpError::invalid(format!(
                "the bias has shape {:?}, which does not broadcast to {:?}",
                bias.shape(),
                [s.batch, s.heads, s.q_len, s.kv_len]
            ))),
        }
    }
}

impl Attention {
    /// Strides of q, k, v and the output.
    fn strides(&self, s: &AttentionShape) -> [Strides; 4] {
        let out = self.out_layout.strides(s.heads, s.q_len, s.v_dim);
        if self.packed {
            let row = 3 * s.heads * s.head_dim;
            let packed = Strides { batch: s.q_len * row, head: s.head_dim, row };
            return [packed, packed, packed, out];
        }
        [
            self.q_layout.strides(s.heads, s.q_len, s.head_dim),
            self.k_layout.strides(s.heads, s.kv_len, s.head_dim),
            self.v_layout.strides(s.heads, s.kv_len, s.v_dim),
            out,
        ]
    }
}

impl Op for Attention {
    fn op_type(&self) -> &'static str {
        "Attention"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let s = self.shape(inputs)?;
        let shape = self.out_layout.shape(s.batch, s.heads, s.q_len, s.v_dim);
        Ok(vec![TensorType::new(inputs.required(0, "q")?.ty.dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let Ok(s) = self.shape(x.inputs) else { return 0 };
        let scores = [s.batch, s.heads, s.q_len, s.kv_len]
            .iter()
            .fold(1u64, |n, &d| n.saturating_mul(d as u64));
        // Two products, and the softmax's five steps.
        scores.saturating_mul(2 * (s.head_dim as u64 + s.v_dim as u64) + 5)
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let s = self.shape(x.inputs)?;
        let dims = self.bias_dims(x.inputs, &s)?;
        let [q_strides, k_strides, v_strides, out_strides] = self.strides(&s);
        let strides = [q_strides, k_strides, v_strides];
        let Attention { packed, scale, causal, .. } = *self;
        let scratch = move |threads| Scratch::bytes::<f32>(scratch_len(&s, threads));
        Ok(kernel_with(0, scratch, move |io, pool| {
            let q = io.input(0).slice::<f32>();
            let (k, v) = if packed {
                let at = |i: usize| q.get(i * s.heads * s.head_dim..).unwrap_or(&[]);
                (at(1), at(2))
            } else {
                (io.input(1).slice::<f32>(), io.input(2).slice::<f32>())
            };
            let bias = io.get(BIAS_INPUT).zip(dims).map(|(bias, [b, h, r])| {
                let step = |count: usize, stride: usize| if count == 1 { 0 } else { stride };
                AttentionBias {
                    data: bias.slice::<f32>(),
                    batch_modulo: b,
                    batch_stride: step(b, h * r * s.kv_len),
                    head_stride: step(h, r * s.kv_len),
                    row_stride: step(r, s.kv_len),
                }
            });
            let own = Scratch::new(io.scratch).take::<f32>(scratch_len(&s, pool.threads()));
            let y = io.outputs[0].slice_mut::<f32>();
            if !y.is_empty() {
                let (q, k, v) = ((q, strides[0]), (k, strides[1]), (v, strides[2]));
                attention(&s, q, k, v, scale, bias, causal, (y, out_strides), own, pool);
            }
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let s = self.shape(x.inputs).ok()?;
        let bias = self.bias_dims(x.inputs, &s).ok()?;
        let place = gpu::Placement { strides: self.strides(&s), packed: self.packed, bias };
        gpu::attention(&s, &place, self.scale, self.causal, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let s = self.shape(x.inputs).ok()?;
        let bias = self.bias_dims(x.inputs, &s).ok()?;
        let four = |i: usize| x.get(i).is_some_and(|o| o.shape().len() == 4);
        let constant_bias = x.constant(BIAS_INPUT).is_some();
        match axes::first_long(&x.output(0).shape)? {
            0 => Some(0),
            // Heads: contiguous when all inputs have them before their rows.
            1 if self.out_layout == HeadLayout::Bhsd => {
                let inputs = [self.q_layout, self.k_layout, self.v_layout];
                let leading = inputs.iter().all(|&l| l == HeadLayout::Bhsd);
                (leading && !self.packed).then_some(1)
            }
            // Rows of the queries.
            1 => {
                let one_head = s.heads == 1;
                let rows_lead = self.q_layout == HeadLayout::Bshd || (one_head && four(0));
                let bias_fits = bias.is_none_or(|[_, h, r]| h == 1 || r == 1 || constant_bias);
                (rows_lead && bias_fits && !self.packed && !self.causal).then_some(1)
            }
            _ => None,
        }
    }

    fn split_unit(&self, x: &Operands<'_>) -> usize {
        // A bias that repeats over the batch (one per window of an image) is indexed modulo its
        // own batch: a part must begin where the bias does.
        let repeated = || {
            let s = self.shape(x.inputs).ok()?;
            let [b, ..] = self.bias_dims(x.inputs, &s).ok()??;
            (self.split_axis(x) == Some(0) && b < s.batch).then_some(b)
        };
        repeated().unwrap_or(1).max(1)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let s = self.shape(x.inputs).ok()?;
        let bias = self.bias_dims(x.inputs, &s).ok()?;
        let mut op = self.clone();
        let of = |axis: usize| PartInput::Range { axis, range: range.clone() };
        let (mut inputs, bias_input) = if axis == 0 {
            let bias_input = match bias {
                Some([b, ..]) if b == s.batch && b > 1 => of(0),
                // Indices modulo the bias's batch must stay as they are.
                Some([b, ..]) if range.start.is_multiple_of(b) && range.len().is_multiple_of(b) => {
                    PartInput::Whole
                }
                Some(_) => return None,
                None => PartInput::Whole,
            };
            (vec![of(0), of(0), of(0)], bias_input)
        } else if self.out_layout == HeadLayout::Bhsd {
            op.heads = range.len();
            let sliced = bias.is_some_and(|[_, h, _]| h > 1);
            (vec![of(1), of(1), of(1)], if sliced { of(1) } else { PartInput::Whole })
        } else {
            let rows = if self.q_layout == HeadLayout::Bshd { 1 } else { 2 };
            let sliced = bias.is_some_and(|[_, _, r]| r > 1);
            let bias_input = if sliced { of(2) } else { PartInput::Whole };
            (vec![of(rows), PartInput::Whole, PartInput::Whole], bias_input)
        };
        inputs.push(bias_input);
        inputs.truncate(x.inputs.len());
        Some(Part { op: Arc::new(op), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![
            ("heads", i64::try_from(self.heads).unwrap_or(i64::MAX).into()),
            ("q_layout", self.q_layout.name().into()),
            ("k_layout", self.k_layout.name().into()),
            ("v_layout", self.v_layout.name().into()),
            ("out_layout", self.out_layout.name().into()),
            ("packed", self.packed.into()),
            ("scale", self.scale.into()),
            ("causal", self.causal.into()),
        ]
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}

fn examples() -> Vec<Example> {
    let of =
        |name, heads: i64| Example::new(name).attribute("heads", heads).attribute("scale", 0.5f32);
    let all = |e: Example, layout: &'static str| {
        ["q_layout", "k_layout", "v_layout", "out_layout"]
            .into_iter()
            .fold(e, |e, name| e.attribute(name, layout))
    };
    vec![
        of("heads first, rectangular, causal", 2)
            .attribute("causal", true)
            .input(floats([1, 2, 3, 4], 1))
            .input(floats([1, 2, 5, 4], 2))
            .input(floats([1, 2, 5, 6], 3)),
        all(of("rows first, bias per head", 2), "BSHD")
            .input(floats([1, 3, 2, 4], 1))
            .input(floats([1, 5, 2, 4], 2))
            .input(floats([1, 5, 8], 3))
            .constant(floats([1, 2, 3, 5], 4)),
        all(of("packed, window mask over a larger batch", 2), "BSHD")
            .attribute("packed", true)
            .input(floats([4, 3, 3, 2, 4], 1))
            .omitted()
            .omitted()
            .constant(floats([2, 1, 3, 3], 4)),
        of("mixed layouts, bias for all rows", 3)
            .attribute("k_layout", "BSHD")
            .attribute("out_layout", "BSHD")
            .input(floats([2, 3, 2, 4], 1))
            .input(floats([2, 5, 3, 4], 2))
            .input(floats([2, 3, 5, 2], 3))
            .input(floats([2, 1, 1, 5], 4)),
    ]
}
