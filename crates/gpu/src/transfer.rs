//! Copies between host and device. Each copy of a program has one of two paths, chosen at load:
//!
//! - *staged*: a permanent host-visible buffer of its own. An upload writes it, and the next
//!   launch begins with the copy on the device; a download is copied at the end of the segment
//!   that produces the value, so that it does not queue behind later segments.
//! - *direct*: host and device share the slot's buffer. wgpu forbids submissions that use a mapped
//!   buffer, so this is only for slots that nothing else can be using meanwhile ([`Plan`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use sparoa_core::backend::{BackendError, ProgramSpec, View};
use wgpu::{BufferUsages, MapMode, SubmissionIndex};

use crate::{
    Transfer,
    copies::{self, Plan, check_length, no_such, read_views, written_views},
    opened::Shared,
    residency::padded,
};

/// Where a buffer's mapping stands; set by wgpu's callback, on whichever thread polls.
#[derive(Debug, Default)]
struct Mapping(AtomicU8);

const UNMAPPED: u8 = 0;
const REQUESTED: u8 = 1;
const MAPPED: u8 = 2;
const FAILED: u8 = 3;

impl Mapping {
    fn request(self: &Arc<Mapping>, mode: MapMode, slice: wgpu::BufferSlice<'_>) {
        self.0.store(REQUESTED, Ordering::Release);
        let mapping = self.clone();
        slice.map_async(mode, move |result| {
            mapping.0.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
    }

    /// Waits for the requested mapping, whose buffer is free after submission `last`.
    fn wait(&self, shared: &Shared, last: Option<SubmissionIndex>) -> Result<(), BackendError> {
        let mut poll = match last {
            Some(index) => wgpu::PollType::Wait { submission_index: Some(index), timeout: None },
            None => wgpu::PollType::Poll,
        };
        loop {
            match self.0.load(Ordering::Acquire) {
                MAPPED => return Ok(()),
                REQUESTED => {}
                _ => {
                    shared.fault.check()?;
                    return Err(shared.fault.lost("a buffer could not be mapped"));
                }
            }
            shared.device.poll(poll).map_err(|e| shared.fault.lost(e))?;
            // Another thread may have taken the callback and not run it yet.
            poll = wgpu::PollType::Poll;
            if self.0.load(Ordering::Acquire) == REQUESTED {
                std::thread::yield_now();
            }
        }
    }
}

/// Host-to-device copies and device-to-host copies of one program.
pub(crate) struct Transfers {
    uploads: Vec<Upload>,
    downloads: Vec<Download>,
    /// Uploads written to staging and not yet recorded.
    pending: Mutex<Vec<usize>>,
    /// Uploads recorded by a launch that is not yet submitted.
    recorded: Mutex<Vec<usize>>,
    /// Downloads that each segment copies eagerly.
    eager: Vec<Vec<usize>>,
    /// Direct slots that each segment uses.
    direct_slots: Vec<Vec<usize>>,
    /// Last submission that used each slot; kept for direct slots only.
    last_use: Vec<Mutex<Option<SubmissionIndex>>>,
    usages: Vec<BufferUsages>,
}

struct Upload {
    view: View,
    mapping: Arc<Mapping>,
    /// `None`: direct.
    staging: Option<wgpu::Buffer>,
    last: Mutex<Option<SubmissionIndex>>,
}

struct Download {
    view: View,
    mapping: Arc<Mapping>,
    /// `None`: direct.
    staging: Option<wgpu::Buffer>,
    /// Submission that last filled the staging buffer; `None` forever when it is not eager.
    filled: Mutex<Option<SubmissionIndex>>,
}

/// Uploads recorded but not submitted; hand it to [`Transfers::submitted`].
pub(crate) type Recorded<'a> = MutexGuard<'a, Vec<usize>>;

impl Transfers {
    /// Decides every copy's path and makes the staging buffers.
    pub(crate) fn new(shared: &Shared, spec: &ProgramSpec) -> Transfers {
        Transfers::with(shared, spec, direct(shared))
    }

    fn with(shared: &Shared, spec: &ProgramSpec, direct: bool) -> Transfers {
        let plan = Plan::new(spec, direct.into());
        let base = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let mut usages = vec![base; spec.slots.len()];
        let staging = |view: &View, usage| {
            shared.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("staging"),
                size: padded(view.bytes) as u64,
                usage,
                mapped_at_creation: usage.contains(BufferUsages::MAP_WRITE),
            })
        };
        let uploads = spec.uploads.iter().zip(&plan.direct_uploads).map(|(view, &direct)| {
            let mapping = Mapping::default();
            let staging = if direct {
                usages[view.slot] |= BufferUsages::MAP_WRITE;
                None
            } else {
                mapping.0.store(MAPPED, Ordering::Release);
                Some(staging(view, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC))
            };
            Upload { view: *view, mapping: Arc::new(mapping), staging, last: Mutex::default() }
        });
        let uploads: Vec<Upload> = uploads.collect();
        let downloads = spec.downloads.iter().zip(&plan.direct_downloads).map(|(view, &direct)| {
            let staging = if direct {
                usages[view.slot] |= BufferUsages::MAP_READ;
                None
            } else {
                Some(staging(view, BufferUsages::MAP_READ | BufferUsages::COPY_DST))
            };
            let (mapping, filled) = (Arc::default(), Mutex::default());
            Download { view: *view, mapping, staging, filled }
        });
        let downloads: Vec<Download> = downloads.collect();
        let mut eager = vec![Vec::new(); spec.segments.len()];
        for (copy, segments) in plan.eager_after.iter().enumerate() {
            for &segment in segments {
                eager[segment].push(copy);
            }
        }
        let direct_slots = spec
            .segments
            .iter()
            .map(|segment| {
                let part = ProgramSpec {
                    tasks: spec.tasks[segment.clone()].to_vec(),
                    ..ProgramSpec::default()
                };
                let mut slots: Vec<usize> = read_views(&part)
                    .chain(written_views(&part))
                    .map(|view| view.slot)
                    .filter(|&slot| usages[slot] != base)
                    .collect();
                slots.sort_unstable();
                slots.dedup();
                slots
            })
            .collect();
        Transfers {
            pending: Mutex::new(Vec::with_capacity(uploads.len())),
            recorded: Mutex::new(Vec::with_capacity(uploads.len())),
            uploads,
            downloads,
            eager,
            direct_slots,
            last_use: spec.slots.iter().map(|_| Mutex::default()).collect(),
            usages,
        }
    }

    /// The program's slots, with the usages that the copies need.
    pub(crate) fn slot_buffers(&self, shared: &Shared, spec: &ProgramSpec) -> Vec<wgpu::Buffer> {
        let buffer = |(&bytes, &usage)| {
            shared.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("slot"),
                size: padded(bytes) as u64,
                usage,
                mapped_at_creation: false,
            })
        };
        spec.slots.iter().zip(&self.usages).map(buffer).collect()
    }

    /// Bytes of the staging buffers.
    pub(crate) fn staging_bytes(&self) -> u64 {
        let up = self.uploads.iter().filter_map(|u| u.staging.as_ref());
        let down = self.downloads.iter().filter_map(|d| d.staging.as_ref());
        up.chain(down).map(wgpu::Buffer::size).sum()
    }

    /// Records the copies of uploads that were written since the last launch.
    pub(crate) fn record_uploads(
        &self,
        slots: &[wgpu::Buffer],
        encoder: &mut wgpu::CommandEncoder,
    ) -> Recorded<'_> {
        let mut recorded = self.recorded.lock();
        std::mem::swap(&mut *recorded, &mut *self.pending.lock());
        for &copy in recorded.iter() {
            let Upload { view, staging, .. } = &self.uploads[copy];
            let staging = staging.as_ref().expect("only staged uploads are pending");
            let (offset, bytes) = (view.offset as u64, view.bytes as u64);
            encoder.copy_buffer_to_buffer(staging, 0, &slots[view.slot], offset, bytes);
        }
        recorded
    }

    /// Records the copies of values that `segment` has produced.
    pub(crate) fn record_downloads(
        &self,
        segment: usize,
        slots: &[wgpu::Buffer],
        encoder: &mut wgpu::CommandEncoder,
    ) {
        for &copy in &self.eager[segment] {
            self.downloads[copy].record(slots, encoder);
        }
    }

    /// Notes that what was recorded is submission `index`.
    pub(crate) fn submitted(
        &self,
        mut uploads: Recorded<'_>,
        segment: Option<usize>,
        index: SubmissionIndex,
    ) {
        for copy in uploads.drain(..) {
            let upload = &self.uploads[copy];
            *upload.last.lock() = Some(index.clone());
            if let Some(staging) = &upload.staging {
                upload.mapping.request(MapMode::Write, staging.slice(..));
            }
        }
        let Some(segment) = segment else { return };
        for &copy in &self.eager[segment] {
            *self.downloads[copy].filled.lock() = Some(index.clone());
        }
        for &slot in &self.direct_slots[segment] {
            *self.last_use[slot].lock() = Some(index.clone());
        }
    }

    /// See [`sparoa_core::backend::Program::upload`].
    pub(crate) fn upload(
        &self,
        shared: &Shared,
        slots: &[wgpu::Buffer],
        copy: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let upload = self.uploads.get(copy).ok_or_else(|| no_such("upload", copy))?;
        check_length("upload", copy, &upload.view, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(staging) = &upload.staging else {
            let (start, lead, len) = map_range(&upload.view);
            let slot = &slots[upload.view.slot];
            let slice = slot.slice(start..start + len);
            upload.mapping.request(MapMode::Write, slice);
            let last = self.last_use[upload.view.slot].lock().clone();
            upload.mapping.wait(shared, last)?;
            let written = slice.get_mapped_range_mut().map(|mut mapped| {
                mapped.slice(lead..lead + bytes.len()).copy_from_slice(bytes);
            });
            return finish(shared, slot, &upload.mapping, written);
        };
        if upload.mapping.0.load(Ordering::Acquire) == UNMAPPED {
            // Written before and never launched: the earlier bytes are replaced.
            self.pending.lock().retain(|&c| c != copy);
            upload.mapping.request(MapMode::Write, staging.slice(..));
        }
        let last = upload.last.lock().clone();
        upload.mapping.wait(shared, last)?;
        let written = staging
            .slice(..upload.view.bytes as u64)
            .get_mapped_range_mut()
            .map(|mut mapped| mapped.copy_from_slice(bytes));
        finish(shared, staging, &upload.mapping, written)?;
        self.pending.lock().push(copy);
        Ok(())
    }

    /// See [`sparoa_core::backend::Program::download`].
    pub(crate) fn download(
        &self,
        shared: &Shared,
        slots: &[wgpu::Buffer],
        copy: usize,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        let download = self.downloads.get(copy).ok_or_else(|| no_such("download", copy))?;
        check_length("download", copy, &download.view, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let mapping = &download.mapping;
        let Some(staging) = &download.staging else {
            let slot = download.view.slot;
            let last = self.last_use[slot].lock().clone();
            let (start, lead, len) = map_range(&download.view);
            return read(shared, &slots[slot], start..start + len, lead, mapping, last, bytes);
        };
        let filled = download.filled.lock().clone();
        let index = filled.unwrap_or_else(|| {
            let mut encoder = shared.device.create_command_encoder(&Default::default());
            let uploads = self.record_uploads(slots, &mut encoder);
            download.record(slots, &mut encoder);
            let index = shared.queue.submit([encoder.finish()]);
            self.submitted(uploads, None, index.clone());
            index
        });
        read(shared, staging, 0..bytes.len() as u64, 0, mapping, Some(index), bytes)
    }
}

impl Download {
    fn record(&self, slots: &[wgpu::Buffer], encoder: &mut wgpu::CommandEncoder) {
        let Some(staging) = &self.staging else { return };
        let (offset, bytes) = (self.view.offset as u64, self.view.bytes as u64);
        encoder.copy_buffer_to_buffer(&slots[self.view.slot], offset, staging, 0, bytes);
    }
}

/// The range to map for a view: first byte, bytes before the view in it, and length. wgpu maps
/// from multiples of 8.
fn map_range(view: &View) -> (u64, usize, u64) {
    let lead = view.offset % wgpu::MAP_ALIGNMENT as usize;
    ((view.offset - lead) as u64, lead, (lead + view.bytes) as u64)
}

/// Maps `range` of `buffer` after submission `last` and copies from `lead` bytes into it on.
fn read(
    shared: &Shared,
    buffer: &wgpu::Buffer,
    range: std::ops::Range<u64>,
    lead: usize,
    mapping: &Arc<Mapping>,
    last: Option<SubmissionIndex>,
    bytes: &mut [u8],
) -> Result<(), BackendError> {
    let slice = buffer.slice(range);
    mapping.request(MapMode::Read, slice);
    mapping.wait(shared, last)?;
    let copied = slice.get_mapped_range().map(|mapped| {
        bytes.copy_from_slice(&mapped[lead..lead + bytes.len()]);
    });
    finish(shared, buffer, mapping, copied)
}

/// Reads the first bytes of a host-readable buffer after submission `index`.
pub(crate) fn read_mapped(
    shared: &Shared,
    buffer: &wgpu::Buffer,
    index: SubmissionIndex,
    bytes: &mut [u8],
) -> Result<(), BackendError> {
    let range = 0..bytes.len() as u64;
    read(shared, buffer, range, 0, &Arc::default(), Some(index), bytes)
}

fn finish(
    shared: &Shared,
    buffer: &wgpu::Buffer,
    mapping: &Mapping,
    result: Result<(), wgpu::MapRangeError>,
) -> Result<(), BackendError> {
    buffer.unmap();
    mapping.0.store(UNMAPPED, Ordering::Release);
    result.map_err(|e| shared.fault.lost(e))
}

/// Whether host and device may share buffers where a program allows it.
fn direct(shared: &Shared) -> bool {
    let possible = shared.features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
    match shared.transfer {
        Transfer::Staged => false,
        Transfer::Direct => possible,
        Transfer::Auto => {
            possible
                && shared.info.unified_memory
                && *shared.direct_is_faster.get_or_init(|| direct_is_faster(shared))
        }
    }
}

/// Measures a round trip of a typical tensor both ways, some milliseconds.
fn direct_is_faster(shared: &Shared) -> bool {
    const BYTES: usize = 1 << 20;
    const ROUNDS: usize = 5;
    let view = View { slot: 0, offset: 0, bytes: BYTES };
    let spec = ProgramSpec {
        slots: vec![BYTES],
        uploads: vec![view],
        downloads: vec![view],
        ..ProgramSpec::default()
    };
    let mut host = vec![0u8; BYTES];
    let mut best_ns = |direct: bool| -> Result<u128, BackendError> {
        let transfers = Transfers::with(shared, &spec, direct);
        let slots = transfers.slot_buffers(shared, &spec);
        let mut best = u128::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            transfers.upload(shared, &slots, 0, &host)?;
            transfers.download(shared, &slots, 0, &mut host)?;
            best = best.min(start.elapsed().as_nanos());
        }
        Ok(best)
    };
    let measured = shared
        .fault
        .scoped(&shared.device, "measuring copies", || Ok((best_ns(false)?, best_ns(true)?)));
    copies::direct_is_faster(measured)
}
