//! Attention on matrix units where queries, keys and values are stored in 16 bits: tiles of keys and
//! values are copied by chunks of 16 bytes from device to workgroup memory, the next one while one is
//! in use. A warp has 16 rows of queries in registers; its scores are, as they come, the left side of
//! the second product, whose right side are the values as they lie, turned while they are loaded.

use std::fmt::Write;

use sparoa_kernels::attention::AttentionShape;

use super::{
    GpuCaps, MatrixUnits,
    matrix_attention::{self, ROWS},
    matrix_units::swizzle,
};

/// Keys of a tile.
const KEYS: usize = 64;
/// Elements of a chunk.
const CHUNK: usize = MatrixUnits::Fp16.chunk();

/// An attention as it is shared out.
pub(super) struct Form {
    warps: usize,
    /// Chunks of a query or key, and of a value.
    chunks: [usize; 2],
}

impl Form {
    /// The form for `s`, whose queries, keys and values begin at and step by whole chunks; `None`
    /// where there is no room.
    pub(super) fn new(s: &AttentionShape, caps: &GpuCaps) -> Option<Form> {
        let widths = [s.head_dim, s.v_dim];
        // A product takes 16 elements; lines turn their chunks among four or eight.
        let whole = widths.iter().all(|d| d.is_multiple_of(4 * CHUNK));
        let warps = matrix_attention::warps(s, caps);
        let form = Form { warps, chunks: widths.map(|d| d / CHUNK) };
        let fits = 16 * form.memory() <= caps.workgroup_bytes as usize;
        (whole && fits && form.threads() <= caps.workgroup_size as usize).then_some(form)
    }

    /// Rows of a workgroup.
    pub(super) fn rows(&self) -> usize {
        ROWS * self.warps
    }

    fn threads(&self) -> usize {
        32 * self.warps
    }

    /// Chunks of a tile of keys and one of values.
    fn tile(&self) -> usize {
        KEYS * (self.chunks[0] + self.chunks[1])
    }

    /// Chunks of workgroup memory: the queries and two tiles.
    fn memory(&self) -> usize {
        self.rows() * self.chunks[0] + 2 * self.tile()
    }

    /// Places that the chunks of a row are turned by.
    fn turn(row: &str, chunks: usize) -> String {
        swizzle(row, if chunks.is_multiple_of(8) { 8 } else { 4 })
    }

    /// `main` over `score` and `store`, and `q`, `k` and `v` of chunks.
    pub(super) fn text(&self) -> Option<String> {
        let (threads, rows, [qc, vc]) = (self.threads(), self.rows(), self.chunks);
        let (q_part, tile) = (rows * qc, self.tile());
        let mut t = format!(
            "var<workgroup> tile: array<vec4<u32>, {}>;\n{}{}{NATIVE}\
             @compute @workgroup_size({threads})\n\
             fn main(@builtin(workgroup_id) group: vec3<u32>, \
             @builtin(local_invocation_index) thread: u32) {{\n\
             let lane = thread % 32u;\nlet across = lane % 4u;\nlet warp = thread / 32u;\n\
             let h = group.y;\nlet b = group.z;\nlet row0 = group.x * {rows}u;\n\
             let row = row0 + warp * {ROWS}u + lane / 4u;\n\
             let r0 = min(row, p.rows - 1u);\nlet r1 = min(row + 8u, p.rows - 1u);\n\
             let q_at = p.q_first + b * p.q_batch + h * p.q_head;\n\
             let k_at = p.k_first + b * p.k_batch + h * p.k_head;\n\
             let v_at = p.v_first + b * p.v_batch + h * p.v_head;\n\
             var high0 = -3.0e38;\nvar high1 = -3.0e38;\nvar sum0 = 0.0;\nvar sum1 = 0.0;\n",
            self.memory(),
            super::matrix_units::NATIVE,
            matrix_attention::NATIVE,
        );
        for n in 0..vc {
            writeln!(t, "var o{n} = vec4<f32>();").ok()?;
        }
        self.copy(&mut t, "q", rows, qc, "0u", "row0", "p.rows")?;
        t.push_str("var first = 0u;\nvar half = 0u;\n");
        self.tiles(&mut t)?;
        t.push_str("native_end_copies();\nnative_wait_copies();\nworkgroupBarrier();\n");
        let turn = Form::turn("(lane % 8u)", qc);
        for c in 0..qc / 2 {
            writeln!(
                t,
                "let x{c} = load_matrices((warp * {ROWS}u + lane % 16u) * {qc}u \
                 + (({}u + lane / 16u) ^ {turn}));",
                2 * c
            )
            .ok()?;
        }
        // Where a lane points to for the keys' matrices, and for the values'.
        writeln!(
            t,
            "let lane_k = (lane % 8u + lane / 16u * 8u) * {qc}u;\n\
             let lane_v = {}u + (lane % 16u) * {vc}u;",
            KEYS * qc
        )
        .ok()?;
        for c in 0..qc / 2 {
            writeln!(t, "let kc{c} = lane_k + (({}u + lane / 8u % 2u) ^ {turn});", 2 * c).ok()?;
        }
        let turn = Form::turn("(lane % 8u)", vc);
        for n in 0..vc / 2 {
            writeln!(t, "let vn{n} = lane_v + (({}u + lane / 16u) ^ {turn});", 2 * n).ok()?;
        }
        writeln!(
            t,
            "loop {{\nlet now = {q_part}u + half * {tile}u;\nlet seen = first;\n\
             first += {KEYS}u;\nhalf = 1u - half;\nlet more = first < p.keys;\nif (more) {{"
        )
        .ok()?;
        self.tiles(&mut t)?;
        t.push_str("}\n");
        self.scores(&mut t)?;
        self.values(&mut t)?;
        t.push_str(
            "if (!more) { break; }\nnative_wait_copies();\nworkgroupBarrier();\n}\n\
             let inverse0 = 1.0 / native_quad_sum(sum0);\n\
             let inverse1 = 1.0 / native_quad_sum(sum1);\n\
             let inverse = vec4<f32>(inverse0, inverse0, inverse1, inverse1);\n\
             let own = row + lane % 2u * 8u;\n\
             let at = b * p.y_batch + h * p.y_head + own * p.y_row + across / 2u;\n",
        );
        for n in 0..vc {
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

    /// Copies `rows` rows of `name` from `first` on, of which there are `count`, to `to`.
    fn copy(
        &self,
        t: &mut String,
        name: &str,
        rows: usize,
        chunks: usize,
        to: &str,
        first: &str,
        count: &str,
    ) -> Option<()> {
        let threads = self.threads();
        let turn = Form::turn("r", chunks);
        for i in 0..(rows * chunks).div_ceil(threads) {
            writeln!(
                t,
                "{{ let i = thread + {}u;\nlet r = i / {chunks}u;\nlet c = i % {chunks}u;",
                i * threads
            )
            .ok()?;
            let part = rows * chunks < (i + 1) * threads;
            if part {
                writeln!(t, "if (i < {}u) {{", rows * chunks).ok()?;
            }
            writeln!(
                t,
                "copy_{name}({to} + r * {chunks}u + (c ^ {turn}), \
                 {name}_at + min({first} + r, {count} - 1u) * p.{name}_row + c);{} }}",
                if part { " }" } else { "" }
            )
            .ok()?;
        }
        Some(())
    }

    /// Starts the copies of the keys and values from `first` on.
    fn tiles(&self, t: &mut String) -> Option<()> {
        let [qc, vc] = self.chunks;
        let to = format!("{}u + half * {}u", self.rows() * qc, self.tile());
        self.copy(t, "k", KEYS, qc, &to, "first", "p.keys")?;
        let to = format!("{}u + half * {}u", self.rows() * qc + KEYS * qc, self.tile());
        self.copy(t, "v", KEYS, vc, &to, "first", "p.keys")
    }

    /// Scores `s0`.., each of eight keys, and from them weights.
    fn scores(&self, t: &mut String) -> Option<()> {
        let qc = self.chunks[0];
        for pair in 0..KEYS / 16 {
            let (j, i) = (2 * pair, 2 * pair + 1);
            writeln!(t, "var s{j} = vec4<f32>();\nvar s{i} = vec4<f32>();").ok()?;
            for c in 0..qc / 2 {
                let at = pair * 16 * qc;
                writeln!(
                    t,
                    "let k{pair}_{c} = load_matrices(now + kc{c} + {at}u);\n\
                     s{j} = native_multiply_half(x{c}, k{pair}_{c}.x, k{pair}_{c}.y, s{j});\n\
                     s{i} = native_multiply_half(x{c}, k{pair}_{c}.z, k{pair}_{c}.w, s{i});"
                )
                .ok()?;
            }
        }
        for j in 0..KEYS / 8 {
            let score = |row: usize, next: usize, part: &str| {
                format!("score(b, h, r{row}, key{j} + {next}u, s{j}.{part})")
            };
            writeln!(
                t,
                "let key{j} = seen + across * 2u + {}u;\n\
                 s{j} = vec4<f32>({}, {}, {}, {});",
                8 * j,
                score(0, 0, "x"),
                score(0, 1, "y"),
                score(1, 0, "z"),
                score(1, 1, "w"),
            )
            .ok()?;
        }
        matrix_attention::weights(t, KEYS / 8, self.chunks[1])
    }

    /// Adds the weighted values to `o0`..
    fn values(&self, t: &mut String) -> Option<()> {
        let vc = self.chunks[1];
        for pair in 0..KEYS / 16 {
            writeln!(t, "let w{pair} = native_pack_half(s{}, s{});", 2 * pair, 2 * pair + 1)
                .ok()?;
            for n in 0..vc / 2 {
                let (i, j) = (2 * n, 2 * n + 1);
                writeln!(
                    t,
                    "let v{pair}_{n} = load_turned(now + vn{n} + {}u);\n\
                     o{i} = native_multiply_half(w{pair}, v{pair}_{n}.x, v{pair}_{n}.y, o{i});\n\
                     o{j} = native_multiply_half(w{pair}, v{pair}_{n}.z, v{pair}_{n}.w, o{j});",
                    pair * 16 * vc,
                )
                .ok()?;
            }
        }
        Some(())
    }
}

/// Declarations of what the text calls besides those of [`matrix_attention`].
const NATIVE: &str = "\
fn native_wait_copies() {}
fn native_end_copies() {}
fn copy_q(to: u32, source: u32) { tile[to] = q[source]; }
fn copy_k(to: u32, source: u32) { tile[to] = k[source]; }
fn copy_v(to: u32, source: u32) { tile[to] = v[source]; }
fn load_matrices(at: u32) -> vec4<u32> { return tile[at]; }
fn load_turned(at: u32) -> vec4<u32> { return tile[at]; }
";
