//! The `sparoa` command.

mod agreement;
mod args;
mod arrays;
mod bytes;
mod commands;
mod doctor;
mod environment;
mod error;
mod images;
mod inputs;
mod latency;
mod learned;
mod output;
mod page;
mod progress;
mod sessions;
mod shapes;
mod table;
mod targets;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to stdout with success, usage errors to stderr with code 2.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let level = match cli.verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let out = output::Output { json: cli.json, quiet: cli.quiet };
    let result = match &cli.command {
        Command::Devices(a) => commands::devices::run(a, &out),
        Command::Doctor(a) => commands::doctor::run(a, &out),
        Command::Inspect(a) => commands::inspect::run(a, &out),
        Command::Profile(a) => commands::profile::run(a, &out),
        Command::Plan(a) => commands::plan::run(a, &out),
        Command::Run(a) => commands::run::run(a, &out),
        Command::Bench(a) => commands::bench::run(a, &out),
        Command::Verify(a) => commands::verify::run(a, &out),
        Command::Zoo(a) => commands::zoo::run(a, &out),
        Command::Reproduce(a) => commands::reproduce::run(a, &out),
        Command::Evaluate(a) => commands::evaluate::run(a, &out),
        Command::Train(a) => commands::train::run(a, &out),
        Command::Prune(a) => commands::prune::run(a, &out),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sparoa: {e}");
            ExitCode::from(e.kind.code())
        }
    }
}
