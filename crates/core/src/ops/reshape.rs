//! Operators that only rename dimensions: Reshape, Flatten, Squeeze, Unsqueeze, Identity, Dropout.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
