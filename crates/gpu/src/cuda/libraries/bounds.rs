//! Every way that a library offers, against double precision, on the device. Says that it was skipped
//! where there is no device or no library.

use std::sync::Arc;

use sparoa_core::{
    ops::{
        GpuCaps, Halves, Op, Operand, Operands as Node,
        conv::{Conv, Layout, ResidualKind, Window},
        gemm::Linear,
    },
    tensor::{Tensor, TensorType},
};
use sparoa_kernels::Activation;

use super::{Operands, measure::WORKSPACE};
use crate::{
    CudaBackend, CudaLibraries, CudaOptions, GpuPrecision,
    cuda::{
        driver::{DeviceMemory, Stream},
        opened::Shared,
        storage::Half,
        tests::{
            emulation::{of_bits, to_bits},
            rounded::{self, Rounding, Sample, values},
        },
    },
};

/// A product or convolution, and what is done to it.
struct Case {
    sample: Sample,
    bias: bool,
    residual: bool,
    relu: bool,
}

impl Case {
    fn op(&self) -> Arc<dyn Op> {
        let activation = if self.relu { Activation::Relu } else { Activation::None };
        let residual =
            if self.residual { ResidualKind::BeforeActivation } else { ResidualKind::None };
        match self.sample.op.op_type() {
            "Conv" => {
                let (window, layout) = (Window::new(&[3, 3], &[1, 1], &[1; 4]), Layout::Nhwc);
                Arc::new(Conv { window, layout, activation, residual, ..Conv::default() })
            }
            _ => Arc::new(Linear { trans_b: true, activation, residual, ..Linear::default() }),
        }
    }

    /// Bias and residual, and what must come out, within which bounds.
    fn expected(&self, shape: &[usize], rounded: bool) -> [Vec<f64>; 4] {
        let columns = shape[shape.len() - 1];
        let doubles = |tensor: &Tensor| -> Vec<f64> {
            tensor.as_slice::<f32>().unwrap().iter().map(|v| f64::from(*v)).collect()
        };
        let bias = doubles(&values(&[columns], 8));
        let residual = doubles(&values(shape, 9));
        let bounds = if rounded { &self.sample.bound } else { &self.sample.exact };
        let (mut expected, mut bound) = (Vec::new(), Vec::new());
        for (i, (value, off)) in self.sample.expected.iter().zip(bounds).enumerate() {
            let (mut value, mut off) = (*value, *off);
            for (add, by) in [(self.bias, bias[i % columns]), (self.residual, residual[i])] {
                if add {
                    value += by;
                    off +=
                        by.abs() * if rounded { 1.01 * self.sample.rounding.share } else { 1e-6 };
                    off += value.abs() * 1e-6;
                }
            }
            expected.push(if self.relu { value.max(0.0) } else { value });
            bound.push(off);
        }
        [bias, residual, expected, bound]
    }
}

fn cases(rounding: Rounding) -> Vec<Case> {
    let case = |sample, bias, residual, relu| Case { sample, bias, residual, relu };
    let linear = |m, k, n| rounded::linear([m, k, n], true, rounding);
    let conv = |size, channels| rounded::conv(size, 1, channels, 1, rounding);
    vec![
        case(linear(300, 576, 304), false, false, false),
        case(linear(520, 384, 264), true, true, false),
        case(linear(264, 1160, 200), true, false, true),
        case(conv(28, [64, 128]), true, false, true),
        case(conv(30, [72, 96]), true, true, true),
        case(conv(60, [3, 520]), false, false, false),
    ]
}

/// Uploads numbers, stored as `half` if that is given.
fn upload(shared: &Shared, tensor: &Tensor, half: Option<Half>) -> DeviceMemory {
    let bits = |half| tensor.as_slice::<f32>().unwrap().iter().map(move |v| to_bits(*v, half));
    let bytes = match half {
        Some(half) => bits(half).flat_map(u16::to_ne_bytes).collect(),
        None => tensor.bytes().to_vec(),
    };
    let memory = DeviceMemory::new(&shared.context, bytes.len().next_multiple_of(16)).unwrap();
    memory.fill(&bytes).unwrap();
    memory
}

fn numbers(bytes: &[u8], half: Option<Half>) -> Vec<f32> {
    let word = |w: &[u8]| f32::from_ne_bytes(w.try_into().unwrap());
    let bits = |w: &[u8]| u16::from_ne_bytes(w.try_into().unwrap());
    match half {
        Some(half) => bytes.chunks_exact(2).map(|w| of_bits(bits(w), half)).collect(),
        None => bytes.chunks_exact(4).map(word).collect(),
    }
}

/// Runs every way for a case; how many there were. Those beyond their bounds are added to `failed`.
fn check(
    shared: &Shared,
    case: &Case,
    halves: Halves,
    how: &str,
    failed: &mut Vec<String>,
) -> usize {
    let inputs = &case.sample.inputs;
    let (x, w) = (&inputs[0].0, &inputs[1].0);
    let op = case.op();
    let weights =
        [Some(Operand::dynamic(x.ty().clone())), Some(Operand::constant(Arc::new(w.clone())))];
    let shape = op.infer(&weights).unwrap()[0].shape.to_vec();
    let rounded = shared.caps.matrix_units.is_some();
    let [bias, residual, expected, bound] = case.expected(&shape, rounded);
    let float = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let bias = Tensor::from_slice([bias.len()], &float(&bias));
    let residual = Tensor::from_slice(shape.clone(), &float(&residual));
    let [x_operand, w_operand] = weights;
    let operands = [
        x_operand,
        w_operand,
        case.bias.then(|| Operand::constant(Arc::new(bias))),
        case.residual.then(|| Operand::dynamic(TensorType::f32(shape.clone()))),
    ];
    let outputs = op.infer(&operands).unwrap();
    let node = Node { inputs: &operands, outputs: &outputs };
    let caps = GpuCaps { halves, ..shared.caps.clone() };
    let standards = op.gpu(&node, &caps).unwrap().standards;
    let [standard] = standards.as_slice() else {
        panic!("{} {how} has no standard form", case.sample.name)
    };
    let Some(ways) = shared.libraries.ways(standard) else {
        println!("{} {how}: no library computes it", case.sample.name);
        return 0;
    };
    let half = Half::of(shared.caps.matrix_units);
    let half_x = half.filter(|_| standard.half_x);
    let half_y = half.filter(|_| standard.half_y);
    let stored = half_y.map(|_| case.sample.rounding);
    let x = upload(shared, x, half_x);
    let weight = upload(shared, &standard.weight.tensor(), None);
    let bias = standard.bias.as_ref().map(|bias| upload(shared, &bias.tensor(), None));
    let residual = upload(shared, &residual, half_y);
    let bytes = expected.len() * if half_y.is_some() { 2 } else { 4 };
    let y = DeviceMemory::new(&shared.context, bytes).unwrap();
    let workspace = DeviceMemory::new(&shared.context, WORKSPACE).unwrap();
    let operands = Operands {
        x: x.address,
        weight: weight.address,
        bias: bias.as_ref().map_or(0, |bias| bias.address),
        residual: residual.address,
        y: y.address,
        workspace: workspace.address,
    };
    let stream = Stream::new(&shared.context).unwrap();
    let mut checked = 0;
    for i in 0..ways.count() {
        let Some(way) = ways.way(i) else { continue };
        y.fill(&vec![0xff; bytes]).unwrap();
        // A copy from ordinary memory may still be under way.
        shared.context.wait_fills().unwrap();
        // SAFETY: the operands have the sizes of the computation's; they live until it is waited for.
        if unsafe { way.queue(&operands, stream.raw()) }.is_err() {
            continue;
        }
        stream.synchronize().unwrap();
        let mut got = vec![0; bytes];
        y.read(&mut got).unwrap();
        let got = numbers(&got, half_y);
        assert_eq!(got.len(), expected.len());
        let (share, place) = rounded::worst(&expected, &bound, &got, stored);
        println!(
            "{} {how}, {} {i}: off by {share:.3} of what may be",
            case.sample.name,
            way.library()
        );
        if share > 1.0 {
            failed.push(format!(
                "{} {how}, {} {i}: element {place} is {}, {} in double precision, off by {share} of what \
                 it may",
                case.sample.name,
                way.library(),
                got[place],
                expected[place]
            ));
        }
        checked += 1;
    }
    checked
}

/// Every case in a precision.
fn run(precision: GpuPrecision) {
    let libraries = CudaLibraries::from_env();
    let options = CudaOptions { precision, libraries, ..CudaOptions::default() };
    let backend = match CudaBackend::new(&options) {
        Ok(backend) => backend,
        Err(error) => return println!("skipped: {error}"),
    };
    let shared = &backend.shared;
    if shared.libraries.names().is_empty() {
        return println!("skipped: neither cuBLASLt nor cuDNN");
    }
    shared.run("binding", || Ok(())).unwrap();
    let stored = |inputs, outputs| Halves { inputs, outputs, temps: true };
    let storage = match shared.caps.matrix_units {
        Some(units) if units.is_half() => vec![stored(0b1001, 1), stored(1, 0)],
        _ => vec![Halves::default()],
    };
    let rounding = match precision {
        GpuPrecision::Bf16 => Rounding::BF16,
        _ => Rounding::F16,
    };
    let mut failed = Vec::new();
    for halves in storage {
        for case in cases(rounding) {
            let stored = if halves.output(0) { ", stored so" } else { "" };
            let how = format!("in {}{stored}", precision.name());
            let count = check(shared, &case, halves, &how, &mut failed);
            println!("{} {how}: {count} ways", case.sample.name);
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_way_is_within_its_bounds_in_fp32() {
    run(GpuPrecision::Fp32);
}

#[test]
fn every_way_is_within_its_bounds_in_tf32() {
    run(GpuPrecision::Tf32);
}

#[test]
fn every_way_is_within_its_bounds_in_fp16() {
    run(GpuPrecision::Fp16);
}

#[test]
fn every_way_is_within_its_bounds_in_bf16() {
    run(GpuPrecision::Bf16);
}
