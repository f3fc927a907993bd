//! `sparoa inspect`.

use serde::Serialize;
use sparoa::{FixedThresholds, Quadrant, Session, ThresholdModel, record_activation_sparsity};

use crate::{
    args::InspectArgs,
    error::{CliError, CliResult, Kind},
    inputs::{self, Source},
    output::Output,
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
    activation_sparsity: Option<f64>,
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
    let machine = Machine::open(&args.device)?;
    let bars = Bars::new(out);
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.policy = Some(sparoa::Policy::Cpu);
    request.optimize = !args.no_optimize;
    let session = machine.build(&request, &bars)?;
    let mut analysis = session.analysis().clone();
    let mut activations_from = None;
    if !args.static_only {
        let (values, source) = inputs::collect(&session, &args.inputs)?;
        let spinner = bars.spinner("recording activation sparsity");
        let tensors: Vec<_> = values.into_iter().map(|(_, t)| t).collect();
        record_activation_sparsity(&mut analysis, session.graph(), &tensors, session.pool())
            .map_err(|e| CliError::new(Kind::Input, e))?;
        spinner.finish_and_clear();
        activations_from = Some(if source == Source::Files { "files" } else { "random" });
    }
    let document = describe(&session, &analysis, activations_from);
    out.print(&document, || text(&document))
}

fn describe(
    session: &Session,
    analysis: &sparoa::Analysis,
    activations_from: Option<&'static str>,
) -> Document {
    let graph = session.graph();
    let thresholds = FixedThresholds::default().predict(graph, analysis);
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
                activation_sparsity: n.activation_sparsity,
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
        data_dependent: session.tail_cause().map(str::to_owned),
    }
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
        "devices",
    ]);
    let percent = |s: Option<f64>| s.map_or("-".to_owned(), |s| format!("{:.1} %", s * 100.0));
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
    if let Some(from) = d.activations_from {
        text.push_str(&format!("; zeros of inputs recorded on {from} inputs"));
    }
    if let Some(cause) = &d.data_dependent {
        text.push_str(&format!("\nruns interpreted on the CPU from here on: {cause}"));
    }
    text.push('\n');
    text
}
