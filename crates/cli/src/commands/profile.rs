//! `sparoa profile`.

use serde::Serialize;
use sparoa::{Device, Profile};

use crate::{
    args::ProfileArgs,
    error::CliResult,
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Machine},
    table::{Table, ms, scaled},
};

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    nodes: Vec<Row>,
    profile: &'a Profile,
}

#[derive(Serialize)]
struct Row {
    name: String,
    op_type: String,
    cpu_ms: Option<f64>,
    gpu_ms: Option<f64>,
    cpu_gflops_per_s: Option<f64>,
    gpu_gflops_per_s: Option<f64>,
}

/// Measures each operator on each processor.
///
/// # Errors
/// Model and device errors.
pub fn run(args: &ProfileArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device, args.fresh)?;
    let bars = Bars::new(out);
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.policy = Some(sparoa::Policy::Cpu);
    request.always_profile = true;
    request.fresh = args.fresh;
    let session = machine.build(&request, &bars)?;
    let profile = session.profile().expect("the request asks for a profile");
    if let Some(path) = &args.output {
        let json = serde_json::to_string_pretty(profile).map_err(crate::error::CliError::input)?;
        write_file(path, json)?;
    }
    let rows = session
        .graph()
        .node_ids()
        .map(|id| {
            let n = session.analysis().node(id);
            let ns = |d| profile.cost(id, d).map(|c| c.part_ns(1.0) as f64);
            let rate = |d| ns(d).filter(|&t| t > 0.0 && n.flops > 0).map(|t| n.flops as f64 / t);
            Row {
                name: n.name.clone(),
                op_type: n.op_type.clone(),
                cpu_ms: ns(Device::Cpu).map(|t| t / 1e6),
                gpu_ms: ns(Device::Gpu).map(|t| t / 1e6),
                cpu_gflops_per_s: rate(Device::Cpu),
                gpu_gflops_per_s: rate(Device::Gpu),
            }
        })
        .collect();
    let document = Document { model: &session.graph().name, nodes: rows, profile };
    out.print(&document, || text(&document))
}

fn text(d: &Document<'_>) -> String {
    let number = |v: Option<f64>, f: fn(f64) -> String| v.map_or("-".to_owned(), f);
    let mut table =
        Table::new(&["node", "operator", "cpu ms", "cpu GFLOP/s", "gpu ms", "gpu GFLOP/s"]);
    for n in &d.nodes {
        table.row([
            n.name.clone(),
            n.op_type.clone(),
            number(n.cpu_ms, ms),
            number(n.cpu_gflops_per_s, |v| format!("{v:.1}")),
            number(n.gpu_ms, ms),
            number(n.gpu_gflops_per_s, |v| format!("{v:.1}")),
        ]);
    }
    let sum = |f: fn(&Row) -> Option<f64>| -> f64 { d.nodes.iter().filter_map(f).sum() };
    let mut text = table.render();
    text.push_str(&format!("\nsum  cpu {} ms", ms(sum(|n| n.cpu_ms))));
    if d.nodes.iter().any(|n| n.gpu_ms.is_some()) {
        let link = |l: &sparoa::Link| {
            format!("{:.0} us + {}/s", l.latency_ns as f64 / 1e3, scaled(l.bytes_per_s, "B"))
        };
        text.push_str(&format!(
            ", gpu {} ms; copies to the GPU {}, back {}",
            ms(sum(|n| n.gpu_ms)),
            link(&d.profile.upload),
            link(&d.profile.download),
        ));
    }
    text.push('\n');
    text
}
