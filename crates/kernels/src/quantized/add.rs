//! Sums of two quantised tensors.

use super::{Requantize, Shared};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};

/// One side of a quantised sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddOperand {
    /// i8, not u8.
    pub signed: bool,
    /// Its zero point.
    pub zero: i32,
    /// Its scale.
    pub scale: f32,
}

/// Elements of a task.
const PART: usize = 16 * 1024;

/// y = clamp(round(((a - zero) scale + (b - zero) scale) / y_scale) + zero): the operations, in
/// their order, of DequantizeLinear, Add and QuantizeLinear. `y_grid` holds bounds and zero point
/// of the result; its multipliers do not matter.
pub fn add(
    a: (&[u8], AddOperand),
    b: (&[u8], AddOperand),
    y: &mut [u8],
    y_scale: f32,
    y_grid: &Requantize,
    pool: &Pool,
) {
    add_with_isa(isa::best(), a, b, y, y_scale, y_grid, pool);
}

/// [`add`] for a given instruction set, which must be available.
pub(super) fn add_with_isa(
    isa: Isa,
    a: (&[u8], AddOperand),
    b: (&[u8], AddOperand),
    y: &mut [u8],
    y_scale: f32,
    y_grid: &Requantize,
    pool: &Pool,
) {
    assert!(a.0.len() == y.len() && b.0.len() == y.len(), "operands and result have one length");
    y_grid.check(1);
    let len = y.len();
    let y = Shared(y.as_mut_ptr());
    let y = &y;
    pool.run_ranges(len.div_ceil(PART), 1, &|parts| {
        let range = parts.start * PART..len.min(parts.end * PART);
        // SAFETY: tasks have disjoint ranges inside y.
        let y = unsafe { y.slice(range.start, range.len()) };
        let (a, b) = ((&a.0[range.clone()], a.1), (&b.0[range], b.1));
        simd::dispatch_bytes(isa, Add { a, b, y, y_scale, y_grid });
    });
}

struct Add<'a> {
    a: (&'a [u8], AddOperand),
    b: (&'a [u8], AddOperand),
    y: &'a mut [u8],
    y_scale: f32,
    y_grid: &'a Requantize,
}

/// Elements widened at a time.
const BLOCK: usize = 64;

/// (x - zero) as integers.
#[inline(always)]
fn widen(x: &[u8], operand: AddOperand, out: &mut [i32; BLOCK]) {
    // A signed byte is its unsigned form with the top bit flipped, less 128.
    let (flip, zero) = if operand.signed { (0x80, operand.zero + 128) } else { (0, operand.zero) };
    if let Ok(x) = <&[u8; BLOCK]>::try_from(x) {
        for i in 0..BLOCK {
            out[i] = i32::from(x[i] ^ flip) - zero;
        }
    } else {
        for (out, x) in out.iter_mut().zip(x) {
            *out = i32::from(x ^ flip) - zero;
        }
    }
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [low, high] = self.y_grid.relative().map(|x| s.splat(x));
        let zeros = [self.y_grid.zero; MAX_LANES];
        let (a_scale, b_scale) = (s.splat(self.a.1.scale), s.splat(self.b.1.scale));
        let y_scale = s.splat(self.y_scale);
        let (mut a, mut b) = ([0i32; BLOCK], [0i32; BLOCK]);
        let sides = self.a.0.chunks(BLOCK).zip(self.b.0.chunks(BLOCK));
        for (y, (a_bytes, b_bytes)) in self.y.chunks_mut(BLOCK).zip(sides) {
            widen(a_bytes, self.a.1, &mut a);
            widen(b_bytes, self.b.1, &mut b);
            for i in (0..y.len()).step_by(S::LANES) {
                // SAFETY: the blocks have whole vectors; y has the bytes that are stored.
                unsafe {
                    let zero = s.load_i32(zeros.as_ptr());
                    let a = s.mul(s.to_f32(s.load_i32(a.as_ptr().add(i))), a_scale);
                    let b = s.mul(s.to_f32(s.load_i32(b.as_ptr().add(i))), b_scale);
                    let x = s.div(s.add(a, b), y_scale);
                    let x = s.min(s.max(x, low), high);
                    let n = S::LANES.min(y.len() - i);
                    s.store_low_bytes(y.as_mut_ptr().add(i), n, s.add_i32(s.to_i32(x), zero));
                }
            }
        }
    }
}
