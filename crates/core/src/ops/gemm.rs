//! Gemm as in ONNX, and Linear: a run-time tensor times a constant matrix with a fused epilogue.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{
    Arithmetic,
    activation::{Activation, Epilogue, Residual},
    gemm::BatchedGemm,
};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, KernelClass, Op,
    OpError, OpSpec, Operand, Operands, Part, PartInput, Scratch, Variant, axes,
    conv::{ResidualKind, check_bias, check_residual, same_dtype, swap},
    epilogue, floats, gpu, kernel_with,
    packed::PackedMatrix,
    packed_kernel,
};
use crate::tensor::{DType, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Gemm",
        domain: "",
        since: 1,
        inputs: (2, 3),
        outputs: (1, 1),
        parse: |a| {
            // Opset 6 and older say whether C broadcasts; it does where shapes call for it.
            a.ignore(&["broadcast"]);
            Ok(Arc::new(Gemm {
                alpha: a.float_or("alpha", 1.0)?,
                beta: a.float_or("beta", 1.0)?,
                trans_a: a.flag("transA", false)?,
                trans_b: a.flag("transB", false)?,
                ..Gemm::default()
            }))
        },
        examples: gemm_examples,
    },
    OpSpec {
        name: "Linear",
        domain: "ai.sparoa",
        since: 1,
        inputs: (2, 4),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Linear::parse(a)?)),
        examples: linear_examples,
    },
];

/// alpha A' B' + beta C, with A' and B' optionally transposed matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// A is stored k x m.
    pub trans_a: bool,
    /// B is stored n x k.
    pub trans_b: bool,
    /// How products are computed; not an ONNX attribute.
    pub arithmetic: Arithmetic,
    /// Which kernel computes it on the CPU.
    pub variant: Variant,
}

impl Default for Gemm {
    fn default() -> Gemm {
        let arithmetic = Arithmetic::default();
        Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: false,
            arithmetic,
            variant: Variant::Fastest,
        }
    }
}

impl Gemm {
    /// m, k and n.
    fn sizes(&self, inputs: &[Option<Operand>]) -> Result<[usize; 3], OpError> {
        let (a, b) = (inputs.required(0, "A")?, inputs.required(1, "B")?);
        same_dtype(a, b, "B")?;
        let (&[a0, a1], &[b0, b1]) = (a.shape(), b.shape()) else {
            return Err(OpError::invalid(format!(
                "A has shape {:?}, B {:?}: both must be matrices",
                a.shape(),
                b.shape()
            )));
        };
        let (m, k) = if self.trans_a { (a1, a0) } else { (a0, a1) };
        let (kb, n) = if self.trans_b { (b1, b0) } else { (b0, b1) };
        if k != kb {
            return Err(OpError::invalid(format!("A has {k} columns, B {kb} rows")));
        }
        if let Some(c) = inputs.optional(2) {
            same_dtype(a, c, "C")?;
            let shape = c.shape();
            let fits = |i: usize, size: usize| {
                shape.len().checked_sub(i).is_none_or(|at| shape[at] == 1 || shape[at] == size)
            };
            if shape.len() > 2
                || !(shape.is_empty() || fits(1, n))
                || !(shape.len() < 2 || fits(2, m))
            {
                return Err(OpError::invalid(format!(
                    "C has shape {shape:?}, which does not broadcast to [{m}, {n}]"
                )));
            }
        }
        Ok([m, k, n])
    }
}

/// Row and column strides with which a matrix of `shape` broadcasts to m x n.
fn broadcast_strides(shape: &[usize]) -> (usize, usize) {
    let stride = |size: usize, stride: usize| if size == 1 { 0 } else { stride };
    match *shape {
        [] => (0, 0),
        [n] => (0, stride(n, 1)),
        [m, n] => (stride(m, n), stride(n, 1)),
        _ => unreachable!("C has at most two dimensions"),
    }
}

impl Op for Gemm {
    fn op_type(&self) -> &'static str {
        "Gemm"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let [m, _, n] = self.sizes(inputs)?;
        Ok(vec![TensorType::new(inputs.required(0, "A")?.ty.dtype, [m, n])])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let k = x.input(0).shape()[usize::from(!self.trans_a)];
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(k as u64)
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn skips_zeros(&self, x: &Operands<'_>) -> bool {
        x.constant(1).is_some()
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let [m, k, n] = self.sizes(x.inputs)?;
        match x.output(0).dtype {
            DType::F32 => {}
            DType::F64 => return Ok(self.double(m, k, n, x)),
            other => return Err(OpError::dtype(other, &[DType::F32, DType::F64])),
        }
        let Gemm { alpha, beta, trans_a, trans_b, arithmetic, variant } = *self;
        let packed = x.constant(1).map(|b| {
            let b = b.as_slice::<f32>().expect("B has A's type, f32");
            PackedMatrix::new((arithmetic, variant), [m, k, n], b, trans_b, alpha)
        });
        let packed = packed.transpose()?;
        let batched = BatchedGemm {
            batch: [1, 1],
            m,
            n,
            k,
            a_batch_strides: [0, 0],
            a_row_stride: k,
            b_batch_strides: [0, 0],
            b_row_stride: if trans_b { k } else { n },
            b_is_transposed: trans_b,
            alpha,
        };
        let c_strides = x.get(2).map(|c| broadcast_strides(c.shape()));
        let (at_len, c_len) =
            (if trans_a { m * k } else { 0 }, if c_strides.is_some() { m * n } else { 0 });
        let packed = packed.map(Arc::new);
        let of_product = packed.clone();
        let scratch_bytes = move |threads| {
            let own = match &of_product {
                Some(packed) => packed.scratch_bytes(m, threads),
                None => Scratch::bytes::<f32>(batched.scratch_len(threads)),
            };
            Scratch::bytes::<f32>(at_len) + Scratch::bytes::<f32>(c_len) + own
        };
        let weight_bytes = packed.as_ref().map_or(0, |p| p.bytes());
        let method = packed.as_ref().map_or("", |p| p.method());
        let held: &[usize] = if packed.is_some() { &[1] } else { &[] };
        let kernel = kernel_with(weight_bytes, scratch_bytes, move |io, pool| {
            let mut a = io.input(0).slice::<f32>();
            let (b, c) = (io.input(1), io.get(2));
            let mut scratch = Scratch::new(io.scratch);
            let y = io.outputs[0].slice_mut::<f32>();
            if y.is_empty() {
                return Ok(());
            }
            if trans_a {
                let at = scratch.take::<f32>(at_len);
                swap(a, [1, k, m], at, pool);
                a = at;
            }
            let full = scratch.take::<f32>(c_len);
            let mut epilogue = Epilogue::NONE;
            if let (Some(c), Some((rows, columns))) = (c, c_strides) {
                let c = c.slice::<f32>();
                for (i, row) in full.chunks_exact_mut(n).enumerate() {
                    for (j, v) in row.iter_mut().enumerate() {
                        *v = beta * c[i * rows + j * columns];
                    }
                }
                epilogue.residual = Residual::BeforeActivation(full);
            }
            match &packed {
                Some(packed) => packed.run([m, k], a, None, &epilogue, y, &mut scratch, pool),
                None => {
                    let own = scratch.take::<f32>(batched.scratch_len(pool.threads()));
                    batched.run(a, b.slice(), None, &epilogue, y, own, pool);
                }
            }
            Ok(())
        });
        Ok(packed_kernel(method, held, kernel))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::gemm(self, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        (!self.trans_a && x.output(0).shape[0] > 1).then_some(0)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        self.split_axis(x)?;
        let rows = PartInput::Range { axis: 0, range };
        let mut inputs = vec![rows.clone(), PartInput::Whole];
        if let Some(c) = x.get(2) {
            let by_rows = c.shape().len() == 2 && c.shape()[0] > 1;
            inputs.push(if by_rows { rows } else { PartInput::Whole });
        }
        inputs.resize(x.inputs.len(), PartInput::Whole);
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Gemm { arithmetic, ..self.clone() }))
    }

    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Gemm { variant, ..self.clone() }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![
            ("alpha", self.alpha.into()),
            ("beta", self.beta.into()),
            ("transA", self.trans_a.into()),
            ("transB", self.trans_b.into()),
        ]
    }
}

impl Gemm {
    /// A plain loop in double precision.
    fn double(&self, m: usize, k: usize, n: usize, x: &Operands<'_>) -> Box<dyn CpuKernel> {
        let (alpha, beta) = (f64::from(self.alpha), f64::from(self.beta));
        let a_strides = if self.trans_a { (1, m) } else { (k, 1) };
        let b_strides = if self.trans_b { (1, k) } else { (n, 1) };
        let c_strides = x.get(2).map(|c| broadcast_strides(c.shape()));
        super::kernel(move |io, pool| {
            let (a, b) = (io.input(0).slice::<f64>(), io.input(1).slice::<f64>());
            let c = io.get(2).map(|c| c.slice::<f64>());
            pool.run_parts(io.outputs[0].slice_mut::<f64>(), n.max(1), &|i, row| {
                for (j, y) in row.iter_mut().enumerate() {
                    let dot: f64 = (0..k)
                        .map(|p| {
                            a[i * a_strides.0 + p * a_strides.1]
                                * b[p * b_strides.0 + j * b_strides.1]
                        })
                        .sum();
                    *y = alpha * dot;
                    if let (Some(c), Some((rows, columns))) = (c, c_strides) {
                        *y += beta * c[i * rows + j * columns];
                    }
                }
            });
            Ok(())
        })
    }
}

/// y = activation(x w + bias), over the last dimension of x, with a residual. Inputs: x (.., k),
/// w (k x n, or n x k), optional bias (n), optional residual (as the output).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Linear {
    /// w is stored n x k.
    pub trans_b: bool,
    /// Applied to the result.
    pub activation: Activation,
    /// Whether input 3 is added, and where.
    pub residual: ResidualKind,
    /// How products are computed; not an ONNX attribute.
    pub arithmetic: Arithmetic,
    /// Which kernel computes it on the CPU.
    pub variant: Variant,
}

impl Linear {
    fn parse(attributes: &Attributes) -> Result<Linear, OpError> {
        let (activation, residual) = epilogue::parse(attributes)?;
        let trans_b = attributes.flag("transB", false)?;
        Ok(Linear { trans_b, activation, residual, ..Linear::default() })
    }

    /// m (the product of all leading dimensions of x), k and n.
    ///
    /// # Errors
    /// When the inputs contradict each other.
    pub fn sizes(&self, inputs: &[Option<Operand>]) -> Result<[usize; 3], OpError> {
        let (x, w) = (inputs.required(0, "x")?, inputs.required(1, "w")?);
        same_dtype(x, w, "w")?;
        let (Some((&k, leading)), &[w0, w1]) = (x.shape().split_last(), w.shape()) else {
            return Err(OpError::invalid(format!(
                "x has shape {:?} and w {:?}: x needs a dimension, w two",
                x.shape(),
                w.shape()
            )));
        };
        let (kw, n) = if self.trans_b { (w1, w0) } else { (w0, w1) };
        if k != kw {
            return Err(OpError::invalid(format!("x has {k} columns, w {kw} rows")));
        }
        check_bias(inputs, n)?;
        Ok([axes::product(leading)?, k, n])
    }
}

impl Op for Linear {
    fn op_type(&self) -> &'static str {
        "Linear"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let [_, _, n] = self.sizes(inputs)?;
        let mut output = inputs.required(0, "x")?.ty.clone();
        if let Some(last) = output.shape.last_mut() {
            *last = n;
        }
        check_residual(inputs, &output)?;
        Ok(vec![output])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let k = x.input(0).shape().last().copied().unwrap_or(0);
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(k as u64)
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn skips_zeros(&self, x: &Operands<'_>) -> bool {
        x.constant(1).is_some()
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let [m, k, n] = self.sizes(x.inputs)?;
        let Linear { trans_b, activation, residual, arithmetic, variant } = *self;
        if let Some(w) = x.constant(1) {
            let w = w.as_slice::<f32>().expect("w has x's type, f32");
            let packed = PackedMatrix::new((arithmetic, variant), [m, k, n], w, trans_b, 1.0)?;
            let packed = Arc::new(packed);
            let of_product = packed.clone();
            let method = packed.method();
            let kernel = kernel_with(
                packed.bytes(),
                move |threads| of_product.scratch_bytes(m, threads),
                move |io, pool| {
                    let (x, bias) = (io.input(0).slice(), io.get(2).map(|b| b.slice()));
                    let epilogue = epilogue::epilogue(activation, residual, io);
                    let mut scratch = Scratch::new(io.scratch);
                    let y = io.outputs[0].slice_mut();
                    packed.run([m, k], x, bias, &epilogue, y, &mut scratch, pool);
                    Ok(())
                },
            );
            return Ok(packed_kernel(method, [1], kernel));
        }
        let batched = BatchedGemm {
            batch: [1, 1],
            m,
            n,
            k,
            a_batch_strides: [0, 0],
            a_row_stride: k,
            b_batch_strides: [0, 0],
            b_row_stride: if trans_b { k } else { n },
            b_is_transposed: trans_b,
            alpha: 1.0,
        };
        let scratch = move |threads| Scratch::bytes::<f32>(batched.scratch_len(threads));
        Ok(kernel_with(0, scratch, move |io, pool| {
            let (x, w) = (io.input(0).slice(), io.input(1).slice());
            let bias = io.get(2).map(|b| b.slice());
            let epilogue = epilogue::epilogue(activation, residual, io);
            let own = Scratch::new(io.scratch).take(batched.scratch_len(pool.threads()));
            let y = io.outputs[0].slice_mut();
            if !y.is_empty() {
                batched.run(x, w, bias, &epilogue, y, own, pool);
            }
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::linear(self, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = &x.output(0).shape;
        let axis = axes::first_long(shape)?;
        let columns = axis + 1 == shape.len();
        (!columns || x.constant(1).is_some()).then_some(axis)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let of_output = PartInput::Range { axis, range: range.clone() };
        let mut inputs = if axis + 1 == x.output(0).rank() {
            let w = PartInput::Range { axis: usize::from(!self.trans_b), range: range.clone() };
            vec![PartInput::Whole, w, PartInput::Range { axis: 0, range }]
        } else {
            vec![of_output.clone(), PartInput::Whole, PartInput::Whole]
        };
        inputs.push(of_output);
        inputs.truncate(x.inputs.len());
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Linear { arithmetic, ..self.clone() }))
    }

    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Linear { variant, ..self.clone() }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("transB", self.trans_b.into())];
        list.extend(epilogue::attributes(self.activation, self.residual));
        list
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}

fn gemm_examples() -> Vec<Example> {
    vec![
        Example::new("transposed weight, bias")
            .attribute("transB", true)
            .input(floats([3, 5], 1))
            .constant(floats([4, 5], 2))
            .constant(floats([4], 3)),
        Example::new("scaled, both transposed, column bias")
            .attribute("transA", true)
            .attribute("transB", true)
            .attribute("alpha", 0.5f32)
            .attribute("beta", 2.0f32)
            .input(floats([5, 3], 1))
            .constant(floats([4, 5], 2))
            .input(floats([3, 1], 3)),
        Example::new("all at run time, no C").input(floats([2, 3], 1)).input(floats([3, 7], 2)),
        Example::new("scalar C")
            .input(floats([2, 3], 1))
            .input(floats([3, 2], 2))
            .constant(floats([], 3)),
    ]
}

fn linear_examples() -> Vec<Example> {
    vec![
        Example::new("bias, GELU, residual after it")
            .attribute("activation", "Gelu")
            .attribute("residual", "after_activation")
            .input(floats([2, 3, 5], 1))
            .constant(floats([5, 9], 2))
            .constant(floats([9], 3))
            .input(floats([2, 3, 9], 4)),
        Example::new("one row, transposed weight, residual before the activation")
            .attribute("transB", true)
            .attribute("activation", "Relu")
            .attribute("residual", "before_activation")
            .input(floats([1, 17], 1))
            .constant(floats([6, 17], 2))
            .omitted()
            .input(floats([1, 6], 4)),
        Example::new("run-time matrix").input(floats([4, 3], 1)).input(floats([3, 5], 2)),
    ]
}
