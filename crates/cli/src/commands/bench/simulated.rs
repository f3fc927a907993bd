//! What a machine without a GPU cannot show: the same model on a board that has one, simulated.

use sparoa::{EnergyMethod, Policy, Session, Subject};

use super::{Row, energy::Energy};
use crate::{
    error::CliResult,
    latency::LatencyMs,
    sessions::Counts,
    targets::{Question, Target, thresholds},
};

/// The board.
const BOARD: &str = "jetson-orin-nano";

/// Its policies.
const POLICIES: [Policy; 3] = [Policy::Cpu, Policy::Gpu, Policy::Auto];

/// Rows of a session's graph on the board in its nominal state; none at a precision that its
/// profile does not know.
///
/// # Errors
/// When the graph cannot be planned.
pub fn rows(model: &str, batch: usize, precision: &str, session: &Session) -> CliResult<Vec<Row>> {
    let Ok(target) = Target::find(BOARD, precision) else { return Ok(Vec::new()) };
    let subject = Subject::new(session.graph().clone());
    let profile = subject.profile(&target.machine);
    let thresholds = thresholds(&subject, &profile);
    let question = Question {
        subject: &subject,
        profile: &profile,
        pins: &[],
        objective: session.decision().objective,
        thresholds: &thresholds,
    };
    let mut rows: Vec<Row> = Vec::new();
    for policy in POLICIES {
        let answer = question.answer(policy)?;
        let ms = answer.timeline.makespan_ns as f64 / 1e6;
        let placement = Counts::of_plan(&answer.plan);
        let base = rows.first().map_or(ms, |cpu| cpu.latency_ms.p50);
        rows.push(Row {
            model: model.to_owned(),
            policy: policy.to_string(),
            batch,
            threads: target.board.cpu.cores.value as usize,
            device: placement.device(),
            simulated: true,
            target: Some(target.board.name.clone()),
            latency_ms: LatencyMs::constant(ms),
            throughput_ips: batch as f64 * 1e3 / ms,
            first_inference_ms: None,
            load_ms: None,
            peak_rss_bytes: None,
            energy: Energy {
                energy_j: answer.energy_j,
                average_w: answer.energy_j.map(|j| j * 1e3 / ms),
                energy_method: answer.energy_j.map(|_| EnergyMethod::Modelled),
                energy_sources: vec![format!("published watts of {}", target.board.name)],
                energy_covers: answer.energy_j.map(|_| "board".to_owned()),
                energy_note: None,
            },
            iterations: 0,
            placement,
            plan: answer.source,
            speedup: base / ms,
            precision: precision.to_owned(),
            batch_search: None,
            adaptation: None,
        });
    }
    Ok(rows)
}
