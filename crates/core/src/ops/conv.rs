//! Conv: convolution, NCHW as in ONNX or NHWC after the layout pass, with a fused epilogue. One
//! and two spatial dimensions run on packed kernels, more on a plain loop.

mod volume;

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{
    Arithmetic,
    activation::{Activation, Epilogue, Residual},
    conv::Conv2dParams,
    permute::permute,
    pool::Pool,
};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, KernelClass,
    KernelIo, Op, OpError, OpSpec, Operand, Operands, Part, PartInput, Scratch, Variant,
    epilogue::{self, RESIDUAL_INPUT},
    floats, gpu,
    packed::PackedConv,
};
pub use super::{
    epilogue::ResidualKind,
    window::{Flat, Geometry, Layout, Padding, Window},
};
use crate::tensor::{DType, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Conv",
        domain: "",
        since: 1,
        inputs: (2, 3),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Conv::parse(a)?)),
        examples,
    },
    OpSpec {
        name: "Conv",
        domain: "ai.sparoa",
        since: 1,
        inputs: (2, 4),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Conv::parse_fused(a)?)),
        examples: fused_examples,
    },
    OpSpec {
        name: "FusedConv",
        domain: "com.microsoft",
        since: 1,
        inputs: (2, 4),
        outputs: (1, 1),
        parse: |a| {
            let (activation, _) = epilogue::parse(a)?;
            let residual = ResidualKind::BeforeActivation;
            Ok(Arc::new(Conv { activation, residual, ..Conv::parse(a)? }))
        },
        examples: || {
            vec![
                Example::new("sum before the activation")
                    .attribute("activation", "Relu")
                    .input(floats([1, 2, 3, 3], 1))
                    .constant(floats([3, 2, 1, 1], 2))
                    .constant(floats([3], 3))
                    .input(floats([1, 3, 3, 3], 4)),
            ]
        },
    },
];

/// Convolution. Inputs: x, weight (output channels, input channels / group, kernel..), optional
/// bias (output channels), optional residual (as the output).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conv {
    /// Kernel, strides, dilations, padding.
    pub window: Window,
    /// Number of groups into which the channels are divided; 0 counts as 1.
    pub group: usize,
    /// Order of the dimensions of x, the residual and the output.
    pub layout: Layout,
    /// Applied to the result.
    pub activation: Activation,
    /// Whether input 3 is added, and where.
    pub residual: ResidualKind,
    /// How products are computed; not an ONNX attribute.
    pub arithmetic: Arithmetic,
    /// Which kernel computes it on the CPU.
    pub variant: Variant,
}

/// The sizes of one convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Batch.
    pub batch: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Groups.
    pub groups: usize,
    /// Spatial sizes.
    pub geometry: Geometry,
}

impl ConvShape {
    /// What the kernels for two dimensions take.
    pub(crate) fn params(&self, flat: &Flat) -> Conv2dParams {
        Conv2dParams {
            c_in: self.c_in,
            c_out: self.c_out,
            groups: self.groups,
            kernel: flat.kernel,
            stride: flat.strides,
            dilation: flat.dilations,
            pads: flat.pads,
        }
    }
}

impl Conv {
    fn parse(attributes: &Attributes) -> Result<Conv, OpError> {
        Ok(Conv {
            window: Window::parse(attributes)?,
            group: group(attributes)?,
            ..Conv::default()
        })
    }

    fn parse_fused(attributes: &Attributes) -> Result<Conv, OpError> {
        let (activation, residual) = epilogue::parse(attributes)?;
        let layout = layout(attributes)?;
        Ok(Conv { activation, residual, layout, ..Conv::parse(attributes)? })
    }

    /// Sizes for these inputs.
    ///
    /// # Errors
    /// When the inputs or attributes contradict each other.
    pub fn shape(&self, inputs: &[Option<Operand>]) -> Result<ConvShape, OpError> {
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
        let (c_in, c_out) = (x_shape[self.layout.channel_axis(rank)], w_shape[0]);
        if c_in == 0 || c_out == 0 || c_in % groups != 0 || c_out % groups != 0 {
            return Err(OpError::invalid(format!(
                "attribute group is {groups}, which does not divide {c_in} input and {c_out} \
                 output channels"
            )));
        }
        if w_shape[1] != c_in / groups {
            return Err(OpError::invalid(format!(
                "the weight has {} input channels per group, the input has {c_in} in {groups} \
                 groups",
                w_shape[1]
            )));
        }
        check_bias(inputs, c_out)?;
        let kernel = self.window.kernel_of(&w_shape[2..])?;
        let geometry = self.window.place(self.layout.spatial(x_shape), &kernel, false)?;
        Ok(ConvShape { batch: x_shape[0], c_in, c_out, groups, geometry })
    }

    fn is_fused(&self) -> bool {
        self.layout != Layout::Nchw
            || self.activation != Activation::None
            || self.residual != ResidualKind::None
    }
}

/// The attribute `group`.
pub(super) fn group(attributes: &Attributes) -> Result<usize, OpError> {
    let group = attributes.int_or("group", 1)?;
    usize::try_from(group)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| OpError::invalid(format!("attribute group is {group}, must be 1 or more")))
}

/// The attribute `layout` of operators of the domain `ai.sparoa`.
pub(super) fn layout(attributes: &Attributes) -> Result<Layout, OpError> {
    match attributes.string("layout")?.as_deref() {
        None | Some("NCHW") => Ok(Layout::Nchw),
        Some("NHWC") => Ok(Layout::Nhwc),
        Some(other) => {
            Err(OpError::invalid(format!("attribute layout is '{other}', must be NCHW or NHWC")))
        }
    }
}

/// What [`layout`] reads; nothing for NCHW.
pub(super) fn layout_attribute(layout: Layout) -> Option<(&'static str, AttributeValue)> {
    (layout == Layout::Nhwc).then(|| ("layout", "NHWC".into()))
}

/// Refuses another element type than `x`'s.
pub(super) fn same_dtype(x: &Operand, other: &Operand, name: &str) -> Result<(), OpError> {
    if x.ty.dtype == other.ty.dtype {
        return Ok(());
    }
    Err(OpError::invalid(format!(
        "input {name} has element type {}, the first input {}",
        other.ty.dtype, x.ty.dtype
    )))
}

/// Refuses a bias (input 2) that is not one value per output channel.
pub(super) fn check_bias(inputs: &[Option<Operand>], channels: usize) -> Result<(), OpError> {
    let Some(bias) = inputs.optional(2) else { return Ok(()) };
    same_dtype(inputs.required(0, "X")?, bias, "B")?;
    if bias.shape() != [channels] {
        return Err(OpError::invalid(format!(
            "the bias has shape {:?}, must have {channels} elements, one per output channel",
            bias.shape()
        )));
    }
    Ok(())
}

/// Refuses a residual that is not of the output's type, or that is missing.
pub(super) fn check_residual(
    inputs: &[Option<Operand>],
    output: &TensorType,
) -> Result<(), OpError> {
    match inputs.optional(RESIDUAL_INPUT) {
        Some(residual) if residual.ty != *output => Err(OpError::invalid(format!(
            "the residual is {}, must be as the output, {output}",
            residual.ty
        ))),
        _ => Ok(()),
    }
}

impl Op for Conv {
    fn op_type(&self) -> &'static str {
        "Conv"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let s = self.shape(inputs)?;
        let shape = self.layout.shape(s.batch, &s.geometry.output, s.c_out);
        let output = TensorType::new(inputs.required(0, "X")?.ty.dtype, shape);
        check_residual(inputs, &output)?;
        Ok(vec![output])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let taps: usize = x.input(1).shape()[1..].iter().product();
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(taps as u64)
    }

    fn class(&self, x: &Operands<'_>) -> KernelClass {
        self.shape(x.inputs)
            .map_or(KernelClass::Convolution, |s| KernelClass::of_conv(s.groups, s.c_in))
    }

    fn skips_zeros(&self, x: &Operands<'_>) -> bool {
        self.shape(x.inputs).is_ok_and(|s| s.groups == 1)
            && x.constant(1).is_some()
            && x.input(1).shape()[2..].iter().all(|taps| *taps == 1)
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let shape = self.shape(x.inputs)?;
        let Some(flat) = shape.geometry.two_dimensional() else {
            return Ok(volume::kernel(self.clone(), shape));
        };
        let params = shape.params(&flat);
        let bias = x.constant(2);
        let [h, w] = flat.input;
        let images = [shape.batch, h, w];
        // A bias computed at run time is packed with the weights at run time: rare.
        let packed = match x.constant(1) {
            Some(w) if bias.is_some() || x.get(2).is_none() => {
                let weight = w.as_slice().expect("the weight has the input's type, f32");
                let bias = bias.and_then(|b| b.as_slice());
                let how = (self.arithmetic, self.variant);
                let packed = PackedConv::new(how, params, images, weight, bias)?;
                Some(Arc::new(packed))
            }
            _ => None,
        };
        let scratch_of = packed.clone().unwrap_or_else(|| {
            let zeros = vec![0.0; x.input(1).ty.len()];
            Arc::new(PackedConv::dense(self.arithmetic, params, images, &zeros, None))
        });
        Ok(Box::new(ConvKernel {
            params,
            packed,
            scratch_of,
            batch: shape.batch,
            flat,
            op: self.clone(),
            has_residual: x.get(RESIDUAL_INPUT).is_some(),
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::conv(self, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = self.shape(x.inputs).ok()?;
        if shape.batch > 1 {
            return Some(0);
        }
        let channels = self.layout.channel_axis(x.output(0).rank());
        let by_channels = shape.groups == 1
            && shape.c_out > 1
            && x.constant(1).is_some()
            && (x.get(2).is_none() || x.constant(2).is_some());
        match self.layout {
            Layout::Nhwc => match shape.geometry.split_axis() {
                Some(axis) => Some(axis + 1),
                None => (by_channels && shape.geometry.output.iter().all(|&d| d == 1))
                    .then_some(channels),
            },
            Layout::Nchw => by_channels.then_some(channels),
        }
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let shape = self.shape(x.inputs).ok()?;
        let axis = self.split_axis(x)?;
        let (mut op, whole) = (self.clone(), PartInput::Whole);
        let of_output = PartInput::Range { axis, range: range.clone() };
        let mut inputs = if axis == 0 {
            vec![of_output.clone(), whole.clone(), whole]
        } else if axis == self.layout.channel_axis(x.output(0).rank()) {
            let slice = PartInput::Range { axis: 0, range };
            vec![whole, slice.clone(), slice]
        } else {
            let (window, rows) = shape.geometry.part(axis - 1, &range)?;
            op.window = window;
            vec![PartInput::Range { axis, range: rows }, whole.clone(), whole]
        };
        inputs.push(of_output);
        inputs.truncate(x.inputs.len());
        Some(Part { op: Arc::new(op), inputs })
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(Conv { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>)
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Conv { arithmetic, ..self.clone() }))
    }

    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Conv { variant, ..self.clone() }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.window.attributes();
        if self.group > 1 {
            list.push(("group", AttributeValue::Int(i64::try_from(self.group).unwrap_or(1))));
        }
        list.extend(layout_attribute(self.layout));
        list.extend(epilogue::attributes(self.activation, self.residual));
        list
    }

    fn domain(&self) -> &'static str {
        if self.is_fused() { "ai.sparoa" } else { "" }
    }
}

/// A convolution of one or two spatial dimensions.
struct ConvKernel {
    params: Conv2dParams,
    /// `None` when weight or bias is computed at run time.
    packed: Option<Arc<PackedConv>>,
    /// A convolution of the same shape, for its scratch size.
    scratch_of: Arc<PackedConv>,
    batch: usize,
    flat: Flat,
    op: Conv,
    has_residual: bool,
}

impl ConvKernel {
    /// Elements of the input and of the output.
    fn lens(&self) -> (usize, usize) {
        let len = |hw: [usize; 2], c: usize| self.batch * hw[0] * hw[1] * c;
        (len(self.flat.input, self.params.c_in), len(self.flat.output, self.params.c_out))
    }

    fn kernel_scratch(&self, threads: usize) -> usize {
        self.scratch_of.scratch_len(self.batch, self.flat.input, threads)
    }
}

impl CpuKernel for ConvKernel {
    fn method(&self) -> &'static str {
        self.scratch_of.method()
    }

    fn scratch_bytes(&self, threads: usize) -> usize {
        let own = Scratch::bytes::<f32>(self.kernel_scratch(threads));
        if self.op.layout == Layout::Nhwc {
            return own;
        }
        let (x, y) = self.lens();
        let outputs = if self.has_residual { 2 } else { 1 };
        own + Scratch::bytes::<f32>(x) + outputs * Scratch::bytes::<f32>(y)
    }

    fn weight_bytes(&self) -> usize {
        self.packed.as_ref().map_or(0, |p| p.bytes())
    }

    fn holds(&self, input: usize) -> bool {
        input == 1 && self.packed.is_some()
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let made;
        let conv = match &self.packed {
            Some(conv) => conv,
            None => {
                let bias = io.get(2).map(|b| b.slice::<f32>());
                let weight = io.input(1).slice();
                let [h, w] = self.flat.input;
                let images = [self.batch, h, w];
                made = PackedConv::dense(self.op.arithmetic, self.params, images, weight, bias);
                &made
            }
        };
        let x = io.input(0).slice::<f32>();
        let epilogue = epilogue::epilogue(self.op.activation, self.op.residual, io);
        let mut scratch = Scratch::new(io.scratch);
        let own = scratch.take::<f32>(self.kernel_scratch(pool.threads()));
        let y = io.outputs[0].slice_mut::<f32>();
        let [h, w] = self.flat.input;
        if self.op.layout == Layout::Nhwc {
            conv.run(self.batch, [h, w], x, &epilogue, y, own, pool);
            return Ok(());
        }
        let (x_len, y_len) = self.lens();
        let (xt, yt) = (scratch.take::<f32>(x_len), scratch.take::<f32>(y_len));
        let out_pixels = self.flat.output[0] * self.flat.output[1];
        let (c_in, c_out) = (self.params.c_in, self.params.c_out);
        swap(x, [self.batch, c_in, h * w], xt, pool);
        let mut transposed = |data: &[f32]| -> &[f32] {
            let to = scratch.take::<f32>(y_len);
            swap(data, [self.batch, c_out, out_pixels], to, pool);
            to
        };
        let residual = match epilogue.residual {
            Residual::None => Residual::None,
            Residual::BeforeActivation(r) => Residual::BeforeActivation(transposed(r)),
            Residual::AfterActivation(r) => Residual::AfterActivation(transposed(r)),
        };
        let epilogue = Epilogue { residual, ..epilogue };
        conv.run(self.batch, [h, w], xt, &epilogue, yt, own, pool);
        swap(yt, [self.batch, out_pixels, c_out], y, pool);
        Ok(())
    }
}

/// Swaps the last two of three dimensions.
pub(super) fn swap(from: &[f32], shape: [usize; 3], to: &mut [f32], pool: &Pool) {
    let to = bytemuck::cast_slice_mut(to);
    permute(bytemuck::cast_slice(from), 4, &shape, &[0, 2, 1], to, pool);
}

fn examples() -> Vec<Example> {
    vec![
        Example::new("3x3, stride 2, asymmetric pads, bias")
            .attribute("strides", [2, 2])
            .attribute("pads", [1, 0, 0, 2])
            .input(floats([2, 3, 7, 5], 1))
            .constant(floats([4, 3, 3, 3], 2))
            .constant(floats([4], 3)),
        Example::new("1x1")
            .attribute("kernel_shape", [1, 1])
            .input(floats([1, 5, 3, 4], 1))
            .constant(floats([7, 5, 1, 1], 2)),
        Example::new("depthwise, dilated")
            .attribute("group", 3i64)
            .attribute("dilations", [2, 1])
            .attribute("pads", [2, 1, 2, 1])
            .input(floats([1, 3, 6, 5], 1))
            .constant(floats([3, 1, 3, 3], 2))
            .constant(floats([3], 3)),
        Example::new("two groups, SAME_LOWER")
            .attribute("group", 2i64)
            .attribute("auto_pad", "SAME_LOWER")
            .attribute("strides", [2, 1])
            .input(floats([1, 4, 5, 5], 1))
            .constant(floats([6, 2, 2, 3], 2)),
        Example::new("one spatial dimension, weight at run time")
            .attribute("pads", [1, 1])
            .input(floats([2, 3, 9], 1))
            .input(floats([2, 3, 3], 2)),
        Example::new("three spatial dimensions")
            .attribute("pads", [1, 0, 1, 0, 0, 1])
            .attribute("strides", [1, 2, 1])
            .input(floats([1, 2, 3, 4, 5], 1))
            .constant(floats([3, 2, 2, 3, 2], 2))
            .constant(floats([3], 3)),
    ]
}

fn fused_examples() -> Vec<Example> {
    let base =
        |name| Example::new(name).attribute("layout", "NHWC").attribute("pads", [1, 1, 1, 1]);
    vec![
        base("residual before a ReLU")
            .attribute("activation", "Relu")
            .attribute("residual", "before_activation")
            .input(floats([1, 5, 6, 3], 1))
            .constant(floats([4, 3, 3, 3], 2))
            .constant(floats([4], 3))
            .input(floats([1, 5, 6, 4], 4)),
        base("depthwise, clipped, residual after it")
            .attribute("group", 4i64)
            .attribute("strides", [2, 2])
            .attribute("activation", "Clip")
            .attribute("activation_params", vec![0.0f32, 0.5])
            .attribute("residual", "after_activation")
            .input(floats([2, 6, 5, 4], 1))
            .constant(floats([4, 1, 3, 3], 2))
            .omitted()
            .input(floats([2, 3, 3, 4], 4)),
    ]
}
