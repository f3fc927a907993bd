//! MatMul of two run-time operands, batched, numpy broadcasting.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
