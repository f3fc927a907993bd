//! Shape, Size.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
