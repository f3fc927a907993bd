//! ReduceSum, ReduceMean, ReduceMax and the rest of the reductions.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
