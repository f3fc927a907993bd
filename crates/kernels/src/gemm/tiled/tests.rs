//! Products on AMX against double precision.

use super::super::tests::{case, reference};
use super::*;
use crate::testing::{close, epilogue_reference, random, rounded};
use proptest::prelude::*;

/// The bound of [`reference`], and what terms leave out; less than at the worst, which takes numbers
/// just below a half step above a power of two (2^-15 and 2^-24 of a product).
pub(crate) fn bound(terms: Terms, k: usize, (sum, bound): (f64, f64)) -> (f64, f64) {
    let size = bound / ((k as f64 + 8.0) * f64::from(f32::EPSILON));
    match terms {
        Terms::One => (sum, bound),
        Terms::Two => (sum, bound + 3.001 * (-18f64).exp2() * size),
        Terms::Three => (sum, bound + 2.001 * (-27f64).exp2() * size),
    }
}

pub(crate) fn terms() -> impl Strategy<Value = Terms> {
    prop_oneof![Just(Terms::One), Just(Terms::Two), Just(Terms::Three)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn gemm_matches_double_precision(c in case(), gap in 0usize..4, terms in terms()) {
        if !Isa::Amx.is_available() {
            eprintln!("skipped: AMX is not available");
            return Ok(());
        }
        let lda = c.k + gap;
        let a = random(c.m * lda + c.k, 1);
        let b = random(c.k * c.n, 2);
        let bias = c.bias.then(|| random(c.n, 3));
        let residual = random(c.m * c.n, 4);
        let epi = c.epilogue(&residual);
        let sums = match terms {
            Terms::One => reference(&c, 1.0, &rounded(&a), lda, &rounded(&b)),
            Terms::Two | Terms::Three => reference(&c, 1.0, &a, lda, &b),
        };
        let pool = Pool::new(c.threads);
        let packed = PackedTiles::new(terms, [c.m, c.k, c.n], &b, c.transposed);
        let mut scratch = vec![f32::NAN; packed.scratch_len(c.m, c.threads)];
        let mut y = vec![f32::NAN; c.m * c.n];
        gemm_tiled(c.m, &a, lda, &packed, bias.as_deref(), &epi, &mut y, &mut scratch, &pool);
        for (i, &y) in y.iter().enumerate() {
            let sum = bound(terms, c.k, sums[i]);
            let want = epilogue_reference(sum, bias.as_ref().map(|b| b[i % c.n]), &epi, i);
            prop_assert!(close(y, want), "at {i}: {y} instead of {want:?}");
        }
    }
}

/// A product of some size, by [`gemm_tiled`] and in double precision.
struct Large {
    size: [usize; 3],
    a: Vec<f32>,
    b: Vec<f32>,
    sums: Vec<f64>,
}

impl Large {
    fn new(size: [usize; 3]) -> Large {
        let [m, k, n] = size;
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let mut sums = vec![0.0; m * n];
        for (a, sums) in a.chunks_exact(k).zip(sums.chunks_exact_mut(n)) {
            for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum += f64::from(a) * f64::from(b);
                }
            }
        }
        Large { size, a, b, sums }
    }

    fn on_tiles(&self, terms: Terms, a: &[f32], threads: usize) -> Vec<f32> {
        let [m, k, n] = self.size;
        let packed = PackedTiles::new(terms, self.size, &self.b, false);
        let mut scratch = vec![f32::NAN; packed.scratch_len(m, threads)];
        let mut y = vec![f32::NAN; m * n];
        let pool = Pool::new(threads);
        gemm_tiled(m, a, k, &packed, None, &Epilogue::NONE, &mut y, &mut scratch, &pool);
        y
    }

    /// The mean error of a product, of the mean size of a sum.
    fn error(&self, y: &[f32]) -> f64 {
        let errors = y.iter().zip(&self.sums).map(|(y, sum)| (f64::from(*y) - sum).powi(2));
        (errors.sum::<f64>() / self.sums.iter().map(|sum| sum * sum).sum::<f64>()).sqrt()
    }
}

/// Blocks of k, of rows and of columns at once; terms of B that are made before, and where used.
#[test]
fn large_product() {
    if !Isa::Amx.is_available() {
        eprintln!("skipped: AMX is not available");
        return;
    }
    for size in [[300, 3100, 70], [100, 1500, 70]] {
        let large = Large::new(size);
        let [m, k, n] = size;
        let mut plain = vec![f32::NAN; m * n];
        let b = crate::gemm::PackedB::new_with_isa(Isa::Avx512, k, n, &large.b, false);
        let pool = Pool::single();
        crate::gemm::gemm(m, &large.a, k, &b, None, &Epilogue::NONE, &mut plain, &pool);
        for threads in [1, 3] {
            // What two terms leave out has random signs; three are as good as f32.
            let error = large.error(&large.on_tiles(Terms::Two, &large.a, threads));
            assert!(error < 3.0 * (-18f64).exp2(), "two terms: {error}");
            let error = large.error(&large.on_tiles(Terms::Three, &large.a, threads));
            assert!(error < large.error(&plain), "three terms: {error}");
        }
    }
}

/// Numbers that have no finite terms stay in their rows, and are there what they are in f32.
#[test]
fn infinite_numbers() {
    if !Isa::Amx.is_available() {
        eprintln!("skipped: AMX is not available");
        return;
    }
    let size @ [m, k, n] = [150, 1300, 130];
    let large = Large::new(size);
    let mut a = large.a.clone();
    let row = |row: usize, at: usize| row * k + at;
    a[row(3, 1299)] = f32::INFINITY;
    a[row(40, 0)] = f32::NEG_INFINITY;
    a[row(40, 17)] = f32::INFINITY;
    a[row(77, 500)] = f32::from_bits(0x7fff_ffff);
    a[row(149, 640)] = -f32::MAX;
    for (threads, terms) in [(1, Terms::Two), (1, Terms::Three), (3, Terms::Two), (3, Terms::Three)]
    {
        let (y, usual) =
            (large.on_tiles(terms, &a, threads), large.on_tiles(terms, &large.a, threads));
        for i in 0..m * n {
            let (column, y) = (i % n, y[i]);
            let weight = |at: usize| large.b[at * n + column];
            let infinite = |sign: f32| sign.signum() * f32::INFINITY;
            match i / n {
                3 => assert_eq!(y, infinite(weight(1299)), "{terms:?}"),
                40 if weight(0) * weight(17) > 0.0 => assert!(y.is_nan(), "{terms:?}"),
                40 => assert_eq!(y, infinite(weight(17)), "{terms:?}"),
                77 => assert!(y.is_nan(), "{terms:?}"),
                149 => assert!(y == infinite(-weight(640)) || y.abs() > 1e37 * weight(640).abs()),
                // Rows beside them may be multiplied in the other way.
                _ => assert!((y - usual[i]).abs() < 1e-3, "{terms:?}: {y} {}", usual[i]),
            }
        }
    }
}
