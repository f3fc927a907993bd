//! One tile: rows of weights times the slab, and the way back to pixels.

use std::ops::Range;

use crate::activation::{Epilogue, Residual};
use crate::aligned::SharedMut;
use crate::gemm::micro::{Finish, SecondPass};
use crate::isa::Isa;
use crate::simd::{self, Kernel, MAX_LANES, Simd};
use crate::sparse::compressed::Compressed;
use crate::sparse::grid::{Grid, Place, TILE_VECTORS, WIDE_VECTORS};

/// Output channels that are transposed back together.
pub(crate) const GROUP: usize = MAX_LANES;
/// No pixel.
const NONE: u32 = u32::MAX;

/// Where the results of a group's channels go.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    finish: Finish,
    y: SharedMut,
    /// Whether y comes from memory, and sums take longer than it does.
    far: bool,
    /// Elements from pixel to pixel, and the first of the group's channels.
    stride: usize,
    channel: usize,
}

impl<'a> Output<'a> {
    /// `bias` and `y` (as the epilogue's residual) begin with the first channel of all.
    pub(crate) fn new(
        bias: Option<&'a [f32]>,
        epi: &Epilogue<'a>,
        y: SharedMut,
        far: bool,
        stride: usize,
        channel: usize,
    ) -> Output<'a> {
        let residual = match epi.residual {
            Residual::None => None,
            Residual::BeforeActivation(r) | Residual::AfterActivation(r) => Some(r),
        };
        let finish = Finish::new(1.0, bias.is_some(), epi);
        Output { bias, residual, finish, y, far, stride, channel }
    }

    /// What becomes of sums before they are transposed: a residual before the activation is added
    /// at the pixel.
    #[inline(always)]
    pub(crate) fn activate<S: Simd>(&self, s: S, sum: S::V) -> S::V {
        if self.finish.before { sum } else { self.finish.activate(s, sum) }
    }
}

/// Some rows of weights times one tile.
pub(crate) struct Tile<'a> {
    pub(crate) grid: &'a Grid,
    pub(crate) n: usize,
    pub(crate) weights: &'a Compressed,
    /// From a multiple of [`GROUP`] on.
    pub(crate) rows: Range<usize>,
    /// The tile's band and its place in it, and where its first position is in the slab.
    pub(crate) band: usize,
    pub(crate) index: usize,
    pub(crate) x: *const f32,
    /// Floats from row to row of a tile's input, and from channel to channel.
    pub(crate) line: usize,
    pub(crate) channel_len: usize,
    /// Space for the sums of a group of rows, or with several blocks of all rows.
    pub(crate) sums: &'a mut [f32],
    /// Whether the activated sums of all rows, at most a group, stay there and go nowhere else.
    pub(crate) keeps_sums: bool,
    pub(crate) output: &'a Output<'a>,
}

/// Whether sums of [`WIDE_VECTORS`] fit the registers, with a weight and an activation's bounds.
const fn is_wide((rows, vectors): (usize, usize)) -> bool {
    rows * vectors >= WIDE_VECTORS
}

/// The most vectors of a tile.
pub(crate) fn most_vectors(isa: Isa) -> usize {
    let (_, rows, vectors) = simd::tile_of(isa);
    if is_wide((rows, vectors)) { WIDE_VECTORS } else { TILE_VECTORS }
}

/// Floats that [`Tile::sums`] needs.
pub(crate) fn sums_len(grid: &Grid, weights: &Compressed, rows: usize) -> usize {
    let rows = if weights.blocks().len() > 1 { rows.next_multiple_of(GROUP) } else { GROUP };
    rows * grid.tile_len()
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [rows, mut columns] = self.grid.tile;
        if self.grid.is_flat() {
            let left = self.n.div_ceil(S::LANES) - self.grid.start(self.band);
            columns = columns.min(left);
        }
        if is_wide(S::TILE) && rows * columns > TILE_VECTORS {
            return match (rows, columns) {
                (1, 9) => s.call(Vectors::<1, 9, 1>(self)),
                (1, 10) => s.call(Vectors::<1, 10, 1>(self)),
                (1, 11) => s.call(Vectors::<1, 11, 1>(self)),
                (1, 12) => s.call(Vectors::<1, 12, 1>(self)),
                (1, 13) => s.call(Vectors::<1, 13, 1>(self)),
                (1, 14) => s.call(Vectors::<1, 14, 1>(self)),
                (1, 15) => s.call(Vectors::<1, 15, 1>(self)),
                (1, 16) => s.call(Vectors::<1, 16, 1>(self)),
                (2, 5) => s.call(Vectors::<2, 5, 1>(self)),
                (2, 6) => s.call(Vectors::<2, 6, 1>(self)),
                (2, 7) => s.call(Vectors::<2, 7, 1>(self)),
                (2, 8) => s.call(Vectors::<2, 8, 1>(self)),
                (4, 3) => s.call(Vectors::<4, 3, 1>(self)),
                (4, 4) => s.call(Vectors::<4, 4, 1>(self)),
                _ => unreachable!("a wide tile has up to WIDE_VECTORS vectors in 1, 2 or 4 rows"),
            };
        }
        match (rows, columns) {
            (1, 1) => s.call(Vectors::<1, 1, 4>(self)),
            (1, 2) => s.call(Vectors::<1, 2, 4>(self)),
            (1, 3) => s.call(Vectors::<1, 3, 2>(self)),
            (1, 4) => s.call(Vectors::<1, 4, 2>(self)),
            (1, 5) => s.call(Vectors::<1, 5, 1>(self)),
            (1, 6) => s.call(Vectors::<1, 6, 1>(self)),
            (1, 7) => s.call(Vectors::<1, 7, 1>(self)),
            (1, 8) => s.call(Vectors::<1, 8, 1>(self)),
            (2, 1) => s.call(Vectors::<2, 1, 4>(self)),
            (2, 2) => s.call(Vectors::<2, 2, 2>(self)),
            (2, 3) => s.call(Vectors::<2, 3, 1>(self)),
            (2, 4) => s.call(Vectors::<2, 4, 1>(self)),
            (4, 1) => s.call(Vectors::<4, 1, 2>(self)),
            (4, 2) => s.call(Vectors::<4, 2, 1>(self)),
            _ => unreachable!("a tile has 1 to TILE_VECTORS vectors in 1, 2 or 4 rows"),
        }
    }
}

/// A tile of R rows of C vectors; the sums along a row of weights are U times R C independent ones.
struct Vectors<'a, const R: usize, const C: usize, const U: usize>(Tile<'a>);

impl<const R: usize, const C: usize, const U: usize> Kernel for Vectors<'_, R, C, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.0;
        let width = R * C * S::LANES;
        let pixels =
            (!t.keeps_sums).then(|| Pixels::of_tile::<R, C>(t.grid, t.n, [t.band, t.index]));
        let blocks = t.weights.blocks().len();
        assert!(t.sums.len() >= sums_len(t.grid, t.weights, t.rows.len()));
        assert!(!t.keeps_sums || t.rows.len() <= GROUP);
        assert!(width <= t.grid.tile_len() && R * C <= WIDE_VECTORS && t.grid.lanes == S::LANES);
        for (block, channels) in t.weights.blocks().iter().enumerate() {
            let x = t.x.wrapping_add(channels.start * t.channel_len);
            for row in t.rows.clone().step_by(GROUP) {
                let rows = row..t.rows.end.min(row + GROUP);
                let at = if blocks > 1 { (row - t.rows.start) * width } else { 0 };
                let sums = t.sums[at..][..GROUP * width].as_mut_ptr();
                let last = block + 1 == blocks;
                if let Some(pixels) = pixels.as_ref().filter(|_| last && t.output.far) {
                    // The lines to write are there when the sums are.
                    for &pixel in pixels.index[..width].iter().filter(|&&p| p != NONE) {
                        let at = pixel as usize * t.output.stride + t.output.channel + row;
                        s.prefetch(t.output.y.ptr().wrapping_add(at));
                    }
                }
                for (r, row) in rows.clone().enumerate() {
                    let bias = t.output.bias.map_or(0.0, |b| b[t.output.channel + row]);
                    // SAFETY: the slab has the block's channels from x on, the tile's positions
                    // and each tap's shift beyond; sums has GROUP rows of `width`.
                    unsafe {
                        let sums = sums.add(r * width);
                        let start = if block > 0 { Start::Sums(sums) } else { Start::Bias(bias) };
                        let weights = t.weights.row(block, row);
                        let mut acc = one_row::<S, R, C, U, false>(s, weights, x, t.line, start);
                        if last {
                            for acc in acc.as_flattened_mut() {
                                *acc = t.output.activate(s, *acc);
                            }
                        }
                        for (v, &acc) in acc.as_flattened().iter().enumerate() {
                            s.store(sums.add(v * S::LANES), acc);
                        }
                    }
                }
                if let Some(pixels) = pixels.as_ref().filter(|_| last) {
                    // SAFETY: as above; the pixels are this task's.
                    unsafe { store_group(s, t.output, pixels, R * C, rows, sums) };
                }
            }
        }
    }
}

/// What a row's sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    Bias(f32),
    /// Those of earlier blocks.
    Sums(*const f32),
}

/// A row of weights times the tile; `line` floats further its second row begins. Offsets count
/// vectors, or single ELEMENTS.
///
/// # Safety
/// From each offset on x has the tile's R rows of C vectors, and so have the sums that it starts with.
#[inline(always)]
pub(crate) unsafe fn one_row<
    S: Simd,
    const R: usize,
    const C: usize,
    const U: usize,
    const ELEMENTS: bool,
>(
    s: S,
    (offsets, values): (&[u16], &[f32]),
    x: *const f32,
    line: usize,
    start: Start,
) -> [[S::V; C]; R] {
    let unit = if ELEMENTS { 1 } else { S::LANES };
    let mut acc = [[[s.splat(0.0); C]; R]; U];
    // SAFETY: the caller's contract: sums have R C vectors, and so has x from each offset on.
    unsafe {
        match start {
            Start::Bias(bias) => acc[0] = [[s.splat(bias); C]; R],
            Start::Sums(sums) => {
                for (v, acc) in acc[0].as_flattened_mut().iter_mut().enumerate() {
                    *acc = s.load(sums.add(v * S::LANES));
                }
            }
        }
        let (mut i, len) = (0, offsets.len().min(values.len()));
        while U > 1 && i + U <= len {
            for (u, acc) in acc.iter_mut().enumerate() {
                let (offset, value) = (*offsets.get_unchecked(i + u), *values.get_unchecked(i + u));
                step(s, x.add(usize::from(offset) * unit), line, value, acc);
            }
            i += U;
        }
        while i < len {
            let (offset, value) = (*offsets.get_unchecked(i), *values.get_unchecked(i));
            step(s, x.add(usize::from(offset) * unit), line, value, &mut acc[0]);
            i += 1;
        }
    }
    let (sums, others) = acc.split_first_mut().expect("U is at least 1");
    for other in others {
        for (sum, &acc) in sums.as_flattened_mut().iter_mut().zip(other.as_flattened()) {
            *sum = s.add(*sum, acc);
        }
    }
    *sums
}

#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const C: usize>(
    s: S,
    x: *const f32,
    line: usize,
    weight: f32,
    acc: &mut [[S::V; C]; R],
) {
    let weight = s.splat(weight);
    for (r, acc) in acc.iter_mut().enumerate() {
        for (c, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            let x = unsafe { s.load(x.add(r * line + c * S::LANES)) };
            *acc = s.mul_add(x, weight, *acc);
        }
    }
}

/// The output pixels of a tile, vector by vector.
pub(crate) struct Pixels {
    index: [u32; WIDE_VECTORS * MAX_LANES],
    /// Of each vector whether all its pixels are there.
    whole: [bool; WIDE_VECTORS],
}

impl Pixels {
    /// Those of `vectors` of so many lanes; `pixel` says which the element with some index is.
    #[inline(always)]
    pub(crate) fn new(
        lanes: usize,
        vectors: usize,
        pixel: impl Fn(usize) -> Option<usize>,
    ) -> Pixels {
        let mut index = [NONE; WIDE_VECTORS * MAX_LANES];
        let mut whole = [true; WIDE_VECTORS];
        for (i, slot) in index.iter_mut().enumerate().take(vectors * lanes) {
            if let Some(pixel) = pixel(i) {
                *slot = u32::try_from(pixel).expect("fewer than 2^32 pixels");
            }
        }
        for (whole, vector) in whole.iter_mut().zip(index.chunks_exact(lanes)).take(vectors) {
            *whole = vector.iter().all(|&pixel| pixel != NONE);
        }
        Pixels { index, whole }
    }

    #[inline(always)]
    fn of_tile<const R: usize, const C: usize>(
        grid: &Grid,
        n: usize,
        [band, tile]: [usize; 2],
    ) -> Pixels {
        let lanes = grid.lanes;
        if grid.is_flat() {
            let first = grid.start(band) * lanes;
            return Pixels::new(lanes, R * C, |i| (first + i < n).then_some(first + i));
        }
        let first = grid.place(grid.start(band) + tile * C);
        Pixels::new(lanes, R * C, |i| {
            let (v, corner) = (i / lanes, &grid.corners[i % lanes]);
            let place = Place { row: first.row + v / C, column: first.column + v % C, ..first };
            grid.output(n, &place, corner)
        })
    }
}

/// Stores the sums of a group of rows as channels of pixels.
///
/// # Safety
/// `sums` has GROUP rows of the vectors, and the pixels' channels are this task's.
#[inline(always)]
pub(crate) unsafe fn store_group<S: Simd>(
    s: S,
    out: &Output<'_>,
    pixels: &Pixels,
    vectors: usize,
    rows: Range<usize>,
    sums: *const f32,
) {
    let width = vectors * S::LANES;
    let index = &pixels.index[..width];
    let mut r = 0;
    while r < rows.len() {
        let lanes = S::LANES.min(rows.len() - r);
        let channel = out.channel + rows.start + r;
        for (v, index) in index.chunks_exact(S::LANES).enumerate() {
            let mut square = [s.splat(0.0); MAX_LANES];
            for i in 0..S::LANES {
                // SAFETY: sums has GROUP rows, a multiple of LANES.
                square[i] = unsafe { s.load(sums.add((r + i) * width + v * S::LANES)) };
            }
            s.transpose(&mut square);
            // SAFETY: the caller's contract.
            unsafe {
                if pixels.whole[v] && lanes == S::LANES && out.residual.is_none() {
                    for i in 0..S::LANES {
                        let at = index[i] as usize * out.stride + channel;
                        s.store(out.y.ptr().add(at), square[i]);
                    }
                } else {
                    store_square(s, out, index, channel, lanes, &square);
                }
            }
        }
        r += lanes;
    }
    if let Some(act) = out.finish.slow {
        let channel = out.channel + rows.start;
        for &pixel in index.iter().filter(|&&p| p != NONE) {
            let at = pixel as usize * out.stride + channel;
            let residual = out.residual.filter(|_| out.finish.after);
            s.call(SecondPass {
                act,
                c: out.y.ptr().wrapping_add(at),
                residual: residual.map_or(std::ptr::null(), |r| r[at..].as_ptr()),
                ldc: out.stride,
                rows: 1,
                columns: rows.len(),
            });
        }
    }
}

/// Stores `lanes` channels from `channel` on of some pixels, a vector for each.
#[inline(always)]
unsafe fn store_square<S: Simd>(
    s: S,
    out: &Output<'_>,
    pixels: &[u32],
    channel: usize,
    lanes: usize,
    square: &[S::V; MAX_LANES],
) {
    let finish = out.finish;
    let (residual, y) = (out.residual.map_or(std::ptr::null(), <[f32]>::as_ptr), out.y.ptr());
    let adds = finish.before || (finish.after && finish.slow.is_none());
    for (i, &pixel) in pixels.iter().enumerate().take(S::LANES) {
        if pixel == NONE {
            continue;
        }
        let at = pixel as usize * out.stride + channel;
        let mut sum = square[i];
        // SAFETY: residual and y have `lanes` channels from `channel` on of each pixel.
        unsafe {
            if adds {
                let p = residual.add(at);
                let r = if lanes == S::LANES { s.load(p) } else { s.load_partial(p, lanes) };
                sum = s.add(sum, r);
                if finish.before {
                    sum = finish.activate(s, sum);
                }
            }
            let y = y.add(at);
            if lanes == S::LANES {
                s.store(y, sum);
            } else {
                s.store_partial(y, lanes, sum);
            }
        }
    }
}
