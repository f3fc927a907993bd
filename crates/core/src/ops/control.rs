//! If, Loop.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
