//! Segments as graphs. Where the device can, kernels begin before the ones in front of them have ended,
//! if that is faster: it usually is, by a few tenths of a microsecond a kernel.

use cudarc::driver::DriverError;

use super::{
    driver::{Clock, Graph, Launch, Stream, Turn},
    program::Step,
};

/// Replays of each graph that are timed.
const ROUNDS: usize = 5;
/// Where a replay takes so many nanoseconds, the beginnings of its kernels are a small part of them.
const LONG_NS: u64 = 5_000_000;
/// The part of the time that kernels which begin early must not exceed: to launch them may take the
/// host longer.
const GAIN: f64 = 0.98;

/// Records the steps of a segment, whose buffers have contents.
///
/// # Safety
/// As [`Stream::replay`] of them.
pub(crate) unsafe fn record(stream: &Stream, steps: &[Step]) -> Result<Graph, DriverError> {
    // SAFETY: the caller's word.
    let capture = |early| unsafe { capture(stream, steps, early) };
    let apart = capture(false)?;
    if !stream.begins_early() || steps.len() < 2 {
        return Ok(apart);
    }
    let clock = Clock::new(stream)?;
    // SAFETY: as above.
    let replay = |graph: &Graph| clock.time(|| unsafe { stream.replay(graph) });
    // What runs first takes longer, on a card that was at rest several times as long.
    if replay(&apart)? > 10 * LONG_NS {
        return Ok(apart);
    }
    let mut least = replay(&apart)?;
    if least > LONG_NS {
        return Ok(apart);
    }
    let early = capture(true)?;
    let mut least_early = replay(&early)?;
    for _ in 0..ROUNDS {
        least = least.min(replay(&apart)?);
        least_early = least_early.min(replay(&early)?);
    }
    tracing::debug!(steps = steps.len(), least, least_early, "nanoseconds of a segment");
    Ok(if least_early as f64 <= GAIN * least as f64 { early } else { apart })
}

/// `early`: every kernel lets the next one begin that does not mind, and all but the first begin so.
///
/// # Safety
/// As [`Stream::replay`].
pub(crate) unsafe fn capture(
    stream: &Stream,
    steps: &[Step],
    early: bool,
) -> Result<Graph, DriverError> {
    stream.capture(|| {
        steps.iter().enumerate().try_for_each(|(i, step)| {
            let next = steps.get(i + 1);
            let turn = Turn {
                early: early && i > 0,
                overlapped: early && next.is_some_and(begins_at_once),
            };
            // SAFETY: the caller's word.
            unsafe { step.queue(stream, turn) }
        })
    })
}

/// Whether a step may begin while the one before it works: not where each multiprocessor is to get as many
/// of its blocks as the others.
fn begins_at_once(step: &Step) -> bool {
    matches!(step, Step::Kernel(Launch { spread: false, .. }))
}
