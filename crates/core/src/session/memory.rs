//! A limit on memory: what a plan takes, counted before it is prepared as far as that can be known and
//! again when it is, and the refusal that says how much is missing.

use std::collections::HashSet;

use super::SessionError;
use crate::{
    engine::Engine,
    ir::Graph,
    plan::{Arg, Plan, Task},
};

/// Bytes of a plan on both processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// On the host: run-time values, scratch, weights.
    pub host: usize,
    /// On the device: slots, weights, staging.
    pub device: usize,
}

impl Footprint {
    /// What a plan takes at least: values and weights as the model has them. Packing pads, and some
    /// convolutions keep their weights transformed: prepared, a plan may take more.
    pub fn least(plan: &Plan, graph: &Graph) -> Footprint {
        let weights = |tasks: &[Task]| -> usize {
            let mut seen = HashSet::new();
            let constants = tasks.iter().flat_map(|task| task.inputs.iter().flatten());
            constants
                .filter_map(|arg| match arg {
                    Arg::Constant { value, slice, ty } => Some((value, slice, ty)),
                    Arg::Region(_) => None,
                })
                .filter(|&(value, slice, _)| seen.insert((*value, slice.clone())))
                .map(|(value, slice, ty)| match slice {
                    Some(_) => ty.bytes(),
                    None => graph.value(*value).ty.bytes(),
                })
                .sum()
        };
        Footprint {
            host: plan.arena_bytes + weights(&plan.cpu),
            device: plan.slots.iter().sum::<usize>() + weights(&plan.gpu),
        }
    }

    /// What a prepared plan takes.
    pub fn of(engine: &Engine) -> Footprint {
        Footprint { host: engine.host_bytes(), device: engine.device_bytes() }
    }

    /// Both processors' together: on most machines at the edge they share their memory.
    pub fn total(&self) -> usize {
        self.host + self.device
    }

    /// Whether it stays within a limit.
    ///
    /// # Errors
    /// [`SessionError::MemoryLimit`] with what is missing.
    pub fn within(&self, limit: Option<usize>) -> Result<(), SessionError> {
        let Some(limit) = limit else { return Ok(()) };
        match self.total().checked_sub(limit) {
            None | Some(0) => Ok(()),
            Some(shortfall) => Err(SessionError::MemoryLimit {
                limit,
                host: self.host,
                device: self.device,
                shortfall,
            }),
        }
    }
}
