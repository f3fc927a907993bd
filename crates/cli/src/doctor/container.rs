//! Limits of a container's control groups, against what the engine uses.

use sparoa::{ContainerLimits, monitor::allowed_cores};

use super::{Subject, Verdict};
use crate::table::scaled;

pub(super) fn cpus(subject: &Subject<'_>) -> Verdict {
    if !subject.root.join("proc/self/cgroup").exists() {
        return Verdict::unavailable("the system has no control groups");
    }
    let Some(limit) = ContainerLimits::read(subject.root).cpus else {
        return Verdict::ok("no limit");
    };
    let threads = subject.threads;
    let found = format!("{limit:.2} cores of time, for {threads} threads");
    let raise = "raise the limit (docker run --cpus, limits.cpu of Kubernetes, systemd CPUQuota)";
    if limit < threads as f64 {
        let fit = (limit as usize).max(1);
        return Verdict::problem(
            format!("{found}: all of them stop when it is used up"),
            format!("--threads {fit}, or {raise}"),
        );
    }
    let cores = allowed_cores(subject.root).map_or(threads, |cores| cores.len());
    if limit < cores as f64 {
        return Verdict::warn(format!("{found}, of {cores} cores"), raise);
    }
    Verdict::ok(found)
}

pub(super) fn memory(subject: &Subject<'_>) -> Verdict {
    if !subject.root.join("proc/self/cgroup").exists() {
        return Verdict::unavailable("the system has no control groups");
    }
    let Some(limit) = ContainerLimits::read(subject.root).memory_bytes else {
        return Verdict::ok("no limit");
    };
    let mut found = format!("limited to {}", scaled(limit as f64, "B"));
    if let Some(left) = subject.sensors.memory_available_bytes {
        found.push_str(&format!(", {} left", scaled(left as f64, "B")));
    }
    if limit < 512 << 20 {
        return Verdict::warn(
            format!("{found}: larger models are killed"),
            "raise the limit (docker run --memory, limits.memory of Kubernetes)",
        );
    }
    Verdict::ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Status::{Ok, Problem, Unavailable, Warn},
        testing::{check_cases, expect, machine, subject},
    };

    const CORES: (&str, &str) = ("proc/self/status", "Cpus_allowed_list:\t0-3\n");
    const MOUNTS: (&str, &str) =
        ("proc/self/mountinfo", "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    const GROUP: (&str, &str) = ("proc/self/cgroup", "0::/\n");
    const MAX: &str = "sys/fs/cgroup/cpu.max";
    const MEMORY: &str = "sys/fs/cgroup/memory.max";

    #[test]
    fn processor_time_against_threads() {
        check_cases(
            cpus,
            &[
                (&[], Unavailable, "no control groups", ""),
                (&[CORES, GROUP], Ok, "no limit", ""),
                (&[CORES, GROUP, MOUNTS, (MAX, "max 100000")], Ok, "no limit", ""),
                (&[CORES, GROUP, MOUNTS, (MAX, "DIR")], Ok, "no limit", ""),
                (&[CORES, GROUP, MOUNTS, (MAX, "400000 100000")], Ok, "4.00 cores", ""),
                (&[CORES, GROUP, MOUNTS, (MAX, "250000 100000")], Warn, "of 4 cores", "--cpus"),
                (&[CORES, GROUP, MOUNTS, (MAX, "150000 100000")], Problem, "1.50", "--threads 1"),
                (&[CORES, GROUP, MOUNTS, (MAX, "50000 100000")], Problem, "0.50", "--threads 1"),
            ],
        );
    }

    #[test]
    fn memory_of_the_container() {
        check_cases(
            memory,
            &[
                (&[], Unavailable, "no control groups", ""),
                (&[GROUP], Ok, "no limit", ""),
                (&[GROUP, MOUNTS, (MEMORY, "garbage")], Ok, "no limit", ""),
                (&[GROUP, MOUNTS, (MEMORY, "268435456")], Warn, "268 MB", "--memory"),
                (&[GROUP, MOUNTS, (MEMORY, "4294967296")], Ok, "4.29 GB", ""),
            ],
        );
        let root = machine(&[GROUP, MOUNTS, (MEMORY, "4294967296")]);
        let mut subject = subject(root.path());
        subject.sensors.memory_available_bytes = Some(1_000_000_000);
        expect(&memory(&subject), Ok, "1.00 GB left", "");
    }
}
