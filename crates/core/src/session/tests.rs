//! Sessions end to end on the null accelerator.

use std::time::Duration;

use sparoa_kernels::{Arithmetic, isa};

use super::*;
use crate::{
    backend::{NullAccelerator, NullOptions},
    ir::{Dim, ModelBuilder},
    plan::Place,
    tensor::DType,
    toy::Toy,
};

/// `x -> a -> b -+-> join`, `x -> c -> d -+`, rows free.
fn model() -> Model {
    let mut m = ModelBuilder::new("diamond");
    let rows = Dim::Symbol("rows".into());
    let x = m.input("x", DType::F32, [rows, Dim::Fixed(4)]);
    let a = m.node("a", Arc::new(Toy::Affine), &[x]);
    let b = m.node("b", Arc::new(Toy::Flip), &[a]);
    let c = m.node("c", Arc::new(Toy::Affine), &[x]);
    let d = m.node("d", Arc::new(Toy::Blur { top: 1, bottom: 1 }), &[c]);
    let join = m.node("join", Arc::new(Toy::Sum), &[b, d]);
    m.output(join);
    m.output(a);
    m.finish()
}

fn quick() -> MeasureOptions {
    MeasureOptions { passes: 2, max_time: Duration::ZERO, ..MeasureOptions::default() }
}

pub(super) fn builder(null: &Arc<NullAccelerator>, dir: &tempfile::TempDir) -> SessionBuilder {
    SessionBuilder::new(model())
        .shape("x", [8, 4])
        .threads(1)
        .optimize(false)
        .accelerator(null.clone())
        .cache_dir(dir.path())
        .measure_options(quick())
}

fn null(options: NullOptions) -> Arc<NullAccelerator> {
    NullAccelerator::new(options)
}

pub(super) fn inputs(session: &Session) -> Vec<(&'static str, Tensor)> {
    let data: Vec<f32> = (0..32).map(|i| (i % 7) as f32).collect();
    assert_eq!(session.inputs()[0].name, "x");
    vec![("x", Tensor::from_slice([8, 4], &data))]
}

#[test]
fn every_policy_gives_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let null = null(NullOptions::default());
    for policy in Policy::ALL {
        let mut session = builder(&null, &dir).policy(policy).build().unwrap();
        assert_eq!(session.decision().policy, policy);
        assert_eq!(session.profile().is_some(), policy.needs_profile(), "{policy}");
        let names: Vec<_> = session.outputs().iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["join_output", "a_output"]);
        let given = inputs(&session);
        let verification =
            session.verify(&given, Tolerance { rtol: 0.0, atol: 0.0, of_rms: 0.0 }).unwrap();
        assert!(verification.passed(), "{policy}: {verification:?}");
        let (outputs, trace) = session.run_traced(&given).unwrap();
        assert_eq!(outputs, session.run(&given).unwrap());
        assert!(!trace.events.is_empty());
        let mut into = session.new_outputs();
        session.run_into(&[&given[0].1], &mut into).unwrap();
        assert_eq!(into[0], outputs[0].1);
        // Values move only where a GPU will read them.
        let (_, given) = given.into_iter().next().unwrap();
        let place = given.bytes().as_ptr();
        let ready = session.upload_ready(given.clone());
        assert_eq!(ready, given);
        assert_eq!(ready.bytes().as_ptr() == place, !session.plan().uses_gpu(), "{policy}");
        session.run_into(&[&ready], &mut into).unwrap();
        assert_eq!(into[0], outputs[0].1);
    }
}

#[test]
fn random_placements_verify_and_keep_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let null = null(NullOptions::default());
    let mut session = builder(&null, &dir).policy(Policy::Cpu).build().unwrap();
    let given = inputs(&session);
    let expected = session.run(&given).unwrap();
    for seed in 0..20 {
        let placement = random_placement(session.graph(), session.support(), seed);
        session.set_placement(placement.clone(), "random").unwrap();
        assert_eq!(session.placement(), &placement);
        assert_eq!(session.run(&given).unwrap(), expected, "{placement}");
    }
}

#[test]
fn a_wrong_operator_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let null = null(NullOptions { corrupt: Some("Blur"), ..NullOptions::default() });
    let mut session = builder(&null, &dir).policy(Policy::Gpu).build().unwrap();
    let verification = session.verify(&inputs(&session), Tolerance::default()).unwrap();
    assert!(!verification.passed());
    assert!(verification.outputs[1].mismatch.is_none());
    let divergence = verification.divergence.unwrap();
    assert_eq!((divergence.node.as_str(), divergence.op_type.as_str()), ("d", "Blur"));
    assert_eq!((divergence.place.as_str(), divergence.value.as_str()), ("gpu", "d_output"));
    assert_eq!(divergence.mismatch.count, 32);
}

#[test]
fn auto_leaves_a_slow_gpu_alone_and_remembers_it() {
    let dir = tempfile::tempdir().unwrap();
    let slow = NullOptions { task_delay: Duration::from_millis(5), ..NullOptions::default() };
    let null = null(slow);
    let session = builder(&null, &dir).build().unwrap();
    assert_eq!(session.decision().source, "auto: cpu");
    assert_eq!(session.placement().places, [Place::Cpu; 5]);
    let guard = session.decision().guard.clone().unwrap();
    assert!(!guard.cached && guard.entries.iter().any(|e| e.name == "gpu"), "{guard:?}");
    assert!(session.timeline().unwrap().makespan_ns < 1_000_000);
    // The second start measures nothing.
    let submissions = null.submissions();
    let again = builder(&null, &dir).build().unwrap();
    assert!(again.decision().guard.as_ref().unwrap().cached);
    assert_eq!(again.placement(), session.placement());
    assert_eq!(null.submissions(), submissions);
    // A damaged cache is measured again, not an error.
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), "{").unwrap();
    }
    let session = builder(&null, &dir).build().unwrap();
    assert!(!session.decision().guard.as_ref().unwrap().cached);
}

#[test]
fn profiles_have_every_cost_with_and_without_timestamps() {
    for no_timestamps in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let delay = Duration::from_millis(2);
        let options = NullOptions { task_delay: delay, no_timestamps, ..NullOptions::default() };
        let null = null(NullOptions { unsupported: vec!["Flip"], ..options });
        let session = builder(&null, &dir).policy(Policy::Heft).build().unwrap();
        let profile = session.profile().unwrap();
        assert!(!profile.simulated && profile.machine.contains("null"), "{}", profile.machine);
        for (i, node) in profile.nodes.iter().enumerate() {
            assert!(node.cpu.unwrap().latency_ns > 0, "{node:?}");
            assert_eq!(node.gpu.is_none(), i == 1, "{node:?}");
            // The delay is a lower bound, however busy the machine is.
            assert!(node.gpu.is_none_or(|gpu| gpu.latency_ns > 1_900_000), "{node:?}");
        }
        assert!(profile.upload.bytes_per_s > 0.0 && profile.handoff_ns > 0);
    }
}

#[test]
fn plan_files_reload_and_can_be_edited() {
    let dir = tempfile::tempdir().unwrap();
    let null = null(NullOptions::default());
    let mut session = builder(&null, &dir).policy(Policy::Gpu).build().unwrap();
    let given = inputs(&session);
    let path = dir.path().join("plan.json");
    let mut file = session.plan_file();
    file.nodes[2].place = Place::Split(0.5);
    file.write(&path).unwrap();
    let file = PlanFile::read(&path).unwrap();
    let mut again = builder(&null, &dir).plan(file.clone()).build().unwrap();
    assert_eq!(again.decision().source, "plan file");
    assert_eq!(again.placement().places[2], Place::Split(0.5));
    assert_eq!(again.run(&given).unwrap(), session.run(&given).unwrap());
    // Another shape and another machine are refused.
    let error = builder(&null, &dir).shape("x", [6, 4]).plan(file.clone()).build().unwrap_err();
    assert!(error.to_string().contains("x:8x4") && error.to_string().contains("x:6x4"), "{error}");
    let no_gpu = SessionBuilder::new(model()).shape("x", [8, 4]).optimize(false).threads(1);
    let error = no_gpu.plan(file).build().unwrap_err();
    assert!(error.to_string().contains("another GPU"), "{error}");
}

#[test]
fn a_missing_gpu_is_an_error_unless_allowed() {
    let build = |policy, allow| {
        SessionBuilder::new(model())
            .shape("x", [8, 4])
            .optimize(false)
            .threads(1)
            .policy(policy)
            .allow_fallback(allow)
            .no_gpu_reason("no Vulkan driver")
            .build()
    };
    let error = build(Policy::Gpu, false).unwrap_err().to_string();
    assert!(error.contains("no Vulkan driver") && error.contains("--allow-fallback"), "{error}");
    let session = build(Policy::Gpu, true).unwrap();
    assert_eq!(session.decision().fallback.as_deref(), Some("no Vulkan driver"));
    let session = build(Policy::Auto, false).unwrap();
    assert_eq!(session.placement().places, [Place::Cpu; 5]);
    let pins = ["b=gpu".parse().unwrap()];
    let error = SessionBuilder::new(model()).shape("x", [8, 4]).pins(pins).build().unwrap_err();
    assert!(error.to_string().contains("no GPU"), "{error}");
    // With one processor there is nothing to decide, whatever the objective.
    let session = SessionBuilder::new(model()).objective(Objective::Energy).build().unwrap();
    assert!(session.placement().places.iter().all(|p| *p == Place::Cpu));
}

#[test]
fn wrong_inputs_are_named() {
    let session = SessionBuilder::new(model()).shape("x", [8, 4]).optimize(false).build();
    let mut session = session.unwrap();
    let x = Tensor::from_slice([8, 4], &[0f32; 32]);
    let mut error = |given: &[(&str, Tensor)]| session.run(given).unwrap_err().to_string();
    assert_eq!(error(&[]), "input 'x' (f32[8x4]) must be given once, given 0 times");
    assert_eq!(error(&[("y", x.clone())]), "the model has no input 'y' (inputs: x)");
    let twice = error(&[("x", x.clone()), ("x", x.clone())]);
    assert_eq!(twice, "input 'x' (f32[8x4]) must be given once, given 2 times");
    let bytes = error(&[("x", Tensor::from_slice([8, 4], &[0u8; 32]))]);
    assert_eq!(bytes, "input 'x' must be f32[8x4], given u8[8x4]");
    let rows = error(&[("x", Tensor::from_slice([4, 8], &[0f32; 32]))]);
    assert_eq!(rows, "input 'x' must be f32[8x4], given f32[4x8]");
    let mut outputs = session.new_outputs();
    assert!(session.run_into(&[&x, &x], &mut outputs).is_err());
    assert!(session.run_into(&[&x], &mut outputs[..1]).is_err());
    session.run_into(&[&x], &mut outputs).unwrap();
}

#[test]
fn a_model_of_nothing_but_its_input_runs() {
    let mut m = ModelBuilder::new("identity");
    let x = m.input("x", DType::I64, [Dim::Fixed(2)]);
    m.output(x);
    m.output(x);
    let mut session = Session::new(m.finish()).unwrap();
    let x = Tensor::from_slice([2], &[7i64, 8]);
    let outputs = session.run(&[("x", x.clone())]).unwrap();
    assert_eq!(outputs[0].1, x);
    assert_eq!(outputs[1].1, x);
}

/// Convolutions of every kind, products and a residual sum, in bf16.
#[test]
fn bf16_is_within_its_tolerance_and_not_exact() {
    let build = |arithmetic| {
        let model = crate::zoo::build("mobilenet_v3_small").unwrap();
        SessionBuilder::new(model).threads(2).policy(Policy::Cpu).arithmetic(arithmetic).build()
    };
    let mut bf16 = match (build(Arithmetic::Bf16), isa::bf16()) {
        (Ok(session), Ok(())) => session,
        (Err(e), Err(reason)) => {
            let text = e.to_string();
            assert!(text.contains(reason) && text.contains("--precision"), "{text}");
            eprintln!("skipped: bf16 is not available");
            return;
        }
        (built, available) => panic!("{:?} where bf16 is {available:?}", built.err()),
    };
    let given = bf16.random_inputs(1);
    let given: Vec<(&str, Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    let tolerance = Tolerance::of_rounding(8, 2, product_depth(bf16.graph()));
    let verification = bf16.verify(&given, tolerance).unwrap();
    assert!(verification.passed(), "{verification:?}");
    let fp32 = Tolerance::default();
    assert!(!bf16.verify(&given, fp32).unwrap().passed(), "it is rounded");
    if isa::amx().is_ok() {
        let mut bf16x2 = build(Arithmetic::Bf16x2).unwrap();
        let tolerance = Tolerance::of_rounding(17, 3, product_depth(bf16x2.graph()));
        let tolerance = Tolerance { rtol: 0.0, atol: 0.0, ..tolerance };
        assert!(bf16x2.verify(&given, tolerance).unwrap().passed());
        assert!(bf16x2.engine().cpu_methods().any(|(_, method)| method.starts_with("amx")));
    } else {
        let error = build(Arithmetic::Bf16x2).err().unwrap().to_string();
        assert!(error.contains("bf16x2") && error.contains("--precision"), "{error}");
    }
    for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
        let mut session = build(arithmetic).unwrap();
        assert!(session.verify(&given, fp32).unwrap().passed());
        // Three terms are f32's numbers; but sums are not as plain as `Exact` promises.
        let tiles = session.engine().cpu_methods().any(|(_, method)| method.starts_with("amx"));
        assert_eq!(tiles, arithmetic == Arithmetic::Fast && isa::amx().is_ok());
    }
}

#[test]
fn kernels_are_pinned_recorded_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let layer = "features.10.block.0.0";
    let session = |pin: &str, plan: Option<PlanFile>| {
        let model = crate::zoo::build("mobilenet_v3_small@p90").unwrap();
        let builder =
            SessionBuilder::new(model).threads(1).policy(Policy::Cpu).cache_dir(dir.path());
        let builder = match plan {
            Some(plan) => builder.plan(plan),
            None => builder.pins([pin.parse().unwrap()]),
        };
        builder.build()
    };
    let kernel = |session: &Session| {
        let file = session.plan_file();
        let node = file.nodes.iter().find(|n| n.name == layer).unwrap();
        (node.kernel, file)
    };
    let x = Tensor::from_slice([1, 3, 224, 224], &vec![0.5f32; 3 * 224 * 224]);
    let mut outputs = Vec::new();
    let mut files = Vec::new();
    let pins =
        [(format!("{layer}=sparse"), Variant::Sparse), ("Conv=dense".into(), Variant::Dense)];
    for (pin, expected) in pins {
        let mut session = session(&pin, None).unwrap();
        let (found, file) = kernel(&session);
        assert_eq!(found, Some(expected), "{pin}");
        outputs.push(session.run(&[("input", x.clone())]).unwrap().remove(0).1);
        files.push(file);
    }
    let pairs = outputs[0].as_slice::<f32>().unwrap().iter().zip(outputs[1].as_slice().unwrap());
    assert!(pairs.clone().all(|(a, b): (&f32, &f32)| (a - b).abs() < 1e-4));
    assert_eq!(files[0].fingerprint, files[1].fingerprint);
    // A plan file brings its kernels along, whatever would be measured.
    let text = files[0].to_json();
    let again = session("", Some(PlanFile::parse(&text).unwrap())).unwrap();
    assert_eq!(kernel(&again).0, Some(Variant::Sparse));
    let sparse = again.engine().cpu_methods().filter(|(_, method)| *method == SPARSE).count();
    assert!(sparse > 0);

    let error = session("avgpool=sparse", None).unwrap_err().to_string();
    assert!(error.contains("'avgpool'") && error.contains("no sparse kernel"), "{error}");
    let error = session("nothing=dense", None).unwrap_err().to_string();
    assert!(error.contains("'nothing=dense' matches no node"), "{error}");
    // Nothing to skip: one weight per channel and tap.
    let error = session("features.10.block.1.0=sparse", None).unwrap_err().to_string();
    assert!(error.contains("features.10.block.1.0") && error.contains("sparse kernel"), "{error}");
}

#[test]
fn a_memory_limit_is_kept_or_refused_with_the_shortfall() {
    let dir = tempfile::tempdir().unwrap();
    let null = null(NullOptions::default());
    let free = builder(&null, &dir).policy(Policy::Cpu).build().unwrap();
    let needed = free.footprint().total();
    assert!(needed > 0);
    for policy in [Policy::Cpu, Policy::Auto, Policy::Gpu, Policy::Heft] {
        let limited = |bytes| builder(&null, &dir).policy(policy).memory_limit(bytes).build();
        match limited(needed / 4).map(|_| ()).unwrap_err() {
            SessionError::MemoryLimit { limit, host, device, shortfall } => {
                assert_eq!((limit, host + device), (needed / 4, limit + shortfall), "{policy}");
                assert!(shortfall > 0);
            }
            other => panic!("{policy}: {other}"),
        }
        let mut roomy = limited(8 * needed).unwrap();
        assert!(roomy.footprint().total() <= 8 * needed);
        let given = inputs(&roomy);
        roomy.run(&given).unwrap();
    }
    // What fits exactly is enough, and another placement of that session must fit as well.
    let mut exact = builder(&null, &dir).policy(Policy::Cpu).memory_limit(needed).build().unwrap();
    let seeds = (0..20).map(|seed| random_placement(exact.graph(), exact.support(), seed));
    for placement in seeds.collect::<Vec<_>>() {
        let before = exact.placement().clone();
        match exact.set_placement(placement.clone(), "random") {
            Ok(()) => assert!(exact.footprint().total() <= needed),
            Err(SessionError::MemoryLimit { .. }) => assert_eq!(exact.placement(), &before),
            Err(other) => panic!("{placement}: {other}"),
        }
    }
    let text = limited_text(&null, &dir);
    assert!(text.contains("bytes more than --memory-limit 10"), "{text}");
}

fn limited_text(null: &Arc<NullAccelerator>, dir: &tempfile::TempDir) -> String {
    let refused = builder(null, dir).policy(Policy::Auto).memory_limit(10).build();
    refused.map(|_| ()).unwrap_err().to_string()
}
