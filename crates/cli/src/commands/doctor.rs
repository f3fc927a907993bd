//! `sparoa doctor`.

use serde::Serialize;

use crate::{
    args::DoctorArgs,
    doctor::{self, Finding, Status, of_status},
    environment::Environment,
    error::CliResult,
    output::Output,
    sessions::Machine,
    table::Table,
};

#[derive(Serialize)]
struct Document {
    findings: Vec<Finding>,
    environment: Environment,
}

/// Says what on this machine costs speed, and what to do.
///
/// # Errors
/// Device errors, where a processor was asked for that is absent.
pub fn run(args: &DoctorArgs, out: &Output) -> CliResult {
    let machine = Machine::open(&args.device, false)?;
    let examination = doctor::examine(&machine);
    let environment = Environment::of(&machine, &examination);
    let document = Document { findings: examination.findings, environment };
    out.print(&document, || text(&document.findings))
}

fn text(findings: &[Finding]) -> String {
    let mut table = Table::new(&["check", "status", "found"]);
    for f in findings {
        table.row([f.check.to_owned(), f.status.name().to_owned(), f.found.clone()]);
    }
    let mut text = table.render();
    let advised: Vec<_> = findings.iter().filter_map(|f| Some((f, f.advice.as_ref()?))).collect();
    if !advised.is_empty() {
        text.push_str("\nWhat to do:\n");
    }
    for (f, advice) in advised {
        text.push_str(&format!("  {}: {advice}\n", f.check));
    }
    let counts = [Status::Problem, Status::Warn, Status::Unavailable, Status::Ok]
        .map(|status| format!("{} {}", of_status(findings, status).count(), status.name()));
    text.push_str(&format!("\n{}\n", counts.join(", ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_follows_the_table() {
        let finding = |check, status, advice: Option<&str>| Finding {
            check,
            status,
            found: "something".to_owned(),
            advice: advice.map(str::to_owned),
        };
        let findings = [
            finding("a", Status::Warn, Some("turn it on")),
            finding("bcd", Status::Ok, None),
            finding("e", Status::Unavailable, None),
        ];
        assert_eq!(
            text(&findings),
            "check  status       found\n\
             a      warn         something\n\
             bcd    ok           something\n\
             e      unavailable  something\n\
             \nWhat to do:\n  a: turn it on\n\
             \n0 problem, 1 warn, 1 unavailable, 1 ok\n"
        );
        assert_eq!(
            text(&findings[1..2]),
            "check  status  found\nbcd    ok      something\n\n0 problem, 0 warn, 0 unavailable, 1 ok\n"
        );
    }
}
