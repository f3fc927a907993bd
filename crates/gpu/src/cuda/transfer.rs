//! Copies between host and device. A *staged* copy goes through page-locked memory of its own
//! (unless what is uploaded is in such memory already), on a stream for its direction: an upload
//! waits for the segments that used its bytes and the next launch waits for it; a download follows
//! the segment that produces the value, unless many do. A program of one segment has nothing that
//! copies could run beside: they are queued on its own stream, and wait for nothing. A *direct* copy
//! reads or writes the slot itself, which then is memory of the host that the device sees: for
//! integrated GPUs, whose memory it is anyway, and for what is so small that a kernel's writes are
//! there before a copy would begin.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use cudarc::driver::DriverError;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use sparoa_core::backend::{Arg, BackendError, ProgramSpec, View};
use sparoa_kernels::Pool;

use super::{
    driver::{Address, DeviceMemory, Event, EventKind, HostMemory, PageLocked, Rounding, Stream},
    opened::Shared,
    rounding,
    storage::Half,
};
use crate::{
    bind::place,
    copies::{Direct, Plan, check_length, no_such, overlap},
    residency::padded,
};

/// Bytes that a thread fills at a time, at most: few enough that copies begin early.
const PIECE: usize = 512 << 10;
/// Pieces from which on several threads fill the staging memory: to wake them takes as long as
/// one piece.
const ENOUGH: usize = 3;
/// Bytes from which on an upload is written past the caches.
const LARGE: usize = 8 << 20;
/// Copies that an upload is made of at most: to queue one takes microseconds.
const COPIES: usize = 8;

/// The copies of one program, and the slots they go to.
pub(crate) struct Transfers {
    slots: Vec<Slot>,
    uploads: Vec<Upload>,
    downloads: Vec<Download>,
    inward: Arc<Stream>,
    outward: Arc<Stream>,
    /// Both are the stream of the launches, which keeps everything in order.
    in_order: bool,
    /// Set when an upload is queued that no launch waits for yet.
    pending: AtomicBool,
    /// The end of the last upload.
    uploaded: Event,
    /// The end of each segment's last launch; `None` where nothing waits for it.
    launched: Vec<Option<Event>>,
    /// Downloads that follow each segment.
    eager: Vec<Vec<usize>>,
}

enum Slot {
    Device(DeviceMemory),
    Host(HostMemory),
}

struct Upload {
    view: View,
    /// What arrives is f32, or rounded to this.
    half: Option<Half>,
    /// What rounds it where the host lends it, if the host does not.
    rounding: Option<Rounding>,
    /// `None`: direct.
    staging: Option<HostMemory>,
    copied: Event,
    /// Set while a copy may be reading the caller's own memory.
    lent: AtomicBool,
    /// Segments that read or write these bytes.
    after: Vec<usize>,
}

struct Download {
    view: View,
    /// `None`: direct.
    staging: Option<HostMemory>,
    copied: Event,
    /// Segments that write these bytes.
    after: Vec<usize>,
    /// Whether uploads do.
    uploaded: bool,
    eager: bool,
}

/// What so many bytes of f32 take.
fn stored(bytes: usize, half: Option<Half>) -> usize {
    if half.is_some() { bytes / 2 } else { bytes }
}

/// Rounds to bf16, as [`bf16::from_f32`] does, but in a way that compilers make vectors of.
fn round_to_bf16(rounded: &mut [bf16], values: &[f32]) {
    for (rounded, value) in rounded.iter_mut().zip(values) {
        let bits = value.to_bits();
        let even = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        // What is no number stays none.
        let bits = if value.is_nan() { bits | 0x40_0000 } else { even };
        *rounded = bf16::from_bits((bits >> 16) as u16);
    }
}

/// Rounds in pieces that stay in the nearest cache, and hands them on with their places.
fn round_pieces<T: bytemuck::Pod>(
    bytes: &[u8],
    round: impl Fn(&mut [T], &[f32]),
    put: impl Fn(usize, &[u8]),
) {
    let mut rounded = [T::zeroed(); 2048];
    let mut values = [0f32; 2048];
    for (i, part) in bytes.chunks(size_of_val(&values)).enumerate() {
        let count = part.len() / size_of::<f32>();
        let rounded = &mut rounded[..count];
        match bytemuck::try_cast_slice::<u8, f32>(part) {
            Ok(values) => round(rounded, values),
            Err(_) => {
                let values = &mut values[..count];
                bytemuck::cast_slice_mut(values).copy_from_slice(part);
                round(rounded, values);
            }
        }
        put(i * 2 * 2048, bytemuck::cast_slice(rounded));
    }
}

/// Writes `bytes`, or the f32 in them rounded to `half`, to `offset` of `memory`; `large`: there
/// are more than caches hold.
fn write(memory: &HostMemory, offset: usize, bytes: &[u8], half: Option<Half>, large: bool) {
    let put = |offset: usize, bytes: &[u8]| match large {
        true => memory.write_past_caches(offset, bytes),
        false => memory.write(offset, bytes),
    };
    let piece = |at: usize, bytes: &[u8]| put(offset + at, bytes);
    match half {
        None => put(offset, bytes),
        Some(Half::F16) => {
            let round = |to: &mut [f16], from: &[f32]| to.convert_from_f32_slice(from);
            round_pieces(bytes, round, piece);
        }
        Some(Half::Bf16) => round_pieces(bytes, round_to_bf16, piece),
    }
}

/// Segments of which a task's views, as `views` lists them, overlap `copy`.
fn segments(spec: &ProgramSpec, copy: &View, reads: bool) -> Vec<usize> {
    let touches = |task: usize| {
        let task = &spec.tasks[task];
        let read = task
            .inputs
            .iter()
            .flatten()
            .any(|arg| matches!(arg, Arg::Slot(view, _) if reads && overlap(view, copy)));
        read || task.outputs.iter().any(|(view, _)| overlap(view, copy))
    };
    let segments = spec.segments.iter().enumerate();
    segments.filter(|(_, tasks)| (*tasks).clone().any(touches)).map(|(i, _)| i).collect()
}

impl Transfers {
    /// Decides every copy's path and makes slots and staging memory. `halves`: what each
    /// upload rounds to; `direct`: where that is possible; `stream`: that of the launches.
    pub(crate) fn new(
        shared: &Shared,
        spec: &ProgramSpec,
        halves: &[Option<Half>],
        direct: Direct,
        stream: &Arc<Stream>,
    ) -> Result<Transfers, BackendError> {
        let plan = Plan::new(spec, direct);
        let context = &shared.context;
        let directs = spec.uploads.iter().zip(&plan.direct_uploads);
        let directs = directs.chain(spec.downloads.iter().zip(&plan.direct_downloads));
        let direct: Vec<usize> =
            directs.filter(|(_, direct)| **direct).map(|(view, _)| view.slot).collect();
        let mut slots = Vec::with_capacity(spec.slots.len());
        for (i, &bytes) in spec.slots.iter().enumerate() {
            slots.push(shared.run("activations", || match direct.contains(&i) {
                true => HostMemory::new(context, padded(bytes)).map(Slot::Host),
                false => DeviceMemory::new(context, padded(bytes)).map(Slot::Device),
            })?);
        }
        let kind = if spec.beside_cpu { EventKind::Sleeping } else { EventKind::Spinning };
        let event = || shared.run("an event", || Event::new(context, kind));
        let staging = |bytes: usize, direct: bool| match direct {
            true => Ok(None),
            false => shared.run("staging", || HostMemory::new(context, padded(bytes))).map(Some),
        };
        let mut uploads = Vec::with_capacity(spec.uploads.len());
        let copies = spec.uploads.iter().zip(&plan.direct_uploads).zip(halves);
        for ((view, &direct), &half) in copies {
            uploads.push(Upload {
                view: *view,
                half,
                rounding: match half {
                    Some(_) if !direct => rounding::of(shared, view.bytes)?,
                    _ => None,
                },
                staging: staging(stored(view.bytes, half), direct)?,
                copied: event()?,
                lent: AtomicBool::new(false),
                after: segments(spec, view, true),
            });
        }
        let mut downloads = Vec::with_capacity(spec.downloads.len());
        let mut eager = vec![Vec::new(); spec.segments.len()];
        for (i, view) in spec.downloads.iter().enumerate() {
            for &segment in &plan.eager_after[i] {
                eager[segment].push(i);
            }
            downloads.push(Download {
                view: *view,
                staging: staging(view.bytes, plan.direct_downloads[i])?,
                copied: event()?,
                after: segments(spec, view, false),
                uploaded: spec.uploads.iter().any(|upload| overlap(upload, view)),
                eager: !plan.eager_after[i].is_empty(),
            });
        }
        let in_order = spec.segments.len() <= 1;
        let of_copies = || match in_order {
            true => Ok(stream.clone()),
            false => shared.run("a stream", || Stream::new(context)).map(Arc::new),
        };
        let direct_uploads = uploads.iter().filter(|u| u.staging.is_none()).map(|u| &u.after);
        let direct_downloads = downloads.iter().filter(|d| d.staging.is_none()).map(|d| &d.after);
        let waited: Vec<usize> =
            direct_uploads.chain(direct_downloads).flatten().copied().collect();
        let ends = (0..spec.segments.len())
            .map(|segment| (!in_order || waited.contains(&segment)).then(&event).transpose());
        Ok(Transfers {
            inward: of_copies()?,
            outward: of_copies()?,
            in_order,
            pending: AtomicBool::new(false),
            uploaded: event()?,
            launched: ends.collect::<Result<_, _>>()?,
            slots,
            uploads,
            downloads,
            eager,
        })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let slots = self.slots.iter().map(|slot| match slot {
            Slot::Device(memory) => memory.bytes,
            Slot::Host(memory) => memory.bytes,
        });
        let up = self.uploads.iter().filter_map(|u| u.staging.as_ref());
        let down = self.downloads.iter().filter_map(|d| d.staging.as_ref());
        slots.chain(up.chain(down).map(|memory| memory.bytes)).sum()
    }

    /// Where the device finds a view's first byte; `half`: its elements are stored in 16 bits.
    pub(crate) fn address(&self, view: &View, half: bool) -> Address {
        let start = match &self.slots[view.slot] {
            Slot::Device(memory) => memory.address,
            Slot::Host(memory) => memory.address,
        };
        start + place(view, half) as Address
    }

    /// Waits for every copy.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        self.inward.synchronize()?;
        self.outward.synchronize()
    }

    /// Makes the launch that follows wait for the uploads so far.
    pub(crate) fn before_launch(&self, stream: &Stream) -> Result<(), DriverError> {
        if self.pending.swap(false, Ordering::AcqRel) {
            stream.wait(&self.uploaded)?;
        }
        Ok(())
    }

    /// The ends of the last launches of `segments` that are waited for.
    fn ends(&self, segments: &[usize]) -> impl Iterator<Item = &Event> {
        segments.iter().filter_map(|&segment| self.launched[segment].as_ref())
    }

    /// Makes what is queued next on a stream of copies wait for `events`, unless it does anyway.
    fn after<'a>(
        &self,
        stream: &Stream,
        mut events: impl Iterator<Item = &'a Event>,
    ) -> Result<(), DriverError> {
        if self.in_order { Ok(()) } else { events.try_for_each(|event| stream.wait(event)) }
    }

    /// Notes a launch of `segment` and queues the downloads that follow it.
    pub(crate) fn after_launch(&self, segment: usize, stream: &Stream) -> Result<(), DriverError> {
        let launched = self.launched[segment].as_ref();
        if let Some(event) = launched {
            event.record(stream)?;
        }
        for &copy in &self.eager[segment] {
            self.after(&self.outward, launched.into_iter())?;
            self.queue(&self.downloads[copy])?;
        }
        Ok(())
    }

    /// Queues a staged download.
    fn queue(&self, download: &Download) -> Result<(), DriverError> {
        let Download { view, staging, copied, .. } = download;
        let Some(staging) = staging else { return Ok(()) };
        self.outward.copy_out(staging, self.address(view, false), view.bytes)?;
        copied.record(&self.outward)
    }

    /// Queues the upload of `bytes`: pieces travel while others are put into the staging memory,
    /// by several threads, because one alone fills memory more slowly than the bus empties it.
    fn stage(
        &self,
        shared: &Shared,
        upload: &Upload,
        staging: &HostMemory,
        bytes: &[u8],
        pool: &Pool,
    ) -> Result<(), DriverError> {
        let half = upload.half;
        let to = self.address(&upload.view, half.is_some());
        let threads = if bytes.len() < ENOUGH * PIECE { 1 } else { pool.threads() };
        // Every thread has as many pieces, and at least two: the first travel meanwhile.
        let rounds = bytes.len().div_ceil(threads * PIECE).max(2);
        let size = bytes.len().div_ceil(threads * rounds).next_multiple_of(4096);
        let pieces = bytes.len().div_ceil(size);
        let group = pieces.div_ceil(COPIES);
        let filled = [const { AtomicUsize::new(0) }; COPIES];
        let failure = OnceLock::new();
        let advance = |index: usize| {
            let start = index * size;
            let piece = &bytes[start..bytes.len().min(start + size)];
            write(staging, stored(start, half), piece, half, bytes.len() >= LARGE);
            let (first, end) = (index / group * group, (index / group + 1) * group);
            let all = end.min(pieces) - first;
            // Who fills the last one sees what the others wrote.
            if filled[index / group].fetch_add(1, Ordering::AcqRel) + 1 < all {
                return;
            }
            let (at, end) = (first * size, bytes.len().min(end * size));
            let (at, len) = (stored(at, half), stored(end - at, half));
            let queued = shared
                .context
                .bind()
                .and_then(|()| self.inward.copy_in(to + at as Address, staging, at, len));
            if let Err(error) = queued {
                failure.get_or_init(|| error);
            }
        };
        match threads {
            1 => (0..pieces).for_each(advance),
            _ => pool.run(pieces, &advance),
        }
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// See [`sparoa_core::backend::Program::upload`].
    pub(crate) fn upload(
        &self,
        shared: &Shared,
        copy: usize,
        bytes: &[u8],
        pool: &Pool,
    ) -> Result<(), BackendError> {
        let upload = self.uploads.get(copy).ok_or_else(|| no_such("upload", copy))?;
        let Upload { view, half, rounding, staging, copied, lent, after } = upload;
        check_length("upload", copy, view, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        shared.run("upload", || {
            let mut users = self.ends(after);
            match (staging, &self.slots[view.slot]) {
                (Some(staging), _) => {
                    // The copy before may still be reading.
                    copied.synchronize()?;
                    self.after(&self.inward, users)?;
                    let to = self.address(view, half.is_some());
                    match (PageLocked::of(bytes), half, rounding) {
                        (Some(locked), None, _) => {
                            lent.store(true, Ordering::Release);
                            self.inward.copy_lent(to, &locked)?;
                        }
                        (Some(locked), Some(_), Some(rounding))
                            if rounding::aligned(&locked, to) =>
                        {
                            lent.store(true, Ordering::Release);
                            self.inward.round_lent(rounding, to, &locked)?;
                        }
                        _ => self.stage(shared, upload, staging, bytes, pool)?,
                    }
                    copied.record(&self.inward)?;
                    if !self.in_order {
                        self.uploaded.record(&self.inward)?;
                        self.pending.store(true, Ordering::Release);
                    }
                }
                (None, Slot::Host(slot)) => {
                    users.try_for_each(Event::synchronize)?;
                    write(slot, place(view, half.is_some()), bytes, *half, false);
                }
                (None, Slot::Device(_)) => unreachable!("slots of direct copies are the host's"),
            }
            Ok(())
        })
    }

    /// See [`sparoa_core::backend::Program::wait_uploads`].
    pub(crate) fn wait_uploads(&self, shared: &Shared) -> Result<(), BackendError> {
        let lent = |upload: &&Upload| upload.lent.swap(false, Ordering::AcqRel);
        for upload in self.uploads.iter().filter(lent) {
            shared.run("upload", || upload.copied.synchronize())?;
        }
        Ok(())
    }

    /// See [`sparoa_core::backend::Program::download`].
    pub(crate) fn download(
        &self,
        shared: &Shared,
        copy: usize,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        let download = self.downloads.get(copy).ok_or_else(|| no_such("download", copy))?;
        let Download { view, staging, copied, after, uploaded, eager } = download;
        check_length("download", copy, view, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        shared.run("download", || {
            let mut writers = self.ends(after).chain(uploaded.then_some(&self.uploaded));
            match (staging, &self.slots[view.slot]) {
                (Some(staging), _) => {
                    if !eager {
                        self.after(&self.outward, writers)?;
                        self.queue(download)?;
                    }
                    copied.synchronize()?;
                    staging.read(0, bytes);
                }
                (None, Slot::Host(slot)) => {
                    writers.try_for_each(Event::synchronize)?;
                    slot.read(view.offset, bytes);
                }
                (None, Slot::Device(_)) => unreachable!("slots of direct copies are the host's"),
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_are_rounded_to_the_nearest_even() {
        let mut values: Vec<f32> = (0..1 << 16).map(|bits| f32::from_bits(bits << 16)).collect();
        // In the middle, and on either side of it; and every kind of what is no number.
        let between = [0x7fff, 0x8000, 0x8001, 0xffff, 1];
        let more =
            (0..1 << 16).flat_map(|bits| between.map(|low| f32::from_bits(bits << 16 | low)));
        values.extend(more);
        let mut rounded = vec![bf16::ZERO; values.len()];
        round_to_bf16(&mut rounded, &values);
        for (value, got) in values.iter().zip(rounded) {
            let expected = bf16::from_f32(*value);
            assert!(got.to_bits() == expected.to_bits(), "{value:e}: {got} is not {expected}");
        }
    }
}
