//! Pins: places that the user fixes, by node name, glob or operator type.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    ir::{Graph, NodeId},
    ops::{Operands, Variant},
    plan::{Place, Support},
};

/// `PATTERN=PLACE` or `PATTERN=KERNEL`. The pattern is a glob over node names (`*` and `?`) or an
/// op_type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// Glob over node names, or an op_type.
    pub pattern: String,
    /// What is fixed.
    pub to: PinTo,
}

/// What a pin fixes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinTo {
    /// The processor.
    Place(Place),
    /// The kernel, where the node runs on the CPU.
    Kernel(Variant),
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            PinTo::Place(place) => write!(f, "{}={place}", self.pattern),
            PinTo::Kernel(variant) => write!(f, "{}={variant}", self.pattern),
        }
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        let (pattern, place) =
            text.rsplit_once('=').filter(|(pattern, _)| !pattern.is_empty()).ok_or_else(|| {
                format!(
                    "pin '{text}': write GLOB=cpu, GLOB=gpu, GLOB=split:0.5, GLOB=dense or \
                     GLOB=sparse"
                )
            })?;
        let to = match place {
            "dense" => PinTo::Kernel(Variant::Dense),
            "sparse" => PinTo::Kernel(Variant::Sparse),
            place => PinTo::Place(place.parse().map_err(|e| format!("pin '{text}': {e}"))?),
        };
        Ok(Pin { pattern: pattern.to_owned(), to })
    }
}

/// Why pins cannot be honoured.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// Nothing has that name or type.
    #[error("pin '{pin}' matches no node and no operator type (e.g. node '{example}')")]
    NoMatch {
        /// The pin.
        pin: Pin,
        /// A node name of the model.
        example: String,
    },
    /// A matching node cannot run there.
    #[error("pin '{pin}': node '{node}' ({op_type}) cannot run there: {reason}")]
    Unsupported {
        /// The pin.
        pin: Pin,
        /// The node.
        node: String,
        /// Its operator.
        op_type: &'static str,
        /// Why not.
        reason: String,
    },
}

/// The nodes that a pin means.
fn matching(graph: &Graph, pin: &Pin) -> Result<Vec<NodeId>, PinError> {
    let matching: Vec<NodeId> = graph
        .node_ids()
        .filter(|&id| {
            let n = graph.node(id);
            n.op.op_type() == pin.pattern
                || glob(&pin.pattern, &n.name)
                || n.origin.iter().any(|o| glob(&pin.pattern, o))
        })
        .collect();
    if matching.is_empty() {
        let example = graph.nodes.first().map_or_else(String::new, |n| n.name.clone());
        return Err(PinError::NoMatch { pin: pin.clone(), example });
    }
    Ok(matching)
}

/// The kernels that pins fix, later pins over earlier ones. Nodes that have no dense and sparse
/// kernels are skipped if at least one of those matched has.
///
/// # Errors
/// When a pin matches nothing, or nothing that has such kernels.
pub fn resolve_variants(graph: &Graph, pins: &[Pin]) -> Result<Vec<(NodeId, Variant)>, PinError> {
    let mut variants = Vec::new();
    for pin in pins {
        let PinTo::Kernel(variant) = pin.to else { continue };
        let matching = matching(graph, pin)?;
        let able = |id: &NodeId| {
            let node = graph.node(*id);
            let pruned = |x: &Operands<'_>| x.constant(1).is_some_and(|w| w.ty().rank() >= 2);
            node.op.with_variant(variant).is_some()
                && (variant == Variant::Dense || graph.with_operands(node, pruned))
        };
        let before = variants.len();
        variants.extend(matching.iter().copied().filter(able).map(|id| (id, variant)));
        if variants.len() == before {
            let node = graph.node(matching[0]);
            return Err(PinError::Unsupported {
                pin: pin.clone(),
                node: node.name.clone(),
                op_type: node.op.op_type(),
                reason: format!("it has no {variant} kernel"),
            });
        }
    }
    Ok(variants)
}

/// The fixed place of every node, later pins over earlier ones. An operator-type or wildcard pin
/// to the GPU skips nodes that the GPU cannot run if it can run at least one of them.
///
/// # Errors
/// When a pin matches nothing, or nothing that it matches can run where it says.
pub fn resolve_pins(
    graph: &Graph,
    support: &Support,
    pins: &[Pin],
) -> Result<Vec<Option<Place>>, PinError> {
    let mut places = vec![None; graph.nodes.len()];
    for pin in pins {
        let PinTo::Place(place) = pin.to else { continue };
        let mut refused = None;
        let mut pinned = false;
        for id in matching(graph, pin)? {
            let i = id.index();
            let reason = match place {
                _ if support.view[i] => None,
                Place::Cpu => None,
                Place::Gpu => support.gpu[i].clone().err(),
                Place::Split(_) => match (&support.gpu[i], support.split[i]) {
                    (Err(reason), _) => Some(reason.clone()),
                    (Ok(()), None) => Some("it cannot be split".to_owned()),
                    (Ok(()), Some(_)) => None,
                },
            };
            match reason {
                None => {
                    places[i] = Some(place);
                    pinned |= !support.view[i];
                }
                Some(reason) => {
                    refused.get_or_insert((i, reason));
                }
            }
        }
        if let (false, Some((i, reason))) = (pinned, refused) {
            return Err(PinError::Unsupported {
                pin: pin.clone(),
                node: graph.nodes[i].name.clone(),
                op_type: graph.nodes[i].op.op_type(),
                reason,
            });
        }
    }
    Ok(places)
}

/// Whether `text` matches a pattern of literal characters, `*` (any run) and `?` (any one).
fn glob(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut i, mut j) = (0, 0);
    // Where to resume after the last `*`: the pattern behind it, and the text it has swallowed.
    let mut star: Option<(usize, usize)> = None;
    while j < t.len() {
        if i < p.len() && p[i] == '*' {
            star = Some((i + 1, j));
            i += 1;
        } else if i < p.len() && (p[i] == '?' || p[i] == t[j]) {
            i += 1;
            j += 1;
        } else if let Some((resume, swallowed)) = star {
            star = Some((resume, swallowed + 1));
            i = resume;
            j = swallowed + 1;
        } else {
            return false;
        }
    }
    p[i..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{NullAccelerator, NullOptions},
        toy,
    };

    #[test]
    fn globs() {
        for (pattern, text) in
            [("*", ""), ("a*c", "abbc"), ("a?c", "abc"), ("*/conv*", "l/conv1"), ("a**b", "ab")]
        {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", "ab"), ("a?c", "ac"), ("*b", "abc")] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn later_pins_win_and_hopeless_ones_are_named() {
        let graph = toy::diamond();
        let options = NullOptions { unsupported: vec!["Flip"], ..NullOptions::default() };
        let null = NullAccelerator::new(options);
        let support = Support::of(&graph, Some(&*null));
        let pins = |texts: &[&str]| {
            let pins: Vec<Pin> = texts.iter().map(|t| t.parse().unwrap()).collect();
            resolve_pins(&graph, &support, &pins)
        };
        let places = pins(&["Affine=gpu", "c=split:0.5", "*=cpu", "a=gpu"]).unwrap();
        assert_eq!(places[0], Some(Place::Gpu));
        assert_eq!(places[2], Some(Place::Cpu));
        assert_eq!(pins(&["c=split:0.5"]).unwrap()[2], Some(Place::Split(0.5)));
        let error = pins(&["nothing=cpu"]).unwrap_err().to_string();
        assert!(error.contains("'nothing=cpu'") && error.contains("'a'"), "{error}");
        let error = pins(&["b=gpu"]).unwrap_err().to_string();
        assert!(error.contains("'b' (Flip)") && error.contains("null does not run"), "{error}");
        assert!("x".parse::<Pin>().is_err() && "x=tpu".parse::<Pin>().is_err());
    }
}
