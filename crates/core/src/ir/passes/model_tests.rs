//! What is left of real exports after optimisation, and that they compute the same. The files are
//! looked for in `$SPAROA_MODELS` or `~/.cache/sparoa/models`; without them the tests say so.

use std::path::PathBuf;

use super::{
    optimize,
    testing::{compare, summary},
};
use crate::{
    ir::{Shapes, specialize},
    onnx,
};

/// The file of a model, if it is on this machine.
fn file(name: &str) -> Option<PathBuf> {
    let folder = match std::env::var_os("SPAROA_MODELS") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/sparoa/models"),
    };
    let path = folder.join(format!("{name}.onnx"));
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

/// Optimises a model, compares the results and what is left.
fn check(name: &str, expected: &str) {
    let Some(path) = file(name) else { return };
    let model = onnx::load(&path, &onnx::LoadOptions::default()).unwrap();
    let graph = specialize(&model, &Shapes::new()).unwrap().graph;
    let after = optimize(graph.clone());
    assert_eq!(summary(&after), expected, "{name}");
    compare(&graph, &after, 1e-4);
}

#[test]
fn resnet18() {
    let expected = "Conv 19, FusedLayers 1, GlobalAveragePool 1, Linear 1, Transpose 1";
    check("resnet18-legacy", expected);
    check("resnet18-dynamo", expected);
    let expected = "Conv 20, GlobalAveragePool 1, Linear 1, Transpose 1";
    check("resnet18-rk3568-small", expected);
}

#[test]
fn mobilenets() {
    let expected = "Conv 13, GlobalAveragePool 1, InvertedResidual 14, Linear 1, Transpose 1";
    check("mobilenetv2-legacy", expected);
    check("mobilenetv2-dynamo", expected);
    let expected =
        "Conv 42, GlobalAveragePool 10, InvertedResidual 4, Linear 2, Mul 9, Transpose 1";
    check("mobilenetv3s-legacy", expected);
    check("mobilenetv3s-dynamo", expected);
}

#[test]
fn vit_b_16() {
    let expected = "Add 1, Attention 12, Concat 1, Conv 1, Gather 1, LayerNormalization 25, \
                    Linear 49, Transpose 1";
    check("vit_b_16-legacy", expected);
    check("vit_b_16-dynamo", expected);
}

#[test]
fn others() {
    check("open-nsfw-resnet50", "AveragePool 1, Conv 52, FusedLayers 1, Linear 1, Softmax 1");
    check("super-resolution", "Conv 4, Transpose 1");
    check(
        "ultraface-rfb-320",
        "Add 1, Concat 5, Conv 37, Div 1, Elementwise 2, InvertedResidual 7, Slice 4, Softmax 1, \
         Sub 1, Transpose 1",
    );
}
