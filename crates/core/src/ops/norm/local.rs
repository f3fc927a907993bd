//! LRN: local response normalisation across neighbouring channels.

use std::sync::Arc;

use crate::{
    ops::{
        AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
        Operands,
        conv::{layout, layout_attribute},
        floats, kernel,
        window::Layout,
    },
    tensor::{DType, TensorType},
};

pub(super) const SPEC: OpSpec = OpSpec {
    name: "LRN",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(LocalResponseNorm::parse(a)?)),
    examples: || {
        vec![
            Example::new("three neighbours").attribute("size", 3i64).input(floats([2, 5, 3, 2], 1)),
            Example::new("an even number of neighbours")
                .attribute("size", 4i64)
                .attribute("alpha", 0.5f32)
                .attribute("beta", 0.6f32)
                .attribute("bias", 2.0f32)
                .input(floats([1, 6, 2, 3], 1)),
        ]
    },
};

/// The same, channels last.
pub(super) const LAST: OpSpec = OpSpec {
    domain: "ai.sparoa",
    examples: || {
        vec![
            Example::new("channels last")
                .attribute("size", 3i64)
                .attribute("layout", "NHWC")
                .input(floats([2, 3, 2, 5], 1)),
        ]
    },
    ..SPEC
};

/// x / (bias + alpha / size * sum of squares of `size` channels around it) ^ beta.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalResponseNorm {
    /// Factor of the mean square.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Offset.
    pub bias: f32,
    /// Channels that count; the odd one of an even number comes after.
    pub size: usize,
    /// Order of the dimensions.
    pub layout: Layout,
}

impl LocalResponseNorm {
    fn parse(attributes: &Attributes) -> Result<LocalResponseNorm, OpError> {
        let size = attributes.int("size")?.unwrap_or(0);
        Ok(LocalResponseNorm {
            alpha: attributes.float_or("alpha", 0.0001)?,
            beta: attributes.float_or("beta", 0.75)?,
            bias: attributes.float_or("bias", 1.0)?,
            size: usize::try_from(size).ok().filter(|&s| s > 0).ok_or_else(|| {
                OpError::invalid(format!("attribute size is {size}, must be 1 or more"))
            })?,
            layout: layout(attributes)?,
        })
    }
}

impl Op for LocalResponseNorm {
    fn op_type(&self) -> &'static str {
        "LRN"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        if x.shape().len() < 2 {
            return Err(OpError::invalid(format!(
                "the input has shape {:?}, it needs batch and channels",
                x.shape()
            )));
        }
        Ok(vec![x.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(self.size as u64 + 2)
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let shape = x.input(0).shape();
        let channels = shape[self.layout.channel_axis(shape.len())];
        let stride = match self.layout {
            Layout::Nchw => self.layout.spatial(shape).iter().product(),
            Layout::Nhwc => 1,
        };
        let op = self.clone();
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        Ok(kernel(move |io, pool| {
            let x = io.input(0).slice::<f32>();
            const PART: usize = 1024;
            pool.run_parts(io.outputs[0].slice_mut::<f32>(), PART, &|part, y| {
                for (i, y) in y.iter_mut().enumerate() {
                    let at = part * PART + i;
                    let c = at / stride % channels;
                    let first = at - c * stride;
                    let last = c.saturating_add(after).min(channels - 1);
                    let squares: f32 = (c.saturating_sub(before)..=last)
                        .map(|c| x[first + c * stride].powi(2))
                        .sum();
                    let base = op.bias + op.alpha / op.size as f32 * squares;
                    *y = x[at] / base.powf(op.beta);
                }
            });
            Ok(())
        }))
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw).then(|| {
            Arc::new(LocalResponseNorm { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>
        })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![
            ("alpha", self.alpha.into()),
            ("beta", self.beta.into()),
            ("bias", self.bias.into()),
            ("size", i64::try_from(self.size).unwrap_or(i64::MAX).into()),
        ];
        list.extend(layout_attribute(self.layout));
        list
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nhwc { "ai.sparoa" } else { "" }
    }
}
