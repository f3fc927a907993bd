//! Unique node names. The importer and the annotator must agree on them, so both ask here.

use std::collections::HashSet;

use super::proto::NodeProto;

/// One unique name per node: its own, with a number appended where it is used twice, or
/// `OpType_index` for a nameless node.
pub(super) fn node_names(nodes: &[NodeProto]) -> Vec<String> {
    // Given names come first, so that a made-up name never takes one of them.
    let given: HashSet<&str> = nodes.iter().filter_map(|n| n.name.as_deref()).collect();
    let mut used: HashSet<String> = HashSet::with_capacity(nodes.len());
    nodes
        .iter()
        .enumerate()
        .map(|(i, node)| match node.name.as_deref() {
            Some(name) if !name.is_empty() => unique(name, &given, &mut used),
            _ => unique(&format!("{}_{i}", node.op_type()), &given, &mut used),
        })
        .collect()
}

fn unique(name: &str, given: &HashSet<&str>, used: &mut HashSet<String>) -> String {
    let mut candidate = name.to_owned();
    let mut n = 1u64;
    while used.contains(&candidate) || (n > 1 && given.contains(candidate.as_str())) {
        n += 1;
        candidate = format!("{name}_{n}");
    }
    used.insert(candidate.clone());
    candidate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_kept_where_possible() {
        let node = |name: &str| NodeProto {
            name: (!name.is_empty()).then(|| name.to_owned()),
            op_type: Some("Relu".into()),
            ..NodeProto::default()
        };
        let nodes = ["a", "", "a", "a_2", "a", "Relu_1"].map(node);
        assert_eq!(node_names(&nodes), ["a", "Relu_1", "a_3", "a_2", "a_4", "Relu_1_2"]);
    }
}
