//! What `reproduce` finds, and its summary beside the paper's figures.

use serde::{Serialize, Serializer};
use sparoa::Policy;

use super::{
    play::{BASELINES, Board, STATIC},
    rows::{Played, PolicyRow, Rows},
    setting::Setting,
};

/// The document of `reproduce --json`.
#[derive(Serialize)]
pub struct Document {
    /// Always true.
    pub simulated: bool,
    /// States per board.
    pub states: u32,
    pub seed: u64,
    /// The policy behind `sac`; absent where another stands in.
    pub learned_policy: Option<&'static str>,
    /// What `sac` is.
    pub sac: String,
    /// In the main setting.
    pub targets: Vec<TargetRows>,
    /// The same of models with 90 % zeros.
    pub pruned: Vec<TargetRows>,
    pub summary: Summary,
}

/// A board's table.
#[derive(Serialize)]
pub struct TargetRows {
    pub target: String,
    pub title: String,
    pub models: Vec<ModelRows>,
}

/// A model's row.
#[derive(Serialize)]
pub struct ModelRows {
    pub model: String,
    pub policies: Rows,
}

impl TargetRows {
    /// The tables of the main setting, by board.
    pub fn of(boards: &[Board], played: Vec<Played>) -> Vec<TargetRows> {
        let mut tables: Vec<TargetRows> = boards
            .iter()
            .map(|b| TargetRows {
                target: b.name.clone(),
                title: b.title.clone(),
                models: Vec::new(),
            })
            .collect();
        for p in played {
            let Some(table) = tables.iter_mut().find(|t| t.target == p.target) else { continue };
            let policies = p.settings.into_iter().next().unwrap_or_default();
            table.models.push(ModelRows { model: p.model, policies });
        }
        tables.retain(|t| !t.models.is_empty());
        tables
    }
}

/// The figures beside the paper's.
#[derive(Serialize)]
pub struct Summary {
    /// Of the main setting.
    #[serde(flatten)]
    pub main: Figures,
    pub settings: Vec<SettingFigures>,
    pub paper: Paper,
}

/// Of one setting, over all boards and models.
#[derive(Serialize)]
pub struct SettingFigures {
    pub setting: Setting,
    pub says: &'static str,
    /// What had to be assumed about a board.
    pub assumed: Vec<String>,
    #[serde(flatten)]
    pub figures: Figures,
}

/// Speed-ups are times over those of `sac`.
#[derive(Clone, Serialize)]
pub struct Figures {
    /// Geometric mean over boards, models and baselines that were planned once.
    pub mean_speedup_over_baselines: f64,
    /// Over baselines that plan anew in every state.
    pub mean_speedup_over_replanned_baselines: f64,
    pub max_speedup_over_cpu: f64,
    /// Mean share of energy saved against `codl`, planned once.
    pub energy_saving_vs_best_coexecution: Option<f64>,
    /// Geometric means by baseline, and over the CPU alone.
    pub speedup_over: Named,
    /// Geometric means of the times of the learned policy without one of its parts, over its own.
    pub ablations: Named,
}

/// Numbers by name, in order.
#[derive(Clone, Debug, Default)]
pub struct Named(pub Vec<(&'static str, f64)>);

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// What the paper's abstract states. No result of this program.
#[derive(Clone, Copy, Serialize)]
pub struct Paper {
    pub source: &'static str,
    pub mean_speedup_over_baselines: [f64; 2],
    pub max_speedup_over_cpu: f64,
    pub energy_saving_vs_best_coexecution: [f64; 2],
}

/// See [`Paper`].
pub const PAPER: Paper = Paper {
    source: "arXiv:2511.19457",
    mean_speedup_over_baselines: [1.22, 1.31],
    max_speedup_over_cpu: 50.7,
    energy_saving_vs_best_coexecution: [0.07, 0.16],
};

impl Summary {
    /// Of the dense models.
    pub fn of(played: &[Played], boards: &[Board], ablations: &[&'static str]) -> Summary {
        let of = |(i, setting): (usize, Setting)| {
            let rows: Vec<&Rows> = played.iter().filter_map(|p| p.settings.get(i)).collect();
            SettingFigures {
                setting,
                says: setting.says(),
                assumed: boards.iter().filter_map(|b| b.machines[i].1.clone()).collect(),
                figures: Figures::of(&rows, ablations),
            }
        };
        let settings: Vec<SettingFigures> = Setting::ALL.into_iter().enumerate().map(of).collect();
        Summary { main: settings[0].figures.clone(), settings, paper: PAPER }
    }
}

impl Figures {
    fn of(rows: &[&Rows], ablations: &[&'static str]) -> Figures {
        // Pairs of another policy's row and sac's.
        let against = |name: &str| -> Vec<(PolicyRow, PolicyRow)> {
            let pair = |rows: &&Rows| Some((*rows.named(name)?, *rows.get(Policy::Sac)?));
            rows.iter().filter_map(pair).collect()
        };
        let planned = |(other, sac): &(PolicyRow, PolicyRow)| other.latency_ms / sac.latency_ms;
        let replanned =
            |(other, sac): &(PolicyRow, PolicyRow)| other.replanned_latency_ms / sac.latency_ms;
        let baselines: Vec<_> = BASELINES.iter().flat_map(|b| against(b.name())).collect();
        let speedups = |name: &str| -> Vec<f64> { against(name).iter().map(planned).collect() };
        let saved: Option<Vec<f64>> = against(Policy::Codl.name())
            .iter()
            .map(|(codl, sac)| Some(1.0 - sac.energy_j? / codl.energy_j?))
            .collect();
        let over = STATIC.into_iter();
        let mean = |name: &'static str| (name, geometric_mean(&speedups(name)));
        let over_baselines = |ratio: &dyn Fn(&(PolicyRow, PolicyRow)) -> f64| {
            geometric_mean(&baselines.iter().map(ratio).collect::<Vec<_>>())
        };
        Figures {
            mean_speedup_over_baselines: over_baselines(&planned),
            mean_speedup_over_replanned_baselines: over_baselines(&replanned),
            max_speedup_over_cpu: speedups(Policy::Cpu.name()).into_iter().fold(0.0, f64::max),
            energy_saving_vs_best_coexecution: saved
                .map(|all| all.iter().sum::<f64>() / all.len().max(1) as f64),
            speedup_over: Named(over.map(|policy| mean(policy.name())).collect()),
            ablations: Named(ablations.iter().map(|name| mean(name)).collect()),
        }
    }
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|v| v.ln()).sum::<f64>() / values.len().max(1) as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(latency_ms: f64, energy_j: f64) -> PolicyRow {
        PolicyRow {
            latency_ms,
            energy_j: Some(energy_j),
            replanned_latency_ms: latency_ms,
            decision_us: 1.0,
        }
    }

    #[test]
    fn the_cpu_is_apart_from_the_baselines() {
        let rows = |cpu, codl, sac| {
            let row = |name: &str, ms| (name.to_owned(), row(ms, ms));
            Rows(vec![row("cpu", cpu), row("codl", codl), row("sac", sac), row("no split", 2.0)])
        };
        let (a, b) = (rows(50.0, 2.0, 1.0), rows(10.0, 8.0, 4.0));
        let figures = Figures::of(&[&a, &b], &["no split"]);
        assert!((figures.mean_speedup_over_baselines - 2.0).abs() < 1e-9);
        assert_eq!(figures.max_speedup_over_cpu, 50.0);
        assert_eq!(figures.energy_saving_vs_best_coexecution, Some(0.5));
        assert_eq!(figures.speedup_over.0[0].0, "cpu");
        assert!((figures.ablations.0[0].1 - 1.0).abs() < 1e-9, "2/1 and 2/4");
    }
}
