//! A loaded program: replaying segments. Nothing is created here per launch.

use std::{ops::Range, sync::Arc};

use cudarc::driver::DriverError;
use sparoa_core::backend::{BackendError, Program};
use sparoa_kernels::Pool;

use super::{
    driver::{DeviceMemory, Event, EventKind, Graph, Launch, Stream, Turn},
    libraries::Call,
    opened::Shared,
    transfer::Transfers,
};
use crate::{copies::no_such, residency::Resident};

/// What is queued at once: a kernel of ours, or a library's.
pub(crate) enum Step {
    Kernel(Launch),
    Library(Call),
}

impl Step {
    /// Queues it. `turn`: of a kernel of ours.
    ///
    /// # Safety
    /// As [`Stream::launch`] and [`Call::queue`].
    pub(crate) unsafe fn queue(&self, stream: &Stream, turn: Turn) -> Result<(), DriverError> {
        // SAFETY: the caller's word.
        unsafe {
            match self {
                Step::Kernel(launch) => stream.launch(launch, turn),
                Step::Library(call) => call.queue(stream, turn),
            }
        }
    }
}

/// See [`Program`]. Fields are dropped in this order: graphs before the kernels they use.
pub(crate) struct CudaProgram {
    /// One per segment; `None` for one without kernels.
    pub(crate) graphs: Vec<Option<Graph>>,
    pub(crate) steps: Vec<Step>,
    /// Steps of each task.
    pub(crate) tasks: Vec<Range<usize>>,
    /// Tasks of each segment.
    pub(crate) task_segments: Vec<Range<usize>>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) transfers: Transfers,
    #[expect(dead_code, reason = "owned for its lifetime")]
    pub(crate) temps: Vec<DeviceMemory>,
    /// Of the libraries' calls, one after the other.
    #[expect(dead_code, reason = "owned for its lifetime")]
    pub(crate) workspace: Option<DeviceMemory>,
    #[expect(dead_code, reason = "owned for its lifetime")]
    pub(crate) weights: Vec<Arc<Resident<DeviceMemory>>>,
    pub(crate) bytes: usize,
    pub(crate) shared: Arc<Shared>,
}

impl Program for CudaProgram {
    fn launch(&self, segment: usize) -> Result<(), BackendError> {
        let graph = self.graphs.get(segment).ok_or_else(|| no_such("segment", segment))?;
        self.shared.run("launch", || {
            self.transfers.before_launch(&self.stream)?;
            if let Some(graph) = graph {
                // SAFETY: the launches in it were compared with their kernels at load; their
                // buffers are this program's, which waits for the device before it drops them.
                unsafe { self.stream.replay(graph) }?;
            }
            self.transfers.after_launch(segment, &self.stream)
        })
    }

    fn upload(&self, copy: usize, bytes: &[u8], pool: &Pool) -> Result<(), BackendError> {
        self.transfers.upload(&self.shared, copy, bytes, pool)
    }

    fn download(&self, copy: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.transfers.download(&self.shared, copy, bytes)
    }

    fn wait_uploads(&self) -> Result<(), BackendError> {
        self.transfers.wait_uploads(&self.shared)
    }

    fn wait_idle(&self) -> Result<(), BackendError> {
        self.shared.run("waiting", || {
            self.stream.synchronize()?;
            self.transfers.synchronize()
        })
    }

    fn time_segment(&self, segment: usize) -> Result<Vec<u64>, BackendError> {
        let tasks =
            self.task_segments.get(segment).ok_or_else(|| no_such("segment", segment))?.clone();
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let (shared, stream) = (&self.shared, &self.stream);
        shared.run("timing", || {
            let events: Vec<Event> = (0..=tasks.len())
                .map(|_| Event::new(&shared.context, EventKind::Timed))
                .collect::<Result<_, _>>()?;
            // As one graph, so that the host's launches do not show.
            let graph = stream.capture(|| {
                events[0].record_in_graph(stream)?;
                for (task, event) in tasks.clone().zip(&events[1..]) {
                    for step in &self.steps[self.tasks[task].clone()] {
                        // SAFETY: as in `launch`.
                        unsafe { step.queue(stream, Turn::default()) }?;
                    }
                    event.record_in_graph(stream)?;
                }
                Ok(())
            })?;
            self.transfers.before_launch(stream)?;
            // SAFETY: as in `launch`.
            unsafe { stream.replay(&graph) }?;
            stream.synchronize()?;
            events.windows(2).map(|pair| pair[1].since_ns(&pair[0])).collect()
        })
    }

    fn device_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CudaProgram {
    fn drop(&mut self) {
        // What is still queued uses the memory that is freed next. A failed device runs nothing.
        if let Err(error) = self.wait_idle() {
            tracing::debug!(%error, "a program was dropped on a failed device");
        }
    }
}
