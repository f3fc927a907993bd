//! Walks the lanes of a plan. Where a lone caller would keep a processor waiting, the GPU and copy
//! lanes have threads that live as long as the engine; elsewhere the caller walks all lanes in one
//! order and nobody is woken.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sparoa_kernels::pool::Pool;

use super::{
    EngineError, arena::Host, prepare::CpuTask, signal::Counter, trace::Recorder, walk::Walk,
};
use crate::{
    backend::Program,
    plan::{Lane, Plan, Step},
    tensor::Tensor,
};

/// How long the caller spins for a download before it sleeps: a little less than a sleep and
/// wake-up cost. Other lanes sleep at once: on a small machine their core belongs to the kernels.
const CALLER_SPIN: Duration = Duration::from_micros(20);

/// Run number that ends the threads.
const STOP: u64 = u64::MAX;

struct Shared {
    plan: Plan,
    host: Host,
    tasks: Vec<CpuTask>,
    program: Option<Box<dyn Program>>,
    /// By event: its place in its lane's sequence of signals, from 1.
    ordinal: Vec<u64>,
    /// By lane: signals given in this run.
    signals: [Counter; 4],
    /// Number of the run that the threads work on.
    run: Counter,
    /// By lane: number of the last run that its thread has finished.
    finished: [Counter; 4],
    abort: AtomicBool,
    failure: Mutex<Option<EngineError>>,
    recorder: Mutex<Option<Arc<Recorder>>>,
}

pub(super) struct Lanes {
    shared: Arc<Shared>,
    walk: Walk,
    threads: Vec<(Lane, JoinHandle<()>)>,
    run: u64,
}

/// Why a lane stopped early.
enum Stop {
    /// Its own error.
    Failed(EngineError),
    /// Another lane's.
    Aborted,
}

impl Lanes {
    pub fn new(
        plan: Plan,
        walk: Walk,
        tasks: Vec<CpuTask>,
        program: Option<Box<dyn Program>>,
        inputs: usize,
    ) -> Result<Lanes, EngineError> {
        let host = Host::new(&plan, inputs)?;
        let mut ordinal = vec![0; plan.events];
        for lane in Lane::ALL {
            let signals = plan.lane(lane).iter().filter_map(|step| match step {
                Step::Signal(event) => Some(*event),
                _ => None,
            });
            for (i, event) in signals.enumerate() {
                ordinal[event] = i as u64 + 1;
            }
        }
        let shared = Arc::new(Shared {
            plan,
            host,
            tasks,
            program,
            ordinal,
            signals: Default::default(),
            run: Counter::default(),
            finished: Default::default(),
            abort: AtomicBool::new(false),
            failure: Mutex::new(None),
            recorder: Mutex::new(None),
        });
        let mut lanes = Lanes { shared, walk, threads: Vec::new(), run: 0 };
        if !lanes.walk.alone {
            lanes.spawn_all()?;
        }
        Ok(lanes)
    }

    fn spawn_all(&mut self) -> Result<(), EngineError> {
        for lane in [Lane::Gpu, Lane::HostToDevice, Lane::DeviceToHost] {
            if !self.shared.plan.lane(lane).is_empty() {
                self.spawn(lane)?;
            }
        }
        Ok(())
    }

    fn spawn(&mut self, lane: Lane) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("sparoa-{lane}"))
            .spawn(move || serve(&shared, lane))
            .map_err(|e| EngineError::Panic {
                lane: lane.name(),
                message: format!("the system starts no thread: {e}"),
            })?;
        self.threads.push((lane, thread));
        Ok(())
    }

    pub fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    pub fn program(&self) -> Option<&dyn Program> {
        self.shared.program.as_deref()
    }

    pub fn walk(&self) -> &Walk {
        &self.walk
    }

    /// Whether both processors may work at once.
    pub fn concurrent(&self) -> bool {
        self.walk.overlaps
    }

    /// Whether the lanes have threads of their own.
    pub fn threaded(&self) -> bool {
        !self.walk.alone
    }

    /// Names of the CPU tasks' methods.
    pub fn methods(&self) -> impl Iterator<Item = &'static str> {
        self.shared.tasks.iter().map(|t| t.kernel.method())
    }

    /// Bytes of scratch memory that the CPU tasks need on so many threads.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        self.shared.tasks.iter().map(|t| t.kernel.scratch_bytes(threads)).max().unwrap_or(0)
    }

    pub fn weight_bytes(&self) -> usize {
        self.shared.tasks.iter().map(|t| t.kernel.weight_bytes()).sum()
    }

    /// Copies a buffer of the last run.
    pub fn output(&mut self, buffer: usize, to: &mut [u8]) {
        self.shared.host.copy_out(buffer, to);
    }

    /// Runs the CPU tasks one after the other, all lanes at rest; nanoseconds of each. A task that
    /// refuses the values it finds is timed all the same.
    pub fn time_tasks(&mut self, inputs: &[&Tensor], scratch: &mut [u8], pool: &Pool) -> Vec<u64> {
        let shared = &*self.shared;
        shared.host.lend(inputs, || {
            let time = |task: &CpuTask| {
                let start = Instant::now();
                let _ = shared.host.run(task, scratch, pool);
                u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
            };
            shared.tasks.iter().map(time).collect()
        })
    }

    /// Performs every step once and waits for all lanes. A recorded GPU segment is waited for, which
    /// a lone caller cannot do while it computes: then threads walk what one walks otherwise.
    pub fn run(
        &mut self,
        inputs: &[&Tensor],
        scratch: &mut [u8],
        pool: &Pool,
        recorder: Option<Arc<Recorder>>,
    ) -> Result<(), EngineError> {
        let threaded = self.threaded() || self.concurrent() && recorder.is_some();
        if threaded && self.threads.is_empty() {
            self.spawn_all()?;
        }
        let shared = &*self.shared;
        if let Some(recorder) = &recorder {
            recorder.start();
        }
        if !threaded {
            let walk = || {
                for &(lane, index) in &self.walk.sequence {
                    let step = shared.plan.lane(lane)[index];
                    shared.perform(lane, index, step, scratch, pool, recorder.as_deref())?;
                }
                shared.wait_uploads()
            };
            let result = shared.host.lend(inputs, || match catch_unwind(AssertUnwindSafe(walk)) {
                Ok(result) => result,
                Err(payload) => Err(panicked(Lane::Cpu, &*payload)),
            });
            return result.inspect_err(|_| shared.rest());
        }
        self.run += 1;
        // All threads are at rest: nobody reads what is reset here.
        for signals in &shared.signals {
            signals.set(0);
        }
        shared.abort.store(false, Ordering::SeqCst);
        *lock(&shared.failure) = None;
        *lock(&shared.recorder) = recorder.clone();
        shared.host.lend(inputs, || {
            shared.run.set(self.run);
            let walk = || shared.walk(Lane::Cpu, scratch, pool, recorder.as_deref());
            shared.conclude(Lane::Cpu, catch_unwind(AssertUnwindSafe(walk)));
            for (lane, _) in &self.threads {
                shared.finished[lane.index()].wait(self.run, Duration::ZERO, || false);
            }
        });
        match lock(&shared.failure).take() {
            None => shared.wait_uploads(),
            Some(error) => {
                shared.rest();
                Err(error)
            }
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.run.set(STOP);
        for (_, thread) in self.threads.drain(..) {
            // A lane's thread catches its panics: nothing to report here.
            let _ = thread.join();
        }
    }
}

/// The life of a lane's thread.
fn serve(shared: &Shared, lane: Lane) {
    // Only the CPU lane runs kernels that need them.
    let pool = Pool::single();
    let mut run = 0;
    loop {
        run += 1;
        shared.run.wait(run, Duration::ZERO, || false);
        if shared.run.get() == STOP {
            return;
        }
        let recorder = lock(&shared.recorder).clone();
        let walk = || shared.walk(lane, &mut [], &pool, recorder.as_deref());
        shared.conclude(lane, catch_unwind(AssertUnwindSafe(walk)));
        drop(recorder);
        shared.finished[lane.index()].set(run);
    }
}

impl Shared {
    /// Lets the device come to rest after a failure. That one is to be reported, not another here.
    fn rest(&self) {
        if let Some(program) = &self.program {
            let _ = program.wait_idle();
        }
    }

    /// The caller gets its inputs back.
    fn wait_uploads(&self) -> Result<(), EngineError> {
        self.program.as_ref().map_or(Ok(()), |program| Ok(program.wait_uploads()?))
    }

    fn walk(
        &self,
        lane: Lane,
        scratch: &mut [u8],
        pool: &Pool,
        recorder: Option<&Recorder>,
    ) -> Result<(), Stop> {
        let spin = if lane == Lane::Cpu { CALLER_SPIN } else { Duration::ZERO };
        let aborted = || self.abort.load(Ordering::SeqCst);
        for (index, &step) in self.plan.lane(lane).iter().enumerate() {
            match step {
                Step::Wait(event) => {
                    let signals = &self.signals[lane.awaited().index()];
                    signals.wait(self.ordinal[event], spin, aborted);
                }
                Step::Signal(event) => self.signals[lane.index()].set(self.ordinal[event]),
                _ => self
                    .perform(lane, index, step, scratch, pool, recorder)
                    .map_err(Stop::Failed)?,
            }
            if aborted() {
                return Err(Stop::Aborted);
            }
        }
        Ok(())
    }

    /// Performs a step that does work.
    fn perform(
        &self,
        lane: Lane,
        index: usize,
        step: Step,
        scratch: &mut [u8],
        pool: &Pool,
        recorder: Option<&Recorder>,
    ) -> Result<(), EngineError> {
        let start = recorder.map_or(0, Recorder::now_ns);
        match (step, &self.program) {
            (Step::Run(item), _) => {
                let task = &self.tasks[item];
                self.host.run(task, scratch, pool).map_err(|source| EngineError::Kernel {
                    task: task.name.clone(),
                    op_type: task.op_type,
                    source,
                })?;
            }
            (Step::Submit(segment), Some(program)) => {
                program.launch(segment)?;
                if recorder.is_some() {
                    program.wait_idle()?;
                }
            }
            (Step::Copy(copy), Some(program)) if lane == Lane::HostToDevice => {
                self.host.upload(&self.plan, copy, &**program, pool)?;
            }
            (Step::Copy(copy), Some(program)) => {
                self.host.download(&self.plan, copy, &**program)?;
            }
            (Step::Submit(_) | Step::Copy(_), None) => return Err(EngineError::NoAccelerator),
            (Step::Signal(_) | Step::Wait(_), _) => {}
        }
        if let Some(recorder) = recorder {
            recorder.record(lane, index, start);
        }
        Ok(())
    }

    /// Makes a lane's early end known to all lanes.
    fn conclude(&self, lane: Lane, result: Result<Result<(), Stop>, Box<dyn Any + Send>>) {
        let error = match result {
            Ok(Ok(()) | Err(Stop::Aborted)) => return,
            Ok(Err(Stop::Failed(error))) => error,
            Err(payload) => panicked(lane, &*payload),
        };
        lock(&self.failure).get_or_insert(error);
        self.abort.store(true, Ordering::SeqCst);
        for signals in &self.signals {
            signals.wake_all();
        }
    }
}

/// A panic as an error: one inference fails, not the process.
fn panicked(lane: Lane, payload: &(dyn Any + Send)) -> EngineError {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    let message = text.unwrap_or_else(|| "panicked".to_owned());
    EngineError::Panic { lane: lane.name(), message }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
