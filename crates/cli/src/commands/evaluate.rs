//! `sparoa evaluate`: the learned parts on what they have not seen. Everything is simulated.

use serde::Serialize;
use sparoa::{
    FixedThresholds,
    learn::{
        Architecture,
        evaluate::{
            Effort, PolicyFigures, ThresholdFigures, boards, policy_figures, subject,
            threshold_figures,
        },
        shipped::shipped_predictor,
    },
};

use crate::{
    args::EvaluateArgs,
    error::{CliError, CliResult, Kind},
    learned::weights,
    output::Output,
    progress::Bars,
    table::Table,
};

/// The built-in models, of which no training knows.
const MODELS: [&str; 5] = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "vit_b_16", "swin_t"];
/// Those whose pruned variants are looked at as well, for the axis of sparsity.
const PRUNED: [&str; 2] = ["resnet18@p90", "mobilenet_v2@p90"];

#[derive(Serialize)]
struct Document {
    simulated: bool,
    models: Vec<&'static str>,
    boards: Vec<String>,
    predictor: Predictor,
    policy: PolicyFigures,
}

#[derive(Serialize)]
struct Predictor {
    /// Of the predictor that is used.
    threshold_error: f64,
    linear_error: f64,
    quadrant_accuracy: f64,
    operators: usize,
    /// By architecture, the fixed thresholds first.
    compared: Vec<Compared>,
}

#[derive(Serialize)]
struct Compared {
    name: &'static str,
    #[serde(flatten)]
    figures: ThresholdFigures,
}

/// Evaluates and prints.
///
/// # Errors
/// Weights that cannot be read, and policies that fail.
pub fn run(args: &EvaluateArgs, out: &Output) -> CliResult {
    let bars = Bars::new(out);
    let failed = |e: &dyn std::fmt::Display| CliError::new(Kind::Input, e.to_string());
    let learned = weights().map_err(|e| failed(&e))?;
    let boards = boards().map_err(|e| failed(&e))?;
    let spinner = bars.spinner("building the models");
    let mut subjects = Vec::new();
    for name in MODELS.iter().chain(&PRUNED) {
        subjects.push(subject(name).map_err(|e| failed(&e))?);
    }
    spinner.finish_and_clear();
    let spinner = bars.spinner("thresholds");
    let of = |model: &dyn sparoa::ThresholdModel| {
        threshold_figures(model, &subjects, &boards).map_err(|e| failed(&e))
    };
    let mut compared = vec![Compared { name: "fixed", figures: of(&FixedThresholds::default())? }];
    for architecture in Architecture::ALL {
        // The one in use may be the user's own.
        let figures = match architecture {
            Architecture::TransformerLstm => of(&*learned.thresholds)?,
            other => of(&shipped_predictor(other).map_err(|e| failed(&e))?)?,
        };
        compared.push(Compared { name: architecture.name(), figures });
    }
    spinner.finish_and_clear();
    let spinner = bars.spinner("placements");
    let effort = Effort { states: args.states as usize, small: args.small as usize };
    let dense = &subjects[..MODELS.len()];
    let policy = policy_figures(&learned.policy, Some(&learned.thresholds), dense, &boards, effort)
        .map_err(|e| failed(&e))?;
    spinner.finish_and_clear();
    let find = |name: &str| compared.iter().find(|c| c.name == name).map(|c| c.figures);
    let own = find(Architecture::TransformerLstm.name()).unwrap_or_default();
    let document = Document {
        simulated: true,
        models: MODELS.iter().chain(&PRUNED).copied().collect(),
        boards: boards.iter().map(|b| b.name.clone()).collect(),
        predictor: Predictor {
            threshold_error: own.error,
            linear_error: find(Architecture::Linear.name()).unwrap_or_default().error,
            quadrant_accuracy: own.quadrant_accuracy,
            operators: own.operators,
            compared,
        },
        policy,
    };
    out.print(&document, || text(&document))
}

fn text(d: &Document) -> String {
    let mut table = Table::new(&["thresholds", "mean error", "right quadrant"]);
    for c in &d.predictor.compared {
        table.row([
            c.name.to_owned(),
            format!("{:.3}", c.figures.error),
            format!("{:.1} %", 100.0 * c.figures.quadrant_accuracy),
        ]);
    }
    let p = &d.policy;
    format!(
        "Simulated, on models and boards that no training has seen: {} on {}.\n\n{}\n\
         {} operators; errors on scales from 0 to 1.\n\n\
         policy sac (decides in every state):\n  \
         over optimal, {} questions of small networks: {:.3} in the mean\n  \
         over the best of greedy, heft, dp, codl planned once for the nominal state: \
         {:.3} in the mean, {:.3} at worst\n  \
         over the best of them planned anew in every state, which they know: \
         {:.3} in the mean, {:.3} at worst\n  \
         time to place a model: {:.0} us in the median, {:.0} us for the largest\n",
        d.models.join(", "),
        d.boards.join(", "),
        table.render(),
        d.predictor.operators,
        p.small_questions,
        p.mean_ratio_to_optimal,
        p.mean_ratio_to_best_classical,
        p.worst_ratio_to_best_classical,
        p.mean_ratio_to_best_replanned,
        p.worst_ratio_to_best_replanned,
        p.decision_us_p50,
        p.decision_us_max,
    )
}
