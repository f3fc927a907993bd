//! What the control groups of a container allow: processor time and memory, of either version.

use std::path::{Path, PathBuf};

use super::watched::{Watched, number, text};

/// Limits of the control groups that this process is in; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ContainerLimits {
    /// Cores' worth of processor time.
    pub cpus: Option<f64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

impl ContainerLimits {
    /// Reads the limits below a root folder (`/`): the least of the group and those around it.
    pub fn read(root: &Path) -> ContainerLimits {
        let quotas = groups(root, "cpu").into_iter().filter_map(|group| quota(&group));
        ContainerLimits {
            cpus: quotas.min_by(f64::total_cmp),
            memory_bytes: tightest(root).map(|(limit, _)| limit),
        }
    }
}

/// Folders of this process's group for a controller and of the groups around it.
fn groups(root: &Path, controller: &str) -> Vec<PathBuf> {
    // Version 2 has one hierarchy, whose line names no controllers; version 1 has the last word on
    // controllers that it holds.
    let read = |path: &str| text(&root.join(path)).unwrap_or_default();
    let (mounts, memberships) = (read("proc/self/mountinfo"), read("proc/self/cgroup"));
    let mount = |wanted: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
            let (kind, options) = (right.next()?, right.nth(1)?);
            wanted(kind, options).then_some((left.next()?, left.next()?))
        })
    };
    let has = |list: &str| list.split(',').any(|c| c == controller);
    let first = mount(&|kind, options| kind == "cgroup" && has(options));
    let Some((inside, point)) = first.or_else(|| mount(&|kind, _| kind == "cgroup2")) else {
        return Vec::new();
    };
    let membership = memberships.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let ours = if first.is_some() { has(controllers) } else { controllers.is_empty() };
        ours.then_some(path)
    });
    // A container may see its own group as the mount's root, and its path as the host does.
    let path = membership.unwrap_or("/");
    let path = path.strip_prefix(inside.trim_end_matches('/')).unwrap_or(path);
    let top = root.join(point.trim_start_matches('/'));
    let own = top.join(path.trim_start_matches('/'));
    own.ancestors().take_while(|p| p.starts_with(&top)).map(Path::to_owned).collect()
}

/// Cores' worth of time: `200000 100000` is two, `max 100000` and `-1` are no limit.
fn quota(group: &Path) -> Option<f64> {
    let (quota, period) = match text(&group.join("cpu.max")) {
        Some(both) => {
            let (quota, period) = both.split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => {
            (number(&group.join("cpu.cfs_quota_us"))?, number(&group.join("cpu.cfs_period_us"))?)
        }
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// The least memory limit and its group.
fn tightest(root: &Path) -> Option<(u64, PathBuf)> {
    let limit = |group: PathBuf| {
        let bytes: u64 = number(&group.join("memory.max"))
            .or_else(|| number(&group.join("memory.limit_in_bytes")))?;
        // Version 1 writes the largest multiple of a page where there is no limit.
        (bytes < 1 << 60).then_some((bytes, group))
    };
    groups(root, "memory").into_iter().filter_map(limit).min_by_key(|(bytes, _)| *bytes)
}

/// Memory of the group with the least limit.
#[derive(Debug)]
pub(super) struct LimitedMemory {
    pub limit: u64,
    current: Watched,
    stat: Option<Watched>,
}

impl LimitedMemory {
    pub fn find(root: &Path) -> Option<LimitedMemory> {
        let (limit, group) = tightest(root)?;
        let current = Watched::open(&group.join("memory.current"))
            .or_else(|| Watched::open(&group.join("memory.usage_in_bytes")))?;
        Some(LimitedMemory { limit, current, stat: Watched::open(&group.join("memory.stat")) })
    }

    /// Bytes left: what files keep in memory and nobody uses is given back when needed.
    pub fn available(&mut self) -> Option<u64> {
        let current: u64 = self.current.number()?;
        let idle = self.stat.as_mut().and_then(|stat| {
            let line = |key: &str| {
                let text = stat.text()?;
                text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
            };
            ["total_inactive_file", "inactive_file"].into_iter().find_map(line)
        });
        Some(self.limit.saturating_sub(current.saturating_sub(idle.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::Tree;

    #[test]
    fn the_least_limit_of_nested_groups_counts() {
        let tree = Tree::new();
        let limits = || ContainerLimits::read(tree.root());
        assert_eq!(limits(), ContainerLimits::default());
        tree.write(
            "proc/self/mountinfo",
            "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        tree.write("proc/self/cgroup", "0::/a.slice/b.scope\n");
        tree.write("sys/fs/cgroup/a.slice/b.scope/cpu.max", "max 100000\n");
        tree.write("sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n");
        assert_eq!(limits(), ContainerLimits::default());
        tree.write("sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n");
        tree.write("sys/fs/cgroup/a.slice/memory.max", "1073741824\n");
        let outer = ContainerLimits { cpus: Some(1.5), memory_bytes: Some(1 << 30) };
        assert_eq!(limits(), outer);
        tree.write("sys/fs/cgroup/a.slice/b.scope/cpu.max", "200000 100000\n");
        assert_eq!(limits(), outer);
        tree.write("sys/fs/cgroup/a.slice/b.scope/cpu.max", "50000 100000\n");
        assert_eq!(limits().cpus, Some(0.5));
        for broken in ["nonsense", "1 0", "0 100000", ""] {
            tree.write("sys/fs/cgroup/a.slice/b.scope/cpu.max", broken);
            assert_eq!(limits().cpus, Some(1.5), "{broken}");
        }
        // Inside a container: its group is the root of what it sees.
        tree.write("proc/self/cgroup", "0::/\n");
        tree.write("sys/fs/cgroup/cpu.max", "400000 100000\n");
        assert_eq!(limits(), ContainerLimits { cpus: Some(4.0), memory_bytes: None });
        // No limits of groups beside ours, or outside the mount.
        tree.write("proc/self/cgroup", "0::/../../elsewhere\n");
        assert_eq!(limits().memory_bytes, None);
    }

    #[test]
    fn version_one_has_a_hierarchy_per_controller() {
        let tree = Tree::new();
        tree.write(
            "proc/self/mountinfo",
            "32 31 0:29 /docker/1 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
             broken\n",
        );
        tree.write(
            "proc/self/cgroup",
            "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/\nbroken\n",
        );
        let cpu = "sys/fs/cgroup/cpu,cpuacct";
        tree.write(&format!("{cpu}/cpu.cfs_quota_us"), "-1");
        tree.write(&format!("{cpu}/cpu.cfs_period_us"), "100000");
        tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
        let limits = || ContainerLimits::read(tree.root());
        assert_eq!(limits(), ContainerLimits::default());
        tree.write(&format!("{cpu}/cpu.cfs_quota_us"), "250000");
        tree.write("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "4096000");
        assert_eq!(limits(), ContainerLimits { cpus: Some(2.5), memory_bytes: Some(4_096_000) });
        assert!(LimitedMemory::find(tree.root()).is_none(), "what is used cannot be read");
        tree.write("sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "3096000");
        let available = || LimitedMemory::find(tree.root()).unwrap().available();
        assert_eq!(available(), Some(1_000_000));
        tree.write(
            "sys/fs/cgroup/memory/docker/1/memory.stat",
            "inactive_file 1\ntotal_inactive_file 96000\n",
        );
        assert_eq!(available(), Some(1_096_000));
        tree.write("sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "9096000");
        tree.write("sys/fs/cgroup/memory/docker/1/memory.stat", "inactive_file x\n");
        assert_eq!(available(), Some(0), "above its limit");
    }
}
