//! Convolutions and products whose weights are mostly zeros, anywhere: unstructured sparsity.
//!
//! Weights are kept as (offset, value) pairs. A *tile* is a few vectors of output pixels, one lane
//! per pixel. The input that a strip of tiles reads is transposed into a *slab* in which each
//! channel's pixels lie in whole vectors, the lanes far apart in the images (see [`grid`]), so that
//! a weight is one broadcast and, at a constant offset from the tile's place, aligned vectors of
//! input to multiply it with. (Inverted residuals keep neighbours together: see [`planes`].)
//! Sums of [`kernel::GROUP`] output channels are then transposed back and stored with the epilogue.

mod compressed;
mod conv;
mod grid;
mod inverted;
mod kernel;
mod matrix;
mod planes;
mod pooled;
mod slab;

pub use conv::SparseConv2d;
pub use inverted::SparseInvertedResidual;
pub use matrix::SparseMatrix;
pub use pooled::SparsePooledConv2d;

#[cfg(test)]
mod tests;
