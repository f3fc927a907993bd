//! CumSum, Trilu.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
