//! CPU kernels of SparOA on plain slices.
//!
//! Kernels know no graph: they take slices, sizes and a [`Pool`], and write slices. Convolution-like
//! kernels are channels-last (NHWC). Weights are packed once for the instruction set the process
//! uses ([`isa::best`]); scratch memory comes from the caller, who asks `scratch_len` first.
//! A violated length is a panic that names the invariant, never undefined behaviour.
//!
//! All SIMD goes through the tokens of the private module `simd`: a kernel is written once and
//! compiled for each instruction set.

// A kernel's shape is its interface; and one index walks several arrays at once.
#![allow(clippy::too_many_arguments, clippy::needless_range_loop)]

mod arithmetic;
pub mod isa;
pub mod pool;
mod parts;
mod simd;
mod amx;
mod aligned;
pub mod activation;
mod vmath;
pub mod math;
pub mod peaks;
pub mod gemm;
pub mod conv;
pub mod pooling;
pub mod softmax;
pub mod norm;
pub mod attention;
pub mod permute;
pub mod reduce;
pub mod int8;
pub mod quantized;
pub mod sparse;

#[cfg(test)]
mod testing;

pub use activation::{Activation, Epilogue, Residual};
pub use arithmetic::Arithmetic;
pub use isa::Isa;
pub use pool::Pool;
