//! Memory of the device, and memory of the host that the device reads and writes by itself.

use std::sync::Arc;

use cudarc::driver::{result, sys};
use sparoa_core::tensor::Buffer;

use super::{Address, Context, Result};

/// Memory of the device.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    pub(crate) address: Address,
    pub(crate) bytes: usize,
}

impl DeviceMemory {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory> {
        // SAFETY: zeroed before anything reads it: programs wait for that when they are loaded.
        let address = unsafe { result::malloc_sync(bytes) }?;
        let memory = DeviceMemory { context: context.clone(), address, bytes };
        // SAFETY: all of what was just allocated.
        unsafe { result::memset_d8_sync(address, 0, bytes) }?;
        Ok(memory)
    }

    /// Fills it from the start, and waits.
    pub(crate) fn fill(&self, data: &[u8]) -> Result<()> {
        assert!(data.len() <= self.bytes, "the data fits");
        // SAFETY: the address has room for `data`, as was checked.
        unsafe { result::memcpy_htod_sync(self.address, data) }
    }

    /// Copies it from its start on into `data`.
    #[cfg(test)]
    pub(crate) fn read(&self, data: &mut [u8]) -> Result<()> {
        assert!(data.len() <= self.bytes, "there is as much");
        // SAFETY: the address has as many bytes, as was checked.
        unsafe { result::memcpy_dtoh_sync(data, self.address) }
    }

    /// Fills all of it with `data`, again and again, and waits.
    pub(crate) fn repeat(&self, data: &[u8]) -> Result<()> {
        let mut filled = data.len().min(self.bytes);
        self.fill(&data[..filled])?;
        while filled > 0 && filled < self.bytes {
            let more = filled.min(self.bytes - filled);
            let to = self.address + filled as Address;
            // SAFETY: both parts are inside and do not overlap.
            unsafe { result::memcpy_dtod_sync(to, self.address, more) }?;
            filled += more;
        }
        Ok(())
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `new`, freed once; programs wait for the device before.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Page-locked memory of the host, which the device sees as well.
#[derive(Debug)]
pub(crate) struct HostMemory {
    context: Arc<Context>,
    pub(super) host: *mut u8,
    /// Where the device sees it.
    pub(crate) address: Address,
    pub(crate) bytes: usize,
}

// SAFETY: plain memory; `read` and `write` copy through raw pointers, and a program's events keep
// copies of the same bytes apart.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<HostMemory> {
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: zeroed before anything reads it.
        let host = unsafe { result::malloc_host(bytes, flags) }?.cast::<u8>();
        let mut memory = HostMemory { context: context.clone(), host, address: 0, bytes };
        // SAFETY: `host` is `bytes` long, and mapped as the flags say.
        unsafe {
            host.write_bytes(0, bytes);
            sys::cuMemHostGetDevicePointer_v2(&mut memory.address, host.cast(), 0).result()?;
        }
        Ok(memory)
    }

    /// Copies `data` to `offset`.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset.checked_add(data.len()).is_some_and(|end| end <= self.bytes), "it fits");
        // SAFETY: in bounds, as was checked; `data` is no part of this memory, to which no slice
        // is ever made.
        unsafe { self.host.add(offset).copy_from_nonoverlapping(data.as_ptr(), data.len()) }
    }

    /// [`HostMemory::write`] past the caches: where there is more than they hold, a line that is
    /// written is not read first.
    pub(crate) fn write_past_caches(&self, offset: usize, data: &[u8]) {
        assert!(offset.checked_add(data.len()).is_some_and(|end| end <= self.bytes), "it fits");
        #[cfg(target_arch = "x86_64")]
        if offset.is_multiple_of(16) && self.host.addr().is_multiple_of(16) {
            use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
            let whole = data.len() & !15;
            // SAFETY: in bounds, as was checked, and aligned; `data` is no part of this memory. Every
            // processor of this architecture has the instructions.
            unsafe {
                let from = data.as_ptr().cast::<__m128i>();
                let to = self.host.add(offset).cast::<__m128i>();
                for i in 0..whole / 16 {
                    _mm_stream_si128(to.add(i), _mm_loadu_si128(from.add(i)));
                }
                _mm_sfence();
            }
            return self.write(offset + whole, &data[whole..]);
        }
        self.write(offset, data);
    }

    /// Copies from `offset` on into `data`.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        assert!(offset.checked_add(data.len()).is_some_and(|end| end <= self.bytes), "it fits");
        // SAFETY: as in `write`.
        unsafe { data.as_mut_ptr().copy_from_nonoverlapping(self.host.add(offset), data.len()) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `new`, freed once; programs wait for the device before.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}

/// Page-locked memory that a tensor owns. The device only reads it, while its owner is lent to a run.
pub(crate) struct TensorMemory(HostMemory);

impl TensorMemory {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<TensorMemory> {
        context.bind()?;
        HostMemory::new(context, bytes).map(TensorMemory)
    }
}

impl Buffer for TensorMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` long and zeroed when it was made; nobody else writes it.
        unsafe { std::slice::from_raw_parts(self.0.host, self.0.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and uploads that read it end before a run gives its owner back.
        unsafe { std::slice::from_raw_parts_mut(self.0.host, self.0.bytes) }
    }
}

/// Bytes that the device reads by itself, and where it sees them.
pub(crate) struct PageLocked<'a>(pub(super) &'a [u8], pub(super) Address);

impl PageLocked<'_> {
    /// These bytes, if they are in page-locked memory of some context.
    pub(crate) fn of(bytes: &[u8]) -> Option<PageLocked<'_>> {
        use sys::CUpointer_attribute_enum as A;
        let at = bytes.as_ptr().addr() as Address;
        let (mut kind, mut seen): (u32, Address) = (0, 0);
        // SAFETY: the driver only looks the address up; an answer is 4 bytes, another 8.
        let found = unsafe {
            let ask =
                |attribute, answer| sys::cuPointerGetAttribute(answer, attribute, at).result();
            ask(A::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (&raw mut kind).cast())
                .and_then(|()| ask(A::CU_POINTER_ATTRIBUTE_DEVICE_POINTER, (&raw mut seen).cast()))
        };
        let host = sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST as u32;
        (found.is_ok() && kind == host).then_some(PageLocked(bytes, seen))
    }

    /// Whether the device sees them at a multiple of `alignment`.
    pub(crate) fn is_aligned_to(&self, alignment: usize) -> bool {
        self.1.is_multiple_of(alignment as Address)
    }
}
