//! `sparoa reproduce`: the paper's tables, by simulation. Nothing here is measured.

mod document;
mod page;
mod play;
mod rows;
mod setting;
mod text;

use sparoa::{Conditions, HardwareState, zoo};

use crate::{
    args::ReproduceArgs,
    error::{CliError, CliResult, Kind},
    learned::{STAND_IN, ablations, learned},
    output::{Output, write_file},
    progress::Bars,
    sessions::BuildRequest,
    targets::{Target, subject},
};
use document::{Document, Summary, TargetRows};
use play::{Board, Model, in_parallel};
use rows::Played;
use setting::Setting;

/// Models whose pruned variants have a table of their own.
const PRUNED: [&str; 2] = ["resnet18", "mobilenet_v2"];

/// Simulates, prints, and writes the page.
///
/// # Errors
/// Unknown targets and models, and policies that fail.
pub fn run(args: &ReproduceArgs, out: &Output) -> CliResult {
    let bars = Bars::new(out);
    let boards = boards(args)?;
    let spinner = bars.spinner("building the models");
    let models = models(args)?;
    spinner.finish_and_clear();
    let (learned, ablations) = (learned(), ablations());
    let bar = bars.bar((boards.len() * models.len()) as u64, "simulating");
    let pairs: Vec<(&Board, &Model)> =
        boards.iter().flat_map(|b| models.iter().map(move |m| (b, m))).collect();
    let played: Vec<Played> = in_parallel(&pairs, |(board, model)| {
        let played = play::play(board, model, &ablations);
        bar.inc(1);
        played
    })
    .into_iter()
    .collect::<Result<_, _>>()
    .map_err(|e| CliError::new(Kind::Input, e))?;
    bar.finish_and_clear();

    let (sparse, dense): (Vec<Played>, Vec<Played>) = played.into_iter().partition(|p| p.pruned);
    let ablations: Vec<&'static str> = ablations.iter().map(|a| a.name).collect();
    let document = Document {
        simulated: true,
        states: args.states,
        seed: args.seed,
        learned_policy: learned.policy.as_ref().map(|p| p.name()),
        sac: match &learned.policy {
            Some(_) => "the learned policy, deciding in every state".to_owned(),
            None => STAND_IN.to_owned(),
        },
        summary: Summary::of(&dense, &boards, &ablations),
        targets: TargetRows::of(&boards, dense),
        pruned: TargetRows::of(&boards, sparse),
    };
    if let Some(path) = &args.html {
        write_file(path, page::page(&document))?;
    }
    out.print(&document, || text::text(&document))
}

fn boards(args: &ReproduceArgs) -> CliResult<Vec<Board>> {
    args.target
        .iter()
        .map(|name| {
            let Target { board, .. } = Target::find(name, "fp32")?;
            let states: Vec<(HardwareState, u32)> =
                Conditions::new(&board, args.seed).take(args.states as usize).collect();
            let machines = Setting::ALL.map(|setting| setting.machine(&board));
            Ok(Board { name: board.name.clone(), title: board.title, states, machines })
        })
        .collect()
}

/// The models asked for, and the pruned variants of those that have a table of them.
fn models(args: &ReproduceArgs) -> CliResult<Vec<Model>> {
    let mut names: Vec<(String, bool)> = Vec::new();
    for name in &args.model {
        let known = zoo::parse(name).map_err(|e| CliError::new(Kind::Model, e))?;
        names.push((known.to_string(), false));
    }
    for name in PRUNED {
        if names.iter().any(|(n, _)| n == name) {
            names.push((format!("{name}@p90"), true));
        }
    }
    in_parallel(&names, |(name, pruned)| {
        let request = BuildRequest::new(&format!("zoo:{name}"), &[])?;
        let (subject, _) = subject(&request)?;
        Ok(Model { name: name.clone(), pruned: *pruned, subject })
    })
    .into_iter()
    .collect()
}
