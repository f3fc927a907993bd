//! Convolutions and products whose weights are mostly zeros, anywhere: unstructured sparsity.
//!
//! Weights are kept as (offset, value) pairs. A *tile* is a run of output pixels, a few vectors of
//! them, one lane per pixel. The input that a strip of tiles reads is transposed into a *slab* in
//! which the pixels of a channel lie side by side (see [`grid`]), so that a weight is one broadcast
//! and, at a constant offset from the tile's place, whole vectors of input to multiply it with.
//! Sums of [`kernel::GROUP`] output channels are then transposed back and stored with the epilogue.

mod compressed;
mod conv;
mod grid;
mod kernel;
mod matrix;
mod slab;

pub use conv::SparseConv2d;
pub use matrix::SparseMatrix;

#[cfg(test)]
mod tests;
