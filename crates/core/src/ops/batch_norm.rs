//! BatchNormalization: a scale and shift per channel at inference; statistics of the batch itself
//! in training mode.

use std::{ops::Range, sync::Arc};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput, Scratch, axes,
    conv::{layout, layout_attribute, same_dtype},
    floats, gpu, kernel, kernel_with,
    window::Layout,
};
use crate::tensor::{DType, Tensor, TensorType};

const SPEC: OpSpec = OpSpec {
    name: "BatchNormalization",
    domain: "",
    since: 7,
    inputs: (5, 5),
    outputs: (1, 5),
    parse: |a| Ok(Arc::new(BatchNorm::parse(a)?)),
    examples,
};

pub(super) const SPECS: &[OpSpec] = &[
    SPEC,
    OpSpec {
        domain: "ai.sparoa",
        examples: || {
            vec![with_parameters(
                Example::new("channels last")
                    .attribute("layout", "NHWC")
                    .input(floats([1, 4, 5, 3], 1)),
            )]
        },
        ..SPEC
    },
];

/// (x - mean) / sqrt(variance + epsilon) * scale + shift, per channel. Inputs: x, scale, shift,
/// mean, variance. Outputs: y; in training mode also the running mean and variance.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// Weight of the given statistics against the batch's in training mode.
    pub momentum: f32,
    /// Normalises by the batch's own statistics.
    pub training: bool,
    /// Order of the dimensions.
    pub layout: Layout,
    /// Number of outputs.
    pub outputs: usize,
}

impl BatchNorm {
    fn parse(attributes: &Attributes) -> Result<BatchNorm, OpError> {
        if attributes.opset < 9 && !attributes.flag("spatial", true)? {
            return Err(OpError::unsupported("attribute spatial = 0 (nearest: spatial = 1)"));
        }
        let training = attributes.flag("training_mode", false)?;
        let outputs = attributes.outputs.max(1);
        if !training && outputs > 1 {
            return Err(OpError::unsupported(
                "outputs of statistics outside of training mode (nearest: output Y alone)",
            ));
        }
        Ok(BatchNorm {
            epsilon: attributes.float_or("epsilon", 1e-5)?,
            momentum: attributes.float_or("momentum", 0.9)?,
            training,
            layout: layout(attributes)?,
            outputs,
        })
    }

    /// Batch, channels and pixels.
    fn sizes(&self, shape: &[usize]) -> [usize; 3] {
        match shape.len() {
            // Batch alone: one channel.
            1 => [shape[0], 1, 1],
            rank => {
                let pixels = self.layout.spatial(shape).iter().product();
                [shape[0], shape[self.layout.channel_axis(rank)], pixels]
            }
        }
    }
}

/// Scale and shift of each channel.
fn fold(epsilon: f32, parameters: [&[f32]; 4], scale: &mut [f32], shift: &mut [f32]) {
    let [gamma, beta, mean, variance] = parameters;
    for c in 0..scale.len() {
        scale[c] = gamma[c] / (variance[c] + epsilon).sqrt();
        shift[c] = beta[c] - mean[c] * scale[c];
    }
}

impl Op for BatchNorm {
    fn op_type(&self) -> &'static str {
        "BatchNormalization"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        if x.shape().is_empty() {
            return Err(OpError::invalid("the input is a scalar, it needs a batch dimension"));
        }
        let [_, channels, _] = self.sizes(x.shape());
        for (i, name) in [(1, "scale"), (2, "B"), (3, "mean"), (4, "var")] {
            let parameter = inputs.required(i, name)?;
            if parameter.shape() != [channels] {
                return Err(OpError::invalid(format!(
                    "input {name} has shape {:?}, must have {channels} elements, one per channel",
                    parameter.shape()
                )));
            }
            same_dtype(x, parameter, name)?;
        }
        let mut types = vec![x.ty.clone()];
        types.resize(self.outputs.min(3), TensorType::new(x.ty.dtype, [channels]));
        Ok(types)
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        2 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let [batch, channels, pixels] = self.sizes(x.input(0).shape());
        if self.training {
            return Ok(self.train(batch, channels, pixels));
        }
        let (layout, epsilon) = (self.layout, self.epsilon);
        let constants: Option<Vec<&Tensor>> = (1..5).map(|i| x.constant(i).map(|t| &**t)).collect();
        let folded = constants.map(|c| {
            let (mut scale, mut shift) = (vec![0.0; channels], vec![0.0; channels]);
            let of = |i: usize| c[i].as_slice::<f32>().expect("infer checked the element type");
            fold(epsilon, [of(0), of(1), of(2), of(3)], &mut scale, &mut shift);
            (scale, shift)
        });
        let held = if folded.is_some() { 0 } else { channels };
        let scratch = move |_| 2 * Scratch::bytes::<f32>(held);
        Ok(kernel_with(8 * channels, scratch, move |io, pool| {
            let x = io.input(0).slice::<f32>();
            let given = [1, 2, 3, 4].map(|i| io.input(i).slice::<f32>());
            let mut scratch = Scratch::new(io.scratch);
            let (scale, shift) = match &folded {
                Some((scale, shift)) => (&scale[..], &shift[..]),
                None => {
                    let scale = scratch.take::<f32>(channels);
                    let shift = scratch.take::<f32>(channels);
                    fold(epsilon, given, scale, shift);
                    (&*scale, &*shift)
                }
            };
            let y = io.outputs[0].slice_mut::<f32>();
            match layout {
                Layout::Nchw => pool.run_parts(y, pixels.max(1), &|row, y| {
                    let (a, b) = (scale[row % channels], shift[row % channels]);
                    for (y, x) in y.iter_mut().zip(&x[row * pixels..]) {
                        *y = x * a + b;
                    }
                }),
                Layout::Nhwc => {
                    // Enough pixels for a task to be worth its start.
                    let part = channels.max(1) * (4096 / channels.max(1)).max(1);
                    pool.run_parts(y, part, &|i, y| {
                        let x = &x[i * part..][..y.len()];
                        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                            for c in 0..channels {
                                y[c] = x[c] * scale[c] + shift[c];
                            }
                        }
                    });
                }
            }
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::batch_norm(self, self.sizes(x.input(0).shape()), x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = x.input(0).shape();
        let channels = self.layout.channel_axis(shape.len().max(2));
        axes::first_long(shape).filter(|&axis| {
            // Parameters are sliced with the channels.
            let parameters_move = axis == channels && shape.len() > 1;
            !self.training && (!parameters_move || (1..5).all(|i| x.constant(i).is_some()))
        })
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let rank = x.input(0).shape().len();
        let parameters = if rank > 1 && axis == self.layout.channel_axis(rank) {
            PartInput::Range { axis: 0, range: range.clone() }
        } else {
            PartInput::Whole
        };
        let mut inputs = vec![PartInput::Range { axis, range }];
        inputs.resize(5, parameters);
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        // Running statistics have no layout.
        (self.layout == Layout::Nchw && !self.training)
            .then(|| Arc::new(BatchNorm { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("epsilon", self.epsilon.into()), ("momentum", self.momentum.into())];
        if self.training {
            list.push(("training_mode", 1i64.into()));
        }
        list.extend(layout_attribute(self.layout));
        list
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nhwc { "ai.sparoa" } else { "" }
    }
}

impl BatchNorm {
    /// Training mode: statistics of the batch, in double precision.
    fn train(&self, batch: usize, channels: usize, pixels: usize) -> Box<dyn CpuKernel> {
        let BatchNorm { epsilon, momentum, layout, .. } = *self;
        let count = (batch * pixels) as f64;
        kernel(move |io, _| {
            let x = io.input(0).slice::<f32>();
            let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| io.input(i).slice::<f32>());
            for c in 0..channels {
                let at = |i: usize| match layout {
                    Layout::Nchw => (i / pixels * channels + c) * pixels + i % pixels,
                    Layout::Nhwc => i * channels + c,
                };
                let values = || (0..batch * pixels).map(|i| f64::from(x[at(i)]));
                let own_mean = values().sum::<f64>() / count;
                let own_variance = values().map(|v| (v - own_mean).powi(2)).sum::<f64>() / count;
                let scale = f64::from(gamma[c]) / (own_variance + f64::from(epsilon)).sqrt();
                let y = io.outputs[0].slice_mut::<f32>();
                for i in 0..batch * pixels {
                    let v = (f64::from(x[at(i)]) - own_mean) * scale + f64::from(beta[c]);
                    y[at(i)] = v as f32;
                }
                let running = |old: f32, new: f64| old * momentum + new as f32 * (1.0 - momentum);
                for (i, (old, new)) in
                    [(mean[c], own_mean), (variance[c], own_variance)].into_iter().enumerate()
                {
                    if let Some(output) = io.outputs.get_mut(i + 1) {
                        output.slice_mut::<f32>()[c] = running(old, new);
                    }
                }
            }
            Ok(())
        })
    }
}

/// Adds constant parameters of three channels; variances are positive.
fn with_parameters(example: Example) -> Example {
    example
        .constant(floats([3], 2))
        .constant(floats([3], 3))
        .constant(floats([3], 4))
        .constant(Tensor::from_slice([3], &[0.5f32, 1.0, 2.0]))
}

fn examples() -> Vec<Example> {
    vec![
        with_parameters(Example::new("images").input(floats([2, 3, 4, 5], 1))),
        with_parameters(Example::new("one image").input(floats([1, 3, 4, 5], 1))),
        with_parameters(
            Example::new("rows of features").attribute("epsilon", 0.01f32).input(floats([4, 3], 1)),
        ),
        Example::new("parameters at run time")
            .input(floats([1, 2, 3, 3], 1))
            .input(floats([2], 2))
            .input(floats([2], 3))
            .input(floats([2], 4))
            .input(Tensor::from_slice([2], &[0.25f32, 4.0])),
        with_parameters(
            Example::new("training mode")
                .attribute("training_mode", 1i64)
                .input(floats([2, 3, 2, 2], 1))
                .outputs(3),
        ),
    ]
}
