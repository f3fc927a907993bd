//! Every policy on every model and board, in parallel: each pair is a task.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use sparoa::{
    Contest, Decides, HardwareState, MachineModel, Policy, ScheduleError, Scheduler, Subject,
    available_threads,
};

use super::{
    rows::{Played, PolicyRow, Rows},
    setting::Setting,
};
use crate::learned::{Ablation, learned};

/// The policies that are planned once, the CPU alone first.
pub const STATIC: [Policy; 8] = [
    Policy::Cpu,
    Policy::Gpu,
    Policy::Threshold,
    Policy::Greedy,
    Policy::Heft,
    Policy::Dp,
    Policy::Ios,
    Policy::Codl,
];

/// Those against which the mean speed-up is taken: all but the CPU alone.
pub const BASELINES: &[Policy] = STATIC.split_at(1).1;

/// A board with its states.
pub struct Board {
    /// The profile's name.
    pub name: String,
    /// Its name in words.
    pub title: String,
    /// States and for how many inferences each holds.
    pub states: Vec<(HardwareState, u32)>,
    /// By [`Setting::ALL`]: the board, and what was assumed.
    pub machines: [(MachineModel, Option<String>); 3],
}

/// A model.
pub struct Model {
    /// Its name in the zoo.
    pub name: String,
    /// Whether it belongs to the table of pruned models.
    pub pruned: bool,
    /// It, ready to be planned.
    pub subject: Subject,
}

/// Plays every policy under every setting.
///
/// # Errors
/// When a policy cannot place the model.
pub fn play(board: &Board, model: &Model, ablations: &[Ablation]) -> Result<Played, ScheduleError> {
    let mut settings = Vec::new();
    for (setting, (machine, _)) in Setting::ALL.into_iter().zip(&board.machines) {
        // The tables are those of the main setting; the summary of the others leaves out these.
        if model.pruned && setting != Setting::ALL[0] {
            continue;
        }
        settings.push(policies(board, model, machine, ablations)?);
    }
    Ok(Played {
        target: board.name.clone(),
        model: model.name.clone(),
        pruned: model.pruned,
        settings,
    })
}

fn policies(
    board: &Board,
    model: &Model,
    machine: &MachineModel,
    ablations: &[Ablation],
) -> Result<Rows, ScheduleError> {
    let learned = learned();
    let contest = Contest {
        subject: &model.subject,
        nominal: machine,
        states: &board.states,
        thresholds: &*learned.thresholds,
        learned: learned.policy.as_deref(),
    };
    let mut rows = Rows::default();
    for policy in STATIC {
        let scheduler = policy.scheduler();
        let once = contest.play(&*scheduler, Decides::Once)?;
        // A processor alone is the same plan in every state.
        let anew = match policy {
            Policy::Cpu | Policy::Gpu => once.clone(),
            _ => contest.play(&*scheduler, Decides::Always)?,
        };
        let row = PolicyRow {
            latency_ms: once.latency_ms,
            energy_j: once.energy_j,
            replanned_latency_ms: anew.latency_ms,
            decision_us: anew.decision_us,
        };
        rows.0.push((policy.to_string(), row));
    }
    let sac = Policy::Sac.scheduler();
    rows.0.push((Policy::Sac.to_string(), deciding(&contest, &*sac, Decides::Always)?));
    for ablation in ablations {
        let row = deciding(&contest, &*ablation.policy, ablation.decides)?;
        rows.0.push((ablation.name.to_owned(), row));
    }
    Ok(rows)
}

/// The learned policy, or what is left of it.
fn deciding(
    contest: &Contest<'_>,
    policy: &dyn Scheduler,
    decides: Decides,
) -> Result<PolicyRow, ScheduleError> {
    let outcome = contest.play(policy, decides)?;
    Ok(PolicyRow {
        latency_ms: outcome.latency_ms,
        energy_j: outcome.energy_j,
        replanned_latency_ms: outcome.latency_ms,
        decision_us: outcome.decision_us,
    })
}

/// What `work` makes of every item, in order; a thread per core.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..available_threads().min(items.len()) {
            scope.spawn(|| {
                while let Some((i, item)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    items.get(i).map(|item| (i, item))
                } {
                    let result = work(item);
                    done.lock().expect("no thread panics while it holds this").push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics while it holds this");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
