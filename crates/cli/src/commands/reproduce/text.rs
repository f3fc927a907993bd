//! The tables as text.

use sparoa::Policy;

use super::{
    document::{Document, Figures, PAPER, TargetRows},
    rows::PolicyRow,
};
use crate::table::{Table, ms};

/// The document as text.
pub fn text(d: &Document) -> String {
    let mut text = format!(
        "simulated: every figure comes from published figures of the boards, none was measured.\n\
         Means over {} states of the hardware (seed {}): load of others on CPU and GPU, power \
         mode, temperature.\nAll but sac are planned once, for the idle board; sac: {}.\n",
        d.states, d.seed, d.sac
    );
    for t in &d.targets {
        text.push_str(&format!("\n{} (simulated), ms per inference, fp32, batch 1\n", t.target));
        text.push_str(&table(t, |row| Some(ms(row.latency_ms))));
    }
    for t in &d.targets {
        text.push_str(&format!(
            "\n{} (simulated), ms if every policy plans anew in every state\n",
            t.target
        ));
        text.push_str(&table(t, |row| Some(ms(row.replanned_latency_ms))));
        text.push_str(&format!("\n{} (simulated), J per inference\n", t.target));
        text.push_str(&table(t, |row| row.energy_j.map(|j| format!("{j:.4}"))));
    }
    for t in &d.pruned {
        text.push_str(&format!("\n{} (simulated), ms, 90 % of the weights zero\n", t.target));
        text.push_str(&table(t, |row| Some(ms(row.latency_ms))));
    }
    text.push_str("\nsummary (simulated) beside the paper's figures\n");
    text.push_str(&summary(d));
    for s in &d.summary.settings {
        text.push_str(&format!("{}: {}\n", s.setting.name(), s.says));
        for note in &s.assumed {
            text.push_str(&format!("  {note}\n"));
        }
    }
    text
}

/// Models by policies.
fn table(t: &TargetRows, cell: impl Fn(&PolicyRow) -> Option<String>) -> String {
    let Some(first) = t.models.first() else { return String::new() };
    let mut header = vec!["model"];
    header.extend(first.policies.0.iter().map(|(name, _)| name.as_str()));
    let mut table = Table::new(&header);
    for m in &t.models {
        let cells = m.policies.0.iter().map(|(_, row)| cell(row).unwrap_or("-".to_owned()));
        table.row(std::iter::once(m.model.clone()).chain(cells));
    }
    table.render()
}

/// A figure: what it is, its value in a setting, the paper's.
type Figure = (String, Box<dyn Fn(&Figures) -> Option<String>>, String);

/// The figures by setting; also for the page.
pub fn summary_rows(d: &Document) -> Vec<Vec<String>> {
    let times = |v: f64| format!("{v:.2}");
    let percent = |v: f64| format!("{:.1} %", v * 100.0);
    let [low, high] = PAPER.mean_speedup_over_baselines;
    let [least, most] = PAPER.energy_saving_vs_best_coexecution;
    let mut figures: Vec<Figure> = vec![
        (
            "mean speed-up over baselines planned once".to_owned(),
            Box::new(move |f| Some(times(f.mean_speedup_over_baselines))),
            format!("{low}-{high}"),
        ),
        (
            "over baselines planned anew in every state".to_owned(),
            Box::new(move |f| Some(times(f.mean_speedup_over_replanned_baselines))),
            "-".to_owned(),
        ),
        (
            "greatest speed-up over the CPU alone".to_owned(),
            Box::new(move |f| Some(times(f.max_speedup_over_cpu))),
            PAPER.max_speedup_over_cpu.to_string(),
        ),
        (
            format!("energy saved against {}", Policy::Codl),
            Box::new(move |f| f.energy_saving_vs_best_coexecution.map(percent)),
            format!("{:.0}-{:.0} %", least * 100.0, most * 100.0),
        ),
    ];
    for (name, _) in &d.summary.main.speedup_over.0 {
        let name = *name;
        let of = move |f: &Figures| f.speedup_over.0.iter().find(|(n, _)| *n == name).map(|p| p.1);
        figures.push((
            format!("mean speed-up over {name}"),
            Box::new(move |f| of(f).map(times)),
            "-".to_owned(),
        ));
    }
    for (name, _) in &d.summary.main.ablations.0 {
        let name = *name;
        let of = move |f: &Figures| f.ablations.0.iter().find(|(n, _)| *n == name).map(|p| p.1);
        figures.push((
            format!("time with {name}, over sac's"),
            Box::new(move |f| of(f).map(times)),
            "-".to_owned(),
        ));
    }
    figures
        .into_iter()
        .map(|(what, value, paper)| {
            let settings = d.summary.settings.iter();
            let values = settings.map(|s| value(&s.figures).unwrap_or("-".to_owned()));
            std::iter::once(what).chain(values).chain([paper]).collect()
        })
        .collect()
}

fn summary(d: &Document) -> String {
    let mut header = vec!["figure"];
    header.extend(d.summary.settings.iter().map(|s| s.setting.name()));
    header.push("paper");
    let mut table = Table::new(&header);
    for row in summary_rows(d) {
        table.row(row);
    }
    table.render()
}
