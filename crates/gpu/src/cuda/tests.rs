//! Every kernel that the operators make, translated; and compiled where NVRTC is installed, which
//! needs no GPU.

#[cfg(target_os = "linux")]
pub(super) mod emulation;
#[cfg(target_os = "linux")]
mod faults;
mod plans;
#[cfg(target_os = "linux")]
#[path = "../../tests/gpu/rounded.rs"]
pub(super) mod rounded;
mod share;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use proptest::{prelude::*, test_runner::TestRunner};
use sparoa_core::{
    ir::{Shapes, passes, specialize},
    ops::{
        self, Dispatch, GpuCaps, Halves, MatrixUnits, Op, Operand, Operands,
        conv::{Conv, Layout, ResidualKind, Window},
        gemm::Linear,
    },
    tensor::{DType, Tensor, TensorType},
    zoo,
};
use sparoa_kernels::Activation;

use super::{nvrtc::Nvrtc, rounding, storage::Half, translate::translate};
use crate::bind::half_buffers;

/// Jetson Xavier, Jetson Orin, Ada, Hopper.
const ARCHITECTURES: [(i32, i32); 4] = [(7, 2), (8, 7), (8, 9), (9, 0)];

/// What the backend tells operators of a device with so many multiprocessors.
fn caps(units: u32) -> GpuCaps {
    let (workgroup_bytes, matrix_bytes) = (48 << 10, 227 << 10);
    GpuCaps { units, workgroup_bytes, matrix_bytes, workgroup_size: 1024, ..GpuCaps::ordinary() }
}

/// With variations.
fn all_caps() -> Vec<GpuCaps> {
    let base = caps(0);
    vec![
        base.clone(),
        caps(132),
        GpuCaps { aligned: false, ..caps(16) },
        GpuCaps { f16: true, ..base.clone() },
        GpuCaps { units: 16, matrix_units: Some(MatrixUnits::Tf32), ..base.clone() },
        GpuCaps { f16: true, matrix_units: Some(MatrixUnits::Fp16), ..base.clone() },
        GpuCaps { units: 132, aligned: false, matrix_units: Some(MatrixUnits::Fp16), ..base },
        with_halves(0),
        with_halves(132),
        GpuCaps { aligned: false, ..with_halves(16) },
    ]
}

/// With everything stored as f16 that can be; see [`halves`].
fn with_halves(units: u32) -> GpuCaps {
    let all = Halves { inputs: u64::MAX, outputs: u64::MAX, temps: true };
    GpuCaps { f16: true, matrix_units: Some(MatrixUnits::Fp16), halves: all, ..caps(units) }
}

/// The same with bf16 instead of f16.
fn bfloat(caps: GpuCaps) -> GpuCaps {
    GpuCaps { f16: false, matrix_units: Some(MatrixUnits::Bf16), ..caps }
}

/// Those of a node's operands that can be stored in 16 bits, if `caps` has any so stored.
fn halves(operands: &Operands<'_>, caps: &GpuCaps) -> Halves {
    let float = |ty: &TensorType| ty.dtype == DType::F32;
    let bits = |list: &mut dyn Iterator<Item = bool>| {
        list.take(Halves::OPERANDS).enumerate().fold(0, |bits, (i, b)| bits | u64::from(b) << i)
    };
    let input =
        |o: &Option<Operand>| o.as_ref().is_some_and(|o| o.constant.is_none() && float(&o.ty));
    Halves {
        inputs: caps.halves.inputs & bits(&mut operands.inputs.iter().map(input)),
        outputs: caps.halves.outputs & bits(&mut operands.outputs.iter().map(float)),
        temps: caps.halves.temps,
    }
}

/// Distinct kernels by their text and buffers of 16-bit numbers, for some devices.
struct Kernels {
    caps: Vec<GpuCaps>,
    all: BTreeMap<(String, u8), Dispatch>,
}

impl Kernels {
    fn of(caps: &[GpuCaps]) -> Kernels {
        Kernels { caps: caps.to_vec(), all: BTreeMap::new() }
    }

    fn add(&mut self, op: &dyn Op, operands: &Operands<'_>) {
        for caps in &self.caps {
            let halves = halves(operands, caps);
            let kernel = op.gpu(operands, &GpuCaps { halves, ..caps.clone() });
            for dispatch in kernel.iter().flat_map(|kernel| &kernel.dispatches) {
                let half_temps = kernel.iter().flat_map(|kernel| &kernel.half_temps).copied();
                let half_temps: Vec<usize> = half_temps.collect();
                let bits = half_buffers(dispatch, &half_temps, operands, halves);
                self.all.insert((dispatch.source.to_string(), bits), dispatch.clone());
            }
        }
    }

    /// A few of them that between them call every function that any of them [`called`], and load and store
    /// 16-bit numbers one by one and four by four.
    fn covering(self, parts: &[&str]) -> Vec<(u8, Dispatch)> {
        let (mut seen, mut few) = (BTreeSet::new(), Vec::new());
        for ((text, halves), dispatch) in self.all {
            let mut what = called(&text, parts);
            let elements = ["array<f32>", "array<vec4<f32>>"].into_iter();
            let elements = elements.filter(|ty| halves > 0 && text.contains(ty));
            what.extend(elements.map(str::to_owned));
            let new: Vec<_> = what.into_iter().filter(|what| seen.insert(what.clone())).collect();
            if !new.is_empty() {
                few.push((halves, dispatch));
            }
        }
        few
    }

    fn add_inferred(&mut self, op: &dyn Op, inputs: &[Option<Operand>]) {
        if let Ok(outputs) = op.infer(inputs) {
            self.add(op, &Operands { inputs, outputs: &outputs });
        }
    }
}

/// Functions called `native_..` that a text calls and whose names have one of these parts.
fn called(text: &str, parts: &[&str]) -> Vec<String> {
    let words = text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    words.filter(|w| w.starts_with("native_")).for_each(|w| *counts.entry(w).or_default() += 1);
    // Declared once, called at least once.
    let called = counts.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name);
    let called = called.filter(|name| parts.iter().any(|part| name.contains(part)));
    called.map(str::to_owned).collect()
}

/// Those of the built-in models, as sessions optimise them.
fn of_models(caps: &[GpuCaps]) -> Kernels {
    let mut kernels = Kernels::of(caps);
    for entry in zoo::list() {
        let model = Arc::new(zoo::build(entry.name).unwrap());
        let graph = passes::optimize(specialize(&model, &Shapes::new()).unwrap().graph);
        for node in &graph.nodes {
            graph.with_operands(node, |operands| kernels.add(node.op.as_ref(), operands));
        }
    }
    kernels
}

/// Those of every operator's examples.
fn of_examples(caps: &[GpuCaps]) -> Kernels {
    let mut kernels = Kernels::of(caps);
    for spec in ops::specs() {
        for example in (spec.examples)() {
            let Ok(op) = example.op(spec) else { continue };
            let operand = |input: &Option<ops::ExampleInput>| {
                input.as_ref().map(|input| match input.constant {
                    true => Operand::constant(Arc::new(input.value.clone())),
                    false => Operand::dynamic(input.value.ty().clone()),
                })
            };
            let inputs: Vec<Option<Operand>> = example.inputs.iter().map(operand).collect();
            kernels.add_inferred(op.as_ref(), &inputs);
            if let Some(op) = op.channels_last() {
                let inputs: Vec<_> =
                    inputs.into_iter().map(|input| input.map(channels_last)).collect();
                kernels.add_inferred(op.as_ref(), &inputs);
            }
        }
    }
    kernels
}

/// A run-time input with dimension 1 moved to the end; constants as they are.
fn channels_last(input: Operand) -> Operand {
    match input.ty.shape.as_slice() {
        &[n, c, ref spatial @ ..] if input.constant.is_none() => {
            let shape: Vec<usize> = [n].iter().chain(spatial).chain(&[c]).copied().collect();
            Operand::dynamic(TensorType::new(input.ty.dtype, shape))
        }
        _ => input,
    }
}

/// Those of random products and convolutions.
fn of_samples(caps: &[GpuCaps]) -> Kernels {
    let kernels = std::cell::RefCell::new(Kernels::of(caps));
    let zeros = |shape: &[usize]| Tensor::zeros(TensorType::f32(shape.to_vec()));
    let dynamic = |shape: &[usize]| Some(Operand::dynamic(TensorType::f32(shape.to_vec())));
    let constant = |shape: &[usize]| Some(Operand::constant(Arc::new(zeros(shape))));
    let residuals =
        [ResidualKind::None, ResidualKind::BeforeActivation, ResidualKind::AfterActivation];
    let activations = [
        Activation::None,
        Activation::Clip { min: -0.5, max: 0.75 },
        Activation::HardSwish,
        Activation::Gelu,
        Activation::Elu { alpha: 0.5 },
        Activation::Mish,
    ];
    let sizes = (1usize..200, 1usize..9, 1usize..200, 1usize..4, 1usize..3);
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(Default::default());
    TestRunner::new_with_rng(config, rng)
        .run(&(sizes, 0usize..108), |((m, k, n, kernel, stride), kind)| {
            let (residual, activation) = (residuals[kind % 3], activations[kind / 3 % 6]);
            let bias = (kind >= 54).then(|| constant(&[n])).flatten();
            let op = Linear { activation, residual, ..Linear::default() };
            let inputs = [dynamic(&[m, k]), constant(&[k, n]), bias.clone(), dynamic(&[m, n])];
            kernels.borrow_mut().add_inferred(&op, &inputs);
            let op = Conv {
                window: Window::new(&[kernel, kernel], &[stride, stride], &[1, 1, 1, 1]),
                group: [1, k][kind % 2],
                layout: Layout::Nhwc,
                activation,
                ..Conv::default()
            };
            let n = [n, k][kind % 2];
            let weight = constant(&[n, k / op.group, kernel, kernel]);
            let inputs = [dynamic(&[1, 9, m.max(9), k]), weight, bias.and(constant(&[n]))];
            kernels.borrow_mut().add_inferred(&op, &inputs);
            Ok(())
        })
        .unwrap();
    kernels.into_inner()
}

/// Compiles kernels for architectures; every refusal.
fn compile(nvrtc: &Nvrtc, work: &[(Dispatch, u8, Half, (i32, i32))]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let refused = parking_lot::Mutex::new(Vec::new());
    let cores = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some((dispatch, halves, half, arch)) =
                    work.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let (source, overrides) = (&dispatch.source, &dispatch.overrides);
                    let kernel = translate(source, overrides, *halves, *half).unwrap();
                    let cubin = nvrtc.compile(&kernel.source, *arch);
                    if let Err(error) = cubin {
                        refused.lock().push(format!("{} for {arch:?}: {error}", dispatch.label));
                    }
                }
            });
        }
    });
    println!("{} kernels compiled", work.len());
    refused.into_inner()
}

#[test]
fn every_kernel_has_a_cuda_form() {
    for (from, kernels, least) in [
        ("models", of_models(&all_caps()), 20),
        ("examples", of_examples(&all_caps()), 60),
        ("samples", of_samples(&all_caps()), 20),
    ] {
        println!("{} kernels of {from}", kernels.all.len());
        assert!(kernels.all.len() >= least, "{from}");
        for ((_, halves), dispatch) in &kernels.all {
            let (source, overrides) = (&dispatch.source, &dispatch.overrides);
            let kernel = translate(source, overrides, *halves, Half::F16)
                .unwrap_or_else(|e| panic!("{}: {e}\n{}", dispatch.label, dispatch.source));
            assert_eq!(kernel.buffers, dispatch.bindings.len(), "{}", dispatch.label);
            let params = 4 * (8 + dispatch.params.len()).next_multiple_of(4);
            assert_eq!(kernel.params_bytes, params, "{}", dispatch.label);
        }
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    let nvrtc = match Nvrtc::load(i32::MAX) {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let (major, minor) = nvrtc.version();
    // CUDA 13 left Volta behind, 11.8 was the first with Ada and Hopper.
    let knows = |arch: &(i32, i32)| match arch {
        (7, _) => major < 13,
        (8, 9) | (9, _) => (major, minor) >= (11, 8),
        _ => true,
    };
    let (known, unknown): (Vec<_>, Vec<_>) = ARCHITECTURES.into_iter().partition(knows);
    for arch in unknown {
        println!("skipped: NVRTC {major}.{minor} has no {arch:?}");
    }
    // What a large GPU gets by default, for each architecture. What other devices, tensor cores and
    // samples add: each text once, for the architecture where it matters most.
    let mut work = BTreeMap::new();
    let usual = of_models(&[caps(132)]).all;
    for &arch in &known {
        work.extend(usual.iter().map(|(text, d)| ((text.clone(), arch), d.clone())));
    }
    let tensor = |units, f16, warp_groups| GpuCaps {
        f16,
        matrix_units: Some(if f16 { MatrixUnits::Fp16 } else { MatrixUnits::Tf32 }),
        warp_groups,
        ..caps(units)
    };
    let mut seen: BTreeSet<(String, u8)> = usual.into_keys().collect();
    let mut add = |kernels: Kernels, arch, with: &str| {
        let new = kernels.all.into_iter().filter(|((text, _), _)| text.contains(with));
        let new: Vec<_> = new.filter(|(text, _)| seen.insert(text.clone())).collect();
        println!("{} texts for {arch:?} alone", new.len());
        if known.contains(&arch) {
            work.extend(new.into_iter().map(|(text, dispatch)| ((text, arch), dispatch)));
        }
    };
    add(of_models(&[tensor(16, false, false)]), (8, 7), "");
    add(of_models(&[tensor(132, true, false)]), (8, 9), "");
    let hopper = (9, 0);
    if nvrtc.has_warp_groups(hopper) {
        let stored = GpuCaps { warp_groups: true, ..with_halves(132) };
        let all = [caps(132), tensor(132, false, true), tensor(132, true, true), stored];
        let all = all.map(|caps| GpuCaps { clusters: true, ..caps });
        add(of_models(&all[1..]), hopper, "native_group_");
        add(of_models(&all), hopper, "native_join");
    }
    add(of_models(&[with_halves(132)]), (8, 9), "");
    add(of_examples(&[with_halves(132)]), (8, 7), "");
    add(of_models(&[GpuCaps { aligned: false, ..caps(16) }]), (8, 7), "");
    add(of_examples(&[caps(132), tensor(16, true, false)]), (8, 7), "");
    add(of_samples(&[caps(132), tensor(16, false, false)]), (8, 7), "");
    let mut work: Vec<_> = (work.into_iter())
        .map(|(((_, halves), arch), dispatch)| (dispatch, halves, Half::F16, arch))
        .collect();
    // bf16 has the texts of fp16; what they call is another instruction.
    for &arch in known.iter().filter(|(major, _)| *major >= 8) {
        let warp_groups = nvrtc.has_warp_groups(arch);
        let stored = GpuCaps { warp_groups, ..bfloat(with_halves(132)) };
        let unstored = GpuCaps { halves: Halves::default(), ..stored.clone() };
        let texts = of_models(&[unstored, stored]).covering(&["_half", "_lines_"]);
        println!("{} texts in bf16 for {arch:?}", texts.len());
        work.extend(texts.into_iter().map(|(halves, d)| (d, halves, Half::Bf16, arch)));
    }
    for &arch in &known {
        let halves = [Half::F16, Half::Bf16].into_iter();
        let halves = halves.filter(|half| *half == Half::F16 || arch.0 >= 8);
        let (dispatch, bits) = rounding::dispatch();
        work.extend(halves.map(|half| (dispatch.clone(), bits, half, arch)));
    }
    let refused = compile(&nvrtc, &work);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn the_compilers_words_are_in_the_error() {
    let Ok(nvrtc) = Nvrtc::load(i32::MAX) else {
        println!("skipped: no NVRTC");
        return;
    };
    let error = nvrtc.compile("extern \"C\" __global__ void f() { undeclared(); }", (8, 7));
    assert!(error.unwrap_err().contains("undeclared"));
}
