//! SSE4.1: four lanes, no fused multiply-add.

use std::arch::x86_64::*;

use super::{Kernel, MAX_LANES, Simd};
use crate::isa::Isa;

/// Proof that the machine has sse4.1.
#[derive(Clone, Copy)]
pub(crate) struct Sse(());

impl Sse {
    pub(crate) fn detect() -> Option<Sse> {
        Isa::Sse.is_available().then_some(Sse(()))
    }
}

#[inline(never)]
#[target_feature(enable = "sse4.1")]
fn call<K: Kernel>(simd: Sse, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Evaluates intrinsics that need nothing but the instruction set.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: a token exists only where the instruction set was detected, and the
        // expression's intrinsics touch no memory.
        unsafe { $e }
    };
}

impl Simd for Sse {
    const LANES: usize = 4;
    const TILE: (usize, usize) = (6, 2);
    type V = __m128;
    type I = __m128i;
    type M = __m128;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the instruction set.
        unsafe { call(self, kernel) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        proven!(_mm_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            {
                let mut buffer = [0.0f32; Self::LANES];
                std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
                _mm_loadu_ps(buffer.as_ptr())
            }
        }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            {
                let mut buffer = [0.0f32; Self::LANES];
                _mm_storeu_ps(buffer.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven!(_mm_add_ps(_mm_mul_ps(a, b), c))
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        proven!(_mm_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        proven!(_mm_andnot_ps(_mm_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn neg(self, a: Self::V) -> Self::V {
        proven!(_mm_xor_ps(_mm_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
        proven!({
            let sign = _mm_set1_ps(-0.0);
            _mm_or_ps(_mm_andnot_ps(sign, a), _mm_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn floor(self, a: Self::V) -> Self::V {
        proven!(_mm_floor_ps(a))
    }
    #[inline(always)]
    fn ceil(self, a: Self::V) -> Self::V {
        proven!(_mm_ceil_ps(a))
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        proven!(_mm_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        proven!({
            let n = _mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127));
            _mm_castsi128_ps(_mm_slli_epi32::<23>(n))
        })
    }
    #[inline(always)]
    fn split_exponent(self, a: Self::V) -> (Self::V, Self::V) {
        proven!({
            let bits = _mm_castps_si128(a);
            let fraction = _mm_and_si128(bits, _mm_set1_epi32(0x007f_ffff));
            let mantissa = _mm_or_si128(fraction, _mm_set1_epi32(0x3f80_0000));
            let exponent = _mm_sub_epi32(_mm_srli_epi32::<23>(bits), _mm_set1_epi32(127));
            (_mm_castsi128_ps(mantissa), _mm_cvtepi32_ps(exponent))
        })
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        proven!(_mm_cmplt_ps(a, b))
    }
    #[inline(always)]
    fn is_nan(self, a: Self::V) -> Self::M {
        proven!(_mm_cmpunord_ps(a, a))
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm_blendv_ps(b, a, m))
    }
    #[inline(always)]
    fn transpose(self, r: &mut [Self::V; MAX_LANES]) {
        proven!({
            let (ab, cd) = (_mm_unpacklo_ps(r[0], r[1]), _mm_unpacklo_ps(r[2], r[3]));
            let (ef, gh) = (_mm_unpackhi_ps(r[0], r[1]), _mm_unpackhi_ps(r[2], r[3]));
            r[0] = _mm_movelh_ps(ab, cd);
            r[1] = _mm_movehl_ps(cd, ab);
            r[2] = _mm_movelh_ps(ef, gh);
            r[3] = _mm_movehl_ps(gh, ef);
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::V) -> f32 {
        proven!({
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::V) -> f32 {
        proven!({
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        })
    }
    #[inline(always)]
    fn zero_i32(self) -> __m128i {
        proven!(_mm_setzero_si128())
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: __m128i, pair: i32, b: *const i16) -> __m128i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            _mm_add_epi32(acc, _mm_madd_epi16(_mm_set1_epi32(pair), _mm_loadu_si128(b.cast())))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(
        self,
        acc: __m128i,
        x: [*const u8; 2],
        flip: __m128i,
        w: *const i16,
    ) -> __m128i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let [a, b] = x.map(|p| _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned()));
            let pairs = _mm_cvtepu8_epi16(_mm_xor_si128(_mm_unpacklo_epi8(a, b), flip));
            _mm_add_epi32(acc, _mm_madd_epi16(pairs, _mm_loadu_si128(w.cast())))
        }
    }
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: __m128i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm_storeu_si128(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m128i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm_loadu_si128(p.cast()) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m128i, b: __m128i) -> __m128i {
        proven!(_mm_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f32(self, a: __m128i) -> Self::V {
        proven!(_mm_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn to_i32(self, a: Self::V) -> __m128i {
        proven!(_mm_cvtps_epi32(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize, v: __m128i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let order = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
            let bytes = _mm_cvtsi128_si32(_mm_shuffle_epi8(v, order)).to_le_bytes();
            if n == 4 {
                p.cast::<[u8; 4]>().write_unaligned(bytes);
            } else {
                p.copy_from_nonoverlapping(bytes.as_ptr(), n);
            }
        }
    }
}
