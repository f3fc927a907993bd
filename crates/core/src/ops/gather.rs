//! Gather, GatherElements, GatherND.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
