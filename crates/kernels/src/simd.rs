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

    /// Whether [`Simd::prefetch`] does anything.
    const PREFETCHES: bool = false;
    /// Asks for the cache line at `p`, which need not be readable, in the first-level cache.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        let _ = p;
    }

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
    /// Three bf16 whose sum is the number, the larger first: of each lane of `first` and `second`,
    /// as words. Of infinite numbers, NaN and those beyond bf16's largest, terms are not finite or
    /// 0. Only the token of pairs can.
    #[inline(always)]
    fn to_terms(self, first: Self::V, second: Self::V) -> [Self::V; 3] {
        let _ = (first, second);
        unreachable!("only tokens of pairs are asked for terms")
    }
    /// The numbers that are the first and the second of words of bf16. Only the token of pairs can.
    #[inline(always)]
    fn widen(self, words: Self::V) -> [Self::V; 2] {
        let _ = words;
        unreachable!("only tokens of pairs are asked for terms")
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

    /// Transposes the square of the first `LANES` vectors.
    fn transpose(self, square: &mut [Self::V; MAX_LANES]);

    /// Writes `first` plus its number for each lane that is not zero (NaN is not) to `out`, one after
    /// the other; the count of them.
    /// # Safety
    /// `LANES` elements at `out` are writable.
    #[inline(always)]
    unsafe fn list_nonzero(self, v: Self::V, first: u32, out: *mut u32) -> usize {
        let mut lanes = [0.0f32; MAX_LANES];
        let mut count = 0;
        // SAFETY: the array has room for LANES elements, and so has `out`, of which at most one
        // more is written for each lane.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            for i in 0..Self::LANES {
                out.add(count).write(first + i as u32);
                count += usize::from(lanes[i] != 0.0);
            }
        }
        count
    }

    fn reduce_add(self, a: Self::V) -> f32;
    fn reduce_max(self, a: Self::V) -> f32;

    fn zero_i32(self) -> Self::I;
    /// Lane i gains pair.0 * b[2 i] + pair.1 * b[2 i + 1]; `pair` is two i16, the first low.
    /// # Safety
    /// `2 * LANES` elements at `b` are readable.
    unsafe fn dot_pairs(self, acc: Self::I, pair: i32, b: *const i16) -> Self::I;
    /// Lane i gains x[0][i] * w[2 i] + x[1][i] * w[2 i + 1], of bytes exclusive-or `flip`'s, unsigned.
    /// # Safety
    /// `LANES` bytes at each of `x` and `2 * LANES` elements at `w` are readable.
    unsafe fn dot_bytes(
        self,
        acc: Self::I,
        x: [*const u8; 2],
        flip: Self::I,
        w: *const i16,
    ) -> Self::I;
    /// # Safety
    /// `LANES` elements at `p` are writable.
    unsafe fn store_i32(self, p: *mut i32, v: Self::I);
    /// # Safety
    /// `LANES` elements at `p` are readable.
    unsafe fn load_i32(self, p: *const i32) -> Self::I;
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// The nearest f32, halves to even.
    fn to_f32(self, a: Self::I) -> Self::V;
    /// The nearest integer, halves to even, for numbers within 32 bits.
    fn to_i32(self, a: Self::V) -> Self::I;
    /// Stores the lowest byte of each of the first `n <= LANES` lanes.
    /// # Safety
    /// `n` bytes at `p` are writable.
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize, v: Self::I) {
        let mut lanes = [0i32; MAX_LANES];
        // SAFETY: the array has room for LANES elements; p for n.
        unsafe {
            self.store_i32(lanes.as_mut_ptr(), v);
            for (i, &lane) in lanes.iter().enumerate().take(n.min(Self::LANES)) {
                p.add(i).write(lane as u8);
            }
        }
    }

    /// Whether four products of bytes are summed in one instruction: the functions below exist.
    const QUADS: bool = false;
    /// Whether the bytes of `a` are signed there, too.
    const SIGNED_QUADS: bool = false;
    /// Lane i gains the four products of a's unsigned bytes 4 i .. (see [`Simd::SIGNED_QUADS`]) and b's
    /// signed ones.
    /// # Safety
    /// `4 * LANES` elements at `b` are readable.
    unsafe fn dot_quads(self, _acc: Self::I, _a: Self::I, _b: *const i8) -> Self::I {
        unreachable!("only instruction sets with QUADS")
    }
    /// The four bytes at `p`, exclusive-or `flip`, in every lane.
    /// # Safety
    /// Four bytes at `p` are readable.
    unsafe fn splat_quad(self, _p: *const u8, _flip: Self::I) -> Self::I {
        unreachable!("only instruction sets with QUADS")
    }
    /// The first `n <= 4 * LANES` bytes of four rows (zeros beyond), exclusive-or `flip`, such
    /// that a lane holds four bytes of one column. Columns come in the order that
    /// [`quad_column`] says.
    /// # Safety
    /// `n` bytes of each row are readable.
    unsafe fn interleave(self, _rows: [*const u8; 4], _n: usize, _flip: Self::I) -> [Self::I; 4] {
        unreachable!("only instruction sets with QUADS")
    }
    /// Stores the first `n <= 4 * LANES` bytes that [`Simd::narrow`] made.
    /// # Safety
    /// `n` bytes at `p` are writable.
    unsafe fn store_bytes(self, _p: *mut u8, _n: usize, _v: Self::I) {
        unreachable!("only instruction sets with QUADS")
    }

    /// Whether four vectors of integers are made bytes together: the functions below exist.
    const NARROWS: bool = false;
    /// Integers plus the zero point, saturated to bytes within bounds; blocks of 16 bytes hold
    /// four lanes of each vector, as [`Simd::interleave`] has them.
    fn narrow(self, _v: [Self::I; 4], _grid: &ByteGrid) -> Self::I {
        unreachable!("only instruction sets with NARROWS")
    }
    /// Stores the bytes of each vector that [`Simd::narrow`] took at a place of its own.
    /// # Safety
    /// `LANES` bytes at each pointer are writable.
    unsafe fn store_apart(self, _p: [*mut u8; 4], _v: Self::I) {
        unreachable!("only instruction sets with NARROWS")
    }
}

/// Where bytes lie that integers are made to: all by their unsigned form, which for signed ones is
/// 128 more.
#[derive(Clone, Copy, Debug)]
// What no instruction set of the target narrows to bytes with, nobody reads.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct ByteGrid {
    /// Added to each integer.
    pub(crate) zero: i16,
    /// Smallest and largest unsigned form.
    pub(crate) bounds: [u8; 2],
    /// Makes the unsigned form the byte: exclusive-or.
    pub(crate) flip: u8,
}

/// The first `n <= N` bytes at `p`, then zeros.
///
/// # Safety
/// `n` bytes at `p` are readable.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn first_bytes<const N: usize>(p: *const u8, n: usize) -> [u8; N] {
    let mut bytes = [0; N];
    assert!(n <= N, "they fit");
    // SAFETY: the caller's contract; `bytes` has room for them.
    unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(p, n) };
    bytes
}

/// The column in lane `lane` of vector `vector` of [`Simd::interleave`]: interleaving works within
/// blocks of 16 bytes.
pub(crate) fn quad_column(vector: usize, lane: usize) -> usize {
    lane / 4 * 16 + vector * 4 + lane % 4
}

/// [`dispatch`] for kernels on bytes, which have instruction sets more.
pub(crate) fn dispatch_bytes<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Amx => avx512::Avx512::<{ avx512::VNNI }>::detect()
            .expect("AVX-512 VNNI is available")
            .call(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Vnni => match avx2::Avx2::<{ avx2::VNNI }>::detect() {
            Some(simd) => simd.call(kernel),
            None => avx2::Avx2::<{ avx2::VNNI_512 }>::detect()
                .expect("VNNI for 256 bits is available")
                .call(kernel),
        },
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => neon::Neon::<{ neon::DOT }>::detect()
            .expect("NEON's dot products are available")
            .call(kernel),
        _ => dispatch(isa, kernel),
    }
}

/// Runs `kernel` compiled for `isa`; panics if the machine does not have it.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Amx => avx512::Avx512::<{ avx512::PLAIN }>::detect()
            .expect("AVX-512 is available")
            .call(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx2Vnni => {
            avx2::Avx2::<{ avx2::PLAIN }>::detect().expect("AVX2 is available").call(kernel)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Sse => sse::Sse::detect().expect("SSE4.1 is available").call(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => {
            neon::Neon::<{ neon::PLAIN }>::detect().expect("NEON is available").call(kernel)
        }
        Isa::Scalar => scalar::Scalar.call(kernel),
        #[allow(unreachable_patterns)]
        other => panic!("{other} is not available on this architecture"),
    }
}

/// Runs `kernel` with the token whose packed words are pairs of bf16; panics if the machine does
/// not have it.
pub(crate) fn dispatch_pairs<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    return avx512::Avx512::<{ avx512::BF16 }>::detect()
        .expect("AVX-512 BF16 is available")
        .call(kernel);
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
