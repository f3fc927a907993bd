//! `sparoa plan`.

mod document;
mod target;

use std::collections::{BTreeMap, HashMap};

use sparoa::{
    Graph, Placement, PlanFile, Policy, Profile, Session, TraceSource, Variant, chrome_trace, dot,
    onnx,
};

use crate::{
    args::PlanArgs,
    error::{CliError, CliResult, Kind},
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Counts, Machine},
};
use document::{Document, Predicted, rows};

/// Plans, prints and writes what was asked for.
///
/// # Errors
/// Model, input and device errors.
pub fn run(args: &PlanArgs, out: &Output) -> CliResult {
    if let Some(name) = &args.target {
        return target::run(name, args, out);
    }
    let machine = Machine::open(&args.device, args.policy_args.fresh)?;
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
        let (graph, placement) = (session.graph(), session.placement());
        write_file(path, annotated(graph, placement, session.profile(), &request)?)?;
        files.push(path.display().to_string());
    }
    let mut document = describe(&session, file, files);
    document.predicted.dense_makespan_ms =
        dense_makespan_ms(&session, &document.plan, &machine, &request, &bars)?;
    out.print(&document, || document.text())
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
fn annotated(
    graph: &Graph,
    placement: &Placement,
    profile: Option<&Profile>,
    request: &BuildRequest,
) -> CliResult<Vec<u8>> {
    let mut notes: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        let mut props = vec![
            ("sparoa.place".to_owned(), placement.places[id.index()].to_string()),
            ("sparoa.node".to_owned(), node.name.clone()),
        ];
        if let Some(profile) = profile {
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
    let profile = session.profile();
    let total_ns = |device| profile.and_then(|p| p.total_ns(device));
    let total = |device| total_ns(device).map(|ns| ns as f64 / 1e6);
    let power = profile.and_then(|p| p.power);
    let alone = |device, busy: fn(u64) -> [u64; 2]| {
        let (ns, power) = (total_ns(device)?, power?);
        Some(power.energy_j(ns, busy(ns)[0], busy(ns)[1]))
    };
    let timeline = session.timeline();
    let energy_j = timeline.as_ref().zip(profile).and_then(|(t, p)| t.energy_j(p));
    let methods: HashMap<_, _> = session.engine().cpu_methods().collect();
    let nodes = rows(
        session.graph(),
        session.analysis(),
        session.placement(),
        profile,
        &session.thresholds(),
        |id| methods.get(&id).copied(),
    );
    let (to_gpu, to_cpu) = session.plan().copied_bytes();
    Document {
        simulated: false,
        target: None,
        placement: Counts::of(session),
        source: session.decision().source.clone(),
        predicted: Predicted {
            simulated: true,
            makespan_ms: timeline.as_ref().map(|t| t.makespan_ns as f64 / 1e6),
            dense_makespan_ms: None,
            cpu_only_ms: total(sparoa::Device::Cpu),
            gpu_only_ms: total(sparoa::Device::Gpu),
            energy_j,
            average_w: energy_j.zip(timeline).map(|(j, t)| j * 1e9 / t.makespan_ns as f64),
            energy_method: energy_j.and(power).map(|power| power.source),
            cpu_only_j: alone(sparoa::Device::Cpu, |ns| [ns, 0]),
            gpu_only_j: alone(sparoa::Device::Gpu, |ns| [0, ns]),
            copied_bytes_to_gpu: to_gpu,
            copied_bytes_to_cpu: to_cpu,
        },
        guard: session.decision().guard.clone(),
        fallback: session.decision().fallback.clone(),
        data_dependent: session.tail_cause().map(str::to_owned),
        nodes,
        plan,
        files,
        note: None,
    }
}
