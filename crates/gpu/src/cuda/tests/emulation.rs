//! Translated kernels against the CPU's, without a GPU: a C++ compiler of the host builds them
//! together with `emulation.hpp`, which takes the place of CUDA. What is bound
//! to them is bound as for a device.

use std::{
    cell::RefCell, collections::BTreeMap, ffi::c_void, fmt::Write, fs, process::Command, sync::Arc,
};

use half::{bf16, f16};
use libloading::Library;
use sparoa_core::{
    backend::{Arg, BackendError, TaskSpec, View},
    ops::{self, Dispatch, GpuCaps, GpuConstant, Halves, MatrixUnits, Op, evaluate},
    tensor::{DType, Tensor, TensorType},
};
use sparoa_kernels::Pool;

use super::{
    super::{storage::Half, translate},
    all_caps,
    rounded::{self, Rounding, Sample},
};
use crate::{
    bind::{Binder, Bindings, Bound, place},
    residency::{Residency, Resident},
};

/// Memory as aligned as a device's.
type Memory = Vec<u128>;

fn memory(lead: usize, bytes: &[u8]) -> Memory {
    let mut memory = vec![0u128; (lead + bytes.len()).div_ceil(16) + 1];
    bytemuck::cast_slice_mut(&mut memory)[lead..lead + bytes.len()].copy_from_slice(bytes);
    memory
}

/// An operator on values, bound, with what the CPU makes of them.
struct Case {
    name: String,
    bound: Vec<Bindings<Memory>>,
    slots: Vec<Memory>,
    temps: Vec<usize>,
    expected: Vec<(View, Tensor)>,
    halves: Halves,
    half: Half,
    /// What operands of products are rounded by, relative to them.
    rounding: f32,
}

/// The bits of a number stored so.
pub(in super::super) fn to_bits(value: f32, half: Half) -> u16 {
    match half {
        Half::F16 => f16::from_f32(value).to_bits(),
        Half::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

/// The number that is stored so.
pub(in super::super) fn of_bits(bits: u16, half: Half) -> f32 {
    match half {
        Half::F16 => f16::from_bits(bits).to_f32(),
        Half::Bf16 => bf16::from_bits(bits).to_f32(),
    }
}

/// The value as it is after it was stored in 16 bits.
fn through(value: &Tensor, half: Half) -> Tensor {
    let mut value = value.clone();
    for v in value.as_slice_mut::<f32>().into_iter().flatten() {
        *v = of_bits(to_bits(*v, half), half);
    }
    value
}

/// The bytes of f32 stored in 16 bits.
fn stored_bytes(value: &Tensor, half: Half) -> Vec<u8> {
    let halves = value.as_slice::<f32>().unwrap().iter().map(|v| to_bits(*v, half));
    bytemuck::cast_slice(&halves.collect::<Vec<_>>()).to_vec()
}

impl Case {
    /// `None` where the operator has no GPU kernel for this. Run-time values lie `lead` bytes into
    /// their slots. What `caps` has stored in 16 bits is rounded to them first.
    fn new(
        name: String,
        op: &Arc<dyn Op>,
        inputs: &[(Option<Tensor>, bool)],
        caps: &GpuCaps,
        lead: usize,
    ) -> Option<Case> {
        let operands: Vec<Option<ops::Operand>> = inputs
            .iter()
            .map(|(value, constant)| {
                value.as_ref().map(|value| match constant {
                    true => ops::Operand::constant(Arc::new(value.clone())),
                    false => ops::Operand::dynamic(value.ty().clone()),
                })
            })
            .collect();
        let types = op.infer(&operands).ok()?;
        let typed = ops::Operands { inputs: &operands, outputs: &types };
        let halves = super::halves(&typed, caps);
        let half = Half::of(caps.matrix_units).unwrap_or(Half::F16);
        // Only what the GPU supports is worth the CPU's time.
        op.gpu(&typed, &GpuCaps { halves, ..caps.clone() })?;
        let stored = |(i, (value, _)): (usize, &(Option<Tensor>, bool))| {
            value.as_ref().map(|v| if halves.input(i) { through(v, half) } else { v.clone() })
        };
        let inputs: Vec<(Option<Tensor>, bool)> =
            inputs.iter().enumerate().map(|all| (stored(all), all.1.1)).collect();
        let values: Vec<Option<&Tensor>> = inputs.iter().map(|(v, _)| v.as_ref()).collect();
        let mut slots = Vec::new();
        let mut slot = |value: &Tensor, stored: bool| {
            let bytes = value.bytes().len();
            let view = View { slot: slots.len(), offset: lead, bytes };
            slots.push(match stored {
                true => memory(place(&view, true), &stored_bytes(value, half)),
                false => memory(lead, value.bytes()),
            });
            view
        };
        let arg = |(i, (value, constant)): (usize, &(Option<Tensor>, bool))| {
            value.as_ref().map(|value| match constant {
                true => Arg::Constant(Arc::new(value.clone())),
                false => Arg::Slot(slot(value, halves.input(i)), value.ty().clone()),
            })
        };
        let args: Vec<Option<Arg>> = inputs.iter().enumerate().map(arg).collect();
        let expected = evaluate(op.as_ref(), &values, &Pool::new(1)).ok()?;
        let outputs: Vec<(View, TensorType)> = types
            .iter()
            .enumerate()
            .map(|(i, ty)| (slot(&Tensor::zeros(ty.clone()), halves.output(i)), ty.clone()))
            .collect();
        let expected = outputs.iter().map(|(view, _)| *view).zip(expected).collect();
        let residency = Residency::<Memory>::default();
        let resident = |constant: &GpuConstant| {
            residency.get(constant, |tensor| {
                let buffer = memory(0, tensor.bytes());
                Ok::<_, BackendError>(Resident { bytes: buffer.len() * 16, buffer })
            })
        };
        let binder = Binder { caps, lead: &|_| 0, resident: &resident };
        let task = TaskSpec { name: name.clone(), op: op.clone(), inputs: args, outputs };
        let mut temps = Vec::new();
        // Refused is what the device's limits do not admit.
        let bound = binder.bind(&task, halves, &mut temps).ok()?;
        Some(Case {
            name,
            bound,
            slots,
            temps,
            expected,
            halves,
            half,
            // Of 16 bits, and of tf32, but bf16's 8.
            rounding: match caps.matrix_units {
                Some(MatrixUnits::Bf16) => 2f32.powi(-8),
                Some(_) => 2f32.powi(-11),
                None if caps.f16 => 2f32.powi(-11),
                None => 0.0,
            },
        })
    }

    /// Runs the kernels.
    fn run(&mut self, emulator: &Emulator) {
        let mut temps: Vec<Memory> = self.temps.iter().map(|b| memory(0, &vec![0; *b])).collect();
        for bindings in &self.bound {
            let mut buffers: Vec<*mut c_void> = Vec::new();
            for (i, bound) in bindings.buffers.iter().enumerate() {
                buffers.push(match bound {
                    Bound::Slot(view) => {
                        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.slots[view.slot]);
                        let at = place(view, bindings.halves >> i & 1 == 1);
                        bytes[at..].as_mut_ptr().cast()
                    }
                    Bound::Resident(resident) => resident.buffer.as_ptr().cast_mut().cast(),
                    Bound::Temp(i) => temps[*i].as_mut_ptr().cast(),
                });
            }
            emulator.run(bindings, &mut buffers);
        }
    }

    /// The results, each with what the CPU computes.
    fn results(&self) -> Vec<(&Tensor, Tensor)> {
        let result = |i: usize, view: &View, expected: &Tensor| {
            let bytes: &[u8] = bytemuck::cast_slice(&self.slots[view.slot]);
            let mut got = Tensor::zeros(expected.ty().clone());
            let stored = self.halves.output(i);
            let bytes = &bytes[place(view, stored)..];
            match got.as_slice_mut::<f32>().filter(|_| stored) {
                Some(values) => {
                    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                        *value = of_bits(u16::from_le_bytes([bytes[0], bytes[1]]), self.half);
                    }
                }
                None => got.bytes_mut().copy_from_slice(&bytes[..view.bytes]),
            }
            got
        };
        let all = self.expected.iter().enumerate();
        all.map(|(i, (view, expected))| (expected, result(i, view, expected))).collect()
    }

    /// Holds the results to what the CPU computes.
    fn compare(&self) {
        for (i, (expected, got)) in self.results().iter().enumerate() {
            self.compare_one(i, expected, got);
        }
    }

    fn compare_one(&self, i: usize, expected: &Tensor, got: &Tensor) {
        let stored = self.halves.output(i).then(|| through(expected, self.half));
        let expected = stored.as_ref().unwrap_or(expected);
        if expected.dtype() != DType::F32 {
            assert_eq!(expected.bytes(), got.bytes(), "{}", self.name);
            return;
        }
        let (e, g) = (expected.as_slice::<f32>().unwrap(), got.as_slice::<f32>().unwrap());
        let scale = e.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
        // About four roundings of operands.
        let share = (4.096 * self.rounding).max(2e-5);
        for (i, (e, g)) in e.iter().zip(g).enumerate() {
            let same = e == g || (e.is_nan() && g.is_nan());
            let close = (e - g).abs() <= share * scale + 10.0 * share * e.abs();
            assert!(same || close, "{}: element {i} is {g}, expected {e}", self.name);
        }
    }
}

/// The kernels as a library of the host.
struct Emulator {
    library: Library,
    /// By WGSL and buffers of 16-bit numbers: the number in the function's name, and the threads of a block.
    kernels: BTreeMap<(String, u8), (usize, [u32; 3])>,
    _folder: tempfile::TempDir,
}

impl Emulator {
    /// `None` where there is no compiler. Numbers of 16 bits are `half` in all cases.
    fn build<'a>(cases: impl Iterator<Item = &'a Case>, half: Half) -> Option<Emulator> {
        let compiler = ["c++", "g++", "clang++"].into_iter().find(|name| {
            Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success())
        })?;
        let conversion = "asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(r) : \"h\"(v.bits));";
        assert!(translate::PRELUDE.contains(conversion), "the device's conversion is replaced");
        let mut text = include_str!("emulation.hpp").to_owned();
        text += &translate::PRELUDE
            .replace(conversion, "_Float16 h; __builtin_memcpy(&h, &v, sizeof h); r = (f32)h;");
        if half == Half::Bf16 {
            text += translate::BFLOAT;
        }
        text += include_str!("half.hpp");
        let mut of_device = translate::HALF.to_owned();
        for name in ["f16", "bf16"] {
            let rounding = format!("asm(\"cvt.rn.{name}.f32 %0, %1;\" : \"=h\"(r) : \"f\"(v));");
            assert!(of_device.contains(&rounding), "the device's rounding is replaced");
            of_device = of_device.replace(&rounding, "r = (unsigned short)half_of(v);");
        }
        text += &of_device;
        text += include_str!("native.hpp");
        // Kernels are long and run once or twice: to optimise them takes longer than it saves. What they
        // call is optimised.
        text += "#pragma GCC optimize (\"O0\")\n";
        let mut kernels = BTreeMap::new();
        for bindings in cases.flat_map(|case| &case.bound) {
            let dispatch = &bindings.dispatch;
            let key = (dispatch.source.to_string(), bindings.halves);
            if kernels.contains_key(&key) {
                continue;
            }
            let (source, overrides) = (&dispatch.source, &dispatch.overrides);
            let kernel = translate::translate(source, overrides, bindings.halves, half).unwrap();
            let number = kernels.len();
            let body = kernel.source.strip_prefix(translate::PRELUDE).unwrap();
            let body = body.strip_prefix(translate::BFLOAT).unwrap_or(body);
            let body = body.strip_prefix(translate::HALF).unwrap_or(body);
            let body = body.strip_prefix(translate::NATIVE).unwrap_or(body);
            let body = body.strip_prefix(translate::GROUP).unwrap_or(body);
            let memory = format!("static unsigned char shared_memory[{}];", kernel.shared_bytes);
            let body = body.replace(translate::AT_LAUNCH, &format!("alignas(1024) {memory}"));
            let mut body = body.replace("extern \"C\" ", "static ");
            // Names of memory are this kernel's alone.
            let names = kernel.source.lines().filter_map(|line| line.strip_prefix("#define g"));
            for name in names.filter_map(|line| line.split(' ').next()) {
                writeln!(body, "#undef g{name}").unwrap();
            }
            write!(
                text,
                "namespace k{number} {{\n{body}\nextern \"C\" void run_{number}(const unsigned* \
                 grid, unsigned cluster, const unsigned* threads, const void* params, void** buffers) {{\n    \
                 run({}, grid, cluster, threads, params, buffers);\n}}\n}}\n",
                translate::ENTRY
            )
            .unwrap();
            kernels.insert(key, (number, kernel.threads));
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, binary) =
            (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        fs::write(&source, text).unwrap();
        let built = Command::new(compiler)
            .args([
                "-std=c++17",
                "-O1",
                "-U_FORTIFY_SOURCE",
                "-fno-strict-aliasing",
                "-w",
                "-shared",
                "-fPIC",
                "-o",
            ])
            .args([&binary, &source])
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // SAFETY: the library was just built from the text above and has no initialisers but the
        // C++ library's.
        let library = unsafe { Library::new(&binary) }.unwrap();
        Some(Emulator { library, kernels, _folder: folder })
    }

    fn run(&self, bindings: &Bindings<Memory>, buffers: &mut [*mut c_void]) {
        type Run =
            unsafe extern "C" fn(*const u32, u32, *const u32, *const c_void, *mut *mut c_void);
        let key = (bindings.dispatch.source.to_string(), bindings.halves);
        let (number, threads) = &self.kernels[&key];
        // As aligned as the kernel's structure.
        let params = memory(0, bytemuck::cast_slice(&bindings.params));
        // SAFETY: the function has this type; parameters and buffers are what a device would get,
        // of the sizes that the operator asked for.
        unsafe {
            let run = self.library.get::<Run>(format!("run_{number}\0").as_bytes()).unwrap();
            let Dispatch { grid, cluster, .. } = bindings.dispatch;
            run(
                grid.as_ptr(),
                cluster,
                threads.as_ptr(),
                params.as_ptr().cast(),
                buffers.as_mut_ptr(),
            );
        }
    }
}

/// The value in the shape that a channels-last operator takes; which element is where does not
/// matter here, since the reference gets the same.
fn channels_last(value: &Tensor) -> Tensor {
    match (value.as_slice::<f32>(), value.shape()) {
        (Some(data), &[n, c, ref spatial @ ..]) => {
            let shape: Vec<usize> = [n].iter().chain(spatial).chain(&[c]).copied().collect();
            Tensor::from_slice(shape, data)
        }
        _ => value.clone(),
    }
}

fn cases(caps: &[GpuCaps]) -> Vec<Case> {
    let cases = RefCell::new(Vec::new());
    for spec in ops::specs() {
        for example in (spec.examples)() {
            let Ok(op) = example.op(spec) else { continue };
            let given = example.inputs.iter().map(|input| match input {
                Some(input) => (Some(input.value.clone()), input.constant),
                None => (None, false),
            });
            let given: Vec<(Option<Tensor>, bool)> = given.collect();
            let add = |op: &Arc<dyn Op>, inputs: &[(Option<Tensor>, bool)]| {
                for (caps, lead) in caps.iter().flat_map(|c| [(c, 0), (c, 4)]) {
                    let f16 = if caps.f16 { ", f16" } else { "" };
                    let stored = if caps.halves.temps { ", stored" } else { "" };
                    let units = caps.matrix_units.map_or(String::new(), |u| format!(", {u:?}"));
                    let name =
                        format!("{} ({}{f16}{units}{stored}, {lead})", spec.name, example.name);
                    cases.borrow_mut().extend(Case::new(name, op, inputs, caps, lead));
                }
            };
            if let Some(op) = op.channels_last() {
                let moved = given.iter().map(|(value, constant)| match constant {
                    true => (value.clone(), true),
                    false => (value.as_ref().map(channels_last), false),
                });
                add(&op, &moved.collect::<Vec<_>>());
            }
            add(&op, &given);
        }
    }
    cases.into_inner()
}

/// Compiles and runs cases, and hands each on.
fn emulate<'a>(cases: impl Iterator<Item = &'a mut Case>, half: Half, each: &dyn Fn(usize, &Case)) {
    let mut cases: Vec<&mut Case> = cases.collect();
    let Some(emulator) = Emulator::build(cases.iter().map(|case| &**case), half) else {
        println!("skipped: no C++ compiler");
        return;
    };
    println!("{} cases of {} kernels", cases.len(), emulator.kernels.len());
    for (i, case) in cases.iter_mut().enumerate() {
        case.run(&emulator);
        each(i, case);
    }
}

#[test]
fn examples_equal_the_cpu() {
    let mut cases = cases(&all_caps());
    assert!(cases.len() > 200, "{} cases", cases.len());
    emulate(cases.iter_mut(), Half::F16, &|_, case| case.compare());
}

/// Without matrix units; see below for those.
#[test]
fn clusters_add_their_sums() {
    let mut cases = Vec::new();
    for units in [16, 132] {
        let caps = GpuCaps { clusters: true, ..super::caps(units) };
        for sample in rounded::samples(Rounding::F16) {
            let inputs: Vec<_> = sample.inputs.into_iter().map(|(v, c)| (Some(v), c)).collect();
            let name = format!("on {units} units");
            cases.push(Case::new(name, &sample.op, &inputs, &caps, 0).expect("it is supported"));
        }
    }
    let joined = |case: &&Case| case.bound.iter().any(|bound| bound.dispatch.cluster > 1);
    let joined = cases.iter().filter(joined).count();
    assert!(joined >= 4, "{joined} whose blocks add their sums");
    emulate(cases.iter_mut(), Half::F16, &|_, case| case.compare());
}

#[test]
fn examples_in_bf16_equal_the_cpu() {
    let mut cases = cases(&[super::bfloat(super::with_halves(16))]);
    assert!(cases.len() > 100, "{} cases", cases.len());
    emulate(cases.iter_mut(), Half::Bf16, &|_, case| case.compare());
}

/// Multiprocessors, whether four warps multiply together, where values begin, and whether they are
/// stored in 16 bits.
type Device = (u32, bool, usize, bool);

const DEVICES: [Device; 13] = [
    (1, false, 0, false),
    (16, false, 4, false),
    (64, false, 0, false),
    (1, true, 0, false),
    (16, true, 4, false),
    (1, false, 0, true),
    (16, false, 4, true),
    (132, false, 0, true),
    (1, true, 0, true),
    (16, true, 4, true),
    (2, true, 0, true),
    (5, true, 0, true),
    (132, true, 0, true),
];

/// Every sample on such devices, with its place among the samples.
fn on_matrix_units(
    units: MatrixUnits,
    devices: &[Device],
    samples: &[Sample],
) -> Vec<(usize, Case)> {
    let (mut together, mut cases) = (0, Vec::new());
    for &(count, warp_groups, lead, stored) in devices {
        if stored && !units.is_half() {
            continue;
        }
        let caps = if stored { super::with_halves(count) } else { super::caps(count) };
        let f16 = units == MatrixUnits::Fp16;
        // Devices that have the one have the other.
        let clusters = warp_groups;
        let caps = GpuCaps { warp_groups, clusters, f16, matrix_units: Some(units), ..caps };
        for (i, sample) in samples.iter().enumerate() {
            let how = format!(
                "in {units:?} for {count} units, together {warp_groups}, {lead}, stored {stored}"
            );
            let inputs: Vec<_> = sample.inputs.iter().map(|(v, c)| (Some(v.clone()), *c)).collect();
            let case = Case::new(how, &sample.op, &inputs, &caps, lead).expect("it is supported");
            let texts = case.bound.iter().map(|bound| &bound.dispatch.source);
            let count = texts.filter(|text| text.contains("native_group_multiply")).count();
            assert!(warp_groups || count == 0, "{}: no such device", case.name);
            together += count;
            cases.push((i, case));
        }
    }
    // Only deep products, and of those only what the estimates give them.
    println!("{together} products of four warps in {units:?}");
    assert!(together >= 2, "{together} products of four warps in {units:?}");
    cases
}

/// How many of the cases' kernels call a function.
fn used(cases: &[(usize, Case)], name: &str) -> usize {
    let all = cases.iter().flat_map(|(_, case)| &case.bound);
    all.filter(|bound| bound.dispatch.source.contains(name)).count()
}

/// Runs them, and holds each result to its sample's bounds.
fn check(cases: &mut [(usize, Case)], samples: &[Sample], half: Half) {
    let which: Vec<usize> = cases.iter().map(|(sample, _)| *sample).collect();
    emulate(cases.iter_mut().map(|(_, case)| case), half, &|i, case| {
        let got = &case.results()[0].1;
        let stored = case.halves.output(0);
        rounded::check(&samples[which[i]], got.as_slice().unwrap(), stored, &case.name);
    });
}

#[test]
fn matrix_units_are_within_their_bounds() {
    let samples = rounded::samples(Rounding::F16);
    let mut cases = on_matrix_units(MatrixUnits::Tf32, &DEVICES, &samples);
    cases.extend(on_matrix_units(MatrixUnits::Fp16, &DEVICES, &samples));
    for name in ["native_multiply_tf32(x", "native_multiply_half(x", "native_quad_sum(sum0)"] {
        assert!(used(&cases, name) > 10, "{name}");
    }
    for name in ["copy_left(there", "native_group_multiply_lines_", "native_join()"] {
        println!("{} products with {name}", used(&cases, name));
        assert!(used(&cases, name) >= 8, "{name}");
    }
    assert!(used(&cases, "load_turned") > 8);
    check(&mut cases, &samples, Half::F16);
}

/// Texts are those of fp16: every function that they call is used once more.
#[test]
fn matrix_units_are_within_their_bounds_in_bf16() {
    let samples = rounded::samples(Rounding::BF16);
    let devices = [1, 3, 6, 7, 8, 10].map(|i| DEVICES[i]);
    let mut cases = on_matrix_units(MatrixUnits::Bf16, &devices, &samples);
    for name in [
        "native_multiply_half(x",
        "native_quad_sum(sum0)",
        "copy_left(there",
        "native_group_multiply_lines_",
        "native_group_multiply_half_",
        "load_turned",
    ] {
        println!("{} products with {name}", used(&cases, name));
        assert!(used(&cases, name) >= 2, "{name}");
    }
    check(&mut cases, &samples, Half::Bf16);
}
