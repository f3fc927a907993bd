//! Which cores this process may use, and their clocks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::watched::{Watched, number, text};

/// The cores that this process may use (its affinity, which a container's cpuset bounds), in
/// ascending order; `None` where the system does not tell.
pub fn allowed_cores(root: &Path) -> Option<Vec<usize>> {
    let status = text(&root.join("proc/self/status"))?;
    parse_list(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?)
}

/// `0-3,8` as numbers, in ascending order; `None` unless it names a number.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // More cores than Linux can be built for is no list of cores.
        if last < first || last >= 1 << 16 {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

/// The folder of a core below `/sys`.
pub(super) fn core_dir(root: &Path, core: usize) -> PathBuf {
    root.join(format!("sys/devices/system/cpu/cpu{core}"))
}

/// Reading every core of a large machine would cost more than it tells.
const MOST: usize = 16;

/// At most [`MOST`] of the cores, evenly spread.
pub(super) fn spread(cores: &[usize]) -> impl Iterator<Item = usize> {
    cores.iter().copied().step_by(cores.len().div_ceil(MOST).max(1))
}

/// Clocks of the cores, by frequency domain.
#[derive(Debug)]
pub(super) struct Clocks(Vec<Clock>);

#[derive(Debug)]
struct Clock {
    current: Watched,
    highest_khz: f64,
    cores: f64,
}

impl Clocks {
    pub fn find(root: &Path, cores: &[usize]) -> Clocks {
        let mut domains: BTreeMap<PathBuf, f64> = BTreeMap::new();
        for core in spread(cores) {
            // Cores that share a clock share the folder behind the link.
            if let Ok(domain) = core_dir(root, core).join("cpufreq").canonicalize() {
                *domains.entry(domain).or_default() += 1.0;
            }
        }
        let clock = |(dir, cores): (PathBuf, f64)| {
            let highest_khz = number::<f64>(&dir.join("cpuinfo_max_freq")).filter(|f| *f > 0.0)?;
            Some(Clock {
                current: Watched::open(&dir.join("scaling_cur_freq"))?,
                highest_khz,
                cores,
            })
        };
        Clocks(domains.into_iter().filter_map(clock).collect())
    }

    /// Current over highest frequency, averaged over the cores whose clock can be read.
    pub fn sample(&mut self) -> Option<f64> {
        let (mut shares, mut cores) = (0.0, 0.0);
        for clock in &mut self.0 {
            if let Some(khz) = clock.current.number::<f64>() {
                shares += clock.cores * khz / clock.highest_khz;
                cores += clock.cores;
            }
        }
        let share = shares / cores;
        (share.is_finite() && share > 0.0).then_some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::Tree;

    #[test]
    fn lists_of_cores() {
        assert_eq!(parse_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        assert_eq!(parse_list("2,0-2"), Some(vec![0, 1, 2]));
        for broken in ["", "a", "3-1", "1-", "0-4294967295", "1,,2"] {
            assert_eq!(parse_list(broken), None, "{broken}");
        }
        assert_eq!(spread(&(0..100).collect::<Vec<_>>()).count(), 15);
        assert_eq!(spread(&[3, 5]).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(spread(&[]).count(), 0);
    }

    #[test]
    fn affinity_is_that_of_the_status_file() {
        let tree = Tree::new();
        assert_eq!(allowed_cores(tree.root()), None);
        tree.write("proc/self/status", "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t1-2\n");
        assert_eq!(allowed_cores(tree.root()), Some(vec![1, 2]));
        tree.write("proc/self/status", "Name:\tx\n");
        assert_eq!(allowed_cores(tree.root()), None);
    }

    #[test]
    fn clocks_of_the_readable_cores_count() {
        let tree = Tree::new();
        let dir = "sys/devices/system/cpu/cpu";
        for (core, now, most) in [(0, "1000000", "2000000"), (1, "2000000", "2000000")] {
            tree.write(&format!("{dir}{core}/cpufreq/scaling_cur_freq"), now);
            tree.write(&format!("{dir}{core}/cpufreq/cpuinfo_max_freq"), most);
        }
        let sample = |cores: &[usize]| Clocks::find(tree.root(), cores).sample();
        assert_eq!(sample(&[0, 1]), Some(0.75));
        assert_eq!(sample(&[1]), Some(1.0));
        assert_eq!(sample(&[1, 2]), Some(1.0));
        assert_eq!(sample(&[2]), None);
        tree.write(&format!("{dir}0/cpufreq/scaling_cur_freq"), "<unknown>");
        assert_eq!(sample(&[0, 1]), Some(1.0));
        assert_eq!(sample(&[0]), None);
        tree.write(&format!("{dir}1/cpufreq/cpuinfo_max_freq"), "0");
        assert_eq!(sample(&[0, 1]), None);
        // A folder in the place of a file: opening works, reading does not.
        tree.dir(&format!("{dir}3/cpufreq/scaling_cur_freq"));
        tree.write(&format!("{dir}3/cpufreq/cpuinfo_max_freq"), "2000000");
        assert_eq!(sample(&[3]), None);
    }

    #[test]
    fn cores_of_one_clock_weigh_by_their_number() {
        let tree = Tree::new();
        let dir = "sys/devices/system/cpu/";
        for (policy, now) in [(0, "500000"), (1, "2000000")] {
            tree.write(&format!("{dir}cpufreq/policy{policy}/scaling_cur_freq"), now);
            tree.write(&format!("{dir}cpufreq/policy{policy}/cpuinfo_max_freq"), "2000000");
        }
        #[cfg(unix)]
        for (core, policy) in [(0, 0), (1, 0), (2, 0), (3, 1)] {
            let link = tree.root().join(format!("{dir}cpu{core}/cpufreq"));
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(format!("../cpufreq/policy{policy}"), link).unwrap();
        }
        let mut clocks = Clocks::find(tree.root(), &[0, 1, 2, 3]);
        assert_eq!(clocks.0.len(), 2);
        assert_eq!(clocks.sample(), Some((3.0 * 0.25 + 1.0) / 4.0));
    }
}
