//! What is left of the built-in models after optimisation, and that they compute the same.

use super::{
    optimize,
    testing::{compare, graph_of, summary},
};
use crate::{
    ir::{Graph, Shapes, specialize},
    zoo,
};

/// The optimised graph of a built-in model, compared with the unoptimised one.
fn optimised(name: &str) -> Graph {
    let graph = graph_of(&zoo::build(name).unwrap());
    let after = optimize(graph.clone());
    compare(&graph, &after, 1e-4);
    after
}

#[test]
fn resnet18() {
    let graph = optimised("resnet18");
    assert_eq!(
        summary(&graph),
        "Conv 19, FusedLayers 1, GlobalAveragePool 1, Linear 1, Transpose 1"
    );
    let joined = graph.nodes.iter().find(|n| n.name == "layer1.0.conv2").unwrap();
    let origin = ["layer1.0.conv2", "layer1.0.bn2", "layer1.0.add", "layer1.0.relu_1"];
    assert_eq!(joined.origin, origin);
}

#[test]
fn mobilenet_v2() {
    let graph = optimised("mobilenet_v2");
    assert_eq!(
        summary(&graph),
        "Conv 13, GlobalAveragePool 1, InvertedResidual 14, Linear 1, Transpose 1"
    );
}

#[test]
fn pruned_mobilenet_v2() {
    let graph = optimised("mobilenet_v2@p90");
    // Small blocks are fused, too, and channels with nothing but zeros are gone.
    assert_eq!(
        summary(&graph),
        "Conv 2, GlobalAveragePool 1, InvertedResidual 17, Linear 1, Transpose 1"
    );
    let last = graph.nodes.iter().rfind(|n| n.op.op_type() == "InvertedResidual").unwrap();
    let filters = graph.value(last.inputs[3].unwrap()).ty.shape[0];
    // 0.9 to the ninth of 960 filters are zeros.
    assert!((528..=640).contains(&filters) && filters.is_multiple_of(16), "{filters}");
}

#[test]
fn mobilenet_v3_small() {
    let graph = optimised("mobilenet_v3_small");
    assert_eq!(
        summary(&graph),
        "Conv 42, GlobalAveragePool 10, InvertedResidual 4, Linear 2, Mul 9, Transpose 1"
    );
}

#[test]
fn vit_b_16() {
    let graph = optimised("vit_b_16");
    let expected = "Add 1, Attention 12, Concat 1, Conv 1, Gather 1, LayerNormalization 25, \
                    Linear 49, Transpose 1";
    assert_eq!(summary(&graph), expected);
}

#[test]
fn swin_t() {
    let graph = optimised("swin_t");
    // Two transpositions per block cut the map into windows and put it together, but not in the
    // last stage, which is one window, and one merges patches; shifts to windows and back are rolls.
    // In the first two stages, large maps of few channels, attention and perceptrons are fused.
    let expected = "Add 10, Attention 8, Conv 1, FusedLayers 8, GlobalAveragePool 1, \
                    LayerNormalization 25, Linear 36, Roll 10, Transpose 24";
    assert_eq!(summary(&graph), expected);
}

#[test]
fn a_batch_of_two() {
    for (name, expected) in [
        (
            "mobilenet_v3_small",
            "Conv 42, GlobalAveragePool 10, InvertedResidual 4, Linear 2, Mul 9, Transpose 1",
        ),
        (
            "vit_b_16",
            "Add 1, Attention 12, Concat 1, Conv 1, Gather 1, LayerNormalization 25, Linear 49, \
             Transpose 1",
        ),
    ] {
        let shapes = Shapes::from([("input".to_owned(), vec![2, 3, 224, 224])]);
        let graph = specialize(&zoo::build(name).unwrap(), &shapes).unwrap().graph;
        let after = optimize(graph);
        assert!(after.verify().is_ok());
        assert_eq!(summary(&after), expected);
    }
}
