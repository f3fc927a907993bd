//! The proof obligations of a plan, checked on every compilation and independently of it: the
//! engine's raw memory relies on them.
//!
//! Checked: every step is on its lane and every item is performed once, in order; no deadlock;
//! every range lies in its buffer and every buffer in its memory; two buffers that overlap in
//! memory are never in use at the same time; whatever is read was written before, on that device,
//! completely; and what is written is written once.

use super::{
    ARENA_ALIGN, Arg, HostPlace, Lane, OutputBytes, Plan, Step,
    clocks::{Access, Clocks, accesses},
    memory::{Life, output_buffers},
};

/// A proof obligation that a plan breaks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum PlanError {
    /// A step that its lane cannot perform.
    #[error("{step:?} is on the {lane} lane")]
    WrongLane { lane: Lane, step: Step },
    /// Items out of range, missing, repeated or out of order.
    #[error("item {item} of the {lane} lane is missing, repeated, out of order or out of range")]
    Order { lane: Lane, item: usize },
    /// A lane waits for ever.
    #[error("the {lane} lane waits for ever")]
    Deadlock { lane: Lane },
    /// An event is not signalled once and awaited.
    #[error("event {event}: {what}")]
    Event { event: usize, what: &'static str },
    /// A range leaves its buffer or its memory.
    #[error("buffer '{buffer}': {what}")]
    Bounds { buffer: String, what: &'static str },
    /// Two buffers use the same memory at the same time.
    #[error("buffers '{a}' and '{b}' use the same memory at the same time")]
    Overlap { a: String, b: String },
    /// Bytes are read that are not certain to have been written.
    #[error("item {item} of the {lane} lane reads '{buffer}' before it is written")]
    Unwritten { lane: Lane, item: usize, buffer: String },
    /// Bytes are written twice, or while somebody reads them.
    #[error("item {item} of the {lane} lane writes '{buffer}' where another access may come first")]
    Race { lane: Lane, item: usize, buffer: String },
}

/// Checks a plan.
///
/// # Errors
/// The first obligation broken.
pub fn verify(plan: &Plan) -> Result<(), PlanError> {
    let clocks = Clocks::of(plan)?;
    let items = [plan.cpu.len(), plan.gpu.len(), plan.uploads.len(), plan.downloads.len()];
    for lane in Lane::ALL {
        let performed = clocks.start[lane.index()].len();
        if performed != items[lane.index()] {
            return Err(PlanError::Order { lane, item: performed });
        }
    }
    let touches = accesses(plan, &clocks)?;
    bounds(plan, &touches)?;
    for (b, list) in touches.iter().enumerate() {
        for host in [true, false] {
            contents(plan, b, list, host)?;
        }
    }
    for place in &plan.outputs {
        if let OutputBytes::Buffer(b) = place.source {
            output(plan, b, place.ty.bytes(), touches.get(b), &clocks)?;
        }
    }
    sharing(plan, &touches)
}

fn bounds(plan: &Plan, touches: &[Vec<Access<'_>>]) -> Result<(), PlanError> {
    for (buffer, list) in plan.buffers.iter().zip(touches) {
        let broken = |what| Err(PlanError::Bounds { buffer: buffer.name.clone(), what });
        if list.iter().any(|a| a.range.start > a.range.end || a.range.end > buffer.bytes) {
            return broken("a range leaves it");
        }
        if list.iter().any(|a| a.host) {
            match buffer.host {
                None => return broken("it is used on the host but has no place there"),
                Some(HostPlace::Input(_)) if list.iter().any(|a| a.host && a.write) => {
                    return broken("a graph input is written");
                }
                Some(HostPlace::Input(_)) => {}
                Some(HostPlace::Arena(offset)) => {
                    if offset % ARENA_ALIGN != 0 {
                        return broken("its offset is not aligned");
                    }
                    if offset.checked_add(buffer.bytes).is_none_or(|end| end > plan.arena_bytes) {
                        return broken("it leaves the arena");
                    }
                }
            }
        }
        if list.iter().any(|a| !a.host) {
            let Some(&bytes) = buffer.slot.and_then(|s| plan.slots.get(s)) else {
                return broken("it is used on the device but has no slot");
            };
            if buffer.bytes > bytes {
                return broken("it leaves its slot");
            }
            let aligned =
                |a: &Access<'_>| a.range.start.is_multiple_of(4) && a.range.end.is_multiple_of(4);
            if !list.iter().filter(|a| !a.host).all(aligned) {
                return broken("a device range is not a multiple of 4 bytes");
            }
        }
    }
    for task in plan.cpu.iter().chain(&plan.gpu) {
        let regions = task.inputs.iter().flatten().filter_map(|arg| match arg {
            Arg::Region(region) => Some(region),
            Arg::Constant { .. } => None,
        });
        for region in regions.chain(&task.outputs) {
            if region.offset % region.ty.dtype.size() != 0 {
                let buffer = plan.buffers[region.buffer].name.clone();
                return Err(PlanError::Bounds { buffer, what: "an element is not aligned" });
            }
        }
    }
    Ok(())
}

/// Within one buffer on one device: reads are covered by earlier writes, writes do not meet.
fn contents(plan: &Plan, b: usize, list: &[Access<'_>], host: bool) -> Result<(), PlanError> {
    let buffer = &plan.buffers[b];
    let given = host && matches!(buffer.host, Some(HostPlace::Input(_)));
    let here = || list.iter().filter(|a| a.host == host && !a.range.is_empty());
    let meet =
        |a: &Access<'_>, b: &Access<'_>| a.range.start < b.range.end && b.range.start < a.range.end;
    for write in here().filter(|a| a.write) {
        let same = |a: &Access<'_>| a.lane == write.lane && a.item == write.item;
        for other in here().filter(|a| meet(a, write)) {
            let race = if other.write {
                // Written once: another write of the same bytes is an error, ordered or not.
                !std::ptr::eq(other, write)
            } else {
                same(other) || !Clocks::done(other.clock, write.lane, write.item)
            };
            if race {
                return Err(PlanError::Race {
                    lane: write.lane,
                    item: write.item,
                    buffer: buffer.name.clone(),
                });
            }
        }
    }
    for read in here().filter(|a| !a.write) {
        if !given && !covered(&read.range, here().filter(|a| a.write)) {
            return Err(PlanError::Unwritten {
                lane: read.lane,
                item: read.item,
                buffer: buffer.name.clone(),
            });
        }
    }
    Ok(())
}

/// Whether the writes together cover the range. That each comes before is checked apart.
fn covered<'a, 'b: 'a>(
    range: &std::ops::Range<usize>,
    writes: impl Iterator<Item = &'a Access<'b>>,
) -> bool {
    let mut parts: Vec<_> = writes.map(|w| (w.range.start, w.range.end)).collect();
    parts.sort_unstable();
    let mut at = range.start;
    for (start, end) in parts {
        if start <= at {
            at = at.max(end);
        }
    }
    at >= range.end
}

/// A graph output is complete on the host when the CPU lane ends.
fn output(
    plan: &Plan,
    b: usize,
    bytes: usize,
    touches: Option<&Vec<Access<'_>>>,
    clocks: &Clocks,
) -> Result<(), PlanError> {
    let Some(list) = touches else {
        return Err(PlanError::Order { lane: Lane::Cpu, item: plan.cpu.len() });
    };
    let name = || plan.buffers[b].name.clone();
    if bytes != plan.buffers[b].bytes {
        return Err(PlanError::Bounds { buffer: name(), what: "an output has another size" });
    }
    let writes = || list.iter().filter(|a| a.host && a.write);
    let complete = covered(&(0..bytes), writes())
        && writes().all(|w| Clocks::done(&clocks.finish, w.lane, w.item));
    if complete {
        return Ok(());
    }
    Err(PlanError::Unwritten { lane: Lane::Cpu, item: plan.cpu.len(), buffer: name() })
}

/// Buffers that overlap in memory are in use one after the other.
fn sharing(plan: &Plan, touches: &[Vec<Access<'_>>]) -> Result<(), PlanError> {
    let outputs = output_buffers(plan);
    for host in [true, false] {
        // (memory, first byte, end, buffer, life), sorted so that only neighbours need a look.
        let mut uses: Vec<(usize, usize, usize, usize, Life)> = Vec::new();
        for (b, buffer) in plan.buffers.iter().enumerate() {
            let Some(life) = Life::of(&touches[b], host, outputs[b]) else { continue };
            let (memory, start) = match (host, buffer.host, buffer.slot) {
                (true, Some(HostPlace::Arena(offset)), _) => (0, offset),
                (true, _, _) => continue,
                (false, _, slot) => (slot.unwrap_or(usize::MAX), 0),
            };
            if buffer.bytes > 0 {
                uses.push((memory, start, start + buffer.bytes, b, life));
            }
        }
        uses.sort_by_key(|u| (u.0, u.1));
        for (i, a) in uses.iter().enumerate() {
            let overlapping = uses[i + 1..].iter().take_while(|b| b.0 == a.0 && b.1 < a.2);
            for b in overlapping {
                if !a.4.apart(&b.4) {
                    return Err(PlanError::Overlap {
                        a: plan.buffers[a.3].name.clone(),
                        b: plan.buffers[b.3].name.clone(),
                    });
                }
            }
        }
    }
    Ok(())
}
