//! How many published latencies the device profiles predict within a quarter: pinned, so that a
//! change of the cost model, of the profiles or of the passes shows. With SPAROA_PRINT_TABLES set
//! it prints the tables of docs/devices.md.

use std::sync::Arc;

use sparoa_core::{
    ir::{Shapes, passes, specialize},
    profile::{DeviceProfile, Precision, Prediction, Workload, predict_ms, predictions},
    schedule::Subject,
    zoo,
};

fn models() -> Vec<(&'static str, Vec<Workload>)> {
    zoo::list()
        .iter()
        .map(|entry| {
            let model = zoo::build(entry.name).expect("listed");
            let graph = specialize(&model, &Shapes::new()).expect("concrete").graph;
            (entry.name, Subject::new(Arc::new(passes::optimize(graph))).workloads)
        })
        .collect()
}

#[test]
fn published_latencies_are_met_as_often_as_documented() {
    let models = models();
    let boards: Vec<DeviceProfile> =
        DeviceProfile::names().iter().map(|name| DeviceProfile::find(name).unwrap()).collect();
    let all: Vec<(&str, Prediction<'_>)> = boards
        .iter()
        .flat_map(|b| predictions(b, &models).into_iter().map(|p| (b.name.as_str(), p)))
        .collect();
    if std::env::var_os("SPAROA_PRINT_TABLES").is_some() {
        print_tables(&boards, &models, &all);
    }
    let count = |fit: bool| {
        let rows = all.iter().filter(|(_, p)| p.row.fit == fit);
        (rows.clone().filter(|(_, p)| p.holds()).count(), rows.count())
    };
    assert_eq!((count(true), count(false)), ((22, 23), (0, 5)), "update docs/devices.md");
}

fn print_tables(
    boards: &[DeviceProfile],
    models: &[(&str, Vec<Workload>)],
    all: &[(&str, Prediction<'_>)],
) {
    println!(
        "| board | processor | model | precision | threads | engine | mode | published ms | predicted ms | error | fitted |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (board, p) in all {
        let r = p.row;
        println!(
            "| {board} | {} | {} | {} | {} | {} | {} | {} | {:.3} | {:+.0} %{} | {} |",
            r.processor,
            r.model,
            r.precision,
            r.threads.map_or(String::new(), |n| n.to_string()),
            r.framework,
            r.power_mode.as_deref().unwrap_or(""),
            r.latency_ms,
            p.predicted_ms,
            p.error() * 100.0,
            if p.holds() { "" } else { " **miss**" },
            if r.fit { "yes" } else { "" },
        );
    }
    println!();
    for board in boards {
        for r in &board.related_latencies {
            let Some((_, work)) = models.iter().find(|(name, _)| *name == r.model) else {
                continue;
            };
            let ms = predict_ms(board, r, work);
            println!(
                "| {} | {} | {} | {} | {} | {} | {} | {ms:.3} |",
                board.name,
                r.hardware.as_deref().unwrap_or(""),
                r.processor,
                r.model,
                r.precision,
                r.framework,
                r.latency_ms,
            );
        }
    }
    println!();
    for board in boards {
        for (processor, gpu) in [("cpu", false), ("gpu", true)] {
            for precision in [Precision::Fp32, Precision::Fp16] {
                let machine = board.machine(precision);
                let ms = |work: &[Workload]| {
                    let ns = |w: &Workload| match gpu {
                        true => machine.gpu_cost(w).latency_ns,
                        false => machine.cpu_cost(w, w.sparsity).latency_ns,
                    };
                    work.iter().filter(|w| !w.view).map(ns).sum::<u64>() as f64 / 1e6
                };
                let cells: Vec<String> =
                    models.iter().map(|(_, work)| format!("{:.3}", ms(work))).collect();
                println!("| {} | {processor} | {precision} | {} |", board.name, cells.join(" | "));
            }
        }
    }
}
