//! Gemm, and Linear: a product with a constant matrix, fused with bias, activation and residual.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
