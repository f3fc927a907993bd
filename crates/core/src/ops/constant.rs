//! Constant, ConstantOfShape, Range, OneHot, EyeLike.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
