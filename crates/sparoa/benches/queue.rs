//! The batching queue: what it adds to a request, and what it makes of arrivals.
//!
//! `cargo bench -p sparoa --bench queue -- [MODEL] [SECONDS] [cpu|gpu]`. Rates are shares of the
//! throughput of the best batch alone; as many requests may wait as can be computed within the
//! SLO. Latencies count from when a request was due, not from when the generator got round to it.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use sparoa::{
    Accelerator, BatchQueue, Model, Policy, Pool, QueueOptions, Session, SessionBuilder, Target,
    Tensor, Ticket, WgpuBackend, WgpuOptions, ladder, zoo,
};
use sparoa_core::{
    ir::{Dim, ModelBuilder},
    ops::elementwise::{Elementwise, Expr, Unary},
    tensor::DType,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const LARGEST: usize = 16;
const SLO: Duration = Duration::from_millis(150);
/// What fixed batches wait for their rows.
const MAX_WAIT: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let name = args.next().unwrap_or("mobilenet_v2".to_owned());
    let seconds: f64 = args.next().map_or(Ok(5.0), |s| s.parse())?;
    let gpu: Option<Arc<dyn Accelerator>> = match args.next().as_deref() {
        Some("gpu") => Some(Arc::new(WgpuBackend::new(&WgpuOptions::from_env())?)),
        _ => None,
    };
    for threads in [1, 2] {
        added(threads)?;
    }
    let subject =
        Subject { model: Arc::new(zoo::build(&name)?), pool: Arc::new(Pool::new(2)), gpu };
    load(&name, &subject, seconds)
}

/// A model and where it runs: on the GPU where there is one here, else on the CPU.
struct Subject {
    model: Arc<Model>,
    pool: Arc<Pool>,
    gpu: Option<Arc<dyn Accelerator>>,
}

impl Subject {
    fn sessions(&self, most: usize) -> Result<Vec<Session>> {
        let build = |batch| {
            let builder =
                SessionBuilder::new(self.model.clone()).pool(self.pool.clone()).batch(batch);
            match &self.gpu {
                Some(gpu) => builder.policy(Policy::Gpu).accelerator(gpu.clone()).build(),
                None => builder.policy(Policy::Cpu).build(),
            }
        };
        Ok(ladder(most).into_iter().map(build).collect::<std::result::Result<_, _>>()?)
    }
}

/// A model that computes next to nothing: the time of a request is the queue's.
fn added(threads: usize) -> Result<()> {
    let mut m = ModelBuilder::new("tiny");
    let x = m.input("x", DType::F32, [Dim::Symbol("n".into()), Dim::Fixed(64)]);
    let y = m.node("abs", Arc::new(Elementwise::new(Expr::unary(Unary::Abs))), &[x]);
    m.output(y);
    let pool = Arc::new(Pool::new(threads));
    let subject = Subject { model: Arc::new(m.finish()), pool, gpu: None };
    let mut session = subject.sessions(1)?.remove(0);
    let queue = BatchQueue::new(subject.sessions(1)?, &QueueOptions::default())?;
    let input = Tensor::from_slice([1, 64], &[1f32; 64]);
    let mut outputs = session.new_outputs();
    let (mut alone, mut queued, mut woken) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        for _ in 0..50 {
            let start = Instant::now();
            session.run_into(&[&input], &mut outputs)?;
            alone.push(start.elapsed().as_secs_f64() * 1e6);
        }
        for _ in 0..50 {
            let start = Instant::now();
            queue.submit(vec![input.clone()], None)?.wait()?;
            queued.push(start.elapsed().as_secs_f64() * 1e6);
        }
        // Now and then a request finds the worker asleep.
        thread::sleep(Duration::from_micros(500));
        let start = Instant::now();
        queue.submit(vec![input.clone()], None)?.wait()?;
        woken.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let [alone, queued, woken] = [alone, queued, woken].map(percentiles);
    println!(
        "one client, {threads} threads: run alone {:.2} us; queued {:.2} us (p90 {:.2}, p99 {:.2}); \
         after a pause {:.2} us (p90 {:.2})",
        alone.p50, queued.p50, queued.p90, queued.p99, woken.p50, woken.p90
    );
    Ok(())
}

struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
}

fn percentiles(mut values: Vec<f64>) -> Percentiles {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| match values.len() {
        0 => f64::NAN,
        n => values[((n - 1) as f64 * share) as usize],
    };
    Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
}

fn load(name: &str, subject: &Subject, seconds: f64) -> Result<()> {
    let open = |options: &QueueOptions, most| -> Result<BatchQueue> {
        Ok(BatchQueue::new(subject.sessions(most)?, options)?)
    };
    let known = open(&QueueOptions::default(), LARGEST)?.stats().latency_ns;
    let capacity = known.iter().map(|&(b, ns)| b as f64 * 1e9 / ns as f64).fold(0.0, f64::max);
    let room = ((capacity * SLO.as_secs_f64()) as usize).max(LARGEST);
    println!(
        "{name}, {}: {} ms; capacity {capacity:.0}/s; SLO {} ms, {room} wait at most, \
         fixed batches wait {} ms\n",
        if subject.gpu.is_some() { "GPU" } else { "CPU, 2 threads" },
        known
            .iter()
            .map(|(b, ns)| format!("batch {b} {:.1}", *ns as f64 / 1e6))
            .collect::<Vec<_>>()
            .join(", "),
        SLO.as_millis(),
        MAX_WAIT.as_millis()
    );
    println!("| arrivals | load | batch | answered/s | p50 ms | p99 ms | refused | mean batch |");
    println!("|---|---|---|---|---|---|---|---|");
    for poisson in [false, true] {
        for share in [0.5, 0.8, 0.95, 1.2] {
            for target in [None, Some(1), Some(4), Some(8), Some(16)] {
                let base = QueueOptions { capacity: room, ..QueueOptions::default() };
                let options = match target {
                    None => QueueOptions { slo: Some(SLO), ..base },
                    Some(n) => {
                        QueueOptions { target: Target::Fixed(n), max_wait: Some(MAX_WAIT), ..base }
                    }
                };
                let queue = open(&options, target.unwrap_or(LARGEST))?;
                let row = drive(&queue, &subject.model, share * capacity, poisson, seconds)?;
                let stats = queue.stats();
                let batches: u64 = stats.batches.values().sum();
                println!(
                    "| {} | {share} | {} | {:.0} | {:.1} | {:.1} | {:.1} % | {:.1} |",
                    if poisson { "Poisson" } else { "constant" },
                    target.map_or("auto".to_owned(), |n| n.to_string()),
                    row.answered_per_s,
                    row.latency.p50,
                    row.latency.p99,
                    100.0 * stats.rejected as f64 / (stats.rejected + stats.submitted) as f64,
                    stats.rows as f64 / batches.max(1) as f64,
                );
            }
        }
    }
    Ok(())
}

struct Row {
    answered_per_s: f64,
    /// In milliseconds.
    latency: Percentiles,
}

/// Sends requests at a rate for so many seconds.
fn drive(
    queue: &BatchQueue,
    model: &Model,
    per_s: f64,
    poisson: bool,
    seconds: f64,
) -> Result<Row> {
    let dims = model.inputs[0].dims.clone().unwrap_or_default();
    let fixed = dims.iter().map(|d| match d {
        Dim::Fixed(n) => *n,
        _ => 1,
    });
    let shape: Vec<usize> = fixed.collect();
    let input = Tensor::from_slice(shape.clone(), &vec![0.5f32; shape.iter().product()]);
    let (send, receive) = mpsc::channel::<(Instant, Ticket)>();
    let start = Instant::now();
    let collector = thread::spawn(move || {
        let mut times = Vec::new();
        for (due, ticket) in receive {
            if ticket.wait().is_ok() {
                times.push(due.elapsed().as_secs_f64() * 1e3);
            }
        }
        (times, Instant::now())
    });
    let mut due = start;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    while due.duration_since(start).as_secs_f64() < seconds {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Ok(ticket) = queue.submit(vec![input.clone()], None) {
            send.send((due, ticket))?;
        }
        // xorshift64*: the same arrivals for every setting.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let uniform =
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64;
        let gap = if poisson { -(1.0 - uniform).ln() } else { 1.0 };
        due += Duration::from_secs_f64(gap / per_s);
    }
    drop(send);
    let (times, end) = collector.join().expect("the collector does not panic");
    let answered_per_s = times.len() as f64 / end.duration_since(start).as_secs_f64();
    Ok(Row { answered_per_s, latency: percentiles(times) })
}
