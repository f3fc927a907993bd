//! From exact 32-bit sums back to bytes.

use super::zeros;
use crate::{
    ops::KernelIo,
    tensor::{DType, TensorMut},
};

/// The scales of a quantised product: y = round(sum * multiplier) + zero.
pub(super) struct Requantize {
    /// One, or one per output channel.
    multipliers: smallvec::SmallVec<[f32; 1]>,
    zero: f32,
}

impl Requantize {
    /// From the scales of a, b and y and y's zero point, given as input indices.
    pub(super) fn new(io: &KernelIo<'_, '_>, [a, b, y, zero]: [usize; 4]) -> Requantize {
        let (a, y) = (io.input(a).slice::<f32>()[0], io.input(y).slice::<f32>()[0]);
        let b = io.input(b).slice::<f32>();
        Requantize {
            multipliers: b.iter().map(|b| a * b / y).collect(),
            zero: zeros(io.get(zero))[0] as f32,
        }
    }

    fn one(&self, sum: i32, channel: usize) -> f32 {
        let multiplier = match self.multipliers[..] {
            [one] => one,
            _ => self.multipliers[channel],
        };
        (sum as f32 * multiplier).round_ties_even() + self.zero
    }

    /// Writes rows of `channels` sums; element (row, channel) goes to `to(row, channel)`, where
    /// channels count from `first`.
    pub(super) fn write(
        &self,
        sums: &[i32],
        channels: usize,
        first: usize,
        y: &mut TensorMut<'_>,
        to: impl Fn(usize, usize) -> usize,
    ) {
        let values = sums.iter().enumerate().map(|(i, &sum)| {
            let (row, c) = (i / channels, i % channels);
            (to(row, c), self.one(sum, first + c))
        });
        if y.dtype == DType::I8 {
            let y = y.slice_mut::<i8>();
            values.for_each(|(at, v)| y[at] = v as i8);
        } else {
            let y = y.slice_mut::<u8>();
            values.for_each(|(at, v)| y[at] = v as u8);
        }
    }
}
