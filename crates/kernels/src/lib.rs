//! CPU kernels of SparOA on plain slices.

pub mod isa;
pub mod pool;
mod parts;
pub mod activation;
pub mod math;
pub mod gemm;
pub mod conv;
pub mod pooling;
pub mod softmax;
pub mod norm;
pub mod attention;
pub mod permute;
pub mod reduce;
pub mod int8;

pub use activation::{Activation, Epilogue, Residual};
pub use isa::Isa;
pub use pool::Pool;
