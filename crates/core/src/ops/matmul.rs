//! MatMul: the product of two tensors of matrices, numpy's rules; with `com.microsoft`'s
//! FusedMatMul, which transposes and scales on the way.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{Arithmetic, activation::Epilogue, gemm::BatchedGemm, permute::permute};

use super::{
    AttributeValue, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, KernelClass, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput, Scratch, Variant, axes,
    conv::same_dtype,
    floats, gpu, kernel, kernel_with,
    number::{Number, for_dtype},
    packed::PackedMatrix,
    packed_kernel, sample,
};
use crate::tensor::{DType, TensorType};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "MatMul",
        domain: "",
        since: 1,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(MatMul::default())),
        examples,
    },
    OpSpec {
        name: "FusedMatMul",
        domain: "com.microsoft",
        since: 1,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| {
            if a.flag("transBatchA", false)? || a.flag("transBatchB", false)? {
                return Err(OpError::unsupported(
                    "attributes transBatchA and transBatchB (nearest: transA and transB)",
                ));
            }
            Ok(Arc::new(MatMul {
                trans_a: a.flag("transA", false)?,
                trans_b: a.flag("transB", false)?,
                alpha: a.float_or("alpha", 1.0)?,
                ..MatMul::default()
            }))
        },
        examples: fused_examples,
    },
];

/// alpha a b over the last two dimensions, the others broadcast. A one-dimensional operand is a
/// row on the left, a column on the right.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// The matrices of a are stored k x m.
    pub trans_a: bool,
    /// The matrices of b are stored n x k.
    pub trans_b: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// How products are computed; not an ONNX attribute.
    pub arithmetic: Arithmetic,
    /// Which kernel computes it on the CPU.
    pub variant: Variant,
}

impl Default for MatMul {
    fn default() -> MatMul {
        let arithmetic = Arithmetic::default();
        let variant = Variant::default();
        MatMul { trans_a: false, trans_b: false, alpha: 1.0, arithmetic, variant }
    }
}

/// The sizes of one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatMulShape {
    /// Broadcast batch dimensions.
    pub batch: Vec<usize>,
    /// Batch dimensions of a, as many as of the product.
    pub a_batch: Vec<usize>,
    /// Batch dimensions of b, as many as of the product.
    pub b_batch: Vec<usize>,
    /// Rows.
    pub m: usize,
    /// Inner size.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// The output's dimensions.
    pub output: Vec<usize>,
}

impl MatMul {
    /// Whether it is ONNX's MatMul: not transposed, not scaled.
    fn is_plain(&self) -> bool {
        !self.trans_a && !self.trans_b && self.alpha == 1.0
    }

    /// Sizes for these operand shapes.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn shape(&self, a: &[usize], b: &[usize]) -> Result<MatMulShape, OpError> {
        if a.is_empty() || b.is_empty() {
            return Err(OpError::invalid("a scalar has no matrix product (use Mul)"));
        }
        let (a_batch, a_last) = a.split_at(a.len().saturating_sub(2));
        let (b_batch, b_last) = b.split_at(b.len().saturating_sub(2));
        let (m, k) = match *a_last {
            [k] => (1, k),
            [k, m] if self.trans_a => (m, k),
            [m, k] => (m, k),
            _ => unreachable!("one or two dimensions were split off"),
        };
        let (kb, n) = match *b_last {
            [k] => (k, 1),
            [n, k] if self.trans_b => (k, n),
            [k, n] => (k, n),
            _ => unreachable!("one or two dimensions were split off"),
        };
        if k != kb {
            return Err(OpError::invalid(format!(
                "shapes {a:?} and {b:?} do not multiply: {k} columns, {kb} rows"
            )));
        }
        let batch = axes::broadcast([a_batch, b_batch])?;
        let widen = |dims: &[usize]| {
            let mut full = vec![1; batch.len() - dims.len()];
            full.extend(dims);
            full
        };
        let mut output = batch.clone();
        if a.len() > 1 {
            output.push(m);
        }
        if b.len() > 1 {
            output.push(n);
        }
        Ok(MatMulShape { a_batch: widen(a_batch), b_batch: widen(b_batch), batch, m, k, n, output })
    }

    fn shape_of(&self, inputs: &[Option<Operand>]) -> Result<MatMulShape, OpError> {
        self.shape(inputs.required(0, "A")?.shape(), inputs.required(1, "B")?.shape())
    }

    fn f32_kernel(&self, s: MatMulShape, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let MatMulShape { m, k, n, .. } = s;
        // With one constant matrix on the right, all rows of a are one tall matrix.
        if let Some(b) = x.constant(1)
            && s.b_batch.iter().all(|&d| d == 1)
            && (!self.trans_a || x.input(0).shape().len() == 1)
        {
            let b = b.as_slice::<f32>().expect("B has A's type, f32");
            let transposed = self.trans_b && x.input(1).shape().len() > 1;
            let rows = axes::product(&s.batch)? * m;
            let sizes = [rows, k, n];
            let how = (self.arithmetic, self.variant);
            let b = PackedMatrix::new(how, sizes, b, transposed, self.alpha)?;
            let b = Arc::new(b);
            let of_product = b.clone();
            let method = b.method();
            let kernel = kernel_with(
                b.bytes(),
                move |threads| of_product.scratch_bytes(rows, threads),
                move |io, pool| {
                    let a = io.input(0).slice();
                    let mut scratch = Scratch::new(io.scratch);
                    let y = io.outputs[0].slice_mut();
                    b.run([rows, k], a, None, &Epilogue::NONE, y, &mut scratch, pool);
                    Ok(())
                },
            );
            return Ok(packed_kernel(method, [1], kernel));
        }
        let trans_a = self.trans_a && x.input(0).shape().len() > 1;
        let trans_b = self.trans_b && x.input(1).shape().len() > 1;
        let Batches { inner, outer } = batches(&s);
        let [(n0, a0, b0), (n1, a1, b1)] = inner;
        let product = BatchedGemm {
            batch: [n0, n1],
            m,
            n,
            k,
            a_batch_strides: [a0, a1],
            a_row_stride: k,
            b_batch_strides: [b0, b1],
            b_row_stride: if trans_b { k } else { n },
            b_is_transposed: trans_b,
            alpha: self.alpha,
        };
        let a_count = axes::product(&s.a_batch)?;
        let at_len = if trans_a { a_count * m * k } else { 0 };
        let scratch = move |threads| {
            Scratch::bytes::<f32>(at_len) + Scratch::bytes::<f32>(product.scratch_len(threads))
        };
        Ok(kernel_with(0, scratch, move |io, pool| {
            let mut a = io.input(0).slice::<f32>();
            let b = io.input(1).slice::<f32>();
            let mut scratch = Scratch::new(io.scratch);
            let y = io.outputs[0].slice_mut::<f32>();
            if y.is_empty() {
                return Ok(());
            }
            if trans_a {
                let at = scratch.take::<f32>(at_len);
                let bytes = bytemuck::cast_slice_mut(&mut *at);
                permute(bytemuck::cast_slice(a), 4, &[a_count, k, m], &[0, 2, 1], bytes, pool);
                a = at;
            }
            let own = scratch.take::<f32>(product.scratch_len(pool.threads()));
            let each = y.len() / outer.len();
            for (&(a_at, b_at), y) in outer.iter().zip(y.chunks_exact_mut(each)) {
                product.run(&a[a_at..], &b[b_at..], None, &Epilogue::NONE, y, own, pool);
            }
            Ok(())
        }))
    }
}

/// Batch dimensions as a kernel takes them.
struct Batches {
    /// The two innermost groups of dimensions: count, stride of a, stride of b, in elements.
    inner: [(usize, usize, usize); 2],
    /// Where a and b begin for each combination of the outer dimensions.
    outer: Vec<(usize, usize)>,
}

/// Merges neighbouring batch dimensions that both operands step through evenly.
fn batches(s: &MatMulShape) -> Batches {
    let steps = |dims: &[usize], matrix: usize| -> Vec<usize> {
        let strides = axes::strides(dims);
        dims.iter().zip(strides).map(|(&d, t)| if d == 1 { 0 } else { t * matrix }).collect()
    };
    let (a, b) = (steps(&s.a_batch, s.m * s.k), steps(&s.b_batch, s.k * s.n));
    let mut groups: Vec<(usize, usize, usize)> = Vec::new();
    for ((&count, &a), &b) in s.batch.iter().zip(&a).zip(&b) {
        if count == 1 {
            continue;
        }
        match groups.last_mut() {
            Some(last) if last.1 == a * count && last.2 == b * count => {
                *last = (last.0 * count, a, b);
            }
            _ => groups.push((count, a, b)),
        }
    }
    let mut pop = || groups.pop().unwrap_or((1, 0, 0));
    let (last, first) = (pop(), pop());
    let mut outer = vec![(0, 0)];
    for (count, a, b) in groups {
        outer = outer
            .iter()
            .flat_map(|&(x, y)| (0..count).map(move |i| (x + i * a, y + i * b)))
            .collect();
    }
    Batches { inner: [first, last], outer }
}

/// A plain loop for the types that no model's hot path has.
fn plain<T: Number>(
    op: &MatMul,
    s: MatMulShape,
    a_rank: usize,
    b_rank: usize,
) -> Box<dyn CpuKernel> {
    let (m, k, n) = (s.m, s.k, s.n);
    let a_strides = if op.trans_a && a_rank > 1 { (1, m) } else { (k, 1) };
    let b_strides = if op.trans_b && b_rank > 1 { (1, k) } else { (n, 1) };
    let Batches { inner: [(n0, a0, b0), (n1, a1, b1)], outer } = batches(&s);
    let alpha = (op.alpha != 1.0).then_some(op.alpha);
    kernel(move |io, pool| {
        let (a, b) = (io.input(0).slice::<T>(), io.input(1).slice::<T>());
        pool.run_parts(io.outputs[0].slice_mut::<T>(), n.max(1), &|row, y| {
            let (batch, i) = (row / m, row % m);
            let (from, x0, x1) = (batch / (n0 * n1), batch / n1 % n0, batch % n1);
            let a = &a[outer[from].0 + x0 * a0 + x1 * a1 + i * a_strides.0..];
            let b = &b[outer[from].1 + x0 * b0 + x1 * b1..];
            for (j, y) in y.iter_mut().enumerate() {
                let dot = (0..k).fold(T::ZERO, |acc, p| {
                    acc.plus(a[p * a_strides.1].times(b[p * b_strides.0 + j * b_strides.1]))
                });
                *y = alpha.map_or(dot, |alpha| T::from_f64(dot.to_f64() * f64::from(alpha)));
            }
        });
        Ok(())
    })
}

impl Op for MatMul {
    fn op_type(&self) -> &'static str {
        if self.is_plain() { "MatMul" } else { "FusedMatMul" }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let (a, b) = (inputs.required(0, "A")?, inputs.required(1, "B")?);
        same_dtype(a, b, "B")?;
        Ok(vec![TensorType::new(a.ty.dtype, self.shape(a.shape(), b.shape())?.output)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let k = self.shape_of(x.inputs).map_or(0, |s| s.k);
        (x.output(0).len() as u64).saturating_mul(2).saturating_mul(k as u64)
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn skips_zeros(&self, x: &Operands<'_>) -> bool {
        x.constant(1).is_some()
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let shape = self.shape_of(x.inputs)?;
        if x.output(0).dtype == DType::F32 {
            return self.f32_kernel(shape, x);
        }
        let ranks = (x.input(0).shape().len(), x.input(1).shape().len());
        Ok(for_dtype!(x.output(0).dtype, T in [F32, F64, I32, I64, U32, U64] => {
            plain::<T>(self, shape, ranks.0, ranks.1)
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        gpu::matmul(self, x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let s = self.shape_of(x.inputs).ok()?;
        let axis = axes::first_long(&s.output)?;
        let in_batch = axis < s.batch.len();
        let by_rows = axis == s.batch.len() && x.input(0).shape().len() > 1;
        let possible = if in_batch {
            true
        } else if by_rows {
            !self.trans_a
        } else {
            // Columns: contiguous in n x k, and sliceable in a constant.
            x.input(1).shape().len() > 1 && (x.constant(1).is_some() || self.trans_b)
        };
        possible.then_some(axis)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let s = self.shape_of(x.inputs).ok()?;
        let (a_rank, b_rank) = (x.input(0).shape().len(), x.input(1).shape().len());
        let rank = s.batch.len();
        // Along a batch dimension, an operand is sliced if it has the dimension.
        let batch_of = |dims: &[usize], own_rank: usize| {
            let own_batch = own_rank.saturating_sub(2);
            match (axis + own_batch).checked_sub(rank) {
                Some(own) if dims[axis] > 1 => PartInput::Range { axis: own, range: range.clone() },
                _ => PartInput::Whole,
            }
        };
        let inputs = if axis < rank {
            vec![batch_of(&s.a_batch, a_rank), batch_of(&s.b_batch, b_rank)]
        } else if axis == rank && a_rank > 1 {
            vec![PartInput::Range { axis: a_rank - 2, range }, PartInput::Whole]
        } else {
            let column_axis = if self.trans_b { b_rank - 2 } else { b_rank - 1 };
            vec![PartInput::Whole, PartInput::Range { axis: column_axis, range }]
        };
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        Some(Arc::new(MatMul { arithmetic, ..self.clone() }))
    }

    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        Some(Arc::new(MatMul { variant, ..self.clone() }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        if self.is_plain() {
            return Vec::new();
        }
        vec![
            ("transA", self.trans_a.into()),
            ("transB", self.trans_b.into()),
            ("alpha", self.alpha.into()),
        ]
    }

    fn domain(&self) -> &'static str {
        if self.is_plain() { "" } else { "com.microsoft" }
    }
}

fn examples() -> Vec<Example> {
    let of = |dtype, shape: &[usize], seed| sample(TensorType::new(dtype, shape), seed);
    vec![
        Example::new("matrices").input(floats([3, 5], 1)).input(floats([5, 4], 2)),
        Example::new("constant matrix on the right")
            .input(floats([2, 3, 5], 1))
            .constant(floats([5, 6], 2)),
        Example::new("batches broadcast both ways")
            .input(floats([2, 1, 3, 1, 2, 5], 1))
            .input(floats([4, 3, 2, 5, 3], 2)),
        Example::new("one row, constant columns")
            .input(floats([1, 5], 1))
            .constant(floats([5, 8], 2)),
        Example::new("vector on the left").input(floats([5], 1)).input(floats([2, 5, 3], 2)),
        Example::new("vector on the right").input(floats([2, 3, 5], 1)).input(floats([5], 2)),
        Example::new("dot product").input(floats([5], 1)).input(floats([5], 2)),
        Example::new("nothing to add up").input(floats([2, 0], 1)).input(floats([0, 3], 2)),
        Example::new("integers").input(of(DType::I32, &[2, 3, 4], 1)).input(of(
            DType::I32,
            &[2, 4, 2],
            2,
        )),
    ]
}

fn fused_examples() -> Vec<Example> {
    vec![
        Example::new("both transposed, scaled")
            .attribute("transA", true)
            .attribute("transB", true)
            .attribute("alpha", 0.5f32)
            .input(floats([2, 5, 3], 1))
            .input(floats([1, 4, 5], 2)),
        Example::new("b transposed, one row")
            .attribute("transB", true)
            .input(floats([1, 5], 1))
            .input(floats([7, 5], 2)),
    ]
}
