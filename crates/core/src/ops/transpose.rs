//! Transpose.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
