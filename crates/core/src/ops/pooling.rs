//! Pools: maximum, mean and p-norm over sliding windows or over all pixels.

mod global;
mod windows;

use std::{ops::Range, sync::Arc};

use sparoa_kernels::pooling::{Nhwc, Pool2dParams, avg_pool2d, max_pool2d};

pub use global::GlobalPooling;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput,
    conv::{layout, layout_attribute},
    floats, gpu, kernel, sample,
    window::{Flat, Geometry, Layout, Window},
};
use crate::tensor::{DType, TensorType};

const MAX: OpSpec = OpSpec {
    name: "MaxPool",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 2),
    parse: |a| Ok(Arc::new(Pooling::parse(a, PoolKind::Max)?)),
    examples: max_examples,
};
const AVERAGE: OpSpec = OpSpec {
    name: "AveragePool",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| {
        let count_include_pad = a.flag("count_include_pad", false)?;
        Ok(Arc::new(Pooling::parse(a, PoolKind::Average { count_include_pad })?))
    },
    examples: average_examples,
};
const LP: OpSpec = OpSpec {
    name: "LpPool",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(Pooling::parse(a, PoolKind::Lp { p: norm_order(a)? })?)),
    examples: lp_examples,
};

pub(super) const SPECS: &[OpSpec] = &[
    MAX,
    AVERAGE,
    LP,
    OpSpec { domain: "ai.sparoa", examples: || last(max_examples), ..MAX },
    OpSpec { domain: "ai.sparoa", examples: || last(average_examples), ..AVERAGE },
    OpSpec { domain: "ai.sparoa", examples: || last(lp_examples), ..LP },
    global::MAX,
    global::AVERAGE,
    global::LP,
    OpSpec { domain: "ai.sparoa", examples: || last(global::examples), ..global::MAX },
    OpSpec { domain: "ai.sparoa", examples: || last(global::examples), ..global::AVERAGE },
    OpSpec { domain: "ai.sparoa", examples: || last(global::examples), ..global::LP },
];

/// The channels-last form of examples whose input is channels-first: one per example.
fn last(examples: fn() -> Vec<Example>) -> Vec<Example> {
    let nhwc = |e: Example| e.attribute("layout", "NHWC");
    examples().into_iter().filter(|e| e.outputs == 1).take(2).map(nhwc).collect()
}

/// What a pool makes of the values in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// The largest; padding never wins.
    Max,
    /// The mean.
    Average {
        /// Padding counts as zeros.
        count_include_pad: bool,
    },
    /// The p-norm.
    Lp {
        /// Order of the norm.
        p: u32,
    },
}

/// A pool over sliding windows. Input: x. Outputs: y, and for a maximum optionally the flat
/// indices (i64) of where in x each one was.
#[derive(Clone, Debug, PartialEq)]
pub struct Pooling {
    /// What is computed.
    pub kind: PoolKind,
    /// Kernel, strides, dilations, padding. The kernel is not empty.
    pub window: Window,
    /// Output sizes are rounded up.
    pub ceil: bool,
    /// Order of the dimensions.
    pub layout: Layout,
    /// Indices count the last two dimensions in column-major order.
    pub column_major: bool,
    /// 2 if the indices are wanted.
    pub outputs: usize,
}

/// The attribute `p`.
fn norm_order(attributes: &Attributes) -> Result<u32, OpError> {
    let p = attributes.int_or("p", 2)?;
    u32::try_from(p)
        .ok()
        .filter(|&p| p > 0)
        .ok_or_else(|| OpError::invalid(format!("attribute p is {p}, must be 1 or more")))
}

impl Pooling {
    /// A pool without padding or dilation that rounds down.
    pub fn new(kind: PoolKind, window: Window) -> Pooling {
        Pooling { kind, window, ceil: false, layout: Layout::Nchw, column_major: false, outputs: 1 }
    }

    fn parse(attributes: &Attributes, kind: PoolKind) -> Result<Pooling, OpError> {
        let window = Window::parse(attributes)?;
        if window.kernel.is_empty() {
            return Err(OpError::invalid("attribute kernel_shape is missing"));
        }
        let column_major =
            matches!(kind, PoolKind::Max) && attributes.flag("storage_order", false)?;
        Ok(Pooling {
            ceil: attributes.flag("ceil_mode", false)?,
            layout: layout(attributes)?,
            column_major,
            outputs: attributes.outputs.max(1),
            ..Pooling::new(kind, window)
        })
    }

    /// The window on the input.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn geometry(&self, inputs: &[Option<Operand>]) -> Result<Geometry, OpError> {
        let shape = inputs.required(0, "X")?.shape();
        if shape.len() < 3 {
            return Err(OpError::invalid(format!(
                "the input has shape {shape:?}, a pool needs batch, channels and a spatial \
                 dimension"
            )));
        }
        let taps = self.window.kernel.iter().try_fold(1usize, |n, &k| n.checked_mul(k));
        if taps.is_none_or(|n| i32::try_from(n).is_err()) {
            return Err(OpError::invalid(format!(
                "attribute kernel_shape {:?} is too large",
                self.window.kernel
            )));
        }
        self.window.place(self.layout.spatial(shape), &self.window.kernel, self.ceil)
    }
}

impl Op for Pooling {
    fn op_type(&self) -> &'static str {
        match self.kind {
            PoolKind::Max => "MaxPool",
            PoolKind::Average { .. } => "AveragePool",
            PoolKind::Lp { .. } => "LpPool",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let g = self.geometry(inputs)?;
        let x = inputs.required(0, "X")?;
        let channels = x.shape()[self.layout.channel_axis(x.shape().len())];
        let shape = self.layout.shape(x.shape()[0], &g.output, channels);
        let mut types = vec![TensorType::new(x.ty.dtype, shape.clone())];
        if self.outputs > 1 {
            types.push(TensorType::new(DType::I64, shape));
        }
        Ok(types)
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let taps = self.window.kernel.iter().fold(1u64, |n, &k| n.saturating_mul(k as u64));
        taps.saturating_mul(x.output(0).len() as u64)
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let g = self.geometry(x.inputs)?;
        let shape = x.input(0).shape();
        let channels = shape[self.layout.channel_axis(shape.len())];
        let planar = matches!(self.kind, PoolKind::Max | PoolKind::Average { .. })
            && x.output(0).dtype == DType::F32
            && x.outputs.len() == 1;
        match g.two_dimensional() {
            Some(flat) if planar => Ok(self.planar(&flat, shape[0], channels)),
            _ => windows::kernel(self, g, channels, x),
        }
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::pool(self, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = x.input(0).shape();
        if self.outputs > 1 {
            None
        } else if shape[0] > 1 {
            Some(0)
        } else {
            match self.layout {
                Layout::Nchw => (shape[1] > 1).then_some(1),
                Layout::Nhwc => Some(self.geometry(x.inputs).ok()?.split_axis()? + 1),
            }
        }
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let mut op = self.clone();
        let mut input = PartInput::Range { axis, range: range.clone() };
        if axis > 0 && self.layout == Layout::Nhwc {
            let (window, rows) = self.geometry(x.inputs).ok()?.part(axis - 1, &range)?;
            op.window = window;
            input = PartInput::Range { axis, range: rows };
        }
        Some(Part { op: Arc::new(op), inputs: vec![input] })
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        // Indices are positions in the channels-first input.
        (self.layout == Layout::Nchw && self.outputs == 1)
            .then(|| Arc::new(Pooling { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.window.attributes();
        if self.ceil {
            list.push(("ceil_mode", 1i64.into()));
        }
        if self.column_major {
            list.push(("storage_order", 1i64.into()));
        }
        match self.kind {
            PoolKind::Average { count_include_pad: true } => {
                list.push(("count_include_pad", 1i64.into()));
            }
            PoolKind::Lp { p } => list.push(("p", i64::from(p).into())),
            _ => {}
        }
        list.extend(layout_attribute(self.layout));
        list
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nhwc { "ai.sparoa" } else { "" }
    }
}

impl Pooling {
    /// One or two spatial dimensions of f32.
    fn planar(&self, flat: &Flat, batch: usize, channels: usize) -> Box<dyn CpuKernel> {
        let params = Pool2dParams {
            kernel: flat.kernel,
            stride: flat.strides,
            dilation: flat.dilations,
            pads: flat.pads,
        };
        let [h, w] = flat.input;
        // Channels-first is channels-last with a channel and a larger batch.
        let shape = match self.layout {
            Layout::Nchw => Nhwc { n: batch * channels, h, w, c: 1 },
            Layout::Nhwc => Nhwc { n: batch, h, w, c: channels },
        };
        let (out, kind) = (flat.output, self.kind);
        kernel(move |io, pool| {
            let x = io.input(0).slice();
            let y = io.outputs[0].slice_mut();
            if y.is_empty() {
                return Ok(());
            }
            match kind {
                PoolKind::Average { count_include_pad } => {
                    avg_pool2d(&params, shape, out, count_include_pad, x, y, pool);
                }
                _ => max_pool2d(&params, shape, out, x, y, pool),
            }
            Ok(())
        })
    }
}

fn max_examples() -> Vec<Example> {
    vec![
        Example::new("3x3, stride 2, padded")
            .attribute("kernel_shape", [3, 3])
            .attribute("strides", [2, 2])
            .attribute("pads", [1, 1, 1, 1])
            .input(floats([2, 3, 7, 6], 1)),
        Example::new("rounded up, dilated")
            .attribute("kernel_shape", [2, 2])
            .attribute("strides", [2, 3])
            .attribute("dilations", [2, 1])
            .attribute("ceil_mode", 1i64)
            .input(floats([1, 6, 6, 5], 1)),
        Example::new("one spatial dimension, SAME_UPPER")
            .attribute("kernel_shape", [4])
            .attribute("strides", [3])
            .attribute("auto_pad", "SAME_UPPER")
            .input(floats([1, 2, 11], 1)),
        Example::new("indices, column-major")
            .attribute("kernel_shape", [2, 2])
            .attribute("storage_order", 1i64)
            .input(floats([1, 2, 4, 5], 1))
            .outputs(2),
        Example::new("bytes")
            .attribute("kernel_shape", [2, 2])
            .attribute("pads", [0, 1, 0, 1])
            .input(sample(TensorType::new(DType::U8, [1, 2, 4, 4]), 1)),
        Example::new("three spatial dimensions")
            .attribute("kernel_shape", [2, 2, 2])
            .input(floats([1, 2, 3, 4, 3], 1)),
    ]
}

fn average_examples() -> Vec<Example> {
    vec![
        Example::new("padding not counted")
            .attribute("kernel_shape", [3, 3])
            .attribute("strides", [2, 2])
            .attribute("pads", [1, 1, 1, 1])
            .input(floats([1, 3, 7, 6], 1)),
        Example::new("padding counted, rounded up")
            .attribute("kernel_shape", [3, 2])
            .attribute("strides", [2, 2])
            .attribute("pads", [1, 0, 1, 0])
            .attribute("ceil_mode", 1i64)
            .attribute("count_include_pad", 1i64)
            .input(floats([2, 3, 6, 5], 1)),
        Example::new("three spatial dimensions, padding counted")
            .attribute("kernel_shape", [2, 2, 3])
            .attribute("pads", [1, 0, 1, 0, 0, 1])
            .attribute("count_include_pad", 1i64)
            .input(floats([1, 2, 3, 4, 5], 1)),
    ]
}

fn lp_examples() -> Vec<Example> {
    vec![
        Example::new("2-norm")
            .attribute("kernel_shape", [2, 3])
            .attribute("pads", [1, 0, 0, 1])
            .input(floats([1, 2, 4, 5], 1)),
        Example::new("3-norm, stride 2")
            .attribute("kernel_shape", [2, 2])
            .attribute("strides", [2, 2])
            .attribute("p", 3i64)
            .input(floats([1, 2, 4, 5], 1)),
    ]
}
