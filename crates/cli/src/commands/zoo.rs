//! `sparoa zoo`.

use serde::Serialize;
use sparoa::{onnx, zoo};

use crate::{
    args::ZooCommand,
    error::{CliError, CliResult, Kind},
    output::Output,
    table::{Table, scaled},
};

#[derive(Serialize)]
struct Row {
    name: &'static str,
    parameters: u64,
    gflops: f64,
    source: &'static str,
}

#[derive(Serialize)]
struct Exported {
    file: String,
    bytes: u64,
}

/// Lists or exports built-in models.
///
/// # Errors
/// Unknown names and unwritable files.
pub fn run(command: &ZooCommand, out: &Output) -> CliResult {
    match command {
        ZooCommand::List => list(out),
        ZooCommand::Export { name, output } => {
            let name = name.strip_prefix("zoo:").unwrap_or(name);
            let model = zoo::build(name).map_err(|e| CliError::new(Kind::Model, e))?;
            onnx::save(&model, output, &onnx::SaveOptions::default())
                .map_err(|e| CliError::input(format!("{}: {e}", output.display())))?;
            // Large weights lie in NAME.data beside the file.
            let bytes = std::fs::metadata(output).map_or(0, |m| m.len());
            let document = Exported { file: output.display().to_string(), bytes };
            out.print(&document, || {
                format!("wrote {} ({})\n", document.file, scaled(bytes as f64, "B"))
            })
        }
    }
}

fn list(out: &Output) -> CliResult {
    let rows: Vec<Row> = zoo::list()
        .iter()
        .map(|e| Row { name: e.name, parameters: e.parameters, gflops: e.gflops, source: e.source })
        .collect();
    out.print(&rows, || {
        let mut table = Table::new(&["name", "parameters", "work per image", "paper"]);
        for r in &rows {
            table.row([
                format!("zoo:{}", r.name),
                r.parameters.to_string(),
                scaled(r.gflops * 1e9, "FLOP"),
                r.source.to_owned(),
            ]);
        }
        table.render()
    })
}
