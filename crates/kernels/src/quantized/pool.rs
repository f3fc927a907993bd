//! Averages of quantised pixels.

use super::{Activations, Requantize, Shared};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};

/// Channels of a block.
const BLOCK: usize = 64;

/// Mean over all pixels, requantised: x is n, pixels, c; y is n, c. `requantize` has the one
/// multiplier x_scale / (pixels y_scale).
pub fn global_average_pool(
    [n, pixels, c]: [usize; 3],
    x: &[u8],
    activations: Activations,
    requantize: &Requantize,
    y: &mut [u8],
    pool: &Pool,
) {
    global_average_pool_with_isa(isa::best(), [n, pixels, c], x, activations, requantize, y, pool);
}

/// [`global_average_pool`] for a given instruction set, which must be available.
pub(super) fn global_average_pool_with_isa(
    isa: Isa,
    [n, pixels, c]: [usize; 3],
    x: &[u8],
    activations: Activations,
    requantize: &Requantize,
    y: &mut [u8],
    pool: &Pool,
) {
    assert!(x.len() == n * pixels * c, "x has n * pixels * c elements");
    assert!(y.len() == n * c, "y has n * c elements");
    activations.check();
    requantize.check(1);
    let blocks = c.div_ceil(BLOCK);
    let y = Shared(y.as_mut_ptr());
    let y = &y;
    pool.run_ranges(n * blocks, (32 * 1024) / (pixels * BLOCK).max(1), &|tasks| {
        for task in tasks {
            let (image, first) = (task / blocks, task % blocks * BLOCK);
            let len = BLOCK.min(c - first);
            // SAFETY: tasks have disjoint ranges inside y.
            let y = unsafe { y.slice(image * c + first, len) };
            let x = &x[image * pixels * c..][..pixels * c];
            simd::dispatch_bytes(isa, Mean { x, c, first, activations, requantize, y });
        }
    });
}

struct Mean<'a> {
    x: &'a [u8],
    c: usize,
    first: usize,
    activations: Activations,
    requantize: &'a Requantize,
    y: &'a mut [u8],
}

impl Kernel for Mean<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.y.len();
        let flip = self.activations.flip();
        let pixels = (self.x.len() / self.c) as i32;
        let start = self.activations.unsigned_zero().wrapping_mul(pixels).wrapping_neg();
        let mut sums = [start; BLOCK];
        for pixel in self.x.chunks_exact(self.c) {
            let pixel = &pixel[self.first..self.first + len];
            for (sum, x) in sums.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(i32::from(x ^ flip));
            }
        }
        let [low, high] = self.requantize.relative().map(|x| s.splat(x));
        let multiplier = s.splat(self.requantize.multiplier(0));
        let zeros = [self.requantize.zero; MAX_LANES];
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: the block has whole vectors; y has the bytes that are stored.
            unsafe {
                let zero = s.load_i32(zeros.as_ptr());
                let sum = s.load_i32(sums.as_ptr().add(i));
                let v = super::tile::requantized(s, sum, multiplier, [low, high], zero);
                s.store_low_bytes(self.y.as_mut_ptr().add(i), S::LANES.min(len - i), v);
            }
        }
    }
}
