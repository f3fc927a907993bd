//! The thread that makes batches and runs them.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    QueueError, Request, Shared, State,
    rows::Prepared,
    rule::{Aims, Cut, Decision, Waiting, decide, fitting},
};
use crate::{engine::EngineError, session::SessionError, tensor::Tensor};

/// How long the idle worker spins before it sleeps: a caller who just got an answer often has the
/// next request at hand, and waking a thread takes as long.
const SPIN: Duration = Duration::from_micros(40);

/// A batch that was taken from the queue.
struct Taken {
    requests: Vec<Request>,
    /// Index of the size that runs it.
    size: usize,
    cut: Cut,
}

/// Runs batches until the queue is closed and empty, or a batch panics; gives the reason.
pub(super) fn run(
    shared: &Shared,
    mut prepared: Vec<Prepared>,
    aims: &Aims,
    slo: Option<Duration>,
) -> QueueError {
    loop {
        let Some(taken) = next(shared, aims, slo) else { return QueueError::Closed };
        shared.room.notify_all();
        if let Err(why) = compute(shared, &mut prepared, taken) {
            return why;
        }
    }
}

/// Waits for the next batch; `None` when there will be none.
fn next(shared: &Shared, aims: &Aims, slo: Option<Duration>) -> Option<Taken> {
    let spin = Instant::now() + SPIN;
    while !shared.news.load(Ordering::Acquire) && Instant::now() < spin {
        std::hint::spin_loop();
    }
    let mut state = shared.lock();
    // Whether the last thing was to wait for more.
    let mut waited = false;
    loop {
        shared.news.store(false, Ordering::Relaxed);
        let (rows, late) = first_rows(&mut state, shared.largest);
        if !late.is_empty() {
            // Without the lock: whoever is woken may hand in the next request at once.
            drop(state);
            late.into_iter().for_each(|r| r.reply.send(Err(QueueError::Deadline)));
            state = shared.lock();
            continue;
        }
        let closing = state.closed.is_some();
        if rows.is_empty() {
            if closing {
                return None;
            }
            state = sleep(shared, state, None);
            continue;
        }
        let now = Instant::now();
        let since = |then: Instant| now.saturating_duration_since(then).as_nanos() as f64;
        let waiting = Waiting {
            rows: &rows,
            oldest_ns: state.waiting.front().map_or(0.0, |r| since(r.submitted)),
            slack_ns: slack_ns(&state, rows.len(), now, slo),
            gap_ns: state.arrivals.gap_ns(now),
            closing,
        };
        match decide(&state.sizes, &waiting, aims) {
            Decision::Wait(ns) => {
                // Beyond a day the clock's range would matter.
                let time = Duration::from_nanos(ns.clamp(1.0, 8.64e13) as u64);
                state = sleep(shared, state, Some(time));
                waited = true;
            }
            Decision::Run(size, cut) => {
                let count = fitting(&rows, state.sizes[size].batch).0;
                let requests: Vec<Request> = state.waiting.drain(..count).collect();
                let cut = if waited && cut == Cut::Ready { Cut::Waited } else { cut };
                return Some(Taken { requests, size, cut });
            }
        }
    }
}

fn sleep<'a>(
    shared: &Shared,
    mut state: MutexGuard<'a, State>,
    time: Option<Duration>,
) -> MutexGuard<'a, State> {
    state.asleep = true;
    let mut state = match time {
        None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(time) => {
            shared.work.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
        }
    };
    state.asleep = false;
    state
}

/// Rows of the first requests, as many as may form a batch, and those taken out from among them
/// because they would be late whatever is done; what nobody waits for is dropped.
fn first_rows(state: &mut State, largest: usize) -> (Vec<usize>, Vec<Request>) {
    let (mut rows, mut late, mut sum, now) = (Vec::new(), Vec::new(), 0, Instant::now());
    while let Some(request) = state.waiting.get(rows.len()) {
        let least = state.sizes.iter().find(|s| s.batch >= request.rows);
        let least = Duration::from_nanos(least.map_or(0, |s| s.mean_ns as u64));
        let is_late = |deadline: Instant| deadline.saturating_duration_since(now) < least;
        if request.reply.is_cancelled() {
            state.stats.cancelled += 1;
            drop(state.waiting.remove(rows.len()));
        } else if request.deadline.is_some_and(is_late) {
            state.stats.expired += 1;
            late.extend(state.waiting.remove(rows.len()));
        } else if sum + request.rows > largest {
            break;
        } else {
            sum += request.rows;
            rows.push(request.rows);
        }
    }
    (rows, late)
}

/// Requests that nobody waits for make room.
pub(super) fn drop_cancelled(state: &mut State) {
    let before = state.waiting.len();
    state.waiting.retain(|request| !request.reply.is_cancelled());
    state.stats.cancelled += (before - state.waiting.len()) as u64;
}

/// Until the first of so many requests is late by its deadline or the SLO; negative afterwards.
fn slack_ns(state: &State, count: usize, now: Instant, slo: Option<Duration>) -> Option<f64> {
    let left = |end: Instant| match end.checked_duration_since(now) {
        Some(left) => left.as_nanos() as f64,
        None => -(now.saturating_duration_since(end).as_nanos() as f64),
    };
    let ends = state.waiting.iter().take(count).flat_map(|request| {
        [request.deadline, slo.and_then(|slo| request.submitted.checked_add(slo))]
    });
    ends.flatten().map(left).min_by(f64::total_cmp)
}

/// Runs a batch and answers its requests. The error is of a panic: nothing may run any more.
fn compute(shared: &Shared, prepared: &mut [Prepared], taken: Taken) -> Result<(), QueueError> {
    let Taken { requests, size, cut } = taken;
    let start = Instant::now();
    let (outcome, took) = attempt(&mut prepared[size], &requests);
    // One request whose values a kernel refuses must not take the others with it.
    let alone = match &outcome {
        Err(QueueError::Session(e)) => {
            requests.len() > 1 && matches!(&**e, SessionError::Engine(EngineError::Kernel { .. }))
        }
        _ => false,
    };
    let rows: usize = requests.iter().map(|r| r.rows).sum();
    {
        let mut state = shared.lock();
        let batch = state.sizes[size].batch;
        if outcome.is_ok() {
            state.sizes[size].observe(took);
        }
        let stats = &mut state.stats;
        *stats.batches.entry(batch).or_default() += 1;
        stats.cuts.count(cut);
        stats.rows += rows as u64;
        stats.padded += (batch - rows) as u64;
        stats.compute_ns += took;
        stats.wait_ns += requests
            .iter()
            .map(|r| start.saturating_duration_since(r.submitted).as_nanos() as u64)
            .sum::<u64>();
        match &outcome {
            Ok(_) => stats.answered += requests.len() as u64,
            Err(_) if alone => {}
            Err(_) => stats.failed += requests.len() as u64,
        }
    }
    match outcome {
        Ok(outputs) => {
            for (request, outputs) in requests.into_iter().zip(outputs) {
                request.reply.send(Ok(outputs));
            }
        }
        Err(_) if alone => {
            for request in requests {
                let rows = request.rows;
                let size = prepared.iter().position(|p| p.batch >= rows).unwrap_or(0);
                compute(shared, prepared, Taken { requests: vec![request], size, cut })?;
            }
        }
        Err(why) => {
            let broken = matches!(why, QueueError::Panic { .. });
            if broken {
                shared.close(why.clone());
            }
            requests.into_iter().for_each(|request| request.reply.send(Err(why.clone())));
            if broken {
                return Err(why);
            }
        }
    }
    Ok(())
}

/// The outputs of each request, and how long they took in nanoseconds.
fn attempt(
    prepared: &mut Prepared,
    requests: &[Request],
) -> (Result<Vec<Vec<Tensor>>, QueueError>, u64) {
    let inputs: Vec<&[Tensor]> = requests.iter().map(|r| r.inputs.as_slice()).collect();
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| prepared.run(&inputs)));
    let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let outcome = match outcome {
        Ok(outcome) => outcome.map_err(QueueError::from),
        Err(panic) => Err(QueueError::Panic { message: message(&*panic) }),
    };
    (outcome, took)
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or("no message".to_owned())
}
