//! Plan files: a placement as JSON that people read, edit and load again. A file that does not
//! belong to this model or this machine is refused, field by field.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Place, Placement, Support};
use crate::{
    backend::DeviceInfo,
    ir::{Graph, Node, NodeId},
    ops::Variant,
    profile::{CostCache, Profile, hash_text, write_atomically},
};

/// Version of the format that this program writes and reads.
pub const PLAN_FILE_VERSION: u32 = 1;

/// A placement with everything needed to recognise what it is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// [`PLAN_FILE_VERSION`].
    pub version: u32,
    /// The model's name.
    pub model: String,
    /// [`fingerprint`] of the graph after the passes.
    pub fingerprint: String,
    /// Input shapes by input name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// The machine.
    pub hardware: Hardware,
    /// Policy that made the placement; `edited` says it better once a person has.
    pub policy: String,
    /// What it was made for.
    pub objective: String,
    /// Pins in force when it was made.
    #[serde(default)]
    pub pins: Vec<String>,
    /// Predicted time of one inference.
    pub predicted_ns: Option<u64>,
    /// True when the predicted figures are estimates of a machine that was not there.
    #[serde(default)]
    pub simulated: bool,
    /// A place for every node, in the graph's order.
    pub nodes: Vec<PlanNode>,
}

/// A node's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanNode {
    /// Its name.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// `cpu`, `gpu` or `split:SHARE`, the GPU's share between 0 and 1.
    pub place: Place,
    /// Which kernel computes it on the CPU, of a layer with pruned weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Variant>,
    /// Predicted time on the CPU, in microseconds; for the reader only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<f64>,
    /// Predicted time on the GPU, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_us: Option<f64>,
}

/// The processors that a plan was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// CPU name.
    pub cpu: String,
    /// Instruction set of its kernels.
    pub isa: String,
    /// Threads.
    pub threads: usize,
    /// GPU name and driver; empty without one.
    pub gpu: String,
}

impl Hardware {
    /// Of these devices.
    pub fn of(cpu: &DeviceInfo, gpu: Option<&DeviceInfo>) -> Hardware {
        Hardware {
            cpu: cpu.name.clone(),
            isa: cpu.driver.clone(),
            threads: cpu.threads.unwrap_or(1),
            gpu: gpu.map_or_else(String::new, |g| format!("{} ({})", g.name, g.driver)),
        }
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hardware { cpu, isa, threads, gpu } = self;
        write!(f, "{cpu}, {isa}, {threads} threads")?;
        if gpu.is_empty() { f.write_str(", no GPU") } else { write!(f, "; {gpu}") }
    }
}

/// Why a plan file is refused. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanFileError {
    /// It cannot be read or written.
    #[error("plan file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not a plan file.
    #[error("plan file {path}: {detail}; make it again with `sparoa plan MODEL -o FILE`")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// It belongs to another model or machine.
    #[error(
        "the plan was made for another {field}: expected '{expected}', here it is '{found}'; \
         make it again with `sparoa plan MODEL -o FILE`"
    )]
    Mismatch {
        /// Which field differs.
        field: &'static str,
        /// The file's value.
        expected: String,
        /// The value here.
        found: String,
    },
    /// A node in the file is not in the model.
    #[error("the plan places node '{node}', which the model does not have; remove its line")]
    UnknownNode {
        /// The node.
        node: String,
    },
    /// A node of the model is not in the file.
    #[error("the plan has no place for node '{node}' ({op_type}); add a line for it")]
    MissingNode {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
    },
    /// A node is in the file twice.
    #[error("the plan places node '{node}' twice; remove one line")]
    DuplicateNode {
        /// The node.
        node: String,
    },
    /// A node cannot run where the file puts it.
    #[error("the plan puts node '{node}' ({op_type}) on {place}: {reason}; change it to cpu")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The place.
        place: Place,
        /// Why not.
        reason: String,
    },
}

/// A text that changes when the graph's structure, types or weight sizes do (not when the weights'
/// values, or the kernels chosen for them, do).
pub fn fingerprint(graph: &Graph) -> String {
    let mut text = String::new();
    for node in &graph.nodes {
        text.push_str(&node.name);
        match node.op.with_variant(Variant::Fastest) {
            Some(op) => {
                let node = Node { op, ..node.clone() };
                text.push_str(&CostCache::signature(graph, &node));
            }
            None => text.push_str(&CostCache::signature(graph, node)),
        }
        text.push('\n');
    }
    let weights: usize =
        graph.values.iter().filter(|v| v.constant.is_some()).map(|v| v.ty.bytes()).sum();
    text.push_str(&weights.to_string());
    format!("{:016x}", hash_text(&text))
}

impl PlanFile {
    /// A file of a placement; the predicted times come from the profile, where there is one.
    pub fn new(
        graph: &Graph,
        placement: &Placement,
        hardware: Hardware,
        profile: Option<&Profile>,
    ) -> PlanFile {
        let us = |cost: Option<crate::profile::Cost>| {
            cost.map(|c| (c.latency_ns as f64 / 100.0).round() / 10.0)
        };
        let nodes = graph
            .nodes
            .iter()
            .zip(&placement.places)
            .enumerate()
            .map(|(i, (node, &place))| {
                let costs = profile.and_then(|p| p.nodes.get(i));
                PlanNode {
                    name: node.name.clone(),
                    op_type: node.op.op_type().to_owned(),
                    place,
                    kernel: None,
                    cpu_us: costs.and_then(|c| us(c.cpu)),
                    gpu_us: costs.and_then(|c| us(c.gpu)),
                }
            })
            .collect();
        let shape = |&id: &crate::ir::ValueId| {
            let value = graph.value(id);
            (value.name.clone(), value.ty.shape.clone())
        };
        PlanFile {
            version: PLAN_FILE_VERSION,
            model: graph.name.clone(),
            fingerprint: fingerprint(graph),
            shapes: graph.inputs.iter().map(shape).collect(),
            hardware,
            policy: String::new(),
            objective: String::new(),
            pins: Vec::new(),
            predicted_ns: None,
            simulated: profile.is_some_and(|p| p.simulated),
            nodes,
        }
    }

    /// The kernels that it says, of nodes that the graph has.
    pub fn kernels(&self, graph: &Graph) -> Vec<(NodeId, Variant)> {
        let said: HashMap<&str, Variant> =
            self.nodes.iter().filter_map(|n| Some((n.name.as_str(), n.kernel?))).collect();
        let of = |id: NodeId| {
            let node = graph.node(id);
            let &variant = said.get(node.name.as_str())?;
            node.op.with_variant(variant).map(|_| (id, variant))
        };
        graph.node_ids().filter_map(of).collect()
    }

    /// The file's text: a node a line.
    pub fn to_json(&self) -> String {
        let head = PlanFile { nodes: Vec::new(), ..self.clone() };
        let head = serde_json::to_string_pretty(&head).expect("a plan file is plain data");
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .map(|n| {
                let line = serde_json::to_string(n).expect("a plan node is plain data");
                format!("    {line}")
            })
            .collect();
        let head = head.trim_end().trim_end_matches('}').trim_end();
        let head = head.strip_suffix("[]").unwrap_or(head);
        format!("{head}[\n{}\n  ]\n}}\n", nodes.join(",\n"))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> Result<(), PlanFileError> {
        write_atomically(path, self.to_json().as_bytes())
            .map_err(|source| PlanFileError::Io { path: path.to_owned(), source })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no plan file of this version.
    pub fn read(path: &Path) -> Result<PlanFile, PlanFileError> {
        let text = fs::read_to_string(path)
            .map_err(|source| PlanFileError::Io { path: path.to_owned(), source })?;
        PlanFile::parse(&text)
            .map_err(|detail| PlanFileError::Syntax { path: path.to_owned(), detail })
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Where and why it is no plan file of this version.
    pub fn parse(text: &str) -> Result<PlanFile, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if version != PLAN_FILE_VERSION {
            return Err(format!(
                "it has version {version}, this program reads version {PLAN_FILE_VERSION}"
            ));
        }
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    /// The placement, checked against the model and machine in front of us.
    ///
    /// # Errors
    /// See [`PlanFileError`].
    pub fn placement(
        &self,
        graph: &Graph,
        support: &Support,
        hardware: &Hardware,
    ) -> Result<Placement, PlanFileError> {
        let same = |field, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            let (expected, found) = (expected.to_string(), found.to_string());
            if expected == found {
                return Ok(());
            }
            Err(PlanFileError::Mismatch { field, expected, found })
        };
        same("model", &self.model, &graph.name)?;
        for &id in &graph.inputs {
            let value = graph.value(id);
            let text = |shape: &[usize]| {
                let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
                format!("{}:{}", value.name, dims.join("x"))
            };
            let expected = self.shapes.get(&value.name).map_or_else(String::new, |s| text(s));
            same("input shape", &expected, &text(&value.ty.shape))?;
        }
        same("CPU", &self.hardware.cpu, &hardware.cpu)?;
        same("instruction set", &self.hardware.isa, &hardware.isa)?;
        same("number of threads", &self.hardware.threads, &hardware.threads)?;
        same("GPU", &self.hardware.gpu, &hardware.gpu)?;

        let index: HashMap<&str, usize> =
            graph.nodes.iter().enumerate().map(|(i, n)| (n.name.as_str(), i)).collect();
        let mut places: Vec<Option<Place>> = vec![None; graph.nodes.len()];
        for node in &self.nodes {
            let Some(&i) = index.get(node.name.as_str()) else {
                return Err(PlanFileError::UnknownNode { node: node.name.clone() });
            };
            if places[i].is_some() {
                return Err(PlanFileError::DuplicateNode { node: node.name.clone() });
            }
            let reason = match node.place {
                _ if support.view[i] => None,
                Place::Cpu => None,
                Place::Gpu => support.gpu[i].clone().err(),
                Place::Split(_) => support.gpu[i].clone().err().or_else(|| {
                    support.split[i].is_none().then(|| "it cannot be split".to_owned())
                }),
            };
            if let Some(reason) = reason {
                return Err(PlanFileError::Unsupported {
                    node: node.name.clone(),
                    op_type: node.op_type.clone(),
                    place: node.place,
                    reason,
                });
            }
            places[i] = Some(node.place);
        }
        let places = places
            .into_iter()
            .zip(&graph.nodes)
            .map(|(place, node)| {
                place.ok_or_else(|| PlanFileError::MissingNode {
                    node: node.name.clone(),
                    op_type: node.op.op_type().to_owned(),
                })
            })
            .collect::<Result<_, _>>()?;
        same("version of the model", &self.fingerprint, &fingerprint(graph))?;
        Ok(Placement { places })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{NullAccelerator, NullOptions, cpu_info},
        toy,
    };

    fn check(edit: impl FnOnce(&mut PlanFile)) -> Result<Placement, String> {
        let graph = toy::diamond();
        let options = NullOptions { unsupported: vec!["Flip"], ..NullOptions::default() };
        let null = NullAccelerator::new(options);
        let support = Support::of(&graph, Some(&*null));
        let mut placement = Placement::uniform(&graph, Place::Cpu);
        placement.places[0] = Place::Split(0.5);
        placement.places[2] = Place::Gpu;
        let hardware = Hardware::of(&cpu_info(2), None);
        let mut file = PlanFile::new(&graph, &placement, hardware.clone(), None);
        edit(&mut file);
        let file = PlanFile::parse(&file.to_json())?;
        let given = file.placement(&graph, &support, &hardware).map_err(|e| e.to_string())?;
        assert_eq!(given, placement);
        Ok(given)
    }

    #[test]
    fn files_read_back_and_hold_a_node_a_line() {
        assert!(check(|_| {}).is_ok());
        let graph = toy::diamond();
        let placement = Placement::uniform(&graph, Place::Cpu);
        let text =
            PlanFile::new(&graph, &placement, Hardware::of(&cpu_info(2), None), None).to_json();
        let line = r#"    {"name":"a","op_type":"Affine","place":"cpu"},"#;
        assert!(text.lines().any(|l| l == line), "{text}");
    }

    #[test]
    fn what_does_not_match_is_refused_by_name() {
        let refusals: [(fn(&mut PlanFile), &[&str]); 11] = [
            (|f| f.version = 9, &["version 9", "version 1"]),
            (|f| f.model = "other".into(), &["another model", "'other'", "'diamond'"]),
            (|f| f.fingerprint = "0".into(), &["version of the model"]),
            (|f| f.shapes.insert("x".into(), vec![1, 4]).map_or((), drop), &["x:1x4", "x:8x4"]),
            (|f| f.hardware.isa = "mmx".into(), &["instruction set", "'mmx'"]),
            (|f| f.hardware.threads = 64, &["number of threads", "'64'", "'2'"]),
            (|f| f.hardware.gpu = "RTX".into(), &["another GPU", "'RTX'"]),
            (|f| f.nodes[1].name = "z".into(), &["'z'", "does not have"]),
            (|f| f.nodes[1].place = Place::Gpu, &["'b' (Flip)", "null does not run Flip"]),
            (|f| drop(f.nodes.remove(3)), &["no place for node 'd'"]),
            (|f| f.nodes[1].name = "a".into(), &["'a' twice"]),
        ];
        for (edit, words) in refusals {
            let error = check(edit).unwrap_err();
            assert!(words.iter().all(|w| error.contains(w)), "{error}");
        }
        for text in ["", "{}", "[1]", r#"{"version":1}"#, r#"{"version":1,"x":2}"#] {
            assert!(PlanFile::parse(text).is_err());
        }
        let bad_share = check(|_| {}).is_ok().then(|| {
            let graph = toy::diamond();
            let placement = Placement::uniform(&graph, Place::Cpu);
            let file = PlanFile::new(&graph, &placement, Hardware::of(&cpu_info(2), None), None);
            PlanFile::parse(&file.to_json().replace("\"cpu\"}", "\"split:1.5\"}")).unwrap_err()
        });
        assert!(bad_share.unwrap().contains("split:SHARE"));
    }
}
