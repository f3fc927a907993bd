//! Integer arithmetic: QLinearConv, ConvInteger, QLinearMatMul, MatMulInteger.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
