//! The one list of operators.

use super::*;

/// Every operator family's table.
const FAMILIES: &[&[OpSpec]] = &[
    attention::SPECS,
    batch_norm::SPECS,
    cast::SPECS,
    concat::SPECS,
    constant::SPECS,
    control::SPECS,
    conv::SPECS,
    conv_transpose::SPECS,
    cumulative::SPECS,
    dynamic::SPECS,
    einsum::SPECS,
    elementwise::SPECS,
    expand::SPECS,
    fused_layers::SPECS,
    gather::SPECS,
    gemm::SPECS,
    inverted_residual::SPECS,
    matmul::SPECS,
    norm::SPECS,
    pad::SPECS,
    pooling::SPECS,
    quantize::SPECS,
    quantized::SPECS,
    recurrent::SPECS,
    reduce::SPECS,
    reshape::SPECS,
    resize::SPECS,
    roll::SPECS,
    scatter::SPECS,
    select::SPECS,
    shape::SPECS,
    slice::SPECS,
    softmax::SPECS,
    space_depth::SPECS,
    transpose::SPECS,
];

/// Every registered operator.
pub fn specs() -> impl Iterator<Item = &'static OpSpec> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

/// The operator of that domain and name.
pub fn find(domain: &str, name: &str) -> Option<&'static OpSpec> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    specs().find(|s| s.domain == domain && s.name == name)
}

/// Registered names closest to `name`, for error messages.
pub fn nearest(name: &str) -> Vec<&'static str> {
    let mut scored: Vec<_> = specs().map(|s| (distance(s.name, name), s.name)).collect();
    scored.sort();
    scored.dedup();
    scored.into_iter().take(3).map(|(_, n)| n).collect()
}

/// Levenshtein distance, ASCII case ignored.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
