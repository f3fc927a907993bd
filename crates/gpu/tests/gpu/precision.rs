//! Tensor cores of an NVIDIA GPU against double precision; other GPUs refuse TF32 and bf16.

use sparoa_core::{
    backend::{BackendError, upload_ready},
    ops,
    tensor::Tensor,
};
use sparoa_gpu::{GpuOptions, GpuPrecision, open_gpu};

use crate::{
    device::{Case, gpu, options},
    rounded::{self, Rounding},
};

const PRECISIONS: [(GpuPrecision, Rounding); 3] = [
    (GpuPrecision::Tf32, Rounding::F16),
    (GpuPrecision::Fp16, Rounding::F16),
    (GpuPrecision::Bf16, Rounding::BF16),
];

#[test]
fn products_on_tensor_cores_are_within_their_bounds() {
    for (precision, rounding) in PRECISIONS {
        for units in [None, Some(16), Some(1)] {
            let options =
                GpuOptions { name: Some("cuda".to_owned()), precision, units, ..options() };
            let gpu = match open_gpu(&options) {
                Ok(gpu) => gpu,
                Err(error) => {
                    println!("skipped: {error}");
                    return;
                }
            };
            for sample in rounded::samples(rounding) {
                let case = Case {
                    op: sample.op.clone(),
                    inputs: sample.inputs.iter().map(|(v, _)| Some(v.clone())).collect(),
                    constant: sample.inputs.iter().map(|(_, constant)| *constant).collect(),
                };
                for lead in [0, 4] {
                    let got = case.on_gpu(&*gpu, lead).unwrap();
                    let how = format!("in {} for {units:?} units, {lead}", precision.name());
                    rounded::check(&sample, got[0].as_slice().unwrap(), false, &how);
                    let got = case.on_gpu_alone(&*gpu, lead).unwrap();
                    let stored = precision != GpuPrecision::Tf32;
                    let how = format!("{how}, on the device alone");
                    rounded::check(&sample, got[0].as_slice().unwrap(), stored, &how);
                }
            }
        }
    }
}

/// The negatives of numbers, by a CUDA device that stores them so, `lead` bytes into its memory; `None`
/// where there is none. `locked`: it reads them itself.
fn negatives(
    precision: GpuPrecision,
    values: &[f32],
    lead: usize,
    locked: bool,
) -> Option<Vec<f32>> {
    let options = GpuOptions { name: Some("cuda".to_owned()), precision, ..options() };
    let gpu = match open_gpu(&options) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    let values = Tensor::from_slice([values.len()], values);
    let values = if locked { upload_ready(Some(&*gpu), values) } else { values };
    let case = Case {
        op: (ops::find("", "Neg").unwrap().parse)(&ops::Attributes::default()).unwrap(),
        inputs: vec![Some(values)],
        constant: vec![false],
    };
    let got = case.on_gpu_alone(&*gpu, lead).unwrap().remove(0);
    Some(got.as_slice::<f32>().unwrap().to_vec())
}

/// What f16 cannot hold becomes infinite, as it does on every engine that computes in f16; inputs
/// that it cannot hold are so already.
#[test]
fn overflow_is_infinite() {
    let values = [1.0f32, -300.0, 65_504.0, 65_519.0, 65_520.0, -1.0e6, 1.0e-7, 0.1];
    let stored =
        [1.0, -300.0, 65_504.0, 65_504.0, f32::INFINITY, f32::NEG_INFINITY, 2.0f32.powi(-23)];
    let Some(got) = negatives(GpuPrecision::Fp16, &values, 0, false) else { return };
    let got: Vec<f32> = got.iter().map(|v| -v).collect();
    assert_eq!(got[..7], stored);
    assert!(got[7] != 0.1 && (got[7] - 0.1).abs() < 0.1 / 2048.0, "{}", got[7]);
}

/// bf16 has f32's range: what f16 cannot hold stays, with 8 significant bits.
#[test]
fn large_numbers_stay_in_bf16() {
    let values =
        [1.0f32, -300.0, 65_520.0, 1.0e30, -1.0e-30, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3.0e38];
    let stored = [1.0, -300.0, 65_536.0, 1.0e30, -1.0e-30, 1.0, 1.015_625, 3.0e38];
    let Some(got) = negatives(GpuPrecision::Bf16, &values, 0, false) else { return };
    for (got, stored) in got.iter().zip(stored) {
        let same = half::bf16::from_f32(stored).to_f32();
        assert_eq!(-got, same, "{stored}");
    }
}

#[test]
fn a_gpu_without_tensor_cores_refuses_tf32_and_bf16() {
    let Some(gpu) = gpu().filter(|gpu| !gpu.info().driver.starts_with("CUDA")) else {
        println!("skipped: no GPU on wgpu");
        return;
    };
    for precision in [GpuPrecision::Tf32, GpuPrecision::Bf16] {
        let error = open_gpu(&GpuOptions { precision, ..options() }).err().unwrap();
        assert!(matches!(error, BackendError::Precision { .. }), "{error}");
        let text = error.to_string();
        for part in [precision.name(), &gpu.info().name, "--precision fp32", "--gpu cuda"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

/// Whether the host rounds an input or the device does, which reads it where it lies, is the same to
/// the last bit, at any place and of any length.
#[test]
fn host_and_device_round_inputs_alike() {
    let edges = [0.0f32, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65_519.9, 65_520.0];
    let mut state = 0x9e37_79b9_u32;
    let any = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from_bits(state)
    });
    let values: Vec<f32> = edges.into_iter().chain(any).take(100_003).collect();
    for precision in [GpuPrecision::Fp16, GpuPrecision::Bf16] {
        for (length, lead) in [(1, 0), (4, 0), (1028, 0), (100_000, 0), (100_003, 0), (1028, 4)] {
            let values = &values[..length];
            let Some(host) = negatives(precision, values, lead, false) else { return };
            let device = negatives(precision, values, lead, true).unwrap();
            let same =
                |(h, d): (&f32, &f32)| h.to_bits() == d.to_bits() || h.is_nan() && d.is_nan();
            let different = host.iter().zip(&device).position(|pair| !same(pair));
            assert_eq!(different, None, "{precision:?}, {length} numbers, {lead}");
        }
    }
}
