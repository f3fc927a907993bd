//! Attention's two products on matrix units: a warp has 16 rows of queries in registers, keys and
//! values pass by in tiles. Values lie transposed in workgroup memory. The order of the inner elements
//! of a product is free, as long as both sides have the same: here it is the one in which an
//! invocation's part of a row is a whole chunk, and in which its scores are its part of the second
//! product's left side.

use std::fmt::Write;

use sparoa_kernels::attention::AttentionShape;

use super::{GpuCaps, MatrixUnits, matrix_units::CHUNK};

/// Rows of a warp.
pub(super) const ROWS: usize = 16;
/// Chunks of keys in a tile.
const KEY_CHUNKS: usize = 8;

/// Warps of a workgroup: fewer where else some multiprocessor would have none.
pub(super) fn warps(s: &AttentionShape, caps: &GpuCaps) -> usize {
    let groups = |warps: usize| s.q_len.div_ceil(ROWS * warps) * s.heads * s.batch;
    if groups(4) >= caps.units as usize { 4 } else { 2 }
}

/// An attention as it is shared out.
pub(super) struct Form {
    units: MatrixUnits,
    warps: usize,
    /// vec4s of a row of queries and keys, and of values.
    quads: [usize; 2],
}

impl Form {
    /// The form for `s`; `None` where heads are no whole chunks or there is no room.
    pub(super) fn new(s: &AttentionShape, caps: &GpuCaps) -> Option<Form> {
        let units = caps.matrix_units.filter(|_| caps.aligned)?;
        let whole = s.head_dim.is_multiple_of(4 * units.chunk()) && s.v_dim.is_multiple_of(8);
        let warps = warps(s, caps);
        let form = Form { units, warps, quads: [s.head_dim / 4, s.v_dim / 4] };
        let fits = CHUNK * form.chunks() <= caps.workgroup_bytes as usize;
        (whole && fits && form.threads() <= caps.workgroup_size as usize).then_some(form)
    }

    /// Rows of a workgroup.
    pub(super) fn rows(&self) -> usize {
        ROWS * self.warps
    }

    fn threads(&self) -> usize {
        32 * self.warps
    }

    /// Keys of a tile.
    fn keys(&self) -> usize {
        KEY_CHUNKS * self.units.chunk()
    }

    /// Chunks of a key.
    fn key_chunks(&self) -> usize {
        self.quads[0] * 4 / self.units.chunk()
    }

    /// Chunks from key to key: two neighbours' lie in different banks.
    fn key_line(&self) -> usize {
        self.key_chunks().next_multiple_of(8) + 4
    }

    /// Chunks of a tile of keys and one of values.
    fn chunks(&self) -> usize {
        self.keys() * self.key_line() + self.quads[1] * 4 * KEY_CHUNKS
    }

    /// A chunk of vec4s.
    fn rounded(&self, quads: &[String]) -> String {
        match self.units {
            MatrixUnits::Tf32 => format!("native_round_tf32({})", quads[0]),
            MatrixUnits::Fp16 | MatrixUnits::Bf16 => {
                format!("native_pack_half({}, {})", quads[0], quads[1])
            }
        }
    }

    /// `main` over `load_q`, `load_k`, `load_v`, `score` and `store`.
    pub(super) fn text(&self) -> Option<String> {
        let (threads, rows, keys) = (self.threads(), self.rows(), self.keys());
        let (chunk, key_chunks, key_line) =
            (self.units.chunk(), self.key_chunks(), self.key_line());
        let [_, vd] = self.quads;
        let quads = chunk / 4;
        let v_tile = keys * key_line;
        let multiply = match self.units {
            MatrixUnits::Tf32 => "native_multiply_tf32",
            MatrixUnits::Fp16 | MatrixUnits::Bf16 => "native_multiply_half",
        };
        let mut t = format!(
            "var<workgroup> tile: array<vec4<u32>, {}>;\n{}{NATIVE}\
             @compute @workgroup_size({threads})\n\
             fn main(@builtin(workgroup_id) group: vec3<u32>, \
             @builtin(local_invocation_index) thread: u32) {{\n\
             let lane = thread % 32u;\nlet across = lane % 4u;\nlet down = lane / 4u;\n\
             let h = group.y;\nlet b = group.z;\n\
             let row = group.x * {rows}u + thread / 32u * {ROWS}u + down;\n\
             let r0 = min(row, p.rows - 1u);\nlet r1 = min(row + 8u, p.rows - 1u);\n\
             let q_at = p.q_first + b * p.q_batch + h * p.q_head;\n\
             let k_at = p.k_first + b * p.k_batch + h * p.k_head;\n\
             let v_at = p.v_first + b * p.v_batch + h * p.v_head;\n\
             var high0 = -3.0e38;\nvar high1 = -3.0e38;\nvar sum0 = 0.0;\nvar sum1 = 0.0;\n",
            self.chunks(),
            super::matrix_units::NATIVE,
        );
        for c in 0..key_chunks / 4 {
            for r in 0..2 {
                let loads: Vec<String> = (0..quads)
                    .map(|q| {
                        let at = format!("({}u + across) * {quads}u + {q}u", 4 * c);
                        format!("load_q(q_at + r{r} * p.q_row + {at})")
                    })
                    .collect();
                writeln!(t, "let q{c}_{r} = {};", self.rounded(&loads)).ok()?;
            }
            for (half, [low, high]) in [["x", "y"], ["z", "w"]].into_iter().enumerate() {
                writeln!(
                    t,
                    "let x{c}_{half} = vec4<u32>(q{c}_0.{low}, q{c}_1.{low}, q{c}_0.{high}, q{c}_1.{high});"
                )
                .ok()?;
            }
        }
        for n in 0..vd / 2 {
            writeln!(t, "var o{n} = vec4<f32>();").ok()?;
        }
        writeln!(
            t,
            "let lane_k = (down / 2u * {chunk}u + down % 2u) * {key_line}u + across;\n\
             let lane_v = {v_tile}u + down * {KEY_CHUNKS}u;\n\
             let turn = across ^ (down / 4u) ^ (down % 2u * 4u);\n\
             for (var first = 0u; first < p.keys; first += {keys}u) {{"
        )
        .ok()?;
        self.tiles(&mut t, key_chunks, v_tile)?;
        t.push_str("workgroupBarrier();\n");
        // Scores. Each group of tiles, 8 keys wide, has as many chunks of keys as a row has lanes.
        let (tiles, per_group) = (keys / 8, chunk / 2);
        let first_key = |j: usize| j / per_group * 4 * chunk + j % per_group * 2;
        for j in 0..tiles {
            writeln!(t, "var s{j} = vec4<f32>();").ok()?;
            for c in 0..key_chunks / 4 {
                let at = first_key(j) * key_line + 4 * c;
                writeln!(
                    t,
                    "let k{j}_{c} = tile[lane_k + {at}u];\n\
                     s{j} = {multiply}(x{c}_0, k{j}_{c}.x, k{j}_{c}.y, s{j});\n\
                     s{j} = {multiply}(x{c}_1, k{j}_{c}.z, k{j}_{c}.w, s{j});"
                )
                .ok()?;
            }
            let score = |row: usize, next: usize, part: &str| {
                format!("score(b, h, r{row}, key{j} + {next}u, s{j}.{part})")
            };
            writeln!(
                t,
                "let key{j} = first + across * {chunk}u + {}u;\n\
                 s{j} = vec4<f32>({}, {}, {}, {});",
                first_key(j),
                score(0, 0, "x"),
                score(0, 1, "y"),
                score(1, 0, "z"),
                score(1, 1, "w"),
            )
            .ok()?;
        }
        weights(&mut t, tiles, vd / 2)?;
        // Weights times values; a product takes 8 or 16 keys.
        for group in 0..tiles / per_group {
            for step in 0..2 {
                let j = group * per_group + step * per_group / 2;
                let weights = match self.units {
                    MatrixUnits::Tf32 => {
                        format!("native_round_tf32(vec4<f32>(s{j}.x, s{j}.z, s{j}.y, s{j}.w))")
                    }
                    MatrixUnits::Fp16 | MatrixUnits::Bf16 => {
                        format!("native_pack_half(s{j}, s{})", j + 1)
                    }
                };
                writeln!(t, "let w{group}_{step} = {weights};").ok()?;
            }
            for n in 0..vd / 2 {
                let (at, turn) = (8 * n * KEY_CHUNKS, (4 * group) ^ (2 * n % 8));
                writeln!(
                    t,
                    "let v{group}_{n} = tile[lane_v + {at}u + (turn ^ {turn}u)];\n\
                     o{n} = {multiply}(w{group}_0, v{group}_{n}.x, v{group}_{n}.y, o{n});\n\
                     o{n} = {multiply}(w{group}_1, v{group}_{n}.z, v{group}_{n}.w, o{n});"
                )
                .ok()?;
            }
        }
        t.push_str(
            "workgroupBarrier();\n}\n\
             let inverse0 = 1.0 / native_quad_sum(sum0);\n\
             let inverse1 = 1.0 / native_quad_sum(sum1);\n\
             let inverse = vec4<f32>(inverse0, inverse0, inverse1, inverse1);\n\
             let own = row + lane % 2u * 8u;\n\
             let at = b * p.y_batch + h * p.y_head + own * p.y_row + across / 2u;\n",
        );
        for n in 0..vd / 2 {
            writeln!(
                t,
                "let y{n} = native_exchange(o{n} * inverse);\n\
                 if (own < p.rows) {{ store(at + {}u, y{n}); }}",
                2 * n
            )
            .ok()?;
        }
        t.push_str("}\n");
        Some(t)
    }

    /// Loads the keys and values from `first` on and lays them out.
    fn tiles(&self, t: &mut String, key_chunks: usize, v_tile: usize) -> Option<()> {
        let (threads, chunk, key_line) = (self.threads(), self.units.chunk(), self.key_line());
        let (quads, vd) = (chunk / 4, self.quads[1]);
        // All loads before the first store: they are under way together.
        let (k_units, v_units) = (self.keys() * key_chunks, KEY_CHUNKS * vd);
        for i in 0..k_units.div_ceil(threads) {
            writeln!(
                t,
                "let ki{i} = min(thread + {}u, {}u);\n\
                 let kr{i} = k_at + min(first + ki{i} / {key_chunks}u, p.keys - 1u) * p.k_row \
                 + ki{i} % {key_chunks}u * {quads}u;",
                i * threads,
                k_units - 1
            )
            .ok()?;
            let loads: Vec<String> = (0..quads).map(|q| format!("load_k(kr{i} + {q}u)")).collect();
            writeln!(t, "let kc{i} = {};", self.rounded(&loads)).ok()?;
        }
        for i in 0..v_units.div_ceil(threads) {
            writeln!(
                t,
                "let vi{i} = min(thread + {}u, {}u);\nlet vq{i} = vi{i} % {vd}u;\n\
                 let vk{i} = first + vi{i} / {vd}u * {chunk}u;",
                i * threads,
                v_units - 1
            )
            .ok()?;
            for j in 0..chunk {
                writeln!(
                    t,
                    "let vl{i}_{j} = load_v(v_at + min(vk{i} + {j}u, p.keys - 1u) * p.v_row + vq{i});"
                )
                .ok()?;
            }
        }
        for i in 0..k_units.div_ceil(threads) {
            writeln!(
                t,
                "tile[ki{i} / {key_chunks}u * {key_line}u + ki{i} % {key_chunks}u] = kc{i};"
            )
            .ok()?;
        }
        for i in 0..v_units.div_ceil(threads) {
            for (d, part) in ["x", "y", "z", "w"].into_iter().enumerate() {
                let columns: Vec<String> = (0..quads)
                    .map(|q| {
                        let of: Vec<String> =
                            (0..4).map(|j| format!("vl{i}_{}.{part}", 4 * q + j)).collect();
                        format!("vec4<f32>({})", of.join(", "))
                    })
                    .collect();
                writeln!(
                    t,
                    "tile[{v_tile}u + (vq{i} * 4u + {d}u) * {KEY_CHUNKS}u + \
                     ((vi{i} / {vd}u) ^ (vq{i} % 8u) ^ {}u)] = {};",
                    d % 2 * 4,
                    self.rounded(&columns)
                )
                .ok()?;
            }
        }
        Some(())
    }
}

/// From scores `s0`.., each of eight keys, to weights, and fades what the keys before gave: sums and
/// `outputs` of `o0`..
pub(super) fn weights(t: &mut String, scores: usize, outputs: usize) -> Option<()> {
    for (r, [even, odd]) in [["x", "y"], ["z", "w"]].into_iter().enumerate() {
        writeln!(t, "var next{r} = high{r};").ok()?;
        for j in 0..scores {
            writeln!(t, "next{r} = max(next{r}, max(s{j}.{even}, s{j}.{odd}));").ok()?;
        }
        writeln!(
            t,
            "next{r} = native_quad_max(next{r});\nlet fade{r} = exp(high{r} - next{r});\n\
             high{r} = next{r};\nsum{r} *= fade{r};"
        )
        .ok()?;
    }
    for j in 0..scores {
        // Masked keys before the first visible one have the lowest score as their maximum.
        writeln!(
            t,
            "s{j} = select(vec4<f32>(), exp(s{j} - vec4<f32>(next0, next0, next1, next1)), \
             s{j} > vec4<f32>(-2.9e38));\n\
             sum0 += s{j}.x + s{j}.y;\nsum1 += s{j}.z + s{j}.w;"
        )
        .ok()?;
    }
    t.push_str("let fade = vec4<f32>(fade0, fade0, fade1, fade1);\n");
    for n in 0..outputs {
        writeln!(t, "o{n} *= fade;").ok()?;
    }
    Some(())
}

/// Declarations of what the text calls besides [`super::matrix_units::NATIVE`].
pub(super) const NATIVE: &str = "\
fn native_quad_max(v: f32) -> f32 { return v; }
fn native_quad_sum(v: f32) -> f32 { return v; }
";
