//! Tensor cores of an NVIDIA GPU against double precision; other GPUs refuse TF32.

use sparoa_core::backend::BackendError;
use sparoa_gpu::{GpuOptions, GpuPrecision, open_gpu};

use crate::{
    device::{Case, gpu, options},
    rounded,
};

const PRECISIONS: [GpuPrecision; 2] = [GpuPrecision::Tf32, GpuPrecision::Fp16];

#[test]
fn products_on_tensor_cores_are_within_their_bounds() {
    for precision in PRECISIONS {
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
            for sample in rounded::samples() {
                let case = Case {
                    op: sample.op.clone(),
                    inputs: sample.inputs.iter().map(|(v, _)| Some(v.clone())).collect(),
                    constant: sample.inputs.iter().map(|(_, constant)| *constant).collect(),
                };
                for lead in [0, 4] {
                    let got = case.on_gpu(&*gpu, lead).unwrap();
                    let how = format!("in {} for {units:?} units, {lead}", precision.name());
                    rounded::check(&sample, got[0].as_slice().unwrap(), &how);
                }
            }
        }
    }
}

#[test]
fn a_gpu_without_tensor_cores_refuses_tf32() {
    let Some(gpu) = gpu().filter(|gpu| !gpu.info().driver.starts_with("CUDA")) else {
        println!("skipped: no GPU on wgpu");
        return;
    };
    let precision = GpuPrecision::Tf32;
    let error = open_gpu(&GpuOptions { precision, ..options() }).err().unwrap();
    assert!(matches!(error, BackendError::Precision { .. }), "{error}");
    let text = error.to_string();
    for part in [precision.name(), &gpu.info().name, "--precision fp32", "--gpu cuda"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
