//! Attention: softmax(q k^T scale + bias) v without materialised scores.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
