//! Transposition of n-dimensional arrays of plain elements.

use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};

/// Side of the square blocks a transposition goes by: within it, both sides stay in cached lines.
const BLOCK: usize = 32;
/// Side of the squares of elements that are not 32 bits wide.
const SQUARE: usize = 8;
/// Up to so many planes are interleaved to pixels, and pixels taken apart, by fixed shuffles.
const FEW: usize = 4;
/// Elements below which a part is not worth handing to another thread.
const TASK_LEN: usize = 16 * 1024;
/// The most dimensions left after merging.
const MAX_RANK: usize = 16;

/// y = x with dimension i of y being dimension perm[i] of x; elements of 1, 2, 4 or 8 bytes.
pub fn permute(
    x: &[u8],
    elem_size: usize,
    shape: &[usize],
    perm: &[usize],
    y: &mut [u8],
    pool: &Pool,
) {
    permute_with_isa(isa::best(), x, elem_size, shape, perm, y, pool);
}

/// [`permute`] for a given instruction set, which must be available.
pub fn permute_with_isa(
    isa: Isa,
    x: &[u8],
    elem_size: usize,
    shape: &[usize],
    perm: &[usize],
    y: &mut [u8],
    pool: &Pool,
) {
    let rank = shape.len();
    assert!(
        perm.len() == rank && (0..rank).all(|d| perm.contains(&d)),
        "perm is a permutation of the dimensions"
    );
    let count: usize = shape.iter().product();
    assert!(x.len() == count * elem_size, "x has the shape's elements");
    assert!(y.len() == x.len(), "input and output have one length");
    if count == 0 {
        return;
    }
    let plan = Plan::new(shape, perm);
    match elem_size {
        1 => run::<u8>(&plan, isa, x, y, pool),
        2 => run::<u16>(&plan, isa, x, y, pool),
        4 => run::<u32>(&plan, isa, x, y, pool),
        8 => run::<u64>(&plan, isa, x, y, pool),
        _ => panic!("elements have 1, 2, 4 or 8 bytes"),
    }
}

/// [`permute`] of f32.
pub fn permute_f32(x: &[f32], shape: &[usize], perm: &[usize], y: &mut [f32], pool: &Pool) {
    permute(bytemuck::cast_slice(x), 4, shape, perm, bytemuck::cast_slice_mut(y), pool);
}

/// y = the transpose of a `rows` x `columns` matrix, by one thread inside a kernel.
#[inline(always)]
pub(crate) fn transpose<S: Simd>(s: S, x: &[f32], rows: usize, columns: usize, y: &mut [f32]) {
    assert!(x.len() == rows * columns && y.len() == x.len());
    Matrix {
        x: x.as_ptr(),
        y: y.as_mut_ptr(),
        columns: Dim { len: columns, from: 1, to: rows },
        rows: Dim { len: rows, from: columns, to: 1 },
        run: 1,
    }
    .run(s);
}

/// A dimension of the output: its length, and its step in the input and in the output.
#[derive(Clone, Copy, Debug, Default)]
struct Dim {
    len: usize,
    from: usize,
    to: usize,
}

/// A permutation as outer dimensions around a matrix of runs.
#[derive(Debug)]
struct Plan {
    outer: [Dim; MAX_RANK],
    outer_rank: usize,
    /// Contiguous in the input (its last dimension), unless `run` is more than 1.
    columns: Dim,
    /// Contiguous in the output (its last dimension).
    rows: Dim,
    /// Elements contiguous in both.
    run: usize,
}

impl Plan {
    fn new(shape: &[usize], perm: &[usize]) -> Plan {
        let mut from = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            from[d - 1] = from[d] * shape[d];
        }
        // Neighbours in the output that are neighbours in the input become one dimension.
        let mut dims: Vec<Dim> = Vec::new();
        for &d in perm.iter().filter(|&&d| shape[d] != 1) {
            match dims.last_mut() {
                Some(last) if last.from == from[d] * shape[d] => {
                    *last = Dim { len: last.len * shape[d], from: from[d], to: 0 };
                }
                _ => dims.push(Dim { len: shape[d], from: from[d], to: 0 }),
            }
        }
        let mut to = 1;
        for dim in dims.iter_mut().rev() {
            dim.to = to;
            to *= dim.len;
        }
        let one = Dim { len: 1, from: 0, to: 0 };
        let mut run = 1;
        if dims.last().is_some_and(|d| d.from == 1) {
            run = dims.pop().map_or(1, |d| d.len);
        }
        let rows = dims.pop().unwrap_or(one);
        // The dimension with the smallest step in the input goes with the rows.
        let nearest = (0..dims.len()).min_by_key(|&d| dims[d].from);
        let columns = nearest.map_or(one, |d| dims.remove(d));
        assert!(dims.len() <= MAX_RANK, "at most {MAX_RANK} dimensions");
        let mut outer = [Dim::default(); MAX_RANK];
        outer[..dims.len()].copy_from_slice(&dims);
        Plan { outer, outer_rank: dims.len(), columns, rows, run }
    }

    /// The instruction set to go by, where there is `best`.
    fn isa<T>(&self, best: Isa) -> Isa {
        let interleaves = self.rows.len <= FEW && self.columns.to == self.rows.len;
        // Compilers find shuffles of few words in 256 bits: a third of the time that 512 take.
        if interleaves && size_of::<T>() == 4 && best > Isa::Avx2 { Isa::Avx2 } else { best }
    }

    /// Offsets of the i-th matrix in the input and in the output.
    fn matrix(&self, mut i: usize) -> (usize, usize) {
        let (mut from, mut to) = (0, 0);
        for dim in self.outer[..self.outer_rank].iter().rev() {
            from += i % dim.len * dim.from;
            to += i % dim.len * dim.to;
            i /= dim.len;
        }
        (from, to)
    }
}

struct Shared<T>(*mut T);
// SAFETY: tasks write disjoint elements through it.
unsafe impl<T> Sync for Shared<T> {}

fn run<T: Copy + Default + Send + Sync>(
    plan: &Plan,
    isa: Isa,
    x: &[u8],
    y: &mut [u8],
    pool: &Pool,
) {
    let isa = plan.isa::<T>(isa);
    let (x, y) = (x.as_ptr().cast::<T>(), Shared(y.as_mut_ptr().cast::<T>()));
    let (x, y) = (&Shared(x.cast_mut()), &y);
    let matrices: usize = plan.outer[..plan.outer_rank].iter().map(|d| d.len).product();
    // Few rows are streams: longer strips.
    let strip = if plan.rows.len <= FEW { 16 * BLOCK } else { BLOCK };
    let strip = strip.min(plan.columns.len);
    // Many rows of few columns are work for several threads, too.
    let height = (TASK_LEN / (strip * plan.run)).max(1).next_multiple_of(MAX_LANES);
    let height = height.min(plan.rows.len);
    let (strips, heights) = (plan.columns.len.div_ceil(strip), plan.rows.len.div_ceil(height));
    let work = strip * height * plan.run;
    pool.run_ranges(matrices * strips * heights, TASK_LEN / work, &|tasks| {
        for task in tasks {
            let (from, to) = plan.matrix(task / (strips * heights));
            let (column, row) = (task / heights % strips * strip, task % heights * height);
            let (columns, rows) = (plan.columns, plan.rows);
            let matrix = Matrix {
                x: x.0.wrapping_add(from + column * columns.from + row * rows.from),
                y: y.0.wrapping_add(to + column * columns.to + row * rows.to),
                columns: Dim { len: strip.min(columns.len - column), ..columns },
                rows: Dim { len: height.min(rows.len - row), ..rows },
                run: plan.run,
            };
            simd::dispatch(isa, matrix);
        }
    });
}

/// A part of a matrix to transpose.
#[derive(Clone, Copy)]
struct Matrix<T> {
    x: *const T,
    y: *mut T,
    columns: Dim,
    rows: Dim,
    run: usize,
}

impl<T: Copy + Default> Kernel for Matrix<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Matrix { x, y, columns, rows, run } = self;
        if run > 1 {
            for c in 0..columns.len {
                for r in 0..rows.len {
                    // SAFETY: the plan's offsets stay inside x and y, which have the same bytes.
                    unsafe {
                        let from = x.add(c * columns.from + r * rows.from).cast::<u8>();
                        let to = y.add(c * columns.to + r * rows.to).cast::<u8>();
                        std::ptr::copy_nonoverlapping(from, to, run * size_of::<T>());
                    }
                }
            }
            return;
        }
        let squares = columns.from == 1 && rows.to == 1;
        // SAFETY: the plan's offsets stay inside x and y.
        unsafe {
            if squares && columns.to == rows.len {
                // A picture's planes to pixels, say: few rows, the output without gaps.
                match rows.len {
                    2 => return interleave::<T, 2>(x, rows.from, y, columns.len),
                    3 => return interleave::<T, 3>(x, rows.from, y, columns.len),
                    4 => return interleave::<T, 4>(x, rows.from, y, columns.len),
                    _ => {}
                }
            }
            if squares && rows.from == columns.len {
                // And back.
                match columns.len {
                    2 => return take_apart::<T, 2>(x, y, columns.to, rows.len),
                    3 => return take_apart::<T, 3>(x, y, columns.to, rows.len),
                    4 => return take_apart::<T, 4>(x, y, columns.to, rows.len),
                    _ => {}
                }
            }
        }
        // Masks make parts of vectors cheap.
        let masks = S::LANES == MAX_LANES;
        let fits = masks || rows.len.min(columns.len) >= SQUARE;
        let words = squares && size_of::<T>() == 4 && fits;
        let side = if words { S::LANES } else { SQUARE };
        for (from, to, height, width) in self.places(side) {
            let full = height == side && width == side;
            // SAFETY: these are places inside the matrix, with what is left of it.
            unsafe {
                if words && (full || masks) {
                    let (from, to) = ((from.cast(), rows.from), (to.cast(), columns.to));
                    if full {
                        transpose_words(s, from, to, S::LANES, S::LANES);
                    } else {
                        transpose_words(s, from, to, height, width);
                    }
                } else if squares && full {
                    square(from, rows.from, to, columns.to);
                } else if squares {
                    // Steps that are known make the better loop.
                    one_by_one(from, (1, rows.from), to, (columns.to, 1), height, width);
                } else {
                    let (from_steps, to_steps) = ((columns.from, rows.from), (columns.to, rows.to));
                    one_by_one(from, from_steps, to, to_steps, height, width);
                }
            }
        }
    }
}

impl<T: Copy + Default> Matrix<T> {
    /// Squares of `side` rows and columns, those at the edges cut: where each begins in the input and in
    /// the output, its height and its width.
    #[inline(always)]
    fn places(self, side: usize) -> impl Iterator<Item = (*const T, *mut T, usize, usize)> {
        let Matrix { x, y, columns, rows, .. } = self;
        let starts = move |len: usize| (0..len.div_ceil(side)).map(move |i| i * side);
        starts(rows.len).flat_map(move |r| {
            starts(columns.len).map(move |c| {
                let from = x.wrapping_add(c * columns.from + r * rows.from);
                let to = y.wrapping_add(c * columns.to + r * rows.to);
                (from, to, side.min(rows.len - r), side.min(columns.len - c))
            })
        })
    }
}

/// Moves `width` columns of `height` elements.
///
/// # Safety
/// The steps from column to column and from row to row stay inside what is readable and writable.
#[inline(always)]
unsafe fn one_by_one<T: Copy>(
    from: *const T,
    (columns_from, rows_from): (usize, usize),
    to: *mut T,
    (columns_to, rows_to): (usize, usize),
    height: usize,
    width: usize,
) {
    for j in 0..width {
        for i in 0..height {
            // SAFETY: the caller's contract; accesses are unaligned ones.
            unsafe {
                let v = from.add(j * columns_from + i * rows_from).read_unaligned();
                to.add(j * columns_to + i * rows_to).write_unaligned(v);
            }
        }
    }
}

/// Writes one element of each of R rows in turn; fixed sizes let the compiler use shuffles.
///
/// # Safety
/// `len` elements at each of R rows are readable at `from`, R * `len` are writable at `to`.
#[inline(always)]
unsafe fn interleave<T: Copy + Default, const R: usize>(
    from: *const T,
    from_stride: usize,
    to: *mut T,
    len: usize,
) {
    const STEP: usize = 16;
    let mut c = 0;
    while c + STEP <= len {
        let mut rows = [[T::default(); STEP]; R];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *row = unsafe { from.add(r * from_stride + c).cast::<[T; STEP]>().read_unaligned() };
        }
        let mut out = [[T::default(); R]; STEP];
        for (i, out) in out.iter_mut().enumerate() {
            *out = std::array::from_fn(|r| rows[r][i]);
        }
        // SAFETY: the caller's contract.
        unsafe { to.add(c * R).cast::<[[T; R]; STEP]>().write_unaligned(out) };
        c += STEP;
    }
    for c in c..len {
        for r in 0..R {
            // SAFETY: the caller's contract.
            unsafe {
                to.add(c * R + r).write_unaligned(from.add(r * from_stride + c).read_unaligned())
            };
        }
    }
}

/// The reverse of [`interleave`]: element i of each of C columns goes to its place in that column.
///
/// # Safety
/// C * `len` elements at `from` are readable, `len` are writable at each of C columns at `to`.
#[inline(always)]
unsafe fn take_apart<T: Copy + Default, const C: usize>(
    from: *const T,
    to: *mut T,
    to_stride: usize,
    len: usize,
) {
    const STEP: usize = 16;
    let mut r = 0;
    while r + STEP <= len {
        // SAFETY: the caller's contract.
        let pixels = unsafe { from.add(r * C).cast::<[[T; C]; STEP]>().read_unaligned() };
        for c in 0..C {
            let column: [T; STEP] = std::array::from_fn(|i| pixels[i][c]);
            // SAFETY: the caller's contract.
            unsafe { to.add(c * to_stride + r).cast::<[T; STEP]>().write_unaligned(column) };
        }
        r += STEP;
    }
    for r in r..len {
        for c in 0..C {
            // SAFETY: the caller's contract.
            unsafe {
                to.add(c * to_stride + r).write_unaligned(from.add(r * C + c).read_unaligned())
            };
        }
    }
}

/// Transposes a square of 32-bit elements, as many each way as a vector has lanes, or its first `height`
/// rows and `width` columns. Lanes are moved, never computed with, so that every bit pattern passes.
///
/// # Safety
/// `width` elements at each of `height` rows are readable at `from`, and as many with the two exchanged
/// are writable at `to`.
#[inline(always)]
unsafe fn transpose_words<S: Simd>(
    s: S,
    (from, from_stride): (*const f32, usize),
    (to, to_stride): (*mut f32, usize),
    height: usize,
    width: usize,
) {
    let mut square = [s.splat(0.0); MAX_LANES];
    // SAFETY: the caller's contract.
    unsafe {
        for (i, row) in square.iter_mut().enumerate().take(height) {
            let at = from.add(i * from_stride);
            *row = if width == S::LANES { s.load(at) } else { s.load_partial(at, width) };
        }
        s.transpose(&mut square);
        for (j, &column) in square.iter().enumerate().take(width) {
            let at = to.add(j * to_stride);
            if height == S::LANES {
                s.store(at, column);
            } else {
                s.store_partial(at, height, column);
            }
        }
    }
}

/// Transposes SQUARE x SQUARE elements; fixed sizes let the compiler use shuffles.
///
/// # Safety
/// SQUARE elements at each of SQUARE rows are readable at `from` and writable at `to`.
#[inline(always)]
unsafe fn square<T: Copy + Default>(
    from: *const T,
    from_stride: usize,
    to: *mut T,
    to_stride: usize,
) {
    let mut rows = [[T::default(); SQUARE]; SQUARE];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *row = unsafe { from.add(i * from_stride).cast::<[T; SQUARE]>().read_unaligned() };
    }
    for j in 0..SQUARE {
        let mut column = [T::default(); SQUARE];
        for i in 0..SQUARE {
            column[i] = rows[i][j];
        }
        // SAFETY: the caller's contract.
        unsafe { to.add(j * to_stride).cast::<[T; SQUARE]>().write_unaligned(column) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a permutation of these bytes is one.
    fn check(isa: Isa, size: usize, shape: &[usize], perm: &[usize]) {
        let count: usize = shape.iter().product();
        let x: Vec<u8> = (0..count * size).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut y = vec![0; x.len()];
        permute_with_isa(isa, &x, size, shape, perm, &mut y, &Pool::new(2));
        let mut steps = vec![size; shape.len()];
        for d in (1..shape.len()).rev() {
            steps[d - 1] = steps[d] * shape[d];
        }
        let mut index = vec![0; shape.len()];
        for element in y.chunks_exact(size) {
            let from: usize = index.iter().zip(perm).map(|(i, &d)| i * steps[d]).sum();
            assert_eq!(element, &x[from..from + size], "{shape:?} {perm:?} {isa}");
            for d in (0..shape.len()).rev() {
                index[d] += 1;
                if index[d] < shape[perm[d]] {
                    break;
                }
                index[d] = 0;
            }
        }
    }

    #[test]
    fn long_matrices_are_cut() {
        for isa in Isa::available() {
            for shape in [[6000, 3], [3, 6000], [3000, 41], [41, 3000], [5600, 5]] {
                check(isa, 4, &shape, &[1, 0]);
            }
            check(isa, 4, &[40, 3, 700], &[1, 0, 2]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn every_element_moves_to_its_place(
            dims in prop::collection::vec((1usize..14, any::<u16>()), 0..5),
            long in 1usize..70,
            longest in any::<prop::sample::Index>(),
            isa in any::<prop::sample::Index>(),
            log_size in 0u32..4,
        ) {
            let mut shape: Vec<usize> = dims.iter().map(|d| d.0).collect();
            if !shape.is_empty() {
                shape[longest.index(dims.len())] = long;
            }
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            perm.sort_by_key(|&d| dims[d].1);
            let isa = *isa.get(&Isa::available().collect::<Vec<_>>());
            check(isa, 1 << log_size, &shape, &perm);
        }
    }
}
