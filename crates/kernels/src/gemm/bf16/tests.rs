//! Products of bf16 against double precision on the rounded operands.

use super::super::tests::{case, reference};
use super::*;
use crate::Residual;
use crate::testing::{close, epilogue_reference, random, rounded};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gemm_matches_double_precision(c in case(), gap in 0usize..4) {
        if isa::bf16().is_err() {
            eprintln!("skipped: bf16 is not available");
            return Ok(());
        }
        let lda = c.k + gap;
        let a = random(c.m * lda + c.k, 1);
        let b = random(c.k * c.n, 2);
        let bias = c.bias.then(|| random(c.n, 3));
        let residual = random(c.m * c.n, 4);
        let epi = Epilogue {
            activation: c.activation,
            residual: match c.residual {
                0 => Residual::None,
                1 => Residual::BeforeActivation(&residual),
                _ => Residual::AfterActivation(&residual),
            },
        };
        let sums = reference(&c, 1.0, &rounded(&a), lda, &rounded(&b));
        let pool = Pool::new(c.threads);
        let packed = PackedBf16::new(c.k, c.n, &b, c.transposed);
        let mut scratch = vec![f32::NAN; packed.scratch_len(c.m, c.threads)];
        let mut y = vec![f32::NAN; c.m * c.n];
        gemm_bf16(c.m, &a, lda, &packed, bias.as_deref(), &epi, &mut y, &mut scratch, &pool);
        for (i, &y) in y.iter().enumerate() {
            let want = epilogue_reference(sums[i], bias.as_ref().map(|b| b[i % c.n]), &epi, i);
            prop_assert!(close(y, want), "at {i}: {y} instead of {want:?}");
        }
    }
}

#[test]
fn rounds_to_nearest_even() {
    let value = |bits: u32| f32::from_bits(bits);
    assert_eq!(round(1.0), 0x3f80);
    assert_eq!(round(value(0x3f80_8000)), 0x3f80, "a tie goes to even");
    assert_eq!(round(value(0x3f81_8000)), 0x3f82, "a tie goes to even");
    assert_eq!(round(value(0x3f80_8001)), 0x3f81);
    assert_eq!(round(-2.5), 0xc020);
    assert_eq!(round(f32::MAX), 0x7f80, "beyond the largest bf16");
    assert_eq!(round(f32::NEG_INFINITY), 0xff80);
    assert_eq!(round(1e-40), 0);
    assert!(f32::from_bits(u32::from(round(f32::NAN)) << 16).is_nan());
}

/// Weights are rounded in Rust, activations by the hardware: the same way.
#[test]
fn hardware_rounds_the_same() {
    if isa::bf16().is_err() {
        eprintln!("skipped: bf16 is not available");
        return;
    }
    let mut x = random(1001, 5);
    x.extend([0.0, -0.0, f32::INFINITY, f32::MAX, 1e-40, -1e-40, f32::MIN_POSITIVE]);
    x.extend((0..999).map(|i| f32::from_bits(0x3f80_8000 + i * 0x4001)));
    let mut out = vec![0.0f32; x.len().div_ceil(2)];
    simd::dispatch_pairs(Round {
        from: &x,
        rows: 1,
        columns: x.len(),
        stride: 0,
        out: &mut out,
        out_stride: 0,
    });
    for (i, &x) in x.iter().enumerate() {
        let half = (out[i / 2].to_bits() >> (16 * (i % 2))) as u16;
        assert_eq!(half, round(x), "{x:e}");
    }
}
