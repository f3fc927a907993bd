//! `sparoa plan --target`: the plan for a machine that is not here. Nothing is measured and no
//! engine is made.

use sparoa::{
    Hardware, NodeId, Pin, PinTo, PlanFile, Policy, Pool, SKIPPING, SPARSE, Subject, TraceSource,
    ValueInfo, Workload, available_threads, chrome_trace, dot, resolve_pins, simulate,
};

use super::{
    annotated,
    document::{Document, Predicted, rows},
};
use crate::{
    args::PlanArgs,
    error::{CliError, CliResult, Kind},
    inputs,
    output::{Output, write_file},
    progress::Bars,
    sessions::{BuildRequest, Counts},
    targets::{Question, Simulated, Target, subject, thresholds},
};

/// Plans, prints and writes what was asked for.
///
/// # Errors
/// Unknown targets and what they cannot tell; model errors.
pub fn run(name: &str, args: &PlanArgs, out: &Output) -> CliResult {
    let target = Target::find(name, &args.device.precision)?;
    let policy: Policy =
        args.policy.parse().map_err(|e| CliError::usage(format!("--policy: {e}")))?;
    let mut request = BuildRequest::new(&args.model.model, &args.model.shape)?;
    request.with_policy_args(&args.policy_args)?;
    refuse_kernels(&request.pins)?;
    let bars = Bars::new(out);
    let spinner = bars.spinner(&args.model.model);
    let (mut subject, data_dependent) = subject(&request)?;
    if let Some(folder) = &args.calibrate {
        let inputs = ValueInfo::inputs_of(&subject.graph);
        let samples = inputs::calibration(folder, &inputs, args.normalize)?;
        subject
            .calibrate(&samples, &Pool::new(available_threads()))
            .map_err(|e| CliError::new(Kind::Input, e))?;
    }
    let profile = subject.profile(&target.machine);
    let pins =
        resolve_pins(&subject.graph, &subject.support, &request.pins).map_err(CliError::usage)?;
    let thresholds = thresholds(&subject, &profile);
    let question = Question {
        subject: &subject,
        profile: &profile,
        pins: &pins,
        objective: request.objective,
        thresholds: &thresholds,
    };
    let chosen = question.answer(policy)?;
    let alone = Question { pins: &[], ..question };
    let (cpu, gpu) = (alone.answer(Policy::Cpu)?, alone.answer(Policy::Gpu)?);
    spinner.finish_and_clear();

    let mut plan =
        PlanFile::new(&subject.graph, &chosen.placement, hardware(&target), Some(&profile));
    plan.policy = policy.to_string();
    plan.objective = request.objective.to_string();
    plan.pins = request.pins.iter().map(ToString::to_string).collect();
    plan.predicted_ns = Some(chosen.timeline.makespan_ns);
    let files = write(args, &request, &subject, &chosen, &profile, &plan)?;
    let ms = |s: &Simulated| Some(s.timeline.makespan_ns as f64 / 1e6);
    let (to_gpu, to_cpu) = chosen.plan.copied_bytes();
    let document = Document {
        simulated: true,
        target: Some(target.board.name.clone()),
        placement: Counts::of_plan(&chosen.plan),
        predicted: Predicted {
            simulated: true,
            makespan_ms: ms(&chosen),
            dense_makespan_ms: dense_makespan_ms(&target, &subject, &chosen),
            cpu_only_ms: ms(&cpu),
            gpu_only_ms: ms(&gpu),
            energy_j: chosen.energy_j,
            average_w: chosen.energy_j.map(|j| j * 1e9 / chosen.timeline.makespan_ns as f64),
            energy_method: profile.power.map(|power| power.source),
            cpu_only_j: cpu.energy_j,
            gpu_only_j: gpu.energy_j,
            copied_bytes_to_gpu: to_gpu,
            copied_bytes_to_cpu: to_cpu,
        },
        guard: None,
        fallback: None,
        data_dependent,
        nodes: rows(
            &subject.graph,
            &subject.analysis,
            &chosen.placement,
            Some(&profile),
            &thresholds,
            |id: NodeId| skipping(&target, &subject.workloads[id.index()]),
        ),
        source: chosen.source,
        note: args.output.as_ref().map(|_| {
            let name = &target.board.name;
            format!("the plan file is simulated, for {name}: `run --plan` refuses it")
        }),
        plan,
        files,
    };
    out.print(&document, || document.text())
}

/// Which kernel is faster is measured where it runs; the profiles only estimate it.
fn refuse_kernels(pins: &[Pin]) -> CliResult {
    match pins.iter().find(|pin| matches!(pin.to, PinTo::Kernel(_))) {
        None => Ok(()),
        Some(pin) => Err(CliError::usage(format!(
            "--pin '{pin}': with --target only places can be pinned, write GLOB=cpu, GLOB=gpu or \
             GLOB=split:0.5"
        ))),
    }
}

/// The board, as plan files name machines. A machine that runs plans has another name, so that
/// `run --plan` refuses the file instead of running a plan that nobody has measured.
fn hardware(target: &Target) -> Hardware {
    let board = &target.board;
    Hardware {
        cpu: format!("{}, {}", board.title, board.cpu.model),
        isa: "simulated".to_owned(),
        threads: board.cpu.cores.value as usize,
        gpu: format!("{} (simulated)", board.gpu.model),
    }
}

/// The kernel that the cost model takes where it skips zeros: of the weights, or of the input.
fn skipping(target: &Target, work: &Workload) -> Option<&'static str> {
    let machine = &target.machine;
    let cost =
        |sparsity, skipped| machine.cpu_cost(&Workload { skipped, ..work.clone() }, sparsity);
    match work.view {
        true => None,
        false if cost(work.sparsity, work.skipped) != cost(0.0, work.skipped) => Some(SPARSE),
        false => (cost(0.0, work.skipped) != cost(0.0, 0.0)).then_some(SKIPPING),
    }
}

/// What the plan would take with dense kernels only, where it has sparse ones.
fn dense_makespan_ms(target: &Target, subject: &Subject, chosen: &Simulated) -> Option<f64> {
    if !subject.workloads.iter().any(|w| skipping(target, w).is_some()) {
        return None;
    }
    let dense: Vec<Workload> = subject
        .workloads
        .iter()
        .map(|w| Workload { sparsity: 0.0, skipped: 0.0, ..w.clone() })
        .collect();
    let profile = target.machine.profile(&dense, &subject.gpu_runs);
    Some(simulate(&chosen.plan, &profile).makespan_ns as f64 / 1e6)
}

fn write(
    args: &PlanArgs,
    request: &BuildRequest,
    subject: &Subject,
    chosen: &Simulated,
    profile: &sparoa::Profile,
    plan: &PlanFile,
) -> CliResult<Vec<String>> {
    let mut files = Vec::new();
    if let Some(path) = &args.output {
        plan.write(path).map_err(CliError::input)?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &args.trace {
        let predicted = [TraceSource::Predicted(&chosen.timeline)];
        write_file(path, chrome_trace(&chosen.plan, &predicted))?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &args.dot {
        write_file(path, dot(&subject.graph, &chosen.placement, Some(profile)))?;
        files.push(path.display().to_string());
    }
    if let Some(path) = &args.onnx {
        let bytes = annotated(&subject.graph, &chosen.placement, Some(profile), request)?;
        write_file(path, bytes)?;
        files.push(path.display().to_string());
    }
    Ok(files)
}
