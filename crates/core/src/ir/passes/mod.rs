//! Graph rewrites that leave the outputs as they are. One file per pass; [`optimize`] is the list.
//! [`set_arithmetic`] comes after it, where somebody asks for other than the default arithmetic.

mod activation;
mod affine;
mod arithmetic;
mod attention;
mod attention_bias;
mod batch_norm;
mod chains;
mod cse;
mod dead_channels;
mod editor;
mod epilogue;
mod fold;
mod fused_layers;
mod global_pool;
mod inverted_residual;
mod layer_norm;
mod layout;
mod leading;
mod linear;
mod pattern;
mod quantized;
mod rearrange;
mod simplify;
mod strided;
mod views;
mod widen;

pub use arithmetic::{set_arithmetic, set_variants};

use sparoa_kernels::Arithmetic;

use super::Graph;
use editor::Editor;

/// A rewrite.
type Pass = fn(&mut Editor);

/// Every pass, in order. Each sees a graph without dead code, in topological order.
const PASSES: &[(&str, Pass)] = &[
    // One spelling of everything.
    ("widen", widen::run),
    ("simplify", simplify::run),
    ("global_pool", global_pool::run),
    // Before quantised weights become floats.
    ("quantized", quantized::run),
    ("fold", fold::run),
    ("cse", cse::run),
    ("rearrange", rearrange::run),
    ("activation", activation::run),
    ("layer_norm", layer_norm::run),
    ("linear", linear::run),
    ("batch_norm", batch_norm::run),
    // Bigger operators.
    ("affine", affine::run),
    ("attention", attention::run),
    ("epilogue", epilogue::run),
    // Fewer transpositions.
    ("layout", layout::run),
    ("views", views::run),
    ("sink", layout::sink),
    ("views", views::run),
    ("sink", layout::sink),
    ("views", views::run),
    ("leading", leading::run),
    ("views", views::run),
    ("settle", attention::settle),
    ("fold", fold::run),
    ("simplify", simplify::run),
    // What became neighbours.
    ("affine", affine::run),
    ("activation", activation::run),
    ("epilogue", epilogue::run),
    ("cse", cse::run),
    ("chains", chains::run),
    ("dead_channels", dead_channels::run),
    ("fused_layers", fused_layers::run),
    ("inverted_residual", inverted_residual::run),
];

/// Applies every pass, in order.
pub fn optimize(graph: Graph) -> Graph {
    apply(graph, PASSES)
}

/// [`optimize`], and every operator made of products gets `arithmetic`.
pub fn optimize_for(graph: Graph, arithmetic: Arithmetic) -> Graph {
    let graph = optimize(graph);
    match arithmetic {
        Arithmetic::Fast => graph,
        other => set_arithmetic(graph, other),
    }
}

fn apply(graph: Graph, passes: &[(&str, Pass)]) -> Graph {
    let mut editor = Editor::new(graph);
    for (name, pass) in passes {
        editor.tidy();
        let before = editor.len();
        pass(&mut editor);
        tracing::debug!(pass = name, before, after = editor.len(), "nodes");
    }
    editor.finish()
}

/// The passes that make integer operators, and those before them.
const INTEGER_PASSES: usize = 4;

/// Only what [`optimize`] does to quantised operators: the graph that a quantised model stands
/// for. As floats, its sums would be rounded to integers after being rounded to floats, in an
/// order that no two implementations share; other graphs stay as they are.
pub fn as_integers(graph: Graph) -> Graph {
    let quantizes = |n: &super::Node| n.op.is::<crate::ops::quantize::QuantizeLinear>();
    if !graph.nodes.iter().any(quantizes) {
        return graph;
    }
    apply(graph, &PASSES[..INTEGER_PASSES])
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod quantized_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod zoo_tests;
