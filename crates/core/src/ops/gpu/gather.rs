//! Gather along an axis with constant indices.

use super::{
    Binding, GpuCaps, GpuKernel,
    copy::words,
    packing,
    shader::{Shader, fold},
};
use crate::{ops::Operands, tensor::DType};

/// Gather along `axis` of input 0 by input 1. Indices out of range are left to the CPU kernel,
/// which reports them.
pub(in crate::ops) fn gather(x: &Operands<'_>, caps: &GpuCaps, axis: usize) -> Option<GpuKernel> {
    let data = x.input(0);
    if !matches!(data.ty.dtype, DType::F32 | DType::I32 | DType::U32) || x.output(0).is_empty() {
        return None;
    }
    let indices = x.constant(1)?;
    let dim = data.shape()[axis];
    let size = i64::try_from(dim).ok()?;
    if !indices.to_i64s()?.iter().all(|i| (-size..size).contains(i)) {
        return None;
    }
    let inner: usize = data.shape()[axis + 1..].iter().product();
    let vector = caps.aligned && inner.is_multiple_of(4);
    let (element, inner) = (words(vector, caps), if vector { inner / 4 } else { inner });
    let count = x.output(0).len() / if vector { 4 } else { 1 };
    let (grid, groups_x) = fold(count.div_ceil(64), caps.max_grid);
    let dispatch = Shader::new("gather")
        .buffer("x", Binding::Input(0), element)
        .buffer("y", Binding::Output(0), element)
        .buffer("indices", Binding::Constant(0), "i32")
        .sizes([
            ("count", count),
            ("groups_x", groups_x),
            ("dim", dim),
            ("inner", inner),
            ("indices", indices.ty().len()),
        ])
        .build(include_str!("gather.wgsl"), grid)?;
    Some(GpuKernel {
        dispatches: vec![dispatch],
        constants: vec![packing::indices(indices, dim)],
        ..GpuKernel::default()
    })
}
