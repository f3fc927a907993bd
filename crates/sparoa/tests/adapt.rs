//! Adaptation on two real processors: the CPU on one core, Mesa's software Vulkan on another, and a
//! real load that comes to either, moves and stops. No inference may fail or answer differently,
//! whatever plans are tried and adopted. How much of what the stale plan loses the adaptive session
//! recovers is a matter of timing, and so of what else the machine does: it is asserted where the
//! scenario is run by hand on a quiet machine (`SPAROA_ISA=scalar LP_NUM_THREADS=1 cargo test
//! --release -p sparoa --test adapt -- --ignored --nocapture`); otherwise each time is of one inference.
//!
//! The scenario needs kernels about as slow as the emulated GPU, which an environment variable read
//! once per process decides: the test runs itself as a child with that variable set.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sparoa::{
    AdaptOptions, Monitor, Place, Placement, Policy, Pool, Session, SessionBuilder, Tensor,
    Tolerance, WgpuBackend, WgpuOptions, compare, random_tensor, zoo,
};

/// Set where timing is not to be asserted.
const UNTIMED: &str = "SPAROA_ADAPT_UNTIMED";

/// Of the gap between the stale and the best plan.
const RECOVERED: f64 = 0.8;

/// Where the best plan saves less of the stale one's time, there is nothing to recover.
const GAP: f64 = 0.15;

/// Processes that compete for a loaded core: so many that a CPU with a tenth of its core is slower
/// than the emulated GPU.
const COMPETITORS: usize = 8;

#[test]
fn an_adaptive_session_answers_alike_under_load() {
    if let Err(e) = WgpuBackend::new(&software()) {
        println!("skipped: {e}");
        return;
    }
    if cores().len() < 2 {
        println!("skipped: one core cannot be two processors");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_scenario", "--ignored", "--nocapture"])
        .env("SPAROA_ISA", "scalar")
        .env("LP_NUM_THREADS", "1")
        .env(UNTIMED, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by an_adaptive_session_answers_alike_under_load, in a process of its own"]
fn the_scenario() {
    let timed = std::env::var_os(UNTIMED).is_none();
    let quiet = Duration::from_secs(if timed { 6 } else { 3 });
    let cores = cores();
    let (cpu_core, gpu_core) = (cores[0], cores[1]);
    // The driver's threads inherit the core of whoever starts them.
    pin(gpu_core);
    let gpu = Arc::new(WgpuBackend::new(&software()).unwrap());
    let cache = tempfile::tempdir().unwrap();
    let model = Arc::new(zoo::build("mobilenet_v3_small").unwrap());
    let build = |policy| {
        SessionBuilder::new(model.clone())
            .pool(Arc::new(Pool::new(1)))
            .accelerator(gpu.clone())
            .policy(policy)
            .cache_dir(cache.path())
            .build()
            .unwrap()
    };
    // Whatever threads the driver starts late are started now.
    drop(build(Policy::Gpu));
    pin(cpu_core);

    let mut adaptive = build(Policy::Auto);
    let (mut stale, mut tried) = (build(Policy::Auto), build(Policy::Auto));
    let idle = stale.placement().clone();
    assert_eq!(&idle, adaptive.placement());
    let input = random_tensor(adaptive.inputs()[0].ty.as_ref().unwrap(), 1);
    let mut runs = Runs { expected: run(&mut adaptive, &input), input, wrong: 0, timed };
    adaptive.adapt(AdaptOptions::default(), Monitor::new()).unwrap();
    // What the machine does at the beginning is no load to tell apart from.
    runs.settle(&mut adaptive, quiet);

    let mut failures = Vec::new();
    let phases = [
        ("on the CPU's core", Some(cpu_core)),
        ("moved to the GPU's core", Some(gpu_core)),
        ("back on the CPU's core", Some(cpu_core)),
        ("stopped", None),
    ];
    for (name, core) in phases {
        let load = core.map(Load::on);
        // The plan that was right a moment ago.
        stale.set_placement(adaptive.placement().clone(), "stale").unwrap();
        runs.settle(&mut adaptive, quiet);
        let best = runs.best(&mut tried, [&idle, stale.placement()]);
        tried.set_placement(best, "best").unwrap();
        let [before, best, adapted] = runs.compare([&mut stale, &mut tried, &mut adaptive]);
        drop(load);
        let gap = before - best;
        let recovered = (before - adapted) / gap;
        print!("load {name}: stale {before:.1} ms, best {best:.1}, adaptive {adapted:.1}: ");
        if gap < GAP * before {
            println!("nothing to recover");
            continue;
        }
        println!("{:.0} % of the gap", 100.0 * recovered);
        if recovered < RECOVERED {
            failures.push(format!("load {name}: {recovered:.2} of the gap"));
        }
    }
    for switch in adaptive.adaptation().unwrap().log {
        println!("  {switch:?}");
    }
    let report = adaptive.adaptation().unwrap();
    println!(
        "{} switches, {} trials, {} decisions, slowest {:?}, {} from the cache",
        report.switches,
        report.trials,
        report.decisions,
        report.slowest_decision,
        report.cache_hits
    );
    assert!(report.decisions > 0 && report.refused == 0, "{report:?}");
    assert_eq!(runs.wrong, 0, "answers that differ");
    assert!(!timed || failures.is_empty(), "{failures:?}");
}

/// Mesa's software rasteriser, also beside a real GPU: only it can be loaded from a core.
fn software() -> WgpuOptions {
    WgpuOptions {
        allow_software: true,
        adapter: Some("llvmpipe".to_owned()),
        ..WgpuOptions::from_env()
    }
}

/// The cores that this process may use.
fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Restricts the calling thread, and what it starts from now on.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).unwrap();
}

/// Processes that do nothing but take a core's time, until dropped.
struct Load(Vec<Child>);

impl Load {
    fn on(core: usize) -> Load {
        let before = sched_getaffinity(None).unwrap();
        pin(core);
        // They end with the test's process, should it be killed.
        let script = format!(
            "while kill -0 {}; do i=0; while [ $i -lt 99999 ]; do i=$((i + 1)); done; done",
            std::process::id()
        );
        let spin = || {
            Command::new("sh")
                .args(["-c", &script])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let children = (0..COMPETITORS).map(|_| spin()).collect();
        sched_setaffinity(None, &before).unwrap();
        Load(children)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn run(session: &mut Session, input: &Tensor) -> Vec<Tensor> {
    let mut outputs = session.new_outputs();
    session.run_into(&[input], &mut outputs).unwrap();
    outputs
}

/// Runs that compare every answer with the first one.
struct Runs {
    input: Tensor,
    expected: Vec<Tensor>,
    wrong: usize,
    /// Whether times count; otherwise one inference stands for many.
    timed: bool,
}

impl Runs {
    /// Milliseconds of one inference.
    fn time(&mut self, session: &mut Session) -> f64 {
        let start = Instant::now();
        let outputs = run(session, &self.input);
        let ms = start.elapsed().as_secs_f64() * 1e3;
        for (own, expected) in outputs.iter().zip(&self.expected) {
            let (_, mismatch) = compare(expected, own, Tolerance::default());
            self.wrong += usize::from(mismatch.is_some());
        }
        ms
    }

    /// Runs until no plan has changed for a while.
    fn settle(&mut self, session: &mut Session, quiet: Duration) {
        let begin = Instant::now();
        let (mut last, mut switches) = (begin, session.adaptation().unwrap().switches);
        while last.elapsed() < quiet && begin.elapsed() < 5 * quiet {
            self.time(session);
            let now = session.adaptation().unwrap().switches;
            if now != switches {
                (last, switches) = (Instant::now(), now);
            }
        }
    }

    /// The placement that measures best now: either processor alone, splits at many shares, every
    /// policy's and those given.
    fn best(&mut self, session: &mut Session, given: [&Placement; 2]) -> Placement {
        let uniform = |place| Placement::uniform(session.graph(), place);
        let mut tried = vec![uniform(Place::Cpu), given[0].clone(), given[1].clone()];
        for policy in [Policy::Gpu, Policy::Greedy, Policy::Codl, Policy::Dp] {
            tried.push(session.place_with(policy).unwrap());
        }
        for share in [0.15, 0.3, 0.5, 0.7, 0.85] {
            let support = session.support();
            let mut placement = uniform(Place::Cpu);
            for (i, place) in placement.places.iter_mut().enumerate() {
                if let Some(axis) = support.split[i] {
                    let part = axis.gpu_extent(share);
                    *place = match part {
                        0 => Place::Cpu,
                        _ if part == axis.extent => Place::Gpu,
                        _ => Place::Split(share),
                    };
                }
            }
            tried.push(placement);
        }
        let mut distinct: Vec<(Placement, Vec<f64>)> = Vec::new();
        for placement in tried {
            if !distinct.iter().any(|(p, _)| *p == placement) {
                distinct.push((placement, Vec::new()));
            }
        }
        // The best three once more, in turns.
        for _ in 0..3 {
            for (placement, times) in &mut distinct {
                session.set_placement(placement.clone(), "tried").unwrap();
                self.block(session, times);
            }
            distinct.sort_by(|a, b| median(&a.1).total_cmp(&median(&b.1)));
            distinct.truncate(3);
        }
        distinct.swap_remove(0).0
    }

    /// Median milliseconds of sessions that are measured in turns, the last, which adapts, as long as
    /// all others together: its trials are to weigh what they weigh for a user.
    fn compare<const N: usize>(&mut self, mut sessions: [&mut Session; N]) -> [f64; N] {
        let mut times = [const { Vec::new() }; N];
        for _ in 0..4 {
            for (i, (session, times)) in sessions.iter_mut().zip(&mut times).enumerate() {
                self.block(session, times);
                for _ in 2..N * usize::from(i + 1 == N) {
                    self.block(session, times);
                }
            }
        }
        times.map(|times| median(&times))
    }

    /// Times of one session for a third of a second and three inferences at least, after half as much
    /// of warming up: who ran before must not matter, nor what the scheduler owes to whom.
    fn block(&mut self, session: &mut Session, times: &mut Vec<f64>) {
        if !self.timed {
            times.push(self.time(session));
            return;
        }
        let mut run = |least: usize, during: Duration| {
            let begin = Instant::now();
            let mut times = Vec::new();
            while times.len() < least || begin.elapsed() < during {
                times.push(self.time(session));
            }
            times
        };
        run(2, Duration::from_millis(150));
        times.extend(run(3, Duration::from_millis(300)));
    }
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
