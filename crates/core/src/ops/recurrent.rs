//! LSTM, GRU, RNN.

use super::OpSpec;

pub(super) const SPECS: &[OpSpec] = &[];
