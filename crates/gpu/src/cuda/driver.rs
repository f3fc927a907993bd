//! CUDA's driver API behind types that own what they name. The only unsafe code of a program is
//! here, in [`graph`] and in [`memory`]: addresses are made, copied and launched with nowhere else.

use std::{
    ffi::{CString, c_void},
    sync::Arc,
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::share::Share;

mod clock;
mod graph;
mod memory;

pub(crate) use clock::Clock;
pub(crate) use graph::Graph;
pub(crate) use memory::{DeviceMemory, HostMemory, PageLocked, TensorMemory};

pub(crate) use sys::CUdeviceptr as Address;

type Result<T> = std::result::Result<T, DriverError>;

/// What the driver says of a device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFacts {
    pub(crate) name: String,
    pub(crate) compute: (i32, i32),
    pub(crate) memory_bytes: usize,
    pub(crate) integrated: bool,
    pub(crate) shared_bytes: u32,
    /// Shared memory of a block whose kernel asks for more than every kernel gets.
    pub(crate) most_shared_bytes: u32,
    pub(crate) multiprocessors: u32,
    /// The driver's CUDA version.
    pub(crate) driver: (i32, i32),
    /// Blocks can be launched as clusters.
    pub(crate) clusters: bool,
}

/// Whether the driver's library can be loaded.
pub(crate) fn library_present() -> bool {
    // SAFETY: loads libcuda, which runs its initialisers; it is the vendor's driver.
    unsafe { sys::is_culib_present() }
}

/// Every device, in the driver's order. Call only where [`library_present`].
pub(crate) fn devices() -> Result<Vec<DeviceFacts>> {
    result::init()?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    (0..result::device::get_count()?)
        .map(|ordinal| {
            let device = result::device::get(ordinal)?;
            // SAFETY: `device` comes from the driver.
            let attribute = |which| unsafe { result::device::get_attribute(device, which) };
            use sys::CUdevice_attribute as A;
            Ok(DeviceFacts {
                name: result::device::get_name(device)?,
                compute: (
                    attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                ),
                // SAFETY: `device` comes from the driver.
                memory_bytes: unsafe { result::device::total_mem(device) }?,
                integrated: attribute(A::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0,
                shared_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?
                    .cast_unsigned(),
                most_shared_bytes: attribute(
                    A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                )?
                .cast_unsigned(),
                multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
                    .cast_unsigned(),
                driver: (version / 1000, version % 1000 / 10),
                clusters: attribute(A::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)? != 0,
            })
        })
        .collect()
}

/// A device's primary context, or that of a share of the device.
#[derive(Debug)]
pub(crate) struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
    share: Option<Share>,
    /// Kernels may begin early: see [`Turn`].
    early: bool,
}

// SAFETY: contexts may be used from every thread; which one is current is a thread's own matter.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens a device by its place in [`devices`]; all of it, or a share that
    /// [`super::share::check`] has let pass.
    pub(crate) fn open(
        ordinal: usize,
        facts: &DeviceFacts,
        share: Option<u32>,
    ) -> Result<Arc<Context>> {
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
        // SAFETY: `device` comes from the driver.
        let raw = unsafe { result::primary_ctx::retain(device) }?;
        // With a graph's nodes since CUDA 12.3.
        let early = facts.compute.0 >= 9 && facts.driver >= (12, 3);
        let mut context = Context { raw, device, share: None, early };
        if let Some(multiprocessors) = share {
            let share = context.share.insert(Share::new(device, multiprocessors)?);
            context.raw = share.context()?;
        }
        Ok(Arc::new(context))
    }

    /// How many multiprocessors the share has that was opened, if it is not the whole device.
    pub(crate) fn share(&self) -> Option<u32> {
        self.share.as_ref().map(|share| share.multiprocessors)
    }

    /// Makes it the calling thread's: every method of the other types expects that.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: retained until `self` is dropped.
        unsafe { result::ctx::set_current(self.raw) }
    }

    /// Waits for what was filled so far. Not for all of the context: the driver forbids that while
    /// another thread captures one of its streams.
    pub(crate) fn wait_fills(&self) -> Result<()> {
        // SAFETY: the null stream, on which fills run, always exists.
        unsafe { result::stream::synchronize(std::ptr::null_mut()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        drop(self.share.take());
        // SAFETY: retained in `open`, released once. A failure leaves nothing to do.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Function {
    context: Arc<Context>,
    module: sys::CUmodule,
    raw: sys::CUfunction,
    /// Bytes of shared memory that each launch asks for.
    shared_bytes: u32,
}

// SAFETY: handles of a context, usable from every thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Loads a compiled module and its function `entry`, whose blocks take `shared_bytes` of shared
    /// memory besides what the module declares.
    pub(crate) fn load(
        context: &Arc<Context>,
        cubin: &[u8],
        entry: &str,
        shared_bytes: u32,
    ) -> Result<Function> {
        let name = CString::new(entry).expect("names of kernels have no zero byte");
        // SAFETY: `cubin` is a whole image, made by NVRTC; the driver copies what it needs.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }?;
        // SAFETY: the module is loaded; should the name be missing, dropping it unloads.
        let raw = std::ptr::null_mut();
        let mut function = Function { context: context.clone(), module, raw, shared_bytes };
        // SAFETY: as above.
        function.raw = unsafe { result::module::get_function(module, name) }?;
        use sys::CUfunction_attribute_enum as A;
        // Makes a lazy driver load it now: not while a stream is captured.
        // SAFETY: the function exists.
        unsafe {
            result::function::get_function_attribute(function.raw, A::CU_FUNC_ATTRIBUTE_NUM_REGS)
        }?;
        if shared_bytes > 0 {
            // Of what cache and shared memory have together, as much as blocks find use for.
            let share = A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            let bytes = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            for (attribute, value) in [(bytes, shared_bytes.cast_signed()), (share, 100)] {
                // SAFETY: the function exists.
                unsafe {
                    result::function::set_function_attribute(function.raw, attribute, value)
                }?;
            }
        }
        Ok(function)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`, unloaded once; graphs that use it are dropped before.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// One kernel launch with its arguments.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) function: Arc<Function>,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: [u32; 3],
    /// The parameter block.
    pub(crate) params: Vec<u32>,
    /// The buffers, which come after it and a number that tells whether the next kernel begins at once.
    pub(crate) buffers: Vec<Address>,
    /// See [`Dispatch::spread`](sparoa_core::ops::Dispatch::spread).
    pub(crate) spread: bool,
    /// Blocks along z that are a cluster.
    pub(crate) cluster: u32,
}

/// A kernel's turn among those queued before and after it. By default it begins when all before it have
/// ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Where the device and the driver can, it begins when the kernel before it lets it, and waits for
    /// that one's end by itself, as every translated kernel does.
    pub(crate) early: bool,
    /// It lets the next one begin at once. Otherwise when its blocks have ended.
    pub(crate) overlapped: bool,
}

/// Buffers that a kernel has, at most.
const MOST_BUFFERS: usize = 8;

/// A kernel that reads f32 and writes them rounded to 16 bits.
#[derive(Debug)]
pub(crate) struct Rounding {
    launch: Launch,
    /// Those that it reads.
    bytes: usize,
}

impl Rounding {
    /// `launch` reads `bytes` of its first buffer and writes half as many of its second one.
    pub(super) fn new(launch: Launch, bytes: usize) -> Rounding {
        Rounding { launch, bytes }
    }
}

/// A queue of the device.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: a handle of a context, usable from every thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Stream> {
        let raw = match &context.share {
            Some(share) => share.stream()?,
            None => result::stream::create(result::stream::StreamKind::NonBlocking)?,
        };
        Ok(Stream { context: context.clone(), raw })
    }

    /// Queues zeros to the first `bytes` of `memory`, which outlives that.
    pub(super) fn clear(&self, memory: &DeviceMemory, bytes: usize) -> Result<()> {
        assert!(bytes <= memory.bytes, "there is as much");
        // SAFETY: inside, as was checked; who frees the memory waits for the device before.
        unsafe { sys::cuMemsetD8Async(memory.address, 0, bytes, self.raw).result() }
    }

    /// Whether [`Turn::early`] means anything here.
    pub(super) fn begins_early(&self) -> bool {
        self.context.early
    }

    /// For libraries, which queue their own kernels.
    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments are those of the function's text, every buffer is alive until the kernel has
    /// run and has the sizes that the parameters tell.
    pub(crate) unsafe fn launch(&self, launch: &Launch, turn: Turn) -> Result<()> {
        // SAFETY: the caller's word.
        unsafe { self.launch_on(launch, &launch.buffers, turn) }
    }

    /// Queues a kernel on `buffers` instead of its own.
    ///
    /// # Safety
    /// As [`Stream::launch`].
    unsafe fn launch_on(&self, launch: &Launch, buffers: &[Address], turn: Turn) -> Result<()> {
        let [x, y, z] = launch.grid;
        let [tx, ty, tz] = launch.threads;
        let overlapped = u32::from(turn.overlapped);
        let mut arguments: [*mut c_void; 2 + MOST_BUFFERS] = [std::ptr::null_mut(); _];
        arguments[0] = launch.params.as_ptr().cast_mut().cast();
        arguments[1] = std::ptr::from_ref(&overlapped).cast_mut().cast();
        for (argument, buffer) in arguments[2..][..buffers.len()].iter_mut().zip(buffers) {
            *argument = std::ptr::from_ref(buffer).cast_mut().cast();
        }
        let Function { raw: function, shared_bytes, .. } = *launch.function;
        let (grid, block) = ((x, y, z), (tx, ty, tz));
        let early = turn.early && self.context.early;
        if early || launch.cluster > 1 {
            use sys::CUlaunchAttributeID as Id;
            let [mut cluster, mut at_once] = [sys::CUlaunchAttributeValue { pad: [0; _] }; 2];
            cluster.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: launch.cluster };
            at_once.programmaticStreamSerializationAllowed = 1;
            let mut attributes = [
                (Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, cluster),
                (Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, at_once),
            ]
            .map(|(id, value)| sys::CUlaunchAttribute { id, pad: [0; _], value });
            // Devices without clusters do not know the first.
            let wanted =
                if launch.cluster > 1 { &mut attributes[..] } else { &mut attributes[1..] };
            let count = wanted.len() - usize::from(!early);
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: tx,
                blockDimY: ty,
                blockDimZ: tz,
                sharedMemBytes: shared_bytes,
                hStream: self.raw,
                attrs: wanted.as_mut_ptr(),
                numAttrs: count as u32,
            };
            let (arguments, extra) = (arguments.as_mut_ptr(), std::ptr::null_mut());
            // SAFETY: as below.
            return unsafe { sys::cuLaunchKernelEx(&config, function, arguments, extra) }.result();
        }
        // SAFETY: the driver copies the arguments during the call; the rest is the caller's word.
        unsafe {
            result::launch_kernel(function, grid, block, shared_bytes, self.raw, &mut arguments)
        }
    }

    /// Queues a copy of `bytes` of `from`, beginning at `offset`, to the device.
    pub(crate) fn copy_in(
        &self,
        to: Address,
        from: &HostMemory,
        offset: usize,
        bytes: usize,
    ) -> Result<()> {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= from.bytes), "it is inside");
        // SAFETY: views were checked against their slots at load; the source is in bounds and
        // outlives the copy, since programs wait for the device before they drop it.
        unsafe {
            let from = from.host.add(offset).cast();
            sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.raw).result()
        }
    }

    /// Queues a copy of bytes that are lent until the program's uploads have been waited for.
    pub(crate) fn copy_lent(&self, to: Address, from: &PageLocked<'_>) -> Result<()> {
        let (at, bytes) = (from.0.as_ptr().cast(), from.0.len());
        // SAFETY: views were checked against their slots at load, and the bytes against the view;
        // who lends page-locked memory gets it back from `Program::wait_uploads`.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, at, bytes, self.raw) }.result()
    }

    /// Queues the rounding of bytes that are lent as [`Stream::copy_lent`]'s are.
    pub(crate) fn round_lent(
        &self,
        rounding: &Rounding,
        to: Address,
        from: &PageLocked<'_>,
    ) -> Result<()> {
        assert_eq!(from.0.len(), rounding.bytes, "it rounds so many");
        // SAFETY: the kernel reads as many bytes and writes half as many, which the view has as it
        // was checked at load; the rest is as in `copy_lent`.
        unsafe { self.launch_on(&rounding.launch, &[from.1, to], Turn::default()) }
    }

    /// Queues a copy from the device to the first `bytes` of `to`.
    pub(crate) fn copy_out(&self, to: &HostMemory, from: Address, bytes: usize) -> Result<()> {
        assert!(bytes <= to.bytes, "the copy is inside");
        // SAFETY: as in `copy_in`.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.host.cast(), from, bytes, self.raw) }.result()
    }

    /// Later work of this stream begins after `event`, as last recorded.
    pub(crate) fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.raw, event.raw, flags) }
    }

    /// Waits for everything queued here.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: alive.
        unsafe { result::stream::synchronize(self.raw) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

/// What an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// It can be asked for the time since another one, and costs more.
    Timed,
    /// Who waits for it keeps a core busy, and goes on at once.
    Spinning,
    /// Who waits for it leaves the core to others, and takes longer to wake up.
    Sleeping,
}

/// A point in a stream's work.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: a handle of a context, usable from every thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>, kind: EventKind) -> Result<Event> {
        use sys::CUevent_flags as Flag;
        let untimed = Flag::CU_EVENT_DISABLE_TIMING as u32;
        let flags = match kind {
            EventKind::Timed => Flag::CU_EVENT_DEFAULT as u32,
            EventKind::Spinning => untimed,
            EventKind::Sleeping => untimed | Flag::CU_EVENT_BLOCKING_SYNC as u32,
        };
        let mut event = Event { context: context.clone(), raw: std::ptr::null_mut() };
        // SAFETY: writes one handle. Destroying none, should there be no event, does nothing.
        unsafe { sys::cuEventCreate(&mut event.raw, flags) }.result()?;
        Ok(event)
    }

    /// Sets it to the end of what `stream` has queued.
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.raw, stream.raw) }
    }

    /// Records it as part of a captured graph, each time that runs.
    pub(crate) fn record_in_graph(&self, stream: &Stream) -> Result<()> {
        let flags = sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: both are alive, and the event as long as the graph: `time_segment` owns both.
        unsafe { sys::cuEventRecordWithFlags(self.raw, stream.raw, flags) }.result()
    }

    /// Waits for it; at once if it was never recorded.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: alive.
        unsafe { result::event::synchronize(self.raw) }
    }

    /// Nanoseconds from `earlier` to this one.
    pub(crate) fn since_ns(&self, earlier: &Event) -> Result<u64> {
        // SAFETY: both are alive, timed and recorded.
        let ms = unsafe { result::event::elapsed(earlier.raw, self.raw) }?;
        Ok((f64::from(ms) * 1e6) as u64)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}
