//! A buffer of f32 that starts on a cache line.

use memmap2::MmapMut;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of f32 whose first element is aligned to 64 bytes.
pub(crate) struct AlignedBuffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Lines(Vec<Line>),
    /// Pages of their own, large ones where the system has them: weights are read from end to
    /// end, and with small pages looking up where they are takes longer than reading them.
    Pages(MmapMut),
}

/// Bytes from which a buffer has pages of its own.
const OWN_PAGES: usize = 1 << 20;

impl Memory {
    fn zeroed(len: usize) -> Memory {
        let bytes = len * size_of::<f32>();
        if bytes >= OWN_PAGES
            && let Ok(pages) = MmapMut::map_anon(bytes)
        {
            // Only advice: where it cannot be followed, small pages serve as well.
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Memory::Pages(pages);
        }
        Memory::Lines(bytemuck::zeroed_vec(len.div_ceil(16)))
    }
}

impl AlignedBuffer {
    pub(crate) fn zeroed(len: usize) -> AlignedBuffer {
        AlignedBuffer { memory: Memory::zeroed(len), len }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        let start = match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Pages(pages) => pages.as_ptr().cast(),
        };
        // SAFETY: the memory holds at least `len` initialised f32 without gaps, from a cache line
        // or a page on.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        let start = match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Pages(pages) => pages.as_mut_ptr().cast(),
        };
        // SAFETY: as in `as_slice`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl Clone for AlignedBuffer {
    fn clone(&self) -> AlignedBuffer {
        let mut copy = AlignedBuffer::zeroed(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[f32; {}]", self.len)
    }
}

/// The part of `scratch` that starts on a cache line; at most 15 elements are lost.
pub(crate) fn align_scratch(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(64).min(scratch.len());
    &mut scratch[skip..]
}

/// A pointer that tasks of one kernel share: each writes elements no other touches.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: the pointer is only dereferenced by unsafe code, which keeps the tasks' elements apart.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(slice: &mut [f32]) -> SharedMut {
        SharedMut(slice.as_mut_ptr())
    }

    pub(crate) fn ptr(self) -> *mut f32 {
        self.0
    }

    /// The pointer `start` elements on, inside the slice it was made from.
    pub(crate) fn at(self, start: usize) -> SharedMut {
        SharedMut(self.0.wrapping_add(start))
    }

    /// # Safety
    /// The range lies inside the slice it was made from, and no other task touches it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
