//! NEON: four lanes; with or without dot products of bytes.

use std::arch::{aarch64::*, asm};

use super::{ByteGrid, Kernel, MAX_LANES, Simd, first_bytes};
use crate::isa::Isa;

/// No extension.
pub(crate) const PLAIN: u8 = 0;
/// Dot products of bytes.
pub(crate) const DOT: u8 = 1;

/// Proof that the machine has neon, with [`DOT`] dotprod too.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const EXTENSION: u8>(());

impl<const EXTENSION: u8> Neon<EXTENSION> {
    pub(crate) fn detect() -> Option<Self> {
        let isa = if EXTENSION == DOT { Isa::NeonDot } else { Isa::Neon };
        isa.is_available().then_some(Neon(()))
    }
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn call<K: Kernel, const EXTENSION: u8>(simd: Neon<EXTENSION>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
fn call_dot<K: Kernel, const EXTENSION: u8>(simd: Neon<EXTENSION>, kernel: K) -> K::Output {
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

impl<const EXTENSION: u8> Simd for Neon<EXTENSION> {
    const LANES: usize = 4;
    const TILE: (usize, usize) = (8, 2);
    type V = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the instruction set, its extension included.
        unsafe {
            match EXTENSION {
                DOT => call_dot(self, kernel),
                _ => call(self, kernel),
            }
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        proven!(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            {
                let mut buffer = [0.0f32; 4];
                std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
                vld1q_f32(buffer.as_ptr())
            }
        }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: Self::V) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            {
                let mut buffer = [0.0f32; 4];
                vst1q_f32(buffer.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        proven!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        proven!(vsqrtq_f32(a))
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        proven!(vabsq_f32(a))
    }
    #[inline(always)]
    fn neg(self, a: Self::V) -> Self::V {
        proven!(vnegq_f32(a))
    }
    #[inline(always)]
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
        proven!(vbslq_f32(vdupq_n_u32(0x8000_0000), b, a))
    }
    #[inline(always)]
    fn floor(self, a: Self::V) -> Self::V {
        proven!(vrndmq_f32(a))
    }
    #[inline(always)]
    fn ceil(self, a: Self::V) -> Self::V {
        proven!(vrndpq_f32(a))
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        proven!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        proven!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(
            vcvtq_s32_f32(n),
            vdupq_n_s32(127)
        ))))
    }
    #[inline(always)]
    fn split_exponent(self, a: Self::V) -> (Self::V, Self::V) {
        proven!({
            let bits = vreinterpretq_u32_f32(a);
            let fraction = vandq_u32(bits, vdupq_n_u32(0x007f_ffff));
            let mantissa = vorrq_u32(fraction, vdupq_n_u32(0x3f80_0000));
            let exponent =
                vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32::<23>(bits)), vdupq_n_s32(127));
            (vreinterpretq_f32_u32(mantissa), vcvtq_f32_s32(exponent))
        })
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        proven!(vcltq_f32(a, b))
    }
    #[inline(always)]
    fn is_nan(self, a: Self::V) -> Self::M {
        proven!(vmvnq_u32(vceqq_f32(a, a)))
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        proven!(vbslq_f32(m, a, b))
    }
    #[inline(always)]
    fn transpose(self, r: &mut [Self::V; MAX_LANES]) {
        proven!({
            let pairs = |v| vreinterpretq_f64_f32(v);
            let (ab, cd) = (vtrnq_f32(r[0], r[1]), vtrnq_f32(r[2], r[3]));
            let low = |a, b| vreinterpretq_f32_f64(vzip1q_f64(pairs(a), pairs(b)));
            let high = |a, b| vreinterpretq_f32_f64(vzip2q_f64(pairs(a), pairs(b)));
            r[0] = low(ab.0, cd.0);
            r[1] = low(ab.1, cd.1);
            r[2] = high(ab.0, cd.0);
            r[3] = high(ab.1, cd.1);
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::V) -> f32 {
        proven!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::V) -> f32 {
        proven!(vmaxvq_f32(a))
    }
    #[inline(always)]
    fn zero_i32(self) -> int32x4_t {
        proven!(vdupq_n_s32(0))
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: int32x4_t, pair: i32, b: *const i16) -> int32x4_t {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let pair = vreinterpret_s16_s32(vdup_n_s32(pair));
            let b = vld1q_s16(b);
            // The same for every row of a tile.
            let first = vuzp1_s16(vget_low_s16(b), vget_high_s16(b));
            let second = vuzp2_s16(vget_low_s16(b), vget_high_s16(b));
            vmlal_lane_s16::<1>(vmlal_lane_s16::<0>(acc, first, pair), second, pair)
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(
        self,
        acc: int32x4_t,
        x: [*const u8; 2],
        flip: int32x4_t,
        w: *const i16,
    ) -> int32x4_t {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let flip = vget_low_u8(vreinterpretq_u8_s32(flip));
            let [a, b] = x.map(|p| {
                let bytes = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
                vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(veor_u8(bytes, flip))))
            });
            let w = vld2_s16(w);
            vmlal_s16(vmlal_s16(acc, a, w.0), b, w.1)
        }
    }
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: int32x4_t) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { vst1q_s32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> int32x4_t {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { vld1q_s32(p) }
    }
    #[inline(always)]
    fn add_i32(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        proven!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn to_f32(self, a: int32x4_t) -> Self::V {
        proven!(vcvtq_f32_s32(a))
    }
    #[inline(always)]
    fn to_i32(self, a: Self::V) -> int32x4_t {
        proven!(vcvtnq_s32_f32(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize, v: int32x4_t) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let words = vmovn_s32(v);
            let bytes = vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words)));
            let bytes = vget_lane_s32::<0>(bytes).to_ne_bytes();
            p.copy_from_nonoverlapping(bytes.as_ptr(), n.min(4));
        }
    }

    const QUADS: bool = EXTENSION == DOT;
    const SIGNED_QUADS: bool = true;
    #[inline(always)]
    unsafe fn dot_quads(self, acc: int32x4_t, a: int32x4_t, b: *const i8) -> int32x4_t {
        if EXTENSION != DOT {
            unreachable!("only instruction sets with QUADS");
        }
        let mut sum = acc;
        // SAFETY: the caller's contract; the token proves the instruction set, dot products included. The
        // intrinsic is not stable yet.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum,
                a = in(vreg) a,
                b = in(vreg) vld1q_s8(b),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const u8, flip: int32x4_t) -> int32x4_t {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe { veorq_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned()), flip) }
    }
    #[inline(always)]
    unsafe fn interleave(self, rows: [*const u8; 4], n: usize, flip: int32x4_t) -> [int32x4_t; 4] {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let load = |p: *const u8| {
                if n == 16 {
                    return vld1q_u8(p);
                }
                let bytes = first_bytes::<16>(p, n);
                vld1q_u8(bytes.as_ptr())
            };
            let [a, b, c, d] = rows.map(load);
            let halves = |v| vreinterpretq_u16_u8(v);
            let (low_ab, high_ab) = (halves(vzip1q_u8(a, b)), halves(vzip2q_u8(a, b)));
            let (low_cd, high_cd) = (halves(vzip1q_u8(c, d)), halves(vzip2q_u8(c, d)));
            [
                vzip1q_u16(low_ab, low_cd),
                vzip2q_u16(low_ab, low_cd),
                vzip1q_u16(high_ab, high_cd),
                vzip2q_u16(high_ab, high_cd),
            ]
            .map(|v| veorq_s32(vreinterpretq_s32_u16(v), flip))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, n: usize, v: int32x4_t) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let v = vreinterpretq_u8_s32(v);
            if n == 16 {
                return vst1q_u8(p, v);
            }
            let mut bytes = [0u8; 16];
            vst1q_u8(bytes.as_mut_ptr(), v);
            p.copy_from_nonoverlapping(bytes.as_ptr(), n.min(16));
        }
    }

    const NARROWS: bool = true;
    #[inline(always)]
    fn narrow(self, v: [int32x4_t; 4], grid: &ByteGrid) -> int32x4_t {
        proven!({
            let zero = vdupq_n_s16(grid.zero);
            let [low, high] = grid.bounds.map(|b| vdupq_n_u8(b));
            let words = |a, b| vqaddq_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b)), zero);
            let (a, b) = (words(v[0], v[1]), words(v[2], v[3]));
            let bytes = vcombine_u8(vqmovun_s16(a), vqmovun_s16(b));
            let bytes = vminq_u8(vmaxq_u8(bytes, low), high);
            vreinterpretq_s32_u8(veorq_u8(bytes, vdupq_n_u8(grid.flip)))
        })
    }
    #[inline(always)]
    unsafe fn store_apart(self, p: [*mut u8; 4], v: int32x4_t) {
        // SAFETY: the caller's contract; the token proves the instruction set.
        unsafe {
            let lanes = [
                vgetq_lane_s32::<0>(v),
                vgetq_lane_s32::<1>(v),
                vgetq_lane_s32::<2>(v),
                vgetq_lane_s32::<3>(v),
            ];
            for (p, lane) in p.into_iter().zip(lanes) {
                p.cast::<i32>().write_unaligned(lane);
            }
        }
    }
}
