//! `sparoa plan`.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use sparoa::{
    GuardReport, Place, PlanFile, Policy, Session, TraceSource, Variant, chrome_trace, dot, onnx,
};

use crate::{
    args::PlanArgs,
    error::{CliError, CliResult, Kind},
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Counts, Machine},
    table::{Table, ms},
};

#[derive(Serialize)]
struct Document {
    plan: PlanFile,
    placement: Counts,
    source: String,
    predicted: Predicted,
    guard: Option<GuardReport>,
    fallback: Option<String>,
    nodes: Vec<Row>,
    files: Vec<String>,
}

/// The simulated timeline.
#[derive(Serialize)]
struct Predicted {
    simulated: bool,
    makespan_ms: Option<f64>,
    /// The same if all kernels were dense; of models with pruned weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    dense_makespan_ms: Option<f64>,
    cpu_only_ms: Option<f64>,
    gpu_only_ms: Option<f64>,
    copied_bytes_to_gpu: usize,
    copied_bytes_to_cpu: usize,
}

#[derive(Serialize)]
struct Row {
    name: String,
    op_type: String,
    place: Place,
    cpu_ms: Option<f64>,
    gpu_ms: Option<f64>,
    intensity: f64,
    sparsity: f64,
    /// The method of its kernel on the CPU, where there are several.
    kernel: Option<&'static str>,
}

/// Plans, prints and writes what was asked for.
///
/// # Errors
/// Model, input and device errors.
pub fn run(args: &PlanArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device)?;
    let bars = Bars::new(out);
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.with_policy_args(&args.policy_args)?;
    request.policy = Some(machine.policy(Some(&args.policy))?);
    request.always_profile = true;
    let session = machine.build(&request, &bars)?;
    let file = session.plan_file();
    let mut files = Vec::new();
    if let Some(path) = &args.output {
        file.write(path).map_err(CliError::input)?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &args.trace {
        let timeline = session.timeline().ok_or_else(|| {
            CliError::new(Kind::Input, "--trace: there is no profile to predict a timeline from")
        })?;
        write_file(path, chrome_trace(session.plan(), &[TraceSource::Predicted(&timeline)]))?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &args.dot {
        write_file(path, dot(session.graph(), session.placement(), session.profile()))?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &args.onnx {
        write_file(path, annotated(&session, &request)?)?;
        files.push(path.display().to_string());
    }
    let mut document = describe(&session, file, files);
    document.predicted.dense_makespan_ms =
        dense_makespan_ms(&session, &document.plan, &machine, &request, &bars)?;
    out.print(&document, || text(&document))
}

/// What the plan would take with dense kernels only, where it has sparse ones.
fn dense_makespan_ms(
    session: &Session,
    plan: &PlanFile,
    machine: &Machine,
    request: &BuildRequest,
    bars: &Bars,
) -> CliResult<Option<f64>> {
    if !plan.nodes.iter().any(|n| n.kernel == Some(Variant::Sparse)) {
        return Ok(None);
    }
    let mut request = request.clone();
    request.policy = Some(Policy::Cpu);
    request.pins.push("*=dense".parse().expect("the pin is well formed"));
    let dense = machine.build(&request, bars)?;
    let makespan = dense.profile().map(|profile| session.timeline_with(profile).makespan_ns);
    Ok(makespan.map(|ns| ns as f64 / 1e6))
}

/// The model with `sparoa.*` metadata on every node that the plan knows.
fn annotated(session: &Session, request: &BuildRequest) -> CliResult<Vec<u8>> {
    let mut notes: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let graph = session.graph();
    for id in graph.node_ids() {
        let node = graph.node(id);
        let mut props = vec![
            ("sparoa.place".to_owned(), session.placement().places[id.index()].to_string()),
            ("sparoa.node".to_owned(), node.name.clone()),
        ];
        if let Some(profile) = session.profile() {
            for device in [sparoa::Device::Cpu, sparoa::Device::Gpu] {
                if let Some(cost) = profile.cost(id, device) {
                    let us = cost.part_ns(1.0) as f64 / 1e3;
                    props.push((format!("sparoa.{device}_us"), format!("{us:.1}")));
                }
            }
        }
        for origin in &node.origin {
            notes.insert(origin.clone(), props.clone());
        }
    }
    let bytes = request.model_bytes()?;
    onnx::annotate(bytes, &notes).map_err(|e| CliError::new(Kind::Model, e))
}

fn describe(session: &Session, plan: PlanFile, files: Vec<String>) -> Document {
    let graph = session.graph();
    let profile = session.profile();
    let cost =
        |id, device| profile.and_then(|p| p.cost(id, device)).map(|c| c.part_ns(1.0) as f64 / 1e6);
    let total = |device| profile.and_then(|p| p.total_ns(device)).map(|ns| ns as f64 / 1e6);
    let methods: HashMap<_, _> = session.engine().cpu_methods().collect();
    let nodes = graph
        .node_ids()
        .map(|id| {
            let n = session.analysis().node(id);
            Row {
                name: n.name.clone(),
                op_type: n.op_type.clone(),
                place: session.placement().places[id.index()],
                cpu_ms: cost(id, sparoa::Device::Cpu),
                gpu_ms: cost(id, sparoa::Device::Gpu),
                intensity: n.intensity(),
                sparsity: n.sparsity(),
                kernel: methods.get(&id).copied(),
            }
        })
        .collect();
    let (to_gpu, to_cpu) = session.plan().copied_bytes();
    Document {
        placement: Counts::of(session),
        source: session.decision().source.clone(),
        predicted: Predicted {
            simulated: true,
            makespan_ms: session.timeline().map(|t| t.makespan_ns as f64 / 1e6),
            dense_makespan_ms: None,
            cpu_only_ms: total(sparoa::Device::Cpu),
            gpu_only_ms: total(sparoa::Device::Gpu),
            copied_bytes_to_gpu: to_gpu,
            copied_bytes_to_cpu: to_cpu,
        },
        guard: session.decision().guard.clone(),
        fallback: session.decision().fallback.clone(),
        nodes,
        plan,
        files,
    }
}

fn text(d: &Document) -> String {
    let time = |v: Option<f64>| v.map_or("-".to_owned(), ms);
    let mut table =
        Table::new(&["node", "operator", "place", "kernel", "cpu ms", "gpu ms", "I", "sparsity"]);
    for n in &d.nodes {
        table.row([
            n.name.clone(),
            n.op_type.clone(),
            n.place.to_string(),
            n.kernel.unwrap_or("").to_owned(),
            time(n.cpu_ms),
            time(n.gpu_ms),
            format!("{:.1}", n.intensity),
            format!("{:.2}", n.sparsity),
        ]);
    }
    let mut text = table.render();
    let p = &d.predicted;
    text.push_str(&format!(
        "\n{}: {} on the CPU, {} on the GPU, {} split; predicted {} ms (simulated from measured \
         operators; cpu alone {}, gpu alone {})\n",
        d.source,
        d.placement.cpu,
        d.placement.gpu,
        d.placement.split,
        time(p.makespan_ms),
        time(p.cpu_only_ms),
        time(p.gpu_only_ms),
    ));
    if let (Some(sparse), Some(dense)) = (p.makespan_ms, p.dense_makespan_ms) {
        text.push_str(&format!(
            "with dense kernels only: {} ms (simulated likewise), {:.2} times as long\n",
            ms(dense),
            dense / sparse
        ));
    }
    if let Some(guard) = &d.guard {
        let mut table = Table::new(&["finalist", "predicted ms", "measured ms", ""]);
        for (i, e) in guard.entries.iter().enumerate() {
            table.row([
                e.name.clone(),
                ms(e.predicted_ns as f64 / 1e6),
                ms(e.median_ns() as f64 / 1e6),
                if i == guard.chosen { "chosen".to_owned() } else { String::new() },
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    if let Some(why) = &d.fallback {
        text.push_str(&format!("fell back to the CPU: {why}\n"));
    }
    for file in &d.files {
        text.push_str(&format!("wrote {file}\n"));
    }
    text
}
