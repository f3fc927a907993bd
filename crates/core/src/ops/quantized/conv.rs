//! ConvInteger and QLinearConv: any number of spatial dimensions, as products of gathered rows.

use std::sync::Arc;

use sparoa_kernels::{
    conv::Conv2dParams,
    int8::{Bytes, IntGemm},
    quantized::QuantizedConv2d,
};

use super::{
    Bounds, bounds, bounds_attribute, check_bytes, check_scale, check_zero,
    requantize::{self, Requantize},
    scale, zeros,
};
use crate::{
    ops::{
        AttributeValue, Attributes, CpuKernel, Example, InputsExt, KernelClass, KernelIo, Op,
        OpError, OpSpec, Operand, Operands, Scratch,
        conv::{ConvShape, group, layout, layout_attribute},
        kernel_with,
        quantize::bytes_of,
        sample,
        window::{Layout, Strides, Window},
    },
    tensor::{DType, Tensor, TensorRef, TensorType},
};
use sparoa_kernels::pool::Pool;

pub(super) const CONV_INTEGER: OpSpec = OpSpec {
    name: "ConvInteger",
    domain: "",
    since: 10,
    inputs: (2, 4),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(IntConv::parse(a, false)?)),
    examples: || {
        vec![
            Example::new("zero points, padded")
                .attribute("pads", [1, 1, 1, 1])
                .input(bytes(DType::U8, &[1, 2, 4, 5], 1))
                .constant(bytes(DType::U8, &[3, 2, 3, 3], 2))
                .constant(Tensor::scalar(3u8))
                .constant(Tensor::from_slice([3], &[1u8, 2, 3])),
        ]
    },
};

pub(super) const Q_LINEAR_CONV: OpSpec = OpSpec {
    name: "QLinearConv",
    inputs: (8, 9),
    parse: |a| Ok(Arc::new(IntConv::parse(a, true)?)),
    examples: || {
        vec![parameters(
            Example::new("two groups, a scale per channel, bias")
                .attribute("group", 2i64)
                .attribute("strides", [2, 1])
                .attribute("pads", [1, 0, 0, 1])
                .input(bytes(DType::U8, &[2, 4, 5, 4], 1)),
        )]
    },
    ..CONV_INTEGER
};

pub(super) const CONV_INTEGER_LAST: OpSpec = OpSpec {
    domain: "ai.sparoa",
    since: 1,
    examples: || {
        vec![
            Example::new("channels last")
                .attribute("layout", "NHWC")
                .input(bytes(DType::U8, &[1, 4, 5, 2], 1))
                .constant(bytes(DType::I8, &[3, 2, 3, 3], 2)),
        ]
    },
    ..CONV_INTEGER
};

pub(super) const Q_LINEAR_CONV_FUSED: OpSpec = OpSpec {
    domain: "ai.sparoa",
    since: 1,
    parse: |a| Ok(Arc::new(IntConv { bounds: bounds(a)?, ..IntConv::parse(a, true)? })),
    examples: || {
        vec![parameters(
            Example::new("channels last")
                .attribute("layout", "NHWC")
                .attribute("group", 2i64)
                .attribute("bounds", [50, 90])
                .input(bytes(DType::U8, &[1, 5, 4, 4], 1)),
        )]
    },
    ..Q_LINEAR_CONV
};

fn bytes(dtype: DType, shape: &[usize], seed: u32) -> Tensor {
    sample(TensorType::new(dtype, shape), seed)
}

/// Weight and scales of a convolution of four channels in two groups to four.
fn parameters(example: Example) -> Example {
    example
        .constant(Tensor::scalar(0.05f32))
        .constant(Tensor::scalar(8u8))
        .constant(bytes(DType::I8, &[4, 2, 3, 2], 2))
        .constant(scale(&[0.1, 0.2, 0.05, 0.3]))
        .constant(Tensor::scalar(0i8))
        .constant(Tensor::scalar(0.3f32))
        .constant(Tensor::scalar(50u8))
        .constant(Tensor::from_slice([4], &[10i32, -20, 30, 0]))
}

/// A convolution of 8-bit integers. Inputs: x, w, optional zero points of both, i32 output; or
/// with `requantize` each of x, w and the output followed by scale and zero point, an optional
/// bias (i32), 8-bit output.
#[derive(Clone, Debug, PartialEq)]
pub struct IntConv {
    /// Kernel, strides, dilations, padding.
    pub window: Window,
    /// Number of groups into which the channels are divided.
    pub group: usize,
    /// Order of the dimensions of x and the output.
    pub layout: Layout,
    /// QLinearConv, not ConvInteger.
    pub requantize: bool,
    /// Of the output, for an activation that clamps.
    pub bounds: Bounds,
}

/// Rows gathered at a time.
const ROWS: usize = 256;

impl IntConv {
    fn parse(attributes: &Attributes, requantize: bool) -> Result<IntConv, OpError> {
        Ok(IntConv {
            window: Window::parse(attributes)?,
            group: group(attributes)?,
            layout: layout(attributes)?,
            requantize,
            bounds: None,
        })
    }

    /// Indices of x's zero point, w, w's zero point.
    fn indices(&self) -> [usize; 3] {
        if self.requantize { [2, 3, 5] } else { [2, 1, 3] }
    }

    fn shape(&self, inputs: &[Option<Operand>]) -> Result<ConvShape, OpError> {
        let [x_zero, w_at, w_zero] = self.indices();
        let (x, w) = (inputs.required(0, "x")?, inputs.required(w_at, "w")?);
        check_bytes(x, "x")?;
        check_bytes(w, "w")?;
        let rank = x.shape().len();
        if rank < 3 || w.shape().len() != rank {
            return Err(OpError::invalid(format!(
                "the input has rank {rank}, the weight {}: both need the same rank, 3 or more",
                w.shape().len()
            )));
        }
        let (c_in, c_out) = (x.shape()[self.layout.channel_axis(rank)], w.shape()[0]);
        let groups = self.group;
        let fits = c_in > 0 && c_out > 0 && c_in % groups == 0 && c_out % groups == 0;
        if !fits || w.shape()[1] != c_in / groups {
            return Err(OpError::invalid(format!(
                "{c_in} input channels in {groups} groups (attribute group) do not fit a weight \
                 of shape {:?}",
                w.shape()
            )));
        }
        check_zero(inputs.optional(x_zero), x, 1, "x_zero_point")?;
        check_zero(inputs.optional(w_zero), w, c_out, "w_zero_point")?;
        if self.requantize {
            check_scale(inputs.required(1, "x_scale")?, 1, "x_scale")?;
            check_scale(inputs.required(4, "w_scale")?, c_out, "w_scale")?;
            check_scale(inputs.required(6, "y_scale")?, 1, "y_scale")?;
            if let Some(bias) = inputs.optional(8)
                && bias.ty != TensorType::new(DType::I32, [c_out])
            {
                return Err(OpError::invalid(format!(
                    "the bias is {}, must be i32[{c_out}]",
                    bias.ty
                )));
            }
        }
        let kernel = self.window.kernel_of(&w.shape()[2..])?;
        let geometry = self.window.place(self.layout.spatial(x.shape()), &kernel, false)?;
        Ok(ConvShape { batch: x.shape()[0], c_in, c_out, groups, geometry })
    }
}

impl IntConv {
    /// The kernel for channels-last images with everything but x known beforehand.
    fn prepared(&self, s: &ConvShape, x: &Operands<'_>) -> Option<Box<dyn CpuKernel>> {
        let flat = s.geometry.two_dimensional()?;
        let bias = x.constant(8);
        if !self.requantize || self.layout != Layout::Nhwc || bias.is_none() != x.get(8).is_none() {
            return None;
        }
        let params = Conv2dParams {
            c_in: s.c_in,
            c_out: s.c_out,
            groups: s.groups,
            kernel: flat.kernel,
            stride: flat.strides,
            dilation: flat.dilations,
            pads: flat.pads,
        };
        let (w, w_zero) = (x.constant(3)?, zeros(Some(x.constant(5)?.view())));
        let conv = Arc::new(QuantizedConv2d::new(
            params,
            requantize::activations(x, 0, 2)?,
            bytes_of(&w.view()),
            &w_zero,
            bias.and_then(|b| b.as_slice()),
            &requantize::constant(x, [1, 4, 6, 7], self.bounds)?,
        ));
        let (scratch, size) = (Arc::clone(&conv), [s.batch, flat.input[0], flat.input[1]]);
        Some(kernel_with(
            conv.bytes(),
            move |threads| scratch.scratch_len(size[0], size[1], size[2], threads),
            move |io, pool| {
                let x = io.input(0).bytes;
                conv.run(size, x, io.outputs[0].bytes, io.scratch, pool);
                Ok(())
            },
        ))
    }
}

impl Op for IntConv {
    fn op_type(&self) -> &'static str {
        if self.requantize { "QLinearConv" } else { "ConvInteger" }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let s = self.shape(inputs)?;
        let dtype = if self.requantize {
            let zero = inputs.required(7, "y_zero_point")?;
            check_bytes(zero, "y_zero_point")?;
            check_zero(Some(zero), zero, 1, "y_zero_point")?;
            zero.ty.dtype
        } else {
            DType::I32
        };
        let shape = self.layout.shape(s.batch, &s.geometry.output, s.c_out);
        Ok(vec![TensorType::new(dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let w = x.input(self.indices()[1]).shape();
        let taps: usize = w[1..].iter().product();
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(taps as u64)
    }

    fn class(&self, x: &Operands<'_>) -> KernelClass {
        self.shape(x.inputs)
            .map_or(KernelClass::Convolution, |s| KernelClass::of_conv(s.groups, s.c_in))
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let shape = self.shape(x.inputs)?;
        if let Some(kernel) = self.prepared(&shape, x) {
            return Ok(kernel);
        }
        let [_, w_at, w_zero] = self.indices();
        let zero_known = x.get(w_zero).is_none() || x.constant(w_zero).is_some();
        let packed = match x.constant(w_at) {
            Some(w) if zero_known => {
                Some(pack(&shape, &w.view(), &zeros(x.constant(w_zero).map(|z| z.view()))))
            }
            _ => None,
        };
        let g = &shape.geometry;
        Ok(Box::new(IntConvKernel {
            x: self.layout.strides(&g.input, shape.c_in),
            y: self.layout.strides(&g.output, shape.c_out),
            pixels: g.output.iter().product(),
            taps: g.kernel.iter().product(),
            op: self.clone(),
            shape,
            packed,
        }))
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(IntConv { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.window.attributes();
        if self.group > 1 {
            list.push(("group", AttributeValue::Int(i64::try_from(self.group).unwrap_or(1))));
        }
        list.extend(layout_attribute(self.layout));
        list.extend(bounds_attribute(self.bounds));
        list
    }

    fn domain(&self) -> &'static str {
        let fused = self.layout == Layout::Nhwc || self.bounds.is_some();
        if fused { "ai.sparoa" } else { "" }
    }
}

/// The weights of each group, output channels as columns.
fn pack(s: &ConvShape, w: &TensorRef<'_>, zero: &[i32]) -> Vec<IntGemm> {
    let n = s.c_out / s.groups;
    let k = w.shape[1..].iter().product::<usize>();
    (0..s.groups)
        .map(|g| {
            let at = g * n * k..(g + 1) * n * k;
            let part = match w.dtype {
                DType::I8 => Bytes::I8(&w.slice::<i8>()[at]),
                _ => Bytes::U8(&w.slice::<u8>()[at]),
            };
            let zero = if zero.len() == 1 { zero } else { &zero[g * n..(g + 1) * n] };
            IntGemm::new(k, n, part, true, zero)
        })
        .collect()
}

struct IntConvKernel {
    op: IntConv,
    shape: ConvShape,
    x: Strides,
    y: Strides,
    /// Output pixels of one image.
    pixels: usize,
    /// Taps of the kernel.
    taps: usize,
    /// `None` when weights are computed at run time.
    packed: Option<Vec<IntGemm>>,
}

impl IntConvKernel {
    /// Elements of the gathered rows and of their sums.
    fn lens(&self) -> (usize, usize) {
        let s = &self.shape;
        let rows = ROWS.min(self.pixels);
        (rows * (s.c_in / s.groups) * self.taps, rows * (s.c_out / s.groups))
    }

    /// Gathers what output pixels from `first` on read of one image's group.
    fn gather(&self, x: &[u8], base: usize, first: usize, zero: u8, rows: &mut [u8], pool: &Pool) {
        let g = &self.shape.geometry;
        let channels = self.shape.c_in / self.shape.groups;
        pool.run_parts(rows, channels * self.taps, &|i, row| {
            row.fill(zero);
            // The pixel as an index along each spatial axis.
            let pixel = first + i;
            let output = |d: usize| {
                let inner: usize = g.output[d + 1..].iter().product();
                pixel / inner % g.output[d]
            };
            for (tap, from) in g.taps(output, &self.x.spatial) {
                for c in 0..channels {
                    row[c * self.taps + tap] = x[base + from + c * self.x.channel];
                }
            }
        });
    }
}

impl CpuKernel for IntConvKernel {
    fn scratch_bytes(&self, _threads: usize) -> usize {
        let (rows, sums) = self.lens();
        Scratch::bytes::<u8>(rows) + Scratch::bytes::<i32>(sums)
    }

    fn weight_bytes(&self) -> usize {
        self.packed.iter().flatten().map(IntGemm::bytes).sum()
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let [x_zero, w_at, w_zero] = self.op.indices();
        let made;
        let packed = match &self.packed {
            Some(packed) => packed,
            None => {
                made = pack(&self.shape, &io.input(w_at), &zeros(io.get(w_zero)));
                &made
            }
        };
        let s = &self.shape;
        let (n, k) = (s.c_out / s.groups, s.c_in / s.groups * self.taps);
        let x = io.input(0);
        let zero = zeros(io.get(x_zero))[0];
        let zero_byte = io.get(x_zero).map_or(0, |z| z.bytes[0]);
        let scales = self.op.requantize.then(|| Requantize::new(io, [1, 4, 6, 7], self.op.bounds));
        let bias = io.get(8).map(|b| b.slice::<i32>());
        let (rows_len, sums_len) = self.lens();
        let mut scratch = Scratch::new(&mut *io.scratch);
        let (rows, sums) = (scratch.take::<u8>(rows_len), scratch.take::<i32>(sums_len));
        for (image, g) in (0..s.batch).flat_map(|b| (0..s.groups).map(move |g| (b, g))) {
            let base = image * self.x.batch + g * (s.c_in / s.groups) * self.x.channel;
            let bias = bias.map(|b| &b[g * n..(g + 1) * n]);
            for first in (0..self.pixels).step_by(ROWS) {
                let m = ROWS.min(self.pixels - first);
                let (rows, sums) = (&mut rows[..m * k], &mut sums[..m * n]);
                self.gather(x.bytes, base, first, zero_byte, rows, pool);
                let a = match x.dtype {
                    DType::I8 => Bytes::I8(bytemuck::cast_slice(rows)),
                    _ => Bytes::U8(rows),
                };
                packed[g].run(m, a, k, zero, bias, sums, pool);
                let to = |row: usize, c: usize| {
                    let pixel = match self.op.layout {
                        Layout::Nchw => first + row,
                        Layout::Nhwc => (first + row) * s.c_out,
                    };
                    image * self.y.batch + (g * n + c) * self.y.channel + pixel
                };
                let y = &mut io.outputs[0];
                match &scales {
                    Some(scales) => scales.write(sums, n, g * n, y, to),
                    None => {
                        let y = y.slice_mut::<i32>();
                        for (i, &sum) in sums.iter().enumerate() {
                            y[to(i / n, i % n)] = sum;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
