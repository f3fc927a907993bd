//! ConvTranspose.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
