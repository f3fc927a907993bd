//! Pools over windows and batch normalisation, NHWC and (global pools, normalisation) NCHW.

use super::{
    Binding, GpuCaps, GpuKernel,
    conv::place,
    shader::{Shader, fold},
};
use crate::{
    ops::{
        Operands,
        batch_norm::BatchNorm,
        pooling::{PoolKind, Pooling},
        window::Layout,
    },
    tensor::DType,
};

/// MaxPool and AveragePool over one or two spatial dimensions.
pub(in crate::ops) fn pool(op: &Pooling, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
    let output = x.output(0);
    if output.dtype != DType::F32 || x.outputs.len() > 1 || output.is_empty() {
        return None;
    }
    let flat = op.geometry(x.inputs).ok()?.two_dimensional()?;
    let shape = x.input(0).shape();
    // Channels-first is channels-last with one channel and a larger batch.
    let (batch, channels) = match op.layout {
        Layout::Nhwc => (shape[0], *shape.last()?),
        Layout::Nchw => (shape[0] * shape[1], 1),
    };
    let vector = caps.aligned && channels.is_multiple_of(4);
    let (element, unit) = if vector { ("vec4<f32>", 4) } else { ("f32", 1) };
    let channels = channels / unit;
    let (start, step, finish) = match op.kind {
        PoolKind::Max => ("-3.4028234e38", "max(sum, v)", "sum"),
        PoolKind::Average { count_include_pad: true } => ("0.0", "sum + v", "sum / padded_taps"),
        PoolKind::Average { count_include_pad: false } => ("0.0", "sum + v", "sum / taps"),
        PoolKind::Lp { .. } => return None,
    };
    let count = batch * flat.output[0] * flat.output[1] * channels;
    let threads = if caps.software { 32 } else { 64 };
    let (grid, groups_x) = fold(count.div_ceil(threads), caps.max_grid);
    let shader = place(Shader::new("pool"), &flat)
        .sizes([("channels", channels), ("count", count), ("groups_x", groups_x)])
        .sizes([("pad_h_end", flat.pads[2]), ("pad_w_end", flat.pads[3])])
        .buffer("x", Binding::Input(0), element)
        .buffer("y", Binding::Output(0), element)
        .define("START", start)
        .define("STEP", step)
        .define("FINISH", finish)
        .define("THREADS", threads.to_string())
        .define("TYPE", element);
    let dispatch = shader.build(include_str!("pool.wgsl"), grid)?;
    Some(GpuKernel { dispatches: vec![dispatch], ..GpuKernel::default() })
}

/// BatchNormalization by given statistics.
pub(in crate::ops) fn batch_norm(
    op: &BatchNorm,
    [batch, channels, pixels]: [usize; 3],
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    let output = x.output(0);
    if output.dtype != DType::F32 || op.training || output.is_empty() {
        return None;
    }
    let run = match op.layout {
        Layout::Nchw => pixels,
        Layout::Nhwc => 1,
    };
    let count = batch * channels * pixels;
    let (grid, groups_x) = fold(count.div_ceil(64), caps.max_grid);
    let dispatch = Shader::new("batch_norm")
        .buffer("x", Binding::Input(0), "f32")
        .buffer("y", Binding::Output(0), "f32")
        .buffer("scale", Binding::Input(1), "f32")
        .buffer("shift", Binding::Input(2), "f32")
        .buffer("mean", Binding::Input(3), "f32")
        .buffer("variance", Binding::Input(4), "f32")
        .sizes([("count", count), ("groups_x", groups_x), ("channels", channels), ("run", run)])
        .float("epsilon", op.epsilon)
        .build(include_str!("batch_norm.wgsl"), grid)?;
    Some(GpuKernel { dispatches: vec![dispatch], ..GpuKernel::default() })
}
