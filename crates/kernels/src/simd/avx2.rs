//! AVX2 with FMA: eight lanes; with or without dot products of bytes.

use std::arch::x86_64::*;

use super::{ByteGrid, Kernel, MAX_LANES, Simd, first_bytes};
use crate::isa::{self, Isa};

/// No extension.
pub(crate) const PLAIN: u8 = 0;
/// Dot products of bytes, AVX-VNNI's.
pub(crate) const VNNI: u8 = 1;
/// The same as AVX-512 has it for vectors of this length.
pub(crate) const VNNI_512: u8 = 2;

/// Proof that the machine has avx2,fma; with [`VNNI`] avxvnni too, with [`VNNI_512`]
/// avx512f,avx512vl,avx512vnni.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const EXTENSION: u8>(());

impl<const EXTENSION: u8> Avx2<EXTENSION> {
    pub(crate) fn detect() -> Option<Self> {
        let extended = match EXTENSION {
            VNNI => isa::has_avx_vnni(),
            VNNI_512 => Isa::Avx512Vnni.is_available(),
            _ => true,
        };
        (extended && Isa::Avx2.is_available()).then_some(Avx2(()))
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn call<K: Kernel, const EXTENSION: u8>(simd: Avx2<EXTENSION>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn call_vnni<K: Kernel, const EXTENSION: u8>(simd: Avx2<EXTENSION>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512vnni")]
fn call_vnni_512<K: Kernel, const EXTENSION: u8>(simd: Avx2<EXTENSION>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// A mask of the first `n <= 8` lanes.
#[inline(always)]
fn mask(n: usize) -> __m256i {
    const BITS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(n <= 8);
    // SAFETY: 8 elements from 8 - n on lie inside the table; called with the token at hand.
    unsafe { _mm256_loadu_si256(BITS.as_ptr().add(8 - n).cast()) }
}

/// Evaluates intrinsics that need nothing but the instruction set.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: a token exists only where the instruction set was detected, and the
        // expression's intrinsics touch no memory.
        unsafe { $e }
    };
}

/// The numbers of the bits that are set, one after the other.
static LANES_OF: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut count) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][count] = lane as u8;
                count += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

impl<const EXTENSION: u8> Simd for Avx2<EXTENSION> {
    const LANES: usize = 8;
    const TILE: (usize, usize) = (6, 2);
    type V = __m256;
    type I = __m256i;
    type M = __m256;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the instruction set, its extension included.
        unsafe {
            match EXTENSION {
                VNNI => call_vnni(self, kernel),
                VNNI_512 => call_vnni_512(self, kernel),
                _ => call(self, kernel),
            }
        }
    }
    const PREFETCHES: bool = true;
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // A hint: it faults on no address.
        proven!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        proven!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: the mask keeps the access to the caller's n elements; the token proves the
        // instruction set.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::V) {
        // SAFETY: as in `load_partial`.
        unsafe { _mm256_maskstore_ps(p, mask(n), v) }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        proven!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        proven!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn neg(self, a: Self::V) -> Self::V {
        proven!(_mm256_xor_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
        proven!({
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn floor(self, a: Self::V) -> Self::V {
        proven!(_mm256_floor_ps(a))
    }
    #[inline(always)]
    fn ceil(self, a: Self::V) -> Self::V {
        proven!(_mm256_ceil_ps(a))
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        proven!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        proven!({
            let n = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
        })
    }
    #[inline(always)]
    fn split_exponent(self, a: Self::V) -> (Self::V, Self::V) {
        proven!({
            let bits = _mm256_castps_si256(a);
            let fraction = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
            let mantissa = _mm256_or_si256(fraction, _mm256_set1_epi32(0x3f80_0000));
            let exponent = _mm256_sub_epi32(_mm256_srli_epi32::<23>(bits), _mm256_set1_epi32(127));
            (_mm256_castsi256_ps(mantissa), _mm256_cvtepi32_ps(exponent))
        })
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        proven!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    unsafe fn list_nonzero(self, v: Self::V, first: u32, out: *mut u32) -> usize {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let nonzero = _mm256_cmp_ps::<_CMP_NEQ_UQ>(v, _mm256_setzero_ps());
            let mask = _mm256_movemask_ps(nonzero) as usize & 0xff;
            let numbers = _mm_loadl_epi64(LANES_OF[mask].as_ptr().cast());
            let first = _mm256_set1_epi32(first as i32);
            let numbers = _mm256_add_epi32(first, _mm256_cvtepu8_epi32(numbers));
            _mm256_storeu_si256(out.cast(), numbers);
            mask.count_ones() as usize
        }
    }
    #[inline(always)]
    fn is_nan(self, a: Self::V) -> Self::M {
        proven!(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a))
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        proven!(_mm256_blendv_ps(b, a, m))
    }
    #[inline(always)]
    fn transpose(self, r: &mut [Self::V; MAX_LANES]) {
        proven!({
            let mut t = *r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // Half h of quads[j] is column 4 h + j of the upper (then lower) four rows.
            let mut quads = *r;
            for i in 0..2 {
                let t = &t[4 * i..];
                quads[4 * i] = _mm256_shuffle_ps::<0x44>(t[0], t[2]);
                quads[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[0], t[2]);
                quads[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[1], t[3]);
                quads[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[1], t[3]);
            }
            for j in 0..4 {
                r[j] = _mm256_permute2f128_ps::<0x20>(quads[j], quads[4 + j]);
                r[4 + j] = _mm256_permute2f128_ps::<0x31>(quads[j], quads[4 + j]);
            }
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::V) -> f32 {
        proven!({
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::V) -> f32 {
        proven!({
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        })
    }
    #[inline(always)]
    fn zero_i32(self) -> __m256i {
        proven!(_mm256_setzero_si256())
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: __m256i, pair: i32, b: *const i16) -> __m256i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            _mm256_add_epi32(
                acc,
                _mm256_madd_epi16(_mm256_set1_epi32(pair), _mm256_loadu_si256(b.cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(
        self,
        acc: __m256i,
        x: [*const u8; 2],
        flip: __m256i,
        w: *const i16,
    ) -> __m256i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let [a, b] = x.map(|p| _mm_loadl_epi64(p.cast()));
            let pairs = _mm_xor_si128(_mm_unpacklo_epi8(a, b), _mm256_castsi256_si128(flip));
            let pairs = _mm256_cvtepu8_epi16(pairs);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_loadu_si256(w.cast())))
        }
    }
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: __m256i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m256i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f32(self, a: __m256i) -> Self::V {
        proven!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn to_i32(self, a: Self::V) -> __m256i {
        proven!(_mm256_cvtps_epi32(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize, v: __m256i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let order = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
            let low = _mm_shuffle_epi8(_mm256_castsi256_si128(v), order);
            let high = _mm_shuffle_epi8(_mm256_extracti128_si256::<1>(v), order);
            let bytes = _mm_cvtsi128_si64(_mm_unpacklo_epi32(low, high)).to_le_bytes();
            if n == 8 {
                p.cast::<[u8; 8]>().write_unaligned(bytes);
            } else {
                p.copy_from_nonoverlapping(bytes.as_ptr(), n);
            }
        }
    }

    const QUADS: bool = EXTENSION != PLAIN;
    #[inline(always)]
    unsafe fn dot_quads(self, acc: __m256i, a: __m256i, b: *const i8) -> __m256i {
        // SAFETY: the caller's contract; the token proves the instruction set, its extension included.
        unsafe {
            let b = _mm256_loadu_si256(b.cast());
            match EXTENSION {
                VNNI => _mm256_dpbusd_avx_epi32(acc, a, b),
                VNNI_512 => _mm256_dpbusd_epi32(acc, a, b),
                _ => unreachable!("only instruction sets with QUADS"),
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const u8, flip: __m256i) -> __m256i {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { _mm256_xor_si256(_mm256_set1_epi32(p.cast::<i32>().read_unaligned()), flip) }
    }
    #[inline(always)]
    unsafe fn interleave(self, rows: [*const u8; 4], n: usize, flip: __m256i) -> [__m256i; 4] {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let load = |p: *const u8| {
                if n == 32 {
                    return _mm256_loadu_si256(p.cast());
                }
                let bytes = first_bytes::<32>(p, n);
                _mm256_loadu_si256(bytes.as_ptr().cast())
            };
            let [a, b, c, d] = rows.map(load);
            let (low_ab, high_ab) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (low_cd, high_cd) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            [
                _mm256_xor_si256(_mm256_unpacklo_epi16(low_ab, low_cd), flip),
                _mm256_xor_si256(_mm256_unpackhi_epi16(low_ab, low_cd), flip),
                _mm256_xor_si256(_mm256_unpacklo_epi16(high_ab, high_cd), flip),
                _mm256_xor_si256(_mm256_unpackhi_epi16(high_ab, high_cd), flip),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, n: usize, v: __m256i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            if n == 32 {
                return _mm256_storeu_si256(p.cast(), v);
            }
            let mut bytes = [0u8; 32];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v);
            p.copy_from_nonoverlapping(bytes.as_ptr(), n.min(32));
        }
    }

    const NARROWS: bool = true;
    #[inline(always)]
    fn narrow(self, v: [__m256i; 4], grid: &ByteGrid) -> __m256i {
        proven!({
            let zero = _mm256_set1_epi16(grid.zero);
            let [low, high] = grid.bounds.map(|b| _mm256_set1_epi8(b as i8));
            let a = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero);
            let b = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), zero);
            let bytes = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(a, b), low), high);
            _mm256_xor_si256(bytes, _mm256_set1_epi8(grid.flip as i8))
        })
    }
    #[inline(always)]
    unsafe fn store_apart(self, p: [*mut u8; 4], v: __m256i) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let v = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p[0].cast(), low);
            _mm_storel_epi64(p[1].cast(), _mm_unpackhi_epi64(low, low));
            _mm_storel_epi64(p[2].cast(), high);
            _mm_storel_epi64(p[3].cast(), _mm_unpackhi_epi64(high, high));
        }
    }
}
