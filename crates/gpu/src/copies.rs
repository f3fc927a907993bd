//! What may be copied how: from a program's description, and as it was measured.

use sparoa_core::backend::{Arg, BackendError, ProgramSpec, View};

/// A download is copied eagerly unless more segments than this write its bytes: each of them pays
/// for the copy.
const MAX_EAGER_WRITERS: usize = 4;

/// Which copies are direct where the program allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direct {
    pub(crate) uploads: bool,
    /// Downloads of so many bytes at most.
    pub(crate) downloads: usize,
}

impl From<bool> for Direct {
    /// All or none.
    fn from(direct: bool) -> Direct {
        Direct { uploads: direct, downloads: if direct { usize::MAX } else { 0 } }
    }
}

/// Which copies may be direct and which eager, from the program alone.
pub(crate) struct Plan {
    pub(crate) direct_uploads: Vec<bool>,
    pub(crate) direct_downloads: Vec<bool>,
    /// Segments after which each download is copied; empty when it is copied on demand.
    pub(crate) eager_after: Vec<Vec<usize>>,
}

/// Whether two views share bytes.
pub(crate) fn overlap(a: &View, b: &View) -> bool {
    a.slot == b.slot && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
}

/// What a program's tasks read from slots.
pub(crate) fn read_views(spec: &ProgramSpec) -> impl Iterator<Item = &View> {
    spec.tasks.iter().flat_map(|t| t.inputs.iter().flatten()).filter_map(|arg| match arg {
        Arg::Slot(view, _) => Some(view),
        Arg::Constant(_) => None,
    })
}

/// What a program's tasks write.
pub(crate) fn written_views(spec: &ProgramSpec) -> impl Iterator<Item = &View> {
    spec.tasks.iter().flat_map(|t| t.outputs.iter().map(|(view, _)| view))
}

impl Plan {
    /// The plan's events order everything that touches the same bytes, except two readers. So a
    /// slot may be mapped for a copy if every other view of it overlaps the copy's (disjoint ones
    /// may be in use at the same time: parts of a split value) and, for a download, no kernel
    /// reads these bytes and no staged copy writes them.
    pub(crate) fn new(spec: &ProgramSpec, direct: Direct) -> Plan {
        let overlaps_all = |copy: &View| {
            read_views(spec)
                .chain(written_views(spec))
                .chain(&spec.uploads)
                .chain(&spec.downloads)
                .all(|view| view.slot != copy.slot || overlap(view, copy))
        };
        let direct_uploads: Vec<bool> =
            spec.uploads.iter().map(|copy| direct.uploads && overlaps_all(copy)).collect();
        let uploaded = |copy: &View| spec.uploads.iter().any(|upload| overlap(upload, copy));
        let direct_downloads: Vec<bool> = spec
            .downloads
            .iter()
            .map(|copy| {
                let read = read_views(spec).any(|view| overlap(view, copy));
                let mut uploads = spec.uploads.iter().zip(&direct_uploads);
                let staged = uploads.any(|(view, &direct)| !direct && overlap(view, copy));
                copy.bytes <= direct.downloads && !read && !staged && overlaps_all(copy)
            })
            .collect();
        let writes = |segment: &std::ops::Range<usize>, copy: &View| {
            spec.tasks[segment.clone()]
                .iter()
                .any(|task| task.outputs.iter().any(|(view, _)| overlap(view, copy)))
        };
        let eager_after = spec
            .downloads
            .iter()
            .zip(&direct_downloads)
            .map(|(copy, &direct)| {
                let writers: Vec<usize> = spec
                    .segments
                    .iter()
                    .enumerate()
                    .filter(|(_, segment)| writes(segment, copy))
                    .map(|(i, _)| i)
                    .collect();
                let eager = !direct && !uploaded(copy) && writers.len() <= MAX_EAGER_WRITERS;
                if eager { writers } else { Vec::new() }
            })
            .collect();
        Plan { direct_uploads, direct_downloads, eager_after }
    }
}

/// Gives what may be downloaded directly slots of its own, as far as only the device's kernels write it
/// and none reads it: plans let values share slots that are not in use at the same time.
pub(crate) fn give_own_slots(spec: &mut ProgramSpec, direct: Direct) {
    let ProgramSpec { values, downloads, tasks, slots, .. } = spec;
    for value in values.iter().filter(|v| v.inputs.is_empty() && v.uploads.is_empty()) {
        let copies = || value.downloads.iter().map(|&i| downloads[i]);
        if value.downloads.is_empty() || copies().any(|copy| copy.bytes > direct.downloads) {
            continue;
        }
        let written = |&(task, i): &(usize, usize)| tasks[task].outputs[i].0;
        let views = value.outputs.iter().map(written).chain(copies());
        let bytes = views.map(|view| view.offset + view.bytes).max().unwrap_or(0);
        for &(task, i) in &value.outputs {
            tasks[task].outputs[i].0.slot = slots.len();
        }
        for &i in &value.downloads {
            downloads[i].slot = slots.len();
        }
        slots.push(bytes);
    }
}

/// A copy that the program does not have.
pub(crate) fn no_such(what: &str, index: usize) -> BackendError {
    BackendError::Kernel {
        task: format!("{what} {index}"),
        detail: "the program has no such copy".to_owned(),
    }
}

/// Refuses bytes of the host that are not as many as the plan's.
pub(crate) fn check_length(
    what: &str,
    copy: usize,
    view: &View,
    len: usize,
) -> Result<(), BackendError> {
    if view.bytes == len {
        return Ok(());
    }
    Err(BackendError::Kernel {
        task: format!("{what} {copy}"),
        detail: format!("the host has {len} bytes, the plan {}", view.bytes),
    })
}

/// Whether direct copies are faster than staged ones, by nanoseconds of a round trip with either. A
/// failure counts as "no".
pub(crate) fn direct_is_faster(measured: Result<(u128, u128), BackendError>) -> bool {
    match measured {
        Ok((staged_ns, direct_ns)) => {
            tracing::debug!(staged_ns, direct_ns, "round trip of 1 MiB");
            direct_ns < staged_ns
        }
        Err(error) => {
            tracing::warn!(%error, "direct copies do not work here, staging instead");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use sparoa_core::{
        backend::{TaskSpec, ValueAccesses},
        ops,
        tensor::TensorType,
    };

    use super::*;

    fn view(slot: usize, offset: usize, bytes: usize) -> View {
        View { slot, offset, bytes }
    }

    fn task(inputs: &[View], output: View) -> TaskSpec {
        let relu = ops::find("", "Conv").unwrap();
        let op = (relu.parse)(&ops::Attributes::default()).unwrap();
        let ty = |v: &View| TensorType::f32([v.bytes / 4]);
        TaskSpec {
            name: "t".into(),
            op,
            inputs: inputs.iter().map(|v| Some(Arg::Slot(*v, ty(v)))).collect(),
            outputs: vec![(output, ty(&output))],
        }
    }

    #[test]
    fn direct_copies_only_where_nothing_else_can_be_using_the_slot() {
        let spec = ProgramSpec {
            // Slot 1 is a split value: one half computed here, the other uploaded.
            tasks: vec![
                task(&[view(0, 0, 64)], view(1, 0, 32)),
                task(&[view(1, 0, 64)], view(2, 0, 64)),
            ],
            segments: vec![0..1, 1..2],
            slots: vec![64, 64, 64],
            uploads: vec![view(0, 0, 64), view(1, 32, 32)],
            downloads: vec![view(1, 0, 32), view(2, 0, 64)],
            beside_cpu: true,
            values: Vec::new(),
        };
        let plan = Plan::new(&spec, true.into());
        assert_eq!(plan.direct_uploads, [true, false]);
        assert_eq!(plan.direct_downloads, [false, true]);
        assert_eq!(plan.eager_after, [vec![0], vec![]]);
        let plan = Plan::new(&spec, false.into());
        assert_eq!(plan.direct_uploads, [false, false]);
        assert_eq!(plan.eager_after, [vec![0], vec![1]]);
    }

    #[test]
    fn what_a_staged_copy_writes_is_not_read_directly() {
        let spec = ProgramSpec {
            // The kernel's half keeps the upload of the other one from being direct.
            tasks: vec![task(&[view(0, 0, 64)], view(1, 0, 32))],
            segments: vec![0..1],
            slots: vec![64, 64],
            uploads: vec![view(0, 0, 64), view(1, 32, 32)],
            downloads: vec![view(1, 0, 64)],
            ..ProgramSpec::default()
        };
        let plan = Plan::new(&spec, true.into());
        assert_eq!(plan.direct_uploads, [true, false]);
        assert_eq!(plan.direct_downloads, [false]);
    }

    #[test]
    fn small_downloads_get_slots_of_their_own() {
        let value = |outputs: &[(usize, usize)], inputs: &[(usize, usize)], downloads: &[usize]| {
            let [outputs, inputs] = [outputs, inputs].map(<[_]>::to_vec);
            ValueAccesses { outputs, inputs, uploads: Vec::new(), downloads: downloads.to_vec() }
        };
        let mut spec = ProgramSpec {
            // The second result lies where the first task's input was, the third is read again, and the
            // fourth is large.
            tasks: vec![
                task(&[view(0, 0, 64)], view(1, 0, 64)),
                task(&[view(1, 0, 64)], view(0, 0, 32)),
                task(&[view(1, 0, 64)], view(2, 0, 32)),
                task(&[view(2, 0, 32)], view(3, 0, 128)),
            ],
            segments: vec![0..4],
            slots: vec![64, 64, 32, 128],
            uploads: vec![view(0, 0, 64)],
            downloads: vec![view(0, 0, 32), view(2, 0, 32), view(3, 0, 128)],
            values: vec![
                ValueAccesses { inputs: vec![(0, 0)], uploads: vec![0], ..Default::default() },
                value(&[(0, 0)], &[(1, 0), (2, 0)], &[]),
                value(&[(1, 0)], &[], &[0]),
                value(&[(2, 0)], &[(3, 0)], &[1]),
                value(&[(3, 0)], &[], &[2]),
            ],
            ..ProgramSpec::default()
        };
        let small = Direct { uploads: false, downloads: 64 };
        assert_eq!(Plan::new(&spec, small).direct_downloads, [false; 3]);
        give_own_slots(&mut spec, small);
        assert_eq!(spec.slots, [64, 64, 32, 128, 32]);
        assert_eq!(spec.downloads, [view(4, 0, 32), view(2, 0, 32), view(3, 0, 128)]);
        assert_eq!(spec.tasks[1].outputs[0].0, view(4, 0, 32));
        let plan = Plan::new(&spec, small);
        assert_eq!(plan.direct_uploads, [false]);
        assert_eq!(plan.direct_downloads, [true, false, false]);
        assert_eq!(plan.eager_after, [vec![], vec![0], vec![0]]);
        let before = spec.slots.len();
        give_own_slots(&mut spec, false.into());
        assert_eq!(spec.slots.len(), before);
    }
}
