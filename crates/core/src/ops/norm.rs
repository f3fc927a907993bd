//! Normalisations: by the statistics of rows, groups of channels or whole images, and by norms.

mod group;
mod layer;
mod local;
mod scaled;

pub use group::GroupNorm;
pub use layer::LayerNorm;
pub use local::LocalResponseNorm;
pub use scaled::{LpNorm, MeanVarianceNorm};

use super::{OpError, OpSpec, Operand};

pub(super) const SPECS: &[OpSpec] = &[
    layer::LAYER,
    layer::RMS,
    layer::SIMPLIFIED,
    layer::SKIP,
    layer::SKIP_SIMPLIFIED,
    group::INSTANCE,
    group::GROUP,
    group::GROUP_LAST,
    group::INSTANCE_LAST,
    local::SPEC,
    local::LAST,
    scaled::LP,
    scaled::MEAN_VARIANCE,
];

/// Refuses a scale or shift that does not have `len` elements.
fn check_len(parameter: &Operand, len: usize, name: &str) -> Result<(), OpError> {
    if parameter.ty.len() == len {
        return Ok(());
    }
    Err(OpError::invalid(format!(
        "input {name} has shape {:?}, must have {len} elements",
        parameter.shape()
    )))
}
