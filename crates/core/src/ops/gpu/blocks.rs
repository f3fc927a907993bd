//! The form of a product for hardware GPUs: a workgroup computes a block of the result, each
//! invocation a few rows of a few vec4s in registers. Slices of both sides pass through workgroup
//! memory, two of each, so that the next arrives while one is multiplied.
//!
//! Where the blocks are too few for the GPU, several workgroups share one, each with a part of the
//! inner dimension; a second dispatch adds their sums, always in the same order, and applies the
//! epilogue.

use std::fmt::Write;

use super::{
    GpuCaps, clusters,
    product::{Access, Cut, LATENCY, Product, RESIDENT, begin, multiprocessors},
    shader::fold,
};

/// How a product is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Rows and columns of a workgroup.
    rows: usize,
    columns: usize,
    /// Rows and vec4s of columns of an invocation.
    own_rows: usize,
    own_vectors: usize,
    /// Inner elements of a slice.
    step: usize,
}

/// A block and into how many parts the inner dimension is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) block: Block,
    pub(super) cut: Cut,
}

const fn block(rows: usize, columns: usize, own: [usize; 2], step: usize) -> Block {
    Block { rows, columns, own_rows: own[0], own_vectors: own[1], step }
}

/// Blocks to choose from.
const BLOCKS: [Block; 6] = [
    block(128, 128, [8, 2], 8),
    block(128, 64, [8, 2], 16),
    block(64, 64, [8, 2], 16),
    block(128, 32, [8, 2], 16),
    block(32, 64, [4, 2], 16),
    block(32, 32, [4, 1], 8),
];
/// vec4s behind each row of the left slice: rows begin in different banks.
const PAD: usize = 1;
/// Cycles from a slice's loads until it is in workgroup memory: no slice takes less.
const LAG: f64 = 1100.0;
/// Bytes that a multiprocessor gets from the cache per cycle.
const BYTES: f64 = 24.0;

impl Block {
    fn threads(&self) -> usize {
        self.rows / self.own_rows * (self.columns / 4 / self.own_vectors)
    }

    fn workgroup_bytes(&self) -> usize {
        2 * self.step * 4 * (self.rows + 4 * PAD + self.columns)
    }

    /// Estimated cycles of a product, cut so, on `units` multiprocessors, each with four
    /// schedulers that issue an instruction for 32 invocations per cycle. The figures are those of
    /// NVIDIA's GPUs; others are near enough for the order.
    fn cycles(&self, product: &Product, cut: Cut, units: usize) -> f64 {
        let tiles = product.blocks([self.rows, self.columns]);
        let per_unit = cut.per_unit(tiles, units, RESIDENT / self.threads().div_ceil(32));
        let warps = per_unit * self.threads().div_ceil(32);
        let multiplies = self.own_rows * self.own_vectors * 4;
        let loads = self.own_rows / 4 + self.own_vectors;
        let moved = (self.rows + self.columns) * self.step / 4 / self.threads();
        let issued = self.step * (multiplies + 2 * loads) + 12 * moved + 40;
        let slices = cut.span.div_ceil(self.step) as f64;
        // A scheduler with one warp waits for its results; two and more fill each other's gaps.
        let wait = match warps.div_ceil(4) {
            1 => 1.25,
            2 => 1.1,
            _ => 1.0,
        };
        let slice = warps.div_ceil(4) as f64 * issued as f64 * wait;
        let issue = slices * slice.max(LAG * warps.div_ceil(RESIDENT) as f64);
        let fetched = per_unit * (self.rows + self.columns) * self.step * 4;
        let fetch = fetched as f64 * slices / BYTES;
        issue + 0.5 * fetch + LATENCY + product.sum_cycles(cut, units, BYTES)
    }
}

/// The block and parts with the shortest estimate. Partial sums may take `max_bytes`.
pub(super) fn choose(product: &Product, caps: &GpuCaps) -> Choice {
    let multiprocessors = multiprocessors(caps);
    let room = |block: &&Block| {
        block.workgroup_bytes() <= caps.workgroup_bytes as usize
            && block.threads() <= caps.workgroup_size as usize
    };
    let choices = BLOCKS.iter().filter(room).flat_map(|&block| {
        product
            .cuts(block.step, caps)
            .map(move |cut| (block.cycles(product, cut, multiprocessors), Choice { block, cut }))
    });
    let best = choices.min_by(|(a, _), (b, _)| a.total_cmp(b));
    let smallest = BLOCKS[BLOCKS.len() - 1];
    let whole = product.sizes[1].next_multiple_of(smallest.step);
    best.map_or(Choice { block: smallest, cut: Cut::whole(whole) }, |(_, choice)| choice)
}

impl Choice {
    /// Workgroups.
    pub(super) fn grid(&self, product: &Product) -> [usize; 3] {
        product.grid([self.block.rows, self.block.columns], self.cut.parts)
    }

    /// `main`, over `place`, `left_at`, `load_b` and `store`.
    pub(super) fn text(&self, product: &Product, access: Access) -> String {
        let Block { rows, columns, step, .. } = self.block;
        let text = Text { choice: *self, access, exact: product.sizes[1].is_multiple_of(step) };
        let text = text.print().expect("writing to a string");
        clusters::join(text, self.cut, [rows, columns], self.block.threads())
    }
}

/// Prints `main`.
struct Text {
    choice: Choice,
    access: Access,
    /// The inner dimension is whole slices.
    exact: bool,
}

impl Text {
    fn print(&self) -> Result<String, std::fmt::Error> {
        let block = self.choice.block;
        let Block { rows, columns, own_rows, own_vectors, step } = block;
        let threads = block.threads();
        let across = columns / 4 / own_vectors;
        let down = rows / own_rows;
        // 32 invocations that run together lie in a rectangle: they read few different elements.
        let (lane_columns, lane_rows) = (across.min(8), 32 / across.min(8));
        let (a_line, b_line) = (rows / 4 + PAD, columns / 4);
        let quads = step / 4;
        let mut t = String::new();
        writeln!(
            t,
            "var<workgroup> tile_a: array<vec4<f32>, {}>;\nvar<workgroup> tile_b: array<vec4<f32>, {}>;",
            2 * step * a_line,
            2 * step * b_line
        )?;
        begin(&mut t, threads, self.choice.cut.parts)?;
        writeln!(
            t,
            "let row0 = group.y * {rows}u;\nlet col0 = group.x * {b_line}u;\n\
             let lane = thread % 32u;\nlet warp = thread / 32u;\n\
             let across = lane % {lane_columns}u + {lane_columns}u * (warp % {}u);\n\
             let down = lane / {lane_columns}u + {lane_rows}u * (warp / {}u);\n\
             let a_quad = thread % {quads}u;\nlet a_row = thread / {quads}u;\n\
             let a_to = a_quad * {}u + a_row / 4u;\nlet a_part = a_row % 4u;\n\
             let b_row = thread / {b_line}u;\nlet b_col = min(col0 + thread % {b_line}u, p.n4 - 1u);",
            across / lane_columns,
            across / lane_columns,
            4 * a_line
        )?;
        let (a_loads, b_loads) = (rows * quads / threads, step * b_line / threads);
        for i in 0..a_loads {
            let row = i * threads / quads;
            writeln!(
                t,
                "let place{i} = place(min(row0 + a_row + {row}u, p.m - 1u), z);\n\
                 var va{i} = vec4<f32>();"
            )?;
        }
        for i in 0..b_loads {
            writeln!(t, "var vb{i} = vec4<f32>();")?;
        }
        self.start(&mut t)?;
        for row in 0..own_rows {
            for column in 0..own_vectors {
                writeln!(t, "var s{row}_{column} = vec4<f32>();")?;
            }
        }
        t.push_str("var k = first;\n");
        self.load(&mut t, a_loads, b_loads)?;
        let keep = |t: &mut String, half: &str| -> std::fmt::Result {
            for i in 0..a_loads {
                let row = i * threads / quads / 4;
                for (j, name) in ["x", "y", "z", "w"].into_iter().enumerate() {
                    writeln!(
                        t,
                        "tile_a[{half} * {}u + a_to + {}u][a_part] = va{i}.{name};",
                        step * a_line,
                        j * a_line + row
                    )?;
                }
            }
            for i in 0..b_loads {
                let at = i * threads;
                writeln!(t, "tile_b[{half} * {}u + thread + {at}u] = vb{i};", step * b_line)?;
            }
            Ok(())
        };
        keep(&mut t, "0u")?;
        t.push_str(
            "workgroupBarrier();\nvar half = 0u;\nloop {\n\
             let now = half;\nhalf = 1u - half;\n",
        );
        writeln!(t, "k += {step}u;\nlet more = k < end;\nif (more) {{")?;
        self.advance(&mut t)?;
        self.load(&mut t, a_loads, b_loads)?;
        t.push_str("}\n");
        let unroll = step.min(8);
        writeln!(
            t,
            "var at_x = now * {}u + down;\nvar at_w = now * {}u + across;\n\
             for (var i = 0u; i < {step}u; i += {unroll}u) {{",
            step * a_line,
            step * b_line
        )?;
        for i in 0..unroll {
            for group in 0..own_rows / 4 {
                writeln!(t, "let x{i}_{group} = tile_a[at_x + {}u];", i * a_line + group * down)?;
            }
            for column in 0..own_vectors {
                writeln!(
                    t,
                    "let w{i}_{column} = tile_b[at_w + {}u];",
                    i * b_line + column * across
                )?;
            }
            for row in 0..own_rows {
                let (group, part) = (row / 4, ["x", "y", "z", "w"][row % 4]);
                for column in 0..own_vectors {
                    writeln!(t, "s{row}_{column} += x{i}_{group}.{part} * w{i}_{column};")?;
                }
            }
        }
        writeln!(
            t,
            "at_x += {}u;\nat_w += {}u;\n}}\nif (!more) {{ break; }}",
            unroll * a_line,
            unroll * b_line
        )?;
        keep(&mut t, "half")?;
        t.push_str("workgroupBarrier();\n}\n");
        for row in 0..own_rows {
            for column in 0..own_vectors {
                writeln!(
                    t,
                    "store(row0 + (down + {}u) * 4u + {}u, col0 + across + {}u, z, part, s{row}_{column});",
                    row / 4 * down,
                    row % 4,
                    column * across
                )?;
            }
        }
        t.push_str("}\n");
        Ok(t)
    }

    /// Positions of the left-hand elements that an invocation loads: one, or one per element.
    fn positions(&self) -> usize {
        if self.access.vector { 1 } else { 4 }
    }

    /// Where in its window each position begins.
    fn start(&self, t: &mut String) -> std::fmt::Result {
        for j in 0..self.positions() {
            let first = match self.access.vector {
                true => "first / 4u + a_quad".to_owned(),
                false => format!("first + a_quad * 4u + {j}u"),
            };
            self.access.start(t, j, &first)?;
        }
        Ok(())
    }

    /// Moves the positions to the next slice.
    fn advance(&self, t: &mut String) -> std::fmt::Result {
        let step = self.choice.block.step / if self.access.vector { 4 } else { 1 };
        (0..self.positions()).try_for_each(|j| self.access.advance(t, j, step))
    }

    /// Loads the slice at `k` into `va0..` and `vb0..`.
    fn load(&self, t: &mut String, a_loads: usize, b_loads: usize) -> std::fmt::Result {
        let threads = self.choice.block.threads();
        let b_rows = threads / (self.choice.block.columns / 4);
        for i in 0..a_loads {
            for j in 0..self.positions() {
                let (target, zero) = match self.access.vector {
                    true => (format!("va{i}"), "vec4<f32>()"),
                    false => (format!("va{i}.{}", ["x", "y", "z", "w"][j]), "0.0"),
                };
                let inside = match self.exact {
                    true => "true".to_owned(),
                    false => format!("k + a_quad * 4u + {j}u < p.rows_b"),
                };
                self.access.locate(t, i, j)?;
                if self.exact && self.access.sure {
                    writeln!(t, "{target} = a[at_a() + u32(at)]; }}")?;
                } else {
                    let there = if self.access.sure { "true" } else { "at >= 0" };
                    writeln!(
                        t,
                        "{target} = {zero};\nif ({there} && {inside}) {{ {target} = a[at_a() + u32(at)]; }} }}"
                    )?;
                }
            }
        }
        for i in 0..b_loads {
            let row = i * b_rows;
            match self.exact {
                true => writeln!(t, "vb{i} = load_b(k + b_row + {row}u, b_col, z);")?,
                false => writeln!(
                    t,
                    "vb{i} = vec4<f32>();\nif (k + b_row + {row}u < p.rows_b) {{ \
                     vb{i} = load_b(k + b_row + {row}u, b_col, z); }}"
                )?,
            }
        }
        Ok(())
    }
}

/// Invocations per workgroup that add partial sums.
const ADDERS: usize = 64;

/// `main` that adds `count` vec4s of partial sums, over `partial` and `store`, its grid and the
/// parameter `groups_x`.
pub(super) fn sums(count: usize, caps: &GpuCaps) -> (String, [usize; 3], usize) {
    let (grid, groups_x) = fold(count.div_ceil(ADDERS), caps.max_grid);
    let text = format!(
        "@compute @workgroup_size({ADDERS})\n\
         fn main(@builtin(workgroup_id) group: vec3<u32>, \
         @builtin(local_invocation_index) thread: u32) {{\n\
         let index = (group.x + group.y * p.groups_x) * {ADDERS}u + thread;\n\
         if (index >= p.count) {{ return; }}\n\
         var sum = partial[at_partial() + index];\n\
         for (var i = 1u; i < p.parts; i++) {{ sum += partial[at_partial() + i * p.count + index]; }}\n\
         let line = index / p.n4;\nlet z = line / p.m;\n\
         store(line - z * p.m, index - line * p.n4, z, 0u, sum);\n}}\n"
    );
    (text, grid, groups_x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(units: u32) -> GpuCaps {
        GpuCaps { units, ..GpuCaps::ordinary() }
    }

    fn product(m: usize, k: usize, n: usize) -> Product {
        Product { sizes: [m, k, n], batch: 1 }
    }

    #[test]
    fn parts_cover_the_inner_dimension() {
        for (m, k, n) in [(49, 4608, 512), (196, 1153, 256), (17, 3, 9), (197, 768, 3072)] {
            for units in [0, 2, 16, 132] {
                let Choice { block, cut: Cut { parts, span, .. } } =
                    choose(&product(m, k, n), &caps(units));
                assert!(span.is_multiple_of(block.step) && parts * span >= k, "{m}x{k}x{n}");
                assert!((parts - 1) * span < k, "no part of {m}x{k}x{n} is empty");
            }
        }
    }

    #[test]
    fn only_what_does_not_fill_the_gpu_is_cut() {
        // ResNet-18's last stage on a data-centre GPU, and at batch 64.
        assert!(choose(&product(49, 4608, 512), &caps(132)).cut.parts > 8);
        assert_eq!(choose(&product(64 * 3136, 576, 64), &caps(132)).cut.parts, 1);
        assert_eq!(choose(&product(49, 4608, 512), &caps(0)).cut.parts, 1);
        let large = choose(&product(64 * 197, 768, 3072), &caps(132)).block;
        assert_eq!((large.rows, large.columns), (128, 128));
    }

    #[test]
    fn every_block_is_whole() {
        for block in BLOCKS {
            let threads = block.threads();
            assert!(threads.is_multiple_of(32) && block.workgroup_bytes() <= 32 << 10);
            assert!((block.rows * block.step / 4).is_multiple_of(threads));
            assert!((threads * 4 / block.step).is_multiple_of(4), "rows of a load by fours");
            assert!((block.columns * block.step / 4).is_multiple_of(threads));
            let across = block.columns / 4 / block.own_vectors;
            let down = block.rows / block.own_rows;
            assert!(down.is_multiple_of(32 / across.min(8)));
            assert!(across.is_multiple_of(across.min(8)));
        }
    }
}
