//! What is left of real exports after optimisation, and that they compute the same. The files are
//! looked for in `$SPAROA_MODELS` or `~/.cache/sparoa/models`; without them the tests say so.

use std::{path::PathBuf, time::Instant};

use super::{
    optimize,
    testing::{compare, summary},
};
use crate::{
    ir::{Graph, Shapes, specialize},
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

/// The optimised graph of a model.
fn optimised(name: &str, numerically: bool) -> Option<Graph> {
    let model = onnx::load(&file(name)?, &onnx::LoadOptions::default()).unwrap();
    let start = Instant::now();
    let graph = specialize(&model, &Shapes::new()).unwrap().graph;
    let specialised = Instant::now();
    let after = optimize(graph.clone());
    let times = (specialised - start, specialised.elapsed());
    println!("{name}: {} nodes, {times:?}: {}", model.nodes.len(), summary(&after));
    if numerically {
        compare(&graph, &after, 1e-4);
    }
    Some(after)
}

#[test]
fn all() {
    let filter = std::env::var("MODEL").unwrap_or_default();
    for name in ["mobilenetv2-legacy", "mobilenetv2-dynamo", "mobilenetv3s-legacy", "mobilenetv3s-dynamo", "resnet18-legacy", "resnet18-dynamo", "vit_b_16-legacy", "vit_b_16-dynamo", "swin_t-legacy", "swin_t-dynamo", "mobilenetv2-int8-qdq", "resnet18-rk3568-small", "open-nsfw-resnet50", "ppocrv4-det", "ppocrv4-rec", "ppocr-cls", "nudenet-320n", "centerface", "ultraface-rfb-320", "super-resolution", "magika", "silero-vad"] {
        if !name.contains(&filter) { continue; }
        let r = std::panic::catch_unwind(|| {
            if let Some(g) = optimised(name, std::env::var("NUM").is_ok()) {
                if std::env::var("SHOW").is_ok() { println!("{g}"); }
            }
        });
        if let Err(e) = r { println!("{name}: FAILED {:?}", e.downcast_ref::<String>().map(|s| s.chars().take(600).collect::<String>())); }
    }
}
