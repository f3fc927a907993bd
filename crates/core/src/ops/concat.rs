//! Concat, Split.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
