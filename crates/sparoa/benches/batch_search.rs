//! The search for a batch against trying all of them: every built-in model (or those named), CPU,
//! two threads. A sweep measures each batch in 1 to 16, 24 and 32; then the batch that the search
//! chose and the best of the sweep are measured in turns, so that a drift of the machine meets
//! both. Prints throughput of the choice over that of the best: at 1 the search lost nothing.

use std::{sync::Arc, time::Duration};

use sparoa::{
    BatchLimits, Model, Policy, Pool, ProbeOptions, Session, SessionBuilder, SessionError,
    find_batch, measure_batch, zoo,
};

const MODELS: [&str; 5] = ["mobilenet_v3_small", "mobilenet_v2", "resnet18", "swin_t", "vit_b_16"];
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut named: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if named.is_empty() {
        named = MODELS.map(str::to_owned).into();
    }
    let pool = Arc::new(Pool::new(2));
    println!("| model | probes (batch: ms) | chosen | best of the sweep | choice / best |");
    println!("|---|---|---|---|---|");
    for name in named {
        let model = Arc::new(zoo::build(&name)?);
        let build = |batch| build(&model, &pool, batch);
        let choice = find_batch(&BatchLimits { most: 32, ..BatchLimits::default() }, |batch| {
            measure_batch(&mut build(batch)?, &ProbeOptions::default())
        })?;
        let quick = ProbeOptions {
            runs: 3,
            time: Duration::from_millis(200),
            most: Duration::from_secs(2),
        };
        let mut best = (1, 0.0);
        for batch in (1..=16).chain([24, 32]) {
            let rate = rate(&mut build(batch)?, batch, &quick)?;
            if rate > best.1 {
                best = (batch, rate);
            }
        }
        let mut ratios = vec![1.0];
        if choice.batch != best.0 {
            let (mut ours, mut theirs) = (build(choice.batch)?, build(best.0)?);
            ratios.clear();
            for _ in 0..ROUNDS {
                let (a, b) =
                    (rate(&mut ours, choice.batch, &quick)?, rate(&mut theirs, best.0, &quick)?);
                ratios.push(a / b);
            }
        }
        ratios.sort_by(f64::total_cmp);
        let probes: Vec<String> = choice
            .probes
            .iter()
            .filter_map(|p| {
                let ms = p.outcome.as_ref().ok()?.latency_ns as f64 / 1e6;
                Some(format!("{}: {ms:.2}", p.batch))
            })
            .collect();
        println!(
            "| {name} | {} | {} | {} | {:.3} ({:.3}-{:.3}) |",
            probes.join(", "),
            choice.batch,
            best.0,
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
    Ok(())
}

fn build(model: &Arc<Model>, pool: &Arc<Pool>, batch: usize) -> Result<Session, SessionError> {
    SessionBuilder::new(model.clone()).pool(pool.clone()).policy(Policy::Cpu).batch(batch).build()
}

/// Images per second.
fn rate(session: &mut Session, batch: usize, options: &ProbeOptions) -> Result<f64, SessionError> {
    Ok(batch as f64 * 1e9 / measure_batch(session, options)?.latency_ns as f64)
}
