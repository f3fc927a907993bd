//! Copies between strided and contiguous tensors in the longest contiguous runs: the work of
//! Slice, Expand, Tile, Split and every view that has to be a copy.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use smallvec::SmallVec;
use sparoa_kernels::pool::Pool;

/// A thread gets at least this many bytes.
pub(super) const MIN_PART: usize = 64 << 10;

/// y = x, in parallel when large.
pub(super) fn copy(x: &[u8], y: &mut [u8], pool: &Pool) {
    let part = part_bytes(y.len(), 64, pool);
    pool.run_parts(y, part, &|i, y| y.copy_from_slice(&x[i * part..][..y.len()]));
}

/// Bytes of a thread's part of `bytes`, a multiple of `unit`.
pub(super) fn part_bytes(bytes: usize, unit: usize, pool: &Pool) -> usize {
    let unit = unit.max(1);
    match pool.threads() {
        1 => bytes.max(unit),
        n => bytes.div_ceil(n * 2).max(MIN_PART).next_multiple_of(unit),
    }
}

/// `y[i, j, ...] = x[offset + i * stride_i + j * stride_j + ...]` with y contiguous.
#[derive(Debug, Clone)]
pub(super) struct Strided {
    /// Dimensions of y, those of size 1 left out, mergeable neighbours merged.
    dims: SmallVec<[usize; 6]>,
    /// Elements of x from one index to the next.
    strides: SmallVec<[isize; 6]>,
    offset: isize,
    size: usize,
}

impl Strided {
    /// A copy with these strides; `size` is the bytes of an element. Every element that y's shape
    /// reaches must lie inside x.
    pub fn new(shape: &[usize], strides: &[isize], offset: isize, size: usize) -> Strided {
        let mut s = Strided { dims: SmallVec::new(), strides: SmallVec::new(), offset, size };
        for (&dim, &stride) in shape.iter().zip(strides) {
            if dim == 1 {
                continue;
            }
            match (s.dims.last_mut(), s.strides.last_mut()) {
                (Some(outer), Some(outer_stride))
                    if stride.checked_mul(dim as isize) == Some(*outer_stride) =>
                {
                    *outer *= dim;
                    *outer_stride = stride;
                }
                _ => {
                    s.dims.push(dim);
                    s.strides.push(stride);
                }
            }
        }
        s
    }

    /// Copies. x and y are as [`Strided::new`] was told.
    pub fn run(&self, x: &[u8], y: &mut [u8], pool: &Pool) {
        match self.size {
            1 => self.run_as::<u8>(x, y, pool),
            2 => self.run_as::<u16>(cast_slice(x), cast_slice_mut(y), pool),
            4 => self.run_as::<u32>(cast_slice(x), cast_slice_mut(y), pool),
            _ => self.run_as::<u64>(cast_slice(x), cast_slice_mut(y), pool),
        }
    }

    fn run_as<T: Pod + Send + Sync>(&self, x: &[T], y: &mut [T], pool: &Pool) {
        if y.is_empty() {
            return;
        }
        let Some((&row, outer_dims)) = self.dims.split_last() else {
            y[0] = x[self.offset as usize];
            return;
        };
        let (&step, outer_strides) = self.strides.split_last().expect("as many as dims");
        // Long rows are cut, so that a single row is copied by several threads.
        let bytes = size_of_val(y);
        let part = part_bytes(bytes, size_of::<T>(), pool) / size_of::<T>();
        pool.run_parts(y, part, &|i, y| {
            let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer_dims.len());
            let mut at = i * part;
            let mut column = at % row;
            at /= row;
            let mut from = self.offset;
            for d in (0..outer_dims.len()).rev() {
                index[d] = at % outer_dims[d];
                at /= outer_dims[d];
                from += index[d] as isize * outer_strides[d];
            }
            let mut y = y;
            while !y.is_empty() {
                // As many whole rows as the innermost of the outer dimensions has left, or a part of one.
                let (len, rows) = match (outer_dims.last(), index.last()) {
                    (Some(dim), Some(at)) if column == 0 && y.len() >= row => {
                        (row, (dim - at).min(y.len() / row))
                    }
                    _ => ((row - column).min(y.len()), 1),
                };
                let (target, rest) = y.split_at_mut(len * rows);
                let next = outer_strides.last().copied().unwrap_or(0);
                copy_rows(x, from + column as isize * step, (next, step), target, len);
                y = rest;
                column = 0;
                let mut moved = rows;
                for d in (0..outer_dims.len()).rev() {
                    index[d] += moved;
                    from += moved as isize * outer_strides[d];
                    if index[d] < outer_dims[d] {
                        break;
                    }
                    from -= outer_dims[d] as isize * outer_strides[d];
                    index[d] = 0;
                    moved = 1;
                }
            }
        });
    }
}

/// Rows of `len` elements, one after the other in y. In x they begin at `from` and every `next` elements
/// after it, their elements are `step` apart.
fn copy_rows<T: Pod>(x: &[T], from: isize, (next, step): (isize, isize), y: &mut [T], len: usize) {
    if step == 1 {
        let size = size_of::<T>();
        let (from, next) = (from * size as isize, next * size as isize);
        copy_runs(cast_slice(x), (from, next), cast_slice_mut(y), len * size, len * size);
        return;
    }
    let mut from = from;
    for y in y.chunks_exact_mut(len) {
        // Every index was shown to be inside x when the copy was made, hence not negative.
        let at = from as usize;
        if step == 0 {
            y.fill(x[at]);
        } else {
            for (i, y) in y.iter_mut().enumerate() {
                *y = x[at.wrapping_add_signed(step * i as isize)];
            }
        }
        from += next;
    }
}

/// Copies runs of `bytes`: in x they begin at `from` and every `next` bytes after it, in y at the beginning
/// and every `y_next` bytes after it, as long as there is a y.
pub(super) fn copy_runs(
    x: &[u8],
    (from, next): (isize, isize),
    y: &mut [u8],
    y_next: usize,
    bytes: usize,
) {
    // A call of memcpy takes longer than a short run: lengths that the compiler knows need none.
    match bytes {
        1 => copy_runs_of(x, from, next, y, y_next, 1),
        2 => copy_runs_of(x, from, next, y, y_next, 2),
        4 => copy_runs_of(x, from, next, y, y_next, 4),
        8 => copy_runs_of(x, from, next, y, y_next, 8),
        12 => copy_runs_of(x, from, next, y, y_next, 12),
        16 => copy_runs_of(x, from, next, y, y_next, 16),
        24 => copy_runs_of(x, from, next, y, y_next, 24),
        32 => copy_runs_of(x, from, next, y, y_next, 32),
        _ => copy_runs_of(x, from, next, y, y_next, bytes),
    }
}

#[inline(always)]
fn copy_runs_of(x: &[u8], from: isize, next: isize, y: &mut [u8], y_next: usize, bytes: usize) {
    let mut from = from;
    for y in y.chunks_mut(y_next) {
        y[..bytes].copy_from_slice(&x[from as usize..][..bytes]);
        from += next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_copies() {
        let x: Vec<u16> = (0..60).collect();
        let pool = Pool::single();
        // [3, 4, 5] reversed on axis 1, every second of axis 2.
        let s = Strided::new(&[3, 4, 3], &[20, -5, 2], 15, 2);
        let mut y = vec![0u16; 36];
        s.run(cast_slice(&x), cast_slice_mut(&mut y), &pool);
        assert_eq!(y[..6], [15, 17, 19, 10, 12, 14]);
        assert_eq!(y[35], 44);
        // Contiguous inner axes become one run.
        let s = Strided::new(&[2, 4, 5], &[40, 5, 1], 0, 2);
        assert_eq!((s.dims.as_slice(), s.strides.as_slice()), (&[2, 20][..], &[40, 1][..]));
        // Broadcast.
        let s = Strided::new(&[2, 3], &[0, 0], 7, 2);
        assert_eq!(s.dims.as_slice(), [6]);
        let mut y = vec![0u16; 6];
        s.run(cast_slice(&x), cast_slice_mut(&mut y), &pool);
        assert_eq!(y, [7; 6]);
    }

    #[test]
    fn short_rows_are_cut_anywhere() {
        let (outer, rows, wide) = (3, 7001, 7);
        let x: Vec<u32> = (0..outer * rows * wide).map(|i| i as u32).collect();
        for len in 1..=wide {
            // Backwards along the rows.
            let strides = [(rows * wide) as isize, -(wide as isize), 1];
            let s = Strided::new(&[outer, rows, len], &strides, ((rows - 1) * wide) as isize, 4);
            let mut y = vec![0u32; outer * rows * len];
            s.run(cast_slice(&x), cast_slice_mut(&mut y), &Pool::new(3));
            for (i, v) in y.iter().enumerate() {
                let (o, r, column) = (i / len / rows, i / len % rows, i % len);
                assert_eq!(*v as usize, (o * rows + rows - 1 - r) * wide + column);
            }
        }
    }

    #[test]
    fn parts_start_inside_rows() {
        let (rows, row) = (3, 70_001);
        let x: Vec<u32> = (0..rows * row).map(|i| i as u32).collect();
        let s = Strided::new(&[rows, row - 1], &[row as isize, 1], 1, 4);
        let mut y = vec![0u32; rows * (row - 1)];
        s.run(cast_slice(&x), cast_slice_mut(&mut y), &Pool::new(3));
        for (i, v) in y.iter().enumerate() {
            assert_eq!(*v as usize, i / (row - 1) * row + 1 + i % (row - 1));
        }
    }
}
