//! `sparoa prune`.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use sparoa::{Model, onnx, zoo};
use zoo::{PruneScope, PrunedWeight, prune};

use crate::{
    args::PruneArgs,
    error::{CliError, CliResult, Kind},
    output::Output,
    table::{Table, scaled},
};

/// What is said to whoever prunes.
const CAVEAT: &str = "pruning without retraining costs accuracy, at high sparsity all of it: this \
                      model answers how fast it would be, not how good";

#[derive(Serialize)]
struct Document {
    file: String,
    bytes: u64,
    scope: PruneScope,
    /// Zeros of all pruned weights.
    sparsity: f64,
    elements: usize,
    zeros: usize,
    layers: Vec<Layer>,
    caveat: &'static str,
}

#[derive(Serialize)]
struct Layer {
    weight: String,
    shape: Vec<usize>,
    elements: usize,
    sparsity: f64,
}

/// Writes a pruned copy of a model.
///
/// # Errors
/// Sparsities outside 0 to 1, models without weights, files that cannot be read or written.
pub fn run(args: &PruneArgs, out: &Output) -> CliResult {
    if !(0.0..=1.0).contains(&args.sparsity) {
        return Err(CliError::usage("--sparsity: must be a share from 0 to 1, 0.9 for 90 %"));
    }
    let scope = if args.global { PruneScope::Global } else { PruneScope::PerLayer };
    let pruned = match args.model.strip_prefix("zoo:") {
        Some(name) => {
            let mut model = zoo::build(name).map_err(|e| CliError::new(Kind::Model, e))?;
            let pruned = weights(&mut model, args, scope)?;
            onnx::save(&model, &args.output, &onnx::SaveOptions::default())
                .map_err(|e| output(args, e))?;
            pruned
        }
        None => prune_file(Path::new(&args.model), args, scope)?,
    };
    let elements = pruned.iter().map(|w| w.tensor.ty().len()).sum();
    let zeros = pruned.iter().map(|w| w.zeros).sum();
    let document = Document {
        file: args.output.display().to_string(),
        // Large weights lie in NAME.data beside the file.
        bytes: std::fs::metadata(&args.output).map_or(0, |m| m.len()),
        scope,
        sparsity: zeros as f64 / elements as f64,
        elements,
        zeros,
        layers: pruned.into_iter().map(layer).collect(),
        caveat: CAVEAT,
    };
    out.print(&document, || text(&document))
}

/// Prunes a file's weights; everything else in the new file is as it was.
fn prune_file(path: &Path, args: &PruneArgs, scope: PruneScope) -> CliResult<Vec<PrunedWeight>> {
    let mut model = onnx::load(path, &onnx::LoadOptions::default())
        .map_err(|e| CliError::new(Kind::Model, e))?;
    let pruned = weights(&mut model, args, scope)?;
    let constants: BTreeMap<_, _> =
        pruned.iter().map(|w| (w.name.clone(), w.tensor.clone())).collect();
    onnx::rewrite(path, &args.output, &constants, &onnx::SaveOptions::default()).map_err(|e| {
        match e {
            onnx::RewriteError::Load(e) => CliError::new(Kind::Model, e),
            other => output(args, other),
        }
    })?;
    Ok(pruned)
}

fn weights(model: &mut Model, args: &PruneArgs, scope: PruneScope) -> CliResult<Vec<PrunedWeight>> {
    let pruned = prune(model, args.sparsity, scope);
    if pruned.is_empty() {
        let text = format!(
            "{}: has no f32 weights of convolutions or matrix products that could be pruned",
            args.model
        );
        return Err(CliError::new(Kind::Model, text));
    }
    Ok(pruned)
}

fn output(args: &PruneArgs, error: impl std::fmt::Display) -> CliError {
    CliError::input(format!("{}: {error}", args.output.display()))
}

fn layer(w: PrunedWeight) -> Layer {
    let elements = w.tensor.ty().len();
    Layer {
        weight: w.name,
        shape: w.tensor.shape().to_vec(),
        elements,
        sparsity: w.zeros as f64 / elements.max(1) as f64,
    }
}

fn text(d: &Document) -> String {
    let mut table = Table::new(&["weight", "shape", "elements", "zeros"]);
    for l in &d.layers {
        let shape: Vec<String> = l.shape.iter().map(ToString::to_string).collect();
        table.row([
            l.weight.clone(),
            shape.join("x"),
            l.elements.to_string(),
            format!("{:.1} %", l.sparsity * 100.0),
        ]);
    }
    format!(
        "{}\nwrote {} ({}): {:.1} % of {} weights in {} layers are zero\nnote: {}\n",
        table.render(),
        d.file,
        scaled(d.bytes as f64, "B"),
        d.sparsity * 100.0,
        d.elements,
        d.layers.len(),
        d.caveat
    )
}
