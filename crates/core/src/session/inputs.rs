//! Input tensors: checked against the model, or made up.

use rand::{RngExt as _, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::{SessionError, ValueInfo};
use crate::{
    ir::Graph,
    tensor::{DType, Tensor, TensorType},
};

/// The tensors in the model's order.
pub(super) fn by_name<'a>(
    infos: &[ValueInfo],
    given: &'a [(&str, Tensor)],
) -> Result<Vec<&'a Tensor>, SessionError> {
    for (name, _) in given {
        if !infos.iter().any(|i| i.name == *name) {
            let names: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
            let inputs = names.join(", ");
            return Err(SessionError::UnknownInput { name: (*name).to_owned(), inputs });
        }
    }
    let mut ordered = Vec::with_capacity(infos.len());
    for info in infos {
        let mut matching = given.iter().filter(|(name, _)| *name == info.name);
        let (Some((_, tensor)), None) = (matching.next(), matching.next()) else {
            return Err(SessionError::InputCount {
                name: info.name.clone(),
                expected: type_text(info),
                times: given.iter().filter(|(name, _)| *name == info.name).count(),
            });
        };
        ordered.push(tensor);
    }
    check(infos, &ordered)?;
    Ok(ordered)
}

/// Checks number and types of tensors in the model's order. Nothing is converted silently.
pub(super) fn check(infos: &[ValueInfo], given: &[&Tensor]) -> Result<(), SessionError> {
    for (i, info) in infos.iter().enumerate() {
        let Some(tensor) = given.get(i) else {
            let (name, expected) = (info.name.clone(), type_text(info));
            return Err(SessionError::InputCount { name, expected, times: 0 });
        };
        if info.ty.as_ref().is_some_and(|ty| ty != tensor.ty()) {
            return Err(SessionError::InputType {
                name: info.name.clone(),
                expected: type_text(info),
                given: tensor.ty().to_string(),
            });
        }
    }
    if let Some(extra) = given.get(infos.len()) {
        return Err(SessionError::UnknownInput {
            name: format!("number {} ({})", infos.len(), extra.ty()),
            inputs: infos.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", "),
        });
    }
    Ok(())
}

fn type_text(info: &ValueInfo) -> String {
    info.ty.as_ref().map_or_else(|| "any type".to_owned(), ToString::to_string)
}

/// A reproducible tensor: floats uniform in [-1, 1), bytes uniform, other integers 0 or 1 (so
/// that they are valid as indices), booleans either.
pub fn random_tensor(ty: &TensorType, seed: u64) -> Tensor {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut tensor = Tensor::zeros(ty.clone());
    let mut bit = || u8::from(rng.random_bool(0.5));
    match ty.dtype {
        DType::Bool => tensor.bytes_mut().fill_with(bit),
        DType::I16 | DType::U16 | DType::I32 | DType::U32 | DType::I64 | DType::U64 => {
            // Little-endian or not: the first or last byte decides between 0 and 1.
            let size = ty.dtype.size();
            let low = if cfg!(target_endian = "little") { 0 } else { size - 1 };
            for element in tensor.bytes_mut().chunks_exact_mut(size) {
                element[low] = bit();
            }
        }
        DType::U8 | DType::I8 => tensor.bytes_mut().fill_with(|| rng.random()),
        DType::F32 => {
            for v in tensor.as_slice_mut::<f32>().into_iter().flatten() {
                *v = rng.random_range(-1.0..1.0);
            }
        }
        DType::F64 => {
            for v in tensor.as_slice_mut::<f64>().into_iter().flatten() {
                *v = rng.random_range(-1.0..1.0);
            }
        }
        DType::F16 => {
            for v in tensor.as_slice_mut::<half::f16>().into_iter().flatten() {
                *v = half::f16::from_f32(rng.random_range(-1.0..1.0));
            }
        }
    }
    tensor
}

/// A [`random_tensor`] for each input of a graph.
pub(super) fn random_inputs(graph: &Graph) -> Vec<Tensor> {
    let types = graph.inputs.iter().map(|&id| &graph.value(id).ty);
    types.zip(1..).map(|(ty, seed)| random_tensor(ty, seed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tensors_are_reproducible_in_every_type() {
        for dtype in DType::ALL {
            let ty = TensorType::new(dtype, [3, 5]);
            let tensor = random_tensor(&ty, 7);
            assert_eq!(tensor.ty(), &ty);
            assert_eq!(tensor, random_tensor(&ty, 7), "{dtype}");
            assert_ne!(tensor, random_tensor(&ty, 8), "{dtype}");
            if let (Some(ints), false) = (tensor.to_i64s(), dtype.size() == 1) {
                assert!(ints.iter().all(|i| (0..=1).contains(i)), "{dtype}");
            }
        }
    }
}
