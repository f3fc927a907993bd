//! Attention with an online softmax: scores never reach memory. An invocation has one row of
//! queries; keys and values pass by in tiles, shared through workgroup memory on hardware and
//! through subgroup broadcasts on software adapters. Where the rows are too few for the GPU, several
//! invocations share one, each with a part of the keys, and join their results at the end. Matrix
//! units, where they are asked for, have a form of their own ([`super::matrix_attention`]), and one for
//! operands stored in 16 bits ([`super::chunk_attention`]).

use std::fmt::Write;

use sparoa_kernels::attention::{AttentionShape, Strides};

use super::{
    Binding, GpuCaps, GpuKernel, MatrixUnits, chunk_attention::Form as ChunkForm,
    matrix_attention::Form, shader::Shader, tile::software_lanes,
};
use crate::{
    ops::{Operands, attention::BIAS_INPUT},
    tensor::DType,
};

/// Longest head that fits an invocation's registers.
const MAX_HEAD: usize = 128;
/// Invocations per workgroup on hardware.
const THREADS: usize = 64;
/// Workgroups per multiprocessor from which on the rows are enough.
const ENOUGH: usize = 6;

/// Where q, k, v and the output lie, in elements.
pub(in crate::ops) struct Placement {
    /// Strides of q, k, v and the output.
    pub(in crate::ops) strides: [Strides; 4],
    /// q, k and v are in input 0, one after the other in each row.
    pub(in crate::ops) packed: bool,
    /// Batch, heads and rows of the bias.
    pub(in crate::ops) bias: Option<[usize; 3]>,
}

/// Attention of `s` sizes.
pub(in crate::ops) fn attention(
    s: &AttentionShape,
    place: &Placement,
    scale: f32,
    causal: bool,
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    let whole = [s.head_dim, s.v_dim].iter().all(|d| d.is_multiple_of(4) && *d <= MAX_HEAD);
    if x.output(0).dtype != DType::F32 || !whole || x.output(0).is_empty() {
        return None;
    }
    if s.kv_len == 0 || s.head_dim == 0 || (causal && s.q_len > s.kv_len) {
        return None;
    }
    let element = if caps.aligned { "vec4<f32>" } else { "f32" };
    let chunks = if chunks(s, place, x, caps) { ChunkForm::new(s, caps) } else { None };
    // What q, k and v are bound and counted as.
    let (operand, unit) = if chunks.is_some() { ("vec4<u32>", 8) } else { (element, 4) };
    let mut access = String::new();
    for name in ["q", "k", "v"].into_iter().filter(|_| chunks.is_none()) {
        let load = match caps.aligned {
            true => format!("{name}[at_{name}() + i]"),
            false => {
                let at = |j: usize| format!("{name}[at_{name}() + i * 4u + {j}u]");
                format!("vec4<f32>({}, {}, {}, {})", at(0), at(1), at(2), at(3))
            }
        };
        writeln!(access, "fn load_{name}(i: u32) -> vec4<f32> {{ return {load}; }}").ok()?;
    }
    access.push_str(if caps.aligned {
        "fn store(i: u32, v: vec4<f32>) { y[at_y() + i] = v; }\n"
    } else {
        "fn store(i: u32, v: vec4<f32>) {\n    \
         for (var j = 0u; j < 4u; j++) { y[at_y() + i * 4u + j] = v[j]; }\n}\n"
    });
    let mut shader = Shader::new("attention");
    let part = if place.packed { s.heads * s.head_dim / unit } else { 0 };
    for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
        let input = if place.packed { 0 } else { i };
        let Strides { batch, head, row } = place.strides[i];
        shader = shader
            .buffer(name, Binding::Input(input), operand)
            .size(format!("{name}_batch"), batch / unit)
            .size(format!("{name}_head"), head / unit)
            .size(format!("{name}_row"), row / unit)
            .size(format!("{name}_first"), i * part);
    }
    let Strides { batch, head, row } = place.strides[3];
    shader = shader
        .buffer("y", Binding::Output(0), element)
        .sizes([("y_batch", batch / 4), ("y_head", head / 4), ("y_row", row / 4)])
        .sizes([("rows", s.q_len), ("keys", s.kv_len), ("heads", s.heads)])
        .float("scale", scale);
    let mut bias_text = "return 0.0;".to_owned();
    if let Some([b, h, r]) = place.bias {
        let step = |count: usize, stride: usize| if count == 1 { 0 } else { stride };
        shader = shader.buffer("bias", Binding::Input(BIAS_INPUT), "f32").sizes([
            ("bias_batches", b),
            ("bias_batch", h * r * s.kv_len),
            ("bias_head", step(h, r * s.kv_len)),
            ("bias_row", step(r, s.kv_len)),
        ]);
        bias_text = "return bias[at_bias() + b % p.bias_batches * p.bias_batch + h * p.bias_head \
                     + row * p.bias_row + key];"
            .to_owned();
    }
    let seen = if causal { "key < p.keys && key + p.rows <= row + p.keys" } else { "key < p.keys" };
    let (qd, vd) = (s.head_dim / 4, s.v_dim / 4);
    let lanes = software_lanes(caps);
    let (rows, text) = if let Some(lanes) = lanes {
        (lanes, software(qd, vd, lanes)?)
    } else if let Some(form) = chunks {
        (form.rows(), form.text()?)
    } else if let Some(form) = Form::new(s, caps) {
        (form.rows(), form.text()?)
    } else {
        let team = team(s, caps);
        (THREADS / team, hardware(qd, vd, team)?)
    };
    let text = format!(
        "fn bias_of(b: u32, h: u32, row: u32, key: u32) -> f32 {{ {bias_text} }}\n\
         fn score(b: u32, h: u32, row: u32, key: u32, dot: f32) -> f32 {{\n    \
         let s = dot * p.scale + bias_of(b, h, row, min(key, p.keys - 1u));\n    \
         return select(-3.0e38, s, {seen});\n}}\n{access}{text}"
    );
    let grid = [s.q_len.div_ceil(rows), s.heads, s.batch];
    let dispatch = shader.build(&text, grid)?;
    Some(GpuKernel { dispatches: vec![dispatch], ..GpuKernel::default() })
}

/// Whether queries, keys and values are stored in 16 bits, in whole chunks of eight.
fn chunks(s: &AttentionShape, place: &Placement, x: &Operands<'_>, caps: &GpuCaps) -> bool {
    let inputs = if place.packed { 0..1 } else { 0..3 };
    let whole = |strides: &Strides| {
        [strides.batch, strides.head, strides.row].iter().all(|n| n.is_multiple_of(8))
    };
    caps.aligned
        && caps.matrix_units.is_some_and(MatrixUnits::is_half)
        && inputs.clone().all(|i| caps.halves.input(i) && x.constant(i).is_none())
        && place.strides[..3].iter().all(whole)
        && (!place.packed || (s.heads * s.head_dim).is_multiple_of(8))
}

/// Loads of the query row and the start of the sums.
fn start(t: &mut String, qd: usize, vd: usize) -> Option<()> {
    t.push_str(
        "    let h = group.y;\n    let b = group.z;\n    let r = min(row, p.rows - 1u);\n    \
         let q_at = p.q_first + b * p.q_batch + h * p.q_head + r * p.q_row;\n    \
         let k_at = p.k_first + b * p.k_batch + h * p.k_head;\n    \
         let v_at = p.v_first + b * p.v_batch + h * p.v_head;\n    \
         var high = -3.0e38;\n    var sum = 0.0;\n",
    );
    for d in 0..qd {
        writeln!(t, "    let q{d} = load_q(q_at + {d}u);").ok()?;
    }
    for d in 0..vd {
        writeln!(t, "    var o{d} = vec4<f32>();").ok()?;
    }
    Some(())
}

/// Rescales the sums for `count` new scores `s0..` and turns these into weights `w0..`.
fn rescale(t: &mut String, count: usize, vd: usize) -> Option<()> {
    t.push_str("        var next = high;\n");
    for i in 0..count {
        writeln!(t, "        next = max(next, s{i});").ok()?;
    }
    t.push_str(
        "        let fade = exp(high - next);\n        high = next;\n        sum *= fade;\n",
    );
    for i in 0..count {
        // Masked keys before the first visible one have the lowest score as their maximum.
        writeln!(t, "        let w{i} = select(0.0, exp(s{i} - next), s{i} > -2.9e38);").ok()?;
        writeln!(t, "        sum += w{i};").ok()?;
    }
    for d in 0..vd {
        writeln!(t, "        o{d} *= fade;").ok()?;
    }
    Some(())
}

fn finish(t: &mut String, vd: usize) -> Option<()> {
    t.push_str(
        "    if (row < p.rows) {\n        let inverse = 1.0 / sum;\n        \
         let at = b * p.y_batch + h * p.y_head + row * p.y_row;\n",
    );
    for d in 0..vd {
        writeln!(t, "        store(at + {d}u, o{d} * inverse);").ok()?;
    }
    t.push_str("    }\n}\n");
    Some(())
}

/// One subgroup per workgroup; each lane loads another key's elements.
fn software(qd: usize, vd: usize, lanes: usize) -> Option<String> {
    let mut t = format!(
        "@compute @workgroup_size({lanes})\nfn main(@builtin(workgroup_id) group: vec3<u32>, \
         @builtin(subgroup_invocation_id) lane: u32) {{\n    \
         let row = group.x * {lanes}u + lane;\n"
    );
    start(&mut t, qd, vd)?;
    writeln!(
        t,
        "    for (var key = 0u; key < p.keys; key += {lanes}u) {{\n        \
         let own = min(key + lane, p.keys - 1u);\n        \
         let own_k = k_at + own * p.k_row;\n        let own_v = v_at + own * p.v_row;"
    )
    .ok()?;
    for i in 0..lanes {
        writeln!(t, "        var dot{i} = 0.0;").ok()?;
    }
    for d in 0..qd {
        writeln!(t, "        let k{d} = load_k(own_k + {d}u);").ok()?;
        for i in 0..lanes {
            writeln!(t, "        dot{i} += dot(q{d}, subgroupBroadcast(k{d}, {i}u));").ok()?;
        }
    }
    for i in 0..lanes {
        writeln!(t, "        let s{i} = score(b, h, r, key + {i}u, dot{i});").ok()?;
    }
    rescale(&mut t, lanes, vd)?;
    for d in 0..vd {
        writeln!(t, "        let v{d} = load_v(own_v + {d}u);").ok()?;
        for i in 0..lanes {
            writeln!(t, "        o{d} += w{i} * subgroupBroadcast(v{d}, {i}u);").ok()?;
        }
    }
    t.push_str("    }\n");
    finish(&mut t, vd)?;
    Some(t)
}

/// Invocations that share a row on hardware.
fn team(s: &AttentionShape, caps: &GpuCaps) -> usize {
    let groups = |team: usize| s.q_len.div_ceil(THREADS / team) * s.heads * s.batch;
    let fits = |team: usize| {
        let (keys, vectors) = (keys_per_tile(team), s.head_dim / 4 + s.v_dim / 4 + 2);
        let bytes = 16 * (keys * vectors).max(THREADS * (s.v_dim / 4 + 1)) + 8 * THREADS;
        bytes <= caps.workgroup_bytes as usize && s.kv_len >= 2 * team
    };
    let enough = |team: &usize| groups(*team) >= ENOUGH * caps.units as usize;
    let possible: Vec<usize> = [1, 2, 4, 8].into_iter().filter(|&t| t == 1 || fits(t)).collect();
    possible.iter().copied().find(enough).or(possible.last().copied()).unwrap_or(1)
}

/// Keys per tile on hardware.
fn keys_per_tile(team: usize) -> usize {
    if team == 1 { 16 } else { 32 }
}

/// Tiles of keys and values in workgroup memory, a vec4 apart so that they begin in different
/// banks.
fn hardware(qd: usize, vd: usize, team: usize) -> Option<String> {
    let (keys, rows) = (keys_per_tile(team), THREADS / team);
    let (k_line, v_line) = (qd + 1, vd + 1);
    let v_tile = keys * k_line;
    let tile = (v_tile + keys * v_line).max(if team > 1 { THREADS * v_line } else { 0 });
    let mut t = format!(
        "var<workgroup> tile: array<vec4<f32>, {tile}>;\n\
         var<workgroup> highs: array<f32, {THREADS}>;\nvar<workgroup> sums: array<f32, {THREADS}>;\n\
         @compute @workgroup_size({THREADS})\nfn main(@builtin(workgroup_id) group: vec3<u32>, \
         @builtin(local_invocation_index) lane: u32) {{\n    \
         let part = lane / {rows}u;\n    let own = lane % {rows}u;\n    \
         let row = group.x * {rows}u + own;\n"
    );
    start(&mut t, qd, vd)?;
    writeln!(t, "    for (var first = 0u; first < p.keys; first += {keys}u) {{").ok()?;
    for (name, begin, width, line) in [("k", 0, qd, k_line), ("v", v_tile, vd, v_line)] {
        // All loads before the first store: they are under way together.
        let loads = (keys * width).div_ceil(THREADS);
        for i in 0..loads {
            writeln!(
                t,
                "        let {name}i{i} = min(lane + {}u, {}u);\n        \
                 let {name}{i} = load_{name}({name}_at + min(first + {name}i{i} / {width}u, \
                 p.keys - 1u) * p.{name}_row + {name}i{i} % {width}u);",
                i * THREADS,
                keys * width - 1
            )
            .ok()?;
        }
        for i in 0..loads {
            writeln!(
                t,
                "        tile[{begin}u + {name}i{i} / {width}u * {line}u + {name}i{i} % {width}u] = {name}{i};"
            )
            .ok()?;
        }
    }
    writeln!(
        t,
        "        workgroupBarrier();\n        let tile_k = part * {k_line}u;\n        \
         let tile_v = {v_tile}u + part * {v_line}u;"
    )
    .ok()?;
    let own = keys / team;
    for i in 0..own {
        let terms: Vec<String> = (0..qd)
            .map(|d| format!("dot(q{d}, tile[tile_k + {}u])", i * team * k_line + d))
            .collect();
        writeln!(
            t,
            "        let s{i} = score(b, h, r, first + part + {}u, {});",
            i * team,
            terms.join(" + ")
        )
        .ok()?;
    }
    rescale(&mut t, own, vd)?;
    for i in 0..own {
        for d in 0..vd {
            writeln!(t, "        o{d} += w{i} * tile[tile_v + {}u];", i * team * v_line + d)
                .ok()?;
        }
    }
    t.push_str("        workgroupBarrier();\n    }\n");
    if team == 1 {
        finish(&mut t, vd)?;
        return Some(t);
    }
    writeln!(
        t,
        "    highs[lane] = high;\n    sums[lane] = sum;\n    workgroupBarrier();\n    \
         var top = high;\n    \
         for (var i = own; i < {THREADS}u; i += {rows}u) {{ top = max(top, highs[i]); }}\n    \
         var total = 0.0;\n    \
         for (var i = own; i < {THREADS}u; i += {rows}u) {{ total += sums[i] * exp(highs[i] - top); }}\n    \
         let share = exp(high - top) / total;"
    )
    .ok()?;
    for d in 0..vd {
        writeln!(t, "    tile[lane * {v_line}u + {d}u] = o{d} * share;").ok()?;
    }
    writeln!(
        t,
        "    workgroupBarrier();\n    if (row >= p.rows) {{ return; }}\n    \
         let at = b * p.y_batch + h * p.y_head + row * p.y_row;\n    \
         for (var d = part; d < {vd}u; d += {team}u) {{\n        var v = vec4<f32>();\n        \
         for (var i = own; i < {THREADS}u; i += {rows}u) {{ v += tile[i * {v_line}u + d]; }}\n        \
         store(at + d, v);\n    }}\n}}"
    )
    .ok()?;
    Some(t)
}
