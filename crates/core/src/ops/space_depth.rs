//! DepthToSpace, SpaceToDepth.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
