//! AVX-512: sixteen lanes; with or without products of bf16 pairs.

use std::arch::x86_64::*;

use super::{ByteGrid, Kernel, MAX_LANES, Simd};
use crate::isa::{self, Isa};

/// No extension.
pub(crate) const PLAIN: u8 = 0;
/// Dot products of bytes.
pub(crate) const VNNI: u8 = 1;
/// Dot products of bf16 pairs.
pub(crate) const BF16: u8 = 2;

/// Proof that the machine has avx512f,avx512bw,avx512dq,avx512vl,avx2,fma; with [`VNNI`] avx512vnni
/// too, with [`BF16`] avx512bf16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const EXTENSION: u8>(());

impl<const EXTENSION: u8> Avx512<EXTENSION> {
    pub(crate) fn detect() -> Option<Self> {
        let there = match EXTENSION {
            VNNI => Isa::Avx512Vnni.is_available(),
            BF16 => isa::has_bf16(),
            _ => Isa::Avx512.is_available(),
        };
        there.then_some(Avx512(()))
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn call<K: Kernel, const EXTENSION: u8>(simd: Avx512<EXTENSION>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn call_vnni<K: Kernel, const EXTENSION: u8>(simd: Avx512<EXTENSION>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn call_bf16<K: Kernel, const EXTENSION: u8>(simd: Avx512<EXTENSION>, kernel: K) -> K::Output {
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

impl<const EXTENSION: u8> Simd for Avx512<EXTENSION> {
    const LANES: usize = 16;
    const TILE: (usize, usize) = (12, 2);
    type V = __m512;
    type I = __m512i;
    type M = __mmask16;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the instruction set, its extension included.
        unsafe {
            match EXTENSION {
                VNNI => call_vnni(self, kernel),
                BF16 => call_bf16(self, kernel),
                _ => call(self, kernel),
            }
        }
    }
    const PREFETCHES: bool = true;
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // A hint: it faults on no address.
        proven!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, v) }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn multiply_words(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if EXTENSION == BF16 {
            proven!({
                let pairs = |v| std::mem::transmute::<__m512, __m512bh>(v);
                _mm512_dpbf16_ps(c, pairs(a), pairs(b))
            })
        } else {
            self.mul_add(a, b, c)
        }
    }
    #[inline(always)]
    fn to_pairs(self, first: Self::V, second: Self::V) -> Self::V {
        if EXTENSION == BF16 {
            proven!(std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)))
        } else {
            unreachable!("only tokens of pairs are asked for pairs")
        }
    }
    #[inline(always)]
    fn to_terms(self, first: Self::V, second: Self::V) -> [Self::V; 3] {
        proven!({
            let top = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let half = _mm512_set1_epi32(0x8000);
            // Rounded half up in magnitude; and what that leaves.
            let split = |x: __m512| {
                let bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
                let lead = _mm512_and_si512(bits, top);
                (bits, _mm512_sub_ps(x, _mm512_castsi512_ps(lead)))
            };
            // The upper halves, bit by bit: of `second` where `top` is set, else of `first`.
            let words = |first, second| {
                let first = _mm512_srli_epi32::<16>(first);
                _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xca>(top, second, first))
            };
            let (first, second) = (split(first), split(second));
            let (first_rest, second_rest) = (split(first.1), split(second.1));
            [
                words(first.0, second.0),
                words(first_rest.0, second_rest.0),
                words(_mm512_castps_si512(first_rest.1), _mm512_castps_si512(second_rest.1)),
            ]
        })
    }
    #[inline(always)]
    fn widen(self, words: Self::V) -> [Self::V; 2] {
        proven!({
            let bits = _mm512_castps_si512(words);
            let top = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            [_mm512_slli_epi32::<16>(bits), _mm512_and_si512(bits, top)]
                .map(|b| _mm512_castsi512_ps(b))
        })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        proven!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        proven!(_mm512_andnot_ps(_mm512_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn neg(self, a: Self::V) -> Self::V {
        proven!(_mm512_xor_ps(_mm512_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
        proven!({
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn floor(self, a: Self::V) -> Self::V {
        proven!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn ceil(self, a: Self::V) -> Self::V {
        proven!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        proven!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        proven!({
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        })
    }
    #[inline(always)]
    fn split_exponent(self, a: Self::V) -> (Self::V, Self::V) {
        proven!({
            let bits = _mm512_castps_si512(a);
            let fraction = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
            let mantissa = _mm512_or_si512(fraction, _mm512_set1_epi32(0x3f80_0000));
            let exponent = _mm512_sub_epi32(_mm512_srli_epi32::<23>(bits), _mm512_set1_epi32(127));
            (_mm512_castsi512_ps(mantissa), _mm512_cvtepi32_ps(exponent))
        })
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        proven!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    unsafe fn list_nonzero(self, v: Self::V, first: u32, out: *mut u32) -> usize {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(first as i32));
            let mask = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(v, _mm512_setzero_ps());
            // Compressed in a register: straight to memory is slow on some processors.
            _mm512_storeu_si512(out.cast(), _mm512_maskz_compress_epi32(mask, numbers));
            mask.count_ones() as usize
        }
    }
    #[inline(always)]
    fn is_nan(self, a: Self::V) -> Self::M {
        proven!(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a))
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm512_mask_blend_ps(m, b, a))
    }
    #[inline(always)]
    fn transpose(self, r: &mut [Self::V; MAX_LANES]) {
        proven!({
            let mut t = *r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // Quarter q of quads[4 i + j] is column 4 q + j of rows 4 i .. 4 i + 4.
            let mut quads = *r;
            for i in 0..4 {
                for half in 0..2 {
                    let a = _mm512_castps_pd(t[4 * i + half]);
                    let b = _mm512_castps_pd(t[4 * i + 2 + half]);
                    quads[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    quads[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for j in 0..4 {
                let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
                let (even_ab, odd_ab) =
                    (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even_cd, odd_cd) =
                    (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                r[j] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
                r[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
                r[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd);
                r[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd);
            }
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::V) -> f32 {
        proven!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::V) -> f32 {
        proven!(_mm512_reduce_max_ps(a))
    }
    #[inline(always)]
    fn zero_i32(self) -> __m512i {
        proven!(_mm512_setzero_si512())
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: __m512i, pair: i32, b: *const i16) -> __m512i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            _mm512_add_epi32(
                acc,
                _mm512_madd_epi16(_mm512_set1_epi32(pair), _mm512_loadu_si512(b.cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(
        self,
        acc: __m512i,
        x: [*const u8; 2],
        flip: __m512i,
        w: *const i16,
    ) -> __m512i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let [a, b] = x.map(|p| _mm_loadu_si128(p.cast()));
            let pairs = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
            let pairs = _mm256_xor_si256(pairs, _mm512_castsi512_si256(flip));
            let pairs = _mm512_cvtepu8_epi16(pairs);
            _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_loadu_si512(w.cast())))
        }
    }
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: __m512i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m512i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> Self::V {
        proven!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn to_i32(self, a: Self::V) -> __m512i {
        proven!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize, v: __m512i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            // Narrowing and storing in one instruction is slow on some processors.
            let bytes = _mm512_cvtepi32_epi8(v);
            if n == 16 {
                _mm_storeu_si128(p.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(p.cast(), ((1u32 << n) - 1) as __mmask16, bytes);
            }
        }
    }

    const QUADS: bool = EXTENSION == VNNI;
    #[inline(always)]
    unsafe fn dot_quads(self, acc: __m512i, a: __m512i, b: *const i8) -> __m512i {
        if EXTENSION != VNNI {
            unreachable!("only instruction sets with QUADS");
        }
        // SAFETY: the caller's contract; the token proves the instruction set, VNNI included.
        unsafe { _mm512_dpbusd_epi32(acc, a, _mm512_loadu_si512(b.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const u8, flip: __m512i) -> __m512i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm512_xor_si512(_mm512_set1_epi32(p.cast::<i32>().read_unaligned()), flip) }
    }
    #[inline(always)]
    unsafe fn interleave(self, rows: [*const u8; 4], n: usize, flip: __m512i) -> [__m512i; 4] {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let load = |p: *const u8| {
                if n == 64 {
                    _mm512_loadu_si512(p.cast())
                } else {
                    _mm512_maskz_loadu_epi8((1u64 << n) - 1, p.cast())
                }
            };
            let [a, b, c, d] = rows.map(load);
            let (low_ab, high_ab) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (low_cd, high_cd) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_xor_si512(_mm512_unpacklo_epi16(low_ab, low_cd), flip),
                _mm512_xor_si512(_mm512_unpackhi_epi16(low_ab, low_cd), flip),
                _mm512_xor_si512(_mm512_unpacklo_epi16(high_ab, high_cd), flip),
                _mm512_xor_si512(_mm512_unpackhi_epi16(high_ab, high_cd), flip),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, n: usize, v: __m512i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            if n == 64 {
                _mm512_storeu_si512(p.cast(), v);
            } else {
                _mm512_mask_storeu_epi8(p.cast(), (1u64 << n) - 1, v);
            }
        }
    }

    const NARROWS: bool = true;
    #[inline(always)]
    fn narrow(self, v: [__m512i; 4], grid: &ByteGrid) -> __m512i {
        proven!({
            let zero = _mm512_set1_epi16(grid.zero);
            let [low, high] = grid.bounds.map(|b| _mm512_set1_epi8(b as i8));
            let a = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), zero);
            let b = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), zero);
            let bytes = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(a, b), low), high);
            _mm512_xor_si512(bytes, _mm512_set1_epi8(grid.flip as i8))
        })
    }
    #[inline(always)]
    unsafe fn store_apart(self, p: [*mut u8; 4], v: __m512i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let v = _mm512_permutexvar_epi32(order, v);
            _mm_storeu_si128(p[0].cast(), _mm512_castsi512_si128(v));
            _mm_storeu_si128(p[1].cast(), _mm512_extracti32x4_epi32::<1>(v));
            _mm_storeu_si128(p[2].cast(), _mm512_extracti32x4_epi32::<2>(v));
            _mm_storeu_si128(p[3].cast(), _mm512_extracti32x4_epi32::<3>(v));
        }
    }
}
