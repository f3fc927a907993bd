//! `sparoa verify`.

use serde::Serialize;
use sparoa::{
    Policy, Session, Tolerance, Verification, product_depth, random_placement, reference,
};

use crate::{
    agreement::{self, Agreement},
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
    agreement: Option<Agreement>,
}

#[derive(Serialize)]
struct Row {
    plan: String,
    placement: Counts,
    device: &'static str,
    passed: bool,
    max_abs_error: f64,
    tolerance: Tolerance,
    verification: Verification,
}

/// Compares plans with the CPU reference: the graph as imported, operator by operator.
///
/// # Errors
/// Exit code 1 naming the first diverging operator; model, input and device errors.
pub fn run(args: &VerifyArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device, args.policy_args.fresh)?;
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
    let depth = product_depth(session.graph());
    let spinner = bars.spinner("computing the reference");
    let expected = reference(session.model(), session.shapes(), &values, session.pool())
        .map_err(session_error)?;
    spinner.finish_and_clear();

    let agreement = match &args.images {
        None => None,
        Some(folder) => {
            let of = agreement::measure(&machine, &request, &mut session, folder, args, &bars)?;
            Some(of)
        }
    };
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
        let tolerance = tolerance(args, &machine, &session, depth);
        let verification =
            session.verify_against(&expected, &values, tolerance).map_err(session_error)?;
        let placement = Counts::of(&session);
        plans.push(Row {
            plan: name,
            device: placement.device(),
            placement,
            passed: verification.passed(),
            max_abs_error: verification.outputs.iter().map(|o| o.max_abs).fold(0.0, f64::max),
            tolerance,
            verification,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let document = Document {
        passed: plans.iter().all(|p| p.passed),
        rtol: args.rtol.unwrap_or(Tolerance::default().rtol),
        atol: args.atol.unwrap_or(Tolerance::default().atol),
        plans,
        agreement,
    };
    out.print(&document, || text(&document))?;
    match document.plans.iter().find(|p| !p.passed) {
        None => Ok(()),
        Some(p) => Err(CliError::new(Kind::Failed, failure(&args.model.model, p))),
    }
}

/// The user's, or what the arithmetic of the plan's processors calls for: bf16 and bf16x2 round both
/// operands on the CPU, tf32, fp16 and, through CUDA, bf16 on the GPU.
fn tolerance(args: &VerifyArgs, machine: &Machine, session: &Session, depth: usize) -> Tolerance {
    let default = Tolerance::default();
    if args.rtol.is_some() || args.atol.is_some() {
        let (rtol, atol) = (args.rtol.unwrap_or(default.rtol), args.atol.unwrap_or(default.atol));
        return Tolerance { rtol, atol, ..default };
    }
    let device = Counts::of(session).device();
    let (on_cpu, on_gpu) = (device != "gpu", device != "cpu");
    match args.device.precision.as_str() {
        "bf16" if on_cpu && machine.cpu_bf16() || on_gpu && machine.gpu_bf16 => {
            Tolerance::of_rounding(8, 2, depth)
        }
        // What leaving out a product does is, in the mean, what rounding an operand does.
        "bf16x2" if on_cpu => Tolerance::of_rounding(17, 3, depth),
        "tf32" | "fp16" if on_gpu => Tolerance::of_rounding(11, 2, depth),
        _ => default,
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
    let of_rms = d.plans.iter().map(|p| p.tolerance.of_rms).fold(0.0, f64::max);
    let of_rms = match of_rms {
        0.0 => String::new(),
        share => {
            let digits = if share < 1e-3 { 3 } else { 1 };
            format!(", {:.digits$} % of each output's root mean square", share * 100.0)
        }
    };
    let classes = d.agreement.as_ref().map_or(String::new(), |a| {
        let (agree, samples, share) = (a.agree, a.samples, a.share * 100.0);
        format!("highest class as in exact fp32: {agree} of {samples} samples ({share:.1} %)\n")
    });
    let table = table.render();
    format!("{table}{verdict} (rtol {:e}, atol {:e}{of_rms})\n{classes}", d.rtol, d.atol)
}
