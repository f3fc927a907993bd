//! Who walks the lanes of a plan: the caller alone, or with threads of the lanes' own.

use crate::plan::{Lane, Plan, PlanError, Step, overlapping_processors};

/// The order of a plan's steps for a lone caller, and whether that loses nothing.
pub(super) struct Walk {
    /// All working steps: lane and index in it.
    pub sequence: Vec<(Lane, usize)>,
    /// Some CPU task may run while a GPU task runs.
    pub overlaps: bool,
    /// Both processors work as much at once as with threads: copies to the GPU and submissions only
    /// start something there, and no CPU task comes after a download, which waits for it. To wake a
    /// thread costs more, most of all where kernels keep every core busy.
    pub alone: bool,
}

impl Walk {
    pub fn of(plan: &Plan) -> Result<Walk, PlanError> {
        let overlaps = overlapping_processors(plan)?;
        let sequence = sequence(plan);
        let mut lanes = sequence.iter().map(|(lane, _)| *lane);
        let downloads_last =
            !lanes.any(|lane| lane == Lane::DeviceToHost) || !lanes.any(|lane| lane == Lane::Cpu);
        Ok(Walk { sequence, overlaps, alone: !overlaps || downloads_last })
    }
}

/// All lanes' working steps in one order that respects every wait: uploads and submissions as early
/// as they can be, so that the device never starves, and downloads when nothing else is left to do.
fn sequence(plan: &Plan) -> Vec<(Lane, usize)> {
    let mut at = [0usize; 4];
    let mut signalled = vec![false; plan.events];
    let mut sequence = Vec::new();
    // Goes on with a lane up to a wait, or where asked for a signal; true when it moved.
    let mut advance = |lane: Lane, to_signal: bool| {
        let before = at[lane.index()];
        while let Some(&step) = plan.lane(lane).get(at[lane.index()]) {
            match step {
                Step::Wait(event) if !signalled[event] => break,
                Step::Wait(_) => {}
                Step::Signal(event) => signalled[event] = true,
                _ => sequence.push((lane, at[lane.index()])),
            }
            at[lane.index()] += 1;
            if to_signal && matches!(step, Step::Signal(_)) {
                break;
            }
        }
        at[lane.index()] != before
    };
    // Verified: no lane is left waiting.
    loop {
        let started = advance(Lane::HostToDevice, false) | advance(Lane::Gpu, false);
        if started || advance(Lane::Cpu, true) || advance(Lane::DeviceToHost, true) {
            continue;
        }
        return sequence;
    }
}
