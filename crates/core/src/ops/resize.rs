//! Resize, Upsample.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
