//! Every placement gives the reference's bits; failures end a run, never hang it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rand::{RngExt as _, SeedableRng};
use rand_pcg::Pcg32;
use sparoa_kernels::pool::Pool;

use super::{Engine, EngineError, KernelCache};
use crate::{
    backend::{Accelerator, NullAccelerator, NullOptions},
    ir::{Graph, Node, Value},
    ops::gemm::Linear,
    plan::{Lane, Place, Placement, Support, compile},
    tensor::{Tensor, TensorType},
    toy::{self, Toy, ToyGraph},
};

fn engine(
    graph: &Arc<Graph>,
    places: &[Place],
    null: &Arc<NullAccelerator>,
) -> Result<Engine, EngineError> {
    let accelerator: &dyn Accelerator = &**null;
    let support = Support::of(graph, Some(accelerator));
    let placement = Placement { places: places.to_vec() };
    let plan = compile(graph, &placement, &support, None).unwrap();
    let pool = Arc::new(Pool::single());
    Engine::new(plan, graph, &KernelCache::new(), &pool, Some(accelerator))
}

fn outputs(engine: &mut Engine, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
    let mut outputs = engine.new_outputs();
    engine.run(&inputs.iter().collect::<Vec<_>>(), &mut outputs)?;
    Ok(outputs)
}

#[test]
fn random_placements_give_the_reference_bits() {
    let null = NullAccelerator::new(NullOptions::default());
    let mut concurrent = 0;
    for seed in 0..150 {
        let graph = toy::random_graph(seed);
        let support = Support::of(&graph, Some(&*null));
        let mut rng = Pcg32::seed_from_u64(seed);
        let places: Vec<Place> = support
            .split
            .iter()
            .map(|split| match rng.random_range(0..3) {
                0 => Place::Cpu,
                1 if split.is_some() => Place::Split(rng.random_range(0.1..0.9)),
                _ => Place::Gpu,
            })
            .collect();
        let mut engine = engine(&graph, &places, &null).unwrap();
        concurrent += usize::from(engine.is_concurrent());
        for run in 0..3 {
            let inputs = toy::inputs(&graph, 1000 * seed + run);
            let expected = toy::reference(&graph, &inputs);
            let given = outputs(&mut engine, &inputs).unwrap();
            assert_eq!(given, expected, "seed {seed}\n{}\n{}", graph, engine.plan());
        }
    }
    assert!(concurrent > 30, "only {concurrent} of the plans ran lanes side by side");
}

#[test]
fn a_serial_plan_starts_no_threads_and_a_parallel_one_does() {
    let null = NullAccelerator::new(NullOptions::default());
    let graph = toy::diamond();
    for (place, concurrent) in [(Place::Cpu, false), (Place::Gpu, false)] {
        assert_eq!(engine(&graph, &[place; 5], &null).unwrap().is_concurrent(), concurrent);
    }
    let mixed = [Place::Gpu, Place::Gpu, Place::Cpu, Place::Cpu, Place::Cpu];
    assert!(engine(&graph, &mixed, &null).unwrap().is_concurrent());
}

#[test]
fn only_a_download_that_the_cpu_waits_for_needs_threads() {
    let null = NullAccelerator::new(NullOptions::default());
    let graph = toy::diamond();
    // Both branches end on the GPU, whose result is all that comes back; or the CPU joins them.
    for (join, threaded) in [(Place::Gpu, false), (Place::Cpu, true)] {
        let places = [Place::Gpu, Place::Gpu, Place::Cpu, Place::Cpu, join];
        let mut engine = engine(&graph, &places, &null).unwrap();
        assert!(engine.is_concurrent());
        assert_eq!(engine.lanes.threaded(), threaded);
        let inputs = toy::inputs(&graph, 7);
        let expected = toy::reference(&graph, &inputs);
        assert_eq!(outputs(&mut engine, &inputs).unwrap(), expected);
        // Recorded, it has threads whatever it is, and goes on without them.
        let mut recorded = engine.new_outputs();
        let trace = engine.run_traced(&inputs.iter().collect::<Vec<_>>(), &mut recorded).unwrap();
        assert_eq!((recorded, trace.events.is_empty()), (expected.clone(), false));
        assert_eq!(outputs(&mut engine, &inputs).unwrap(), expected);
    }
}

#[test]
fn a_refused_value_fails_one_run_only() {
    let null = NullAccelerator::new(NullOptions::default());
    let mut g = ToyGraph::new("refuse");
    let x = g.input("x", &[4, 4]);
    let a = g.add("a", Toy::Affine, &[x]);
    let b = g.add("b", Toy::Refuse, &[x]);
    let join = g.add("join", Toy::Sum, &[a, b]);
    let graph = g.output(join).finish();
    let mut engine = engine(&graph, &[Place::Gpu, Place::Cpu, Place::Gpu], &null).unwrap();
    assert!(engine.is_concurrent());
    let good = Tensor::from_slice([4, 4], &[1f32; 16]);
    let bad = Tensor::from_slice([4, 4], &[-1f32; 16]);
    for _ in 0..3 {
        let error = outputs(&mut engine, std::slice::from_ref(&bad)).unwrap_err();
        assert_eq!(error.to_string(), "node 'b' (Refuse): a negative element");
        let given = outputs(&mut engine, std::slice::from_ref(&good)).unwrap();
        assert_eq!(given[0].as_slice::<f32>().unwrap(), [4f32; 16]);
    }
}

#[test]
fn device_failures_and_panics_end_the_run_and_poison_the_engine() {
    let graph = toy::diamond();
    let mixed = [Place::Gpu, Place::Gpu, Place::Cpu, Place::Cpu, Place::Cpu];
    let inputs = toy::inputs(&graph, 1);
    for options in [
        NullOptions { fail_submission: Some(1), ..NullOptions::default() },
        NullOptions { fail_download: Some(1), ..NullOptions::default() },
    ] {
        for places in [mixed, [Place::Gpu; 5]] {
            let null = NullAccelerator::new(options.clone());
            let mut engine = engine(&graph, &places, &null).unwrap();
            assert!(outputs(&mut engine, &inputs).is_ok());
            let error = outputs(&mut engine, &inputs).unwrap_err();
            assert!(error.to_string().contains("injected"), "{error}");
            let again = outputs(&mut engine, &inputs).unwrap_err();
            assert!(matches!(again, EngineError::Poisoned { .. }), "{again}");
        }
    }
    for place in [Place::Cpu, Place::Gpu] {
        let null = NullAccelerator::new(NullOptions::default());
        let mut g = ToyGraph::new("panic");
        let x = g.input("x", &[4, 4]);
        let a = g.add("a", Toy::Affine, &[x]);
        let b = g.add("b", Toy::Panic, &[x]);
        let join = g.add("join", Toy::Sum, &[a, b]);
        let graph = g.output(join).finish();
        let other = if place == Place::Cpu { Place::Gpu } else { Place::Cpu };
        let mut engine = engine(&graph, &[other, place, other], &null).unwrap();
        let error = outputs(&mut engine, &toy::inputs(&graph, 1)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("toy panic") || text.contains("its thread has ended"), "{text}");
        assert!(outputs(&mut engine, &toy::inputs(&graph, 1)).is_err());
    }
}

#[test]
fn tensors_of_the_wrong_type_are_refused() {
    let null = NullAccelerator::new(NullOptions::default());
    let graph = toy::blur_chain();
    let mut engine = engine(&graph, &[Place::Cpu; 4], &null).unwrap();
    let wrong = [Tensor::from_slice([4, 8], &[0f32; 32])];
    let error = outputs(&mut engine, &wrong).unwrap_err();
    assert_eq!(error.to_string(), "input 0: expected f32[8x4], given f32[4x8]");
    assert!(outputs(&mut engine, &[]).is_err());
    assert!(outputs(&mut engine, &toy::inputs(&graph, 3)).is_ok());
}

#[test]
fn kernels_and_cut_weights_are_shared_between_plans() {
    let null = NullAccelerator::new(NullOptions::default());
    let graph = toy::diamond();
    let support = Support::of(&graph, Some(&*null));
    let cache = KernelCache::new();
    let pool = Arc::new(Pool::single());
    for place in [Place::Cpu, Place::Cpu, Place::Split(0.5)] {
        let mut placement = Placement::uniform(&graph, Place::Cpu);
        placement.places[0] = place;
        let plan = compile(&graph, &placement, &support, None).unwrap();
        Engine::new(plan, &graph, &cache, &pool, Some(&*null)).unwrap();
    }
    assert_eq!(format!("{cache:?}"), "KernelCache(6 kernels)");
}

#[test]
fn a_trace_has_every_working_step() {
    let null = NullAccelerator::new(NullOptions::default());
    let graph = toy::diamond();
    let mixed = [Place::Gpu, Place::Gpu, Place::Cpu, Place::Cpu, Place::Cpu];
    let mut engine = engine(&graph, &mixed, &null).unwrap();
    let inputs = toy::inputs(&graph, 1);
    let mut outputs = engine.new_outputs();
    let trace = engine.run_traced(&inputs.iter().collect::<Vec<_>>(), &mut outputs).unwrap();
    assert_eq!(outputs, toy::reference(&graph, &inputs));
    let lanes = |lane| trace.events.iter().filter(|e| e.lane == lane).count();
    assert_eq!(Lane::ALL.map(lanes), [3, 1, 1, 1]);
    assert!(trace.events.iter().all(|e| e.start_ns <= e.end_ns && e.end_ns <= trace.makespan_ns));
    assert_eq!(trace.events[3].name, "a .. b");
}

#[test]
fn weights_live_while_they_are_packed() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let mut graph = Graph { name: "product".to_owned(), ..Graph::default() };
    let mut value = |name: &str, shape: [usize; 2], constant: Option<Tensor>| {
        let constant = constant.map(Arc::new);
        graph.add_value(Value { name: name.to_owned(), ty: TensorType::f32(shape), constant })
    };
    let weights = Tensor::from_slice([3, 2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let doubled = weights.made(TensorType::f32([3, 2]), |mut w| {
        MADE.fetch_add(1, Ordering::Relaxed);
        w.as_slice_mut::<f32>().unwrap().iter_mut().for_each(|w| *w *= 2.0);
        w
    });
    let [x, w, y] = [("x", [1, 3], None), ("w", [3, 2], Some(doubled)), ("y", [1, 2], None)]
        .map(|(name, shape, constant)| value(name, shape, constant));
    graph.nodes.push(Node {
        name: "product".to_owned(),
        op: Arc::new(Linear::default()),
        inputs: vec![Some(x), Some(w)],
        outputs: vec![Some(y)],
        origin: Vec::new(),
    });
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    let graph = Arc::new(graph);
    let null = NullAccelerator::new(NullOptions::default());
    let mut engine = engine(&graph, &[Place::Cpu], &null).unwrap();
    let x = Tensor::from_slice([1, 3], &[1f32, 10.0, 100.0]);
    assert_eq!(outputs(&mut engine, &[x]).unwrap()[0].as_slice(), Some(&[1062f32, 1284.0][..]));
    let made = MADE.load(Ordering::Relaxed);
    // Nobody has them any more: they are made anew.
    assert_eq!(graph.value(w).constant.as_ref().unwrap().as_slice::<f32>().unwrap()[5], 12.0);
    assert_eq!(MADE.load(Ordering::Relaxed), made + 1);
}
