//! Elementwise operators, all one operator over a small expression.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
