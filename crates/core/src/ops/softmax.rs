//! Softmax, LogSoftmax, Hardmax.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
