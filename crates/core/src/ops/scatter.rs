//! ScatterND, ScatterElements.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
