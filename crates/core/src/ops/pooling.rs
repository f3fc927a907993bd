//! MaxPool, AveragePool, LpPool, GlobalAveragePool, GlobalMaxPool.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
