//! Peak rates of this machine's cores, measured: the yardsticks of a roofline.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::amx::{DEPTH, SIDE, Tiles};
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd::{self, Kernel, Simd};

/// One core's peak of fused multiply-adds in FLOP/s, measured for about 20 ms.
pub fn fma_peak_flops() -> f64 {
    peak_flops(2.0, |kernel| simd::dispatch(isa::best(), kernel))
}

/// The same of bf16, on AMX or in pairs, where [`isa::bf16`] says that they can be used.
pub fn bf16_peak_flops() -> Option<f64> {
    if isa::best() == Isa::Amx {
        let tiles = Tiles::configure();
        let (products, flops) = (100_000, 2.0 * (SIDE * SIDE * DEPTH) as f64);
        return Some(best_rate(|| {
            tiles.spin(products);
            4.0 * flops * products as f64
        }));
    }
    isa::bf16().ok().map(|()| peak_flops(4.0, simd::dispatch_pairs))
}

/// [`fma_peak_flops`] of all the pool's threads at once.
pub fn pool_fma_peak_flops(pool: &Pool) -> f64 {
    sum_over(pool, &|_| fma_peak_flops())
}

/// Bytes per second that the pool's threads read from `bytes` of memory in all, again and again
/// for about 0.1 s.
pub fn read_bytes_per_s(pool: &Pool, bytes: usize) -> f64 {
    let threads = pool.threads();
    let part = (bytes / size_of::<f32>() / threads).max(1024);
    let memory: Vec<f32> = vec![1.0; part * threads];
    sum_over(pool, &|i| {
        let part = &memory[i * part..][..part];
        let (start, mut read) = (Instant::now(), 0usize);
        while start.elapsed() < Duration::from_millis(100) {
            black_box(simd::dispatch(isa::best(), Read(part)));
            read += size_of_val(part);
        }
        read as f64 / start.elapsed().as_secs_f64()
    })
}

/// The sum of the rates that each thread of the pool measures while the others do as well.
fn sum_over(pool: &Pool, rate: &(dyn Fn(usize) -> f64 + Sync)) -> f64 {
    let sum = Mutex::new(0.0);
    let waiting = std::sync::atomic::AtomicUsize::new(pool.threads());
    pool.run(pool.threads(), &|i| {
        // All threads start together, unless one thread has to do another's work.
        use std::sync::atomic::Ordering::AcqRel;
        waiting.fetch_sub(1, AcqRel);
        let start = Instant::now();
        while waiting.load(std::sync::atomic::Ordering::Acquire) > 0
            && start.elapsed() < Duration::from_millis(20)
        {
            std::hint::spin_loop();
        }
        let rate = rate(i);
        *sum.lock().expect("no thread panics while it holds the sum") += rate;
    });
    sum.into_inner().expect("no thread panics while it holds the sum")
}

struct Peak(usize);

impl Kernel for Peak {
    type Output = f64;
    /// Lanes computed.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let x = s.splat(black_box(0.5));
        let mut acc = [s.splat(black_box(1.0)); 12];
        for _ in 0..self.0 {
            for a in &mut acc {
                *a = s.multiply_words(x, x, *a);
            }
        }
        let mut sum = s.splat(0.0);
        for a in acc {
            sum = s.add(sum, a);
        }
        black_box(s.reduce_add(sum));
        (self.0 * 12 * S::LANES) as f64
    }
}

fn peak_flops(flops_per_lane: f64, dispatch: impl Fn(Peak) -> f64) -> f64 {
    best_rate(|| dispatch(Peak(400_000)) * flops_per_lane)
}

/// The most operations per second of some runs; each returns how many it did.
fn best_rate(run: impl Fn() -> f64) -> f64 {
    let mut best = 0.0f64;
    for _ in 0..20 {
        let start = Instant::now();
        let flops = run();
        best = best.max(flops / start.elapsed().as_secs_f64());
    }
    best
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.splat(0.0); 8];
        for block in self.0.chunks_exact(8 * S::LANES) {
            for (i, a) in acc.iter_mut().enumerate() {
                // SAFETY: the block holds 8 * LANES elements.
                *a = s.add(*a, unsafe { s.load(block.as_ptr().add(i * S::LANES)) });
            }
        }
        let mut sum = s.splat(0.0);
        for a in acc {
            sum = s.add(sum, a);
        }
        s.reduce_add(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_a_computer() {
        let pool = Pool::new(2);
        let read = read_bytes_per_s(&pool, 64 << 10);
        assert!((1e8..1e14).contains(&read), "{read} bytes per second");
        let flops = fma_peak_flops();
        assert!((1e7..1e13).contains(&flops), "{flops} FLOP per second");
    }
}
