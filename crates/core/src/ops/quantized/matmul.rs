//! MatMulInteger and QLinearMatMul.

use std::sync::Arc;

use sparoa_kernels::{
    int8::{Bytes, IntGemm},
    quantized::QuantizedGemm,
};

use super::{
    Bounds, bounds, bounds_attribute, check_bytes, check_scale, check_zero,
    requantize::{self, Requantize},
    scale, zeros,
};
use crate::{
    ops::{
        AttributeValue, CpuKernel, Example, InputsExt, KernelClass, Op, OpError, OpSpec, Operand,
        Operands, Scratch, axes, kernel_with,
        matmul::{MatMul, MatMulShape},
        sample,
    },
    tensor::{DType, Tensor, TensorRef, TensorType},
};

pub(super) const MAT_MUL_INTEGER: OpSpec = OpSpec {
    name: "MatMulInteger",
    domain: "",
    since: 10,
    inputs: (2, 4),
    outputs: (1, 1),
    parse: |_| Ok(Arc::new(IntMatMul::default())),
    examples: || {
        vec![
            Example::new("zero points, one per column of b")
                .input(bytes(DType::U8, &[3, 5], 1))
                .constant(bytes(DType::I8, &[5, 2], 2))
                .constant(Tensor::scalar(7u8))
                .constant(Tensor::from_slice([2], &[1i8, -2])),
            Example::new("batches at run time, no zero points")
                .input(bytes(DType::I8, &[2, 3, 4], 1))
                .input(bytes(DType::I8, &[2, 4, 2], 2)),
        ]
    },
};

pub(super) const Q_LINEAR_MAT_MUL: OpSpec = OpSpec {
    name: "QLinearMatMul",
    inputs: (8, 8),
    parse: |_| Ok(Arc::new(IntMatMul { requantize: true, ..IntMatMul::default() })),
    examples: || {
        vec![
            Example::new("u8 times i8, a scale per column")
                .input(bytes(DType::U8, &[2, 3, 5], 1))
                .constant(Tensor::scalar(0.1f32))
                .constant(Tensor::scalar(7u8))
                .constant(bytes(DType::I8, &[5, 2], 2))
                .constant(scale(&[0.2, 0.1]))
                .constant(Tensor::from_slice([2], &[0i8, 1]))
                .constant(Tensor::scalar(0.5f32))
                .constant(Tensor::scalar(100u8)),
        ]
    },
    ..MAT_MUL_INTEGER
};

pub(super) const Q_LINEAR_MAT_MUL_FUSED: OpSpec = OpSpec {
    domain: "ai.sparoa",
    since: 1,
    inputs: (8, 9),
    parse: |a| {
        let (trans_b, bounds) = (a.flag("transB", false)?, bounds(a)?);
        Ok(Arc::new(IntMatMul { requantize: true, trans_b, bounds }))
    },
    examples: || {
        vec![
            Example::new("transposed, bias, bounds")
                .attribute("transB", true)
                .attribute("bounds", [100, 120])
                .input(bytes(DType::I8, &[3, 5], 1))
                .constant(Tensor::scalar(0.1f32))
                .constant(Tensor::scalar(7i8))
                .constant(bytes(DType::I8, &[2, 5], 2))
                .constant(scale(&[0.2, 0.1]))
                .constant(Tensor::from_slice([2], &[0i8, 1]))
                .constant(Tensor::scalar(0.5f32))
                .constant(Tensor::scalar(100u8))
                .constant(Tensor::from_slice([2], &[30i32, -40])),
        ]
    },
    ..Q_LINEAR_MAT_MUL
};

fn bytes(dtype: DType, shape: &[usize], seed: u32) -> Tensor {
    sample(TensorType::new(dtype, shape), seed)
}

/// A product of 8-bit matrices. Inputs: a, b, optional zero points of both, i32 output; or with
/// `requantize` each of a, b and the output followed by scale and zero point, an optional bias
/// (i32, fused operator only), 8-bit output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntMatMul {
    /// QLinearMatMul, not MatMulInteger.
    pub requantize: bool,
    /// b, of rank 2, has its columns as rows.
    pub trans_b: bool,
    /// Of the output, for an activation that clamps.
    pub bounds: Bounds,
}

impl IntMatMul {
    /// Indices of a's zero point, b, b's zero point.
    fn indices(&self) -> [usize; 3] {
        if self.requantize { [2, 3, 5] } else { [2, 1, 3] }
    }

    fn shape(&self, inputs: &[Option<Operand>]) -> Result<MatMulShape, OpError> {
        let [a_zero, b_at, b_zero] = self.indices();
        let (a, b) = (inputs.required(0, "A")?, inputs.required(b_at, "B")?);
        check_bytes(a, "A")?;
        check_bytes(b, "B")?;
        let shape = match (self.trans_b, b.shape()) {
            (false, b) => MatMul::default().shape(a.shape(), b)?,
            (true, &[n, k]) => MatMul::default().shape(a.shape(), &[k, n])?,
            (true, other) => {
                return Err(OpError::invalid(format!(
                    "attribute transB needs a matrix, B has shape {other:?}"
                )));
            }
        };
        check_zero(inputs.optional(b_zero), b, shape.n, "b_zero_point")?;
        if inputs.optional(a_zero).is_some_and(|z| z.ty.len() != 1) {
            return Err(OpError::unsupported(
                "a zero point per row of A (nearest: one zero point for A)",
            ));
        }
        check_zero(inputs.optional(a_zero), a, 1, "a_zero_point")?;
        if self.requantize {
            check_scale(inputs.required(1, "a_scale")?, 1, "a_scale")?;
            check_scale(inputs.required(4, "b_scale")?, shape.n, "b_scale")?;
            check_scale(inputs.required(6, "y_scale")?, 1, "y_scale")?;
            if let Some(bias) = inputs.optional(8)
                && bias.ty != TensorType::new(DType::I32, [shape.n])
            {
                return Err(OpError::invalid(format!(
                    "the bias is {}, must be i32[{}]",
                    bias.ty, shape.n
                )));
            }
        }
        Ok(shape)
    }
}

impl IntMatMul {
    /// The kernel for one b, with everything but a known beforehand.
    fn prepared(&self, s: &MatMulShape, x: &Operands<'_>) -> Option<Box<dyn CpuKernel>> {
        let bias = x.constant(8);
        let one_b = s.b_batch.iter().all(|&d| d == 1) && s.a_batch == s.batch;
        if !self.requantize || !one_b || bias.is_none() != x.get(8).is_none() {
            return None;
        }
        let rows = axes::product(&s.batch).ok()?.checked_mul(s.m)?;
        let (b, b_zero) = (x.constant(3)?, zeros(Some(x.constant(5)?.view())));
        let gemm = Arc::new(QuantizedGemm::new(
            [s.k, s.n],
            requantize::activations(x, 0, 2)?,
            piece(&b.view(), 0, s.k * s.n),
            self.trans_b,
            &b_zero,
            bias.and_then(|b| b.as_slice()),
            &requantize::constant(x, [1, 4, 6, 7], self.bounds)?,
        ));
        let scratch = Arc::clone(&gemm);
        Some(kernel_with(
            gemm.bytes(),
            move |threads| scratch.scratch_len(threads),
            move |io, pool| {
                gemm.run(rows, io.input(0).bytes, io.outputs[0].bytes, io.scratch, pool);
                Ok(())
            },
        ))
    }
}

/// The `part`-th piece of `len` bytes.
fn piece<'a>(tensor: &TensorRef<'a>, at: usize, len: usize) -> Bytes<'a> {
    match tensor.dtype {
        DType::I8 => Bytes::I8(&tensor.slice::<i8>()[at..at + len]),
        _ => Bytes::U8(&tensor.slice::<u8>()[at..at + len]),
    }
}

impl Op for IntMatMul {
    fn op_type(&self) -> &'static str {
        if self.requantize { "QLinearMatMul" } else { "MatMulInteger" }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let shape = self.shape(inputs)?;
        let dtype = if self.requantize {
            let zero = inputs.required(7, "y_zero_point")?;
            check_bytes(zero, "y_zero_point")?;
            check_zero(Some(zero), zero, 1, "y_zero_point")?;
            zero.ty.dtype
        } else {
            DType::I32
        };
        Ok(vec![TensorType::new(dtype, shape.output)])
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let k = self.shape(x.inputs).map_or(0, |s| s.k);
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(k as u64)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let trans_b = self.trans_b.then(|| ("transB", AttributeValue::Int(1)));
        trans_b.into_iter().chain(bounds_attribute(self.bounds)).collect()
    }

    fn domain(&self) -> &'static str {
        if self.trans_b || self.bounds.is_some() { "ai.sparoa" } else { "" }
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let s = self.shape(x.inputs)?;
        if let Some(kernel) = self.prepared(&s, x) {
            return Ok(kernel);
        }
        let (m, k, n) = (s.m, s.k, s.n);
        let [a_zero_at, b_at, b_zero_at] = self.indices();
        let one_b = s.b_batch.iter().all(|&d| d == 1);
        let zero_known = x.get(b_zero_at).is_none() || x.constant(b_zero_at).is_some();
        let trans_b = self.trans_b;
        let packed = match x.constant(b_at) {
            Some(b) if one_b && zero_known => {
                let zero = zeros(x.constant(b_zero_at).map(|z| z.view()));
                Some(IntGemm::new(k, n, piece(&b.view(), 0, k * n), trans_b, &zero))
            }
            _ => None,
        };
        let count = axes::product(&s.batch)?;
        // Where each product's matrices begin; with one b, all rows of a are one tall matrix.
        let (rows, pairs) = if one_b && s.a_batch == s.batch {
            (count * m, vec![(0, 0)])
        } else {
            (m, offsets(&s))
        };
        let (requantize, bounds) = (self.requantize, self.bounds);
        let sums_len = if requantize { rows * n } else { 0 };
        let weight_bytes = packed.as_ref().map_or(0, IntGemm::bytes);
        let scratch = Scratch::bytes::<i32>(sums_len);
        Ok(kernel_with(
            weight_bytes,
            move |_| scratch,
            move |io, pool| {
                let (a, b) = (io.input(0), io.input(b_at));
                let a_zero = zeros(io.get(a_zero_at))[0];
                let b_zero = io.get(b_zero_at);
                let scales = requantize.then(|| Requantize::new(io, [1, 4, 6, 7], bounds));
                if io.outputs[0].bytes.is_empty() {
                    return Ok(());
                }
                let bias = io.get(8).filter(|_| requantize).map(|b| b.slice::<i32>());
                let sums = Scratch::new(&mut *io.scratch).take::<i32>(sums_len);
                for (i, &(a_at, b_from)) in pairs.iter().enumerate() {
                    let made;
                    let gemm = match &packed {
                        Some(packed) => packed,
                        None => {
                            let b = piece(&b, b_from, k * n);
                            made = IntGemm::new(k, n, b, trans_b, &zeros(b_zero));
                            &made
                        }
                    };
                    let a = piece(&a, a_at, rows * k);
                    let to = i * rows * n;
                    let y = &mut io.outputs[0];
                    match &scales {
                        None => {
                            let y = &mut y.slice_mut::<i32>()[to..to + rows * n];
                            gemm.run(rows, a, k, a_zero, None, y, pool);
                        }
                        Some(scales) => {
                            gemm.run(rows, a, k, a_zero, bias, sums, pool);
                            scales.write(sums, n, 0, y, |row, c| to + row * n + c);
                        }
                    }
                }
                Ok(())
            },
        ))
    }
}

/// Where a's and b's matrix begins for every product, in order.
fn offsets(s: &MatMulShape) -> Vec<(usize, usize)> {
    let mut result = vec![(0, 0)];
    let (a, b) = (axes::strides(&s.a_batch), axes::strides(&s.b_batch));
    for (d, &count) in s.batch.iter().enumerate() {
        let step = |dims: &[usize], strides: &[usize], matrix: usize| {
            if dims[d] == 1 { 0 } else { strides[d] * matrix }
        };
        let (a, b) = (step(&s.a_batch, &a, s.m * s.k), step(&s.b_batch, &b, s.k * s.n));
        result = result
            .into_iter()
            .flat_map(|(x, y)| (0..count).map(move |i| (x + i * a, y + i * b)))
            .collect();
    }
    result
}
