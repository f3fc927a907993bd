//! The register tile: MR rows of A times a panel of NV vectors of packed B.
//!
//! Rows of A are read where they lie, through pointers: one per row and tap, each to a run of
//! elements. A matrix has one tap; a convolution has one per kernel position, so its input is
//! never copied. An element is a word: an f32, or a pair of bf16 carried as the f32 of the same
//! bits, which only [`Simd::multiply_words`] looks into.

use crate::activation::Activation;
use crate::simd::{Kernel, Simd};
use crate::vmath;

/// What happens to a tile's sums once the last block of K is in.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    pub(crate) alpha: f32,
    pub(crate) bias: bool,
    pub(crate) before: bool,
    pub(crate) after: bool,
    /// The activation, where it is cheap enough for the registers.
    quick: Quick,
    /// Any other activation: a second pass over the stored tile.
    pub(crate) slow: Option<Activation>,
}

/// An activation of a few instructions.
#[derive(Clone, Copy)]
enum Quick {
    None,
    /// Bounds; infinite ones do nothing.
    Clamp(f32, f32),
    HardSwish,
}

impl Finish {
    pub(crate) fn new(alpha: f32, bias: bool, epi: &crate::Epilogue<'_>) -> Finish {
        let (quick, slow) = match epi.activation {
            Activation::None => (Quick::None, None),
            Activation::Relu => (Quick::Clamp(0.0, f32::INFINITY), None),
            Activation::Clip { min, max } => (Quick::Clamp(min, max), None),
            Activation::HardSwish => (Quick::HardSwish, None),
            other => (Quick::None, Some(other)),
        };
        let before = matches!(epi.residual, crate::Residual::BeforeActivation(_));
        let after = matches!(epi.residual, crate::Residual::AfterActivation(_));
        Finish { alpha, bias, before, after, quick, slow }
    }

    /// The activation of one vector, unless it is left to the second pass.
    #[inline(always)]
    pub(crate) fn activate<S: Simd>(&self, s: S, x: S::V) -> S::V {
        match self.quick {
            Quick::None => x,
            Quick::Clamp(low, high) => s.min(s.splat(high), s.max(s.splat(low), x)),
            Quick::HardSwish => vmath::activate(s, Activation::HardSwish, x),
        }
    }

    /// [`Finish::activate`] for the vectors of a tile.
    #[inline(always)]
    pub(crate) fn activate_all<S: Simd, const R: usize, const NV: usize>(
        &self,
        s: S,
        tile: &mut [[S::V; NV]; R],
    ) {
        match self.quick {
            Quick::None => {}
            Quick::Clamp(low, high) => {
                let (low, high) = (s.splat(low), s.splat(high));
                for r in 0..R {
                    for v in 0..NV {
                        tile[r][v] = s.min(high, s.max(low, tile[r][v]));
                    }
                }
            }
            Quick::HardSwish => {
                for r in 0..R {
                    for v in 0..NV {
                        tile[r][v] = vmath::activate(s, Activation::HardSwish, tile[r][v]);
                    }
                }
            }
        }
    }
}

/// One tile to compute. All pointers are to the tile's first element.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// `taps` times MR pointers.
    pub(crate) rows: *const *const f32,
    pub(crate) taps: usize,
    /// Elements per tap, from `offset` on.
    pub(crate) run: usize,
    pub(crate) offset: usize,
    pub(crate) b: *const f32,
    /// What of B is multiplied after this, and how much of it this tile asks for: for each tap so many
    /// rows as wide as its own.
    pub(crate) next: *const f32,
    pub(crate) fetched: usize,
    pub(crate) to: Destination<'a>,
}

/// Where a tile's sums go, and what happens to them on the way. All pointers are to the tile's first
/// element.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    /// A vector per column, if `finish.bias`.
    pub(crate) bias: *const f32,
    /// Laid out as `c`, if `finish.before` or `finish.after`.
    pub(crate) residual: *const f32,
    /// Valid lanes of the last vector.
    pub(crate) tail: usize,
    /// Whether `c` holds the sums of earlier blocks of K.
    pub(crate) accumulate: bool,
    /// Whether this is the last block of K.
    pub(crate) finish: Option<&'a Finish>,
}

impl Destination<'_> {
    /// The same from a later row of the output on.
    pub(crate) fn down(&self, row: usize) -> Self {
        let (c, residual) = (self.c.wrapping_add(row * self.ldc), self.residual);
        let skip = if residual.is_null() { 0 } else { row * self.ldc };
        Destination { c, residual: residual.wrapping_add(skip), ..*self }
    }
}

/// Products of a tile's element from which it takes long enough for the output to arrive meanwhile.
const LONG: usize = 192;
/// Of so many rows of B that are multiplied, at most one row of what comes next is asked for: requests
/// all at once keep the loads between them waiting.
const FETCH_EVERY: usize = 4;
/// Elements of a cache line.
pub(super) const LINE: usize = 64 / size_of::<f32>();

/// Computes a tile of MR x NV vectors, with U independent sums along K; if FETCH, it asks for its share
/// of what comes next in B meanwhile.
///
/// The pointers in the tile must be valid for what their descriptions say.
pub(crate) struct Micro<'a, const MR: usize, const NV: usize, const U: usize, const FETCH: bool>(
    pub(crate) Tile<'a>,
);

impl<const MR: usize, const NV: usize, const U: usize, const FETCH: bool> Kernel
    for Micro<'_, MR, NV, U, FETCH>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever builds a Micro guarantees its pointers (see `driver`).
        unsafe { tile::<S, MR, NV, U, FETCH>(s, &self.0) }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const U: usize, const FETCH: bool>(
    s: S,
    t: &Tile<'_>,
) {
    let zero = s.splat(0.0);
    let mut acc = [[[zero; NV]; MR]; U];
    let mut b = t.b;
    let width = NV * S::LANES;
    if t.taps * t.run >= LONG {
        for r in 0..MR {
            for v in 0..NV {
                s.prefetch(t.to.c.wrapping_add(r * t.to.ldc + v * S::LANES));
            }
        }
    }
    for tap in 0..t.taps {
        let mut a = [std::ptr::null::<f32>(); MR];
        for (r, a) in a.iter_mut().enumerate() {
            // SAFETY: `rows` has taps * MR pointers, each to offset + run elements.
            *a = unsafe { (*t.rows.add(tap * MR + r)).add(t.offset) };
        }
        let mut k = 0;
        while U > 1 && k + U <= t.run {
            for (u, acc) in acc.iter_mut().enumerate() {
                // SAFETY: k + u < run; b has `width` elements for each k.
                unsafe { step::<S, MR, NV>(s, &a, k + u, b.add(u * width), acc) };
            }
            k += U;
            // SAFETY: at most one past the tile's part of the panel.
            b = unsafe { b.add(U * width) };
        }
        if FETCH {
            let mut next = t.next.wrapping_add(tap * t.fetched * width);
            let end = next.wrapping_add(t.fetched * width);
            while k + FETCH_EVERY <= t.run {
                if next < end {
                    for line in 0..const { (NV * S::LANES).div_ceil(LINE) } {
                        s.prefetch(next.wrapping_add(line * LINE));
                    }
                    next = next.wrapping_add(width);
                }
                for u in 0..FETCH_EVERY {
                    // SAFETY: k + u < run; b has `width` elements for each k.
                    unsafe { step::<S, MR, NV>(s, &a, k + u, b.add(u * width), &mut acc[0]) };
                }
                k += FETCH_EVERY;
                // SAFETY: at most one past the tile's part of the panel.
                b = unsafe { b.add(FETCH_EVERY * width) };
            }
        }
        while k < t.run {
            // SAFETY: k < run; b has `width` elements for each k.
            unsafe { step::<S, MR, NV>(s, &a, k, b, &mut acc[0]) };
            k += 1;
            // SAFETY: at most one past the tile's part of the panel.
            b = unsafe { b.add(width) };
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            for u in 1..U {
                acc[0][r][v] = s.add(acc[0][r][v], acc[u][r][v]);
            }
        }
    }
    // SAFETY: the caller's contract.
    unsafe { store::<S, MR, NV>(s, &t.to, acc[0]) };
}

#[inline(always)]
unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    a: &[*const f32; MR],
    k: usize,
    b: *const f32,
    acc: &mut [[S::V; NV]; MR],
) {
    let mut bv = [s.splat(0.0); NV];
    for (v, bv) in bv.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *bv = unsafe { s.load(b.add(v * S::LANES)) };
    }
    for r in 0..MR {
        // SAFETY: the caller's contract. Rows of pairs may start between two words.
        let av = s.splat(unsafe { a[r].add(k).read_unaligned() });
        for v in 0..NV {
            acc[r][v] = s.multiply_words(av, bv[v], acc[r][v]);
        }
    }
}

/// Finishes and stores the sums of a tile.
///
/// # Safety
/// Output, bias and residual have the tile's columns.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    t: &Destination<'_>,
    mut acc: [[S::V; NV]; MR],
) {
    // SAFETY: c, bias and residual have the tile's columns: whole vectors, the last `tail` lanes.
    unsafe {
        if t.accumulate {
            for r in 0..MR {
                for v in 0..NV {
                    let c = load_column::<S, NV>(s, t, t.c.add(r * t.ldc), v);
                    acc[r][v] = s.add(acc[r][v], c);
                }
            }
        }
        if let Some(f) = t.finish {
            if f.alpha != 1.0 {
                for row in &mut acc {
                    for x in row {
                        *x = s.mul(*x, s.splat(f.alpha));
                    }
                }
            }
            if f.bias {
                for v in 0..NV {
                    let bias = load_column::<S, NV>(s, t, t.bias, v);
                    for row in &mut acc {
                        row[v] = s.add(row[v], bias);
                    }
                }
            }
            if f.before {
                acc = add_residual(s, t, acc);
            }
            for row in &mut acc {
                for x in row {
                    *x = f.activate(s, *x);
                }
            }
            if f.after && f.slow.is_none() {
                acc = add_residual(s, t, acc);
            }
        }
        for r in 0..MR {
            let c = t.c.add(r * t.ldc);
            for v in 0..NV - 1 {
                s.store(c.add(v * S::LANES), acc[r][v]);
            }
            let c = c.add((NV - 1) * S::LANES);
            if t.tail == S::LANES {
                s.store(c, acc[r][NV - 1]);
            } else {
                s.store_partial(c, t.tail, acc[r][NV - 1]);
            }
        }
        if let Some(Finish { slow: Some(act), after, .. }) = t.finish {
            s.call(SecondPass {
                act: *act,
                c: t.c,
                residual: if *after { t.residual } else { std::ptr::null() },
                ldc: t.ldc,
                rows: MR,
                columns: (NV - 1) * S::LANES + t.tail,
            });
        }
    }
}

#[inline(always)]
unsafe fn add_residual<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    t: &Destination<'_>,
    mut acc: [[S::V; NV]; MR],
) -> [[S::V; NV]; MR] {
    for r in 0..MR {
        for v in 0..NV {
            // SAFETY: the residual is laid out as c.
            let x = unsafe { load_column::<S, NV>(s, t, t.residual.add(r * t.ldc), v) };
            acc[r][v] = s.add(acc[r][v], x);
        }
    }
    acc
}

#[inline(always)]
unsafe fn load_column<S: Simd, const NV: usize>(
    s: S,
    t: &Destination<'_>,
    row: *const f32,
    v: usize,
) -> S::V {
    // SAFETY: the row has NV vectors, the last of `tail` lanes.
    unsafe {
        if v + 1 < NV || t.tail == S::LANES {
            s.load(row.add(v * S::LANES))
        } else {
            s.load_partial(row.add(v * S::LANES), t.tail)
        }
    }
}

/// Applies an activation to a stored tile, then adds the residual unless null.
pub(crate) struct SecondPass {
    pub(crate) act: Activation,
    pub(crate) c: *mut f32,
    pub(crate) residual: *const f32,
    pub(crate) ldc: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Kernel for SecondPass {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for r in 0..self.rows {
            let mut i = 0;
            while i < self.columns {
                let lanes = S::LANES.min(self.columns - i);
                let at = r * self.ldc + i;
                // SAFETY: c, and the residual if there is one, have rows x columns elements, rows
                // ldc apart.
                unsafe {
                    let x = s.load_partial(self.c.add(at), lanes);
                    let mut y = vmath::activate(s, self.act, x);
                    if !self.residual.is_null() {
                        y = s.add(y, s.load_partial(self.residual.add(at), lanes));
                    }
                    s.store_partial(self.c.add(at), lanes, y);
                }
                i += lanes;
            }
        }
    }
}
