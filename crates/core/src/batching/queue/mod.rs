//! Dynamic batching: requests in, batches to the sessions, answers out.
//!
//! A [`BatchQueue`] owns one session for each of a few batch sizes ([`ladder`]) and a thread that
//! runs them. [`BatchQueue::submit`] takes a request of one row or a few and gives a [`Ticket`]
//! for its answer. The thread makes batches of what waits, by the rule of the module `rule`: it
//! chooses the size by the latency of each, the rate of arrivals and the SLO, and fills up with
//! zero rows what is missing.
//!
//! The sessions share their pool, their accelerator and the model's weights as loaded, but weights
//! packed for kernels and device memory belong to each session, because kernels are chosen by
//! shape: a ladder of five sizes takes about five times the memory of one session.

mod rows;
mod rule;
mod stats;
mod ticket;
mod worker;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{ProbeOptions, measure_batch};
use crate::{
    session::{Session, SessionError},
    tensor::{Tensor, TensorType},
};
use rows::{Prepared, rows};
use rule::{Aims, Size};
use stats::Arrivals;
pub use stats::{Cuts, QueueStats};
pub use ticket::Ticket;
use ticket::{Reply, ticket};

/// How a batch size is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// By latency, arrivals and SLO.
    #[default]
    Auto,
    /// So many rows, or what is there when the wait is over.
    Fixed(usize),
}

/// How a queue behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// The most requests that wait; further ones are refused. Under overload the queue stays full
    /// and a request waits for as many batches as that takes: to answer within the SLO even then,
    /// allow no more than the SLO times the throughput.
    pub capacity: usize,
    /// From a request to its answer, the time to aim for. A request that misses it is computed all
    /// the same: only deadlines are hard.
    pub slo: Option<Duration>,
    /// How the batch is chosen.
    pub target: Target,
    /// The longest that a request waits for others while the sessions are idle.
    pub max_wait: Option<Duration>,
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions { capacity: 256, slo: None, target: Target::Auto, max_wait: None }
    }
}

/// Why a request has no outputs.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Backpressure.
    #[error("the queue is full ({capacity} requests wait): try again later")]
    Full {
        /// The most that wait.
        capacity: usize,
    },
    /// The deadline passed, or would have before an answer.
    #[error("the deadline cannot be met; the request was not computed")]
    Deadline,
    /// The queue was closed, or the answer was already taken from this ticket.
    #[error("the queue is closed")]
    Closed,
    /// An input that does not fit the model.
    #[error("input {index}: expected {expected}, given {given}")]
    Input {
        /// Its index in the model's order.
        index: usize,
        /// What the model takes.
        expected: String,
        /// What was given.
        given: String,
    },
    /// The session failed on this request.
    #[error(transparent)]
    Session(Arc<SessionError>),
    /// The session panicked, a defect of a kernel or a driver: the queue computes nothing more.
    #[error("internal error: a batch panicked ({message}); make a new queue")]
    Panic {
        /// The panic's message.
        message: String,
    },
    /// A queue that cannot be made.
    #[error("batch queue: {0}")]
    Options(String),
}

impl From<SessionError> for QueueError {
    fn from(error: SessionError) -> QueueError {
        QueueError::Session(Arc::new(error))
    }
}

/// The batch sizes to prepare for batches up to `most`: 1, 2, 4, .. and `most` itself.
pub fn ladder(most: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1usize), |b| b.checked_mul(2));
    let mut sizes: Vec<usize> = powers.take_while(|&b| b < most).collect();
    sizes.push(most.max(1));
    sizes
}

/// A request that waits.
struct Request {
    inputs: Vec<Tensor>,
    rows: usize,
    submitted: Instant,
    deadline: Option<Instant>,
    reply: Reply,
}

/// What the worker and the callers share.
struct Shared {
    state: Mutex<State>,
    /// Wakes the worker.
    work: Condvar,
    /// Wakes callers who wait for room.
    room: Condvar,
    /// Something for the worker to see, without the lock.
    news: AtomicBool,
    capacity: usize,
    /// Types of the inputs with one row, and the most rows of a request.
    inputs: Vec<TensorType>,
    largest: usize,
}

struct State {
    waiting: VecDeque<Request>,
    arrivals: Arrivals,
    stats: QueueStats,
    /// Prepared sizes with their latencies.
    sizes: Vec<Size>,
    /// The worker sleeps.
    asleep: bool,
    /// Why nothing is taken in any more.
    closed: Option<QueueError>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes nothing in any more and wakes all.
    fn close(&self, why: QueueError) {
        self.lock().closed.get_or_insert(why);
        self.news.store(true, Ordering::Release);
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Answers everything that waits with `why`.
    fn refuse(&self, why: &QueueError) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(|request| request.reply.send(Err(why.clone())));
    }
}

/// See the module. Shared by reference among callers; dropping it answers what still waits with
/// [`QueueError::Closed`], after the batch that is being computed.
pub struct BatchQueue {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl BatchQueue {
    /// A queue over sessions of one model with different batch sizes. Each is run a few times to
    /// know what it takes.
    ///
    /// # Errors
    /// When the model has inputs or outputs without a row for each of the batch's, the sessions
    /// contradict each other or the options, or a session fails.
    pub fn new(sessions: Vec<Session>, options: &QueueOptions) -> Result<BatchQueue, QueueError> {
        let probe = ProbeOptions { runs: 3, time: Duration::ZERO, most: Duration::from_secs(1) };
        let mut prepared = Vec::with_capacity(sessions.len());
        for mut session in sessions {
            // Twice, and the better: something else may have run during one of them.
            let first = measure_batch(&mut session, &probe)?.latency_ns;
            let latency_ns = first.min(measure_batch(&mut session, &probe)?.latency_ns);
            prepared.push((Prepared::of(session)?, latency_ns));
        }
        BatchQueue::start(prepared, options)
    }

    fn start(
        mut prepared: Vec<(Prepared, u64)>,
        options: &QueueOptions,
    ) -> Result<BatchQueue, QueueError> {
        prepared.sort_by_key(|(p, _)| p.batch);
        prepared.dedup_by_key(|(p, _)| p.batch);
        let refused = |why: String| Err(QueueError::Options(why));
        let Some((last, _)) = prepared.last() else {
            return refused("needs at least one session".to_owned());
        };
        let (largest, inputs) = (last.batch, last.input_types(1));
        if let Some((other, _)) = prepared.iter().find(|(p, _)| p.input_types(1) != inputs) {
            let batch = other.batch;
            return refused(format!("sessions {batch} and {largest} take different inputs"));
        }
        if options.capacity == 0 {
            return refused("the capacity must be at least 1".to_owned());
        }
        match options.target {
            Target::Fixed(n) if n == 0 || n > largest => {
                return refused(format!(
                    "the target {n} must be from 1 to the largest session's batch, {largest}"
                ));
            }
            Target::Fixed(n) if n > 1 && options.slo.is_none() && options.max_wait.is_none() => {
                return refused(format!(
                    "a fixed target of {n} needs max_wait or an SLO, or the last requests would \
                     wait for ever"
                ));
            }
            _ => {}
        }
        let sizes = prepared.iter().map(|(p, ns)| Size::new(p.batch, *ns)).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: VecDeque::with_capacity(options.capacity.min(1024)),
                arrivals: Arrivals::default(),
                stats: QueueStats::default(),
                sizes,
                asleep: false,
                closed: None,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            news: AtomicBool::new(false),
            capacity: options.capacity,
            inputs,
            largest,
        });
        let ns = |d: Duration| d.as_nanos() as f64;
        let aims = Aims {
            target: options.target,
            slo_ns: options.slo.map(ns),
            max_wait_ns: options.max_wait.map(ns),
        };
        let prepared = prepared.into_iter().map(|(p, _)| p).collect();
        let (seen, slo) = (shared.clone(), options.slo);
        let body = move || {
            let run = AssertUnwindSafe(|| worker::run(&seen, prepared, &aims, slo));
            // The worker catches a batch's panic; this one would be the queue's own.
            let why = catch_unwind(run)
                .unwrap_or_else(|panic| QueueError::Panic { message: worker::message(&*panic) });
            seen.close(why.clone());
            seen.refuse(&why);
        };
        let worker = thread::Builder::new()
            .name("sparoa-batch".to_owned())
            .spawn(body)
            .map_err(|e| QueueError::Options(format!("the system starts no thread: {e}")))?;
        Ok(BatchQueue { shared, worker: Mutex::new(Some(worker)) })
    }

    /// Hands in a request: the inputs in the model's order, all with the same number of rows, at
    /// most as many as the largest session takes. One whose deadline can no longer be met is
    /// answered with [`QueueError::Deadline`] before it is computed.
    ///
    /// # Errors
    /// [`QueueError::Full`] at once where no more may wait; inputs that do not fit the model; a
    /// queue that is closed or broken.
    pub fn submit(
        &self,
        inputs: Vec<Tensor>,
        deadline: Option<Instant>,
    ) -> Result<Ticket, QueueError> {
        self.check(&inputs)?;
        let mut state = self.shared.lock();
        if state.waiting.len() >= self.shared.capacity {
            worker::drop_cancelled(&mut state);
        }
        if state.waiting.len() >= self.shared.capacity && state.closed.is_none() {
            state.stats.rejected += 1;
            return Err(QueueError::Full { capacity: self.shared.capacity });
        }
        self.push(state, inputs, deadline)
    }

    /// [`BatchQueue::submit`], but waits for room where the queue is full.
    ///
    /// # Errors
    /// As [`BatchQueue::submit`], except [`QueueError::Full`]; [`QueueError::Deadline`] when there
    /// is no room before the deadline.
    pub fn submit_blocking(
        &self,
        inputs: Vec<Tensor>,
        deadline: Option<Instant>,
    ) -> Result<Ticket, QueueError> {
        self.check(&inputs)?;
        let mut state = self.shared.lock();
        while state.waiting.len() >= self.shared.capacity && state.closed.is_none() {
            let room = &self.shared.room;
            state = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => room.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    state.stats.expired += 1;
                    return Err(QueueError::Deadline);
                }
                Some(left) => {
                    room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        self.push(state, inputs, deadline)
    }

    fn push(
        &self,
        mut state: MutexGuard<'_, State>,
        inputs: Vec<Tensor>,
        deadline: Option<Instant>,
    ) -> Result<Ticket, QueueError> {
        if let Some(why) = &state.closed {
            return Err(why.clone());
        }
        let (reply, ticket) = ticket();
        let (rows, submitted) = (rows(&inputs), Instant::now());
        state.arrivals.observe(submitted, rows);
        state.stats.submitted += 1;
        state.waiting.push_back(Request { inputs, rows, submitted, deadline, reply });
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        self.shared.news.store(true, Ordering::Release);
        if asleep {
            self.shared.work.notify_one();
        }
        Ok(ticket)
    }

    fn check(&self, inputs: &[Tensor]) -> Result<(), QueueError> {
        let expected = &self.shared.inputs;
        let rows = rows(inputs);
        for index in 0..expected.len().max(inputs.len()) {
            let fits = match (expected.get(index), inputs.get(index)) {
                (Some(want), Some(given)) => {
                    let want_shape = want.shape.get(1..);
                    (1..=self.shared.largest).contains(&rows)
                        && given.dtype() == want.dtype
                        && given.shape().first() == Some(&rows)
                        && given.shape().get(1..) == want_shape
                }
                _ => false,
            };
            if !fits {
                let most = self.shared.largest;
                return Err(QueueError::Input {
                    index,
                    expected: match expected.get(index) {
                        Some(ty) if index == 0 => format!("{ty} with 1 to {most} rows"),
                        Some(ty) => format!("{ty} with the rows of input 0"),
                        None => format!("only {} inputs", expected.len()),
                    },
                    given: inputs.get(index).map_or("nothing".to_owned(), |t| t.ty().to_string()),
                });
            }
        }
        Ok(())
    }

    /// What happened so far.
    pub fn stats(&self) -> QueueStats {
        let state = self.shared.lock();
        QueueStats {
            waiting: state.waiting.len(),
            arrivals_per_s: state.arrivals.per_s(),
            latency_ns: state.sizes.iter().map(|s| (s.batch, s.mean_ns as u64)).collect(),
            ..state.stats.clone()
        }
    }

    /// Takes nothing in any more, computes what waits and returns when that is done.
    pub fn close(&self) {
        self.shared.close(QueueError::Closed);
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The thread catches its panics.
        worker.into_iter().for_each(|worker| drop(worker.join()));
    }
}

impl Drop for BatchQueue {
    fn drop(&mut self) {
        self.shared.close(QueueError::Closed);
        self.shared.refuse(&QueueError::Closed);
        self.close();
    }
}

impl std::fmt::Debug for BatchQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BatchQueue({} waiting)", self.shared.lock().waiting.len())
    }
}

#[cfg(test)]
mod tests;
