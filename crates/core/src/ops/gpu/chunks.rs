//! The forms of a product on matrix units where the left side is stored in 16 bits: both sides are copied
//! by chunks of 16 bytes from device to workgroup memory, several slices of the inner dimension under
//! way at once, in a ring. Nothing is rounded and nothing passes through registers. Each warp loads
//! its matrices from there, or, where four warps multiply together, the hardware reads both sides
//! itself.

use std::fmt::Write;

use super::{
    MatrixUnits,
    matrix_blocks::{Block, Choice},
    matrix_units::{self, NATIVE, swizzle},
    product::{Access, begin},
    warp_groups::ROWS,
};

/// Elements of a chunk.
const CHUNK: usize = MatrixUnits::Fp16.chunk();

/// Declarations of what reaches workgroup memory otherwise than by assignments.
const MEMORY: &str = "\
fn native_wait_copies() {}
fn native_end_copies() {}
fn native_bits(v: vec4<f32>) -> vec4<u32> { return vec4<u32>(); }
fn native_numbers(v: vec4<u32>) -> vec4<f32> { return vec4<f32>(); }
fn copy_right(to: u32, source: u32) { tile[to] = b[source]; }
fn copy_left(to: u32, source: u32, there: bool) {
    if (there) { tile[to] = a[source]; } else { tile[to] = vec4<u32>(); }
}
";

/// Declarations for warps on their own.
const ALONE: &str = "fn load_matrices(at: u32) -> vec4<u32> { return tile[at]; }\n";

/// Declarations for four warps together.
const TOGETHER: &str = "\
fn native_group_start() {}
fn native_group_end() {}
fn native_group_wait() {}
fn native_group_wait_but_one() {}
fn native_group_publish() {}
fn shared_place(at: u32) -> vec4<u32> { return tile[at]; }
";

/// Slices that copies are under way to while one is multiplied. Products of four warps go on while the
/// next slice is prepared: then nothing may take the place of the one before either.
pub(super) fn ahead(block: &Block) -> usize {
    block.slices - if block.group > 0 { 2 } else { 1 }
}

/// `main`, over `place`, `left_at`, `store` and the constant `b` and left side `a` of chunks; `beside`:
/// also over `beside`, which loads a residual, and `store_beside`.
pub(super) fn text(choice: &Choice, access: Access, exact: bool, beside: bool) -> String {
    Text { choice: *choice, access, exact, beside }.print().expect("writing to a string")
}

struct Text {
    choice: Choice,
    access: Access,
    /// The inner dimension is whole slices.
    exact: bool,
    /// There are `beside` and `store_beside`.
    beside: bool,
}

impl Text {
    fn together(&self) -> bool {
        self.choice.block.group > 0
    }

    /// Chunks of the left side in a slice, and of the right.
    fn chunks(&self) -> [usize; 2] {
        let Block { rows, columns, line, .. } = self.choice.block;
        [rows * line, columns * line]
    }

    fn ahead(&self) -> usize {
        ahead(&self.choice.block)
    }

    fn print(&self) -> Result<String, std::fmt::Error> {
        let Choice { block, cut, .. } = self.choice;
        let Block { rows, columns, line, slices, .. } = block;
        let (threads, step, [left, right]) = (block.threads(), line * CHUNK, self.chunks());
        let mut t = format!(
            "var<workgroup> tile: array<vec4<u32>, {}>;\n{NATIVE}{MEMORY}{}",
            slices * (left + right),
            if self.together() { TOGETHER } else { ALONE }
        );
        if self.ahead() > 1 {
            writeln!(t, "fn native_wait_copies_but_{}() {{}}", self.ahead() - 1)?;
        }
        if self.together() {
            let sums = (0..block.group / 8).map(|j| format!("s{j}: ptr<function, vec4<f32>>, "));
            let sums = sums.collect::<String>();
            writeln!(
                t,
                "fn {}({sums}a: vec4<u32>, b: vec4<u32>, step: u32) {{}}\n\
                 fn native_group_hold_{}({}) {{}}",
                self.multiply_together(),
                block.group,
                sums.trim_end_matches(", ")
            )?;
        }
        begin(&mut t, threads, cut.parts)?;
        writeln!(
            t,
            "let row0 = group.y * {rows}u;\nlet col0 = group.x * {columns}u;\n\
             let lane = thread % 32u;\nlet warp = thread / 32u;\n\
             let chunk = thread % {line}u;\nlet own = thread / {line}u;\n\
             let to = own * {line}u + (chunk ^ {});\n\
             let source = z * p.b_z + chunk + first / {CHUNK}u;",
            swizzle("own", line)
        )?;
        for i in 0..left / threads {
            let row = i * threads / line;
            writeln!(t, "let place{i} = place(min(row0 + own + {row}u, p.m - 1u), z);")?;
        }
        for i in 0..right.div_ceil(threads) {
            let row = i * threads / line;
            writeln!(t, "var source{i} = source + min(col0 + own + {row}u, p.n - 1u) * p.b_row;")?;
        }
        self.access.start(&mut t, 0, &format!("first / {CHUNK}u + chunk"))?;
        if self.together() {
            writeln!(t, "let warp_row = warp * 16u;\nlet warp_col = 0u;")?;
            writeln!(t, "let lane_a = warp / 4u * {}u;", ROWS * line)?;
            for j in 0..columns / 8 {
                writeln!(t, "var s0_{j} = vec4<f32>();")?;
            }
        } else {
            matrix_units::start_warps(&mut t, &block)?;
        }
        t.push_str("var k = first;\nvar seen = first;\nvar into = 0u;\nvar slice = 0u;\n");
        for slice in 0..self.ahead() {
            self.copy(&mut t, slice == 0)?;
        }
        t.push_str("loop {\n");
        match self.ahead() {
            1 => t.push_str("native_wait_copies();\n"),
            ahead => writeln!(t, "native_wait_copies_but_{}();", ahead - 1)?,
        }
        if self.together() {
            t.push_str("native_group_publish();\n");
        }
        t.push_str("workgroupBarrier();\n");
        // Nobody reads any more what they take the place of.
        self.copy(&mut t, false)?;
        writeln!(t, "let now = slice * {}u;", left + right)?;
        if self.together() {
            self.group_multiply(&mut t)?;
        } else {
            matrix_units::multiply(&mut t, &block, "native_multiply_half")?;
        }
        writeln!(
            t,
            "slice++;\nif (slice == {slices}u) {{ slice = 0u; }}\n\
             seen += {step}u;\nif (seen >= end) {{ break; }}\n}}"
        )?;
        if self.together() {
            t.push_str("native_group_wait();\n");
            for j in 0..columns / block.group {
                writeln!(t, "native_group_hold_{}({});", block.group, self.sums(j))?;
            }
        }
        let tile = if self.together() { [16, columns] } else { block.tile() };
        if slices * (left + right) >= rows * columns / 4 {
            self.finish(&mut t, tile)?;
        } else {
            matrix_units::finish(&mut t, tile)?;
        }
        Ok(t)
    }

    /// Stores the sums, a warp's of so many rows and columns, by way of the ring's memory: what
    /// neighbouring threads store, and load of a residual, is then side by side.
    fn finish(&self, t: &mut String, [tile_rows, tile_columns]: [usize; 2]) -> std::fmt::Result {
        let Block { rows, columns, .. } = self.choice.block;
        let (threads, quads) = (self.choice.block.threads(), columns / 4);
        // Of the rows and columns that eight lanes write, and eight read, each is in banks of its
        // own.
        writeln!(
            t,
            "workgroupBarrier();\n\
             let own_row = warp_row + lane / 4u + lane % 2u * 8u;\n\
             let own_col = warp_col / 4u + lane / 2u % 2u;\n\
             let turn = own_row % 2u * 2u + own_row / 8u % 2u * 4u;"
        )?;
        for i in 0..tile_rows / 16 {
            for j in 0..tile_columns / 8 {
                writeln!(
                    t,
                    "tile[(own_row + {}u) * {quads}u + ((own_col + {}u) ^ turn)] = \
                     native_bits(native_exchange(s{i}_{j}));",
                    i * 16,
                    j * 2
                )?;
            }
        }
        // Residuals are under way together.
        let count = rows * quads / threads;
        let together = [8, 4, 2, 1].into_iter().find(|b| count.is_multiple_of(*b)).unwrap_or(1);
        let batch = if self.beside { together } else { 1 };
        writeln!(t, "workgroupBarrier();\nfor (var i = 0u; i < {count}u; i += {batch}u) {{")?;
        for j in 0..batch {
            writeln!(
                t,
                "let place{j} = (i + {j}u) * {threads}u + thread;\n\
                 let r{j} = place{j} / {quads}u;\nlet c{j} = place{j} % {quads}u;"
            )?;
            if self.beside {
                writeln!(t, "let b{j} = beside(row0 + r{j}, col0 / 4u + c{j}, z);")?;
            }
        }
        for j in 0..batch {
            let turn = format!("r{j} % 2u * 2u + r{j} / 8u % 2u * 4u");
            let sum = format!("native_numbers(tile[r{j} * {quads}u + (c{j} ^ ({turn}))])");
            match self.beside {
                true => {
                    writeln!(t, "store_beside(row0 + r{j}, col0 / 4u + c{j}, z, {sum}, b{j});")?
                }
                false => writeln!(t, "store(row0 + r{j}, col0 / 4u + c{j}, z, part, {sum});")?,
            }
        }
        t.push_str("}\n}\n");
        Ok(())
    }

    /// Starts the copies of the slice at `k`, should there be one.
    fn copy(&self, t: &mut String, sure: bool) -> std::fmt::Result {
        let block = self.choice.block;
        let (threads, line, [left, right]) = (block.threads(), block.line, self.chunks());
        if !sure {
            t.push_str("if (k < end) {\n");
        }
        writeln!(t, "{{ let there = into * {}u + to;", left + right)?;
        for i in 0..left / threads {
            self.access.locate(t, i, 0)?;
            let mut inside = Vec::new();
            if !self.access.sure {
                inside.push("at >= 0".to_owned());
            }
            if !self.exact {
                inside.push(format!("k + chunk * {CHUNK}u < p.rows_b"));
            }
            let inside = if inside.is_empty() { "true".to_owned() } else { inside.join(" && ") };
            writeln!(t, "copy_left(there + {}u, at_a() + u32(at), {inside}); }}", i * threads)?;
        }
        for i in 0..right.div_ceil(threads) {
            let at = i * threads;
            let part = right - at < threads;
            if part {
                writeln!(t, "if (thread < {}u) {{", right - at)?;
            }
            writeln!(t, "copy_right(there + {}u, source{i});", left + at)?;
            if part {
                t.push_str("}\n");
            }
            writeln!(t, "source{i} += {line}u;")?;
        }
        t.push_str("}\n");
        self.access.advance(t, 0, line)?;
        if !sure {
            t.push_str("}\n");
        }
        writeln!(
            t,
            "native_end_copies();\nk += {}u;\ninto++;\nif (into == {}u) {{ into = 0u; }}",
            line * CHUNK,
            block.slices
        )
    }

    fn multiply_together(&self) -> String {
        format!("native_group_multiply_lines_{}", self.choice.block.group)
    }

    /// The sums of the `j`-th of the products side by side, as arguments.
    fn sums(&self, j: usize) -> String {
        let count = self.choice.block.group / 8;
        let sums: Vec<_> = (j * count..(j + 1) * count).map(|i| format!("&s0_{i}")).collect();
        sums.join(", ")
    }

    /// The products of a slice by four warps together.
    fn group_multiply(&self, t: &mut String) -> std::fmt::Result {
        let Block { columns, line, group, .. } = self.choice.block;
        let (name, [left, _]) = (self.multiply_together(), self.chunks());
        writeln!(t, "let a0 = shared_place(now + lane_a);")?;
        for j in 0..columns / group {
            writeln!(t, "let b{j} = shared_place(now + {}u);", left + j * group * line)?;
        }
        t.push_str("native_group_start();\n");
        for s in 0..line / 2 {
            for j in 0..columns / group {
                writeln!(t, "{name}({}, a0, b{j}, {s}u);", self.sums(j))?;
            }
        }
        t.push_str("native_group_end();\nnative_group_wait_but_one();\n");
        Ok(())
    }
}
