//! Products on AMX against double precision.

use super::super::tests::{case, reference};
use super::*;
use crate::testing::{close, epilogue_reference, random, rounded};
use proptest::prelude::*;

/// The bound of [`reference`], and of two terms what they leave out: of each product at most
/// 2^-18 for each operand's representation and for the product of the rests.
fn bound(terms: Terms, k: usize, (sum, bound): (f64, f64)) -> (f64, f64) {
    let size = bound / ((k as f64 + 8.0) * f64::from(f32::EPSILON));
    match terms {
        Terms::One => (sum, bound),
        Terms::Two => (sum, bound + 3.001 * (-18f64).exp2() * size),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn gemm_matches_double_precision(c in case(), gap in 0usize..4, two in any::<bool>()) {
        if !Isa::Amx.is_available() {
            eprintln!("skipped: AMX is not available");
            return Ok(());
        }
        let terms = if two { Terms::Two } else { Terms::One };
        let lda = c.k + gap;
        let a = random(c.m * lda + c.k, 1);
        let b = random(c.k * c.n, 2);
        let bias = c.bias.then(|| random(c.n, 3));
        let residual = random(c.m * c.n, 4);
        let epi = c.epilogue(&residual);
        let sums = match terms {
            Terms::One => reference(&c, 1.0, &rounded(&a), lda, &rounded(&b)),
            Terms::Two => reference(&c, 1.0, &a, lda, &b),
        };
        let pool = Pool::new(c.threads);
        let packed = PackedTiles::new(terms, c.k, c.n, &b, c.transposed);
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

/// Blocks of k, of rows and of columns at once.
#[test]
fn large_product() {
    if !Isa::Amx.is_available() {
        eprintln!("skipped: AMX is not available");
        return;
    }
    let (m, k, n) = (300, 3100, 70);
    let (a, b) = (random(m * k, 1), random(k * n, 2));
    for threads in [1, 3] {
        let packed = PackedTiles::new(Terms::Two, k, n, &b, false);
        let mut scratch = vec![f32::NAN; packed.scratch_len(m, threads)];
        let mut y = vec![f32::NAN; m * n];
        let pool = Pool::new(threads);
        gemm_tiled(m, &a, k, &packed, None, &Epilogue::NONE, &mut y, &mut scratch, &pool);
        // Of some elements, the error that such sums have in the mean: what is left out is random.
        let mut square = 0.0;
        for (i, j) in [(0, 0), (299, 69), (17, 31), (150, 32), (255, 64), (256, 1)] {
            let want: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
            let rms = (k as f64).sqrt() / 3.0;
            square += ((f64::from(y[i * n + j]) - want) / rms).powi(2) / 6.0;
        }
        assert!(square.sqrt() < 3.0 * (-18f64).exp2(), "{} of the rms", square.sqrt());
    }
}
