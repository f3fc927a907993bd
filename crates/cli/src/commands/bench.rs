//! `sparoa bench`.

mod adaptation;
mod batches;
mod energy;
mod simulated;

use std::time::{Duration, Instant};

use serde::Serialize;
use sparoa::{
    EnergyMeter, EnergyMethod, Policy, Running, Session, Tensor, TraceSource, chrome_trace,
};

use crate::{
    args::{BenchArgs, InputArgs},
    environment::{Environment, peak_rss_bytes},
    error::{CliError, CliResult},
    images::Normalize,
    inputs,
    latency::{Latencies, LatencyMs},
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Counts, Machine, session_error},
    shapes::BatchArg,
    table::{Table, ms},
};
use adaptation::Adaptation;
use batches::BatchSearch;
use energy::{Energy, Slices};

#[derive(Serialize)]
struct Document {
    results: Vec<Row>,
    /// Policies that could not be measured, and why.
    skipped: Vec<Skipped>,
    environment: Environment,
}

#[derive(Serialize)]
struct Row {
    model: String,
    policy: String,
    batch: usize,
    threads: usize,
    device: &'static str,
    /// Predicted for `target`, not measured.
    simulated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    latency_ms: LatencyMs,
    throughput_ips: f64,
    first_inference_ms: Option<f64>,
    load_ms: Option<f64>,
    /// Of the whole process so far: it grows over the rows.
    peak_rss_bytes: Option<u64>,
    #[serde(flatten)]
    energy: Energy,
    iterations: u64,
    placement: Counts,
    /// What the policy chose.
    plan: String,
    /// Time per image of the first row of the same machine, model and `--batch` over this row's, by
    /// medians.
    speedup: f64,
    precision: String,
    /// How `--batch auto` came to the batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_search: Option<BatchSearch>,
    /// Of a session that adapted.
    #[serde(skip_serializing_if = "Option::is_none")]
    adaptation: Option<Adaptation>,
}

#[derive(Clone, Serialize)]
struct Skipped {
    policy: String,
    reason: String,
}

/// A contender: a session with its inputs and times.
struct Contender {
    label: String,
    batch: usize,
    search: Option<BatchSearch>,
    session: Session,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<Tensor>,
    load_ms: f64,
    first_ms: f64,
    latencies: Latencies,
    slices: Slices,
}

/// Measures every model, batch and policy.
///
/// # Errors
/// Model, input and device errors.
pub fn run(args: &BenchArgs, out: &Output) -> CliResult {
    if !(args.min_time_s.is_finite() && args.min_time_s >= 0.0) {
        return Err(CliError::usage("--min-time-s: must be a number of seconds, 0 or more"));
    }
    let limits = batches::limits(args)?;
    let named: Vec<&str> = args.policy.iter().map(String::as_str).collect();
    let policies = if named.is_empty() { &["auto"][..] } else { &named };
    let machine =
        Machine::open_for(&args.device, policies, args.plan.as_deref(), &args.policy_args)?;
    let environment = Environment::read(&machine);
    let bars = Bars::new(out);
    let (policies, skipped) = contenders(args, &machine)?;
    let simulates = nothing_asked(args) && !has_real_gpu(&machine);
    let mut rows = Vec::new();
    let mut simulated = Vec::new();
    for model in &args.models {
        for &batch in &args.batch {
            let mut contenders = Vec::new();
            for policy in &policies {
                let request = request(args, model, *policy)?;
                contenders.push(match batch {
                    // Batch 1 is the default and must not override a model's fixed batch.
                    BatchArg::Rows(1) if args.batch.len() == 1 => {
                        prepare(args, &machine, &bars, request, None)?
                    }
                    BatchArg::Rows(n) => prepare(args, &machine, &bars, request, Some(n))?,
                    BatchArg::Auto => {
                        let search = batches::search(&machine, &bars, &request, &limits)?;
                        let chosen = Some(search.chosen);
                        let prepared = prepare(args, &machine, &bars, request, chosen)?;
                        Contender { search: Some(search), ..prepared }
                    }
                });
            }
            if args.adapt {
                let sessions = contenders.iter_mut().map(|c| &mut c.session);
                adaptation::start(&machine, sessions)?;
            }
            measure(args, &bars, machine.meter(), &mut contenders)?;
            if let (Some(path), Some(last)) = (&args.trace, contenders.last_mut()) {
                trace(path, last)?;
            }
            if let (true, Some(any)) = (simulates, contenders.first()) {
                let precision = &args.device.precision;
                simulated.extend(simulated::rows(model, any.batch, precision, &any.session)?);
            }
            let per_image = |c: &Contender| c.latencies.summary().p50 / c.batch as f64;
            let base = contenders.first().map_or(f64::NAN, per_image);
            for c in contenders {
                rows.push(row(args, &machine, model, base, c)?);
            }
        }
    }
    rows.extend(simulated);
    let document = Document { results: rows, skipped, environment };
    out.print(&document, || text(&document))
}

/// Whether the user left it to us what to compare.
fn nothing_asked(args: &BenchArgs) -> bool {
    args.policy.is_empty()
        && args.plan.is_none()
        && args.policy_args.pin.is_empty()
        && args.device.device == "auto"
}

/// Whether there is a GPU that is not emulated.
fn has_real_gpu(machine: &Machine) -> bool {
    machine.gpu.as_ref().is_some_and(|gpu| !gpu.info().software)
}

/// `None` stands for the plan file.
fn contenders(
    args: &BenchArgs,
    machine: &Machine,
) -> CliResult<(Vec<Option<Policy>>, Vec<Skipped>)> {
    let mut skipped = Vec::new();
    let mut policies = Vec::new();
    for name in &args.policy {
        policies.push(Some(machine.policy(Some(name))?));
    }
    if policies.is_empty() && args.plan.is_none() {
        policies.push(Some(Policy::Cpu));
        match &machine.gpu_unavailable {
            None => policies.extend([Policy::Gpu, Policy::Split, Policy::Auto].map(Some)),
            Some(reason) => {
                for policy in ["gpu", "split", "auto"] {
                    skipped.push(Skipped { policy: policy.to_owned(), reason: reason.clone() });
                }
            }
        }
    }
    if args.plan.is_some() {
        policies.push(None);
    }
    Ok((policies, skipped))
}

/// `None` stands for the plan file.
fn request(args: &BenchArgs, model: &str, policy: Option<Policy>) -> CliResult<BuildRequest> {
    let mut request = BuildRequest::new(model, &args.shape)?;
    request.with_policy_args(&args.policy_args)?;
    request.policy = policy;
    if policy.is_none() {
        request.plan.clone_from(&args.plan);
    }
    Ok(request)
}

fn prepare(
    args: &BenchArgs,
    machine: &Machine,
    bars: &Bars,
    mut request: BuildRequest,
    batch: Option<usize>,
) -> CliResult<Contender> {
    let start = Instant::now();
    request.batch = batch;
    let mut session = machine.build(&request, bars)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let input_args =
        InputArgs { input: Vec::new(), normalize: Normalize::default(), seed: args.seed };
    let (inputs, _) = inputs::collect(&session, &input_args)?;
    let start = Instant::now();
    session.run(&inputs::borrowed(&inputs)).map_err(session_error)?;
    let first_ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(Contender {
        label: request.policy.map_or("plan".to_owned(), |p| p.to_string()),
        batch: batch.unwrap_or(1),
        search: None,
        outputs: session.new_outputs(),
        session,
        inputs,
        load_ms,
        first_ms,
        latencies: Latencies::new(),
        slices: Slices::default(),
    })
}

/// One inference on the hot path; models with a data-dependent end take the allocating one.
fn infer(c: &mut Contender, refs: &[&Tensor]) -> CliResult<Duration> {
    let start = Instant::now();
    if c.session.tail_cause().is_none() {
        c.session.run_into(refs, &mut c.outputs).map_err(session_error)?;
    } else {
        let named = inputs::borrowed(&c.inputs);
        c.session.run(&named).map_err(session_error)?;
    }
    Ok(start.elapsed())
}

/// Measures the contenders in turns, so that a drift of the machine meets all of them.
fn measure(
    args: &BenchArgs,
    bars: &Bars,
    meter: &EnergyMeter,
    contenders: &mut [Contender],
) -> CliResult {
    let inputs: Vec<Vec<Tensor>> =
        contenders.iter().map(|c| c.inputs.iter().map(|(_, t)| t.clone()).collect()).collect();
    let refs: Vec<Vec<&Tensor>> = inputs.iter().map(|v| v.iter().collect()).collect();
    for (c, r) in contenders.iter_mut().zip(&refs) {
        let end = Instant::now() + Duration::from_millis(args.warmup_ms);
        while Instant::now() < end {
            infer(c, r)?;
        }
    }
    let running = (!meter.is_empty()).then(|| meter.start());
    // Long enough that the caches are the contender's own, and that the figures of its energy come
    // often against what a border may cut off.
    let slice = match running {
        None => Duration::from_millis(100),
        Some(_) => meter.shortest() / 2,
    };
    let bar = bars.bar(1000, "measuring");
    loop {
        let mut finished = true;
        for (c, r) in contenders.iter_mut().zip(&refs) {
            let done = |c: &Contender| {
                c.latencies.total_s() >= args.min_time_s && c.latencies.count() >= args.min_iters
            };
            if done(c) {
                continue;
            }
            // The first inference after another contender is warm-up again.
            infer(c, r)?;
            let (before, count) = (running.as_ref().map(Running::so_far), c.latencies.count());
            let end = Instant::now() + slice;
            while !done(c) {
                let took = infer(c, r)?;
                c.latencies.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
                if Instant::now() >= end {
                    break;
                }
            }
            c.slices.add(before, running.as_ref(), c.latencies.count() - count);
            finished &= done(c);
        }
        let progress = contenders
            .iter()
            .map(|c| (c.latencies.total_s() / args.min_time_s.max(1e-9)).min(1.0))
            .fold(1.0, f64::min);
        bar.set_position((progress * 1000.0) as u64);
        if finished {
            bar.finish_and_clear();
            return Ok(());
        }
    }
}

fn trace(path: &std::path::Path, c: &mut Contender) -> CliResult {
    let named = inputs::borrowed(&c.inputs);
    let (_, measured) = c.session.run_traced(&named).map_err(session_error)?;
    let predicted = c.session.timeline();
    let mut sources = Vec::new();
    sources.extend(predicted.as_ref().map(TraceSource::Predicted));
    sources.push(TraceSource::Measured(&measured));
    write_file(path, chrome_trace(c.session.plan(), &sources))
}

fn row(
    args: &BenchArgs,
    machine: &Machine,
    model: &str,
    base_per_image: f64,
    mut c: Contender,
) -> CliResult<Row> {
    let latency_ms = c.latencies.summary();
    let named = inputs::borrowed(&c.inputs);
    let mean_s = latency_ms.mean / 1e3;
    let energy = c.slices.energy(machine.meter(), &mut c.session, &named, mean_s)?;
    let placement = Counts::of(&c.session);
    Ok(Row {
        model: model.to_owned(),
        policy: c.label,
        batch: c.batch,
        threads: machine.cpu.threads.unwrap_or(1),
        device: placement.device(),
        simulated: false,
        target: None,
        latency_ms,
        throughput_ips: c.batch as f64 * 1e3 / latency_ms.mean,
        first_inference_ms: Some(c.first_ms),
        load_ms: Some(c.load_ms),
        peak_rss_bytes: peak_rss_bytes(),
        energy,
        iterations: c.latencies.count(),
        placement,
        plan: c.session.decision().source.clone(),
        speedup: base_per_image / (latency_ms.p50 / c.batch as f64),
        precision: args.device.precision.clone(),
        batch_search: c.search,
        adaptation: Adaptation::of(&c.session),
    })
}

fn text(d: &Document) -> String {
    let (simulated, measured): (Vec<&Row>, Vec<&Row>) = d.results.iter().partition(|r| r.simulated);
    let mut text = measured_table(&measured);
    text.push_str(&energy_lines(&measured));
    for row in &measured {
        if let Some(adaptation) = &row.adaptation {
            text.push_str(&format!("{} {}: {}\n", row.model, row.policy, adaptation.text()));
        }
        if let Some(search) = &row.batch_search {
            text.push_str(&format!("{} {}: {search}\n", row.model, row.policy));
        }
    }
    for s in &d.skipped {
        text.push_str(&format!("{} not measured: {}\n", s.policy, s.reason));
    }
    for device in &d.environment.devices {
        let note = if device.software { " (software: emulated on the CPU)" } else { "" };
        text.push_str(&format!("{}: {}, {}{note}\n", device.device, device.name, device.driver));
    }
    text.push_str(&d.environment.warning());
    if let Some(target) = simulated.first().and_then(|r| r.target.as_ref()) {
        text.push_str(&format!(
            "\nThis machine has no GPU of its own. Simulated, not measured: {target}, idle, from \
             its published figures\n(`sparoa plan MODEL --target {target}` shows the plan):\n"
        ));
        text.push_str(&simulated_table(&simulated));
    }
    text
}

/// What the energies are, once for all rows that have it in common.
fn energy_lines(rows: &[&Row]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for e in rows.iter().map(|r| &r.energy) {
        let (Some(method), Some(covers)) = (e.energy_method, &e.energy_covers) else { continue };
        let why = e.energy_note.as_ref().map_or(String::new(), |why| format!("; {why}"));
        let sources = e.energy_sources.join(", ");
        let line = match method {
            EnergyMethod::Modelled => format!("energy {sources}{why}\n"),
            _ => format!("energy of {covers}, {method}: {sources}\n"),
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

fn counts(r: &Row) -> String {
    format!("{}/{}/{}", r.placement.cpu, r.placement.gpu, r.placement.split)
}

fn measured_table(rows: &[&Row]) -> String {
    let mut table = Table::new(&[
        "model",
        "policy",
        "batch",
        "threads",
        "device",
        "p50 ms",
        "p99 ms",
        "images/s",
        "speed-up",
        "J",
        "W",
        "load ms",
        "first ms",
        "cpu/gpu/split",
        "plan",
    ]);
    for r in rows {
        table.row([
            r.model.clone(),
            r.policy.clone(),
            r.batch.to_string(),
            r.threads.to_string(),
            r.device.to_owned(),
            ms(r.latency_ms.p50),
            ms(r.latency_ms.p99),
            format!("{:.1}", r.throughput_ips),
            format!("{:.2}", r.speedup),
            r.energy.cell(r.energy.energy_j, 4),
            r.energy.cell(r.energy.average_w, 1),
            r.load_ms.map_or("-".to_owned(), |v| format!("{v:.0}")),
            r.first_inference_ms.map_or("-".to_owned(), ms),
            counts(r),
            r.plan.clone(),
        ]);
    }
    table.render()
}

fn simulated_table(rows: &[&Row]) -> String {
    let mut table = Table::new(&[
        "model",
        "policy",
        "batch",
        "device",
        "simulated ms",
        "images/s",
        "speed-up",
        "J",
        "W",
        "cpu/gpu/split",
        "plan",
    ]);
    for r in rows {
        table.row([
            r.model.clone(),
            r.policy.clone(),
            r.batch.to_string(),
            r.device.to_owned(),
            ms(r.latency_ms.p50),
            format!("{:.1}", r.throughput_ips),
            format!("{:.2}", r.speedup),
            r.energy.cell(r.energy.energy_j, 4),
            r.energy.cell(r.energy.average_w, 1),
            counts(r),
            r.plan.clone(),
        ]);
    }
    table.render()
}
