//! What is left of the built-in models after optimisation, and that they compute the same.

use super::{
    optimize,
    testing::{compare, graph_of, summary},
};
use crate::{ir::Graph, zoo};

/// The optimised graph of a built-in model, compared with the unoptimised one on request.
fn optimised(name: &str, numerically: bool) -> Graph {
    let graph = graph_of(&zoo::build(name).unwrap());
    let after = optimize(graph.clone());
    if numerically {
        compare(&graph, &after, 1e-4);
    }
    after
}

#[test]
fn resnet18() {
    let graph = optimised("resnet18", true);
    assert_eq!(summary(&graph), "Conv 20, GlobalAveragePool 1, Linear 1, MaxPool 1, Transpose 1");
    let joined = graph.nodes.iter().find(|n| n.name == "layer1.0.conv2").unwrap();
    let origin = ["layer1.0.conv2", "layer1.0.bn2", "layer1.0.add", "layer1.0.relu_1"];
    assert_eq!(joined.origin, origin);
}

#[test]
fn mobilenet_v2() {
    let graph = optimised("mobilenet_v2", true);
    assert_eq!(summary(&graph), "Conv 52, GlobalAveragePool 1, Linear 1, Transpose 1");
}

#[test]
fn mobilenet_v3_small() {
    let graph = optimised("mobilenet_v3_small", true);
    assert_eq!(summary(&graph), "Conv 52, GlobalAveragePool 10, Linear 2, Mul 9, Transpose 1");
}
