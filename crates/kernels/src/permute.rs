//! Transposition of n-dimensional arrays of plain elements.

use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// Side of the square blocks a transposition goes by: within it, both sides stay in cached lines.
const BLOCK: usize = 32;
/// Side of the squares moved through registers.
const SQUARE: usize = 8;
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
        1 => run::<u8>(&plan, x, y, pool),
        2 => run::<u16>(&plan, x, y, pool),
        4 => run::<u32>(&plan, x, y, pool),
        8 => run::<u64>(&plan, x, y, pool),
        _ => panic!("elements have 1, 2, 4 or 8 bytes"),
    }
}

/// [`permute`] of f32.
pub fn permute_f32(x: &[f32], shape: &[usize], perm: &[usize], y: &mut [f32], pool: &Pool) {
    permute(bytemuck::cast_slice(x), 4, shape, perm, bytemuck::cast_slice_mut(y), pool);
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

fn run<T: Copy + Default + Send + Sync>(plan: &Plan, x: &[u8], y: &mut [u8], pool: &Pool) {
    let isa = isa::best();
    // Vectors with short elements gain nothing; the scalar form is the same code.
    let isa = if isa == Isa::Sse { Isa::Scalar } else { isa };
    let (x, y) = (x.as_ptr().cast::<T>(), Shared(y.as_mut_ptr().cast::<T>()));
    let (x, y) = (&Shared(x.cast_mut()), &y);
    let matrices: usize = plan.outer[..plan.outer_rank].iter().map(|d| d.len).product();
    // Few rows are streams: longer strips.
    let strip = if plan.rows.len <= 4 { 16 * BLOCK } else { BLOCK };
    let blocks = plan.columns.len.div_ceil(strip);
    let work = strip.min(plan.columns.len) * plan.rows.len * plan.run;
    pool.run_ranges(matrices * blocks, TASK_LEN / work.max(1), &|tasks| {
        for task in tasks {
            let (from, to) = plan.matrix(task / blocks);
            let first = task % blocks * strip;
            let columns = strip.min(plan.columns.len - first);
            let matrix = Matrix {
                x: x.0.wrapping_add(from + first * plan.columns.from),
                y: y.0.wrapping_add(to + first * plan.columns.to),
                columns: Dim { len: columns, ..plan.columns },
                rows: plan.rows,
                run: plan.run,
            };
            simd::dispatch(isa, matrix);
        }
    });
}

/// A strip of columns to transpose.
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
    fn run<S: Simd>(self, _: S) {
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
        if squares && columns.to == rows.len {
            // A picture's planes to pixels, say: few rows, the output without gaps.
            // SAFETY: the plan's offsets stay inside x and y.
            unsafe {
                match rows.len {
                    2 => return interleave::<T, 2>(x, rows.from, y, columns.len),
                    3 => return interleave::<T, 3>(x, rows.from, y, columns.len),
                    4 => return interleave::<T, 4>(x, rows.from, y, columns.len),
                    _ => {}
                }
            }
        }
        let mut r = 0;
        while r < rows.len {
            let height = SQUARE.min(rows.len - r);
            let mut c = 0;
            while c < columns.len {
                let width = SQUARE.min(columns.len - c);
                // SAFETY: the plan's offsets stay inside x and y; accesses are unaligned ones.
                unsafe {
                    let from = x.add(c * columns.from + r * rows.from);
                    let to = y.add(c * columns.to + r * rows.to);
                    if squares && height == SQUARE && width == SQUARE {
                        square(from, rows.from, to, columns.to);
                    } else {
                        for j in 0..width {
                            for i in 0..height {
                                let v = from.add(j * columns.from + i * rows.from).read_unaligned();
                                to.add(j * columns.to + i * rows.to).write_unaligned(v);
                            }
                        }
                    }
                }
                c += width;
            }
            r += height;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn every_element_moves_to_its_place(
            dims in prop::collection::vec((1usize..14, any::<u16>()), 0..5),
            long in 1usize..70,
            log_size in 0u32..4,
        ) {
            let mut shape: Vec<usize> = dims.iter().map(|d| d.0).collect();
            if let Some(last) = shape.last_mut() {
                *last = long;
            }
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            perm.sort_by_key(|&d| dims[d].1);
            let size = 1 << log_size;
            let count: usize = shape.iter().product();
            let x: Vec<u8> = (0..count * size).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut y = vec![0; x.len()];
            permute(&x, size, &shape, &perm, &mut y, &Pool::new(2));
            let mut steps = vec![size; shape.len()];
            for d in (1..shape.len()).rev() {
                steps[d - 1] = steps[d] * shape[d];
            }
            let mut index = vec![0; shape.len()];
            for element in y.chunks_exact(size) {
                let from: usize = index.iter().zip(&perm).map(|(i, &d)| i * steps[d]).sum();
                prop_assert_eq!(element, &x[from..from + size]);
                for d in (0..shape.len()).rev() {
                    index[d] += 1;
                    if index[d] < shape[perm[d]] {
                        break;
                    }
                    index[d] = 0;
                }
            }
        }
    }
}
