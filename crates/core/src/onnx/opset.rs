//! Operator sets: which versions are accepted.

use std::collections::BTreeMap;

use super::{
    LoadErrorKind,
    proto::{NodeProto, OperatorSetIdProto},
};

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

/// True for ONNX `Constant`.
pub(super) fn is_constant(node: &NodeProto) -> bool {
    node.op_type() == "Constant" && canonical(node.domain()).is_empty()
}
