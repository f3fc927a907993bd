//! Normalisations and reductions along one axis. On hardware a workgroup works on a row together;
//! on software adapters, and where neighbouring invocations read neighbouring elements anyway, an
//! invocation has a row to itself.

use super::{
    Binding, Dispatch, GpuCaps, GpuKernel,
    shader::{Shader, fold},
};
use crate::{
    ops::{
        Operands,
        norm::LayerNorm,
        reduce::ReduceKind,
        softmax::{Softmax, SoftmaxKind},
    },
    tensor::DType,
};

/// How rows are shared out.
struct Team {
    /// Invocations per row.
    size: usize,
    /// Rows per workgroup.
    rows: usize,
}

impl Team {
    fn new(together: bool, caps: &GpuCaps) -> Team {
        match (together, caps.software) {
            (_, true) => Team { size: 1, rows: 8 },
            (true, false) => Team { size: 64, rows: 1 },
            (false, false) => Team { size: 1, rows: 64 },
        }
    }

    /// For normalisations of rows of `units` elements or vec4s, which several short ones share.
    /// What a row's sums are is the same as with more invocations, of which some have nothing.
    fn normalising(units: usize, caps: &GpuCaps) -> Team {
        match caps.software || units > 32 {
            true => Team::new(true, caps),
            false => Team { size: 32, rows: 4 },
        }
    }

    /// Defines `row`, `lane` and `TEAM`, and the reductions `team_sum` and `team_max`.
    fn dispatch(
        &self,
        shader: Shader,
        text: &str,
        rows: usize,
        caps: &GpuCaps,
    ) -> Option<Dispatch> {
        let (grid, groups_x) = fold(rows.div_ceil(self.rows), caps.max_grid);
        let helpers = if self.size == 1 { ALONE } else { include_str!("team.wgsl") };
        let row = match (self.rows, self.size) {
            (1, _) => "group_index",
            (_, 1) => "group_index * ROWS + thread",
            _ => "group_index * ROWS + thread / TEAM",
        };
        let lane = if self.size == 1 { "0u" } else { "thread % TEAM" };
        let head = format!(
            "const TEAM: u32 = {}u;\nconst ROWS: u32 = {}u;\nconst MEMBERS: u32 = {}u;\n{helpers}",
            self.size,
            self.rows,
            self.size * self.rows
        );
        shader
            .sizes([("rows", rows), ("groups_x", groups_x)])
            .define("HEAD", head)
            .define("ROW", row)
            .define("LANE", lane)
            .define("THREADS", (self.size * self.rows).to_string())
            .build(text, grid)
    }
}

/// Invocations per workgroup that reduce rows side by side.
const SIDE_BY_SIDE: usize = 128;

const ALONE: &str = "fn team_sum(v: f32, thread: u32) -> f32 { return v; }\n\
                     fn team_max(v: f32, thread: u32) -> f32 { return v; }\n";

fn one(dispatch: Dispatch) -> GpuKernel {
    GpuKernel { dispatches: vec![dispatch], ..GpuKernel::default() }
}

fn is_f32(x: &Operands<'_>) -> bool {
    x.output(0).dtype == DType::F32 && !x.output(0).is_empty()
}

/// Element type, elements per unit and the sum of a unit's elements.
fn unit(vector: bool) -> (&'static str, usize, &'static str) {
    if vector {
        (
            "vec4<f32>",
            4,
            "fn total(v: vec4<f32>) -> f32 { return v.x + v.y + v.z + v.w; }\n\
         fn largest(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }\n",
        )
    } else {
        (
            "f32",
            1,
            "fn total(v: f32) -> f32 { return v; }\nfn largest(v: f32) -> f32 { return v; }\n",
        )
    }
}

/// LayerNormalization and its RMS form with one output, nothing added first.
pub(in crate::ops) fn layer_norm(
    op: &LayerNorm,
    [rows, len]: [usize; 2],
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    if !is_f32(x) || op.skip || x.outputs.len() > 1 || len == 0 {
        return None;
    }
    let vector = caps.aligned && len.is_multiple_of(4);
    let (element, size, helpers) = unit(vector);
    let mut shader = Shader::new("layer_norm")
        .buffer("x", Binding::Input(0), element)
        .buffer("y", Binding::Output(0), element)
        .buffer("scale", Binding::Input(1), element)
        .size("len", len / size)
        .float("inverse_len", 1.0 / len as f32)
        .float("epsilon", op.epsilon);
    let mut shift = String::new();
    if !op.rms && x.get(2).is_some() {
        shader = shader.buffer("shift", Binding::Input(2), element);
        shift.push_str(" + shift[at_shift() + i]");
    }
    let mean = if op.rms { "0.0" } else { "team_sum(total(sum), thread) * p.inverse_len" };
    let shader = shader
        .define("UNIT", helpers)
        .define("T", element)
        .define("MEAN", mean)
        .define("SHIFT", shift);
    let team = Team::normalising(len / size, caps);
    Some(one(team.dispatch(shader, include_str!("layer_norm.wgsl"), rows, caps)?))
}

/// Softmax and LogSoftmax.
pub(in crate::ops) fn softmax(
    op: &Softmax,
    [outer, len, inner]: [usize; 3],
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    let result = match op.kind {
        SoftmaxKind::Softmax => "exp(v - $T(high)) * inverse",
        SoftmaxKind::LogSoftmax => "v - $T(high + log(sum))",
        SoftmaxKind::Hardmax => return None,
    };
    if !is_f32(x) {
        return None;
    }
    let vector = caps.aligned && inner == 1 && len.is_multiple_of(4);
    let (element, size, helpers) = unit(vector);
    let shader = Shader::new("softmax")
        .buffer("x", Binding::Input(0), element)
        .buffer("y", Binding::Output(0), element)
        .sizes([("len", len / size), ("inner", inner)])
        .define("UNIT", helpers)
        .define("RESULT", result)
        .define("T", element);
    let team = Team::new(inner == 1, caps);
    Some(one(team.dispatch(shader, include_str!("softmax.wgsl"), outer * inner, caps)?))
}

/// A reduction of rows that lie side by side: neighbouring invocations have neighbouring rows, and
/// several share one.
fn side_by_side(shader: Shader, rows: usize, caps: &GpuCaps) -> Option<Dispatch> {
    // Long runs of rows where these are enough for every multiprocessor.
    let own = if rows / 8 >= 4 * caps.units as usize { 8 } else { 4 };
    let (grid, groups_x) = fold(rows.div_ceil(own), caps.max_grid);
    shader
        .size("groups_x", groups_x)
        .define("ROWS", own.to_string())
        .define("THREADS", SIDE_BY_SIDE.to_string())
        .define("LANES", (SIDE_BY_SIDE / own).to_string())
        .build(include_str!("reduce_side_by_side.wgsl"), grid)
}

/// A reduction of the middle one of three sizes.
pub(in crate::ops) fn reduce(
    kind: ReduceKind,
    [outer, len, inner]: [usize; 3],
    x: &Operands<'_>,
    caps: &GpuCaps,
) -> Option<GpuKernel> {
    if !is_f32(x) || len == 0 || kind == ReduceKind::LogSumExp {
        return None;
    }
    // Neighbouring results share vec4s where they lie side by side.
    let vector = caps.aligned && inner.is_multiple_of(4);
    let (element, size, _) = unit(vector);
    let (start, step, finish) = match kind {
        ReduceKind::Sum => ("0.0", "sum + v", "sum"),
        ReduceKind::Mean => ("0.0", "sum + v", "sum * p.inverse_len"),
        ReduceKind::Max => ("-3.4028234e38", "max(sum, v)", "sum"),
        ReduceKind::Min => ("3.4028234e38", "min(sum, v)", "sum"),
        ReduceKind::Prod => ("1.0", "sum * v", "sum"),
        ReduceKind::SumSquare => ("0.0", "sum + v * v", "sum"),
        ReduceKind::L1 => ("0.0", "sum + abs(v)", "sum"),
        ReduceKind::L2 => ("0.0", "sum + v * v", "sqrt(sum)"),
        ReduceKind::LogSum => ("0.0", "sum + v", "log(sum)"),
        ReduceKind::LogSumExp => return None,
    };
    let joins = matches!(kind, ReduceKind::Sum | ReduceKind::Mean | ReduceKind::SumSquare)
        || matches!(kind, ReduceKind::L1 | ReduceKind::L2 | ReduceKind::LogSum);
    let rows = outer * inner / size;
    let shader = Shader::new("reduce")
        .buffer("x", Binding::Input(0), element)
        .buffer("y", Binding::Output(0), element)
        .sizes([("len", len), ("inner", inner / size)])
        .float("inverse_len", 1.0 / len as f32)
        .define("START", start)
        .define("STEP", step)
        .define("FINISH", finish)
        .define("TYPE", element);
    if inner > 1 && len >= 16 && !caps.software {
        let combine = if joins { "sum + v" } else { step };
        let shader = shader.size("rows", rows).define("COMBINE", combine);
        return Some(one(side_by_side(shader, rows, caps)?));
    }
    let together = inner == 1 && len >= 64 && (joins || kind == ReduceKind::Max);
    let team = Team::new(together, caps);
    let join = match (team.size, joins) {
        (1, _) => "sum",
        (_, true) => "team_sum(sum, thread)",
        (_, false) => "team_max(sum, thread)",
    };
    let shader = shader.define("JOIN", join);
    Some(one(team.dispatch(shader, include_str!("reduce.wgsl"), rows, caps)?))
}
