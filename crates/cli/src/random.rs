//! Seeded random inputs, the default when no file is given.

use rand::{RngExt, SeedableRng};
use sparoa::{DType, Tensor, TensorType};

/// A tensor of this type that depends on the seed and the input's index alone. Floats are uniform
/// in [-1, 1); integers 0 or 1 (legal as token, mask and index); sampling rates and the like must
/// be given as files.
pub fn tensor(ty: &TensorType, seed: u64, index: usize) -> Tensor {
    let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(seed ^ (index as u64) << 32);
    let mut out = Tensor::zeros(ty.clone());
    match ty.dtype {
        DType::F32 => {
            for v in out.as_slice_mut::<f32>().expect("type checked") {
                *v = rng.random_range(-1.0..1.0);
            }
        }
        DType::F64 => {
            for v in out.as_slice_mut::<f64>().expect("type checked") {
                *v = rng.random_range(-1.0..1.0);
            }
        }
        DType::F16 => {
            for v in out.as_slice_mut::<sparoa::f16>().expect("type checked") {
                *v = sparoa::f16::from_f32(rng.random_range(-1.0..1.0));
            }
        }
        DType::U8 | DType::I8 => {
            // Pixels or quantised values: the whole positive range.
            for v in out.bytes_mut() {
                *v = rng.random_range(0..128);
            }
        }
        integer => {
            for element in out.bytes_mut().chunks_exact_mut(integer.size()) {
                element[0] = rng.random_range(0..2);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_decide() {
        let ty = TensorType::f32([64]);
        assert_eq!(tensor(&ty, 1, 0), tensor(&ty, 1, 0));
        assert_ne!(tensor(&ty, 1, 0), tensor(&ty, 2, 0));
        assert_ne!(tensor(&ty, 1, 0), tensor(&ty, 1, 1));
        let ids = tensor(&TensorType::new(DType::I64, [100]), 3, 0).to_i64s().unwrap();
        assert!(ids.iter().all(|v| (0..2).contains(v)) && ids.contains(&1));
    }
}
