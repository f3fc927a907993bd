//! Batches with sessions: a search, a queue, and batches cut between the processors.

use std::sync::Arc;

use super::*;
use crate::{
    backend::{NullAccelerator, NullOptions},
    ir::{Dim, Model, ModelBuilder},
    plan::{Place, Placement},
    schedule::Policy,
    session::{MeasureOptions, Session, SessionBuilder, SessionError, Tolerance},
    tensor::{DType, Tensor},
    toy::Toy,
    zoo,
};

/// Rows that have nothing to do with each other; 2 (2 x + 1) + 1 = 4 x + 3.
fn rowwise() -> Model {
    let mut m = ModelBuilder::new("rowwise");
    let x = m.input("x", DType::F32, [Dim::Symbol("n".into()), Dim::Fixed(4)]);
    let a = m.node("a", Arc::new(Toy::Affine), &[x]);
    let b = m.node("b", Arc::new(Toy::Affine), &[a]);
    m.output(b);
    m.finish()
}

fn builder(model: Model, dir: &tempfile::TempDir) -> SessionBuilder {
    let quick = MeasureOptions {
        passes: 1,
        max_time: std::time::Duration::ZERO,
        ..MeasureOptions::default()
    };
    SessionBuilder::new(model).threads(1).cache_dir(dir.path()).measure_options(quick)
}

#[test]
fn a_queue_of_sessions_answers_like_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let sessions: Result<Vec<Session>, SessionError> = ladder(4)
        .into_iter()
        .map(|n| builder(rowwise(), &dir).policy(Policy::Cpu).batch(n).build())
        .collect();
    let queue = BatchQueue::new(sessions.unwrap(), &QueueOptions::default()).unwrap();
    let rows = |i: usize| 1 + i % 3;
    let input = |i: usize| vec![Tensor::from_slice([rows(i), 4], &vec![i as f32; rows(i) * 4])];
    let tickets: Vec<Ticket> =
        (0..50).map(|i| queue.submit_blocking(input(i), None).unwrap()).collect();
    for (i, ticket) in tickets.into_iter().enumerate() {
        let expected = Tensor::from_slice([rows(i), 4], &vec![4.0 * i as f32 + 3.0; rows(i) * 4]);
        assert_eq!(ticket.wait().unwrap(), [expected]);
    }
}

#[test]
fn models_without_rows_cannot_be_queued() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = ModelBuilder::new("halves");
    let x = m.input("x", DType::F32, [Dim::Symbol("n".into()), Dim::Fixed(4)]);
    let y = m.node("flat", Arc::new(Toy::View(vec![1, 32])), &[x]);
    m.output(y);
    let session = builder(m.finish(), &dir).policy(Policy::Cpu).batch(8).build().unwrap();
    let error = BatchQueue::new(vec![session], &QueueOptions::default()).unwrap_err();
    assert!(error.to_string().contains("'flat_output'"), "{error}");
}

#[test]
fn a_search_over_sessions_ends_with_one_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let null = NullAccelerator::new(NullOptions::default());
    let quick = ProbeOptions { runs: 3, ..ProbeOptions::default() };
    let choice = find_batch(&BatchLimits { most: 8, ..BatchLimits::default() }, |n| {
        let builder = builder(rowwise(), &dir).policy(Policy::Auto).batch(n);
        measure_batch(&mut builder.accelerator(null.clone()).build()?, &quick)
    });
    let choice = choice.unwrap();
    assert!((1..=8).contains(&choice.batch) && choice.probes.len() <= 6, "{choice:?}");
    assert!(choice.probe.latency_ns > 0 && choice.probe.bytes > 0, "{choice:?}");
}

#[test]
fn a_fixed_batch_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = ModelBuilder::new("fixed");
    let x = m.input("x", DType::F32, [Dim::Fixed(1), Dim::Fixed(4)]);
    let y = m.node("a", Arc::new(Toy::Affine), &[x]);
    m.output(y);
    let error = builder(m.finish(), &dir).policy(Policy::Cpu).batch(8).build().unwrap_err();
    assert!(error.to_string().contains("free batch dimension"), "{error}");
}

/// Operators of a batch split along it: each processor computes whole images.
#[test]
fn a_batch_is_cut_between_the_processors() {
    let dir = tempfile::tempdir().unwrap();
    let null = NullAccelerator::new(NullOptions::default());
    let model = zoo::build("mobilenet_v3_small").unwrap();
    let mut session =
        builder(model, &dir).policy(Policy::Cpu).accelerator(null).batch(8).build().unwrap();
    let split = Placement {
        places: session
            .support()
            .split
            .iter()
            .map(|axis| axis.map_or(Place::Cpu, |_| Place::Split(0.375)))
            .collect(),
    };
    session.set_placement(split, "split").unwrap();
    let parts: Vec<_> = session.plan().cpu.iter().filter_map(|task| task.part.clone()).collect();
    assert!(parts.len() > 40, "{} parts", parts.len());
    for part in &parts {
        assert_eq!((part.axis, part.extent), (0, 8));
        assert_eq!(part.range.len(), 5);
    }
    let inputs = session.random_inputs(3);
    let named: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    let verification = session.verify(&named, Tolerance::default()).unwrap();
    assert!(verification.passed(), "{verification:?}");
}
