//! Operator sets: which versions are accepted, and which operators of a model are missing.

use std::collections::{BTreeMap, HashSet};

use super::{
    LoadErrorKind, MissingOperator,
    functions::{Function, Functions},
    proto::{GraphProto, NodeProto, OperatorSetIdProto},
};
use crate::ops;

/// Oldest accepted opset of the standard domain.
pub const OLDEST_OPSET: u32 = 9;

/// Newest opset of the standard domain that is supported in full.
pub const NEWEST_OPSET: u32 = 22;

/// Newest opset that is accepted at all. From 23 to this one, operators that SparOA has only
/// gained element types and attributes (which are refused when present), so that a model of
/// known operators means what it meant before.
pub const NEWEST_ACCEPTED_OPSET: u32 = 28;

/// Versions by domain; the standard domain is `""`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Opsets(BTreeMap<String, u32>);

/// `""` for the standard domain under either of its names.
pub(super) fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

impl Opsets {
    /// The newest standard opset that is supported in full.
    pub(super) fn newest() -> Opsets {
        Opsets(BTreeMap::from([(String::new(), NEWEST_OPSET)]))
    }

    /// Reads and checks the imports of a model or of one of its functions.
    pub(super) fn parse(imports: &[OperatorSetIdProto]) -> Result<Opsets, LoadErrorKind> {
        let mut versions = BTreeMap::new();
        for import in imports {
            let domain = canonical(import.domain());
            let given = import.version();
            let version = u32::try_from(given.max(0)).unwrap_or(u32::MAX);
            if domain.is_empty() && version < OLDEST_OPSET {
                return Err(LoadErrorKind::Opset {
                    what: format!(
                        "opset {given} is older than {OLDEST_OPSET}, the oldest supported"
                    ),
                    remedy: format!(
                        "convert the model with onnx.version_converter.convert_version(model, \
                         {NEWEST_OPSET}) or export it again"
                    ),
                });
            }
            if domain.is_empty() && version > NEWEST_ACCEPTED_OPSET {
                return Err(LoadErrorKind::Opset {
                    what: format!(
                        "opset {given} is newer than {NEWEST_ACCEPTED_OPSET}, the newest known"
                    ),
                    remedy: format!("export the model with opset {NEWEST_OPSET}"),
                });
            }
            if domain.is_empty() && version > NEWEST_OPSET {
                tracing::warn!(
                    opset = version,
                    "opset is newer than {NEWEST_OPSET}; operators are taken to mean what they \
                     meant there"
                );
            }
            versions.insert(domain.to_owned(), version);
        }
        Ok(Opsets(versions))
    }

    /// The version in force for a domain. Other domains than the standard one are 1 when the
    /// model forgets to import them, as it happens with `com.microsoft`.
    pub(super) fn version(&self, domain: &str) -> Option<u32> {
        let domain = canonical(domain);
        match self.0.get(domain) {
            Some(version) => Some(*version),
            None => (!domain.is_empty()).then_some(1),
        }
    }
}

/// Checks that every operator that the graph can reach exists, and reports all that do not.
pub(super) fn check_operators(
    graph: &GraphProto,
    opsets: &Opsets,
    functions: &Functions<'_>,
) -> Result<(), LoadErrorKind> {
    let mut survey =
        Survey { functions, called: Vec::new(), known: HashSet::new(), missing: BTreeMap::new() };
    survey.nodes(&graph.node, opsets)?;
    let mut surveyed = 0;
    while let Some(function) = survey.called.get(surveyed).copied() {
        survey.nodes(&function.proto.node, &function.opsets)?;
        surveyed += 1;
    }
    if survey.missing.is_empty() {
        return Ok(());
    }
    let mut missing: Vec<_> = survey.missing.into_values().collect();
    missing.sort_by(|a, b| b.count.cmp(&a.count).then(a.op_type.cmp(&b.op_type)));
    Err(LoadErrorKind::MissingOperators(missing))
}

struct Survey<'a> {
    functions: &'a Functions<'a>,
    /// Functions that something calls, each once; also the list of those still to look into.
    called: Vec<&'a Function<'a>>,
    known: HashSet<usize>,
    missing: BTreeMap<(String, String), MissingOperator>,
}

impl Survey<'_> {
    fn nodes(&mut self, nodes: &[NodeProto], opsets: &Opsets) -> Result<(), LoadErrorKind> {
        for (i, node) in nodes.iter().enumerate() {
            match self.functions.find(node) {
                Some(function) => {
                    if self.known.insert(std::ptr::from_ref(function).addr()) {
                        self.called.push(function);
                    }
                }
                None => self.node(i, node, opsets)?,
            }
            for graph in node.attribute.iter().filter_map(|a| a.g.as_deref()) {
                self.nodes(&graph.node, opsets)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, i: usize, node: &NodeProto, opsets: &Opsets) -> Result<(), LoadErrorKind> {
        let domain = canonical(node.domain());
        let Some(version) = opsets.version(domain) else {
            return Err(LoadErrorKind::Opset {
                what: format!(
                    "node '{}' ({}) is of the standard domain, of which the model imports no opset",
                    node.name(),
                    node.op_type()
                ),
                remedy: format!("add opset_import with version {NEWEST_OPSET} or export it again"),
            });
        };
        let note = match ops::find(domain, node.op_type()) {
            // Constants become tensors at import, without an operator.
            _ if is_constant(node) => return Ok(()),
            None => None,
            Some(spec) if spec.since > version => {
                Some(format!("exists since opset {}, the model imports {version}", spec.since))
            }
            Some(_) => return Ok(()),
        };
        let key = (domain.to_owned(), node.op_type().to_owned());
        let entry = self.missing.entry(key).or_insert_with(|| MissingOperator {
            domain: domain.to_owned(),
            op_type: node.op_type().to_owned(),
            count: 0,
            first: match node.name() {
                "" => format!("{}_{i}", node.op_type()),
                name => name.to_owned(),
            },
            note,
            nearest: ops::nearest(node.op_type()),
        });
        entry.count += 1;
        Ok(())
    }
}

/// True for ONNX `Constant`.
pub(super) fn is_constant(node: &NodeProto) -> bool {
    node.op_type() == "Constant" && canonical(node.domain()).is_empty()
}
