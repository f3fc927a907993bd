//! `sparoa devices`.

use serde::Serialize;
use sparoa::DeviceInfo;

use crate::{
    args::DeviceArgs,
    environment::Environment,
    error::CliResult,
    output::Output,
    sessions::Machine,
    table::{Table, scaled},
};

#[derive(Serialize)]
struct Document {
    devices: Vec<DeviceInfo>,
    gpu_unavailable: Option<String>,
    environment: Environment,
}

/// Lists processors.
///
/// # Errors
/// Device errors, where a processor was asked for that is absent.
pub fn run(args: &DeviceArgs, out: &Output) -> CliResult {
    let machine = Machine::open(args)?;
    let mut devices = vec![machine.cpu.clone()];
    devices.extend(machine.gpu.as_ref().map(|g| g.info().clone()));
    let document = Document {
        environment: Environment::read(devices.clone()),
        devices,
        gpu_unavailable: machine.gpu_unavailable.clone(),
    };
    out.print(&document, || {
        let mut table = Table::new(&["device", "name", "driver", "memory", "features"]);
        for d in &document.devices {
            let mut features = d.features.clone();
            features.extend(d.threads.map(|t| format!("{t} threads")));
            if d.software {
                features.push("software (emulated on the CPU)".to_owned());
            }
            if d.unified_memory {
                features.push("shares the CPU's memory".to_owned());
            }
            table.row([
                d.device.to_string(),
                d.name.clone(),
                d.driver.clone(),
                d.memory_bytes.map_or("-".to_owned(), |b| scaled(b as f64, "B")),
                features.join(", "),
            ]);
        }
        let mut text = table.render();
        if let Some(why) = &document.gpu_unavailable {
            text.push_str(&format!("gpu     {why}\n"));
        }
        text
    })
}
