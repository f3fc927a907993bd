//! Graphs: what a stream would do, recorded once and replayed with one call.

use std::{ptr, sync::Arc};

use cudarc::driver::{result, sys};

use super::{Context, Result, Stream};

/// A recorded sequence, ready to be replayed.
#[derive(Debug)]
pub(crate) struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: a handle of a context; a program launches each graph from one thread at a time.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: instantiated in `capture`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.raw) };
    }
}

/// A sequence as it was recorded.
struct Recorded(sys::CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by `record`, destroyed once; an executable graph is independent of it.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}

impl Recorded {
    /// Its nodes.
    fn nodes(&self) -> Result<Vec<sys::CUgraphNode>> {
        let mut count = 0;
        // SAFETY: without room for nodes, their number is written.
        unsafe { sys::cuGraphGetNodes(self.0, ptr::null_mut(), &mut count) }.result()?;
        let mut nodes = vec![ptr::null_mut(); count];
        // SAFETY: there is room for `count`.
        unsafe { sys::cuGraphGetNodes(self.0, nodes.as_mut_ptr(), &mut count) }.result()?;
        nodes.truncate(count);
        Ok(nodes)
    }
}

impl Stream {
    fn record(&self, queue: impl FnOnce() -> Result<()>) -> Result<Recorded> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: alive; the capture is ended below, whatever happens in between.
        unsafe { result::stream::begin_capture(self.raw, mode) }?;
        let queued = queue();
        // SAFETY: begun above.
        let graph = unsafe { result::stream::end_capture(self.raw) }.map(Recorded);
        // What went wrong first says more than the capture that it spoiled.
        queued.and(graph)
    }

    /// Records what `queue` queues, instead of doing it.
    pub(crate) fn capture(&self, queue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let recorded = self.record(queue)?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph is alive; its kernels stay loaded as long as their launches.
        let raw = unsafe { result::graph::instantiate(recorded.0, flags) }?;
        let graph = Graph { context: self.context.clone(), raw };
        // SAFETY: alive.
        unsafe { result::graph::upload(graph.raw, self.raw) }?;
        Ok(graph)
    }

    /// Whether what `queue` queues, which is not done, is nothing but kernels. A graph of these the driver
    /// launches at once; where another node is among them, every node costs the host time.
    pub(crate) fn queues_kernels_alone(&self, queue: impl FnOnce() -> Result<()>) -> Result<bool> {
        for node in self.record(queue)?.nodes()? {
            let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            // SAFETY: a node of a graph that is alive; one value is written.
            unsafe { sys::cuGraphNodeGetType(node, &mut kind) }.result()?;
            if kind != sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Queues a recorded graph.
    ///
    /// # Safety
    /// As [`Stream::launch`], for each of its kernels.
    pub(crate) unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both are alive; the kernels' arguments are the caller's word.
        unsafe { result::graph::launch(graph.raw, self.raw) }
    }
}
