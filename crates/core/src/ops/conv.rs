//! Conv: 1-d and 2-d convolution, NCHW as in ONNX or NHWC after the layout pass, with fused epilogue.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
