//! Measured costs on disk: one JSON file per pair of processors, keyed by operator signature.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Contention, Cost, Link, Power};
use crate::{
    backend::Device,
    ir::{Graph, Node, Value},
    ops::variant::{self, Choices},
};

/// Raised when the meaning of the file or of the kernels' timings changes.
const VERSION: u32 = 2;

/// Why a cache file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cache file {path}: {source}")]
pub struct CacheError {
    /// The file.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// Costs known for one machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostCache {
    version: u32,
    /// Text of the processors that the figures belong to.
    pub machine: String,
    /// Costs by `device` and operator signature.
    costs: BTreeMap<String, Cost>,
    /// Transfer and submission costs.
    pub links: Option<Links>,
    /// Results of the guard, by plan set; see the session's guard.
    pub verdicts: BTreeMap<String, serde_json::Value>,
    /// Electrical power, where it was measured.
    #[serde(default)]
    pub power: Option<Power>,
    /// Kernels chosen for layers with pruned weights.
    #[serde(default)]
    pub variants: Choices,
}

/// What is measured once per machine instead of per operator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Links {
    pub upload: Link,
    pub download: Link,
    pub submit_ns: u64,
    pub handoff_ns: u64,
    pub contention: Contention,
}

impl CostCache {
    /// An empty cache for these processors.
    pub fn new(machine: impl Into<String>) -> CostCache {
        CostCache { version: VERSION, machine: machine.into(), ..CostCache::default() }
    }

    /// Reads the cache of these processors. A missing file is an empty cache; so is, with a
    /// warning, a damaged one or one of another version: everything in it can be measured again.
    pub fn load(dir: &Path, machine: &str) -> CostCache {
        let path = file(dir, machine);
        let empty = CostCache::new(machine);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return empty,
            Err(e) => {
                tracing::warn!("ignoring cache file {}: {e}", path.display());
                return empty;
            }
        };
        match serde_json::from_str::<CostCache>(&text) {
            Ok(cache) if cache.version == VERSION && cache.machine == machine => cache,
            Ok(_) => empty,
            Err(e) => {
                tracing::warn!("ignoring damaged cache file {}: {e}", path.display());
                empty
            }
        }
    }

    /// Adds this to what is on disk, where this has the last word; readers see the old file or the new one, never half of it.
    ///
    /// # Errors
    /// When the directory cannot be made or the file not be written.
    pub fn store(&self, dir: &Path) -> Result<(), CacheError> {
        let path = file(dir, &self.machine);
        let mut merged = CostCache::load(dir, &self.machine);
        merged.costs.extend(self.costs.clone());
        merged.verdicts.extend(self.verdicts.clone());
        merged.variants.extend(self.variants.clone());
        merged.links = self.links.or(merged.links);
        merged.power = self.power.or(merged.power);
        let text = serde_json::to_string(&merged).expect("a cost cache is plain data");
        write_atomically(&path, text.as_bytes()).map_err(|source| CacheError { path, source })
    }

    /// Known cost of a node on a processor.
    pub fn get(&self, device: Device, signature: &str) -> Option<Cost> {
        self.costs.get(&format!("{device} {signature}")).copied()
    }

    /// Remembers a cost.
    pub fn insert(&mut self, device: Device, signature: &str, cost: Cost) {
        self.costs.insert(format!("{device} {signature}"), cost);
    }

    /// What makes two nodes cost the same: operator with attributes, and the types of its inputs
    /// (constants told apart, pruned ones by their sparsity) and outputs.
    pub fn signature(graph: &Graph, node: &Node) -> String {
        use std::fmt::Write;
        let mut text = format!("{:?}(", node.op);
        for input in &node.inputs {
            match input {
                None => text.push('_'),
                Some(id) => {
                    let v = graph.value(*id);
                    let kind = if v.constant.is_some() { "const " } else { "" };
                    if let Some(step) = sparsity(v) {
                        write!(text, "sparse {step} ").expect("writing to a string");
                    }
                    write!(text, "{kind}{}", v.ty).expect("writing to a string");
                }
            }
            text.push(',');
        }
        text.push_str(")->");
        for id in node.outputs.iter().flatten() {
            write!(text, "{},", graph.value(*id).ty).expect("writing to a string");
        }
        text
    }
}

/// Of a constant matrix, by a glance at its first elements.
fn sparsity(value: &Value) -> Option<usize> {
    let weights = value.constant.as_ref().filter(|t| t.ty().rank() > 1)?.reader();
    let weights = weights.as_slice::<f32>()?;
    variant::sparsity(&weights[..weights.len().min(4096)])
}

fn file(dir: &Path, machine: &str) -> PathBuf {
    dir.join(format!("costs-{:016x}.json", hash_text(machine)))
}

/// FNV-1a of a text: stable over runs, machines and compiler versions.
pub fn hash_text(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Writes a file through a temporary sibling and a rename, making its directory if need be.
///
/// # Errors
/// Those of the file system.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        // The rename's error is the one to report.
        let _ = fs::remove_file(&temporary);
    })
}

/// `$SPAROA_CACHE`, or `sparoa` below the user's cache directory, or below the system's temporary
/// directory.
pub fn default_cache_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("SPAROA_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("sparoa")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/sparoa")))
        .or_else(|| var("LOCALAPPDATA").map(|d| d.join("sparoa")))
        .unwrap_or_else(|| std::env::temp_dir().join("sparoa"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_survive_the_disk_and_damage_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = CostCache::new("cpu x + gpu y");
        cache.insert(Device::Gpu, "Conv", Cost { latency_ns: 7, fixed_ns: 1 });
        cache.variants.insert("a pruned layer".to_owned(), 1);
        cache.store(dir.path()).unwrap();
        let loaded = CostCache::load(dir.path(), "cpu x + gpu y");
        assert_eq!(loaded, cache);
        assert_eq!(loaded.get(Device::Gpu, "Conv").unwrap().latency_ns, 7);
        assert_eq!(loaded.get(Device::Cpu, "Conv"), None);
        assert_eq!(CostCache::load(dir.path(), "other"), CostCache::new("other"));

        // Another program's figures stay.
        let mut other = CostCache::new("cpu x + gpu y");
        other.insert(Device::Cpu, "Conv", Cost { latency_ns: 9, fixed_ns: 0 });
        other.store(dir.path()).unwrap();
        let both = CostCache::load(dir.path(), "cpu x + gpu y");
        assert_eq!(both.variants, cache.variants);
        assert_eq!(both.get(Device::Gpu, "Conv").unwrap().latency_ns, 7);
        assert_eq!(both.get(Device::Cpu, "Conv").unwrap().latency_ns, 9);

        let path = file(dir.path(), "cpu x + gpu y");
        fs::write(&path, "{\"version\":1, \"costs\"").unwrap();
        assert_eq!(CostCache::load(dir.path(), "cpu x + gpu y"), CostCache::new("cpu x + gpu y"));
    }
}
