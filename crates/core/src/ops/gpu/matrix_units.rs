//! The form of a product for matrix units (NVIDIA's tensor cores): a workgroup computes a block of the
//! result, each warp a tile of it by products of small matrices that its 32 invocations hold together.
//! Operands are rounded on their way into workgroup memory, sums are f32.
//!
//! WGSL has no words for what a warp does together. The text calls functions `native_..`, which only
//! the CUDA backend knows: it has their instructions, and takes `copy_async` and `load_matrices` for
//! what their names say. `half` in a name is f16 or bf16, as the backend has it. The bodies given here
//! stand for their types. Other backends never ask for this form: their
//! [`super::GpuCaps::matrix_units`] is `None`. Where four warps can multiply together, most products
//! have the form of [`super::warp_groups`]. Left sides that are stored in 16 bits need no rounding:
//! [`super::chunks`].

use std::fmt::Write;

use super::{
    MatrixUnits, chunks, clusters,
    matrix_blocks::{Block, Choice, SLICES},
    product::{Access, Product, begin},
    warp_groups,
};

/// Bytes of a chunk: what an invocation copies at once, and a row of the matrices that a warp loads.
pub(super) const CHUNK: usize = 16;

impl Choice {
    /// Whether four warps multiply together.
    pub(super) fn together(&self) -> bool {
        self.block.group > 0
    }

    /// Whether inner elements of the right side are in the order of [`super::warp_groups`].
    pub(super) fn turned(&self, access: Access) -> bool {
        self.together() && !access.chunks
    }

    /// Workgroups.
    pub(super) fn grid(&self, product: &Product) -> [usize; 3] {
        product.grid([self.block.rows, self.block.columns], self.cut.parts)
    }

    /// `main`, over `place`, `left_at`, `store` and the constant `b` of chunks. `run`: contiguous
    /// elements of the left side; `beside`: there are `beside` and `store_beside` as well.
    pub(super) fn text(
        &self,
        product: &Product,
        access: Access,
        run: usize,
        beside: bool,
    ) -> String {
        let exact = product.sizes[1].is_multiple_of(self.block.step(self.units));
        let text = if access.chunks {
            chunks::text(self, access, exact, beside)
        } else if self.together() {
            warp_groups::text(self, access, exact)
        } else {
            let paired = access.vector && run.is_multiple_of(8);
            Text { choice: *self, access, exact, paired }.print().expect("writing to a string")
        };
        let Block { rows, columns, .. } = self.block;
        clusters::join(text, self.cut, [rows, columns], self.block.threads())
    }
}

/// Declarations of what texts for matrix units call.
pub(super) const NATIVE: &str = "\
fn native_round_tf32(v: vec4<f32>) -> vec4<u32> { return vec4<u32>(); }
fn native_pack_half(low: vec4<f32>, high: vec4<f32>) -> vec4<u32> { return vec4<u32>(); }
fn native_multiply_tf32(a: vec4<u32>, low: u32, high: u32, sum: vec4<f32>) -> vec4<f32> { return sum; }
fn native_multiply_half(a: vec4<u32>, low: u32, high: u32, sum: vec4<f32>) -> vec4<f32> { return sum; }
fn native_exchange(v: vec4<f32>) -> vec4<f32> { return v; }
";

/// What reaches workgroup memory otherwise than by assignments.
const MEMORY: &str = "\
fn native_wait_copies() {}
fn copy_async(to: u32, source: u32) { tile[to] = b[source]; }
fn load_matrices(at: u32) -> vec4<u32> { return tile[at]; }
";

/// Prints `main`.
struct Text {
    choice: Choice,
    access: Access,
    /// The inner dimension is whole slices.
    exact: bool,
    /// A chunk's vec4s lie side by side, and in a padding together.
    paired: bool,
}

impl Text {
    /// vec4s of f32 that become a chunk.
    fn quads(&self) -> usize {
        self.choice.units.chunk() / 4
    }

    fn print(&self) -> Result<String, std::fmt::Error> {
        let Choice { block, units, cut } = self.choice;
        let Block { rows, columns, line, .. } = block;
        let (threads, step, slice) = (block.threads(), block.step(units), (rows + columns) * line);
        let apart = threads / line;
        let (a_loads, b_loads) = (rows / apart, columns / apart);
        let mut t =
            format!("var<workgroup> tile: array<vec4<u32>, {}>;\n{NATIVE}{MEMORY}", SLICES * slice);
        begin(&mut t, threads, cut.parts)?;
        writeln!(
            t,
            "let row0 = group.y * {rows}u;\nlet col0 = group.x * {columns}u;\n\
             let lane = thread % 32u;\nlet warp = thread / 32u;\n\
             let chunk = thread % {line}u;\nlet own = thread / {line}u;\n\
             let to = own * {line}u + (chunk ^ {0});\n\
             let source = z * p.b_z + chunk + first / {1}u;",
            swizzle("own", line),
            units.chunk(),
        )?;
        for i in 0..a_loads {
            let row = i * apart;
            writeln!(t, "let place{i} = place(min(row0 + own + {row}u, p.m - 1u), z);")?;
            for q in 0..self.quads() {
                writeln!(t, "var va{i}_{q} = vec4<f32>();")?;
            }
        }
        for i in 0..b_loads {
            let row = i * apart;
            writeln!(t, "var source{i} = source + min(col0 + own + {row}u, p.n - 1u) * p.b_row;")?;
        }
        self.start(&mut t)?;
        start_warps(&mut t, &block)?;
        let copy = |t: &mut String, half: &str| -> std::fmt::Result {
            for i in 0..b_loads {
                let at = rows * line + i * threads;
                writeln!(
                    t,
                    "copy_async({half} * {slice}u + to + {at}u, source{i});\nsource{i} += {line}u;"
                )?;
            }
            Ok(())
        };
        let keep = |t: &mut String, half: &str| -> std::fmt::Result {
            for i in 0..a_loads {
                let value = match units {
                    MatrixUnits::Tf32 => format!("native_round_tf32(va{i}_0)"),
                    MatrixUnits::Fp16 | MatrixUnits::Bf16 => {
                        format!("native_pack_half(va{i}_0, va{i}_1)")
                    }
                };
                writeln!(t, "tile[{half} * {slice}u + to + {}u] = {value};", i * threads)?;
            }
            t.push_str("native_wait_copies();\n");
            Ok(())
        };
        t.push_str("var k = first;\n");
        copy(&mut t, "0u")?;
        self.load(&mut t, a_loads)?;
        keep(&mut t, "0u")?;
        t.push_str("workgroupBarrier();\n");
        writeln!(
            t,
            "var half = 0u;\nloop {{\nlet now = half * {slice}u;\nhalf = 1u - half;\n\
             k += {step}u;\nlet more = k < end;\nif (more) {{"
        )?;
        copy(&mut t, "half")?;
        self.advance(&mut t)?;
        self.load(&mut t, a_loads)?;
        t.push_str("}\n");
        let name = match units {
            MatrixUnits::Tf32 => "native_multiply_tf32",
            MatrixUnits::Fp16 | MatrixUnits::Bf16 => "native_multiply_half",
        };
        multiply(&mut t, &block, name)?;
        t.push_str("if (!more) { break; }\n");
        keep(&mut t, "half")?;
        t.push_str("workgroupBarrier();\n}\n");
        finish(&mut t, block.tile())?;
        Ok(t)
    }

    /// Positions in its window that an invocation keeps: of a chunk, of its vec4s, or of its
    /// elements.
    fn positions(&self) -> usize {
        match (self.paired, self.access.vector) {
            (true, _) => 1,
            (false, true) => self.quads(),
            (false, false) => self.choice.units.chunk(),
        }
    }

    /// Where in its window each position begins.
    fn start(&self, t: &mut String) -> std::fmt::Result {
        let chunk = self.choice.units.chunk();
        let unit = if self.access.vector { 4 } else { 1 };
        for j in 0..self.positions() {
            let first = format!("first / {unit}u + chunk * {}u + {j}u", chunk / unit);
            self.access.start(t, j, &first)?;
        }
        Ok(())
    }

    /// Moves the positions to the next slice.
    fn advance(&self, t: &mut String) -> std::fmt::Result {
        let step = self.choice.block.step(self.choice.units);
        let step = if self.access.vector { step / 4 } else { step };
        (0..self.positions()).try_for_each(|j| self.access.advance(t, j, step))
    }

    /// Loads the slice at `k` into `va0_0..`.
    fn load(&self, t: &mut String, a_loads: usize) -> std::fmt::Result {
        let chunk = self.choice.units.chunk();
        for i in 0..a_loads {
            for j in 0..self.positions() {
                // What is loaded from here on: a target, its zero, its place behind `at`, and its
                // first inner element within the chunk.
                let targets: Vec<(String, &str, usize, usize)> = match self.access.vector {
                    true if self.paired => (0..self.quads())
                        .map(|q| (format!("va{i}_{q}"), "vec4<f32>()", q, 4 * q))
                        .collect(),
                    true => vec![(format!("va{i}_{j}"), "vec4<f32>()", 0, 4 * j)],
                    false => {
                        let part = ["x", "y", "z", "w"][j % 4];
                        vec![(format!("va{i}_{}.{part}", j / 4), "0.0", 0, j)]
                    }
                };
                self.access.locate(t, i, j)?;
                for (target, zero, behind, element) in targets {
                    let value = format!("a[at_a() + u32(at) + {behind}u]");
                    if self.exact && self.access.sure {
                        writeln!(t, "{target} = {value};")?;
                        continue;
                    }
                    let there = if self.access.sure { "true" } else { "at >= 0" };
                    let inside = match self.exact {
                        true => "true".to_owned(),
                        false => format!("k + chunk * {chunk}u + {element}u < p.rows_b"),
                    };
                    writeln!(
                        t,
                        "{target} = {zero};\nif ({there} && {inside}) {{ {target} = {value}; }}"
                    )?;
                }
                t.push_str("}\n");
            }
        }
        Ok(())
    }
}

/// Turns the chunks of a row such that eight rows' are in different banks: by so many places.
pub(super) fn swizzle(row: &str, line: usize) -> String {
    match line {
        4 => format!("({row} / 2u % 4u)"),
        _ => format!("({row} % 8u)"),
    }
}

/// Where a warp's rows and columns are, and its sums.
pub(super) fn start_warps(t: &mut String, block: &Block) -> std::fmt::Result {
    let Block { rows, warps, line, .. } = *block;
    let [tile_rows, tile_columns] = block.tile();
    writeln!(
        t,
        "let warp_row = warp / {0}u * {tile_rows}u;\nlet warp_col = warp % {0}u * {tile_columns}u;\n\
         let lane_a = (warp_row + lane % 16u) * {line}u;\n\
         let lane_b = {1}u + (warp_col + lane % 8u + lane / 16u * 8u) * {line}u;",
        warps[1],
        rows * line
    )?;
    for s in 0..line / 2 {
        let turn = swizzle("(lane % 8u)", line);
        writeln!(t, "let xa{s} = lane_a + (({}u + lane / 16u) ^ {turn});", 2 * s)?;
        writeln!(t, "let xb{s} = lane_b + (({}u + lane / 8u % 2u) ^ {turn});", 2 * s)?;
    }
    for i in 0..tile_rows / 16 {
        for j in 0..tile_columns / 8 {
            writeln!(t, "var s{i}_{j} = vec4<f32>();")?;
        }
    }
    Ok(())
}

/// The products of the slice that begins at chunk `now`, each warp on its own.
pub(super) fn multiply(t: &mut String, block: &Block, name: &str) -> std::fmt::Result {
    let line = block.line;
    let [tile_rows, tile_columns] = block.tile();
    for s in 0..line / 2 {
        for i in 0..tile_rows / 16 {
            let at = i * 16 * line;
            writeln!(t, "let x{s}_{i} = load_matrices(now + xa{s} + {at}u);")?;
        }
        for j in 0..tile_columns / 16 {
            let at = j * 16 * line;
            writeln!(t, "let w{s}_{j} = load_matrices(now + xb{s} + {at}u);")?;
        }
        for i in 0..tile_rows / 16 {
            for j in 0..tile_columns / 8 {
                let (low, high) = if j % 2 == 0 { ("x", "y") } else { ("z", "w") };
                let w = format!("w{s}_{}", j / 2);
                writeln!(t, "s{i}_{j} = {name}(x{s}_{i}, {w}.{low}, {w}.{high}, s{i}_{j});")?;
            }
        }
    }
    Ok(())
}

/// Stores a warp's sums `s0_0`.. of so many rows and columns. Lanes hold two columns of two rows,
/// neighbours exchange them for four of one.
pub(super) fn finish(t: &mut String, [rows, columns]: [usize; 2]) -> std::fmt::Result {
    t.push_str(
        "let row = row0 + warp_row + lane / 4u + lane % 2u * 8u;\n\
         let col = (col0 + warp_col) / 4u + lane / 2u % 2u;\n",
    );
    for i in 0..rows / 16 {
        for j in 0..columns / 8 {
            writeln!(
                t,
                "store(row + {}u, col + {}u, z, part, native_exchange(s{i}_{j}));",
                i * 16,
                j * 2
            )?;
        }
    }
    t.push_str("}\n");
    Ok(())
}
