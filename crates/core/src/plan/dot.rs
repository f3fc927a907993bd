//! A placement as a DOT graph, for Graphviz.

use std::fmt::Write;

use super::{Place, Placement, support::is_view};
use crate::{ir::Graph, profile::Profile};

/// The graph with its placement; node labels carry predicted times where a profile is given.
pub fn dot(graph: &Graph, placement: &Placement, profile: Option<&Profile>) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out =
        format!("digraph \"{}\" {{\n  node [shape=box, style=filled];\n", escape(&graph.name));
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(out, "  {text}").expect("writing to a string");
    };
    for (i, &id) in graph.inputs.iter().enumerate() {
        let value = graph.value(id);
        let (name, ty) = (escape(&value.name), &value.ty);
        line(format_args!("i{i} [label=\"{name}\\n{ty}\", shape=ellipse, fillcolor=white];"));
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let place = placement.places.get(i).copied().unwrap_or_default();
        let (text, color) = match place {
            _ if is_view(graph, node) => ("view".to_owned(), "white"),
            Place::Cpu => ("cpu".to_owned(), "lightblue"),
            Place::Gpu => ("gpu".to_owned(), "palegreen"),
            Place::Split(share) => (format!("split, {:.0}% gpu", share * 100.0), "khaki"),
        };
        let us = |cost: Option<crate::profile::Cost>| {
            cost.map_or_else(|| "-".to_owned(), |c| format!("{:.1}", c.latency_ns as f64 / 1e3))
        };
        let times = profile
            .and_then(|p| p.nodes.get(i))
            .map_or_else(String::new, |c| format!("\\ncpu {} us, gpu {} us", us(c.cpu), us(c.gpu)));
        let name = escape(&node.name);
        let op = node.op.op_type();
        line(format_args!("n{i} [label=\"{name}\\n{op}\\n{text}{times}\", fillcolor={color}];"));
    }
    let producers = graph.producers();
    let source = |id: crate::ir::ValueId| match producers[id.index()] {
        Some(node) => Some(format!("n{}", node.index())),
        None => graph.inputs.iter().position(|i| *i == id).map(|i| format!("i{i}")),
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        for &id in node.inputs.iter().flatten() {
            if let Some(from) = source(id) {
                line(format_args!("{from} -> n{i} [label=\"{}\"];", graph.value(id).ty));
            }
        }
    }
    for (i, &id) in graph.outputs.iter().enumerate() {
        let name = escape(&graph.value(id).name);
        line(format_args!("o{i} [label=\"{name}\", shape=ellipse, fillcolor=white];"));
        if let Some(from) = source(id) {
            line(format_args!("{from} -> o{i};"));
        }
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy;

    #[test]
    fn nodes_show_their_place_and_names_are_escaped() {
        let mut graph = (*toy::diamond()).clone();
        graph.nodes[0].name = "say \"a\"".into();
        let mut placement = Placement::uniform(&graph, Place::Gpu);
        placement.places[2] = Place::Split(0.25);
        let text = dot(&graph, &placement, None);
        assert!(
            text.contains(r#"n0 [label="say \"a\"\nAffine\ngpu", fillcolor=palegreen];"#),
            "{text}"
        );
        assert!(text.contains("split, 25% gpu"));
        assert!(text.contains("i0 -> n0") && text.contains("n4 -> o0"));
        assert_eq!(text.matches(" -> ").count(), 7);
    }
}
