//! Bytes of a tensor: owned and cache-line aligned, borrowed from a mapped file, or made when they
//! are first read.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use memmap2::MmapMut;

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

/// Memory that others allocate, aligned to 64 bytes: that of a device's driver.
pub trait Buffer: Send + Sync {
    /// All of it.
    fn bytes(&self) -> &[u8];

    /// All of it, for writing.
    fn bytes_mut(&mut self) -> &mut [u8];
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Owned memory.
enum Memory {
    Heap(Vec<Line>),
    /// Goes back to the system when it is dropped. Where large buffers come and go between others
    /// that stay, as when weights are packed, a heap keeps the holes.
    Pages(MmapMut),
    Lent(Box<dyn Buffer>),
}

/// From this many bytes on, [`Memory::Pages`] are worth their system calls.
const PAGES_FROM: usize = 1 << 16;

impl Memory {
    fn zeroed(bytes: usize) -> Memory {
        Memory::Heap(bytemuck::zeroed_vec::<Line>(bytes.div_ceil(64)))
    }

    /// A copy for as long as something is made of it.
    fn passing(bytes: &[u8]) -> Memory {
        let pages = (bytes.len() >= PAGES_FROM).then(|| MmapMut::map_anon(bytes.len()).ok());
        let mut memory = match pages.flatten() {
            Some(pages) => Memory::Pages(pages),
            None => Memory::zeroed(bytes.len()),
        };
        memory.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        memory
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Heap(lines) => bytemuck::cast_slice(lines),
            Memory::Pages(pages) => pages,
            Memory::Lent(buffer) => buffer.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Pages(pages) => pages,
            Memory::Lent(buffer) => buffer.bytes_mut(),
        }
    }
}

impl Clone for Memory {
    fn clone(&self) -> Memory {
        match self {
            Memory::Heap(lines) => Memory::Heap(lines.clone()),
            Memory::Pages(pages) => Memory::passing(pages),
            Memory::Lent(buffer) => Memory::passing(buffer.bytes()),
        }
    }
}

/// Immutable-when-shared bytes. Owned storage starts on a 64-byte boundary.
#[derive(Clone)]
pub struct Storage(Inner);

#[derive(Clone)]
enum Inner {
    Owned { memory: Arc<Memory>, bytes: usize },
    Mapped { source: Arc<dyn Source>, range: Range<usize> },
    Made(Made),
}

/// Bytes that a recipe makes. A handle that was read keeps them, and a clone of it starts as one
/// that was not: where all readers are clones, the bytes take up memory only while one lives.
struct Made {
    recipe: Arc<Recipe>,
    held: OnceLock<Arc<Memory>>,
}

struct Recipe {
    bytes: usize,
    base: Storage,
    make: Box<dyn Fn(Storage) -> Storage + Send + Sync>,
    /// What some handle holds, for the next one.
    made: Mutex<Weak<Memory>>,
}

impl Clone for Made {
    fn clone(&self) -> Made {
        Made { recipe: self.recipe.clone(), held: OnceLock::new() }
    }
}

impl Made {
    fn memory(&self) -> &Arc<Memory> {
        self.held.get_or_init(|| {
            let mut made = self.recipe.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.upgrade().unwrap_or_else(|| {
                let memory = (self.recipe.make)(self.recipe.base.clone()).into_memory();
                *made = Arc::downgrade(&memory);
                memory
            })
        })
    }
}

impl Storage {
    /// `bytes` zero bytes.
    pub fn zeroed(bytes: usize) -> Storage {
        Storage(Inner::Owned { memory: Arc::new(Memory::zeroed(bytes)), bytes })
    }

    /// All of `buffer`. A copy of it, when one is needed, is in ordinary memory.
    ///
    /// # Panics
    /// When it is not aligned to 64 bytes.
    pub fn of(buffer: Box<dyn Buffer>) -> Storage {
        let bytes = buffer.bytes();
        assert!(bytes.as_ptr().addr().is_multiple_of(64), "a buffer is aligned");
        let bytes = bytes.len();
        Storage(Inner::Owned { memory: Arc::new(Memory::Lent(buffer)), bytes })
    }

    /// An aligned copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> Storage {
        let mut storage = Storage::zeroed(bytes.len());
        storage.bytes_mut().copy_from_slice(bytes);
        storage
    }

    /// Borrows `range` of a shared source without copying where its address is a multiple of
    /// `align`, otherwise copies it when it is read. `None` when the range lies outside the source.
    pub fn borrowed(source: Arc<dyn Source>, range: Range<usize>, align: usize) -> Option<Storage> {
        let bytes = source.bytes().get(range.clone())?;
        if bytes.as_ptr().addr().is_multiple_of(align) {
            return Some(Storage(Inner::Mapped { source, range }));
        }
        let (bytes, base) = (range.len(), Storage(Inner::Mapped { source, range }));
        Some(
            base.made(bytes, move |base| {
                Storage(Inner::Owned { memory: base.into_memory(), bytes })
            }),
        )
    }

    /// `bytes` bytes that `make` makes of these whenever they are read and no handle holds them.
    /// It makes the same ones each time.
    pub fn made(
        self,
        bytes: usize,
        make: impl Fn(Storage) -> Storage + Send + Sync + 'static,
    ) -> Storage {
        let made = Mutex::new(Weak::new());
        let recipe = Arc::new(Recipe { bytes, base: self, make: Box::new(make), made });
        Storage(Inner::Made(Made { recipe, held: OnceLock::new() }))
    }

    /// Whether the bytes are made when they are read.
    pub fn is_made(&self) -> bool {
        matches!(self.0, Inner::Made(_))
    }

    /// Lets go of the memory of a mapped file's bytes, which will be read again if need be.
    pub fn release(&self) {
        match &self.0 {
            Inner::Owned { .. } => {}
            Inner::Mapped { source, range } => source.release(range.clone()),
            Inner::Made(made) => made.recipe.base.release(),
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Inner::Owned { bytes, .. } => *bytes,
            Inner::Mapped { range, .. } => range.len(),
            Inner::Made(made) => made.recipe.bytes,
        }
    }

    /// True when there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Inner::Owned { memory, bytes } => &memory.bytes()[..*bytes],
            Inner::Mapped { source, range } => &source.bytes()[range.clone()],
            Inner::Made(made) => &made.memory().bytes()[..made.recipe.bytes],
        }
    }

    /// The bytes for writing; shared or mapped storage is copied first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.len();
        if !matches!(self.0, Inner::Owned { .. }) {
            let memory = std::mem::replace(self, Storage::zeroed(0)).into_memory();
            self.0 = Inner::Owned { memory, bytes };
        }
        match &mut self.0 {
            Inner::Owned { memory, .. } => &mut Arc::make_mut(memory).bytes_mut()[..bytes],
            _ => unreachable!("other storage was made owned above"),
        }
    }

    /// The bytes in memory of their own.
    fn into_memory(self) -> Arc<Memory> {
        match self.0 {
            Inner::Owned { memory, .. } => memory,
            Inner::Mapped { ref source, ref range } => {
                let copy = Memory::passing(self.bytes());
                // From here on the copy serves.
                source.release(range.clone());
                Arc::new(copy)
            }
            Inner::Made(made) => made.memory().clone(),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn bytes_are_made_while_a_reader_lives() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let storage = Storage::copy_from(&[2; 70]).made(70, |mut base| {
            MADE.fetch_add(1, Ordering::Relaxed);
            base.bytes_mut().iter_mut().for_each(|b| *b += 1);
            base
        });
        assert_eq!((storage.len(), MADE.load(Ordering::Relaxed)), (70, 0));
        let (reader, other) = (storage.clone(), storage.clone());
        assert_eq!(reader.bytes(), [3; 70]);
        assert_eq!(reader.bytes().as_ptr(), other.bytes().as_ptr());
        assert_eq!(MADE.load(Ordering::Relaxed), 1);
        drop((reader, other));
        let mut written = storage.clone();
        written.bytes_mut()[69] = 4;
        assert_eq!(MADE.load(Ordering::Relaxed), 2);
        assert_eq!((written.bytes()[69], storage.bytes()[69]), (4, 3));
    }

    #[test]
    fn a_buffer_is_written_in_place_and_copied_when_shared() {
        struct Lines(Vec<Line>);
        impl Buffer for Lines {
            fn bytes(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
            fn bytes_mut(&mut self) -> &mut [u8] {
                bytemuck::cast_slice_mut(&mut self.0)
            }
        }
        let mut storage = Storage::of(Box::new(Lines(vec![Line([1; 64]); 2])));
        let place = storage.bytes().as_ptr();
        storage.bytes_mut()[127] = 7;
        assert_eq!((storage.len(), storage.bytes().as_ptr()), (128, place));
        let mut copy = storage.clone();
        copy.bytes_mut()[0] = 9;
        assert_eq!((storage.bytes()[0], copy.bytes()[0], copy.bytes()[127]), (1, 9, 7));
        assert_eq!(storage.bytes().as_ptr(), place);
    }

    #[test]
    fn a_source_out_of_line_is_copied_when_read() {
        struct Bytes([u8; 9], Mutex<Vec<Range<usize>>>);
        impl Source for Bytes {
            fn bytes(&self) -> &[u8] {
                &self.0
            }
            fn release(&self, range: Range<usize>) {
                self.1.lock().unwrap().push(range);
            }
        }
        let source = Arc::new(Bytes([1, 2, 3, 4, 5, 6, 7, 8, 9], Mutex::default()));
        let odd = usize::from(source.0.as_ptr().addr().is_multiple_of(2));
        let storage = Storage::borrowed(source.clone(), odd..odd + 8, 2).unwrap();
        assert!(source.1.lock().unwrap().is_empty());
        assert_eq!(storage.bytes(), &source.0[odd..odd + 8]);
        assert_eq!(*source.1.lock().unwrap(), [odd..odd + 8]);
        assert!(Storage::borrowed(source, 2..10, 1).is_none());
    }
}
