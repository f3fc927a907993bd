//! How products on matrix units are shared out among workgroups: the blocks that there are, and the
//! choice among them by estimated cycles.

use super::{
    GpuCaps, MatrixUnits, chunks,
    matrix_units::CHUNK,
    product::{Access, Cut, Product, RESIDENT, multiprocessors},
    warp_groups,
};

/// How a product is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Rows and columns of a workgroup.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Warps down and across.
    pub(super) warps: [usize; 2],
    /// Chunks of 16 bytes of a row's slice in workgroup memory.
    pub(super) line: usize,
    /// Slices in workgroup memory.
    pub(super) slices: usize,
    /// Columns that four warps multiply at once; 0: each warp multiplies on its own.
    pub(super) group: usize,
}

const fn block(rows: usize, columns: usize, warps: [usize; 2], line: usize) -> Block {
    Block { rows, columns, warps, line, slices: SLICES, group: 0 }
}

const fn group(rows: usize, columns: usize, group: usize, slices: usize) -> Block {
    Block { rows, columns, warps: [rows / 16, 1], line: 4, slices, group }
}

/// Blocks to choose from.
const BLOCKS: [Block; 19] = [
    group(128, 256, 128, 6),
    group(128, 192, 96, 6),
    group(128, 128, 128, 4),
    group(128, 96, 96, 4),
    group(128, 64, 64, 4),
    group(128, 32, 32, 4),
    group(64, 256, 128, 4),
    group(64, 128, 128, 4),
    group(64, 96, 96, 4),
    group(64, 64, 64, 4),
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

const fn alone(
    rows: usize,
    columns: usize,
    warps: [usize; 2],
    line: usize,
    slices: usize,
) -> Block {
    Block { rows, columns, warps, line, slices, group: 0 }
}

const fn together(rows: usize, columns: usize, group: usize) -> Block {
    Block { rows, columns, warps: [rows / 16, 1], line: 8, slices: 4, group }
}

/// Blocks for left sides that come as chunks; see [`super::chunks`].
const CHUNK_BLOCKS: [Block; 20] = [
    together(128, 256, 256),
    together(128, 192, 192),
    together(128, 128, 128),
    Block { slices: 3, ..together(128, 128, 128) },
    together(128, 96, 96),
    together(128, 64, 64),
    together(128, 32, 32),
    together(64, 256, 256),
    together(64, 192, 192),
    together(64, 128, 128),
    together(64, 96, 96),
    together(64, 64, 64),
    together(64, 32, 32),
    alone(128, 128, [2, 4], 4, 3),
    alone(128, 64, [2, 2], 4, 3),
    alone(64, 64, [2, 2], 8, 3),
    alone(128, 32, [4, 1], 4, 3),
    alone(32, 64, [2, 2], 8, 3),
    alone(32, 32, [2, 2], 8, 4),
    alone(16, 64, [1, 4], 8, 3),
];

/// Slices in workgroup memory where warps multiply on their own: one is multiplied while the next
/// arrives. More, on an H200 with left-hand elements waiting in workgroup memory as well, made no
/// product faster and large blocks slower.
pub(super) const SLICES: usize = 2;

// What estimates count with, fitted to 3000 measured times of the built-in models' products at
// batches of 1 to 64, each in every block, on an H200.
/// Multiply-adds of a multiprocessor per cycle where each warp multiplies on its own, in tf32; twice
/// as many of operands of 16 bits. (What is fitted to f16 serves bf16 as well: its instructions take as
/// long.)
const RATE: f64 = 325.0;
/// Bytes that it gets from the cache per cycle, then and where four warps multiply together.
const BYTES: [f64; 2] = [27.7, 60.0];
/// Bytes per cycle that four warps together read and write of workgroup memory.
const SHARED: f64 = 67.0;
/// Cycles from a slice to the next of the same block, and of a block's beginning and end.
const LAG: [f64; 2] = [920.0, 617.0];
const ENDS: [f64; 2] = [7640.0, 6630.0];
/// What is seen of them while other blocks work.
const SEEN: f64 = 0.1;
/// Bytes of results that a multiprocessor writes per cycle.
const WRITTEN: f64 = 24.0;
/// Bytes per cycle that are its share of device memory's, and of the cache's while sums are added.
const MEMORY: f64 = 13.0;
const SUM_BYTES: f64 = 40.0;
/// Bytes of workgroup memory of a multiprocessor where four warps can multiply together.
const GROUP_SHARED: usize = 227 << 10;

impl Block {
    pub(super) fn threads(&self) -> usize {
        32 * self.warps[0] * self.warps[1]
    }

    fn workgroup_bytes(&self, units: MatrixUnits, chunks: bool) -> usize {
        match self.group {
            _ if chunks => self.slices * (self.rows + self.columns) * self.line * CHUNK,
            0 => self.slices * (self.rows + self.columns) * self.line * CHUNK,
            _ => warp_groups::ring_bytes(self, units),
        }
    }

    /// Rows and columns of a warp.
    pub(super) fn tile(&self) -> [usize; 2] {
        [self.rows / self.warps[0], self.columns / self.warps[1]]
    }

    /// Inner elements of a slice.
    pub(super) fn step(&self, units: MatrixUnits) -> usize {
        self.line * units.chunk()
    }

    /// Estimated cycles of a product, cut so, on `multiprocessors`.
    fn cycles(
        &self,
        product: &Product,
        units: MatrixUnits,
        cut: Cut,
        multiprocessors: usize,
    ) -> f64 {
        let together = usize::from(self.group > 0);
        let tiles = product.blocks([self.rows, self.columns]);
        let (step, warps) = (self.step(units), self.threads() / 32);
        let (left, right) = (4 * step * self.rows, CHUNK * self.line * self.columns);
        let (work, resident) = match self.group {
            0 => {
                let [rows, columns] = self.tile();
                let rate = if units.is_half() { 2.0 * RATE } else { RATE };
                // A tile of few matrices waits for what it loads.
                let loaded = 1.0 + 8.0 * (1.0 / rows as f64 + 1.0 / columns as f64);
                let multiply = (self.rows * self.columns * step) as f64 / rate * loaded;
                (multiply, RESIDENT / warps)
            }
            _ => {
                let read = right * self.rows / warp_groups::ROWS;
                let room = GROUP_SHARED / self.workgroup_bytes(units, false);
                ((2 * left + right + read) as f64 / SHARED, (RESIDENT / warps).min(room))
            }
        };
        let work = work.max((left + right) as f64 / BYTES[together]);
        let per_unit = cut.per_unit(tiles, multiprocessors, resident);
        let (all, turns) = (per_unit as f64, per_unit.div_ceil(resident.max(1)) as f64);
        let slices = cut.span.div_ceil(step) as f64;
        let [m, k, n] = product.sizes;
        let moved = 4 * m * (k + n) + CHUNK / units.chunk() * k * n;
        let memory = (moved * product.batch) as f64 / (multiprocessors as f64 * MEMORY);
        (slices * (all * work).max(LAG[together] * turns)).max(memory)
            + ENDS[together] * (1.0 + SEEN * (turns - 1.0))
            + all * (4 * self.rows * self.columns) as f64 / WRITTEN
            + product.sum_cycles(cut, multiprocessors, SUM_BYTES)
    }
}

// The same for left sides that come as chunks, fitted to 11000 times of 192 shapes; of two numbers the
// first is for warps on their own, the second for four together.
mod chunked {
    /// Multiply-adds of a multiprocessor per cycle, and the columns' worth of them that every product
    /// of four warps takes besides.
    pub(super) const RATE: [f64; 2] = [750.0, 1654.0];
    pub(super) const NARROW: f64 = 39.0;
    /// Bytes that it copies per cycle.
    pub(super) const BYTES: [f64; 2] = [53.0, 46.0];
    /// Cycles from a slice to the next of the same block, and for every byte in it; and until one
    /// that was asked for is there.
    pub(super) const LAG: [f64; 2] = [247.0, 292.0];
    pub(super) const LAG_BYTE: f64 = 0.0152;
    pub(super) const ARRIVAL: f64 = 875.0;
    /// Cycles of a block's beginning and end, and what is seen of them while other blocks work.
    pub(super) const ENDS: [f64; 2] = [3008.0, 3584.0];
    pub(super) const SEEN: f64 = 0.27;
    /// How many times as long results take that need many instructions each, and what all take while
    /// other blocks multiply.
    pub(super) const LONG: f64 = 2.0;
    pub(super) const BESIDE: f64 = 0.7;
    /// Results that a multiprocessor finishes per cycle.
    pub(super) const WRITTEN: [f64; 2] = [15.9, 12.8];
    /// Bytes per cycle of operands and results.
    pub(super) const MEMORY: f64 = 33.0;
    /// Bytes per cycle while sums of parts are added.
    pub(super) const SUM_BYTES: f64 = 89.0;
}

impl Block {
    /// Estimated cycles where the left side comes as chunks.
    fn chunk_cycles(&self, product: &Product, cut: Cut, long: bool, multiprocessors: usize) -> f64 {
        let (units, together) = (MatrixUnits::Fp16, self.group > 0);
        let which = usize::from(together);
        let tiles = product.blocks([self.rows, self.columns]);
        let (step, warps) = (self.step(units), self.threads() / 32);
        let [rows, columns] = self.tile();
        // A tile of few matrices waits for what it loads.
        let loaded = match together {
            true => 1.0 + chunked::NARROW / self.columns as f64,
            false => 1.0 + 8.0 * (1.0 / rows as f64 + 1.0 / columns as f64),
        };
        let multiply = (self.rows * self.columns * step) as f64 / chunked::RATE[which] * loaded;
        let bytes = (CHUNK * self.line * (self.rows + self.columns)) as f64;
        let work = multiply.max(bytes / chunked::BYTES[which]);
        // So many sums leave registers for one block alone.
        let many = together && self.rows * self.columns / self.threads() >= 100;
        let most = if many && self.threads() >= 256 { 1 } else { RESIDENT / warps };
        let resident = most.min(GROUP_SHARED / self.workgroup_bytes(units, true)).max(1);
        let per_unit = cut.per_unit(tiles, multiprocessors, resident);
        let (all, turns) = (per_unit as f64, per_unit.div_ceil(resident) as f64);
        let lag = chunked::LAG[which] + chunked::LAG_BYTE * bytes;
        let lag = lag.max(chunked::ARRIVAL / chunks::ahead(self) as f64);
        let slices = cut.span.div_ceil(step) as f64;
        let mut results = all * (self.rows * self.columns) as f64 / chunked::WRITTEN[which];
        if long && cut.parts == 1 {
            results *= chunked::LONG;
        }
        if resident > 1 && per_unit > 1 {
            results *= chunked::BESIDE;
        }
        let [m, k, n] = product.sizes;
        let moved = (2 * (m * (k + n) + k * n) * product.batch) as f64;
        let memory = moved / (multiprocessors as f64 * chunked::MEMORY);
        (slices * (all * work).max(lag * turns)).max(memory)
            + chunked::ENDS[which] * (1.0 + chunked::SEEN * (turns - 1.0))
            + results
            + product.sum_cycles(cut, multiprocessors, chunked::SUM_BYTES)
    }
}

/// A block and into how many parts the inner dimension is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) block: Block,
    pub(super) units: MatrixUnits,
    pub(super) cut: Cut,
}

/// The block and parts with the shortest estimate; `None` where the device has no room for any. `long`:
/// each result takes many instructions.
pub(super) fn choose(
    product: &Product,
    units: MatrixUnits,
    access: Access,
    long: bool,
    caps: &GpuCaps,
) -> Option<Choice> {
    let multiprocessors = multiprocessors(caps);
    let groups = caps.warp_groups && (access.chunks || (access.vector && !access.half));
    let room = |block: &&Block| {
        block.workgroup_bytes(units, access.chunks) <= caps.matrix_bytes as usize
            && block.threads() <= caps.workgroup_size as usize
            && (block.group == 0 || groups)
    };
    let blocks: &[Block] = if access.chunks { &CHUNK_BLOCKS } else { &BLOCKS };
    let choices = blocks.iter().filter(room).flat_map(|&block| {
        // With operands of 16 bits clusters were no gain where they were measured (0.98 to 1.07).
        let cuts =
            product.cuts(block.step(units), caps).filter(|cut| !(cut.joined && access.chunks));
        cuts.map(move |cut| {
            let cycles = match access.chunks {
                true => block.chunk_cycles(product, cut, long, multiprocessors),
                false => block.cycles(product, units, cut, multiprocessors),
            };
            (cycles, Choice { block, units, cut })
        })
    });
    let best = choices.min_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, choice)| choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Access =
        Access { vector: true, half: false, chunks: false, taps: [1, 1], sure: true };
    const CHUNKS: Access = Access { half: true, chunks: true, ..PLAIN };

    fn caps(units: u32) -> GpuCaps {
        GpuCaps { units, matrix_bytes: 48 << 10, workgroup_size: 1024, ..GpuCaps::ordinary() }
    }

    #[test]
    fn every_block_is_whole() {
        for block in BLOCKS {
            let apart = block.threads() / block.line;
            assert!(matches!(block.line, 4 | 8));
            assert!(apart.is_multiple_of(8), "rows of a load keep their chunks' order");
            let [rows, columns] = block.tile();
            assert!(rows.is_multiple_of(16) && columns.is_multiple_of(16));
            for units in [MatrixUnits::Tf32, MatrixUnits::Fp16] {
                let bytes = block.workgroup_bytes(units, false);
                if block.group > 0 {
                    assert!(block.rows.is_multiple_of(warp_groups::ROWS) && block.line == 4);
                    assert!(columns.is_multiple_of(block.group) && bytes <= 227 << 10);
                } else {
                    assert!(
                        block.rows.is_multiple_of(apart) && block.columns.is_multiple_of(apart)
                    );
                    assert!(bytes <= 48 << 10, "every device has room for it");
                }
            }
        }
    }

    #[test]
    fn every_block_of_chunks_is_whole() {
        for block in CHUNK_BLOCKS {
            let apart = block.threads() / block.line;
            assert!(block.line == 8 || (block.line == 4 && block.group == 0));
            assert!(apart.is_multiple_of(8), "rows of a copy keep their chunks' order");
            assert!(block.rows.is_multiple_of(apart), "every thread copies of the left side");
            let [rows, columns] = block.tile();
            assert!(rows.is_multiple_of(16) && columns.is_multiple_of(16));
            // Sums pass through the ring's memory row by row.
            assert!((block.rows * block.columns / 4).is_multiple_of(block.threads()));
            assert!(block.columns.is_multiple_of(32));
            let bytes = block.workgroup_bytes(MatrixUnits::Fp16, true);
            assert!(bytes <= 227 << 10 && (bytes / block.slices).is_multiple_of(1024));
            if block.group > 0 {
                assert!(block.rows.is_multiple_of(warp_groups::ROWS) && block.slices > 2);
                assert!(columns.is_multiple_of(block.group));
            }
        }
    }

    #[test]
    fn parts_cover_the_inner_dimension() {
        for (m, k, n) in [(49, 4608, 512), (196, 1153, 256), (17, 3, 9), (197, 768, 3072)] {
            for (count, warp_groups) in [(0, false), (2, false), (16, true), (132, true)] {
                for (units, access) in [
                    (MatrixUnits::Tf32, PLAIN),
                    (MatrixUnits::Fp16, PLAIN),
                    (MatrixUnits::Fp16, CHUNKS),
                ] {
                    let product = Product { sizes: [m, k, n], batch: 1 };
                    let caps = GpuCaps { warp_groups, matrix_bytes: 227 << 10, ..caps(count) };
                    let Choice { block, cut: Cut { parts, span, .. }, .. } =
                        choose(&product, units, access, false, &caps).unwrap();
                    assert!(warp_groups || block.group == 0);
                    assert!(span.is_multiple_of(block.step(units)) && parts * span >= k);
                    assert!((parts - 1) * span < k, "no part of {m}x{k}x{n} is empty");
                }
            }
        }
    }

    #[test]
    fn a_device_without_room_has_no_such_form() {
        let small = GpuCaps { matrix_bytes: 4 << 10, ..caps(16) };
        let product = Product { sizes: [64, 64, 64], batch: 1 };
        assert!(choose(&product, MatrixUnits::Tf32, PLAIN, false, &small).is_none());
    }
}
