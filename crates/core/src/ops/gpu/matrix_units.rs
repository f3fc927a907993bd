//! The form of a product for matrix units (NVIDIA's tensor cores): a workgroup computes a block of the
//! result, each warp a tile of it by products of small matrices that its 32 invocations hold together.
//! Operands are rounded on their way into workgroup memory, sums are f32.
//!
//! WGSL has no words for what a warp does together. The text calls functions `native_..`, which only
//! the CUDA backend knows: it has their instructions, and takes `copy_async` and `load_matrices` for
//! what their names say. The bodies given here stand for their types. Other backends never ask for
//! this form: their [`GpuCaps::matrix_units`] is `None`.

use std::fmt::Write;

use super::{
    GpuCaps, MatrixUnits,
    product::{Access, LATENCY, Product, RESIDENT, multiprocessors, own_part},
};

/// How a product is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// Rows and columns of a workgroup.
    rows: usize,
    columns: usize,
    /// Warps down and across.
    warps: [usize; 2],
    /// Chunks of 16 bytes of a row's slice in workgroup memory.
    line: usize,
    /// Four warps multiply together, straight from workgroup memory.
    group: bool,
}

const fn block(rows: usize, columns: usize, warps: [usize; 2], line: usize) -> Block {
    Block { rows, columns, warps, line, group: false }
}

const fn group(rows: usize, columns: usize) -> Block {
    Block { rows, columns, warps: [rows / 16, 1], line: 4, group: true }
}

/// Blocks to choose from.
const BLOCKS: [Block; 12] = [
    group(128, 256),
    group(128, 128),
    group(64, 128),
    block(128, 256, [4, 4], 4),
    block(128, 128, [2, 4], 4),
    block(128, 64, [2, 2], 4),
    block(64, 64, [2, 2], 8),
    block(128, 32, [4, 1], 4),
    block(64, 32, [2, 2], 8),
    block(32, 64, [2, 2], 8),
    block(32, 32, [2, 2], 8),
    block(16, 64, [1, 4], 8),
];
/// Rows and columns that a group of four warps multiplies at once.
const GROUP: [usize; 2] = [64, 128];
/// Inner elements from which on groups are worth their few warps: measured on an H200, where Swin-T's
/// and MobileNetV2's shorter products took longer with them.
const GROUP_DEPTH: usize = 512;
/// Bytes of a chunk: what an invocation copies at once, and a row of the matrices that a warp loads.
pub(super) const CHUNK: usize = 16;
/// Slices in workgroup memory: one is multiplied while the next arrives.
const SLICES: usize = 2;

/// Multiply-adds of a multiprocessor per cycle, in tf32; twice as many in fp16.
const RATE: f64 = 512.0;
/// Bytes that a multiprocessor gets from the cache per cycle.
const BYTES: f64 = 40.0;
/// Cycles from a slice's loads until it is in workgroup memory.
const LAG: f64 = 900.0;
impl Block {
    fn threads(&self) -> usize {
        32 * self.warps[0] * self.warps[1]
    }

    fn workgroup_bytes(&self) -> usize {
        SLICES * self.slice_chunks() * CHUNK
    }

    /// Chunks of a slice of both sides.
    fn slice_chunks(&self) -> usize {
        (self.rows + self.columns) * self.line
    }

    /// Rows and columns of a warp.
    fn tile(&self) -> [usize; 2] {
        [self.rows / self.warps[0], self.columns / self.warps[1]]
    }

    /// Inner elements of a slice.
    fn step(&self, units: MatrixUnits) -> usize {
        self.line * units.chunk()
    }

    /// Estimated cycles of a product in `parts` parts of `span` inner elements on `multiprocessors`.
    fn cycles(
        &self,
        product: &Product,
        units: MatrixUnits,
        [span, parts]: [usize; 2],
        multiprocessors: usize,
    ) -> f64 {
        let tiles = product.blocks([self.rows, self.columns]);
        let per_unit = (tiles * parts).div_ceil(multiprocessors);
        let (step, warps) = (self.step(units), self.threads() / 32);
        let [rows, columns] = self.tile();
        let rate = if units == MatrixUnits::Fp16 { 2.0 * RATE } else { RATE };
        // A tile of few matrices waits for what it loads; groups load nothing.
        let loaded = match self.group {
            true => 0.5,
            false => 1.0 + 8.0 * (1.0 / rows as f64 + 1.0 / columns as f64),
        };
        let multiply = (self.rows * self.columns * step) as f64 / rate * loaded;
        let staged = (self.rows * self.line).div_ceil(self.threads()) * 16 * units.chunk() / 4
            + (self.columns * self.line).div_ceil(self.threads()) * 4;
        let loads = if self.group { 0 } else { self.line / 2 * (rows / 16 + columns / 16) };
        let issued = (staged + 2 * loads + 60) * warps;
        let fetched = step * (4 * self.rows + CHUNK / units.chunk() * self.columns);
        let all = per_unit as f64;
        let turns = (per_unit * warps).div_ceil(RESIDENT.max(warps)) as f64;
        let slice = (all * multiply)
            .max(all * issued as f64 / 4.0)
            .max(all * fetched as f64 / BYTES)
            .max(LAG * turns);
        let slices = span.div_ceil(step) as f64;
        // A multiprocessor's last blocks end one after the other, alone.
        slices * slice
            + LATENCY * turns.min(2.0)
            + product.sum_cycles(parts, multiprocessors, BYTES)
    }
}

/// A block and into how many parts the inner dimension is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    block: Block,
    units: MatrixUnits,
    /// Parts of the inner dimension, each a workgroup's.
    pub(super) parts: usize,
    /// Inner elements of a part, whole slices.
    pub(super) span: usize,
}

/// The block and parts with the shortest estimate; `None` where the device has no room for any.
pub(super) fn choose(product: &Product, units: MatrixUnits, caps: &GpuCaps) -> Option<Choice> {
    let multiprocessors = multiprocessors(caps);
    let room = |block: &&Block| {
        block.workgroup_bytes() <= caps.workgroup_bytes as usize
            && block.threads() <= caps.workgroup_size as usize
            && (!block.group || (caps.warp_groups && product.sizes[1] >= GROUP_DEPTH))
    };
    let choices = BLOCKS.iter().filter(room).flat_map(|&block| {
        product.cuts(block.step(units), caps).map(move |[span, parts]| {
            let cycles = block.cycles(product, units, [span, parts], multiprocessors);
            (cycles, Choice { block, units, parts, span })
        })
    });
    let best = choices.min_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, choice)| choice)
}

impl Choice {
    /// Workgroups.
    pub(super) fn grid(&self, product: &Product) -> [usize; 3] {
        product.grid([self.block.rows, self.block.columns], self.parts)
    }

    /// `main`, over `place`, `left_at`, `store` and the constant `b` of chunks. `run`: contiguous
    /// elements of the left side.
    pub(super) fn text(&self, product: &Product, access: Access, run: usize) -> String {
        let exact = product.sizes[1].is_multiple_of(self.block.step(self.units));
        let paired = access.vector && run.is_multiple_of(8);
        Text { choice: *self, access, exact, paired }.print().expect("writing to a string")
    }
}

/// Declarations of what texts for matrix units call.
pub(super) const NATIVE: &str = "\
fn native_round_tf32(v: vec4<f32>) -> vec4<u32> { return vec4<u32>(); }
fn native_pack_f16(low: vec4<f32>, high: vec4<f32>) -> vec4<u32> { return vec4<u32>(); }
fn native_multiply_tf32(a: vec4<u32>, low: u32, high: u32, sum: vec4<f32>) -> vec4<f32> { return sum; }
fn native_multiply_f16(a: vec4<u32>, low: u32, high: u32, sum: vec4<f32>) -> vec4<f32> { return sum; }
fn native_exchange(v: vec4<f32>) -> vec4<f32> { return v; }
";

/// What reaches workgroup memory otherwise than by assignments.
const MEMORY: &str = "\
fn native_wait_copies() {}
fn copy_async(to: u32, source: u32) { tile[to] = b[source]; }
fn load_matrices(at: u32) -> vec4<u32> { return tile[at]; }
";

/// What four warps do together.
const TOGETHER: &str = "\
fn native_group_start() {}
fn native_group_end() {}
fn native_group_wait() {}
fn native_group_publish() {}
fn shared_place(at: u32) -> vec4<u32> { return tile[at]; }
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
        let Choice { block, units, parts, .. } = self.choice;
        let Block { rows, columns, warps, line, .. } = block;
        let (threads, step, slice) = (block.threads(), block.step(units), block.slice_chunks());
        let [tile_rows, tile_columns] = block.tile();
        let apart = threads / line;
        let (a_loads, b_loads) = (rows / apart, columns / apart);
        // Chunks change places within a row so that eight rows' are in different banks.
        let swizzle = |row: &str| match line {
            4 => format!("({row} / 2u % 4u)"),
            _ => format!("({row} % 8u)"),
        };
        let mut t =
            format!("var<workgroup> tile: array<vec4<u32>, {}>;\n{NATIVE}{MEMORY}", SLICES * slice);
        if block.group {
            t.push_str(TOGETHER);
            let sums = (0..GROUP[1] / 8).map(|j| format!("s{j}: ptr<function, vec4<f32>>, "));
            let sums = sums.collect::<String>();
            writeln!(
                t,
                "fn {}({sums}a: vec4<u32>, b: vec4<u32>, step: u32) {{}}\n\
                 fn native_group_hold({}) {{}}",
                self.group_multiply(),
                sums.trim_end_matches(", ")
            )?;
        }
        writeln!(
            t,
            "@compute @workgroup_size({threads})\n\
             fn main(@builtin(workgroup_id) group: vec3<u32>, \
             @builtin(local_invocation_index) thread: u32) {{"
        )?;
        t.push_str(own_part(parts));
        writeln!(
            t,
            "let row0 = group.y * {rows}u;\nlet col0 = group.x * {columns}u;\n\
             let lane = thread % 32u;\nlet warp = thread / 32u;\n\
             let warp_row = warp / {0}u * {tile_rows}u;\nlet warp_col = warp % {0}u * {tile_columns}u;\n\
             let chunk = thread % {line}u;\nlet own = thread / {line}u;\n\
             let to = own * {line}u + (chunk ^ {1});\n\
             let source = z * p.b_z + chunk + first / {2}u;",
            warps[1],
            swizzle("own"),
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
        if !block.group {
            writeln!(t, "let lane_a = (warp_row + lane % 16u) * {line}u;")?;
            writeln!(
                t,
                "let lane_b = {}u + (warp_col + lane % 8u + lane / 16u * 8u) * {line}u;",
                rows * line
            )?;
            for s in 0..line / 2 {
                let turn = swizzle("(lane % 8u)");
                writeln!(t, "let xa{s} = lane_a + (({}u + lane / 16u) ^ {turn});", 2 * s)?;
                writeln!(t, "let xb{s} = lane_b + (({}u + lane / 8u % 2u) ^ {turn});", 2 * s)?;
            }
        }
        for i in 0..tile_rows / 16 {
            for j in 0..tile_columns / 8 {
                writeln!(t, "var s{i}_{j} = vec4<f32>();")?;
            }
        }
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
                    MatrixUnits::Fp16 => format!("native_pack_f16(va{i}_0, va{i}_1)"),
                };
                writeln!(t, "tile[{half} * {slice}u + to + {}u] = {value};", i * threads)?;
            }
            t.push_str("native_wait_copies();\n");
            Ok(())
        };
        let publish = match block.group {
            true => "native_group_publish();\nworkgroupBarrier();\n",
            false => "workgroupBarrier();\n",
        };
        t.push_str("var k = first;\n");
        copy(&mut t, "0u")?;
        self.load(&mut t, a_loads)?;
        keep(&mut t, "0u")?;
        t.push_str(publish);
        writeln!(
            t,
            "var half = 0u;\nloop {{\nlet now = half * {slice}u;\nhalf = 1u - half;\n\
             k += {step}u;\nlet more = k < end;\nif (more) {{"
        )?;
        copy(&mut t, "half")?;
        self.advance(&mut t)?;
        self.load(&mut t, a_loads)?;
        t.push_str("}\n");
        if block.group {
            self.multiply_together(&mut t)?;
            // The next slice is laid out meanwhile.
            t.push_str("if (more) {\n");
            keep(&mut t, "half")?;
            t.push_str("}\nnative_group_wait();\n");
            self.hold(&mut t)?;
            t.push_str("if (!more) { break; }\n");
        } else {
            self.multiply(&mut t)?;
            t.push_str("if (!more) { break; }\n");
            keep(&mut t, "half")?;
        }
        writeln!(t, "{publish}}}")?;
        // Lanes hold two columns of two rows, neighbours exchange them for four of one.
        t.push_str(
            "let row = row0 + warp_row + lane / 4u + lane % 2u * 8u;\n\
             let col = (col0 + warp_col) / 4u + lane / 2u % 2u;\n",
        );
        for i in 0..tile_rows / 16 {
            for j in 0..tile_columns / 8 {
                writeln!(
                    t,
                    "store(row + {}u, col + {}u, z, part, native_exchange(s{i}_{j}));",
                    i * 16,
                    j * 2
                )?;
            }
        }
        t.push_str("}\n");
        Ok(t)
    }

    /// The products of a slice, each warp on its own.
    fn multiply(&self, t: &mut String) -> std::fmt::Result {
        let Block { line, .. } = self.choice.block;
        let [tile_rows, tile_columns] = self.choice.block.tile();
        let multiply = match self.choice.units {
            MatrixUnits::Tf32 => "native_multiply_tf32",
            MatrixUnits::Fp16 => "native_multiply_f16",
        };
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
                    writeln!(
                        t,
                        "s{i}_{j} = {multiply}(x{s}_{i}, {w}.{low}, {w}.{high}, s{i}_{j});"
                    )?;
                }
            }
        }
        Ok(())
    }

    fn group_multiply(&self) -> &'static str {
        match self.choice.units {
            MatrixUnits::Tf32 => "native_group_multiply_tf32",
            MatrixUnits::Fp16 => "native_group_multiply_f16",
        }
    }

    /// Starts the products of a slice, four warps together.
    fn multiply_together(&self, t: &mut String) -> std::fmt::Result {
        let Block { rows, columns, line, .. } = self.choice.block;
        let [group_rows, group_columns] = GROUP;
        writeln!(t, "let at_a = shared_place(now + warp / 4u * {}u);", group_rows * line)?;
        for j in 0..columns / group_columns {
            let at = (rows + j * group_columns) * line;
            writeln!(t, "let at_b{j} = shared_place(now + {at}u);")?;
        }
        self.hold(t)?;
        t.push_str("native_group_start();\n");
        for s in 0..line / 2 {
            for j in 0..columns / group_columns {
                let sums = Text::sums(j);
                writeln!(t, "{}({sums}, at_a, at_b{j}, {s}u);", self.group_multiply())?;
            }
        }
        t.push_str("native_group_end();\n");
        Ok(())
    }

    /// Keeps the compiler from moving accesses of the sums to where products are under way.
    fn hold(&self, t: &mut String) -> std::fmt::Result {
        (0..self.choice.block.columns / GROUP[1])
            .try_for_each(|j| writeln!(t, "native_group_hold({});", Text::sums(j)))
    }

    /// The sums of the `j`-th product of four warps, as arguments.
    fn sums(j: usize) -> String {
        let sums: Vec<_> =
            (0..GROUP[1] / 8).map(|i| format!("&s0_{}", j * GROUP[1] / 8 + i)).collect();
        sums.join(", ")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(units: u32) -> GpuCaps {
        GpuCaps { units, workgroup_bytes: 48 << 10, workgroup_size: 1024, ..GpuCaps::ordinary() }
    }

    #[test]
    fn every_block_is_whole() {
        for block in BLOCKS {
            let apart = block.threads() / block.line;
            assert!(matches!(block.line, 4 | 8) && block.workgroup_bytes() <= 48 << 10);
            assert!(apart.is_multiple_of(8), "rows of a load keep their chunks' order");
            assert!(block.rows.is_multiple_of(apart) && block.columns.is_multiple_of(apart));
            let [rows, columns] = block.tile();
            assert!(rows.is_multiple_of(16) && columns.is_multiple_of(16));
            if block.group {
                assert!(block.rows.is_multiple_of(GROUP[0]) && columns.is_multiple_of(GROUP[1]));
            }
        }
    }

    #[test]
    fn parts_cover_the_inner_dimension() {
        for (m, k, n) in [(49, 4608, 512), (196, 1153, 256), (17, 3, 9), (197, 768, 3072)] {
            for count in [0, 2, 16, 132] {
                for units in [MatrixUnits::Tf32, MatrixUnits::Fp16] {
                    let product = Product { sizes: [m, k, n], batch: 1 };
                    let Choice { block, parts, span, .. } =
                        choose(&product, units, &caps(count)).unwrap();
                    assert!(span.is_multiple_of(block.step(units)) && parts * span >= k);
                    assert!((parts - 1) * span < k, "no part of {m}x{k}x{n} is empty");
                }
            }
        }
    }

    #[test]
    fn a_device_without_room_has_no_such_form() {
        let small = GpuCaps { workgroup_bytes: 4 << 10, ..caps(16) };
        let product = Product { sizes: [64, 64, 64], batch: 1 };
        assert!(choose(&product, MatrixUnits::Tf32, &small).is_none());
    }
}
