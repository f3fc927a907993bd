//! Expand, Tile.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
