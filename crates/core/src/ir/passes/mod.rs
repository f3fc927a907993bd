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
mod editor;
mod epilogue;
mod fold;
mod global_pool;
mod layer_norm;
mod layout;
mod leading;
mod linear;
mod pattern;
mod simplify;
mod strided;
mod views;
mod widen;

pub use arithmetic::set_arithmetic;

use super::Graph;
use editor::Editor;

/// A rewrite.
type Pass = fn(&mut Editor);

/// Every pass, in order. Each sees a graph without dead code, in topological order.
const PASSES: &[(&str, Pass)] = &[
    // One spelling of everything.
    ("widen", widen::run),
    ("simplify", simplify::run),
    ("fold", fold::run),
    ("cse", cse::run),
    ("global_pool", global_pool::run),
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
];

/// Applies every pass, in order.
pub fn optimize(graph: Graph) -> Graph {
    let mut editor = Editor::new(graph);
    for (name, pass) in PASSES {
        editor.tidy();
        let before = editor.len();
        pass(&mut editor);
        tracing::debug!(pass = name, before, after = editor.len(), "nodes");
    }
    editor.finish()
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod zoo_tests;
