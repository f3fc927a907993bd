//! Which operators of a model are missing.

use std::collections::{BTreeMap, HashSet};

use super::{
    LoadErrorKind, MissingOperator,
    functions::{Function, Functions},
    opset::{NEWEST_OPSET, Opsets, canonical, is_constant},
    proto::{GraphProto, NodeProto},
};
use crate::ops;

/// Checks that every operator that the graph can reach exists, and reports all that do not.
pub(super) fn check(
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
