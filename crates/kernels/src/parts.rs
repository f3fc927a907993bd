//! Parallel work on disjoint parts of one slice, for callers that may not use `unsafe`.

use crate::pool::Pool;

/// A pointer that the pool's threads may share; each call dereferences a range of its own.
struct Base<T>(*mut T);

// SAFETY: threads only form references to disjoint ranges (see the two functions below), and `T:
// Send` lets another thread hold them.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    /// `len` elements from `start`.
    ///
    /// # Safety
    /// The range lies in the slice that `Base` was made of, which outlives the result, and nobody
    /// else holds a reference into that range.
    #[allow(clippy::mut_from_ref)]
    unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Called with a part's index, the part, and scratch.
pub type PartTask<'a, T, S> = dyn Fn(usize, &mut [T], &mut [S]) + Sync + 'a;

impl Pool {
    /// Calls `f(i, part)` for the consecutive parts of `data`, each `part` elements long, the last
    /// one possibly shorter, on the pool's threads. Does not allocate.
    ///
    /// # Panics
    /// When `part` is 0 and `data` is not empty, or when `f` panics.
    pub fn run_parts<T: Send>(
        &self,
        data: &mut [T],
        part: usize,
        f: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        self.run_parts_with_scratch(data, part, &mut [(); 0], 0, &|i, part, _| f(i, part));
    }

    /// [`Pool::run_parts`] with `per_worker` elements of `scratch` for each call, used by nobody
    /// else during it; `scratch` holds at least `threads() * per_worker` elements.
    ///
    /// # Panics
    /// When `scratch` is too short, `part` is 0 and `data` is not empty, or `f` panics.
    pub fn run_parts_with_scratch<T: Send, S: Send>(
        &self,
        data: &mut [T],
        part: usize,
        scratch: &mut [S],
        per_worker: usize,
        f: &PartTask<'_, T, S>,
    ) {
        if data.is_empty() {
            return;
        }
        assert!(part > 0, "parts are not empty");
        let needed = per_worker.checked_mul(self.threads());
        assert!(needed.is_some_and(|n| n <= scratch.len()), "scratch serves every thread");
        let len = data.len();
        let base = Base(data.as_mut_ptr());
        let scratch = Base(scratch.as_mut_ptr());
        self.run_with_worker(len.div_ceil(part), &|i, worker| {
            let start = i * part;
            // SAFETY: `run_with_worker` calls each `i` once, so parts are disjoint; they lie in
            // `data`, which is borrowed until all calls are over.
            let part = unsafe { base.range(start, part.min(len - start)) };
            // SAFETY: no two calls run at the same time under one worker number, and `worker <
            // threads()`, so the range is in bounds (checked above) and nobody else's.
            let own = unsafe { scratch.range(worker * per_worker, per_worker) };
            f(i, part, own);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_slice_once() {
        let pool = Pool::new(3);
        for len in [0, 1, 9, 10, 11, 1000] {
            let mut data = vec![0u32; len];
            let mut scratch = vec![0u8; 3 * 4];
            pool.run_parts_with_scratch(&mut data, 10, &mut scratch, 4, &|i, part, own| {
                own.fill(i as u8);
                for (j, v) in part.iter_mut().enumerate() {
                    *v += (i * 10 + j) as u32 + 1;
                }
                assert!(own.iter().all(|&b| b == i as u8));
            });
            assert!(data.iter().enumerate().all(|(i, &v)| v == i as u32 + 1));
        }
    }
}
