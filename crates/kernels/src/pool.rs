//! A fork-join pool: workers spin briefly, then park. Tasks are shared out evenly in their order,
//! and who has none left takes the last ones of another: of operators that divide their rows alike
//! each thread mostly reads what it wrote itself, which its caches still hold.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks, and how long while the pool is kept awake.
const SPIN: Duration = Duration::from_micros(80);
const LONG_SPIN: Duration = Duration::from_millis(1);

/// What a seat's `state` may be. The caller makes IDLE seats OFFERED and takes back what nobody has
/// taken; the seat's thread makes OFFERED TAKEN, and IDLE again when it has done what it could.
const IDLE: u32 = 0;
const OFFERED: u32 = 1;
const TAKEN: u32 = 2;
const STOP: u32 = 3;

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Calls `f`. Jobs that it gives to pools from this thread keep to `most` threads, as if the pools
/// had no more.
pub fn with_threads<T>(most: usize, f: impl FnOnce() -> T) -> T {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(most.max(1)));
    f()
}

/// Range `i` of `parts` of nearly equal length.
pub(crate) fn part_of(range: Range<usize>, parts: usize, i: usize) -> Range<usize> {
    let cut = |i: usize| range.start + i * range.len() / parts;
    cut(i)..cut(i + 1)
}

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Job {
    task: *const Task<'static>,
    threads: usize,
}

/// Tasks of one thread that nobody has begun, `end << 32 | next`.
struct Share(AtomicU64);

impl Share {
    /// Fewer than 2^32 tasks.
    fn set(&self, tasks: Range<usize>) {
        self.0.store((tasks.end as u64) << 32 | tasks.start as u64, Ordering::Relaxed);
    }

    /// Takes the first task.
    fn first(&self) -> Option<usize> {
        self.take(1).map(|share| share as u32 as usize)
    }

    /// Takes the last task.
    fn last(&self) -> Option<usize> {
        self.take((1u64 << 32).wrapping_neg()).map(|share| (share >> 32) as usize - 1)
    }

    /// Adds `step` unless all are taken, and says what there was.
    fn take(&self, step: u64) -> Option<u64> {
        let some = |share: u64| (share as u32) < (share >> 32) as u32;
        let take = |share| some(share).then_some(share.wrapping_add(step));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()
    }
}

/// All that passes between the caller and one thread, on cache lines of their own: with a count of
/// all threads in one place, each would wait for the others' turns to change it.
#[repr(align(128))]
struct Seat {
    state: AtomicU32,
    parked: AtomicBool,
    share: Share,
    job: UnsafeCell<Option<Job>>,
}

struct Shared {
    /// Of each thread, the caller's first.
    seats: Box<[Seat]>,
    /// How many keep the pool awake.
    awake: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: a seat's `job` is written only by the thread that holds `Pool::busy`, while the seat is
// IDLE, and read only by the seat's thread, while the seat is TAKEN.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointers in the jobs point to a `Sync` closure that outlives them (see `run`).
unsafe impl Send for Shared {}

/// See [`Pool::keep_awake`].
#[derive(Debug)]
pub struct Awake<'a>(&'a AtomicUsize);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A fork-join pool of a fixed number of threads, the caller being one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    busy: AtomicBool,
}

impl Pool {
    /// A pool in which `threads` threads work, the calling thread included; 0 counts as 1.
    pub fn new(threads: usize) -> Pool {
        let seat = |_| Seat {
            state: AtomicU32::new(IDLE),
            parked: AtomicBool::new(false),
            share: Share(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
        };
        let shared = Arc::new(Shared {
            seats: (0..threads.max(1)).map(seat).collect(),
            awake: AtomicUsize::new(0),
            panic: Mutex::new(None),
        });
        let workers = (1..threads)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                let handle = thread::Builder::new()
                    .name(format!("sparoa-{worker}"))
                    .spawn(move || work(&shared, worker))
                    .expect("the system can start a thread");
                (handle.thread().clone(), Some(handle))
            })
            .collect();
        Pool { shared, workers, busy: AtomicBool::new(false) }
    }

    /// A pool of the calling thread alone: `run` is a plain loop.
    pub fn single() -> Pool {
        Pool::new(1)
    }

    /// How many threads work, the caller included; no more than [`with_threads`] allows here.
    pub fn threads(&self) -> usize {
        (self.workers.len() + 1).min(LIMIT.get())
    }

    /// Until the answer is dropped, threads without work spin longer before they sleep: for kernels
    /// of which parts run on one thread. To wake many takes longer than a small job.
    pub fn keep_awake(&self) -> Awake<'_> {
        self.shared.awake.fetch_add(1, Ordering::Relaxed);
        Awake(&self.shared.awake)
    }

    /// Calls `f(0)` .. `f(tasks - 1)`, each once, on the pool's threads, and waits for all.
    ///
    /// A panic in a task ends the job early and goes on in the caller. Inside a task, or while
    /// another thread's job occupies the pool, the tasks run inline on the calling thread.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        self.run_with_worker(tasks, &|task, _| f(task));
    }

    /// Cuts `0..len` into ranges of at least `least` and calls `f` with each.
    pub(crate) fn run_ranges(&self, len: usize, least: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let most = if self.threads() == 1 { 1 } else { 4 * self.threads() };
        let tasks = (len / least.max(1)).clamp(1, most);
        self.run(tasks, &|task| f(part_of(0..len, tasks, task)));
    }

    /// [`Pool::run`] with `f(task, worker)`: `worker < threads()`, and no two tasks of this call
    /// run at the same time under one worker number (to index per-worker scratch).
    pub fn run_with_worker(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let threads = self.threads().min(tasks);
        let inline = threads <= 1 || tasks > u32::MAX as usize || IN_TASK.get();
        if inline || self.busy.swap(true, Ordering::Acquire) {
            for task in 0..tasks {
                f(task, 0);
            }
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker keeps the reference after this function
        // has seen its seat IDLE again below.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(f) };
        let seats = &shared.seats[..threads];
        for (thread, seat) in seats.iter().enumerate() {
            seat.share.set(part_of(0..tasks, threads, thread));
            if thread > 0 {
                // SAFETY: `busy` is ours and the seat IDLE: no reader.
                unsafe { *seat.job.get() = Some(Job { task, threads }) };
                seat.state.store(OFFERED, Ordering::Release);
            }
        }
        // A worker says that it parks, then looks for an offer: one of both sees the other's.
        fence(Ordering::SeqCst);
        for (seat, (worker, _)) in seats[1..].iter().zip(&self.workers) {
            if seat.parked.load(Ordering::Relaxed) && seat.parked.swap(false, Ordering::SeqCst) {
                worker.unpark();
            }
        }
        claim(shared, threads, f, 0);
        let mut spins = 0u32;
        for seat in &seats[1..] {
            let taken_back = || {
                let order = Ordering::Acquire;
                seat.state.compare_exchange(OFFERED, IDLE, order, order).is_ok()
            };
            while seat.state.load(Ordering::Acquire) != IDLE && !taken_back() {
                spins += 1;
                if spins < 20_000 {
                    std::hint::spin_loop();
                } else {
                    thread::yield_now();
                }
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (seat, (thread, handle)) in self.shared.seats[1..].iter().zip(&mut self.workers) {
            seat.state.store(STOP, Ordering::SeqCst);
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches its tasks' panics: nothing to report here.
                let _ = handle.join();
            }
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

/// Does the worker's share of tasks, from the front, and what is left of the others', from the back.
fn claim(shared: &Shared, threads: usize, f: &Task<'_>, worker: usize) {
    let seats = &shared.seats[..threads];
    IN_TASK.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        while let Some(task) = seats[worker].share.first() {
            f(task, worker);
        }
        for other in 1..threads {
            while let Some(task) = seats[(worker + other) % threads].share.last() {
                f(task, worker);
            }
        }
    }));
    IN_TASK.set(false);
    if let Err(payload) = result {
        seats.iter().for_each(|seat| seat.share.set(0..0));
        let mut first = shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(payload);
    }
}

fn work(shared: &Shared, worker: usize) {
    let seat = &shared.seats[worker];
    while wait(shared, seat) {
        let taken =
            seat.state.compare_exchange(OFFERED, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            continue;
        }
        // SAFETY: the seat is TAKEN: its job was written before it was OFFERED, and the closure
        // lives until the seat is IDLE.
        let (task, threads) = unsafe {
            let job = (*seat.job.get()).as_ref().expect("an offer has a job");
            (&*job.task, job.threads)
        };
        claim(shared, threads, task, worker);
        seat.state.store(IDLE, Ordering::Release);
    }
}

/// Waits for an offer; false when there will be none.
fn wait(shared: &Shared, seat: &Seat) -> bool {
    loop {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                match seat.state.load(Ordering::Relaxed) {
                    OFFERED => return true,
                    STOP => return false,
                    _ => std::hint::spin_loop(),
                }
            }
            let idle = start.elapsed();
            if idle > LONG_SPIN || idle > SPIN && shared.awake.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        seat.parked.store(true, Ordering::SeqCst);
        if seat.state.load(Ordering::SeqCst) == IDLE {
            thread::park();
        }
        seat.parked.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_every_task_once() {
        let pool = Pool::new(3);
        for tasks in [0, 1, 2, 3, 17, 1000] {
            for _ in 0..50 {
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn keeps_to_the_threads_that_are_allowed() {
        let pool = Pool::new(4);
        for most in [1, 2, 3, 9] {
            let allowed = most.min(4);
            with_threads(most, || {
                assert_eq!(pool.threads(), allowed);
                for _ in 0..200 {
                    let hits = AtomicUsize::new(0);
                    pool.run_with_worker(64, &|_, worker| {
                        assert!(worker < allowed);
                        hits.fetch_add(1, Ordering::Relaxed);
                    });
                    assert_eq!(hits.into_inner(), 64);
                }
            });
            assert_eq!(pool.threads(), 4);
        }
    }

    #[test]
    fn shares_are_taken_from_both_ends() {
        let share = Share(AtomicU64::new(0));
        assert_eq!((share.first(), share.last()), (None, None));
        share.set(7..11);
        let taken = [share.last(), share.first(), share.last(), share.first(), share.first()];
        assert_eq!(taken, [Some(10), Some(7), Some(9), Some(8), None]);
        assert_eq!(share.last(), None);
    }

    #[test]
    fn takes_what_a_busy_thread_has_left() {
        let pool = Pool::new(2);
        let done = AtomicUsize::new(0);
        // The first task of whoever begins waits until all other tasks are done.
        let first = AtomicBool::new(true);
        pool.run(16, &|_| {
            if first.swap(false, Ordering::SeqCst) {
                while done.load(Ordering::SeqCst) < 15 {
                    thread::yield_now();
                }
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(done.into_inner(), 16);
    }

    #[test]
    fn wakes_parked_workers() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(2));
            let both = std::sync::Barrier::new(2);
            pool.run(2, &|_| {
                both.wait();
            });
        }
    }

    #[test]
    fn nested_runs_inline_and_panics_propagate() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        pool.run(4, &|i| {
            pool.run(3, &|j| {
                sum.fetch_add(i * j, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.load(Ordering::Relaxed), 18);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|i| assert!(i != 5, "task five"));
        }));
        assert!(caught.is_err());
        pool.run(8, &|_| {});
    }
}
