//! Programs of whole models, as plans make them, without a device: what is stored as f16, and that
//! every dispatch has a CUDA form with it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use sparoa_core::{
    backend::{Accelerator, BackendError, DeviceInfo, Program, ProgramSpec, SimulatedGpu},
    engine::{Engine, KernelCache},
    ir::{Shapes, passes, specialize},
    ops::{GpuConstant, MatrixUnits, Op, Operands, floats},
    plan::{Place, Placement, Support, compile},
    tensor::Tensor,
    zoo,
};
use sparoa_kernels::Pool;

use super::{
    super::driver::Turn,
    super::load::load,
    super::program::{CudaProgram, Step},
    super::recording,
    super::storage::{Half, Storage},
    super::translate::translate,
    with_halves,
};
use crate::{
    CudaBackend, CudaOptions, GpuPrecision,
    bind::{self, Binder, Bindings, check_ranges},
    residency::Resident,
};

/// Keeps the programs that it is given, and runs none.
struct Recorder {
    like: SimulatedGpu,
    programs: Mutex<Vec<ProgramSpec>>,
}

impl Accelerator for Recorder {
    fn info(&self) -> &DeviceInfo {
        self.like.info()
    }

    fn supports(&self, op: &dyn Op, operands: &Operands<'_>) -> Result<(), String> {
        bind::kernel(op, operands, &caps()).map(|_| ())
    }

    fn load(&self, spec: ProgramSpec) -> Result<Box<dyn Program>, BackendError> {
        self.programs.lock().unwrap().push(spec);
        Err(BackendError::Unavailable("it was kept".to_owned()))
    }
}

fn caps() -> sparoa_core::ops::GpuCaps {
    let halves = Default::default();
    sparoa_core::ops::GpuCaps { warp_groups: true, halves, ..with_halves(132) }
}

/// The program of a model of which every operator is at `place`.
fn program(model: &str, batch: usize, place: Place) -> ProgramSpec {
    let model = Arc::new(zoo::build(model).unwrap());
    let mut shapes = Shapes::new();
    shapes.insert("input".to_owned(), vec![batch, 3, 224, 224]);
    let graph = Arc::new(passes::optimize(specialize(&model, &shapes).unwrap().graph));
    let recorder = Recorder { like: SimulatedGpu::new("any", false), programs: Mutex::default() };
    let support = Support::of(&graph, Some(&recorder));
    let places = (support.split.iter()).map(|axis| {
        if axis.is_none() && matches!(place, Place::Split(_)) { Place::Gpu } else { place }
    });
    let placement = Placement { places: places.collect() };
    let plan = compile(&graph, &placement, &support, None).unwrap();
    let pool = Arc::new(Pool::new(2));
    let engine = Engine::new(plan, &graph, &KernelCache::new(), &pool, Some(&recorder));
    assert!(engine.is_err(), "nothing is loaded");
    recorder.programs.into_inner().unwrap().remove(0)
}

/// The dispatches of a program.
fn bound(spec: &ProgramSpec, storage: &Storage) -> Vec<Bindings<()>> {
    check_ranges(spec).unwrap();
    let caps = caps();
    let resident = |_: &GpuConstant| Ok(Arc::new(Resident { buffer: (), bytes: 0 }));
    let binder = Binder { caps: &caps, lead: &|_| 0, resident: &resident };
    let mut temps = Vec::new();
    let tasks = spec.tasks.iter().zip(&storage.tasks);
    tasks.flat_map(|(task, halves)| binder.bind(task, *halves, &mut temps).unwrap()).collect()
}

#[test]
fn programs_of_models_keep_their_activations_in_f16() {
    let mut seen = HashSet::new();
    for (model, batch, place) in [
        ("resnet18", 1, Place::Gpu),
        ("mobilenet_v3_small", 8, Place::Gpu),
        ("swin_t", 1, Place::Gpu),
        ("resnet18", 2, Place::Split(0.5)),
        ("mobilenet_v3_small", 1, Place::Split(0.3)),
    ] {
        let spec = program(model, batch, place);
        let storage = Storage::of(&spec, Some(MatrixUnits::Fp16));
        let all = bound(&spec, &storage);
        let halves = all.iter().filter(|b| b.halves != 0).count();
        println!("{model} {place:?}: {halves} of {} dispatches have f16", all.len());
        if place == Place::Gpu {
            // All but what the host reads.
            assert!(halves + 1 >= all.len() && storage.uploads == [Some(Half::F16)], "{model}");
            let written = storage.tasks.iter().filter(|task| task.outputs == 0).count();
            assert_eq!(written, 1, "{model}");
        } else {
            assert!(storage.uploads.contains(&Some(Half::F16)), "{model}");
        }
        for bindings in &all {
            let dispatch = &bindings.dispatch;
            if seen.insert((dispatch.source.to_string(), bindings.halves)) {
                let (source, overrides) = (&dispatch.source, &dispatch.overrides);
                translate(source, overrides, bindings.halves, Half::F16)
                    .unwrap_or_else(|e| panic!("{}: {e}", dispatch.label));
            }
        }
    }
}

/// A whole model is one recorded graph, however many kernels it has, and nothing but kernels.
#[test]
fn launching_a_model_is_one_call() {
    let backend = match CudaBackend::new(&CudaOptions::default()) {
        Ok(backend) => backend,
        Err(error) => return println!("skipped: {error}"),
    };
    for model in ["resnet18", "mobilenet_v2", "swin_t", "vit_b_16"] {
        let spec = program(model, 1, Place::Gpu);
        assert_eq!(spec.segments.len(), 1, "{model}");
        let tasks = spec.tasks.len();
        let program = load(&backend.shared, spec, backend.direct()).unwrap();
        assert_eq!(program.graphs.iter().flatten().count(), 1, "{model}");
        assert!(program.steps.len() >= tasks, "{model}: every operator is in it");
        let turn = Turn { early: true, overlapped: true };
        // SAFETY: it is recorded, not done.
        let queue = |step: &Step| unsafe { step.queue(&program.stream, turn) };
        let queue = || program.steps.iter().try_for_each(queue);
        let kernels =
            backend.shared.run("recording", || program.stream.queues_kernels_alone(queue));
        assert!(kernels.unwrap(), "{model}: what the host queues is kernels");
    }
}

/// Replays a model whose kernels begin early, with inputs in turn, and holds every bit of the outputs to those
/// of kernels that begin one after the other.
#[test]
fn kernels_that_begin_early_wait_for_what_they_read() {
    for precision in [GpuPrecision::Fp32, GpuPrecision::Fp16] {
        let options = CudaOptions { precision, ..CudaOptions::default() };
        let backend = match CudaBackend::new(&options) {
            Ok(backend) => backend,
            Err(error) => return println!("skipped: {error}"),
        };
        let (shared, pool) = (&backend.shared, Pool::new(2));
        for model in ["resnet18", "mobilenet_v3_small", "swin_t", "vit_b_16"] {
            let spec = program(model, 2, Place::Gpu);
            let (bytes, result) = (spec.uploads[0].bytes, spec.downloads[0].bytes);
            let inputs = [1, 2].map(|seed| floats([bytes / 4], seed));
            let mut program = load(shared, spec, backend.direct()).unwrap();
            let run = |program: &CudaProgram, input: &Tensor| {
                let mut output = vec![0; result];
                program.upload(0, input.bytes(), &pool).unwrap();
                program.launch(0).unwrap();
                program.download(0, &mut output).unwrap();
                output
            };
            // SAFETY: the steps are the program's, which is alive while they run.
            let graph = |program: &CudaProgram, early| unsafe {
                recording::capture(&program.stream, &program.steps, early)
            };
            let results = [false, true].map(|early| {
                let recorded = shared.run("recording", || graph(&program, early));
                program.graphs[0] = Some(recorded.unwrap());
                let turns = inputs.iter().cycle().take(if early { 40 } else { 2 });
                turns.map(|input| run(&program, input)).collect::<Vec<_>>()
            });
            let [expected, early] = results;
            assert_ne!(expected[0], expected[1], "{model}: the input matters");
            for (i, output) in early.iter().enumerate() {
                assert!(*output == expected[i % 2], "{model} in {precision:?}, replay {i}");
            }
        }
    }
}
