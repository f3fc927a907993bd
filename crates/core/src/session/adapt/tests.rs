//! Adaptive sessions on the null accelerator, whose load the tests set.

use std::{sync::Arc, time::Instant};

use super::*;
use crate::{
    backend::{NullAccelerator, NullOptions},
    ir::{Dim, Model, ModelBuilder},
    plan::Place,
    schedule::Objective,
    session::{SessionBuilder, random_placement},
    tensor::{DType, Tensor},
    toy::Toy,
};

const ROWS: usize = 16;

/// A chain of operators that take 5 ms each wherever they run, and halve when split.
fn model() -> Model {
    let mut m = ModelBuilder::new("slow");
    let mut x = m.input("x", DType::F32, [ROWS, 4].map(Dim::Fixed));
    for name in ["a", "b", "c"] {
        x = m.node(name, Arc::new(Toy::Slow), &[x]);
    }
    m.output(x);
    m.finish()
}

fn session(null: &Arc<NullAccelerator>, policy: Policy) -> (Session, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let session = SessionBuilder::new(model())
        .threads(1)
        .optimize(false)
        .accelerator(null.clone())
        .cache_dir(dir.path())
        .policy(policy)
        .build()
        .unwrap();
    (session, dir)
}

fn input() -> Tensor {
    let data: Vec<f32> = (0..ROWS * 4).map(|i| (i % 7) as f32).collect();
    Tensor::from_slice([ROWS, 4], &data)
}

fn uses_gpu(session: &Session) -> bool {
    session.placement().places.iter().any(|p| *p != Place::Cpu)
}

/// Runs inferences until the session uses the GPU or does not; every one must give `expected`.
fn run_until(session: &mut Session, gpu: bool, expected: &[Tensor]) {
    let given = input();
    let mut outputs = session.new_outputs();
    let start = Instant::now();
    while uses_gpu(session) != gpu {
        session.run_into(&[&given], &mut outputs).unwrap();
        assert_eq!(outputs, expected);
        let report = session.adaptation().unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "still {report:?}");
    }
}

#[test]
fn the_plan_follows_the_load() {
    let null = NullAccelerator::new(NullOptions::default());
    let (mut session, _dir) = session(&null, Policy::Auto);
    assert!(uses_gpu(&session), "a split halves every operator: {}", session.placement());
    let mut outputs = session.new_outputs();
    session.run_into(&[&input()], &mut outputs).unwrap();
    let expected = outputs;
    let options = AdaptOptions { forget: Duration::from_millis(200), ..AdaptOptions::default() };
    session.adapt(options, Monitor::new()).unwrap();

    null.set_load(Duration::from_millis(30));
    run_until(&mut session, false, &expected);
    let report = session.adaptation().unwrap();
    assert!(report.switches >= 1 && report.trials >= 1 && report.decisions >= 1, "{report:?}");
    let last = report.log.last().unwrap();
    let (old, new) = last.medians_ns.unwrap();
    assert!(new < old, "{last:?}");
    assert!(last.state.gpu_share() < 0.5, "{last:?}");

    // The running plan does not see the GPU; when the evidence is old it is tried again.
    null.set_load(Duration::ZERO);
    run_until(&mut session, true, &expected);
    assert_eq!(session.decision().source, session.adaptation().unwrap().log.last().unwrap().to);
}

#[test]
fn a_hundred_changes_of_plan_and_every_answer_the_same() {
    let null = NullAccelerator::new(NullOptions::default());
    let (mut session, _dir) = session(&null, Policy::Heft);
    // Nothing but what the test proposes.
    let options = AdaptOptions { confirm: u32::MAX, ..AdaptOptions::default() };
    session.adapt(options, Monitor::new()).unwrap();
    let given = input();
    let mut outputs = session.new_outputs();
    session.run_into(&[&given], &mut outputs).unwrap();
    let expected = outputs.clone();
    for seed in 0..100 {
        let placement = random_placement(session.graph(), session.support(), seed);
        session.propose(placement.clone()).unwrap();
        while session.adaptation().unwrap().switches <= seed {
            session.run_into(&[&given], &mut outputs).unwrap();
            assert_eq!(outputs, expected, "{placement}");
        }
        assert_eq!(session.placement(), &placement);
        let (named, _) = session.run_traced(&[("x", given.clone())]).unwrap();
        assert_eq!(named[0].1, expected[0]);
    }
    let report = session.adaptation().unwrap();
    assert_eq!((report.switches, report.refused, report.trials), (100, 0, 0));
}

#[test]
fn a_challenger_that_fails_costs_no_inference() {
    let null = NullAccelerator::new(NullOptions::default());
    let (mut session, _dir) = session(&null, Policy::Auto);
    session.adapt(AdaptOptions::default(), Monitor::new()).unwrap();
    let given = input();
    let mut outputs = session.new_outputs();
    session.run_into(&[&given], &mut outputs).unwrap();
    let expected = outputs.clone();
    // A trial of an engine on a GPU that fails at once.
    let broken =
        NullAccelerator::new(NullOptions { fail_submission: Some(0), ..NullOptions::default() });
    let graph = session.graph().clone();
    let support = session.support().clone();
    let placement = Placement::uniform(&graph, Place::Gpu);
    let plan = crate::plan::compile(&graph, &placement, &support, None).unwrap();
    let engine =
        Engine::new(plan, &graph, &session.kernels, &session.pool, Some(&*broken)).unwrap();
    session.runner.as_ref().unwrap().offer(Challenger {
        engine: Box::new(engine),
        placement,
        name: "broken".to_owned(),
        score: 0.0,
        state: HardwareState::default(),
        unconditional: false,
    });
    for _ in 0..4 {
        session.run_into(&[&given], &mut outputs).unwrap();
        assert_eq!(outputs, expected);
    }
    let report = session.adaptation().unwrap();
    assert_eq!((report.refused, report.switches), (1, 0));
}

#[test]
fn what_cannot_adapt_says_why() {
    let null = NullAccelerator::new(NullOptions::default());
    let (mut fixed, _dir) = session(&null, Policy::Cpu);
    let error = fixed.adapt(AdaptOptions::default(), Monitor::new()).unwrap_err().to_string();
    assert!(error.contains("policy"), "{error}");
    let mut alone = SessionBuilder::new(model()).threads(1).optimize(false).build().unwrap();
    let error = alone.adapt(AdaptOptions::default(), Monitor::new()).unwrap_err().to_string();
    assert!(error.contains("no GPU"), "{error}");
    assert!(alone.propose(alone.placement().clone()).is_err());
    let dir = tempfile::tempdir().unwrap();
    let mut frugal = SessionBuilder::new(model())
        .threads(1)
        .optimize(false)
        .accelerator(null)
        .cache_dir(dir.path())
        .objective(Objective::Energy)
        .build()
        .unwrap();
    let error = frugal.adapt(AdaptOptions::default(), Monitor::new()).unwrap_err().to_string();
    assert!(error.contains("energy"), "{error}");
}
