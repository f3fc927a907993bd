//! From exact 32-bit sums back to bytes.

use super::{Bounds, bounds_within, zeros};
use sparoa_kernels::quantized;

use crate::{
    ops::{KernelIo, Operands},
    tensor::{DType, TensorMut},
};

/// The scales of a quantised product: y = round(sum * multiplier) + zero.
pub(super) struct Requantize {
    /// One, or one per output channel.
    multipliers: smallvec::SmallVec<[f32; 1]>,
    zero: f32,
    bounds: [f32; 2],
}

impl Requantize {
    /// From the scales of a, b and y and y's zero point, given as input indices.
    pub(super) fn new(
        io: &KernelIo<'_, '_>,
        [a, b, y, zero]: [usize; 4],
        bounds: Bounds,
    ) -> Requantize {
        let (a, y) = (io.input(a).slice::<f32>()[0], io.input(y).slice::<f32>()[0]);
        let b = io.input(b).slice::<f32>();
        Requantize {
            multipliers: b.iter().map(|b| a * b / y).collect(),
            zero: zeros(io.get(zero))[0] as f32,
            bounds: bounds_within(bounds, io.outputs[0].dtype).map(|b| b as f32),
        }
    }

    fn one(&self, sum: i32, channel: usize) -> f32 {
        let multiplier = match self.multipliers[..] {
            [one] => one,
            _ => self.multipliers[channel],
        };
        let value = (sum as f32 * multiplier).round_ties_even() + self.zero;
        value.max(self.bounds[0]).min(self.bounds[1])
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

/// The same for kernels that are prepared with the scales: `None` when one is not constant.
pub(super) fn constant(
    x: &Operands<'_>,
    [a, b, y, zero]: [usize; 4],
    bounds: Bounds,
) -> Option<quantized::Requantize> {
    let scales = |i: usize| x.constant(i)?.as_slice::<f32>();
    let (a, y) = (*scales(a)?.first()?, *scales(y)?.first()?);
    Some(quantized::Requantize {
        multipliers: scales(b)?.iter().map(|b| a * b / y).collect(),
        zero: *zeros(Some(x.constant(zero)?.view())).first()?,
        bounds: bounds_within(bounds, x.output(0).dtype),
    })
}

/// Type and zero point of input `at`, if the zero point (input `zero`) is constant or omitted.
pub(super) fn activations(
    x: &Operands<'_>,
    at: usize,
    zero: usize,
) -> Option<quantized::Activations> {
    let known = x.get(zero).is_none() || x.constant(zero).is_some();
    let zero = *zeros(x.constant(zero).map(|z| z.view())).first()?;
    known.then_some(quantized::Activations { signed: x.input(at).ty.dtype == DType::I8, zero })
}
