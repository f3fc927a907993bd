//! The form of a product where four warps multiply together (Hopper's `wgmma`): each warp has its rows
//! of the left side in registers, the right side is read from workgroup memory. Slices of both sides
//! are copied there without passing through registers, several under way at once, in a ring; left-hand
//! elements are rounded between workgroup memory and registers.
//!
//! The order of a product's inner elements is free as long as both sides have the same: here it is the
//! one in which an invocation's part of a row is a whole vec4 ([`inner`]).

use std::fmt::Write;

use super::{
    MatrixUnits,
    matrix_blocks::{Block, Choice},
    matrix_units::{CHUNK, NATIVE},
    product::{Access, begin},
};

/// Rows of four warps.
pub(super) const ROWS: usize = 64;
/// Inner elements that are reordered among themselves.
const TURN: usize = 16;
/// Slices in the ring that no copy is under way to: one is multiplied, and so may be the one before.
const BUSY: usize = 2;

/// The inner element at a place of the right side's columns.
pub(super) fn inner(place: usize, units: MatrixUnits) -> usize {
    let (turn, i) = (place / TURN * TURN, place % TURN);
    turn + match units {
        // Lanes have two products' worth of two elements each, or one's of four.
        MatrixUnits::Tf32 => i % 4 * 4 + i / 8 * 2 + i % 8 / 4,
        MatrixUnits::Fp16 | MatrixUnits::Bf16 => i % 8 / 2 * 4 + i / 8 * 2 + i % 2,
    }
}

/// Bytes of a block's ring.
pub(super) fn ring_bytes(block: &Block, units: MatrixUnits) -> usize {
    block.slices * CHUNK * (left_chunks(block, units) + block.columns * block.line)
}

/// vec4s of the left side in a slice.
fn left_chunks(block: &Block, units: MatrixUnits) -> usize {
    block.rows * block.step(units) / 4
}

/// Declarations of what the text calls besides [`NATIVE`].
const TOGETHER: &str = "\
fn native_group_start() {}
fn native_group_end() {}
fn native_group_wait() {}
fn native_group_wait_but_one() {}
fn native_group_publish() {}
fn native_group_take(a: ptr<function, vec4<u32>>, b: ptr<function, vec4<u32>>) {}
fn native_end_copies() {}
fn shared_place(at: u32) -> vec4<u32> { return tile[at]; }
fn copy_right(to: u32, source: u32) { tile[to] = b[source]; }
fn copy_left(to: u32, source: u32, there: bool) {
    if (there) { left[to] = a[source]; } else { left[to] = vec4<f32>(); }
}
";

/// `main`, over `place`, `left_at`, `store` and the constant `b` of chunks.
pub(super) fn text(choice: &Choice, access: Access, exact: bool) -> String {
    Text { choice: *choice, access, exact }.print().expect("writing to a string")
}

struct Text {
    choice: Choice,
    access: Access,
    /// The inner dimension is whole slices.
    exact: bool,
}

impl Text {
    fn print(&self) -> Result<String, std::fmt::Error> {
        let Choice { block, units, cut } = self.choice;
        let Block { rows, columns, line, slices, group, .. } = block;
        let (threads, step) = (block.threads(), block.step(units));
        let (quads, left, right) = (step / 4, left_chunks(&block, units), columns * line);
        let ahead = slices - BUSY;
        let mut t = format!(
            "var<workgroup> tile: array<vec4<u32>, {}>;\n\
             var<workgroup> left: array<vec4<f32>, {}>;\n{NATIVE}{TOGETHER}\
             fn native_wait_copies_but_{}() {{}}\n",
            slices * right,
            slices * left,
            ahead - 1
        );
        let sums = (0..group / 8).map(|j| format!("s{j}: ptr<function, vec4<f32>>, "));
        let sums = sums.collect::<String>();
        writeln!(
            t,
            "fn {}({sums}a: vec4<u32>, b: vec4<u32>, step: u32) {{}}\n\
             fn native_group_hold_{group}({}) {{}}",
            self.multiply(),
            sums.trim_end_matches(", ")
        )?;
        begin(&mut t, threads, cut.parts)?;
        // Chunks change places within a row so that those that are read together are in different
        // banks: lines of 64 bytes as the hardware has it, of 128 those of odd rows by half a line.
        let turn = |row: &str| match quads {
            4 => "0u".to_owned(),
            _ => format!("({row} % 2u * 4u)"),
        };
        writeln!(
            t,
            "let row0 = group.y * {rows}u;\nlet col0 = group.x * {columns}u;\n\
             let lane = thread % 32u;\nlet warp = thread / 32u;\nlet warp_row = warp * 16u;\n\
             let quad = thread % {quads}u;\nlet own_a = thread / {quads}u;\n\
             let chunk = thread % {line}u;\nlet own_b = thread / {line}u;\n\
             let to_a = own_a * {quads}u + (quad ^ {});\n\
             let to_b = own_b * {line}u + (chunk ^ (own_b / 2u % 4u));\n\
             let source = z * p.b_z + chunk + first / {}u;\n\
             let line_a = (warp_row + lane / 4u) * {quads}u;",
            turn("own_a"),
            units.chunk()
        )?;
        for i in 0..left / threads {
            let row = i * threads / quads;
            writeln!(t, "let place{i} = place(min(row0 + own_a + {row}u, p.m - 1u), z);")?;
        }
        for i in 0..right.div_ceil(threads) {
            let row = i * threads / line;
            writeln!(
                t,
                "var source{i} = source + min(col0 + own_b + {row}u, p.n - 1u) * p.b_row;"
            )?;
        }
        for s in 0..step / TURN {
            writeln!(
                t,
                "let xa{s} = line_a + (({}u + lane % 4u) ^ {});",
                4 * s,
                turn("(lane / 4u)")
            )?;
        }
        self.access.start(&mut t, 0, "first / 4u + quad")?;
        for j in 0..columns / 8 {
            writeln!(t, "var s{j} = vec4<f32>();")?;
        }
        for parity in 0..2 {
            for s in 0..self.products() {
                writeln!(t, "var x{parity}_{s} = vec4<u32>();")?;
            }
        }
        t.push_str("var k = first;\nvar seen = first;\nvar into = 0u;\nvar now = 0u;\n");
        for slice in 0..ahead {
            self.copy(&mut t, slice == 0)?;
        }
        t.push_str("loop {\n");
        for parity in 0..2 {
            self.slice(&mut t, parity, ahead)?;
        }
        t.push_str("}\nnative_group_wait();\n");
        for j in 0..columns / group {
            writeln!(t, "native_group_hold_{group}({});", self.sums(j))?;
        }
        // Lanes hold two columns of two rows, neighbours exchange them for four of one.
        t.push_str(
            "let row = row0 + warp_row + lane / 4u + lane % 2u * 8u;\n\
             let col = col0 / 4u + lane / 2u % 2u;\n",
        );
        for j in 0..columns / 8 {
            writeln!(t, "store(row, col + {}u, z, part, native_exchange(s{j}));", j * 2)?;
        }
        t.push_str("}\n");
        Ok(t)
    }

    /// Products of a slice, one after the other.
    fn products(&self) -> usize {
        self.choice.block.line / 2
    }

    fn multiply(&self) -> String {
        let kind = match self.choice.units {
            MatrixUnits::Tf32 => "tf32",
            MatrixUnits::Fp16 | MatrixUnits::Bf16 => "half",
        };
        format!("native_group_multiply_{kind}_{}", self.choice.block.group)
    }

    /// The sums of the `j`-th of the products side by side, as arguments.
    fn sums(&self, j: usize) -> String {
        let count = self.choice.block.group / 8;
        let sums: Vec<_> = (j * count..(j + 1) * count).map(|i| format!("&s{i}")).collect();
        sums.join(", ")
    }

    /// Starts the copies of the slice at `k`, should there be one.
    fn copy(&self, t: &mut String, sure: bool) -> std::fmt::Result {
        let Choice { block, units, .. } = self.choice;
        let (threads, step) = (block.threads(), block.step(units));
        let (left, right) = (left_chunks(&block, units), block.columns * block.line);
        if !sure {
            t.push_str("if (k < end) {\n");
        }
        for i in 0..left / threads {
            self.access.locate(t, i, 0)?;
            let mut there = Vec::new();
            if !self.access.sure {
                there.push("at >= 0");
            }
            if !self.exact {
                there.push("k + quad * 4u < p.rows_b");
            }
            let there = if there.is_empty() { "true".to_owned() } else { there.join(" && ") };
            let at = i * threads;
            writeln!(t, "copy_left(into * {left}u + to_a + {at}u, at_a() + u32(at), {there}); }}")?;
        }
        for i in 0..right.div_ceil(threads) {
            let at = i * threads;
            let part = right - at < threads;
            if part {
                writeln!(t, "if (thread < {}u) {{", right - at)?;
            }
            writeln!(t, "copy_right(into * {right}u + to_b + {at}u, source{i});")?;
            if part {
                t.push_str("}\n");
            }
            writeln!(t, "source{i} += {}u;", block.line)?;
        }
        self.access.advance(t, 0, step / 4)?;
        if !sure {
            t.push_str("}\n");
        }
        writeln!(
            t,
            "native_end_copies();\nk += {step}u;\ninto++;\nif (into == {}u) {{ into = 0u; }}",
            block.slices
        )
    }

    /// Multiplies a slice with the registers of `parity`: those of the slice before are in use.
    fn slice(&self, t: &mut String, parity: usize, ahead: usize) -> std::fmt::Result {
        let Choice { block, units, .. } = self.choice;
        let Block { columns, line, slices, group, .. } = block;
        let (step, left, right) = (block.step(units), left_chunks(&block, units), columns * line);
        let (quads, name) = (step / 4, self.multiply());
        writeln!(
            t,
            "native_wait_copies_but_{}();\nnative_group_publish();\nworkgroupBarrier();",
            ahead - 1
        )?;
        for s in 0..step / TURN {
            for (r, rows) in [0, 8 * quads].into_iter().enumerate() {
                writeln!(t, "let v{parity}_{s}_{r} = left[now * {left}u + xa{s} + {rows}u];")?;
            }
        }
        // Nobody reads any more what they take the place of: products before the last are done.
        self.copy(t, false)?;
        for s in 0..step / TURN {
            let (v, w) = (format!("v{parity}_{s}_0"), format!("v{parity}_{s}_1"));
            match units {
                MatrixUnits::Tf32 => {
                    writeln!(
                        t,
                        "let r{parity}_{s}_0 = native_round_tf32({v});\n\
                         let r{parity}_{s}_1 = native_round_tf32({w});"
                    )?;
                    for (i, [low, high]) in [["x", "y"], ["z", "w"]].into_iter().enumerate() {
                        let (v, w) = (format!("r{parity}_{s}_0"), format!("r{parity}_{s}_1"));
                        writeln!(
                            t,
                            "x{parity}_{} = vec4<u32>({v}.{low}, {w}.{low}, {v}.{high}, {w}.{high});",
                            2 * s + i
                        )?;
                    }
                }
                MatrixUnits::Fp16 | MatrixUnits::Bf16 => {
                    let r = format!("r{parity}_{s}");
                    writeln!(
                        t,
                        "let {r} = native_pack_half({v}, {w});\n\
                         x{parity}_{s} = vec4<u32>({r}.x, {r}.z, {r}.y, {r}.w);"
                    )?;
                }
            }
        }
        for j in 0..columns / group {
            writeln!(
                t,
                "let b{parity}_{j} = shared_place(now * {right}u + {}u);",
                j * group * line
            )?;
        }
        writeln!(t, "native_group_take(&x{parity}_0, &x{parity}_1);\nnative_group_start();")?;
        for s in 0..self.products() {
            for j in 0..columns / group {
                writeln!(t, "{name}({}, x{parity}_{s}, b{parity}_{j}, {s}u);", self.sums(j))?;
            }
        }
        writeln!(
            t,
            "native_group_end();\nnative_group_wait_but_one();\n\
             now++;\nif (now == {slices}u) {{ now = 0u; }}\n\
             seen += {step}u;\nif (seen >= end) {{ break; }}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_elements_change_places_among_sixteen() {
        for units in [MatrixUnits::Tf32, MatrixUnits::Fp16, MatrixUnits::Bf16] {
            let mut seen: Vec<usize> = (0..64).map(|place| inner(place, units)).collect();
            assert!(seen.iter().enumerate().all(|(place, i)| place / TURN == i / TURN));
            seen.sort_unstable();
            assert_eq!(seen, (0..64).collect::<Vec<_>>());
        }
    }
}
