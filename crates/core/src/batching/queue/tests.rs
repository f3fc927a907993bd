//! The queue with computations whose timing the tests hold in their hands, and with a session.

use std::sync::mpsc;

use super::*;

/// A computation that negates `[batch, 2]`, tells the first column of each batch, and waits for
/// leave before each where there is a gate.
struct Fake {
    queue: BatchQueue,
    seen: mpsc::Receiver<Vec<f32>>,
    leave: mpsc::Sender<()>,
}

fn fake(batches: &[usize], gated: bool, options: QueueOptions) -> Fake {
    fake_taking(batches, gated, options, 1_000_000)
}

fn fake_taking(batches: &[usize], gated: bool, options: QueueOptions, ns: u64) -> Fake {
    let (tell, seen) = mpsc::channel();
    let (leave, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let prepared = batches.iter().map(|&batch| {
        let (tell, gate) = (tell.clone(), gate.clone());
        let compute = move |x: &[&Tensor], y: &mut [Tensor]| {
            let x = x[0].as_slice::<f32>().unwrap();
            // A test that is over need not hear of it.
            let _ = tell.send(x.iter().copied().step_by(2).collect());
            if gated {
                let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            }
            if x.contains(&666.0) {
                panic!("the number of the beast");
            }
            if x.contains(&13.0) {
                let source = crate::ops::OpError::Value("unlucky".into());
                let (task, op_type) = ("n".to_owned(), "N");
                return Err(EngineError::Kernel { task, op_type, source }.into());
            }
            let y = y[0].as_slice_mut::<f32>().unwrap();
            y.iter_mut().zip(x).for_each(|(y, x)| *y = -x);
            Ok(())
        };
        let ty = TensorType::f32([batch, 2]);
        (
            Prepared::new(
                batch,
                vec![Tensor::zeros(ty.clone())],
                vec![Tensor::zeros(ty)],
                Box::new(compute),
            ),
            ns,
        )
    });
    let queue = BatchQueue::start(prepared.collect(), &options).unwrap();
    Fake { queue, seen, leave }
}

fn row(v: f32) -> Vec<Tensor> {
    vec![Tensor::from_slice([1, 2], &[v, v])]
}

fn value(answer: Result<Vec<Tensor>, QueueError>) -> f32 {
    answer.unwrap()[0].as_slice::<f32>().unwrap()[0]
}

use crate::engine::EngineError;

#[test]
fn answers_go_to_their_requests_and_partial_batches_are_padded() {
    let f = fake(&[1, 2, 4, 8], true, QueueOptions::default());
    let mut tickets = vec![f.queue.submit(row(1.0), None).unwrap()];
    assert_eq!(f.seen.recv().unwrap(), [1.0]);
    // While the first is computed six come; by their latency, the same for all, they are one batch.
    tickets.extend((2..8).map(|v| f.queue.submit(row(v as f32), None).unwrap()));
    f.leave.send(()).unwrap();
    assert_eq!(f.seen.recv().unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 0.0]);
    f.leave.send(()).unwrap();
    let answers: Vec<f32> = tickets.into_iter().map(|t| value(t.wait())).collect();
    assert_eq!(answers, [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]);
    let stats = f.queue.stats();
    assert_eq!((stats.submitted, stats.answered, stats.rows, stats.padded), (7, 7, 7, 2));
    assert_eq!(stats.batches, [(1, 1), (8, 1)].into());
    assert!(stats.arrivals_per_s.is_some() && stats.compute_ns > 0 && stats.wait_ns > 0);
    assert_eq!(stats.latency_ns.len(), 4);
}

#[test]
fn requests_of_several_rows_come_back_whole() {
    let f = fake(&[1, 4], false, QueueOptions::default());
    let three = vec![Tensor::from_slice([3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])];
    let out = f.queue.submit(three, None).unwrap().wait().unwrap();
    assert_eq!(out[0], Tensor::from_slice([3, 2], &[-1.0f32, -2.0, -3.0, -4.0, -5.0, -6.0]));
}

#[test]
fn a_dropped_ticket_is_not_computed() {
    let f = fake(&[1], true, QueueOptions::default());
    let first = f.queue.submit(row(1.0), None).unwrap();
    f.seen.recv().unwrap();
    let second = f.queue.submit(row(2.0), None).unwrap();
    let third = f.queue.submit(row(3.0), None).unwrap();
    drop(second);
    f.leave.send(()).unwrap();
    assert_eq!(f.seen.recv().unwrap(), [3.0]);
    f.leave.send(()).unwrap();
    assert_eq!((value(first.wait()), value(third.wait())), (-1.0, -3.0));
    assert_eq!(f.queue.stats().cancelled, 1);
}

#[test]
fn deadlines_that_cannot_be_met_are_answered_before_computing() {
    // A batch takes an hour by its measurements.
    let f = fake_taking(&[1], false, QueueOptions::default(), 3_600_000_000_000);
    let soon = Instant::now() + Duration::from_secs(60);
    let ticket = f.queue.submit(row(1.0), Some(soon)).unwrap();
    assert!(matches!(ticket.wait(), Err(QueueError::Deadline)));
    let late = Instant::now() + Duration::from_secs(7200);
    assert_eq!(value(f.queue.submit(row(2.0), Some(late)).unwrap().wait()), -2.0);
    assert_eq!(f.seen.recv().unwrap(), [2.0]);
    assert_eq!(f.queue.stats().expired, 1);
}

#[test]
fn a_full_queue_refuses_at_once_or_makes_wait() {
    let options = QueueOptions { capacity: 2, ..QueueOptions::default() };
    let f = fake(&[1], true, options);
    let mut tickets = vec![f.queue.submit(row(1.0), None).unwrap()];
    f.seen.recv().unwrap();
    tickets.extend((0..2).map(|_| f.queue.submit(row(2.0), None).unwrap()));
    let full = f.queue.submit(row(3.0), None);
    assert!(matches!(full, Err(QueueError::Full { capacity: 2 })));
    let passed = f.queue.submit_blocking(row(3.0), Some(Instant::now()));
    assert!(matches!(passed, Err(QueueError::Deadline)));
    // A request that nobody waits for makes room.
    tickets.pop();
    tickets.push(f.queue.submit(row(4.0), None).unwrap());
    thread::scope(|s| {
        let waits = s.spawn(|| f.queue.submit_blocking(row(5.0), None).unwrap().wait());
        for _ in 0..4 {
            f.leave.send(()).unwrap();
        }
        assert_eq!(value(waits.join().unwrap()), -5.0);
    });
    let stats = f.queue.stats();
    assert_eq!((stats.rejected, stats.cancelled, stats.expired), (1, 1, 1));
}

#[test]
fn close_computes_what_waits_and_drop_does_not() {
    for drops in [false, true] {
        let f = fake(&[1], true, QueueOptions::default());
        let first = f.queue.submit(row(1.0), None).unwrap();
        f.seen.recv().unwrap();
        let second = f.queue.submit(row(2.0), None).unwrap();
        let shared = f.queue.shared.clone();
        let leave = f.leave;
        let later = thread::spawn(move || {
            // Only once the queue takes nothing in any more.
            while shared.lock().closed.is_none() {
                thread::yield_now();
            }
            leave.send(()).unwrap();
            leave
        });
        if drops {
            drop(f.queue);
        } else {
            let finish = thread::spawn(move || {
                let leave = later.join().unwrap();
                leave.send(()).unwrap();
            });
            f.queue.close();
            finish.join().unwrap();
            assert!(matches!(f.queue.submit(row(3.0), None), Err(QueueError::Closed)));
        }
        assert_eq!(value(first.wait()), -1.0);
        match second.wait() {
            Ok(outputs) => assert!(!drops && outputs.len() == 1),
            Err(e) => assert!(drops && matches!(e, QueueError::Closed), "{e}"),
        }
    }
}

#[test]
fn a_panic_becomes_an_error_for_all() {
    let f = fake(&[1], true, QueueOptions::default());
    let bad = f.queue.submit(row(666.0), None).unwrap();
    f.seen.recv().unwrap();
    let waiting = f.queue.submit(row(1.0), None).unwrap();
    f.leave.send(()).unwrap();
    for ticket in [bad, waiting] {
        let error = ticket.wait().unwrap_err();
        assert!(matches!(error, QueueError::Panic { .. }), "{error}");
        assert!(error.to_string().contains("beast"), "{error}");
    }
    assert!(matches!(f.queue.submit(row(1.0), None), Err(QueueError::Panic { .. })));
    f.queue.close();
}

#[test]
fn a_request_that_a_kernel_refuses_fails_alone() {
    let f = fake(&[1, 4], true, QueueOptions::default());
    let first = f.queue.submit(row(1.0), None).unwrap();
    f.seen.recv().unwrap();
    let tickets = [2.0, 13.0, 3.0].map(|v| f.queue.submit(row(v), None).unwrap());
    for _ in 0..5 {
        f.leave.send(()).unwrap();
    }
    value(first.wait());
    let [good, bad, other] = tickets.map(Ticket::wait);
    assert_eq!((value(good), value(other)), (-2.0, -3.0));
    assert!(bad.unwrap_err().to_string().contains("unlucky"));
    assert_eq!(f.queue.stats().failed, 1);
}

#[test]
fn a_fixed_target_waits_for_company() {
    let max_wait = Some(Duration::from_secs(3600));
    let options = QueueOptions { target: Target::Fixed(4), max_wait, ..Default::default() };
    let f = fake(&[1, 4], false, options);
    let tickets: Vec<Ticket> =
        (1..5).map(|v| f.queue.submit(row(v as f32), None).unwrap()).collect();
    assert_eq!(f.seen.recv().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    tickets.into_iter().for_each(|t| drop(t.wait().unwrap()));
    assert_eq!(f.queue.stats().cuts, Cuts { full: 1, ..Cuts::default() });
    let max_wait = Some(Duration::from_millis(1));
    let options = QueueOptions { target: Target::Fixed(4), max_wait, ..Default::default() };
    let f = fake(&[1, 4], false, options);
    value(f.queue.submit(row(1.0), None).unwrap().wait());
    assert_eq!(f.queue.stats().cuts, Cuts { waited: 1, ..Cuts::default() });
}

#[test]
fn many_threads_get_their_own_answers() {
    let options = QueueOptions { capacity: 16, ..QueueOptions::default() };
    let f = fake_taking(&[1, 2, 4, 8], false, options, 1000);
    thread::scope(|s| {
        for t in 0..8 {
            let queue = &f.queue;
            s.spawn(move || {
                for i in 0..125 {
                    let v = (1000 + t * 125 + i) as f32;
                    let ticket = queue.submit_blocking(row(v), None).unwrap();
                    assert_eq!(value(ticket.wait()), -v);
                }
            });
        }
    });
    let stats = f.queue.stats();
    assert_eq!((stats.submitted, stats.answered, stats.waiting), (1000, 1000, 0));
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let f = fake(&[1, 4], false, QueueOptions::default());
    for (inputs, word) in [
        (vec![], "nothing"),
        (vec![Tensor::from_slice([1, 3], &[0f32; 3])], "1x3"),
        (vec![Tensor::from_slice([5, 2], &[0f32; 10])], "1 to 4 rows"),
        (vec![Tensor::from_slice([0, 2], &[] as &[f32])], "0x2"),
        (vec![Tensor::from_slice([1, 2], &[0i64; 2])], "i64"),
        (vec![Tensor::scalar(1f32)], "f32["),
        ([row(1.0), row(1.0)].concat(), "only 1 inputs"),
    ] {
        let error = f.queue.submit(inputs, None).unwrap_err();
        assert!(matches!(error, QueueError::Input { .. }));
        assert!(error.to_string().contains(word), "{error}: {word}");
    }
    assert_eq!(f.queue.stats().submitted, 0);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let prepared = |batch| {
        let ty = TensorType::f32([batch, 2]);
        (
            Prepared::new(
                batch,
                vec![Tensor::zeros(ty.clone())],
                vec![Tensor::zeros(ty)],
                Box::new(|_, _| Ok(())),
            ),
            1,
        )
    };
    let refused = |options: QueueOptions, word: &str| {
        let error = BatchQueue::start(vec![prepared(1), prepared(4)], &options).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    };
    let fixed = |n| QueueOptions { target: Target::Fixed(n), ..QueueOptions::default() };
    refused(QueueOptions { capacity: 0, ..QueueOptions::default() }, "capacity");
    refused(fixed(0), "target 0");
    refused(fixed(8), "batch, 4");
    refused(fixed(4), "max_wait");
    let none = BatchQueue::start(Vec::new(), &QueueOptions::default());
    assert!(none.unwrap_err().to_string().contains("session"));
}

#[test]
fn ladders_end_at_the_largest() {
    assert_eq!(ladder(1), [1]);
    assert_eq!(ladder(8), [1, 2, 4, 8]);
    assert_eq!(ladder(12), [1, 2, 4, 8, 12]);
    assert_eq!(ladder(0), [1]);
}
