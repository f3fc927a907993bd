//! The checks as a whole: on an empty root, and their names.

use std::collections::BTreeSet;

use super::{
    testing::{machine, subject},
    *,
};

#[test]
fn on_a_machine_that_tells_nothing_every_check_answers() {
    let root = machine(&[]);
    let findings = findings(&subject(root.path()));
    assert_eq!(findings.len(), CHECKS.len());
    for f in &findings {
        let told = ["cpu-isa"].contains(&f.check);
        assert_eq!(f.status != Status::Unavailable, told, "{f:?}");
        assert!(!f.found.is_empty(), "{f:?}");
    }
    let names: BTreeSet<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), CHECKS.len(), "names are unique");
}

#[test]
fn a_sample_is_taken_while_threads_run() {
    let sensors = sample_busy(&mut Monitor::new(), 1);
    let share = sensors.cpu_busy;
    assert!(share.is_none_or(|s| (0.0..=1.0).contains(&s)), "{sensors:?}");
}
