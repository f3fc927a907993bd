//! `sparoa verify`.

use serde::Serialize;
use sparoa::{Policy, Tolerance, Verification, random_placement, reference};

use crate::{
    args::VerifyArgs,
    error::{CliError, CliResult, Kind},
    inputs,
    output::Output,
    progress::Bars,
    sessions::{BuildRequest, Counts, Machine, session_error},
    table::Table,
};

#[derive(Serialize)]
struct Document {
    passed: bool,
    rtol: f64,
    atol: f64,
    plans: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    plan: String,
    placement: Counts,
    device: &'static str,
    passed: bool,
    max_abs_error: f64,
    verification: Verification,
}

/// Compares plans with the CPU reference: the graph as imported, operator by operator.
///
/// # Errors
/// Exit code 1 naming the first diverging operator; model, input and device errors.
pub fn run(args: &VerifyArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device)?;
    let bars = Bars::new(out);
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.with_policy_args(&args.policy_args)?;
    request.plan.clone_from(&args.plan);
    request.policy = Some(match &args.policy {
        Some(name) => machine.policy(Some(name))?,
        None => Policy::Cpu,
    });
    let mut session = machine.build(&request, &bars)?;
    let (values, _) = inputs::collect(&session, &args.inputs)?;
    let values = inputs::borrowed(&values);
    let tolerance = Tolerance { rtol: args.rtol, atol: args.atol };
    let spinner = bars.spinner("computing the reference");
    let expected = reference(session.model(), session.shapes(), &values, session.pool())
        .map_err(session_error)?;
    spinner.finish_and_clear();

    // The first plan is the session's own; the others replace its placement.
    let mut placements = vec![(session.decision().source.clone(), None)];
    if args.policy.is_none() && args.plan.is_none() && machine.gpu.is_some() {
        let gpu = session.place_with(Policy::Gpu).map_err(session_error)?;
        placements.push(("gpu".to_owned(), Some(gpu)));
    }
    for i in 0..args.random_plans {
        let seed = args.inputs.seed.wrapping_mul(1_000_003).wrapping_add(i as u64);
        let placement = random_placement(session.graph(), session.support(), seed);
        placements.push((format!("random {i}"), Some(placement)));
    }
    let bar = bars.bar(placements.len() as u64, "verifying plans");
    let mut plans = Vec::new();
    for (name, placement) in placements {
        if let Some(placement) = placement {
            session.set_placement(placement, name.clone()).map_err(session_error)?;
        }
        let verification =
            session.verify_against(&expected, &values, tolerance).map_err(session_error)?;
        let placement = Counts::of(&session);
        plans.push(Row {
            plan: name,
            device: placement.device(),
            placement,
            passed: verification.passed(),
            max_abs_error: verification.outputs.iter().map(|o| o.max_abs).fold(0.0, f64::max),
            verification,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let document = Document {
        passed: plans.iter().all(|p| p.passed),
        rtol: args.rtol,
        atol: args.atol,
        plans,
    };
    out.print(&document, || text(&document))?;
    match document.plans.iter().find(|p| !p.passed) {
        None => Ok(()),
        Some(p) => Err(CliError::new(Kind::Failed, failure(&args.model.model, p))),
    }
}

fn failure(model: &str, row: &Row) -> String {
    let place = match &row.verification.divergence {
        Some(d) => format!(
            "first at node '{}' ({}, on {}): value '{}' is {} where the reference has {} ({} of \
             {} elements differ)",
            d.node,
            d.op_type,
            d.place,
            d.value,
            d.mismatch.given,
            d.mismatch.expected,
            d.mismatch.count,
            d.mismatch.total,
        ),
        None => "only in the outputs".to_owned(),
    };
    format!("{model}: plan '{}' differs from the CPU reference, {place}", row.plan)
}

fn text(d: &Document) -> String {
    let mut table = Table::new(&["plan", "device", "cpu", "gpu", "split", "max error", "result"]);
    for p in &d.plans {
        table.row([
            p.plan.clone(),
            p.device.to_owned(),
            p.placement.cpu.to_string(),
            p.placement.gpu.to_string(),
            p.placement.split.to_string(),
            format!("{:.2e}", p.max_abs_error),
            if p.passed { "ok".to_owned() } else { "DIFFERS".to_owned() },
        ]);
    }
    let verdict = if d.passed { "all outputs agree" } else { "outputs differ" };
    format!("{}{verdict} (rtol {:e}, atol {:e})\n", table.render(), d.rtol, d.atol)
}
