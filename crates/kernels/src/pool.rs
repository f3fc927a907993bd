//! A fork-join pool: workers spin briefly, then park. Tasks are shared out evenly in their order,
//! and who has none left takes the last ones of another: of operators that divide their rows alike
//! each thread mostly reads what it wrote itself, which its caches still hold.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks.
const SPIN: Duration = Duration::from_micros(80);

/// `state` is `generation << 32 | OPEN? | workers admitted << 16 | workers inside the job`.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = 0xffff;
const MOST: usize = 0x7fff;
const STOP: u64 = u64::MAX;

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

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Job {
    task: *const Task<'static>,
    threads: usize,
}

/// Tasks of one thread that nobody has begun, `end << 32 | next`, on cache lines of their own.
#[repr(align(128))]
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

struct Shared {
    /// Who may read `job`: a worker that raised the count while `OPEN` was set, until it lowers it.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// Of each thread, the caller's first.
    shares: Box<[Share]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: Box<[AtomicBool]>,
}

// SAFETY: `job` is written only by the thread that holds `Pool::busy`, while no worker is counted
// in `state` and OPEN is clear; it is read only by workers counted in `state`.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` points to a `Sync` closure that outlives the job (see `run`).
unsafe impl Send for Shared {}

/// A fork-join pool of a fixed number of threads, the caller being one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    busy: AtomicBool,
}

impl Pool {
    /// A pool in which `threads` threads work, the calling thread included; 0 counts as 1.
    pub fn new(threads: usize) -> Pool {
        let helpers = (threads.max(1) - 1).min(MOST);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            shares: (0..=helpers).map(|_| Share(AtomicU64::new(0))).collect(),
            panic: Mutex::new(None),
            parked: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let workers = (0..helpers)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let handle = thread::Builder::new()
                    .name(format!("sparoa-{}", index + 1))
                    .spawn(move || work(&shared, index))
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
        self.run(tasks, &|task| f(task * len / tasks..(task + 1) * len / tasks));
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
        // closes the job and waits below for the count of workers inside to reach zero.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(f) };
        // SAFETY: `busy` is ours and the last job was closed with no worker inside: no reader.
        unsafe { *shared.job.get() = Some(Job { task, threads }) };
        for (thread, share) in shared.shares[..threads].iter().enumerate() {
            share.set(thread * tasks / threads..(thread + 1) * tasks / threads);
        }
        let generation = (shared.state.load(Ordering::Relaxed) >> 32) + 1;
        let generation = generation & 0x7fff_ffff;
        let admitted = (threads as u64 - 1) << 16;
        shared.state.store(generation << 32 | OPEN | admitted, Ordering::SeqCst);
        for (index, (worker, _)) in self.workers.iter().enumerate().take(threads - 1) {
            let parked = &shared.parked[index];
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                worker.unpark();
            }
        }
        claim(shared, threads, f, 0);
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < 20_000 {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
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
        self.shared.state.store(STOP, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
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
    let shares = &shared.shares[..threads];
    IN_TASK.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        while let Some(task) = shares[worker].first() {
            f(task, worker);
        }
        for other in 1..threads {
            while let Some(task) = shares[(worker + other) % threads].last() {
                f(task, worker);
            }
        }
    }));
    IN_TASK.set(false);
    if let Err(payload) = result {
        shares.iter().for_each(|share| share.set(0..0));
        let mut first = shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(payload);
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let state = wait(shared, index, seen);
        if state == STOP {
            return;
        }
        if shared
            .state
            .compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            continue;
        }
        seen = state >> 32;
        // SAFETY: this worker is counted in `state` while OPEN was set: the job is published, its
        // closure alive, and neither changes before the count is lowered below.
        let (task, threads) = unsafe {
            let job = (*shared.job.get()).as_ref().expect("an open state has a job");
            (&*job.task, job.threads)
        };
        claim(shared, threads, task, index + 1);
        shared.state.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for an open job of a generation other than `seen` that admits the worker, or for STOP.
fn wait(shared: &Shared, index: usize, seen: u64) -> u64 {
    let admits = |state: u64| index < (state >> 16) as usize & MOST;
    let ready =
        |state: u64| state == STOP || (state & OPEN != 0 && state >> 32 != seen && admits(state));
    loop {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let state = shared.state.load(Ordering::Acquire);
                if ready(state) {
                    return state;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        shared.parked[index].store(true, Ordering::SeqCst);
        let state = shared.state.load(Ordering::SeqCst);
        if !ready(state) {
            thread::park();
        }
        shared.parked[index].store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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
