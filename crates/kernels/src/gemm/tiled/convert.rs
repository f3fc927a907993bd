//! Numbers to tiles of their terms.

use super::{LINE, Terms};
use crate::amx::{DEPTH, SIDE, TILE};
use crate::simd::{Kernel, Simd};

/// Converts the columns of one tile, `runs` times `run` numbers each, for every step.
pub(super) struct PackTile<'a> {
    pub(super) from: &'a [f32],
    pub(super) runs: usize,
    pub(super) run: usize,
    pub(super) terms: Terms,
    /// From this tile's first element on.
    pub(super) out: &'a mut [f32],
    /// Tiles of the panel, between which steps alternate.
    pub(super) tiles: usize,
}

impl Kernel for PackTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.from.len() / (self.runs * self.run);
        let mut places = self.out.chunks_mut(self.tiles * TILE);
        for run in 0..self.runs {
            for start in (0..self.run).step_by(DEPTH) {
                let len = DEPTH.min(self.run - start);
                let mut terms = [[s.splat(0.0); SIDE]; 2];
                for column in 0..columns {
                    let at = (column * self.runs + run) * self.run + start;
                    let [first, second] = load_step(s, &self.from[at..at + len]);
                    [terms[0][column], terms[1][column]] = s.to_terms(first, second);
                }
                for square in terms.iter_mut().take(self.terms as usize) {
                    s.transpose(square);
                    let out = &mut places.next().expect("a place for every tile")[..TILE];
                    for (vector, out) in square.iter().zip(out.chunks_exact_mut(LINE)) {
                        // SAFETY: a line has LANES elements.
                        unsafe { s.store(out.as_mut_ptr(), *vector) };
                    }
                }
            }
        }
    }
}

/// At most a step's numbers, as two vectors filled up with zeros.
#[inline(always)]
fn load_step<S: Simd>(s: S, from: &[f32]) -> [S::V; 2] {
    debug_assert!(from.len() <= DEPTH);
    let first = from.len().min(S::LANES);
    // SAFETY: both parts lie in the slice.
    unsafe {
        let second = from.as_ptr().add(first);
        [s.load_partial(from.as_ptr(), first), s.load_partial(second, from.len() - first)]
    }
}

/// Converts rows of numbers to steps of their terms, the last one filled up with zeros.
pub(crate) struct Convert<'a> {
    pub(crate) terms: Terms,
    pub(crate) from: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements between rows of `from`.
    pub(crate) stride: usize,
    pub(crate) out: &'a mut [f32],
    /// Elements between rows of `out`.
    pub(crate) out_stride: usize,
}

impl Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let terms = self.terms as usize;
        let whole = self.columns / DEPTH;
        let len = self.columns.div_ceil(DEPTH).max(1) * terms * LINE;
        if self.rows == 0 {
            return;
        }
        assert!(self.from.len() >= (self.rows - 1) * self.stride + self.columns);
        assert!(self.out.len() >= (self.rows - 1) * self.out_stride + len);
        for row in 0..self.rows {
            let from = &self.from[row * self.stride..][..self.columns];
            let out = &mut self.out[row * self.out_stride..][..len];
            for step in 0..whole {
                // SAFETY: the step has DEPTH elements, two vectors; its place `terms` lines.
                unsafe {
                    let from = from.as_ptr().add(step * DEPTH);
                    let pair = [s.load(from), s.load(from.add(LINE))];
                    store_terms(s, self.terms, pair, out.as_mut_ptr().add(step * terms * LINE));
                }
            }
            if whole * DEPTH < self.columns || self.columns == 0 {
                let pair = load_step(s, &from[whole * DEPTH..]);
                let out = &mut out[whole * terms * LINE..][..terms * LINE];
                // SAFETY: the place has `terms` lines.
                unsafe { store_terms(s, self.terms, pair, out.as_mut_ptr()) };
            }
        }
    }
}

/// # Safety
/// A line for each term is writable at `out`.
#[inline(always)]
unsafe fn store_terms<S: Simd>(s: S, terms: Terms, [first, second]: [S::V; 2], out: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        match terms {
            Terms::One => s.store(out, s.to_pairs(first, second)),
            Terms::Two => {
                let [leads, rests] = s.to_terms(first, second);
                s.store(out, leads);
                s.store(out.add(LINE), rests);
            }
        }
    }
}
