//! The CPU's cores: which of them this process has, what they can, who else uses them.

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use sparoa::monitor::{allowed_cores, parse_list};

use super::{Subject, Verdict, tree::text};

const CPU: &str = "sys/devices/system/cpu";

fn numbers(list: &[usize]) -> String {
    list.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

pub(super) fn threads(subject: &Subject<'_>) -> Verdict {
    let allowed = allowed_cores(subject.root).unwrap_or_default();
    // The first hardware thread of each physical core, of those that are allowed.
    let mut first = Vec::new();
    for &core in &allowed {
        let path = format!("{CPU}/cpu{core}/topology/thread_siblings_list");
        let Some(siblings) = text(subject.root, path).as_deref().and_then(parse_list) else {
            return Verdict::unavailable(format!(
                "{} threads are used; the system does not tell which share a core",
                subject.threads
            ));
        };
        if siblings.iter().find(|s| allowed.contains(s)) == Some(&core) {
            first.push(core);
        }
    }
    if first.is_empty() {
        return Verdict::unavailable("the system does not tell which cores may be used");
    }
    let cores = first.len();
    let found = format!("{} threads are used, on {cores} physical cores", subject.threads);
    if subject.threads > cores {
        let list = numbers(&first);
        return Verdict::warn(
            format!("{found}: threads of one core share its arithmetic units"),
            format!(
                "try --threads {cores} --cpus {list} and keep what `sparoa bench` finds faster"
            ),
        );
    }
    Verdict::ok(found)
}

pub(super) fn affinity(subject: &Subject<'_>) -> Verdict {
    let list =
        |file: &str| text(subject.root, format!("{CPU}/{file}")).as_deref().and_then(parse_list);
    let (Some(allowed), Some(online)) = (allowed_cores(subject.root), list("online")) else {
        return Verdict::unavailable("the system does not tell");
    };
    if allowed.len() < online.len() {
        return Verdict::warn(
            format!("this process may use {} of {} cores", allowed.len(), online.len()),
            "a cpuset (docker --cpuset-cpus, systemd AllowedCPUs), taskset or --cpus restricts it; \
             lift it, or leave it if the other cores are meant for others",
        );
    }
    let present = list("present").map_or(0, |p| p.len());
    if online.len() < present {
        return Verdict::warn(
            format!("{} of {present} cores are offline", present - online.len()),
            "a power mode may do that (Jetson: sudo nvpmodel -m 0), or somebody: \
             echo 1 | sudo tee /sys/devices/system/cpu/cpu*/online",
        );
    }
    Verdict::ok(format!("all {} cores", online.len()))
}

pub(super) fn load(subject: &Subject<'_>) -> Verdict {
    let sensors = &subject.sensors;
    let Some(busy) = sensors.cpu_busy else {
        return Verdict::unavailable("the system does not tell");
    };
    let mut found = format!("others take {:.0} % of our cores", busy * 100.0);
    if let Some(wait) = sensors.cpu_wait {
        found.push_str(&format!("; our threads wait {:.0} % of their time", wait * 100.0));
    }
    let advice = "see who: ps -eo pcpu,pid,args --sort=-pcpu | head; stop them, or keep cores free \
                  of them with --cpus; measure when the machine is quiet";
    // A tenth of a second has few clock ticks: below this it may be chance.
    match busy.max(sensors.cpu_wait.unwrap_or(0.0)) {
        share if share > 0.5 => Verdict::problem(found, advice),
        share if share > 0.15 => Verdict::warn(found, advice),
        _ => Verdict::ok(found),
    }
}

/// Nanoseconds from which on two cores count as far apart: cores of one chip take 15 to 80.
const FAR_NS: f64 = 120.0;

pub(super) fn distance(subject: &Subject<'_>) -> Verdict {
    let Some(ns) = subject.transfer_ns else {
        return Verdict::unavailable("one thread is used");
    };
    let found = format!("a thread sees after {ns:.0} ns what another wrote");
    if ns < FAR_NS {
        return Verdict::ok(found);
    }
    Verdict::warn(
        format!(
            "{found}: their cores share no cache, and small models gain little from a second one"
        ),
        "--cpus with cores that share a last-level cache (lscpu -e shows which); a virtual machine's cores \
         may move apart at any time: ask its host for cores of one socket, or compare with --threads 1",
    )
}

/// The shortest mean time over some hundred transfers of a cache line between two threads, in nanoseconds.
pub(super) fn transfer_ns() -> f64 {
    const TRANSFERS: usize = 200;
    const LIMIT: Duration = Duration::from_millis(20);
    const DONE: usize = usize::MAX;
    let turn = AtomicUsize::new(0);
    // Waits while it is the turn of the other, one of odd and even.
    let wait = |other: usize| loop {
        match turn.load(Ordering::Acquire) {
            at if at == DONE || at % 2 != other => break at,
            _ => spin_loop(),
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match wait(0) {
                    DONE => break,
                    at => turn.store(at + 1, Ordering::Release),
                }
            }
        });
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        while start.elapsed() < LIMIT || best.is_infinite() {
            let one = Instant::now();
            for _ in 0..TRANSFERS / 2 {
                turn.fetch_add(1, Ordering::Release);
                wait(1);
            }
            best = best.min(one.elapsed().as_nanos() as f64 / TRANSFERS as f64);
        }
        turn.store(DONE, Ordering::Release);
        best
    })
}

pub(super) fn isa_cap(subject: &Subject<'_>) -> Verdict {
    let (used, best) = subject.isa;
    if used < best {
        let found = format!("{used}, though this CPU has {best}: SPAROA_ISA caps it");
        return Verdict::warn(found, "unset SPAROA_ISA");
    }
    Verdict::ok(format!("{used}, the best of this CPU"))
}

/// The CPU's features, as the kernel names them.
fn flags(subject: &Subject<'_>) -> Option<Vec<String>> {
    let info = text(subject.root, "proc/cpuinfo")?;
    let line = info.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"))?;
    Some(line.split_once(':')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Feature, and what SparOA does with it; nothing for those that it has no kernels for.
const X86: [(&str, &str); 9] = [
    ("avx2", "fp32"),
    ("fma", "fp32"),
    ("avx_vnni", "int8"),
    ("avx512f", "fp32"),
    ("avx512_vnni", "int8"),
    ("avx512_bf16", "--precision bf16"),
    ("amx_tile", "fp32, and --precision bf16 or bf16x2"),
    ("amx_bf16", "fp32, and --precision bf16 or bf16x2"),
    ("amx_int8", ""),
];
const ARM: [(&str, &str); 4] = [("asimd", "fp32"), ("asimddp", "int8"), ("i8mm", ""), ("bf16", "")];

pub(super) fn features(subject: &Subject<'_>) -> Verdict {
    let Some(flags) = flags(subject) else {
        return Verdict::unavailable("/proc/cpuinfo does not tell");
    };
    let has = |feature: &str| flags.iter().any(|flag| flag == feature);
    let (known, base): (&[(&str, &str)], _) =
        if has("asimd") { (&ARM, has("asimd")) } else { (&X86, has("avx2") && has("fma")) };
    let list = |wanted: &dyn Fn(&&(&str, &str)) -> bool| {
        let names: Vec<&str> = known.iter().filter(wanted).map(|(f, _)| *f).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" ") }
    };
    let found = format!(
        "used: {}; lacking: {}; there and not used by SparOA: {}",
        list(&|(f, use_)| has(f) && !use_.is_empty()),
        list(&|(f, _)| !has(f)),
        list(&|(f, use_)| has(f) && use_.is_empty())
    );
    if !base {
        return Verdict::warn(
            format!("{found}; the kernels for narrow vectors are used"),
            "in a virtual machine pass the host's CPU through (QEMU: -cpu host); otherwise there \
             is nothing to set",
        );
    }
    Verdict::ok(found)
}

pub(super) fn virtual_machine(subject: &Subject<'_>) -> Verdict {
    let Some(flags) = flags(subject) else {
        return Verdict::unavailable("/proc/cpuinfo does not tell");
    };
    // ARM kernels have no such flag; the firmware's name is a sign.
    let maker = ["sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name"]
        .into_iter()
        .filter_map(|path| text(subject.root, path))
        .find(|name| ["QEMU", "KVM", "VMware", "Virtual", "Xen"].iter().any(|v| name.contains(v)));
    if flags.iter().any(|f| f == "hypervisor") || maker.is_some() {
        let maker = maker.map_or(String::new(), |name| format!(" ({name})"));
        return Verdict::warn(
            format!(
                "this is a virtual machine{maker}: its host takes time unseen, timings are noisy"
            ),
            "compare medians of runs that alternate, as `sparoa bench` does within one command; for \
             steady latencies use dedicated cores or the bare machine",
        );
    }
    Verdict::ok("no sign of one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Status::{Ok, Problem, Unavailable, Warn},
        testing::{check_cases, expect, machine, subject},
    };
    use sparoa::isa::Isa;

    const CORES: (&str, &str) = ("proc/self/status", "Cpus_allowed_list:\t0-1\n");
    const CPU0: &str = "sys/devices/system/cpu/cpu0/topology/thread_siblings_list";
    const CPU1: &str = "sys/devices/system/cpu/cpu1/topology/thread_siblings_list";

    #[test]
    fn threads_that_share_a_core() {
        check_cases(
            threads,
            &[
                (&[], Unavailable, "may be used", ""),
                (&[CORES, (CPU0, "0")], Unavailable, "2 threads are used", ""),
                (&[CORES, (CPU0, "0"), (CPU1, "DIR")], Unavailable, "does not tell", ""),
                (&[CORES, (CPU0, "0"), (CPU1, "1")], Ok, "on 2 physical cores", ""),
                (&[CORES, (CPU0, "0-1"), (CPU1, "0-1")], Warn, "on 1 physical", "--cpus 0 "),
                // The other thread of each core is not ours.
                (&[CORES, (CPU0, "0,2"), (CPU1, "1,3")], Ok, "on 2 physical cores", ""),
            ],
        );
    }

    #[test]
    fn cores_that_are_missing() {
        let online = |list| ("sys/devices/system/cpu/online", list);
        let present = |list| ("sys/devices/system/cpu/present", list);
        check_cases(
            affinity,
            &[
                (&[], Unavailable, "does not tell", ""),
                (&[CORES, online("x")], Unavailable, "does not tell", ""),
                (&[CORES, online("0-1")], Ok, "all 2", ""),
                (&[CORES, online("0-1"), present("0-1")], Ok, "all 2", ""),
                (&[CORES, online("0-7")], Warn, "2 of 8", "cpuset"),
                (&[CORES, online("0-1"), present("0-5")], Warn, "4 of 6", "nvpmodel"),
            ],
        );
    }

    #[test]
    fn load_of_others() {
        let root = machine(&[]);
        for (busy, wait, status, found) in [
            (None, Some(0.9), Unavailable, "does not tell"),
            (Some(0.02), None, Ok, "2 %"),
            (Some(0.02), Some(0.01), Ok, "wait 1 %"),
            (Some(0.3), None, Warn, "30 %"),
            (Some(0.1), Some(0.4), Warn, "wait 40 %"),
            (Some(0.7), Some(0.4), Problem, "70 %"),
        ] {
            let mut subject = subject(root.path());
            subject.sensors.cpu_busy = busy;
            subject.sensors.cpu_wait = wait;
            expect(&load(&subject), status, found, "");
        }
    }

    #[test]
    fn cores_that_are_far_apart() {
        let root = machine(&[]);
        for (ns, status, found) in [
            (None, Unavailable, "one thread"),
            (Some(31.4), Ok, "after 31 ns"),
            (Some(172.0), Warn, "172 ns what another wrote: their cores share no cache"),
        ] {
            let subject = super::Subject { transfer_ns: ns, ..subject(root.path()) };
            expect(&distance(&subject), status, found, "");
        }
        let ns = transfer_ns();
        assert!(ns.is_finite() && ns > 0.0, "{ns}");
    }

    #[test]
    fn caps_of_the_instruction_set() {
        let root = machine(&[]);
        let mut subject = subject(root.path());
        subject.isa = (Isa::Avx2, Isa::Avx512);
        expect(&isa_cap(&subject), Warn, "avx2, though this CPU has avx512", "unset");
        subject.isa = (Isa::Avx512, Isa::Avx512);
        expect(&isa_cap(&subject), Ok, "avx512", "");
    }

    #[test]
    fn features_of_both_families() {
        let file = "proc/cpuinfo";
        check_cases(
            features,
            &[
                (&[], Unavailable, "cpuinfo", ""),
                (&[(file, "DIR")], Unavailable, "cpuinfo", ""),
                (&[(file, "model name : x\n")], Unavailable, "cpuinfo", ""),
                (&[(file, "flags : sse2 sse4_1\n")], Warn, "used: none", "-cpu host"),
                (
                    &[(file, "flags\t\t: fma avx2 amx_tile amx_int8\n")],
                    Ok,
                    "used: avx2 fma amx_tile; lacking: avx_vnni avx512f avx512_vnni avx512_bf16 \
                     amx_bf16; there and not used by SparOA: amx_int8",
                    "",
                ),
                (
                    &[(file, "Features\t: fp asimd asimddp\n")],
                    Ok,
                    "used: asimd asimddp; lacking: i8mm bf16; there and not used by SparOA: none",
                    "",
                ),
            ],
        );
    }

    #[test]
    fn virtual_machines() {
        let file = "proc/cpuinfo";
        let maker = "sys/class/dmi/id/sys_vendor";
        check_cases(
            virtual_machine,
            &[
                (&[], Unavailable, "cpuinfo", ""),
                (&[(file, "flags : fma\n")], Ok, "no sign", ""),
                (&[(file, "flags : fma hypervisor\n")], Warn, "noisy", "medians"),
                (&[(file, "Features : asimd\n"), (maker, "QEMU\n")], Warn, "(QEMU)", "medians"),
            ],
        );
    }
}
