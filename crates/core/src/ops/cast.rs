//! Cast, CastLike.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
