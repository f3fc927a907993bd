//! `sparoa inspect`.

mod page;

use std::collections::HashMap;

use serde::Serialize;
use sparoa::{
    ActivationZeros, Analysis, CostCache, Crossover, FixedThresholds, Quadrant, Session, TRIED,
    Tensor, ThresholdModel, Thresholds, WeightZeros, crossover, record_activation_sparsity,
};

use crate::{
    args::InspectArgs,
    error::{CliError, CliResult, Kind},
    inputs::{self, Source},
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Machine},
    table::{Table, scaled},
};

#[derive(Serialize)]
struct Document {
    model: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    nodes: Vec<Row>,
    flops: u64,
    weight_bytes: u64,
    /// `files`, `random` or absent: what activation sparsity was recorded on.
    activations_from: Option<&'static str>,
    /// Where the quadrants meet.
    thresholds: Thresholds,
    /// What the figures say about sparsity.
    findings: Vec<String>,
    /// Why the rest of the model runs interpreted after the graph, if it does.
    data_dependent: Option<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    op_type: String,
    outputs: Vec<String>,
    flops: u64,
    bytes: u64,
    intensity: f64,
    weight_sparsity: Option<f64>,
    weight_zeros: Option<WeightZeros>,
    activation_sparsity: Option<f64>,
    activation_zeros: Option<ActivationZeros>,
    /// What a sparse kernel would exploit.
    #[serde(skip)]
    sparsity: f64,
    /// Measured times of the dense and the sparse kernel, and where they cross.
    crossover: Option<Crossover>,
    quadrant: Quadrant,
    devices: Vec<&'static str>,
    /// Why the GPU does not run it.
    gpu_reason: Option<String>,
    /// Nodes of the model that this one stands for.
    origin: Vec<String>,
}

/// Prints the operator table.
///
/// # Errors
/// Model and input errors.
pub fn run(args: &InspectArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device, false)?;
    let bars = Bars::new(out);
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.policy = Some(sparoa::Policy::Cpu);
    request.optimize = !args.no_optimize;
    let session = machine.build(&request, &bars)?;
    let mut analysis = session.analysis().clone();
    let mut activations_from = None;
    let mut crossovers = Vec::new();
    if !args.static_only {
        let (samples, source) = samples(&session, args)?;
        let spinner = bars.spinner("recording activation sparsity");
        let (graph, pool) = (session.graph(), session.pool());
        record_activation_sparsity(&mut analysis, graph, &samples, request.optimize, pool)
            .map_err(|e| CliError::new(Kind::Input, e))?;
        spinner.finish_and_clear();
        activations_from = Some(if source == Source::Files { "files" } else { "random" });
        crossovers = measured(&session, &bars)?;
    }
    let mut document = describe(&session, &analysis, activations_from);
    for (row, crossover) in document.nodes.iter_mut().zip(crossovers) {
        row.crossover = crossover;
    }
    document.findings = findings(&document);
    if let Some(path) = &args.html {
        write_file(path, page::page(&document))?;
    }
    out.print(&document, || text(&document))
}

/// Inputs to record activations on: the calibration folder's files, else the inputs given, else
/// random ones.
fn samples(session: &Session, args: &InspectArgs) -> CliResult<(Vec<Vec<Tensor>>, Source)> {
    let Some(folder) = &args.calibrate else {
        let (values, source) = inputs::collect(session, &args.inputs)?;
        let first = values.into_iter().map(|(_, t)| t).collect();
        return Ok((vec![first], source));
    };
    let samples = inputs::calibration(folder, session.inputs(), args.inputs.normalize)?;
    Ok((samples, Source::Files))
}

/// Times of every layer's kernels; layers that are alike are timed once.
fn measured(session: &Session, bars: &Bars) -> CliResult<Vec<Option<Crossover>>> {
    let graph = session.graph();
    let bar = bars.bar(graph.nodes.len() as u64, "timing dense and sparse kernels");
    let mut known: HashMap<String, Option<Crossover>> = HashMap::new();
    let mut all = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let key = CostCache::signature(graph, node);
        if !known.contains_key(&key) {
            let times = crossover(graph, node, session.pool())
                .map_err(|e| CliError::new(Kind::Device, format!("{}: {e}", node.name)))?;
            known.insert(key.clone(), times);
        }
        all.push(known[&key].clone());
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(all)
}

impl Row {
    /// Whether the sparse kernel is faster at the weights' own sparsity.
    fn pays(&self) -> bool {
        let from = self.crossover.as_ref().and_then(|c| c.from);
        matches!((from, self.weight_sparsity), (Some(from), Some(own)) if own >= from)
    }
}

/// The lowest sparsity that is tried.
const LOWEST: f64 = TRIED[0];

/// Whether a sparse kernel pays, in words.
fn verdict(n: &Row) -> String {
    match &n.crossover {
        None => "-".to_owned(),
        Some(c) => match c.from {
            None => "never".to_owned(),
            Some(_) if n.pays() => "pays".to_owned(),
            Some(from) if from <= LOWEST => format!("from {:.0} % or less", LOWEST * 100.0),
            Some(from) => format!("from {:.0} %", from * 100.0),
        },
    }
}

/// What the figures say.
fn findings(d: &Document) -> Vec<String> {
    let mut findings = Vec::new();
    let layers: Vec<&Row> = d.nodes.iter().filter(|n| n.crossover.is_some()).collect();
    if !layers.is_empty() {
        let paying = layers.iter().filter(|n| n.pays()).count();
        let mut from: Vec<f64> = layers.iter().filter_map(|n| n.crossover.as_ref()?.from).collect();
        from.sort_by(f64::total_cmp);
        let begins = match (from.first(), from.last()) {
            (Some(first), Some(last)) => format!(
                "it begins to at {:.0} to {:.0} % zeros, half of the layers by {:.0} %",
                first * 100.0,
                last * 100.0,
                from[from.len() / 2] * 100.0
            ),
            _ => "no sparsity up to 95 % would make it".to_owned(),
        };
        findings.push(format!(
            "weights: a sparse kernel pays in {paying} of {} layers on this machine (measured); \
             {begins}",
            layers.len()
        ));
    }
    let mut inputs: Vec<f64> = d
        .nodes
        .iter()
        .filter(|n| n.weight_sparsity.is_some())
        .filter_map(|n| n.activation_sparsity)
        .collect();
    inputs.sort_by(f64::total_cmp);
    if let (Some(from), Some(&most)) = (d.activations_from, inputs.last()) {
        let median = inputs[inputs.len() / 2];
        findings.push(if most < 0.05 {
            format!(
                "activations: no layer's input has zeros worth skipping (at most {:.1} %, on {from} \
                 inputs): this model has no activation sparsity",
                most * 100.0
            )
        } else {
            format!(
                "activations: zeros in layers' inputs, on {from} inputs: median {:.0} %, at most \
                 {:.0} %; over 70 % in {} of {} layers",
                median * 100.0,
                most * 100.0,
                inputs.iter().filter(|&&z| z > 0.7).count(),
                inputs.len()
            )
        });
    }
    findings
}

fn describe(
    session: &Session,
    analysis: &Analysis,
    activations_from: Option<&'static str>,
) -> Document {
    let graph = session.graph();
    let fixed = FixedThresholds::default();
    let thresholds = fixed.predict(graph, analysis, &sparoa::Profile::default());
    let nodes = graph
        .node_ids()
        .map(|id| {
            let n = analysis.node(id);
            let gpu = &session.support().gpu[id.index()];
            Row {
                name: n.name.clone(),
                op_type: n.op_type.clone(),
                outputs: n.outputs.clone(),
                flops: n.flops,
                bytes: n.bytes,
                intensity: n.intensity(),
                weight_sparsity: n.weight_sparsity,
                weight_zeros: n.weight_zeros,
                activation_sparsity: n.activation_sparsity,
                activation_zeros: n.activation_zeros,
                sparsity: n.sparsity(),
                crossover: None,
                quadrant: thresholds[id.index()].quadrant(n),
                devices: if gpu.is_ok() { vec!["cpu", "gpu"] } else { vec!["cpu"] },
                gpu_reason: gpu.as_ref().err().cloned(),
                origin: graph.node(id).origin.clone(),
            }
        })
        .collect();
    let weights = graph.values.iter().filter_map(|v| v.constant.as_ref());
    let port = |i: &sparoa::ValueInfo| match &i.ty {
        Some(ty) => format!("{}: {ty}", i.name),
        None => format!("{}: decided at run time", i.name),
    };
    Document {
        model: graph.name.clone(),
        inputs: session.inputs().iter().map(port).collect(),
        outputs: session.outputs().iter().map(port).collect(),
        nodes,
        flops: analysis.flops(),
        weight_bytes: weights.map(|c| c.ty().bytes() as u64).sum(),
        activations_from,
        thresholds: fixed.0,
        findings: Vec::new(),
        data_dependent: session.tail_cause().map(str::to_owned),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |s| format!("{:.1} %", s * 100.0))
}

fn text(d: &Document) -> String {
    let mut table = Table::new(&[
        "node",
        "operator",
        "output",
        "FLOPs",
        "bytes",
        "I",
        "weights=0",
        "inputs=0",
        "quadrant",
        "sparse kernel",
        "devices",
    ]);
    for n in &d.nodes {
        table.row([
            n.name.clone(),
            n.op_type.clone(),
            n.outputs.join(", "),
            scaled(n.flops as f64, ""),
            scaled(n.bytes as f64, "B"),
            format!("{:.1}", n.intensity),
            percent(n.weight_sparsity),
            percent(n.activation_sparsity),
            n.quadrant.to_string(),
            verdict(n),
            n.devices.join(" "),
        ]);
    }
    let mut text = format!(
        "{}: {} -> {}\n\n{}\n{} operators, {}, {} of weights",
        d.model,
        d.inputs.join(", "),
        d.outputs.join(", "),
        table.render(),
        d.nodes.len(),
        scaled(d.flops as f64, "FLOP"),
        scaled(d.weight_bytes as f64, "B"),
    );
    for finding in &d.findings {
        text.push_str(&format!("\n{finding}"));
    }
    if let Some(cause) = &d.data_dependent {
        text.push_str(&format!("\nruns interpreted on the CPU from here on: {cause}"));
    }
    text.push('\n');
    text
}
