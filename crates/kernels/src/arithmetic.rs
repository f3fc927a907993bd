//! How precisely products are computed.

use crate::gemm::Terms;

/// How an operator made of products (convolution, matrix multiplication) computes them. Tensors
/// are f32 in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32, by any algorithm, also one that rounds more than the plain sum of products; on AMX,
    /// where it pays, with operands as sums of three bf16, which are the same numbers (see
    /// [`Terms::Three`]).
    #[default]
    Fast,
    /// f32, as plain sums of products only.
    Exact,
    /// As [`Arithmetic::Exact`], and products with zero weights are computed like all others: what
    /// everything else is checked against.
    Reference,
    /// As [`Arithmetic::Fast`], and where it pays with operands as sums of two bf16 (17 significant
    /// bits; see [`Terms::Two`]). Only where [`crate::isa::amx`] says so.
    Bf16x2,
    /// Operands rounded to bf16 (8 significant bits), sums in f32. Only where
    /// [`crate::isa::bf16`] says so.
    Bf16,
}

impl Arithmetic {
    /// Of how many bf16 a number is the sum on AMX; none if products are of f32 there too.
    pub fn terms(self) -> Option<Terms> {
        match self {
            Arithmetic::Fast => Some(Terms::Three),
            Arithmetic::Bf16x2 => Some(Terms::Two),
            Arithmetic::Bf16 => Some(Terms::One),
            Arithmetic::Exact | Arithmetic::Reference => None,
        }
    }
}
