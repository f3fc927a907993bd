//! QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
