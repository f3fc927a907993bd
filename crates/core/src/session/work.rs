//! What the stages of a decision share, and the placements from which all of them set out.

use std::{path::PathBuf, sync::Arc};

use sparoa_kernels::pool::Pool;

use super::{SessionError, memory::Footprint};
use crate::{
    backend::{Accelerator, DeviceInfo},
    energy::EnergyMeter,
    engine::{Engine, KernelCache},
    ir::Graph,
    ops::variant,
    plan::{Place, Placement, Support, compile},
    profile::{CostCache, Profile},
};

/// What the later stages share.
pub(super) struct Work<'a> {
    pub graph: &'a Arc<Graph>,
    pub support: &'a Support,
    pub pool: &'a Arc<Pool>,
    pub kernels: &'a KernelCache,
    pub accelerator: Option<Arc<dyn Accelerator>>,
    pub pins: &'a [Option<Place>],
    /// The processors, as text: the cache's key.
    pub machine: String,
    pub cache_dir: PathBuf,
    pub cache: Option<CostCache>,
    /// The CPU as the session uses it.
    pub cpu: &'a DeviceInfo,
    /// The machine's energy sensors.
    pub meter: Option<EnergyMeter>,
    /// Measure again whatever the cache knows.
    pub fresh: bool,
    /// Bytes that a prepared plan may take.
    pub memory_limit: Option<usize>,
}

impl Work<'_> {
    pub fn cache(&mut self) -> &mut CostCache {
        self.cache.get_or_insert_with(|| match self.fresh {
            true => CostCache::new(&self.machine),
            false => CostCache::load(&self.cache_dir, &self.machine),
        })
    }

    /// Writes the cache; a failure costs the next start time, not this one its result.
    pub fn store(&mut self) {
        if let Some(cache) = &self.cache
            && let Err(e) = cache.store(&self.cache_dir)
        {
            tracing::warn!("{e}");
        }
    }

    /// Tells the operators which kernels were chosen for pruned weights before.
    pub fn recall_variants(&mut self) {
        variant::learn(&self.cache().variants);
    }

    /// Keeps what was chosen since.
    pub fn keep_variants(&mut self) {
        let choices = variant::choices();
        if self.cache().variants != choices {
            self.cache().variants = choices;
            self.store();
        }
    }

    pub fn engine(
        &self,
        placement: &Placement,
        profile: Option<&Profile>,
    ) -> Result<Engine, SessionError> {
        let plan = compile(self.graph, placement, self.support, profile)?;
        Footprint::least(&plan, self.graph).within(self.memory_limit)?;
        let accelerator = self.accelerator.as_deref();
        let engine = Engine::new(plan, self.graph, self.kernels, self.pool, accelerator)?;
        Footprint::of(&engine).within(self.memory_limit)?;
        Ok(engine)
    }

    /// Refuses a limit that no plan can keep, before anything is measured: every plan holds the
    /// weights once, and the values on one processor alone are the fewest.
    pub fn check_limit(&self) -> Result<(), SessionError> {
        if self.memory_limit.is_none() {
            return Ok(());
        }
        let least = |place| -> Result<Footprint, SessionError> {
            let placement = alone(self.graph, self.support, place);
            let plan = compile(self.graph, &placement, self.support, None)?;
            Ok(Footprint::least(&plan, self.graph))
        };
        let (cpu, gpu) = (least(Place::Cpu)?, least(Place::Gpu)?);
        let smaller = if gpu.total() < cpu.total() { gpu } else { cpu };
        smaller.within(self.memory_limit)
    }
}

/// Everything on one processor that runs there.
pub(super) fn alone(graph: &Graph, support: &Support, place: Place) -> Placement {
    let mut placement = Placement::uniform(graph, place);
    for (p, gpu) in placement.places.iter_mut().zip(&support.gpu) {
        if *p == Place::Gpu && gpu.is_err() {
            *p = Place::Cpu;
        }
    }
    placement
}
