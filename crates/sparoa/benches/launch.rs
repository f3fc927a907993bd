//! What launching a whole model takes the host, on an NVIDIA GPU: the launch of its one segment
//! alone, and with the download of the outputs, which is queued with it. The device is at rest
//! before each, so that no launch waits for room in a queue.
//!
//! `cargo bench -p sparoa --bench launch [-- MODEL..]`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sparoa::{Accelerator, CudaBackend, CudaOptions, Policy, SessionBuilder, zoo};

const MODELS: [&str; 5] = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "vit_b_16", "swin_t"];
const ROUNDS: usize = 500;

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
    println!("| model | operators | launch us (1 %, median, 99 %) | with its download us |");
    println!("|---|---|---|---|");
    for name in named {
        let session = SessionBuilder::new(Arc::new(zoo::build(&name)?))
            .accelerator(backend.clone())
            .policy(Policy::Gpu)
            .build()?;
        let spec = session.engine().program_spec()?;
        let mut alone = spec.clone();
        alone.downloads.clear();
        alone.values.iter_mut().for_each(|value| value.downloads.clear());
        let mut times = Vec::new();
        for spec in [alone, spec.clone()] {
            let program = backend.load(spec)?;
            let mut launches = Vec::new();
            for _ in 0..ROUNDS {
                program.wait_idle()?;
                let start = Instant::now();
                program.launch(0)?;
                launches.push(start.elapsed());
            }
            program.wait_idle()?;
            launches.sort_unstable();
            times.push(launches);
        }
        let text = |times: &[Duration]| {
            let us = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
            format!("{:.2}, {:.2}, {:.2}", us(1), us(50), us(99))
        };
        println!("| {name} | {} | {} | {} |", spec.tasks.len(), text(&times[0]), text(&times[1]));
    }
    Ok(())
}
