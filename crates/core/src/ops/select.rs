//! ArgMax, ArgMin, TopK.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
