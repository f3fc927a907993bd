//! Products against double precision, on every instruction set of the machine.

use proptest::prelude::*;

use super::driver::{SHARED_B_BYTES, fetched};
use super::{BatchedGemm, PackedB, gemm};
use crate::activation::{Activation, Epilogue, Residual};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd;
use crate::testing::{close, epilogue_reference, random};

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) transposed: bool,
    pub(super) bias: bool,
    pub(super) residual: u8,
    pub(super) activation: Activation,
    pub(super) threads: usize,
}

impl Case {
    pub(super) fn epilogue<'a>(&self, residual: &'a [f32]) -> Epilogue<'a> {
        Epilogue {
            activation: self.activation,
            residual: match self.residual {
                0 => Residual::None,
                1 => Residual::BeforeActivation(residual),
                _ => Residual::AfterActivation(residual),
            },
        }
    }
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let activation = prop_oneof![
        Just(Activation::None),
        Just(Activation::Relu),
        Just(Activation::Clip { min: 0.0, max: 6.0 }),
        Just(Activation::HardSwish),
        Just(Activation::Gelu),
    ];
    let m = prop_oneof![1usize..30, 60usize..140];
    let k = prop_oneof![0usize..20, 100usize..1100];
    (m, 1usize..80, k, any::<bool>(), any::<bool>(), 0u8..3, activation, 1usize..4).prop_map(
        |(m, n, k, transposed, bias, residual, activation, threads)| Case {
            m,
            n,
            k,
            transposed,
            bias,
            residual,
            activation,
            threads,
        },
    )
}

pub(super) fn reference(c: &Case, alpha: f32, a: &[f32], lda: usize, b: &[f32]) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for i in 0..c.m {
        for j in 0..c.n {
            let (mut sum, mut size) = (0.0, 0.0);
            for p in 0..c.k {
                let b = if c.transposed { b[j * c.k + p] } else { b[p * c.n + j] };
                let term = f64::from(alpha) * f64::from(a[i * lda + p]) * f64::from(b);
                sum += term;
                size += term.abs();
            }
            // Rounding: each of the k sums errs by at most eps of the running size.
            out.push((sum, (c.k as f64 + 8.0) * f64::from(f32::EPSILON) * size));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn gemm_matches_double_precision(c in case()) {
        let lda = c.k + 3;
        let a = random(c.m * lda + c.k, 1);
        let b = random(c.k * c.n, 2);
        let bias = c.bias.then(|| random(c.n, 3));
        let residual = random(c.m * c.n, 4);
        let epi = c.epilogue(&residual);
        let sums = reference(&c, 1.0, &a, lda, &b);
        let pool = Pool::new(c.threads);
        for isa in Isa::available() {
            let packed = PackedB::new_with_isa(isa, c.k, c.n, &b, c.transposed);
            let mut y = vec![f32::NAN; c.m * c.n];
            gemm(c.m, &a, lda, &packed, bias.as_deref(), &epi, &mut y, &pool);
            for (i, &y) in y.iter().enumerate() {
                let want = epilogue_reference(sums[i], bias.as_ref().map(|b| b[i % c.n]), &epi, i);
                prop_assert!(close(y, want), "{isa} at {i}: {y} instead of {want:?}");
            }
        }
    }

    #[test]
    fn batched_matches_double_precision(c in case(), outer in 1usize..3, inner in 1usize..5) {
        let a = random(outer * c.m * c.k, 1);
        // The inner batches share a; the outer ones share b.
        let b = random(inner * c.k * c.n, 2);
        let g = BatchedGemm {
            batch: [outer, inner],
            m: c.m,
            n: c.n,
            k: c.k,
            a_batch_strides: [c.m * c.k, 0],
            a_row_stride: c.k,
            b_batch_strides: [0, c.k * c.n],
            b_row_stride: if c.transposed { c.k } else { c.n },
            b_is_transposed: c.transposed,
            alpha: 0.5,
        };
        let pool = Pool::new(c.threads);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; outer * inner * c.m * c.n];
            let mut scratch = vec![f32::NAN; g.scratch_len_with_isa(isa, c.threads)];
            let epi = Epilogue::activation(c.activation);
            g.run_with_isa(isa, &a, &b, None, &epi, &mut y, &mut scratch, &pool);
            for (batch, y) in y.chunks_exact(c.m * c.n).enumerate() {
                let a = &a[batch / inner * c.m * c.k..];
                let b = &b[batch % inner * c.k * c.n..];
                let sums = reference(&c, 0.5, a, c.k, b);
                for (i, &y) in y.iter().enumerate() {
                    let want = epilogue_reference(sums[i], None, &epi, i);
                    prop_assert!(close(y, want), "{isa} batch {batch} at {i}: {y}, {want:?}");
                }
            }
        }
    }
}

/// Of matrices beyond the second-level cache the next panel is asked for: by tiles of all heights, of
/// one block of k and several, with a last panel of its own width.
#[test]
fn large_matrices_match_double_precision() {
    for [m, n, k] in [[61, 250, 287], [53, 150, 447], [100, 66, 1101]] {
        let c = Case {
            m,
            n,
            k,
            transposed: true,
            bias: false,
            residual: 0,
            activation: Activation::None,
            threads: 1,
        };
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let sums = reference(&c, 1.0, &a, k, &b);
        for isa in Isa::available() {
            let packed = PackedB::new_with_isa(isa, k, n, &b, c.transposed);
            let (_, mr, _) = simd::tile_of(isa);
            let asks = packed.bytes() > SHARED_B_BYTES && fetched(m, mr, k) > 0;
            assert!(asks, "{isa} asks for nothing");
            let mut y = vec![f32::NAN; m * n];
            gemm(m, &a, k, &packed, None, &Epilogue::NONE, &mut y, &Pool::single());
            for (i, &y) in y.iter().enumerate() {
                let want = epilogue_reference(sums[i], None, &Epilogue::NONE, i);
                assert!(close(y, want), "{isa} {m}x{n}x{k} at {i}: {y} instead of {want:?}");
            }
        }
    }
}

#[test]
fn nan_survives_relu() {
    let pool = Pool::single();
    for isa in Isa::available() {
        let b = PackedB::new_with_isa(isa, 1, 1, &[f32::NAN], false);
        let mut y = [0.0];
        gemm(1, &[1.0], 1, &b, None, &Epilogue::activation(Activation::Relu), &mut y, &pool);
        assert!(y[0].is_nan(), "{isa}");
    }
}
