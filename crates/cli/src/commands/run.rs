//! `sparoa run`.

use std::{path::Path, time::Instant};

use serde::Serialize;
use sparoa::{DType, Tensor, TraceSource, chrome_trace};

use crate::{
    args::RunArgs,
    arrays,
    error::{CliError, CliResult},
    inputs,
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Counts, Machine, session_error},
    table::ms,
};

#[derive(Serialize)]
struct Document {
    outputs: Vec<OutputRow>,
    latency_ms: f64,
    placement: Counts,
    device: String,
    policy: String,
}

#[derive(Serialize)]
struct OutputRow {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Vec<Vec<Class>>>,
}

/// A class and its score.
#[derive(Serialize)]
struct Class {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    score: f32,
}

/// Runs a model once.
///
/// # Errors
/// Model, input and device errors.
pub fn run(args: &RunArgs, out: &Output) -> CliResult {
    let labels = args.labels.as_deref().map(read_labels).transpose()?;
    let policies: Vec<&str> = args.policy.as_deref().into_iter().collect();
    let machine =
        Machine::open_for(&args.device, &policies, args.plan.as_deref(), &args.policy_args)?;
    let bars = Bars::new(out);
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.with_policy_args(&args.policy_args)?;
    request.plan = args.plan.clone();
    if args.plan.is_none() {
        request.policy = Some(machine.policy(args.policy.as_deref())?);
    }
    let mut session = machine.build(&request, &bars)?;
    let (values, _) = inputs::collect(&session, &args.inputs)?;
    let values = inputs::borrowed(&values);
    let start = Instant::now();
    let results = session.run(&values).map_err(session_error)?;
    let latency_ms = start.elapsed().as_secs_f64() * 1e3;
    if let Some(path) = &args.trace {
        let (_, trace) = session.run_traced(&values).map_err(session_error)?;
        write_file(path, chrome_trace(session.plan(), &[TraceSource::Measured(&trace)]))?;
    }
    let document = Document {
        outputs: results
            .iter()
            .map(|(name, tensor)| describe(name, tensor, args, labels.as_deref()))
            .collect::<CliResult<_>>()?,
        latency_ms,
        placement: Counts::of(&session),
        device: Counts::of(&session).device().to_owned(),
        policy: session.decision().source.clone(),
    };
    out.print(&document, || text(&document))
}

fn describe(
    name: &str,
    tensor: &Tensor,
    args: &RunArgs,
    labels: Option<&[String]>,
) -> CliResult<OutputRow> {
    let file = match &args.output {
        None => None,
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .map_err(|e| CliError::input(format!("{}: {e}", folder.display())))?;
            // A name from the model must not leave the folder.
            let safe: String = name
                .chars()
                .map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' })
                .collect();
            let path = folder.join(format!("{}.npy", safe.trim_start_matches('.')));
            arrays::write_npy(&path, tensor)?;
            Some(path.display().to_string())
        }
    };
    let top = args.top.and_then(|k| top(tensor, k, labels));
    Ok(OutputRow {
        name: name.to_owned(),
        shape: tensor.shape().to_vec(),
        dtype: tensor.dtype(),
        file,
        top,
    })
}

/// The `k` highest scores of each row of the last axis; `None` for an output that is not f32.
fn top(tensor: &Tensor, k: usize, labels: Option<&[String]>) -> Option<Vec<Vec<Class>>> {
    let scores = tensor.as_slice::<f32>()?;
    let classes = *tensor.shape().last()?;
    if classes == 0 {
        return None;
    }
    let rows = scores.chunks_exact(classes).map(|row| {
        let mut order: Vec<usize> = (0..classes).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        order
            .into_iter()
            .take(k)
            .map(|index| Class {
                index,
                label: labels.and_then(|l| l.get(index).cloned()),
                score: row[index],
            })
            .collect()
    });
    Some(rows.collect())
}

fn read_labels(path: &Path) -> CliResult<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| CliError::input(format!("{}: {e}", path.display())))?;
    Ok(text.lines().map(|l| l.trim().to_owned()).collect())
}

fn text(d: &Document) -> String {
    let mut text = String::new();
    for o in &d.outputs {
        let shape: Vec<String> = o.shape.iter().map(ToString::to_string).collect();
        text.push_str(&format!("{}: {}[{}]", o.name, o.dtype, shape.join("x")));
        if let Some(file) = &o.file {
            text.push_str(&format!(" -> {file}"));
        }
        text.push('\n');
        for (i, row) in o.top.iter().flatten().enumerate() {
            if o.top.as_ref().is_some_and(|t| t.len() > 1) {
                text.push_str(&format!("  row {i}\n"));
            }
            for c in row {
                let label = c.label.as_deref().unwrap_or("");
                text.push_str(&format!("  {:5}  {:10.4}  {label}\n", c.index, c.score));
            }
        }
    }
    let c = &d.placement;
    text.push_str(&format!(
        "{} ms (first inference) on {}: {} operators on the CPU, {} on the GPU, {} split ({})\n",
        ms(d.latency_ms),
        d.device,
        c.cpu,
        c.gpu,
        c.split,
        d.policy
    ));
    text
}
