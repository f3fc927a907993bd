//! One backend for all tests, and running a single operator on it.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex},
};

use sparoa_core::{
    backend::{Accelerator, Arg, BackendError, ProgramSpec, TaskSpec, ValueAccesses, View},
    ops::{self, Op, Operand, Operands, evaluate},
    tensor::{DType, Tensor, TensorType},
};
use sparoa_gpu::{GpuOptions, open_gpu};
use sparoa_kernels::Pool;

pub use crate::rounded::values;

/// The options of the tests: any adapter will do. `SPAROA_GPU=cuda` runs them on CUDA.
pub fn options() -> GpuOptions {
    GpuOptions { allow_software: true, ..GpuOptions::from_env() }
}

/// The shared backend, or `None` (and a message) where there is no adapter.
pub fn gpu() -> Option<Arc<dyn Accelerator>> {
    static GPU: LazyLock<Option<Arc<dyn Accelerator>>> = LazyLock::new(|| {
        open_gpu(&options()).inspect_err(|e| println!("skipped: no GPU: {e}")).ok()
    });
    GPU.clone()
}

/// The shared backend, and with the kernels that a large GPU gets, on whatever adapter.
pub fn gpus() -> Vec<Arc<dyn Accelerator>> {
    static LARGE: LazyLock<Option<Arc<dyn Accelerator>>> =
        LazyLock::new(|| open_gpu(&GpuOptions { units: Some(132), ..options() }).ok());
    gpu().into_iter().chain(LARGE.clone()).collect()
}

/// A pool of one thread.
pub fn pool() -> Pool {
    Pool::new(1)
}

/// A node: an operator, its inputs, and which of them are constants.
pub struct Case {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Option<Tensor>>,
    pub constant: Vec<bool>,
}

impl Case {
    pub fn operands(&self) -> Vec<Option<Operand>> {
        let operand = |(value, &constant): (&Option<Tensor>, &bool)| {
            value.as_ref().map(|value| match constant {
                true => Operand::constant(Arc::new(value.clone())),
                false => Operand::dynamic(value.ty().clone()),
            })
        };
        self.inputs.iter().zip(&self.constant).map(operand).collect()
    }

    /// Output types, `None` where they depend on run-time values.
    pub fn outputs(&self) -> Option<Vec<TensorType>> {
        self.op.infer(&self.operands()).ok()
    }

    /// Why the backend does not run it, if it does not.
    pub fn unsupported(&self, gpu: &dyn Accelerator) -> Option<String> {
        let outputs = self.outputs()?;
        let operands = self.operands();
        gpu.supports(&*self.op, &Operands { inputs: &operands, outputs: &outputs }).err()
    }

    /// The CPU kernels' outputs.
    pub fn on_cpu(&self) -> Vec<Tensor> {
        let inputs: Vec<Option<&Tensor>> = self.inputs.iter().map(Option::as_ref).collect();
        evaluate(&*self.op, &inputs, &pool()).unwrap()
    }

    /// The backend's outputs. Each run-time value lies `lead` bytes into its slot.
    pub fn on_gpu(&self, gpu: &dyn Accelerator, lead: usize) -> Result<Vec<Tensor>, BackendError> {
        let (spec, uploads) = self.program(lead);
        run(gpu, spec, &uploads)
    }

    /// The same of outputs that are f32 and stay on the device, where a backend may store them, and
    /// the inputs, otherwise: their negatives are what is downloaded, and negated again.
    pub fn on_gpu_alone(
        &self,
        gpu: &dyn Accelerator,
        lead: usize,
    ) -> Result<Vec<Tensor>, BackendError> {
        let (mut spec, uploads) = self.program(lead);
        let negate = (ops::find("", "Neg").unwrap().parse)(&ops::Attributes::default()).unwrap();
        let float =
            |arg: &Option<Arg>| matches!(arg, Some(Arg::Slot(_, ty)) if ty.dtype == DType::F32);
        let inputs = spec.tasks[0].inputs.iter().enumerate();
        let slots = inputs.filter(|(_, arg)| matches!(arg, Some(Arg::Slot(..))));
        for (upload, (i, _)) in slots.enumerate().filter(|(_, (_, arg))| float(arg)) {
            let value = ValueAccesses { inputs: vec![(0, i)], ..ValueAccesses::default() };
            spec.values.push(ValueAccesses { uploads: vec![upload], ..value });
        }
        for (i, (view, ty)) in spec.tasks[0].outputs.clone().into_iter().enumerate() {
            let negative = View { slot: spec.slots.len(), ..view };
            spec.slots.push(lead + view.bytes);
            spec.values.push(ValueAccesses {
                inputs: vec![(spec.tasks.len(), 0)],
                outputs: vec![(0, i)],
                ..ValueAccesses::default()
            });
            spec.tasks.push(TaskSpec {
                name: "negative".to_owned(),
                op: negate.clone(),
                inputs: vec![Some(Arg::Slot(view, ty.clone()))],
                outputs: vec![(negative, ty)],
            });
            spec.downloads[i] = negative;
        }
        spec.segments = vec![0..spec.tasks.len()];
        let mut results = run(gpu, spec, &uploads)?;
        for result in &mut results {
            result.as_slice_mut::<f32>().unwrap().iter_mut().for_each(|v| *v = -*v);
        }
        Ok(results)
    }

    /// A program of this node alone, and what to upload.
    fn program(&self, lead: usize) -> (ProgramSpec, Vec<&Tensor>) {
        let outputs = self.outputs().unwrap();
        let mut spec = ProgramSpec::default();
        let slot = |spec: &mut ProgramSpec, bytes: usize| {
            spec.slots.push(lead + bytes);
            View { slot: spec.slots.len() - 1, offset: lead, bytes }
        };
        let mut uploads = Vec::new();
        let mut inputs = Vec::new();
        for (value, &constant) in self.inputs.iter().zip(&self.constant) {
            inputs.push(value.as_ref().map(|value| {
                if constant {
                    return Arg::Constant(Arc::new(value.clone()));
                }
                let view = slot(&mut spec, value.ty().bytes());
                spec.uploads.push(view);
                uploads.push(value);
                Arg::Slot(view, value.ty().clone())
            }));
        }
        let outputs: Vec<(View, TensorType)> =
            outputs.into_iter().map(|ty| (slot(&mut spec, ty.bytes()), ty)).collect();
        spec.downloads = outputs.iter().map(|(view, _)| *view).collect();
        let task =
            TaskSpec { name: self.op.op_type().to_owned(), op: self.op.clone(), inputs, outputs };
        spec.tasks.push(task);
        spec.segments.push(0..1);
        (spec, uploads)
    }

    /// Runs it on both and compares.
    pub fn check(&self, gpu: &dyn Accelerator, name: &str, lead: usize) {
        let expected = self.on_cpu();
        let got = self.on_gpu(gpu, lead).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(expected.len(), got.len(), "{name}");
        for (expected, got) in expected.iter().zip(&got) {
            assert_close(expected, got, name);
        }
    }
}

/// Runs a program once; its downloads have the types of the first task's outputs.
fn run(
    gpu: &dyn Accelerator,
    spec: ProgramSpec,
    uploads: &[&Tensor],
) -> Result<Vec<Tensor>, BackendError> {
    let types: Vec<TensorType> = spec.tasks[0].outputs.iter().map(|(_, ty)| ty.clone()).collect();
    let program = gpu.load(spec)?;
    for (i, value) in uploads.iter().enumerate() {
        program.upload(i, value.bytes(), &pool())?;
    }
    program.launch(0)?;
    let mut results = Vec::new();
    for (i, ty) in types.into_iter().enumerate() {
        let mut tensor = Tensor::zeros(ty);
        program.download(i, tensor.bytes_mut())?;
        results.push(tensor);
    }
    Ok(results)
}

/// Equal integers; floats within the error that another order of summation makes.
pub fn assert_close(expected: &Tensor, got: &Tensor, name: &str) {
    assert_eq!(expected.ty(), got.ty(), "{name}");
    if expected.dtype() != DType::F32 {
        assert_eq!(expected.bytes(), got.bytes(), "{name}");
        return;
    }
    let (e, g) = (expected.as_slice::<f32>().unwrap(), got.as_slice::<f32>().unwrap());
    let scale = e.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
    for (i, (e, g)) in e.iter().zip(g).enumerate() {
        let same = e == g || (e.is_nan() && g.is_nan());
        let tolerance = 2e-5 * scale + 2e-4 * e.abs();
        assert!(same || (e - g).abs() <= tolerance, "{name}: element {i} is {g}, expected {e}");
    }
}

/// Names printed once however often a suite meets them.
pub fn print_once(text: String) {
    static SEEN: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    if SEEN.lock().unwrap().insert(text.clone()) {
        println!("{text}");
    }
}
