//! What a task's kernel is made of: dispatches of our own, and computations that a library may take
//! over.

use std::sync::Arc;

use sparoa_core::{
    backend::{BackendError, TaskSpec},
    ops::{Binding, Halves, Standard},
};

use super::{
    driver::{Address, DeviceMemory},
    libraries::{Call, Known, Operands, Scratch, Sizes, Way},
    load::Places,
    opened::Shared,
    program::Step,
};
use crate::{
    bind::{Binder, Bindings, Bound, Described},
    residency::Resident,
};

type Buffers = Bindings<DeviceMemory>;

/// A piece of a task.
pub(crate) enum Part {
    /// A dispatch.
    Kernel(Buffers),
    /// A computation that is not decided yet.
    Open(Box<Candidate>, Vec<Buffers>),
    /// One that a library does.
    Library(Box<Candidate>, Way),
}

/// A computation and its operands.
pub(crate) struct Candidate {
    standard: Standard,
    x: Bound<DeviceMemory>,
    y: Bound<DeviceMemory>,
    residual: Option<Bound<DeviceMemory>>,
    weight: Arc<Resident<DeviceMemory>>,
    bias: Option<Arc<Resident<DeviceMemory>>>,
    finish: Option<Buffers>,
    /// The texts of the dispatches that it stands for.
    text: String,
    /// Where these have the operands: for each, left side, residual or result by their buffers.
    roles: Vec<Vec<Role>>,
}

/// What a buffer of a dispatch is to the computation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    X,
    Y,
    Residual,
    Other,
}

/// The parts of a task's kernel, with what is known of its computations.
pub(crate) fn of(
    shared: &Shared,
    binder: &Binder<'_, DeviceMemory>,
    task: &TaskSpec,
    halves: Halves,
    temps: &mut Vec<usize>,
) -> Result<Vec<Part>, BackendError> {
    let mut described = binder.describe(task, halves, temps)?;
    let standards = std::mem::take(&mut described.kernel.standards);
    let dispatch = |i: usize| binder.dispatch(task, &described, &described.kernel.dispatches[i]);
    let (mut parts, mut next) = (Vec::new(), 0);
    for standard in standards {
        let range = standard.dispatches.clone();
        for i in next..range.start {
            parts.extend(dispatch(i)?.map(Part::Kernel));
        }
        next = range.end;
        let text = text(&described, &standard);
        let known = shared.libraries.known(&standard, &text);
        if matches!(known, Known::Own) {
            next = range.start;
            continue;
        }
        let candidate = Box::new(candidate(binder, task, &described, standard, text)?);
        parts.push(match known {
            Known::Library(way) => Part::Library(candidate, way),
            Known::Own | Known::Unknown => {
                let own = range.filter_map(|i| dispatch(i).transpose());
                Part::Open(candidate, own.collect::<Result<_, _>>()?)
            }
        });
    }
    for i in next..described.kernel.dispatches.len() {
        parts.extend(dispatch(i)?.map(Part::Kernel));
    }
    Ok(parts)
}

/// What tells our own kernels for a computation apart.
fn text(described: &Described, standard: &Standard) -> String {
    let dispatches = &described.kernel.dispatches[standard.dispatches.clone()];
    let all = dispatches.iter().chain(&standard.finish);
    all.map(|d| format!("{}{:?}{:?}", d.source, d.params, d.grid)).collect()
}

fn candidate(
    binder: &Binder<'_, DeviceMemory>,
    task: &TaskSpec,
    described: &Described,
    standard: Standard,
    text: String,
) -> Result<Candidate, BackendError> {
    let buffer = |binding: Binding| binder.buffer(task, &described.kernel, binding);
    let role = |binding: &Binding| match *binding {
        binding if binding == standard.x => Role::X,
        binding if binding == standard.y => Role::Y,
        binding if Some(binding) == standard.residual => Role::Residual,
        _ => Role::Other,
    };
    let dispatches = &described.kernel.dispatches[standard.dispatches.clone()];
    let roles = dispatches.iter().chain(&standard.finish);
    let roles = roles.map(|d| d.bindings.iter().map(role).collect()).collect();
    let finish = match &standard.finish {
        Some(finish) => binder.dispatch(task, described, finish)?,
        None => None,
    };
    Ok(Candidate {
        x: buffer(standard.x)?,
        y: buffer(standard.y)?,
        residual: standard.residual.map(buffer).transpose()?,
        weight: (binder.resident)(&standard.weight)?,
        bias: standard.bias.as_ref().map(|bias| (binder.resident)(bias)).transpose()?,
        finish,
        text,
        roles,
        standard,
    })
}

/// Decides what is open, by measuring.
pub(crate) fn choose(places: &Places<'_>, tasks: &mut [Vec<Part>]) -> Result<(), BackendError> {
    let shared = places.shared;
    let mut scratch = None;
    for parts in tasks {
        let mut chosen = Vec::with_capacity(parts.len());
        for part in parts.drain(..) {
            let Part::Open(candidate, own) = part else {
                chosen.push(part);
                continue;
            };
            let Candidate { standard, text, .. } = &*candidate;
            // One like it may have been measured a moment ago.
            let way = match shared.libraries.known(standard, text) {
                Known::Library(way) => Some(way),
                Known::Own => None,
                Known::Unknown => {
                    if scratch.is_none() {
                        let context = &shared.context;
                        scratch = Some(shared.run("measuring", || Scratch::new(context))?);
                    }
                    let scratch = scratch.as_mut().expect("made above");
                    match scratch.open() {
                        true => candidate.measure(places, scratch, &own)?,
                        false => None,
                    }
                }
            };
            match way {
                Some(way) => chosen.push(Part::Library(candidate, way)),
                None => chosen.extend(own.into_iter().map(Part::Kernel)),
            }
        }
        *parts = chosen;
    }
    shared.libraries.save();
    Ok(())
}

impl Candidate {
    /// Measures it with our own kernel and a library's ways; the way to take, if there is one. Where there
    /// is no memory to measure in, none is taken.
    fn measure(
        &self,
        places: &Places<'_>,
        scratch: &mut Scratch,
        own: &[Buffers],
    ) -> Result<Option<Way>, BackendError> {
        let shared = places.shared;
        let bytes = |bound: &Bound<DeviceMemory>| match bound {
            Bound::Slot(view) => view.bytes,
            Bound::Resident(resident) => resident.bytes,
            Bound::Temp(i) => places.temp_bytes(*i),
        };
        let y = bytes(&self.y);
        let sizes = Sizes {
            x: bytes(&self.x),
            weight: self.weight.bytes,
            bias: self.bias.as_ref().map_or(0, |bias| bias.bytes),
            // What is added last is no operand of the library's, but a buffer of ours.
            residual: y,
            y,
        };
        let operands = match shared.run("measuring", || scratch.operands(&sizes)) {
            Ok(operands) => operands,
            Err(BackendError::OutOfMemory { detail, .. }) => {
                tracing::debug!(detail, "no library was measured");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let refuse = |detail: String| BackendError::Kernel { task: "measuring".to_owned(), detail };
        let launch = |bindings: &Buffers, roles: &[Role]| {
            let address = |i: usize, bound: &Bound<DeviceMemory>| match roles[i] {
                Role::X => operands.x,
                Role::Y => operands.y,
                Role::Residual => operands.residual,
                Role::Other => places.address(bound, bindings.halves >> i & 1 == 1),
            };
            places.launch(bindings, &address).map_err(refuse)
        };
        let launches = own.iter().zip(&self.roles).map(|(bindings, roles)| launch(bindings, roles));
        let launches = launches.collect::<Result<Vec<_>, _>>()?;
        let finish = match (&self.finish, self.roles.last()) {
            (Some(bindings), Some(roles)) => Some(launch(bindings, roles)?),
            _ => None,
        };
        shared.run("measuring", || {
            let both = [launches.as_slice(), finish.as_slice()];
            shared.libraries.decide(scratch, &self.standard, &self.text, &operands, both)
        })
    }

    fn operands(&self, places: &Places<'_>, workspace: Address) -> Operands {
        let Standard { half_x, half_y, .. } = self.standard;
        let resident = |constant: &Option<Arc<Resident<DeviceMemory>>>| {
            constant.as_ref().map_or(0, |constant| constant.buffer.address)
        };
        Operands {
            x: places.address(&self.x, half_x),
            weight: self.weight.buffer.address,
            bias: resident(&self.bias),
            residual: self.residual.as_ref().map_or(0, |bound| places.address(bound, half_y)),
            y: places.address(&self.y, half_y),
            workspace,
        }
    }
}

impl Part {
    /// The dispatches that it may launch.
    pub(crate) fn kernels(&self) -> impl Iterator<Item = &Buffers> {
        let (one, own, finish) = match self {
            Part::Kernel(bindings) => (Some(bindings), [].as_slice(), None),
            Part::Open(candidate, own) => (None, own.as_slice(), candidate.finish.as_ref()),
            Part::Library(candidate, _) => (None, [].as_slice(), candidate.finish.as_ref()),
        };
        one.into_iter().chain(own).chain(finish)
    }

    /// Bytes of workspace.
    pub(crate) fn workspace(&self) -> usize {
        match self {
            Part::Library(_, way) => way.workspace(),
            Part::Kernel(_) | Part::Open(..) => 0,
        }
    }

    /// Tells `keep` what must stay on the device for it.
    pub(crate) fn residents(&self, keep: &mut dyn FnMut(&Arc<Resident<DeviceMemory>>)) {
        let mut bound = |bound: &Bound<DeviceMemory>| {
            if let Bound::Resident(resident) = bound {
                keep(resident);
            }
        };
        for bindings in self.kernels() {
            bindings.buffers.iter().for_each(&mut bound);
        }
        if let Part::Library(candidate, _) = self {
            let Candidate { x, y, residual, weight, bias, .. } = &**candidate;
            [Some(x), Some(y), residual.as_ref()].into_iter().flatten().for_each(&mut bound);
            keep(weight);
            bias.iter().for_each(keep);
        }
    }

    /// Adds what it queues. `workspace`: where that of libraries is.
    pub(crate) fn steps(
        &self,
        places: &Places<'_>,
        workspace: Address,
        steps: &mut Vec<Step>,
    ) -> Result<(), String> {
        match self {
            Part::Kernel(bindings) => steps.push(Step::Kernel(places.own(bindings)?)),
            Part::Open(_, own) => {
                for bindings in own {
                    steps.push(Step::Kernel(places.own(bindings)?));
                }
            }
            Part::Library(candidate, way) => steps.push(Step::Library(Call {
                way: way.clone(),
                operands: candidate.operands(places, workspace),
                finish: candidate.finish.as_ref().map(|f| places.own(f)).transpose()?,
            })),
        }
        Ok(())
    }
}
