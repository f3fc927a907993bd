//! Linear, Gemm and MatMul.

use super::{
    GpuCaps, GpuKernel,
    activation::Epilogue,
    packing::{self, Weight},
    tile::{Right, Tile, matrix_rows},
};
use crate::{
    ops::{
        Operands,
        epilogue::ResidualKind,
        gemm::{Gemm, Linear},
        matmul::MatMul,
    },
    tensor::DType,
};
use sparoa_kernels::activation::Activation;

/// Linear with a constant weight and bias.
pub(in crate::ops) fn linear(op: &Linear, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
    let [m, k, n] = op.sizes(x.inputs).ok()?;
    let epilogue = Epilogue::new(op.activation, op.residual, x);
    product("linear", [m, k, n], op.trans_b, epilogue, x, caps)
}

/// Gemm where it is a Linear: constant B, constant bias per column, nothing scaled.
pub(in crate::ops) fn gemm(op: &Gemm, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
    let plain = op.alpha == 1.0 && op.beta == 1.0 && !op.trans_a;
    let k = *x.input(0).shape().last()?;
    let &[m, n] = x.output(0).shape.as_slice() else { return None };
    let bias_fits = x.get(2).is_none_or(|c| c.shape() == [n]);
    if !plain || !bias_fits {
        return None;
    }
    let epilogue = Epilogue::new(Activation::None, ResidualKind::None, x);
    product("gemm", [m, k, n], op.trans_b, epilogue, x, caps)
}

fn product(
    label: &'static str,
    [m, k, n]: [usize; 3],
    transposed: bool,
    epilogue: Epilogue,
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    if x.output(0).dtype != DType::F32 || m * n * k == 0 {
        return None;
    }
    let weight = Weight::matrix(x.constant(1)?, transposed);
    let bias = match x.get(2) {
        Some(_) => Some(packing::bias(x.constant(2)?, 1)),
        None => None,
    };
    let tile = Tile {
        label,
        m,
        n,
        batch: 1,
        right: Right::Constant(weight),
        y_strides: [n, 0],
        bias,
        images: None,
        epilogue,
    };
    tile.kernel(&matrix_rows(k, 0), caps)
}

/// MatMul of matrices that are stored as they are multiplied; operands have the product's batch
/// or one matrix.
pub(in crate::ops) fn matmul(op: &MatMul, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
    if x.output(0).dtype != DType::F32 || op.trans_a || op.trans_b || op.alpha != 1.0 {
        return None;
    }
    let shape = op.shape(x.input(0).shape(), x.input(1).shape()).ok()?;
    let (mut m, k, n) = (shape.m, shape.k, shape.n);
    let batch: usize = shape.batch.iter().product();
    if batch * m * n * k == 0 {
        return None;
    }
    let stride = |dims: &[usize], matrix: usize| match dims.iter().product::<usize>() {
        1 => Some(0),
        count if count == batch => Some(matrix),
        _ => None,
    };
    let (a_stride, b_stride) = (stride(&shape.a_batch, m * k)?, stride(&shape.b_batch, k * n)?);
    let mut products = batch;
    if b_stride == 0 && (a_stride > 0 || batch == 1) {
        // One right side for all: one tall product.
        (m, products) = (m * batch, 1);
    }
    let right = match x.constant(1) {
        Some(weight) if b_stride == 0 && weight.shape().len() >= 2 => {
            Right::Constant(Weight::matrix(weight, false))
        }
        _ => Right::Input { stride: b_stride },
    };
    let tile = Tile {
        label: "matmul",
        m,
        n,
        batch: products,
        right,
        y_strides: [n, m * n],
        bias: None,
        images: None,
        epilogue: Epilogue::new(Activation::None, ResidualKind::None, x),
    };
    tile.kernel(&matrix_rows(k, a_stride), caps)
}
