//! Uploads that the device rounds: where values are stored in 16 bits and the host has them as f32 in
//! memory that the device reads, a kernel fetches them over the bus and rounds them on arrival.

use std::borrow::Cow;

use sparoa_core::{backend::BackendError, ops::Dispatch};

use super::{
    driver::{Address, Launch, PageLocked, Rounding},
    opened::Shared,
};

/// Bytes of f32 that a thread rounds.
const VECTOR: usize = 16;

/// The kernel: its second buffer is stored in 16 bits.
pub(crate) fn dispatch() -> (Dispatch, u8) {
    let dispatch = Dispatch {
        label: "round",
        source: Cow::Borrowed(include_str!("round.wgsl")),
        overrides: Vec::new(),
        bindings: Vec::new(),
        params: Vec::new(),
        grid: [1; 3],
        spread: false,
        cluster: 1,
    };
    (dispatch, 0b10)
}

/// What rounds an upload of so many bytes of f32; `None` where the host does.
///
/// # Errors
/// The kernel does not compile.
pub(crate) fn of(shared: &Shared, bytes: usize) -> Result<Option<Rounding>, BackendError> {
    let Ok(count) = u32::try_from(bytes / VECTOR) else { return Ok(None) };
    if count == 0 || !bytes.is_multiple_of(VECTOR) {
        return Ok(None);
    }
    let (dispatch, halves) = dispatch();
    shared.kernels.compile(&shared.context, std::iter::once((&dispatch, halves)))?;
    let loaded = shared.kernels.get(&dispatch, halves).expect("it was compiled");
    let threads = loaded.kernel.threads;
    let launch = Launch {
        function: loaded.function.clone(),
        grid: [count.div_ceil(threads[0]), 1, 1],
        threads,
        params: vec![count, 0, 0, 0],
        buffers: Vec::new(),
        spread: false,
        cluster: 1,
    };
    Ok(Some(Rounding::new(launch, bytes)))
}

/// Whether the kernel can read these bytes and write to this address.
pub(crate) fn aligned(from: &PageLocked<'_>, to: Address) -> bool {
    from.is_aligned_to(VECTOR) && to.is_multiple_of(VECTOR as Address / 2)
}
