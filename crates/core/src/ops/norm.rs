//! LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization, LpNormalization, LRN.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
