//! Places for buffers: offsets in the host arena, slots on the device. Two buffers share memory
//! only if every access of one happens before every access of the other.

use super::{
    ARENA_ALIGN, HostPlace, OutputBytes, Plan, PlanError,
    clocks::{Access, Clock, Clocks, accesses},
};

/// When a buffer is in use on one device.
#[derive(Clone, Copy)]
pub(super) struct Life {
    /// Last item of each lane that touches it, plus one; 0 for none.
    last: Clock,
    /// What is complete, for certain, before any touch.
    first: Clock,
}

impl Life {
    /// The life of a buffer on a device, or `None` when it is never there.
    pub fn of(accesses: &[Access<'_>], host: bool, output: bool) -> Option<Life> {
        let mut life: Option<Life> = None;
        for access in accesses.iter().filter(|a| a.host == host) {
            let life = life.get_or_insert(Life { last: [0; 4], first: [usize::MAX; 4] });
            let l = access.lane.index();
            life.last[l] = life.last[l].max(access.item + 1);
            for (first, clock) in life.first.iter_mut().zip(access.clock) {
                *first = (*first).min(*clock);
            }
        }
        if output && let Some(life) = &mut life {
            // The caller reads it after everything else.
            life.last = [usize::MAX; 4];
        }
        life
    }

    /// Whether every access of this life happens before every access of the other.
    pub fn before(&self, other: &Life) -> bool {
        self.last.iter().zip(&other.first).all(|(last, first)| last <= first)
    }

    /// Whether the two may share memory.
    pub fn apart(&self, other: &Life) -> bool {
        self.before(other) || other.before(self)
    }
}

/// By buffer: whether it holds a graph output.
pub(super) fn output_buffers(plan: &Plan) -> Vec<bool> {
    let mut output = vec![false; plan.buffers.len()];
    for place in &plan.outputs {
        if let OutputBytes::Buffer(buffer) = place.source
            && let Some(o) = output.get_mut(buffer)
        {
            *o = true;
        }
    }
    output
}

/// Gives every buffer its place on the devices that touch it.
pub(super) fn assign(plan: &mut Plan) -> Result<(), PlanError> {
    let clocks = Clocks::of(plan)?;
    let touches = accesses(plan, &clocks)?;
    let output = output_buffers(plan);
    let lives = |host: bool| -> Vec<(usize, Life)> {
        let mut lives: Vec<(usize, Life)> = (0..plan.buffers.len())
            .filter(|&b| !(host && matches!(plan.buffers[b].host, Some(HostPlace::Input(_)))))
            .filter_map(|b| Some((b, Life::of(&touches[b], host, output[b])?)))
            .collect();
        lives.sort_by_key(|&(b, _)| (std::cmp::Reverse(plan.buffers[b].bytes), b));
        lives
    };
    let (host, device) = (lives(true), lives(false));

    // Largest first, each at the lowest offset that no contemporary occupies.
    let mut placed: Vec<(usize, usize, Life)> = Vec::new();
    for (b, life) in host {
        let bytes = plan.buffers[b].bytes.next_multiple_of(ARENA_ALIGN);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, _, other)| !life.apart(other))
            .map(|&(start, end, _)| (start, end))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if start >= offset + bytes {
                break;
            }
            offset = offset.max(end);
        }
        placed.push((offset, offset + bytes, life));
        plan.buffers[b].host = Some(HostPlace::Arena(offset));
        plan.arena_bytes = plan.arena_bytes.max(offset + bytes);
    }

    let mut slots: Vec<Vec<Life>> = Vec::new();
    for (b, life) in device {
        let free = slots.iter().position(|tenants| tenants.iter().all(|t| t.apart(&life)));
        let slot = free.unwrap_or_else(|| {
            slots.push(Vec::new());
            plan.slots.push(plan.buffers[b].bytes);
            slots.len() - 1
        });
        slots[slot].push(life);
        plan.buffers[b].slot = Some(slot);
    }
    Ok(())
}
