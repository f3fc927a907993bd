//! Products, convolutions and sums of quantised bytes that end in quantised bytes.
//!
//! Sums are exact in 32 bits (they wrap beyond, as ONNX's do) and every number is rounded to bytes
//! by the same three float operations on every instruction set, so results are equal bit for bit
//! whichever one runs and however the work is divided.
//!
//! Where the machine has VNNI, four byte products are one instruction. It wants unsigned bytes on
//! the left: signed activations get their top bit flipped, which adds 128 to each, and what that
//! and the zero point add to a sum is known beforehand from the weights alone. Weights with their
//! zero point taken off must fit signed bytes for that; otherwise, and on other machines, pairs of
//! 16-bit products are summed, which is exact too.

mod add;
mod conv;
mod depthwise;
mod gemm;
mod pack;
mod pool;
mod tile;

use crate::simd::ByteGrid;

pub use add::{AddOperand, add};
pub use conv::QuantizedConv2d;
pub use gemm::QuantizedGemm;
pub use pool::global_average_pool;

/// How an exact sum becomes a byte: round(sum * multiplier), halves to even, plus the zero point,
/// clamped.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    /// One per output channel, or one for all.
    pub multipliers: Vec<f32>,
    /// Zero point of the output.
    pub zero: i32,
    /// Smallest and largest value of the output: its type's, or narrower where an activation
    /// clamps.
    pub bounds: [i32; 2],
}

impl Requantize {
    fn check(&self, channels: usize) {
        let count = self.multipliers.len();
        assert!(count == 1 || count == channels, "one multiplier, or one per channel");
        let [low, high] = self.bounds;
        assert!(low <= high && -128 <= low && high <= 255, "bounds are bytes, in order");
        assert!(high - low <= 255 && (low >= 0 || high < 128), "bounds are of one type");
        assert!((-128..256).contains(&self.zero), "the zero point is a byte");
    }

    fn multiplier(&self, channel: usize) -> f32 {
        self.multipliers[if self.multipliers.len() == 1 { 0 } else { channel }]
    }

    /// The bounds before the zero point is added.
    fn relative(&self) -> [f32; 2] {
        self.bounds.map(|b| (b - self.zero) as f32)
    }

    /// The bounds and the zero point for [`Simd::narrow`].
    fn byte_grid(&self) -> ByteGrid {
        // Bounds without a negative number mean the same bytes for either type.
        let shift = if self.bounds[0] < 0 { 128 } else { 0 };
        ByteGrid {
            zero: (self.zero + shift) as i16,
            bounds: self.bounds.map(|b| (b + shift) as u8),
            flip: shift as u8,
        }
    }

    /// Whether every 32-bit sum stays within 32 bits when multiplied, so that saturating integers
    /// clamp it as well.
    fn shrinks(&self) -> bool {
        self.multipliers.iter().all(|m| m.abs() <= 0.5)
    }

    /// The byte for a sum, as every kernel computes it. A product that is not a number counts as
    /// the lower bound.
    pub fn apply(&self, sum: i32, channel: usize) -> i32 {
        let [low, high] = self.relative();
        let x = sum as f32 * self.multiplier(channel);
        let x = if x > low { x } else { low };
        let x = if x < high { x } else { high };
        x.round_ties_even() as i32 + self.zero
    }
}

/// What the left-hand side of a product is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activations {
    /// i8, not u8.
    pub signed: bool,
    /// Its zero point.
    pub zero: i32,
}

impl Activations {
    fn check(&self) {
        let range = if self.signed { -128..128 } else { 0..256 };
        assert!(range.contains(&self.zero), "the zero point is of the input's type");
    }

    /// What makes a byte unsigned: to be xored.
    fn flip(&self) -> u8 {
        if self.signed { 0x80 } else { 0 }
    }

    /// The zero point of the bytes made unsigned.
    fn unsigned_zero(&self) -> i32 {
        if self.signed { self.zero + 128 } else { self.zero }
    }

    /// What makes bytes those that instructions on fours of them take, by exclusive-or, and their zero
    /// point then: unsigned ones, or `signed` ones.
    fn of_quads(&self, signed: bool) -> (u8, i32) {
        match signed {
            false => (self.flip(), self.unsigned_zero()),
            true => (self.flip() ^ 0x80, self.unsigned_zero() - 128),
        }
    }

    /// The byte that stands for zero.
    fn zero_byte(&self) -> u8 {
        self.zero as u8
    }
}

/// A pointer that tasks of one kernel share: each writes elements no other touches.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: the pointer is only dereferenced by unsafe code, which keeps the tasks' elements apart.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn at(self, start: usize) -> *mut T {
        self.0.wrapping_add(start)
    }

    /// # Safety
    /// The range lies inside the slice it was made from, and no other task touches it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// The part of `scratch` that starts on a cache line; at most 63 bytes are lost.
fn align(scratch: &mut [u8]) -> &mut [u8] {
    let skip = scratch.as_ptr().align_offset(64).min(scratch.len());
    &mut scratch[skip..]
}

#[cfg(test)]
mod tests;
