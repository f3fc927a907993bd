//! Conv on NHWC tensors: windows as rows of a matrix product; depthwise directly.

use std::fmt::Write;

use sparoa_kernels::Arithmetic;

use super::{
    Binding, Dispatch, GpuCaps, GpuKernel, Images,
    activation::Epilogue,
    packing::{self, Weight},
    shader::{Shader, fold},
    tile::{Left, Right, Rows, Tile, matrix_rows},
};
use crate::{
    ops::{
        Operands,
        conv::{Conv, ConvShape, Flat, Layout},
    },
    tensor::DType,
};

/// Outputs along the width that one invocation of the depthwise kernel computes.
const DEPTHWISE_WIDTH: usize = 4;
/// Widest kernel for which the depthwise text is unrolled.
const MAX_UNROLLED: usize = 7;

/// Conv with constant weight and bias, one or two spatial dimensions, NHWC.
pub(in crate::ops) fn conv(op: &Conv, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
    if x.output(0).dtype != DType::F32 || op.layout != Layout::Nhwc || x.output(0).is_empty() {
        return None;
    }
    let shape = op.shape(x.inputs).ok()?;
    let flat = shape.geometry.two_dimensional()?;
    let weight = x.constant(1)?;
    let bias = match x.get(2) {
        Some(_) => Some(x.constant(2)?),
        None => None,
    };
    let epilogue = Epilogue::new(op.activation, op.residual, x);
    let depthwise = shape.groups == shape.c_in && shape.groups == shape.c_out && shape.groups > 1;
    if depthwise {
        let mut constants = vec![packing::depthwise_weight(weight)];
        constants.extend(bias.map(|b| packing::bias(b, 1)));
        let dispatch = depthwise_dispatch(&shape, &flat, constants.len() > 1, &epilogue, caps)?;
        let dispatches = vec![dispatch];
        return Some(GpuKernel { dispatches, constants, ..GpuKernel::default() });
    }
    let (c_in, c_out) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let [oh, ow] = flat.output;
    let pointwise = flat.kernel == [1, 1] && flat.strides == [1, 1] && flat.pads == [0; 4];
    let tile = Tile {
        label: if pointwise { "conv1x1" } else { "conv" },
        m: shape.batch * oh * ow,
        n: c_out,
        batch: shape.groups,
        right: Right::Constant(Weight::conv(weight, shape.groups)),
        y_strides: [shape.c_out, c_out],
        bias: bias.map(|b| packing::bias(b, shape.groups)),
        images: (!pointwise).then_some(Images {
            batch: shape.batch,
            channels: c_in,
            window: flat,
            plain: matches!(op.arithmetic, Arithmetic::Exact | Arithmetic::Reference),
        }),
        epilogue,
    };
    let left = if pointwise { matrix_rows(shape.c_in, c_in) } else { windows(&shape, &flat) };
    tile.kernel(&left, caps)
}

/// Windows of an NHWC tensor as rows, by output position.
fn windows(shape: &ConvShape, flat: &Flat) -> Left {
    let (c_in, part) = (shape.c_in, shape.c_in / shape.groups);
    let flat = *flat;
    let by_tap = Rows {
        taps: flat.kernel,
        run: part,
        sure: false,
        strides: vec![c_in, part],
        params: Box::new(move |shader, unit| {
            place(shader, &flat).size("channels", c_in / unit).size("a_z", part / unit)
        }),
        text: include_str!("windows.wgsl"),
    };
    let [line, shift, jump] = [flat.input[1], flat.strides[1], flat.dilations[1]].map(|n| n * c_in);
    let pad = flat.pads[1] * c_in;
    // Taps side by side are one run of memory.
    let joined = part == c_in && flat.dilations[1] == 1;
    let by_element = Rows {
        taps: if joined { [flat.kernel[0], 1] } else { flat.kernel },
        run: if joined { flat.kernel[1] * c_in } else { part },
        sure: false,
        strides: if joined { vec![line, shift, pad] } else { vec![c_in, part] },
        params: Box::new(move |shader, unit| {
            let signed = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
            shader
                .sizes([("ih", flat.input[0]), ("oh", flat.output[0]), ("ow", flat.output[1])])
                .sizes([("stride_h", flat.strides[0]), ("step_h", flat.dilations[0])])
                .sizes([("line", line / unit), ("shift", shift / unit), ("jump", jump / unit)])
                .size("a_z", part / unit)
                .int("pad_h", signed(flat.pads[0]))
                .int("pad_x", signed(pad / unit))
        }),
        text: include_str!("lines.wgsl"),
    };
    Left { by_tap, by_element }
}

/// Parameters of a two-dimensional window.
pub(super) fn place(shader: Shader, flat: &Flat) -> Shader {
    let pad = |i: usize| isize::try_from(flat.pads[i]).unwrap_or(isize::MAX);
    shader
        .sizes([
            ("ih", flat.input[0]),
            ("iw", flat.input[1]),
            ("oh", flat.output[0]),
            ("ow", flat.output[1]),
            ("kh", flat.kernel[0]),
            ("kw", flat.kernel[1]),
            ("stride_h", flat.strides[0]),
            ("stride_w", flat.strides[1]),
            ("step_h", flat.dilations[0]),
            ("step_w", flat.dilations[1]),
        ])
        .int("pad_h", pad(0))
        .int("pad_w", pad(1))
}

fn depthwise_dispatch(
    shape: &ConvShape,
    flat: &Flat,
    bias: bool,
    epilogue: &Epilogue,
    caps: &GpuCaps,
) -> Option<Dispatch> {
    let vector = caps.aligned && shape.c_in.is_multiple_of(4);
    let (element, unit, suffix) = if vector { ("vec4<f32>", 4, "4") } else { ("f32", 1, "1") };
    let blocks = flat.output[1].div_ceil(DEPTHWISE_WIDTH);
    let channels = shape.c_in / unit;
    let count = shape.batch * flat.output[0] * blocks * channels;
    let threads = if caps.software { 32 } else { 64 };
    let (grid, groups_x) = fold(count.div_ceil(threads), caps.max_grid);
    let mut shader = place(Shader::new("depthwise"), flat)
        .sizes([("channels", channels), ("blocks", blocks), ("count", count)])
        .size("groups_x", groups_x)
        .buffer("x", Binding::Input(0), element)
        .buffer("y", Binding::Output(0), element)
        .buffer("w", Binding::Constant(0), element);
    if bias {
        shader = shader.buffer("bias", Binding::Constant(1), element);
    }
    shader = epilogue.add(shader, element, false);
    let (mut body, mut stores) = (String::new(), String::new());
    let start = if bias { "bias[c]".to_owned() } else { format!("{element}()") };
    for i in 0..DEPTHWISE_WIDTH {
        writeln!(body, "    var s{i} = {start};").ok()?;
        writeln!(
            stores,
            "    if (ow0 + {i}u < p.ow) {{\n        let at = out + {i}u * p.channels;\n        \
             y[at_y() + at] = finish{suffix}(s{i}, at);\n    }}"
        )
        .ok()?;
    }
    body.push_str(&row_loop(flat, element)?);
    let text = include_str!("depthwise.wgsl");
    shader
        .define("BODY", body)
        .define("STORES", stores)
        .define("THREADS", threads.to_string())
        .define("T", element)
        .build(text, grid)
}

/// The loop over kernel rows. Narrow undilated kernels are unrolled along the width, so that each
/// input is loaded once for all outputs that it belongs to.
fn row_loop(flat: &Flat, element: &str) -> Option<String> {
    let (kw, stride) = (flat.kernel[1], flat.strides[1]);
    let mut t = String::from(
        "    for (var kh = 0u; kh < p.kh; kh++) {\n        \
         let ih = i32(oh * p.stride_h + kh * p.step_h) - p.pad_h;\n        \
         if (ih < 0 || ih >= i32(p.ih)) { continue; }\n        \
         let row = at_x() + (b * p.ih + u32(ih)) * p.iw * p.channels + c;\n        \
         let iw0 = i32(ow0 * p.stride_w) - p.pad_w;\n",
    );
    let load = |at: &str| {
        format!(
            "select({element}(), x[row + u32(clamp({at}, 0, i32(p.iw) - 1)) * p.channels], \
             {at} >= 0 && {at} < i32(p.iw))"
        )
    };
    if flat.dilations[1] == 1 && kw <= MAX_UNROLLED && stride <= 2 {
        for k in 0..kw {
            writeln!(t, "        let w{k} = w[(kh * {kw}u + {k}u) * p.channels + c];").ok()?;
        }
        for j in 0..(DEPTHWISE_WIDTH - 1) * stride + kw {
            writeln!(t, "        let v{j} = {};", load(&format!("(iw0 + {j})"))).ok()?;
            for i in 0..DEPTHWISE_WIDTH {
                if let Some(k) = j.checked_sub(i * stride)
                    && k < kw
                {
                    writeln!(t, "        s{i} += v{j} * w{k};").ok()?;
                }
            }
        }
    } else {
        t.push_str("        for (var kw = 0u; kw < p.kw; kw++) {\n");
        t.push_str("            let wv = w[(kh * p.kw + kw) * p.channels + c];\n");
        for i in 0..DEPTHWISE_WIDTH {
            let at = format!("(iw0 + i32({i}u * p.stride_w + kw * p.step_w))");
            writeln!(t, "            s{i} += wv * {};", load(&at)).ok()?;
        }
        t.push_str("        }\n");
    }
    t.push_str("    }\n");
    Some(t)
}
