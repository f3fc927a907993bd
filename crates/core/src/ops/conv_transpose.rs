//! ConvTranspose: transposed convolution, NCHW or NHWC, with a fused activation. One and two
//! spatial dimensions run on packed kernels, more on a plain loop.

mod volume;

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{
    activation::{Activation, Epilogue},
    conv::{Conv2dParams, ConvTranspose2d},
    pool::Pool,
};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, KernelClass, KernelIo, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput, Scratch,
    conv::{
        ConvShape, ResidualKind, check_bias, group, layout, layout_attribute, same_dtype, swap,
    },
    epilogue, floats,
    window::{Flat, Geometry, Layout, Padding, Window},
};
use crate::tensor::{DType, TensorType};

const SPEC: OpSpec = OpSpec {
    name: "ConvTranspose",
    domain: "",
    since: 1,
    inputs: (2, 3),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(ConvTranspose::parse(a)?)),
    examples,
};

pub(super) const SPECS: &[OpSpec] = &[
    SPEC,
    OpSpec {
        domain: "ai.sparoa",
        parse: |a| {
            let (activation, _) = epilogue::parse(a)?;
            let layout = layout(a)?;
            Ok(Arc::new(ConvTranspose { activation, layout, ..ConvTranspose::parse(a)? }))
        },
        examples: || {
            vec![
                Example::new("channels last, ReLU")
                    .attribute("layout", "NHWC")
                    .attribute("activation", "Relu")
                    .attribute("strides", [2, 2])
                    .input(floats([1, 3, 4, 3], 1))
                    .constant(floats([3, 4, 2, 2], 2))
                    .constant(floats([4], 3)),
            ]
        },
        ..SPEC
    },
];

/// Transposed convolution. Inputs: x, weight (input channels, output channels / group, kernel..),
/// optional bias (output channels).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConvTranspose {
    /// Kernel, strides, dilations; padding crops the output.
    pub window: Window,
    /// Rows and columns added at the end of the output; empty for none.
    pub output_padding: Vec<usize>,
    /// Wanted spatial sizes, from which padding follows; empty if padding is given.
    pub output_shape: Vec<usize>,
    /// Number of groups into which the channels are divided; 0 counts as 1.
    pub group: usize,
    /// Order of the dimensions of x and the output.
    pub layout: Layout,
    /// Applied to the result.
    pub activation: Activation,
}

impl ConvTranspose {
    fn parse(attributes: &Attributes) -> Result<ConvTranspose, OpError> {
        let list = |name: &str| -> Result<Vec<usize>, OpError> {
            let values = attributes.ints(name)?.unwrap_or_default();
            let valid = |v: i64| usize::try_from(v).ok().filter(|_| v <= i64::from(i32::MAX));
            values
                .iter()
                .map(|&v| {
                    valid(v).ok_or_else(|| {
                        OpError::invalid(format!("attribute {name} holds {v}, must be 0 or more"))
                    })
                })
                .collect()
        };
        Ok(ConvTranspose {
            window: Window::parse(attributes)?,
            output_padding: list("output_padding")?,
            output_shape: list("output_shape")?,
            group: group(attributes)?,
            ..ConvTranspose::default()
        })
    }

    /// Sizes for these inputs. In the geometry, `begin` and `end` are what is cropped of the full
    /// output, which a negative crop (as output padding, per axis) extends.
    ///
    /// # Errors
    /// When the inputs or attributes contradict each other.
    pub fn shape(&self, inputs: &[Option<Operand>]) -> Result<(ConvShape, Vec<usize>), OpError> {
        let x = inputs.required(0, "X")?;
        let w = inputs.required(1, "W")?;
        let (x_shape, w_shape) = (x.shape(), w.shape());
        let rank = x_shape.len();
        if rank < 3 || w_shape.len() != rank {
            return Err(OpError::invalid(format!(
                "the input has rank {rank}, the weight {}: both need the same rank, 3 or more",
                w_shape.len()
            )));
        }
        same_dtype(x, w, "W")?;
        let groups = self.group.max(1);
        let c_in = x_shape[self.layout.channel_axis(rank)];
        if c_in == 0 || c_in % groups != 0 || w_shape[0] != c_in || w_shape[1] == 0 {
            return Err(OpError::invalid(format!(
                "{c_in} input channels in {groups} groups (attribute group) do not fit a weight \
                 of shape {w_shape:?}"
            )));
        }
        let c_out = w_shape[1].checked_mul(groups).ok_or_else(too_large)?;
        check_bias(inputs, c_out)?;
        let kernel = self.window.kernel_of(&w_shape[2..])?;
        let input = self.layout.spatial(x_shape);
        let (geometry, output_padding) = self.place(input, kernel)?;
        Ok((ConvShape { batch: x_shape[0], c_in, c_out, groups, geometry }, output_padding))
    }

    fn place(
        &self,
        input: &[usize],
        kernel: Vec<usize>,
    ) -> Result<(Geometry, Vec<usize>), OpError> {
        let n = input.len();
        let strides = Window::per_axis(&self.window.strides, 1, n, "strides")?;
        let dilations = Window::per_axis(&self.window.dilations, 1, n, "dilations")?;
        let extra = Window::per_axis(&self.output_padding, 0, n, "output_padding")?;
        // Some exporters list batch and channels too.
        let wanted = match self.output_shape.len() {
            0 => None,
            l if l == n || l == n + 2 => Some(&self.output_shape[l - n..]),
            l => {
                return Err(OpError::invalid(format!(
                    "attribute output_shape has {l} values for {n} spatial dimensions"
                )));
            }
        };
        let pads = match &self.window.padding {
            Padding::Explicit(pads) => Window::per_axis(pads, 0, 2 * n, "pads")?,
            _ => vec![0; 2 * n],
        };
        let mut g = Geometry {
            input: input.to_vec(),
            span: Vec::with_capacity(n),
            begin: pads[..n].to_vec(),
            end: pads[n..].to_vec(),
            output: Vec::with_capacity(n),
            kernel,
            strides,
            dilations,
        };
        let mut output_padding = extra;
        for i in 0..n {
            if input[i] == 0 {
                return Err(OpError::invalid(format!("spatial axis {i} of the input is empty")));
            }
            let span = (g.kernel[i] - 1)
                .checked_mul(g.dilations[i])
                .and_then(|s| s.checked_add(1))
                .ok_or_else(too_large)?;
            let steps = (input[i] - 1).checked_mul(g.strides[i]).ok_or_else(too_large)?;
            let full = steps.checked_add(span).ok_or_else(too_large)?;
            let padded = full.checked_add(output_padding[i]).ok_or_else(too_large)?;
            let automatic = match &self.window.padding {
                Padding::Explicit(_) => None,
                _ => Some(input[i].checked_mul(g.strides[i]).ok_or_else(too_large)?),
            };
            let output = match wanted.map(|w| w[i]).or(automatic) {
                Some(output) => {
                    let crop = padded.saturating_sub(output);
                    let half = crop / 2;
                    (g.begin[i], g.end[i]) = match self.window.padding {
                        Padding::SameUpper => (half, crop - half),
                        _ => (crop - half, half),
                    };
                    output_padding[i] = (output + crop).saturating_sub(full);
                    output
                }
                None => (g.begin[i].checked_add(g.end[i]))
                    .and_then(|crop| padded.checked_sub(crop))
                    .unwrap_or(0),
            };
            // Cropping may eat the output padding, never more than the full output.
            if output == 0 || g.begin[i] + g.end[i] > padded {
                return Err(OpError::invalid(format!(
                    "the output has no elements along spatial axis {i} (attributes pads, \
                     output_shape)"
                )));
            }
            g.span.push(span);
            g.output.push(output);
        }
        Ok((g, output_padding))
    }
}

fn too_large() -> OpError {
    OpError::invalid("strides, dilations or kernel_shape are too large")
}

impl Op for ConvTranspose {
    fn op_type(&self) -> &'static str {
        "ConvTranspose"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let (s, _) = self.shape(inputs)?;
        let shape = self.layout.shape(s.batch, &s.geometry.output, s.c_out);
        Ok(vec![TensorType::new(inputs.required(0, "X")?.ty.dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        // Each input element meets the weights of its channel.
        let weights: usize = x.input(1).shape()[1..].iter().product();
        (x.input(0).ty.len() as u64).saturating_mul(2).saturating_mul(weights as u64)
    }

    fn class(&self, x: &Operands<'_>) -> KernelClass {
        self.shape(x.inputs)
            .map_or(KernelClass::Convolution, |(s, _)| KernelClass::of_conv(s.groups, s.c_in))
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let (shape, output_padding) = self.shape(x.inputs)?;
        let (flat, extra) = match (shape.geometry.two_dimensional(), &output_padding[..]) {
            (Some(flat), &[w]) => (flat, [0, w]),
            (Some(flat), &[h, w]) => (flat, [h, w]),
            _ => return Ok(volume::kernel(self, shape)),
        };
        let params = shape.params(&flat);
        let bias = x.constant(2);
        let packed = match x.constant(1) {
            Some(w) if bias.is_some() || x.get(2).is_none() => {
                let weight = w.as_slice().expect("the weight has the input's type, f32");
                Some(ConvTranspose2d::new(params, extra, weight, bias.and_then(|b| b.as_slice())))
            }
            _ => None,
        };
        let zeros = || vec![0.0; x.input(1).ty.len()];
        let scratch_of =
            packed.clone().unwrap_or_else(|| ConvTranspose2d::new(params, extra, &zeros(), None));
        Ok(Box::new(TransposeKernel {
            params,
            extra,
            packed,
            scratch_of,
            batch: shape.batch,
            flat,
            layout: self.layout,
            activation: self.activation,
        }))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let (shape, _) = self.shape(x.inputs).ok()?;
        if shape.batch > 1 {
            return Some(0);
        }
        let alone = match self.layout {
            Layout::Nchw => true,
            Layout::Nhwc => shape.geometry.output.iter().all(|&d| d == 1),
        };
        let constant = x.constant(1).is_some() && (x.get(2).is_none() || x.constant(2).is_some());
        (alone && constant && shape.groups == 1 && shape.c_out > 1)
            .then(|| self.layout.channel_axis(x.output(0).rank()))
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let of = |axis: usize| PartInput::Range { axis, range: range.clone() };
        let mut inputs = if axis == 0 {
            vec![of(0), PartInput::Whole, PartInput::Whole]
        } else {
            vec![PartInput::Whole, of(1), of(0)]
        };
        inputs.truncate(x.inputs.len());
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw).then(|| {
            Arc::new(ConvTranspose { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>
        })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.window.attributes();
        for (name, values) in
            [("output_padding", &self.output_padding), ("output_shape", &self.output_shape)]
        {
            if !values.is_empty() {
                let ints = values.iter().map(|&v| i64::try_from(v).unwrap_or(i64::MAX));
                list.push((name, AttributeValue::Ints(ints.collect())));
            }
        }
        if self.group > 1 {
            list.push(("group", AttributeValue::Int(i64::try_from(self.group).unwrap_or(1))));
        }
        list.extend(layout_attribute(self.layout));
        list.extend(epilogue::attributes(self.activation, ResidualKind::None));
        list
    }

    fn domain(&self) -> &'static str {
        let plain = self.layout == Layout::Nchw && self.activation == Activation::None;
        if plain { "" } else { "ai.sparoa" }
    }
}

/// A transposed convolution of one or two spatial dimensions.
struct TransposeKernel {
    params: Conv2dParams,
    /// Output padding.
    extra: [usize; 2],
    /// `None` when weight or bias is computed at run time.
    packed: Option<ConvTranspose2d>,
    /// A convolution of the same shape, for its scratch size.
    scratch_of: ConvTranspose2d,
    batch: usize,
    flat: Flat,
    layout: Layout,
    activation: Activation,
}

impl TransposeKernel {
    /// Elements of the input and of the output.
    fn lens(&self) -> (usize, usize) {
        let len = |hw: [usize; 2], c: usize| self.batch * hw[0] * hw[1] * c;
        (len(self.flat.input, self.params.c_in), len(self.flat.output, self.params.c_out))
    }

    fn kernel_scratch(&self, threads: usize) -> usize {
        let [h, w] = self.flat.input;
        self.scratch_of.scratch_len(self.batch, h, w, threads)
    }
}

impl CpuKernel for TransposeKernel {
    fn scratch_bytes(&self, threads: usize) -> usize {
        let own = Scratch::bytes::<f32>(self.kernel_scratch(threads));
        if self.layout == Layout::Nhwc {
            return own;
        }
        let (x, y) = self.lens();
        own + Scratch::bytes::<f32>(x) + Scratch::bytes::<f32>(y)
    }

    fn weight_bytes(&self) -> usize {
        self.packed.as_ref().map_or(0, ConvTranspose2d::bytes)
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let made;
        let conv = match &self.packed {
            Some(conv) => conv,
            None => {
                let bias = io.get(2).map(|b| b.slice::<f32>());
                let weight = io.input(1).slice();
                made = ConvTranspose2d::new(self.params, self.extra, weight, bias);
                &made
            }
        };
        let x = io.input(0).slice::<f32>();
        let mut scratch = Scratch::new(io.scratch);
        let own = scratch.take::<f32>(self.kernel_scratch(pool.threads()));
        let y = io.outputs[0].slice_mut::<f32>();
        let [h, w] = self.flat.input;
        let epilogue = Epilogue::activation(self.activation);
        if y.is_empty() {
            return Ok(());
        }
        if self.layout == Layout::Nhwc {
            conv.run(self.batch, h, w, x, &epilogue, y, own, pool);
            return Ok(());
        }
        let (x_len, y_len) = self.lens();
        let (xt, yt) = (scratch.take::<f32>(x_len), scratch.take::<f32>(y_len));
        let pixels = self.flat.output[0] * self.flat.output[1];
        swap(x, [self.batch, self.params.c_in, h * w], xt, pool);
        conv.run(self.batch, h, w, xt, &epilogue, yt, own, pool);
        swap(yt, [self.batch, pixels, self.params.c_out], y, pool);
        Ok(())
    }
}

fn examples() -> Vec<Example> {
    vec![
        Example::new("stride 2, pads, output padding, bias")
            .attribute("strides", [2, 2])
            .attribute("pads", [1, 1, 1, 0])
            .attribute("output_padding", [1, 0])
            .input(floats([2, 3, 4, 3], 1))
            .constant(floats([3, 4, 3, 3], 2))
            .constant(floats([4], 3)),
        Example::new("wanted output shape, dilated")
            .attribute("strides", [3, 2])
            .attribute("dilations", [2, 1])
            .attribute("output_shape", [10, 8])
            .input(floats([1, 2, 3, 3], 1))
            .constant(floats([2, 3, 3, 3], 2)),
        Example::new("two groups, SAME_UPPER, one spatial dimension")
            .attribute("group", 2i64)
            .attribute("strides", [2])
            .attribute("auto_pad", "SAME_UPPER")
            .input(floats([1, 4, 5], 1))
            .constant(floats([4, 3, 3], 2))
            .constant(floats([6], 3)),
        Example::new("weight at run time")
            .input(floats([1, 2, 3, 2], 1))
            .input(floats([2, 1, 2, 2], 2)),
        Example::new("three spatial dimensions")
            .attribute("strides", [1, 2, 2])
            .attribute("pads", [0, 1, 0, 1, 0, 1])
            .input(floats([1, 2, 2, 3, 2], 1))
            .constant(floats([2, 3, 2, 3, 2], 2)),
    ]
}
