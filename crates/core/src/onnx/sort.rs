//! Topological order of a graph's nodes: that of the file wherever the file is in order.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

use super::{LoadErrorKind, functions::Item, proto::GraphProto};

/// Indices of `items` in topological order. `producers` maps a value to the node that makes it.
///
/// # Errors
/// A cycle, naming a node and a value on it.
pub(super) fn topological(
    items: &[Item<'_, '_>],
    producers: &HashMap<&str, usize>,
) -> Result<Vec<usize>, LoadErrorKind> {
    let mut waiting = vec![0usize; items.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); items.len()];
    for (i, item) in items.iter().enumerate() {
        for value in reads(item) {
            if let Some(&producer) = producers.get(value) {
                waiting[i] += 1;
                readers[producer].push(i);
            }
        }
    }
    let mut ready: BinaryHeap<_> =
        (0..items.len()).filter(|i| waiting[*i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(items.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &reader in &readers[i] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    if order.len() == items.len() {
        return Ok(order);
    }
    Err(cycle(items, producers, &waiting))
}

/// Walks backwards from a node that never became ready until a node repeats: that one is on a
/// cycle (others merely follow one).
fn cycle(
    items: &[Item<'_, '_>],
    producers: &HashMap<&str, usize>,
    waiting: &[usize],
) -> LoadErrorKind {
    let mut at = waiting.iter().position(|w| *w > 0).unwrap_or(0);
    let mut seen = HashSet::new();
    let mut value = "";
    while seen.insert(at) {
        let blocked = reads(&items[at])
            .into_iter()
            .find_map(|v| producers.get(v).filter(|p| waiting[**p] > 0).map(|p| (v, *p)));
        let Some((v, producer)) = blocked else { break };
        (value, at) = (v, producer);
    }
    LoadErrorKind::Value {
        at: format!("node '{}' ({})", items[at].name, items[at].node.op_type()),
        value: value.to_owned(),
        cause: "depends on itself: the graph has a cycle",
    }
}

/// Values that a node needs: its inputs, and what its subgraphs capture.
fn reads<'i>(item: &'i Item<'_, '_>) -> Vec<&'i str> {
    let mut values: Vec<&str> =
        item.node.input.iter().map(String::as_str).filter(|v| !v.is_empty()).collect();
    for graph in item.node.attribute.iter().filter_map(|a| a.g.as_deref()) {
        free_values(graph, &mut values);
    }
    values
}

/// Adds the values that a graph reads and does not define.
fn free_values<'g>(graph: &'g GraphProto, values: &mut Vec<&'g str>) {
    let mut own: HashSet<&str> = graph.input.iter().map(|v| v.name()).collect();
    own.extend(graph.initializer.iter().map(|t| t.name()));
    own.extend(graph.sparse_initializer.iter().filter_map(|t| Some(t.values.as_ref()?.name())));
    own.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let mut inner = Vec::new();
    for node in &graph.node {
        inner.extend(node.input.iter().map(String::as_str));
        for nested in node.attribute.iter().filter_map(|a| a.g.as_deref()) {
            free_values(nested, &mut inner);
        }
    }
    inner.extend(graph.output.iter().map(|v| v.name()));
    values.extend(inner.into_iter().filter(|v| !v.is_empty() && !own.contains(v)));
}
