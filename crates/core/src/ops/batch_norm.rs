//! BatchNormalization (inference).

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
