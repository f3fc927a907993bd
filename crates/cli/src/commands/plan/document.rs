//! A plan as it is printed: of this machine or of one that is not here.

use serde::Serialize;
use sparoa::{
    Analysis, Device, Graph, GuardReport, Place, Placement, PlanFile, PowerSource, Profile,
    Quadrant, Thresholds,
};

use crate::{
    sessions::Counts,
    table::{Table, ms},
};

/// The document of `plan --json`.
#[derive(Serialize)]
pub struct Document {
    /// True where the plan is for a machine that is not here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// The device profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub plan: PlanFile,
    pub placement: Counts,
    /// What the placement comes from.
    pub source: String,
    pub predicted: Predicted,
    pub guard: Option<GuardReport>,
    pub fallback: Option<String>,
    /// What made the end of the model data-dependent: it is not part of a simulated plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dependent: Option<String>,
    pub nodes: Vec<Row>,
    pub files: Vec<String>,
    /// What to know about the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The simulated timeline.
#[derive(Serialize)]
pub struct Predicted {
    pub simulated: bool,
    pub makespan_ms: Option<f64>,
    /// The same if all kernels were dense; of models with pruned weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_makespan_ms: Option<f64>,
    pub cpu_only_ms: Option<f64>,
    pub gpu_only_ms: Option<f64>,
    /// Energy of an inference, where the machine's power is known.
    pub energy_j: Option<f64>,
    /// Over the makespan.
    pub average_w: Option<f64>,
    /// Where the watts come from: measured here, published for the target, or modelled.
    pub energy_method: Option<PowerSource>,
    pub cpu_only_j: Option<f64>,
    pub gpu_only_j: Option<f64>,
    pub copied_bytes_to_gpu: usize,
    pub copied_bytes_to_cpu: usize,
}

/// An operator.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub op_type: String,
    pub place: Place,
    pub cpu_ms: Option<f64>,
    pub gpu_ms: Option<f64>,
    pub intensity: f64,
    pub sparsity: f64,
    /// From where it counts as intense and as sparse.
    pub thresholds: Thresholds,
    /// Where it lies against them.
    pub quadrant: Quadrant,
    /// The method of its kernel on the CPU, where there are several.
    pub kernel: Option<&'static str>,
}

/// The operators of a placed graph.
pub fn rows(
    graph: &Graph,
    analysis: &Analysis,
    placement: &Placement,
    profile: Option<&Profile>,
    thresholds: &[Thresholds],
    kernel: impl Fn(sparoa::NodeId) -> Option<&'static str>,
) -> Vec<Row> {
    let cost = |id, device| {
        let cost = profile.and_then(|p| p.cost(id, device))?;
        Some(cost.part_ns(1.0) as f64 / 1e6)
    };
    graph
        .node_ids()
        .map(|id| {
            let n = analysis.node(id);
            let thresholds = thresholds[id.index()];
            Row {
                name: n.name.clone(),
                op_type: n.op_type.clone(),
                place: placement.places[id.index()],
                cpu_ms: cost(id, Device::Cpu),
                gpu_ms: cost(id, Device::Gpu),
                intensity: n.intensity(),
                sparsity: n.sparsity(),
                thresholds,
                quadrant: thresholds.quadrant(n),
                kernel: kernel(id),
            }
        })
        .collect()
}

impl Document {
    /// The document as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(target) = &self.target {
            text.push_str(&format!("simulated, for {target} (nothing here was measured)\n\n"));
        }
        text.push_str(&self.table());
        text.push_str(&self.summary());
        if let Some(cause) = &self.data_dependent {
            text.push_str(&format!("not planned, runs interpreted from here on: {cause}\n"));
        }
        if let Some(guard) = &self.guard {
            let metered = guard.entries.iter().any(|e| e.median_j().is_some());
            // Of the sensors, or the model's over measured times: the prediction says which.
            let joules = if metered { &["J"][..] } else { &[] };
            let header = [&["finalist", "predicted ms", "measured ms"], joules, &[""]].concat();
            let mut table = Table::new(&header);
            for (i, e) in guard.entries.iter().enumerate() {
                let mut row = vec![
                    e.name.clone(),
                    ms(e.predicted_ns as f64 / 1e6),
                    ms(e.median_ns() as f64 / 1e6),
                ];
                if metered {
                    row.push(e.median_j().map_or("-".to_owned(), |j| format!("{j:.4}")));
                }
                row.push(if i == guard.chosen { "chosen".to_owned() } else { String::new() });
                table.row(row);
            }
            text.push('\n');
            text.push_str(&table.render());
        }
        if let Some(why) = &self.fallback {
            text.push_str(&format!("fell back to the CPU: {why}\n"));
        }
        for file in &self.files {
            text.push_str(&format!("wrote {file}\n"));
        }
        if let Some(note) = &self.note {
            text.push_str(&format!("{note}\n"));
        }
        text
    }

    fn table(&self) -> String {
        let mut table = Table::new(&[
            "node",
            "operator",
            "place",
            "kernel",
            "cpu ms",
            "gpu ms",
            "I",
            "I*",
            "sparsity",
            "sparsity*",
            "quadrant",
        ]);
        for n in &self.nodes {
            table.row([
                n.name.clone(),
                n.op_type.clone(),
                match n.place {
                    Place::Split(share) => format!("split:{share:.2}"),
                    whole => whole.to_string(),
                },
                n.kernel.unwrap_or("").to_owned(),
                time(n.cpu_ms),
                time(n.gpu_ms),
                format!("{:.1}", n.intensity),
                format!("{:.1}", n.thresholds.intensity),
                format!("{:.2}", n.sparsity),
                format!("{:.2}", n.thresholds.sparsity),
                n.quadrant.to_string(),
            ]);
        }
        table.render()
            + "(* the thresholds from which an operator counts as intense and as sparse)\n"
    }

    fn summary(&self) -> String {
        let p = &self.predicted;
        let from = match self.simulated {
            true => "simulated from published figures",
            false => "simulated from measured operators",
        };
        let mut text = format!(
            "\n{}: {} on the CPU, {} on the GPU, {} split; predicted {} ms ({from}; cpu alone {}, \
             gpu alone {})\n",
            self.source,
            self.placement.cpu,
            self.placement.gpu,
            self.placement.split,
            time(p.makespan_ms),
            time(p.cpu_only_ms),
            time(p.gpu_only_ms),
        );
        if let (Some(energy), Some(watts), Some(method)) =
            (p.energy_j, p.average_w, p.energy_method)
        {
            let joules = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.4}"));
            text.push_str(&format!(
                "energy {energy:.4} J ({method}) per inference, {watts:.1} W on average (simulated \
                 likewise; cpu alone {}, gpu alone {} J)\n",
                joules(p.cpu_only_j),
                joules(p.gpu_only_j),
            ));
        }
        if let (Some(sparse), Some(dense)) = (p.makespan_ms, p.dense_makespan_ms) {
            text.push_str(&format!(
                "with dense kernels only: {} ms (simulated likewise), {:.2} times as long\n",
                ms(dense),
                dense / sparse
            ));
        }
        text
    }
}

fn time(v: Option<f64>) -> String {
    v.map_or("-".to_owned(), ms)
}
