//! Vectors of f32 behind tokens that prove the instruction set was detected.
//!
//! A kernel is written once as a [`Kernel`], generic over [`Simd`], everything in it
//! `#[inline(always)]`; [`dispatch`] instantiates it inside a `#[target_feature]` function.

use crate::isa::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sse;

/// The largest number of lanes of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

/// A computation to instantiate for an instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set's token: a value of it proves that the machine has the instruction set.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows and vectors of the largest matrix-multiplication tile.
    const TILE: (usize, usize);
    type V: Copy;
    type I: Copy;
    type M: Copy;

    /// Runs `kernel` in a function of its own compiled for this instruction set.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `LANES` elements at `p` are readable.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` elements at `p` are writable.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// The first `n <= LANES` elements, then zeros.
    /// # Safety
    /// `n` elements at `p` are readable.
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n <= LANES` elements.
    /// # Safety
    /// `n` elements at `p` are writable.
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, fused where the instruction set can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c plus the products of words of packed matrices: a * b, or with the token of pairs
    /// (see [`dispatch_pairs`]) a.0 * b.0 + a.1 * b.1.
    #[inline(always)]
    fn multiply_words(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.mul_add(a, b, c)
    }
    /// The lanes of `first`, then those of `second`, rounded to bf16, as words. Only
    /// the token of pairs can.
    #[inline(always)]
    fn to_pairs(self, first: Self::V, second: Self::V) -> Self::V {
        let _ = (first, second);
        unreachable!("only tokens of pairs are asked for pairs")
    }
    /// a < b ? a : b; so b if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// a > b ? a : b; so b if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    fn neg(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    fn floor(self, a: Self::V) -> Self::V;
    fn ceil(self, a: Self::V) -> Self::V;
    /// Halves to even.
    fn round(self, a: Self::V) -> Self::V;
    /// 2^n for a whole number n in -126 ..= 127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// (m, e) with m in [1, 2) and a = m 2^e, for positive normal a.
    fn split_exponent(self, a: Self::V) -> (Self::V, Self::V);

    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    fn is_nan(self, a: Self::V) -> Self::M;
    /// m ? a : b
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;

    fn reduce_add(self, a: Self::V) -> f32;
    fn reduce_max(self, a: Self::V) -> f32;

    fn zero_i32(self) -> Self::I;
    /// Lane i gains pair.0 * b[2 i] + pair.1 * b[2 i + 1]; `pair` is two i16, the first low.
    /// # Safety
    /// `2 * LANES` elements at `b` are readable.
    unsafe fn dot_pairs(self, acc: Self::I, pair: i32, b: *const i16) -> Self::I;
    /// # Safety
    /// `LANES` elements at `p` are writable.
    unsafe fn store_i32(self, p: *mut i32, v: Self::I);
}

/// Runs `kernel` compiled for `isa`; panics if the machine does not have it.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            avx512::Avx512::<false>::detect().expect("AVX-512 is available").call(kernel)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::Avx2::detect().expect("AVX2 is available").call(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Sse => sse::Sse::detect().expect("SSE4.1 is available").call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::Neon::detect().expect("NEON is available").call(kernel),
        Isa::Scalar => scalar::Scalar.call(kernel),
        #[allow(unreachable_patterns)]
        other => panic!("{other} is not available on this architecture"),
    }
}

/// Runs `kernel` with the token whose packed words are pairs of bf16; panics if the machine does
/// not have it.
pub(crate) fn dispatch_pairs<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    return avx512::Avx512::<true>::detect().expect("AVX-512 BF16 is available").call(kernel);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = kernel;
        panic!("pairs of bf16 are not available on this architecture")
    }
}

/// The most lanes, tile rows and tile vectors of an instruction set.
pub(crate) fn tile_of(isa: Isa) -> (usize, usize, usize) {
    struct Tile;
    impl Kernel for Tile {
        type Output = (usize, usize, usize);
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Self::Output {
            (S::LANES, S::TILE.0, S::TILE.1)
        }
    }
    dispatch(isa, Tile)
}
