//! Measuring a library against our own kernel: both on operands of scratch memory, each several times
//! in a graph, so that the host's launches do not show.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cudarc::driver::DriverError;
use sparoa_core::ops::Standard;

use super::{Libraries, Operands, Way, cudnn, key};
use crate::cuda::driver::{Clock, Context, DeviceMemory, Launch, Stream, Turn};

/// What measuring may take for one program; the rest is measured when the next one is loaded.
const BUDGET: Duration = Duration::from_millis(2000);
/// What measuring may take for one computation.
const SHARE: Duration = Duration::from_millis(400);
/// What a library must leave of our own kernel's time: measurements differ by a few per cent.
const GAIN: f64 = 0.96;
/// A way that is so much slower when it first runs is not measured, apart from what the host takes
/// for a launch, in nanoseconds.
const HOPELESS: f64 = 1.6;
const LAUNCH_NS: f64 = 30_000.0;
/// Nanoseconds of a graph of repetitions, about, and how many it has at most.
const GRAPH_NS: f64 = 300_000.0;
const REPETITIONS: f64 = 12.0;
/// Graphs that are timed; the fastest counts.
const ROUNDS: usize = 3;
/// Bytes of workspace to measure with: as much as a way may take; cuBLASLt's take less than cuDNN's.
pub(super) const WORKSPACE: usize = cudnn::MAX_WORKSPACE as usize;
/// Bytes of numbers that are uploaded and repeated.
const PATTERN: usize = 1 << 20;

/// Memory to measure in, and the time that is left for it.
pub(crate) struct Scratch {
    context: Arc<Context>,
    stream: Stream,
    end: Instant,
    /// Left side, right side, bias, residual, result, workspace.
    memory: [Option<DeviceMemory>; 6],
}

/// The result's place among these.
const RESULT: usize = 4;

/// Bytes of the operands of a computation.
pub(crate) struct Sizes {
    pub(crate) x: usize,
    pub(crate) weight: usize,
    pub(crate) bias: usize,
    pub(crate) residual: usize,
    pub(crate) y: usize,
}

impl Scratch {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Scratch, DriverError> {
        Ok(Scratch {
            context: context.clone(),
            stream: Stream::new(context)?,
            end: Instant::now() + BUDGET,
            memory: Default::default(),
        })
    }

    /// Whether there is time left.
    pub(crate) fn open(&self) -> bool {
        Instant::now() < self.end
    }

    /// Operands of these sizes, of random numbers but for the result. Those of earlier calls are no
    /// longer to be used.
    pub(crate) fn operands(&mut self, sizes: &Sizes) -> Result<Operands, DriverError> {
        let Sizes { x, weight, bias, residual, y } = *sizes;
        let wanted = [x, weight, bias, residual, y, WORKSPACE];
        for (i, (memory, bytes)) in self.memory.iter_mut().zip(wanted).enumerate() {
            if memory.as_ref().is_none_or(|memory| memory.bytes < bytes) {
                // The smaller one first goes back.
                *memory = None;
                let made = DeviceMemory::new(&self.context, bytes.max(16))?;
                if i < 4 {
                    made.repeat(&numbers())?;
                }
                *memory = Some(made);
            }
        }
        let [x, weight, bias, residual, y, workspace] =
            self.memory.each_ref().map(|memory| memory.as_ref().map_or(0, |m| m.address));
        Ok(Operands { x, weight, bias, residual, y, workspace })
    }

    /// Nanoseconds that what `queue` queues takes; nothing where it is no use to measure it more than once,
    /// since it took more than `limit`.
    fn time(
        &self,
        limit: f64,
        queue: &dyn Fn(&Stream) -> Result<(), DriverError>,
    ) -> Result<Option<f64>, DriverError> {
        let clock = Clock::new(&self.stream)?;
        // What runs first is loaded first.
        queue(&self.stream)?;
        let alone = || clock.time(|| queue(&self.stream));
        let once = alone()?.min(alone()?) as f64;
        if once > limit {
            return Ok(None);
        }
        let count = (GRAPH_NS / once).clamp(1.0, REPETITIONS).ceil();
        let graph = self.stream.capture(|| {
            (0..count as usize).try_for_each(|_| {
                queue(&self.stream)?;
                // Something else comes between, as it does in a program: what a kernel does ahead of
                // its turn after another of its kind is of no use there.
                self.memory[RESULT].iter().try_for_each(|memory| self.stream.clear(memory, 16))
            })
        })?;
        let mut least = u64::MAX;
        for _ in 0..ROUNDS {
            // SAFETY: what was captured was queued before; it is waited for.
            least = least.min(clock.time(|| unsafe { self.stream.replay(&graph) })?);
        }
        Ok(Some(least as f64 / count))
    }
}

/// Numbers of both signs, ordinary ones as f32 and, each half of it, as f16 and as bf16.
fn numbers() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (high, low) = ((state >> 40) as u32, (state >> 16) as u32);
        // 0x3f00 to 0x3f7f are the upper halves of 0.5 to 1, or these as bf16, and 1.75 to 1.87 as f16;
        // 0x3400 to 0x3bff are 0.25 to 1 as f16, and as bf16 2^-23 to 2^-8.
        let high = (0x3f00 | high & 0x7f) | (high & 0x100) << 7;
        let low = (0x3400 + low % 0x800) | (low & 0x8000);
        high << 16 | low
    };
    (0..PATTERN / 4).flat_map(|_| word().to_ne_bytes()).collect()
}

impl Libraries {
    /// Measures a computation in `operands` of `scratch`: our own kernel's launches, and the ways of a
    /// library followed by `finish`. The way that is to be taken, if it is a library's; what was found is
    /// remembered. `text` is that of our own kernel.
    pub(crate) fn decide(
        &self,
        scratch: &Scratch,
        standard: &Standard,
        text: &str,
        operands: &Operands,
        [own, finish]: [&[Launch]; 2],
    ) -> Result<Option<Way>, DriverError> {
        let (start, key) = (Instant::now(), key(standard, text));
        let Some(ways) = self.ways(standard) else {
            self.choices.set(key, None);
            return Ok(None);
        };
        let launch = |stream: &Stream, launches: &[Launch]| {
            // SAFETY: the launches were compared with their kernels; the scratch memory has the sizes of
            // their operands and outlives them: each measurement waits.
            launches.iter().try_for_each(|launch| unsafe { stream.launch(launch, Turn::default()) })
        };
        let ours = scratch.time(f64::INFINITY, &|stream| launch(stream, own))?;
        let ours = ours.expect("without a limit there is a time");
        let mut best: Option<(f64, usize, Way)> = None;
        for i in 0..ways.count() {
            if start.elapsed() > SHARE {
                break;
            }
            let Some(way) = ways.way(i) else { continue };
            if way.workspace() > WORKSPACE {
                continue;
            }
            let least = best.as_ref().map_or(ours, |(ns, ..)| ns.min(ours));
            let queue = |stream: &Stream| {
                // SAFETY: the scratch memory has the sizes of the operands, as above.
                unsafe { way.queue(operands, stream.raw()) }?;
                launch(stream, finish)
            };
            let taken = match scratch.time(HOPELESS * least + LAUNCH_NS, &queue) {
                Ok(taken) => taken,
                // A way that does not run here is none.
                Err(error) if error.0 == REFUSED => None,
                Err(error) => return Err(error),
            };
            let Some(ns) = taken.filter(|ns| best.as_ref().is_none_or(|(least, ..)| ns < least))
            else {
                continue;
            };
            // Some clear counters first, with which the host's launch of the program takes many times
            // as long.
            if scratch.stream.queues_kernels_alone(|| queue(&scratch.stream))? {
                best = Some((ns, i, way));
            }
        }
        let found = best.as_ref().map_or(f64::INFINITY, |(ns, ..)| *ns);
        let best = best.filter(|(ns, ..)| *ns < GAIN * ours);
        tracing::debug!(
            computes = ?standard.computes,
            half = standard.half_x,
            finish = finish.len(),
            ours_us = ours / 1e3,
            library_us = found / 1e3,
            ways = ways.count(),
            way = ?best.as_ref().map(|(_, i, way)| (way.library(), *i)),
            took_ms = start.elapsed().as_millis(),
            "measured a library"
        );
        self.choices.set(key.clone(), best.as_ref().map(|(_, i, _)| *i));
        let way = best.map(|(_, _, way)| way);
        self.ready.lock().extend(way.iter().map(|way| (key.clone(), way.clone())));
        Ok(way)
    }
}

/// What [`Way::queue`] makes of a library's refusal.
const REFUSED: cudarc::driver::sys::CUresult =
    cudarc::driver::sys::CUresult::CUDA_ERROR_NOT_SUPPORTED;

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn numbers_are_ordinary_in_every_type() {
        let bytes = numbers();
        assert_eq!(bytes.len(), PATTERN);
        let mut negative = 0;
        for word in bytes.chunks_exact(4) {
            let single = f32::from_ne_bytes(word.try_into().unwrap());
            assert!((0.5..1.0).contains(&single.abs()), "{single}");
            negative += usize::from(single < 0.0);
            for half in word.chunks_exact(2) {
                let bytes = half.try_into().unwrap();
                let (half, bfloat) = (f16::from_ne_bytes(bytes), bf16::from_ne_bytes(bytes));
                assert!((0.25..2.0).contains(&half.to_f32().abs()), "{half}");
                assert!((1e-7..1.0).contains(&bfloat.to_f32().abs()), "{bfloat}");
            }
        }
        let share = negative as f64 / (PATTERN / 4) as f64;
        assert!((0.45..0.55).contains(&share), "{share}");
    }
}
