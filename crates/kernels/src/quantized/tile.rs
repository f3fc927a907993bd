//! The register tile: some rows times a panel of columns, summed and rounded to bytes.

use std::ops::Range;

use super::pack::Product;
use crate::gemm::driver::tiles;
use crate::simd::{Kernel, Simd};

/// Where the rows of the left-hand side are.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    /// One segment each, `lda` bytes apart.
    Dense { a: *const u8, lda: usize },
    /// For each tile of rows and each segment, a pointer per row.
    Table(*const *const u8),
}

/// Some rows times some panels.
pub(super) struct Block<'a> {
    pub(super) product: &'a Product,
    pub(super) rows: Rows,
    /// How many rows.
    pub(super) m: usize,
    pub(super) panels: Range<usize>,
    /// The first row's first column of the output; rows are `ldc` bytes apart.
    pub(super) c: *mut u8,
    pub(super) ldc: usize,
    /// `Product::wide_len` elements.
    pub(super) wide: &'a mut [i32],
}

/// A tile's left-hand side, panel and output.
struct Tile<'a> {
    p: &'a Product,
    /// Quads: pointers by segment and row. Pairs: not used.
    table: *const *const u8,
    /// Pairs: words by row and step.
    wide: *const i32,
    b: *const u8,
    b_step: usize,
    start: *const i32,
    multipliers: *const f32,
    columns: usize,
    c: *mut u8,
    ldc: usize,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.product;
        let (mr, nr) = p.tile;
        assert!(mr == S::TILE.0 && nr == S::TILE.1 * S::LANES && p.quads <= S::QUADS);
        assert!(p.segments == 1 || matches!(self.rows, Rows::Table(_)));
        assert!(self.wide.len() >= p.wide_len(), "wide has wide_len elements");
        for (row, height) in tiles(self.m, mr) {
            let mut dense = [std::ptr::null(); MAX_ROWS];
            let table = match self.rows {
                Rows::Dense { a, lda } => {
                    for (r, pointer) in dense.iter_mut().enumerate().take(height) {
                        *pointer = a.wrapping_add((row + r) * lda);
                    }
                    dense.as_ptr()
                }
                Rows::Table(table) => table.wrapping_add(row * p.segments),
            };
            if !p.quads {
                // SAFETY: the table has `height` pointers for each segment of p, to as many bytes.
                unsafe { widen(p, table, height, self.wide) };
            }
            for panel in self.panels.clone() {
                let (b, b_step) = p.panel(panel);
                let column = panel * nr;
                let t = Tile {
                    p,
                    table,
                    wide: self.wide.as_ptr(),
                    b,
                    b_step,
                    start: p.start[column..column + nr].as_ptr(),
                    multipliers: p.multipliers[column..column + nr].as_ptr(),
                    columns: nr.min(p.n - column),
                    c: self.c.wrapping_add(row * self.ldc + column),
                    ldc: self.ldc,
                };
                // SAFETY: the caller of the kernel hands over rows and output of these sizes; the
                // panel's weights, starts and multipliers are whole.
                unsafe { run_tile(s, &t, height) };
            }
        }
    }
}

const MAX_ROWS: usize = 12;

/// Pairs of bytes made unsigned, as two i16 in a word, by row and step.
///
/// # Safety
/// `table` has a pointer per segment and row, to `segment` bytes each.
#[inline(always)]
unsafe fn widen(p: &Product, table: *const *const u8, height: usize, wide: &mut [i32]) {
    let (steps, per_segment) = (p.steps(), p.segment.div_ceil(2));
    let flip = p.x.flip();
    for segment in 0..p.segments {
        for r in 0..height {
            // SAFETY: the caller's contract.
            let x =
                unsafe { std::slice::from_raw_parts(*table.add(segment * height + r), p.segment) };
            let out = &mut wide[r * steps + segment * per_segment..][..per_segment];
            let chunks = x.chunks_exact(2);
            if let [last] = chunks.remainder() {
                // The missing byte meets a weight of zero.
                out[per_segment - 1] = i32::from(last ^ flip);
            }
            for (out, x) in out.iter_mut().zip(chunks) {
                *out = i32::from(x[0] ^ flip) | i32::from(x[1] ^ flip) << 16;
            }
        }
    }
}

/// # Safety
/// The tile's rows, weights and output have the sizes that `t` says.
#[inline(always)]
unsafe fn run_tile<S: Simd>(s: S, t: &Tile<'_>, height: usize) {
    macro_rules! heights {
        ($nv:literal: $($mr:literal)*) => {
            match height {
                // SAFETY: the caller's contract.
                $($mr if $mr <= S::TILE.0 => unsafe { tile::<S, $mr, $nv>(s, t) },)*
                _ => unreachable!("tiles are no higher than TILE"),
            }
        };
    }
    let vectors = t.columns.div_ceil(S::LANES);
    if vectors == 1 {
        heights!(1: 1 2 3 4 5 6 7 8 9 10 11 12)
    } else if vectors == 2 || S::TILE.1 == 2 {
        heights!(2: 1 2 3 4 5 6 7 8 9 10 11 12)
    } else {
        heights!(4: 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// # Safety
/// As for [`run_tile`].
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(s: S, t: &Tile<'_>) {
    let mut acc = [[s.zero_i32(); NV]; MR];
    for v in 0..NV {
        // SAFETY: starts are padded to whole panels.
        let start = unsafe { s.load_i32(t.start.add(v * S::LANES)) };
        for row in &mut acc {
            row[v] = start;
        }
    }
    // SAFETY: the caller's contract.
    unsafe {
        if S::QUADS && t.p.quads {
            quads(s, t, &mut acc);
        } else {
            pairs(s, t, &mut acc);
        }
        store(s, t, &acc);
    }
}

/// # Safety
/// As for [`run_tile`].
#[inline(always)]
unsafe fn quads<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    t: &Tile<'_>,
    acc: &mut [[S::I; NV]; MR],
) {
    let (full, rest) = (t.p.segment / 4, t.p.segment % 4);
    let mut b = t.b.cast::<i8>();
    // SAFETY: a segment has `full` whole quads and `rest` bytes more, the panel as many steps.
    unsafe {
        let flip = s.load_i32(t.p.flip.as_ptr());
        for segment in 0..t.p.segments {
            let mut a = [std::ptr::null::<u8>(); MR];
            for (r, a) in a.iter_mut().enumerate() {
                *a = *t.table.add(segment * MR + r);
            }
            for step in 0..full {
                for r in 0..MR {
                    let quad = s.splat_quad(a[r].add(4 * step), flip);
                    for v in 0..NV {
                        acc[r][v] = s.dot_quads(acc[r][v], quad, b.add(4 * v * S::LANES));
                    }
                }
                b = b.add(t.b_step);
            }
            if rest > 0 {
                for r in 0..MR {
                    let quad = if full > 0 {
                        // Bytes of the step before meet weights of zero.
                        s.splat_quad(a[r].add(t.p.segment - 4), flip)
                    } else {
                        s.splat_quad(few(a[r], rest).as_ptr(), flip)
                    };
                    for v in 0..NV {
                        acc[r][v] = s.dot_quads(acc[r][v], quad, b.add(4 * v * S::LANES));
                    }
                }
                b = b.add(t.b_step);
            }
        }
    }
}

/// The `n` bytes at `a`, and zeros.
///
/// # Safety
/// `n < 4` bytes at `a` are readable.
#[inline(always)]
unsafe fn few(a: *const u8, n: usize) -> [u8; 4] {
    let mut quad = [0; 4];
    for (i, byte) in quad.iter_mut().enumerate().take(n) {
        // SAFETY: the caller's contract.
        *byte = unsafe { *a.add(i) };
    }
    quad
}

/// # Safety
/// As for [`run_tile`].
#[inline(always)]
unsafe fn pairs<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    t: &Tile<'_>,
    acc: &mut [[S::I; NV]; MR],
) {
    let steps = t.p.steps();
    // SAFETY: every row has `steps` words, the panel as many steps.
    unsafe {
        for step in 0..steps {
            let b = t.b.add(step * t.b_step).cast::<i16>();
            for r in 0..MR {
                let pair = *t.wide.add(r * steps + step);
                for v in 0..NV {
                    acc[r][v] = s.dot_pairs(acc[r][v], pair, b.add(2 * v * S::LANES));
                }
            }
        }
    }
}

/// # Safety
/// As for [`run_tile`].
#[inline(always)]
unsafe fn store<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    t: &Tile<'_>,
    acc: &[[S::I; NV]; MR],
) {
    let [low, high] = t.p.relative.map(|x| s.splat(x));
    if S::NARROWS && t.columns == NV * S::LANES {
        // SAFETY: the caller's contract; all vectors are whole.
        unsafe { store_whole(s, t, acc, [low, high]) };
        return;
    }
    let zeros = [t.p.zero; crate::simd::MAX_LANES];
    // SAFETY: multipliers are padded to whole panels; each row of c has the tile's columns.
    unsafe {
        let zero = s.load_i32(zeros.as_ptr());
        for v in 0..NV {
            let columns = t.columns.saturating_sub(v * S::LANES).min(S::LANES);
            if columns == 0 {
                break;
            }
            let multiplier = s.load(t.multipliers.add(v * S::LANES));
            for r in 0..MR {
                let y = requantized(s, acc[r][v], multiplier, [low, high], zero);
                s.store_low_bytes(t.c.add(r * t.ldc + v * S::LANES), columns, y);
            }
        }
    }
}

/// [`store`] for whole vectors, four at a time.
///
/// # Safety
/// As for [`run_tile`], with NV whole vectors of columns.
#[inline(always)]
unsafe fn store_whole<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    t: &Tile<'_>,
    acc: &[[S::I; NV]; MR],
    [low, high]: [S::V; 2],
) {
    for first in (0..MR * NV).step_by(4) {
        let mut four = [s.zero_i32(); 4];
        let mut places = [t.c; 4];
        for i in 0..4 {
            // The last vectors are stored again where there are less than four.
            let at = (first + i).min(MR * NV - 1);
            let (r, v) = (at / NV, at % NV);
            // SAFETY: multipliers are padded to whole panels; each row of c has the columns.
            let x = unsafe {
                places[i] = t.c.add(r * t.ldc + v * S::LANES);
                s.mul(s.to_f32(acc[r][v]), s.load(t.multipliers.add(v * S::LANES)))
            };
            let x = if t.p.shrinks { x } else { s.min(s.max(x, low), high) };
            four[i] = s.to_i32(x);
        }
        // SAFETY: places are in bounds, see above.
        unsafe { s.store_apart(places, s.narrow(four, &t.p.grid)) };
    }
}

/// `Requantize::apply` on a vector.
#[inline(always)]
pub(super) fn requantized<S: Simd>(
    s: S,
    sum: S::I,
    multiplier: S::V,
    [low, high]: [S::V; 2],
    zero: S::I,
) -> S::I {
    let x = s.mul(s.to_f32(sum), multiplier);
    let x = s.min(s.max(x, low), high);
    s.add_i32(s.to_i32(x), zero)
}
