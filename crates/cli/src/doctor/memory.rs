//! Memory: what is left of it, and the size of its pages.

use sparoa::monitor::meminfo_field;

use super::{Subject, Verdict, tree::text};
use crate::table::scaled;

pub(super) fn available(subject: &Subject<'_>) -> Verdict {
    let sensors = &subject.sensors;
    let (Some(left), Some(total)) = (sensors.memory_available_bytes, sensors.memory_total_bytes)
    else {
        return Verdict::unavailable("the system does not tell");
    };
    let bytes = |n: u64| scaled(n as f64, "B");
    let mut found = format!("{} of {} left", bytes(left), bytes(total));
    let info = text(subject.root, "proc/meminfo").unwrap_or_default();
    let swap = meminfo_field(&info, "SwapTotal").zip(meminfo_field(&info, "SwapFree"));
    let swapped = swap.map_or(0, |(all, free)| all.saturating_sub(free));
    if swapped > 0 {
        found.push_str(&format!(", {} are swapped out", bytes(swapped)));
    }
    let pressure = sensors.memory_pressure.unwrap_or(0.0);
    let advice = "stop what else uses memory: ps -eo rss,pid,args --sort=-rss | head";
    if pressure > 0.1 || left < 256 << 20 {
        let found =
            format!("{found}; processes wait for memory {:.0} % of the time", pressure * 100.0);
        return Verdict::problem(found, advice);
    }
    if left < total / 10 {
        return Verdict::warn(format!("{found}: larger models will swap or be killed"), advice);
    }
    Verdict::ok(found)
}

pub(super) fn huge_pages(subject: &Subject<'_>) -> Verdict {
    let Some(modes) = text(subject.root, "sys/kernel/mm/transparent_hugepage/enabled") else {
        return Verdict::unavailable("the kernel has no transparent huge pages");
    };
    let mode = modes.split('[').nth(1).and_then(|rest| rest.split_once(']')).map(|(mode, _)| mode);
    match mode {
        Some("always") => Verdict::ok("transparent huge pages: always"),
        Some("madvise") => Verdict::warn(
            "transparent huge pages: madvise, which SparOA does not ask for: weights and activations \
             lie on small pages",
            "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 sparoa ..., or for all programs: echo always | \
             sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some("never") => Verdict::warn(
            "transparent huge pages: never: weights and activations lie on small pages",
            "echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        _ => Verdict::unavailable(format!("the kernel says '{modes}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Status::{Ok, Problem, Unavailable, Warn},
        testing::{check_cases, expect, machine, subject},
    };

    #[test]
    fn memory_that_is_left() {
        let swapping =
            machine(&[("proc/meminfo", "SwapTotal: 2000000 kB\nSwapFree: 1000000 kB\n")]);
        let plain = machine(&[]);
        const GIB: u64 = 1 << 30;
        for (root, left, pressure, status, found) in [
            (&plain, None, None, Unavailable, "does not tell"),
            (&plain, Some(8 * GIB), None, Ok, "8.59 GB of 17.2 GB left"),
            (&swapping, Some(8 * GIB), Some(0.0), Ok, "1.02 GB are swapped out"),
            (&plain, Some(GIB), Some(0.0), Warn, "1.07 GB"),
            (&plain, Some(GIB / 8), None, Problem, "134 MB"),
            (&plain, Some(8 * GIB), Some(0.4), Problem, "40 % of the time"),
        ] {
            let mut subject = subject(root.path());
            subject.sensors.memory_available_bytes = left;
            subject.sensors.memory_total_bytes = Some(16 * GIB);
            subject.sensors.memory_pressure = pressure;
            expect(&available(&subject), status, found, "");
        }
    }

    #[test]
    fn modes_of_huge_pages() {
        let file = "sys/kernel/mm/transparent_hugepage/enabled";
        check_cases(
            huge_pages,
            &[
                (&[], Unavailable, "no transparent", ""),
                (&[(file, "garbage")], Unavailable, "'garbage'", ""),
                (&[(file, "DIR")], Unavailable, "no transparent", ""),
                (&[(file, "[always] madvise never\n")], Ok, "always", ""),
                (&[(file, "always [madvise] never\n")], Warn, "madvise", "hugetlb=1"),
                (&[(file, "always madvise [never]\n")], Warn, "never", "tee"),
            ],
        );
    }
}
