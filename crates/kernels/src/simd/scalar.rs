//! One lane: plain Rust.

use super::{Kernel, MAX_LANES, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    const LANES: usize = 1;
    const TILE: (usize, usize) = (4, 4);
    type V = f32;
    type I = i32;
    type M = bool;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { p.read() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32) {
        // SAFETY: the caller's contract.
        unsafe { p.write(v) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> f32 {
        // SAFETY: the caller's contract; nothing is read for n = 0.
        if n == 0 { 0.0 } else { unsafe { p.read() } }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, v: f32) {
        if n > 0 {
            // SAFETY: the caller's contract.
            unsafe { p.write(v) }
        }
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn abs(self, a: f32) -> f32 {
        a.abs()
    }
    #[inline(always)]
    fn neg(self, a: f32) -> f32 {
        -a
    }
    #[inline(always)]
    fn copysign(self, a: f32, b: f32) -> f32 {
        a.copysign(b)
    }
    #[inline(always)]
    fn floor(self, a: f32) -> f32 {
        a.floor()
    }
    #[inline(always)]
    fn ceil(self, a: f32) -> f32 {
        a.ceil()
    }
    #[inline(always)]
    fn round(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn pow2(self, n: f32) -> f32 {
        f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)
    }
    #[inline(always)]
    fn split_exponent(self, a: f32) -> (f32, f32) {
        let bits = a.to_bits();
        let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
        (mantissa, ((bits >> 23) as i32 - 127) as f32)
    }
    #[inline(always)]
    fn lt(self, a: f32, b: f32) -> bool {
        a < b
    }
    #[inline(always)]
    fn is_nan(self, a: f32) -> bool {
        a.is_nan()
    }
    #[inline(always)]
    fn select(self, m: bool, a: f32, b: f32) -> f32 {
        if m { a } else { b }
    }
    #[inline(always)]
    fn transpose(self, _: &mut [f32; MAX_LANES]) {}
    #[inline(always)]
    fn reduce_add(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn reduce_max(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn zero_i32(self) -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: i32, pair: i32, b: *const i16) -> i32 {
        // SAFETY: the caller's contract.
        unsafe {
            let (low, high) = (i32::from(pair as i16), pair >> 16);
            let sum = low * i32::from(b.read()) + high * i32::from(b.add(1).read());
            acc.wrapping_add(sum)
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(self, acc: i32, x: [*const u8; 2], flip: i32, w: *const i16) -> i32 {
        // SAFETY: the caller's contract.
        unsafe {
            let [a, b] = x.map(|p| i32::from(p.read() ^ flip as u8));
            acc.wrapping_add(a * i32::from(w.read()) + b * i32::from(w.add(1).read()))
        }
    }
    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, v: i32) {
        // SAFETY: the caller's contract.
        unsafe { p.write(v) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> i32 {
        // SAFETY: the caller's contract.
        unsafe { p.read() }
    }
    #[inline(always)]
    fn add_i32(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn to_f32(self, a: i32) -> f32 {
        a as f32
    }
    #[inline(always)]
    fn to_i32(self, a: f32) -> i32 {
        a.round_ties_even() as i32
    }
}
