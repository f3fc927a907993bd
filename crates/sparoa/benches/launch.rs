//! What launching a whole model takes the host, on an NVIDIA GPU: the launch of its one segment
//! alone, and with the download of the outputs, which it ends with. The device is at rest before
//! each, so that no launch waits for room in a queue. Beside them the same of the model's first
//! operator alone: what the driver takes for any graph. All three in turns, since what a virtual
//! machine's cores are worth changes from second to second.
//!
//! `cargo bench -p sparoa --bench launch [-- MODEL..]`

use std::{sync::Arc, time::Instant};

use sparoa::{Accelerator, CudaBackend, CudaOptions, Policy, SessionBuilder, zoo};

const MODELS: [&str; 5] = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "vit_b_16", "swin_t"];
/// Turns, and launches of each.
const TURNS: usize = 20;
const LAUNCHES: usize = 50;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut named: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if named.is_empty() {
        named = MODELS.map(str::to_owned).into();
    }
    let backend: Arc<dyn Accelerator> = match CudaBackend::new(&CudaOptions::default()) {
        Ok(backend) => Arc::new(backend),
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    println!(
        "us: the median of a turn of {LAUNCHES} launches, the least and the middle of {TURNS} turns"
    );
    println!("| model | operators | launch | with its download | first operator alone |");
    println!("|---|---|---|---|---|");
    for name in named {
        let session = SessionBuilder::new(Arc::new(zoo::build(&name)?))
            .accelerator(backend.clone())
            .policy(Policy::Gpu)
            .build()?;
        let whole = session.engine().program_spec()?;
        let mut alone = whole.clone();
        alone.downloads.clear();
        alone.values.iter_mut().for_each(|value| value.downloads.clear());
        let mut first = alone.clone();
        first.tasks.truncate(1);
        first.segments = vec![0..1];
        first.values.clear();
        let operators = whole.tasks.len();
        let programs = [backend.load(alone)?, backend.load(whole)?, backend.load(first)?];
        let mut medians = [const { Vec::new() }; 3];
        for _ in 0..TURNS {
            for (program, medians) in programs.iter().zip(&mut medians) {
                let mut launches = Vec::new();
                for _ in 0..LAUNCHES {
                    program.wait_idle()?;
                    let start = Instant::now();
                    program.launch(0)?;
                    launches.push(start.elapsed());
                }
                program.wait_idle()?;
                launches.sort_unstable();
                medians.push(launches[LAUNCHES / 2].as_secs_f64() * 1e6);
            }
        }
        let text = medians.map(|mut medians| {
            medians.sort_unstable_by(f64::total_cmp);
            format!("{:.2}, {:.2}", medians[0], medians[TURNS / 2])
        });
        println!("| {name} | {operators} | {} |", text.join(" | "));
    }
    Ok(())
}
