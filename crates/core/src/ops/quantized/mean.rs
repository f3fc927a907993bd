//! Global average pooling of quantised images, fused from DequantizeLinear, GlobalAveragePool and
//! QuantizeLinear.

use std::sync::Arc;

use sparoa_kernels::quantized::global_average_pool;

use super::{
    Bounds, bounds, bounds_attribute, check_bytes, check_one_scale, check_zero, requantize,
};
use crate::{
    ops::{
        AttributeValue, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands,
        conv::{layout, layout_attribute},
        kernel, sample,
        window::Layout,
    },
    tensor::{DType, Tensor, TensorType},
};

pub(super) const SPEC: OpSpec = OpSpec {
    name: "QLinearGlobalAveragePool",
    domain: "ai.sparoa",
    since: 1,
    inputs: (5, 5),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(IntMean { layout: layout(a)?, bounds: bounds(a)? })),
    examples: || {
        let parameters = |e: Example| {
            e.constant(Tensor::scalar(0.1f32))
                .constant(Tensor::scalar(8i8))
                .constant(Tensor::scalar(0.02f32))
                .constant(Tensor::scalar(100u8))
        };
        let x = |shape: &[usize]| sample(TensorType::new(DType::I8, shape), 1);
        vec![
            parameters(Example::new("channels first").input(x(&[2, 3, 4, 5]))),
            parameters(
                Example::new("channels last, bounds")
                    .attribute("layout", "NHWC")
                    .attribute("bounds", [60, 90])
                    .input(x(&[2, 4, 5, 3])),
            ),
        ]
    },
};

/// The mean of each channel's 8-bit integers over all pixels. Inputs: x and the output, each
/// followed by scale and zero point (the output is left out itself), all constant but x.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntMean {
    /// Order of the dimensions.
    pub layout: Layout,
    /// Of the output, for an activation that clamps.
    pub bounds: Bounds,
}

impl Op for IntMean {
    fn op_type(&self) -> &'static str {
        "QLinearGlobalAveragePool"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        check_bytes(x, "X")?;
        check_one_scale(inputs.required(1, "x_scale")?, "x_scale")?;
        check_zero(Some(inputs.required(2, "x_zero_point")?), x, 1, "x_zero_point")?;
        check_one_scale(inputs.required(3, "y_scale")?, "y_scale")?;
        let zero = inputs.required(4, "y_zero_point")?;
        check_bytes(zero, "y_zero_point")?;
        check_zero(Some(zero), zero, 1, "y_zero_point")?;
        let rank = x.shape().len();
        if rank < 3 {
            return Err(OpError::invalid(format!(
                "the input has shape {:?}, a global pool needs batch, channels and pixels",
                x.shape()
            )));
        }
        let channels = x.shape()[self.layout.channel_axis(rank)];
        let shape = self.layout.shape(x.shape()[0], &vec![1; rank - 2], channels);
        Ok(vec![TensorType::new(zero.ty.dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.input(0).ty.len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let shape = x.input(0).shape();
        let pixels: usize = self.layout.spatial(shape).iter().product();
        let channels = shape[self.layout.channel_axis(shape.len())];
        let sizes = match self.layout {
            Layout::Nhwc => [shape[0], pixels, channels],
            // Each channel is an image of one channel.
            Layout::Nchw => [shape[0] * channels, pixels, 1],
        };
        let refusal =
            || OpError::unsupported("scales or zero points at run time (nearest: constants)");
        let activations = requantize::activations(x, 0, 2).ok_or_else(refusal)?;
        // The mean's divisor belongs to the scale.
        let mut grid = requantize::constant(x, [1, 1, 3, 4], self.bounds).ok_or_else(refusal)?;
        let scale = |i: usize| x.constant(i).and_then(|s| s.as_slice::<f32>()?.first().copied());
        let (x_scale, y_scale) = (scale(1).ok_or_else(refusal)?, scale(3).ok_or_else(refusal)?);
        grid.multipliers = vec![x_scale / (pixels.max(1) as f32 * y_scale)];
        Ok(kernel(move |io, pool| {
            let x = io.input(0).bytes;
            global_average_pool(sizes, x, activations, &grid, io.outputs[0].bytes, pool);
            Ok(())
        }))
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(IntMean { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        layout_attribute(self.layout).into_iter().chain(bounds_attribute(self.bounds)).collect()
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}
