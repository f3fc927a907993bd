//! NEON: four lanes.

use std::arch::aarch64::*;

use super::{Kernel, MAX_LANES, Simd};
use crate::isa::Isa;

/// Proof that the machine has neon.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Neon> {
        Isa::Neon.is_available().then_some(Neon(()))
    }
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn call<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
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

impl Simd for Neon {
    const LANES: usize = 4;
    const TILE: (usize, usize) = (8, 2);
    type V = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the instruction set.
        unsafe { call(self, kernel) }
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
                let mut buffer = [0.0f32; Self::LANES];
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
                let mut buffer = [0.0f32; Self::LANES];
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
            {
                let pair = vreinterpretq_s16_s32(vdupq_n_s32(pair));
                let b = vld1q_s16(b);
                let low = vmull_s16(vget_low_s16(pair), vget_low_s16(b));
                let high = vmull_high_s16(pair, b);
                vaddq_s32(acc, vpaddq_s32(low, high))
            }
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
}
