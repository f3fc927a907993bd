//! What the kernels' tests have in common: data, references, bounds.

use crate::activation::{Epilogue, Residual};

/// Reproducible values in -1 .. 1.
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Values rounded to bf16.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    let one = |&x| f32::from_bits(u32::from(crate::gemm::bf16::round(x)) << 16);
    values.iter().map(one).collect()
}

/// Applies bias and epilogue to an exact sum with its error bound.
pub(crate) fn epilogue_reference(
    (sum, bound): (f64, f64),
    bias: Option<f32>,
    epi: &Epilogue<'_>,
    i: usize,
) -> (f64, f64) {
    let mut v = sum + f64::from(bias.unwrap_or(0.0));
    let mut size = v.abs() + sum.abs();
    if let Residual::BeforeActivation(r) = epi.residual {
        v += f64::from(r[i]);
        size += f64::from(r[i]).abs();
    }
    // The activations used in tests have slopes below 1.6.
    let mut y = f64::from(epi.activation.apply(v as f32));
    if let Residual::AfterActivation(r) = epi.residual {
        y += f64::from(r[i]);
        size += f64::from(r[i]).abs();
    }
    (y, 1.6 * bound + 12.0 * f64::from(f32::EPSILON) * (size + y.abs()) + 1e-37)
}

/// Whether a value is within the bound of the reference.
pub(crate) fn close(value: f32, (want, bound): (f64, f64)) -> bool {
    (f64::from(value) - want).abs() <= bound || (value.is_nan() && want.is_nan())
}
