//! How long a device takes for what is queued.

use super::{Event, EventKind, Result, Stream};

/// Times work on a stream.
pub(crate) struct Clock<'a> {
    stream: &'a Stream,
    before: Event,
    after: Event,
}

impl Clock<'_> {
    pub(crate) fn new(stream: &Stream) -> Result<Clock<'_>> {
        let event = || Event::new(&stream.context, EventKind::Timed);
        Ok(Clock { stream, before: event()?, after: event()? })
    }

    /// Nanoseconds of what `queue` queues; waits for it.
    pub(crate) fn time(&self, queue: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.before.record(self.stream)?;
        queue()?;
        self.after.record(self.stream)?;
        self.stream.synchronize()?;
        self.after.since_ns(&self.before)
    }
}
