//! `sparoa train`.

use crate::{args::TrainArgs, error::CliResult, output::Output};

/// Says how to get the command.
///
/// # Errors
/// Always: this build has no training.
#[cfg(not(feature = "train"))]
pub fn run(_: &TrainArgs, _: &Output) -> CliResult {
    Err(crate::error::CliError::usage(
        "train: this build has no training; build it with `cargo build --release --features train`",
    ))
}

/// Trains with progress bars.
///
/// # Errors
/// A folder that cannot be written, a training that diverges.
#[cfg(feature = "train")]
pub fn run(args: &TrainArgs, out: &Output) -> CliResult {
    with_feature::run(args, out)
}

#[cfg(feature = "train")]
mod with_feature {
    use std::time::Instant;

    use serde::Serialize;
    use sparoa::learn::{
        Architecture,
        train::recipe::{Recipe, Stage, train},
    };

    use crate::{
        args::TrainArgs,
        error::{CliError, CliResult, Kind},
        learned::WEIGHTS,
        output::Output,
        progress::Bars,
    };

    #[derive(Serialize)]
    struct Document {
        folder: String,
        seed: u64,
        seconds: f64,
    }

    pub fn run(args: &TrainArgs, out: &Output) -> CliResult {
        let mut recipe = if args.tiny { Recipe::tiny() } else { Recipe::default() };
        recipe.seed = args.seed;
        recipe.updates = args.updates.unwrap_or(recipe.updates);
        let bars = Bars::new(out);
        let networks = bars.bar(recipe.networks as u64, "networks");
        // The predictor that is used; those for comparison are trained beside it.
        let predictor = bars.bar(recipe.epochs as u64, "predictor");
        let teacher = bars.bar(recipe.shown as u64, "teacher");
        let scheduler = bars.bar(recipe.updates, "scheduler");
        let start = Instant::now();
        train(recipe, &args.output, &|stage| match stage {
            Stage::Networks { done, .. } => networks.set_position(done as u64 + 1),
            Stage::Predictor { architecture: Architecture::TransformerLstm, epoch, .. } => {
                predictor.set_position(epoch.epoch as u64);
            }
            Stage::Teacher { done, .. } => teacher.set_position(done as u64 + 1),
            Stage::Scheduler { progress, .. } => scheduler.set_position(progress.update),
            _ => {}
        })
        .map_err(|e| CliError::new(Kind::Input, e))?;
        for bar in [networks, predictor, teacher, scheduler] {
            bar.finish_and_clear();
        }
        let document = Document {
            folder: args.output.display().to_string(),
            seed: recipe.seed,
            seconds: start.elapsed().as_secs_f64(),
        };
        out.print(&document, || {
            format!(
                "wrote weights and learning curves to {0} in {1:.0} s; {2}={0} uses them, \
                 {2}={0} sparoa evaluate judges them\n",
                document.folder, document.seconds, WEIGHTS
            )
        })
    }
}
