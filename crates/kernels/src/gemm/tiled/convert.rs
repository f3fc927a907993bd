//! Numbers to tiles of their terms.
//!
//! A step's 32 numbers are words of two: of [`Terms::One`] neighbours, as the instruction that
//! rounds has it, otherwise numbers i and 16 + i.

use super::{LINE, Terms};
use crate::amx::{DEPTH, SIDE, TILE};
use crate::simd::{Kernel, Simd};

/// Elements of a step of a tile as numbers.
pub(super) const NUMBERS: usize = DEPTH * SIDE;

/// Packs the columns of one tile, `runs` times `run` numbers each, for every step.
pub(super) struct PackTile<'a> {
    pub(super) from: &'a [f32],
    pub(super) runs: usize,
    pub(super) run: usize,
    /// The terms to convert to; or numbers as they are, for [`split_panel`].
    pub(super) terms: Option<Terms>,
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
        let (count, each) = match self.terms {
            Some(terms) => (terms as usize, TILE),
            None => (1, NUMBERS),
        };
        let mut places = self.out.chunks_mut(self.tiles * each);
        for run in 0..self.runs {
            for start in (0..self.run).step_by(DEPTH) {
                let len = DEPTH.min(self.run - start);
                let mut squares = [[s.splat(0.0); SIDE]; 3];
                for column in 0..columns {
                    let at = (column * self.runs + run) * self.run + start;
                    let [first, second] = load_step(s, &self.from[at..at + len]);
                    let vectors = match self.terms {
                        Some(terms) => to_terms(s, terms, first, second),
                        None => [first, second, second],
                    };
                    for (square, vector) in squares.iter_mut().zip(vectors) {
                        square[column] = vector;
                    }
                }
                let per_place = each / TILE;
                for squares in squares[..count * per_place].chunks_exact_mut(per_place) {
                    let out = &mut places.next().expect("a place for every tile")[..each];
                    for (square, out) in squares.iter_mut().zip(out.chunks_exact_mut(TILE)) {
                        s.transpose(square);
                        for (vector, out) in square.iter().zip(out.chunks_exact_mut(LINE)) {
                            // SAFETY: a line has LANES elements.
                            unsafe { s.store(out.as_mut_ptr(), *vector) };
                        }
                    }
                }
            }
        }
    }
}

/// Steps of a panel of `tiles` tiles, kept as numbers, to their terms.
#[inline(always)]
pub(super) fn split_panel<S: Simd>(
    s: S,
    terms: Terms,
    tiles: usize,
    from: &[f32],
    out: &mut [f32],
) {
    let terms = terms as usize;
    let steps = from.chunks_exact(tiles * NUMBERS);
    assert!(out.len() >= steps.len() * terms * tiles * TILE);
    for (from, out) in steps.zip(out.chunks_exact_mut(terms * tiles * TILE)) {
        for tile in 0..tiles {
            for line in 0..SIDE {
                // SAFETY: a tile has 2 * SIDE lines of numbers, and SIDE of each term.
                unsafe {
                    let from = from.as_ptr().add(tile * NUMBERS + line * LINE);
                    let split = s.to_terms(s.load(from), s.load(from.add(TILE)));
                    let out = out.as_mut_ptr().add(tile * TILE + line * LINE);
                    for (term, vector) in split.into_iter().take(terms).enumerate() {
                        s.store(out.add(term * tiles * TILE), vector);
                    }
                }
            }
        }
    }
}

/// The words of a step's terms, the larger first.
#[inline(always)]
fn to_terms<S: Simd>(s: S, terms: Terms, first: S::V, second: S::V) -> [S::V; 3] {
    match terms {
        Terms::One => [s.to_pairs(first, second); 3],
        Terms::Two | Terms::Three => s.to_terms(first, second),
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

/// Converts rows of numbers to steps of their terms, the last one filled up with zeros. Returns
/// whether all numbers have such terms; if not, the others' are one term, infinite or NaN, and 0.
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
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> bool {
        let terms = self.terms as usize;
        let whole = self.columns / DEPTH;
        let len = self.columns.div_ceil(DEPTH).max(1) * terms * LINE;
        if self.rows == 0 {
            return true;
        }
        assert!(self.from.len() >= (self.rows - 1) * self.stride + self.columns);
        assert!(self.out.len() >= (self.rows - 1) * self.out_stride + len);
        let mut check = Check { s, sum: s.splat(0.0) };
        for row in 0..self.rows {
            let from = &self.from[row * self.stride..][..self.columns];
            let out = &mut self.out[row * self.out_stride..][..len];
            for step in 0..whole {
                // SAFETY: the step has DEPTH elements, two vectors; its place `terms` lines.
                unsafe {
                    let from = from.as_ptr().add(step * DEPTH);
                    let pair = [s.load(from), s.load(from.add(LINE))];
                    let out = out.as_mut_ptr().add(step * terms * LINE);
                    store_terms(s, self.terms, pair, &mut check, out);
                }
            }
            if whole * DEPTH < self.columns || self.columns == 0 {
                let pair = load_step(s, &from[whole * DEPTH..]);
                let out = &mut out[whole * terms * LINE..][..terms * LINE];
                // SAFETY: the place has `terms` lines.
                unsafe { store_terms(s, self.terms, pair, &mut check, out.as_mut_ptr()) };
            }
        }
        let finite = check.all_are_finite();
        if !finite {
            self.mend();
        }
        finite
    }
}

impl Convert<'_> {
    /// Gives numbers without finite terms one that says what they are.
    #[cold]
    fn mend(&mut self) {
        let terms = self.terms as usize;
        for row in 0..self.rows {
            let from = &self.from[row * self.stride..][..self.columns];
            let out = &mut self.out[row * self.out_stride..];
            for (i, &x) in from.iter().enumerate() {
                let (sign, size) = (x.to_bits() >> 31 << 15, x.to_bits() << 1 >> 1);
                if size + 0x8000 < f32::INFINITY.to_bits() {
                    continue;
                }
                let lead = sign | if x.is_nan() { f32::NAN } else { f32::INFINITY }.to_bits() >> 16;
                let (step, i) = (i / DEPTH, i % DEPTH);
                let shift = if i < LINE { 0 } else { 16 };
                for term in 0..terms {
                    let word = &mut out[(step * terms + term) * LINE + i % LINE];
                    let bits = if term == 0 { lead } else { 0 };
                    let kept = word.to_bits() & !(0xffff << shift);
                    *word = f32::from_bits(kept | bits << shift);
                }
            }
        }
    }
}

/// Finds out whether numbers, rounded to bf16, are finite.
struct Check<S: Simd> {
    s: S,
    /// 0, or NaN if one was not.
    sum: S::V,
}

impl<S: Simd> Check<S> {
    #[inline(always)]
    fn see(&mut self, x: S::V) {
        // What rounding may add to a number, at most.
        let most = self.s.mul(x, self.s.splat(1.0 + 1.0 / 256.0));
        self.sum = self.s.mul_add(most, self.s.splat(0.0), self.sum);
    }

    #[inline(always)]
    fn all_are_finite(self) -> bool {
        self.s.reduce_add(self.sum) == 0.0
    }
}

/// # Safety
/// A line for each term is writable at `out`.
#[inline(always)]
unsafe fn store_terms<S: Simd>(
    s: S,
    terms: Terms,
    [first, second]: [S::V; 2],
    check: &mut Check<S>,
    out: *mut f32,
) {
    if terms != Terms::One {
        check.see(first);
        check.see(second);
    }
    let split = to_terms(s, terms, first, second);
    for (term, vector) in split.into_iter().take(terms as usize).enumerate() {
        // SAFETY: the caller's contract.
        unsafe { s.store(out.add(term * LINE), vector) };
    }
}
