//! Bytes of a tensor: owned and cache-line aligned, or borrowed from a mapped file.

use std::{fmt, ops::Range, sync::Arc};

/// Bytes that are kept elsewhere: a mapped file.
pub trait Source: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];

    /// Lets go of the memory that `range` takes up, where reading it again brings it back. A
    /// hint: the bytes stay what they are.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Immutable-when-shared bytes. Owned storage starts on a 64-byte boundary.
#[derive(Clone)]
pub struct Storage(Inner);

#[derive(Clone)]
enum Inner {
    Owned { lines: Arc<Vec<Line>>, bytes: usize },
    Mapped { source: Arc<dyn Source>, range: Range<usize> },
}

impl Storage {
    /// `bytes` zero bytes.
    pub fn zeroed(bytes: usize) -> Storage {
        let lines = bytemuck::zeroed_vec::<Line>(bytes.div_ceil(64));
        Storage(Inner::Owned { lines: Arc::new(lines), bytes })
    }

    /// An aligned copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> Storage {
        let mut storage = Storage::zeroed(bytes.len());
        storage.bytes_mut().copy_from_slice(bytes);
        storage
    }

    /// Borrows `range` of a shared source without copying, or copies it when its address is not a
    /// multiple of `align`. `None` when the range lies outside the source.
    pub fn borrowed(source: Arc<dyn Source>, range: Range<usize>, align: usize) -> Option<Storage> {
        let bytes = source.bytes().get(range.clone())?;
        if bytes.as_ptr().addr().is_multiple_of(align) {
            return Some(Storage(Inner::Mapped { source, range }));
        }
        let copy = Storage::copy_from(bytes);
        source.release(range);
        Some(copy)
    }

    /// Lets go of the memory of a mapped file's bytes, which will be read again if need be.
    pub fn release(&self) {
        if let Inner::Mapped { source, range } = &self.0 {
            source.release(range.clone());
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Inner::Owned { lines, bytes } => &bytemuck::cast_slice(lines)[..*bytes],
            Inner::Mapped { source, range } => &source.bytes()[range.clone()],
        }
    }

    /// The bytes for writing; shared or mapped storage is copied first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Inner::Mapped { .. } = self.0 {
            *self = Storage::copy_from(self.bytes());
        }
        match &mut self.0 {
            Inner::Owned { lines, bytes } => {
                &mut bytemuck::cast_slice_mut(Arc::make_mut(lines).as_mut_slice())[..*bytes]
            }
            Inner::Mapped { .. } => unreachable!("mapped storage was copied above"),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({} bytes)", self.bytes().len())
    }
}
