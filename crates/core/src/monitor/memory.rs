//! Memory that is left to this process.

use std::path::Path;

use super::{container::LimitedMemory, watched::Watched};

/// The machine's memory, and the container's where it is limited.
#[derive(Debug)]
pub(super) struct Memory {
    info: Option<Watched>,
    limited: Option<LimitedMemory>,
}

impl Memory {
    pub fn find(root: &Path) -> Memory {
        Memory {
            info: Watched::open(&root.join("proc/meminfo")),
            limited: LimitedMemory::find(root),
        }
    }

    /// Bytes available without swapping, and all bytes.
    pub fn sample(&mut self) -> (Option<u64>, Option<u64>) {
        let text = self.info.as_mut().and_then(Watched::text).unwrap_or_default();
        let (available, total) = (field(text, "MemAvailable"), field(text, "MemTotal"));
        let Some(limited) = &mut self.limited else { return (available, total) };
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        (least(available, limited.available()), least(total, Some(limited.limit)))
    }
}

/// A field of `/proc/meminfo`, in bytes.
pub fn field(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::Tree;

    #[test]
    fn the_container_bounds_the_machine() {
        let tree = Tree::new();
        let sample = || Memory::find(tree.root()).sample();
        assert_eq!(sample(), (None, None));
        tree.write(
            "proc/meminfo",
            "MemTotal:       4000 kB\nMemFree: 1 kB\nMemAvailable: 3000 kB\n",
        );
        assert_eq!(sample(), (Some(3000 << 10), Some(4000 << 10)));
        tree.write("proc/self/mountinfo", "30 23 0:27 / /cg rw - cgroup2 cgroup2 rw\n");
        tree.write("proc/self/cgroup", "0::/\n");
        tree.write("cg/memory.max", "2048000");
        tree.write("cg/memory.current", "1024000");
        assert_eq!(sample(), (Some(1_024_000), Some(2_048_000)));
        // A limit above what the machine has.
        tree.write("cg/memory.max", "1048576000");
        assert_eq!(sample(), (Some(3000 << 10), Some(4000 << 10)));
        for broken in ["MemTotal: x kB\nMemAvailable: 3 MB\n", "", "MemTotal: 99999999999999999 kB"]
        {
            tree.write("proc/meminfo", broken);
            assert_eq!(sample(), (Some(1_047_552_000), Some(1_048_576_000)), "{broken}");
        }
    }
}
