//! How precisely products are computed.

/// How an operator made of products (convolution, matrix multiplication) computes them. Tensors
/// are f32 in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32, by any algorithm, also one that rounds more than the plain sum of products.
    #[default]
    Fast,
    /// f32, as plain sums of products only.
    Exact,
    /// As [`Arithmetic::Exact`], and products with zero weights are computed like all others: what
    /// everything else is checked against.
    Reference,
    /// As [`Arithmetic::Fast`], and where it pays with operands as sums of two bf16 (17 significant
    /// bits; see [`crate::gemm::Terms::Two`]). Only where [`crate::isa::amx`] says so.
    Bf16x2,
    /// Operands rounded to bf16 (8 significant bits), sums in f32. Only where
    /// [`crate::isa::bf16`] says so.
    Bf16,
}
