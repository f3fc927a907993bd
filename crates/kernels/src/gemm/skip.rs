//! Products that skip the zeros of A, as a ReLU leaves them.
//!
//! A row's elements that are not zero are listed, and only they are multiplied with their rows of
//! B: a vector of weights is loaded for each multiply-add, where the dense tile shares it among its
//! rows. That costs some 40 % of the rate (see docs/activation-sparsity.md), hence [`pays`] samples
//! each block of rows when it comes. B is cut so that what a group of rows needs of it stays in the
//! first-level cache.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::gemm::driver::{Block, Rows};
use crate::gemm::micro::{Destination, LINE, store};
use crate::simd::{Kernel, MAX_LANES, Simd};

/// Rows that are listed together: so often are weights used once they are in the nearest cache.
const ROWS: usize = 32;
/// The most elements of a row that are listed at once.
const MAX_DEPTH: usize = 256;
/// Room of a row's list: lists are written in whole vectors.
const LIST: usize = MAX_DEPTH + MAX_LANES;
/// Bytes of weights that rows which are listed together share.
const WEIGHT_BYTES: usize = 32 * 1024;
/// Outputs of a block for each row that is sampled: sampling then takes some 1 % of its time or less.
const SAMPLE_OUTPUTS: usize = 4096;
const MAX_SAMPLES: usize = 6;

/// The most panels whose sums a row keeps in registers.
const fn most_panels<S: Simd>() -> usize {
    if S::TILE.1 == 2 { 4 } else { 1 }
}

/// Share of zeros from which skipping is faster, a little more than measured: lists cost as much
/// however few columns they serve, and every row's sums are begun and stored.
fn crossover(rows: usize, k: usize, columns: usize) -> f32 {
    // The dense kernel uses weights twice at most for two rows.
    let base = if rows == 2 { 0.3 } else { 0.42 };
    base + 10.0 / columns as f32 + 5.0 / k as f32
}

/// Whether the block has enough zeros in A, by a sample of its rows.
#[inline(always)]
pub(crate) fn pays<S: Simd>(s: S, block: &Block<'_>) -> bool {
    let k = block.product.run;
    let panels = block.panels.len();
    if block.product.taps != 1 || k < MAX_LANES || panels == 0 {
        return false;
    }
    if block.m == 1 {
        // The wider groups of panels pay even without zeros; one panel is not worth listing them.
        return panels > 1;
    }
    let nr = S::TILE.1 * S::LANES;
    let columns = block.product.b.n().min(block.panels.end * nr) - block.panels.start * nr;
    let samples = (block.m * columns / SAMPLE_OUTPUTS).clamp(1, MAX_SAMPLES.min(block.m));
    let mut list = [MaybeUninit::uninit(); LIST];
    let mut live = 0;
    for i in 0..samples {
        let row = row(block, (2 * i + 1) * block.m / (2 * samples));
        for start in (0..k).step_by(MAX_DEPTH) {
            // SAFETY: the block has the row, of k elements.
            live += unsafe { list_row(s, row, start..k.min(start + MAX_DEPTH), &mut list) };
        }
    }
    let zeros = 1.0 - live as f32 / (samples * k) as f32;
    zeros >= crossover(block.m, k, columns)
}

#[inline(always)]
fn row(block: &Block<'_>, index: usize) -> *const f32 {
    debug_assert!(index < block.m);
    match block.rows {
        Rows::Dense { a, lda } => a.wrapping_add(index * lda),
        // SAFETY: with one tap the table has a pointer for each row, in order.
        Rows::Table(table) => unsafe { *table.add(index) },
    }
}

/// Lists which of the elements of `range` are not zero, counted from its start.
#[inline(always)]
unsafe fn list_row<S: Simd>(
    s: S,
    row: *const f32,
    range: Range<usize>,
    list: &mut [MaybeUninit<u32>; LIST],
) -> usize {
    assert!(range.len() <= MAX_DEPTH);
    let out = list.as_mut_ptr().cast::<u32>();
    let (mut count, mut i) = (0, 0);
    while i < range.len() {
        let lanes = S::LANES.min(range.len() - i);
        // SAFETY: the row has the range, by the caller's contract; count <= i <= MAX_DEPTH, after
        // which there is room for a vector.
        unsafe {
            let x = s.load_partial(row.add(range.start + i), lanes);
            count += s.list_nonzero(x, i as u32, out.add(count));
        }
        i += S::LANES;
    }
    count
}

/// The block, by lists.
pub(crate) struct Skipping<'a>(pub(crate) &'a Block<'a>);

impl Kernel for Skipping<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let block = self.0;
        let (p, k) = (block.product, block.product.b.k());
        assert!(p.taps == 1 && p.run == k && k > 0);
        let nr = S::TILE.1 * S::LANES;
        let group = most_panels::<S>().min(block.panels.len());
        let depth = match block.m {
            1 => MAX_DEPTH,
            _ => (WEIGHT_BYTES / (4 * nr * group)).clamp(2 * MAX_LANES, MAX_DEPTH),
        };
        let depth = k.div_ceil(k.div_ceil(depth)).next_multiple_of(MAX_LANES);
        let mut lists = [[MaybeUninit::uninit(); LIST]; ROWS];
        let mut lens = [0; ROWS];
        for first in (0..block.m).step_by(ROWS) {
            let rows = first..block.m.min(first + ROWS);
            for start in (0..k).step_by(depth) {
                let range = start..k.min(start + depth);
                for (i, row_index) in rows.clone().enumerate() {
                    let row = row(block, row_index);
                    // SAFETY: the block has the row, of k elements.
                    lens[i] = unsafe { list_row(s, row, range.clone(), &mut lists[i]) };
                }
                let mut panel = block.panels.start;
                while panel < block.panels.end {
                    let (panels, vectors) = self.group::<S>(panel);
                    let lists = Lists { rows: rows.clone(), range: range.clone(), lists: &lists };
                    self.call(s, panel, panels, vectors, &lists, &lens);
                    panel += panels;
                }
            }
        }
    }
}

/// Which elements of some rows are not zero.
struct Lists<'a> {
    rows: Range<usize>,
    /// The part of each row that is listed.
    range: Range<usize>,
    lists: &'a [[MaybeUninit<u32>; LIST]; ROWS],
}

impl Skipping<'_> {
    /// How many panels from `panel` on go together, groups being nearly equal, and how many vectors
    /// wide they are: a last panel that is narrower goes alone.
    #[inline(always)]
    fn group<S: Simd>(&self, panel: usize) -> (usize, usize) {
        let (n, nr) = (self.0.product.b.n(), S::TILE.1 * S::LANES);
        let vectors = (n - panel * nr).min(nr).div_ceil(S::LANES);
        let narrow = n.div_ceil(S::LANES) % S::TILE.1 != 0 && self.0.panels.end * nr > n;
        let left = self.0.panels.end - panel - usize::from(narrow);
        match left {
            0 => (1, vectors),
            _ => (left.div_ceil(left.div_ceil(most_panels::<S>())), S::TILE.1),
        }
    }

    /// The listed rows times some panels of B.
    #[inline(always)]
    fn call<S: Simd>(
        &self,
        s: S,
        panel: usize,
        panels: usize,
        vectors: usize,
        lists: &Lists<'_>,
        lens: &[usize; ROWS],
    ) {
        let block = self.0;
        match (panels, vectors) {
            (1, 1) => s.call(Group::<1, 1, 4> { block, panel, lists, lens }),
            (1, 2) => s.call(Group::<1, 2, 4> { block, panel, lists, lens }),
            (1, 3) if const { S::TILE.1 > 2 } => {
                s.call(Group::<1, 3, 2> { block, panel, lists, lens });
            }
            (1, 4) if const { S::TILE.1 > 2 } => {
                s.call(Group::<1, 4, 2> { block, panel, lists, lens });
            }
            (2, 2) if const { S::TILE.1 == 2 } => {
                s.call(Group::<2, 2, 2> { block, panel, lists, lens });
            }
            (3, 2) if const { S::TILE.1 == 2 } => {
                s.call(Group::<3, 2, 1> { block, panel, lists, lens });
            }
            (4, 2) if const { S::TILE.1 == 2 } => {
                s.call(Group::<4, 2, 1> { block, panel, lists, lens });
            }
            _ => unreachable!("groups are of 1 to 4 whole panels, or one narrow one"),
        }
    }
}

/// Listed rows times NP panels of NV vectors, with U independent sums along K.
struct Group<'a, const NP: usize, const NV: usize, const U: usize> {
    block: &'a Block<'a>,
    panel: usize,
    lists: &'a Lists<'a>,
    lens: &'a [usize; ROWS],
}

impl<const NP: usize, const NV: usize, const U: usize> Kernel for Group<'_, NP, NV, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (block, lists) = (self.block, self.lists);
        let (p, nr, width) = (block.product, S::TILE.1 * S::LANES, NV * S::LANES);
        let (k, n) = (p.b.k(), p.b.n());
        let column = self.panel * nr;
        let columns = (NP * nr).min(n - column);
        let weights = &p.packed[column * k..];
        assert!(weights.len() >= (NP - 1) * nr * k + lists.range.end * width);
        let b = weights[lists.range.start * width..].as_ptr();
        let bias = p.bias.map_or(std::ptr::null(), |b| b[column..][..columns].as_ptr());
        let tail = columns - ((NP - 1) * nr + (NV - 1) * S::LANES);
        // Weights come from memory with the first rows: meanwhile those of the next panels are
        // fetched, a share with every row. A few rows leave out too many to fetch them all.
        let first_rows = lists.rows.start == 0 && lists.rows.len() >= 8;
        let next = if first_rows { NP.min(block.panels.end - self.panel - NP) } else { 0 };
        let lines = lists.range.len() * width / LINE;
        for (i, index) in lists.rows.clone().enumerate() {
            for panel in 0..next {
                let fetched = b.wrapping_add((NP + panel) * nr * k);
                let rows = lists.rows.len();
                for line in lines * i / rows..lines * (i + 1) / rows {
                    s.prefetch(fetched.wrapping_add(line * LINE));
                }
            }
            // SAFETY: `list_row` wrote so many.
            let list = unsafe {
                std::slice::from_raw_parts(lists.lists[i].as_ptr().cast::<u32>(), self.lens[i])
            };
            let x = row(block, index).wrapping_add(lists.range.start);
            let mut acc = [[[s.splat(0.0); NV]; NP]; U];
            let mut chunks = list.chunks_exact(U);
            for chunk in &mut chunks {
                for (&k_live, acc) in chunk.iter().zip(&mut acc) {
                    // SAFETY: counted within the range, which the row and each panel of B have.
                    unsafe { step::<S, NP, NV>(s, x, b, nr * k, k_live as usize, acc) };
                }
            }
            for &k_live in chunks.remainder() {
                // SAFETY: as above.
                unsafe { step::<S, NP, NV>(s, x, b, nr * k, k_live as usize, &mut acc[0]) };
            }
            let at = (block.first_row + index) * p.ldc + column;
            let residual = p.residual.map_or(std::ptr::null(), |r| r[at..][..columns].as_ptr());
            for panel in 0..NP {
                let mut sums = acc[0][panel];
                for acc in &acc[1..] {
                    for v in 0..NV {
                        sums[v] = s.add(sums[v], acc[panel][v]);
                    }
                }
                let to = Destination {
                    c: p.c.ptr().wrapping_add(at + panel * width),
                    ldc: p.ldc,
                    bias: bias.wrapping_add(panel * width),
                    residual: residual.wrapping_add(panel * width),
                    tail: if panel + 1 < NP { S::LANES } else { tail },
                    accumulate: lists.range.start > 0 || p.accumulate,
                    finish: (lists.range.end == k).then_some(&p.finish),
                };
                // SAFETY: output, bias and residual have the columns of all panels.
                unsafe { store::<S, 1, NV>(s, &to, [sums]) };
            }
        }
    }
}

/// Adds the products of element `k` of the row `x` with its row of each panel of B.
#[inline(always)]
unsafe fn step<S: Simd, const NP: usize, const NV: usize>(
    s: S,
    x: *const f32,
    b: *const f32,
    distance: usize,
    k: usize,
    acc: &mut [[S::V; NV]; NP],
) {
    // SAFETY: the caller's contract: x has element k, B row k in panels `distance` apart.
    unsafe {
        let x = s.splat(*x.add(k));
        let b = b.add(k * NV * S::LANES);
        for p in 0..NP {
            for v in 0..NV {
                let b = s.load(b.add(p * distance + v * S::LANES));
                acc[p][v] = s.mul_add(x, b, acc[p][v]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
