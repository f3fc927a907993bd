//! Operators whose output shape depends on run-time values: NonZero, NonMaxSuppression, Compress, Unique.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
