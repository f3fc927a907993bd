//! How far outputs may be from the reference: fixed, or derived from the arithmetic.

use serde::Serialize;

use crate::ir::Graph;

/// When two floats count as equal: `|a - b| <= atol + rtol * |expected| + of_rms * rms`, where
/// `rms` is the root mean square of the expected tensor. Integers and booleans are equal or not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// Relative.
    pub rtol: f64,
    /// Absolute.
    pub atol: f64,
    /// Relative to the size of the whole tensor.
    pub of_rms: f64,
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { rtol: 1e-3, atol: 1e-4, of_rms: 0.0 }
    }
}

/// Standard deviations that no element of an output should be beyond: of a million normally
/// distributed errors, one in five hundred runs has one outside.
const DEVIATIONS: f64 = 6.0;

impl Tolerance {
    /// For products of which `operands` (1 or 2) are rounded to so many significant bits (bf16
    /// has 8, f16 and tf32 11), `depth` of them one after the other, on top of the default.
    ///
    /// Rounding a number with mantissa m in 1 .. 2 errs evenly within 2^-bits, so with a standard
    /// deviation of 2^-bits / sqrt(3) / m relative to it; over mantissas as they occur (the density
    /// of m is 1 / (m ln 2)) the mean of 1 / m^2 is 3 / (8 ln 2). The errors of the terms of a sum
    /// are independent and so are, for activations and weights of both signs, the terms: both
    /// grow with the square root of their number, and the relative error of a sum, taken over a
    /// tensor, stays that of a term. But what left a ReLU has a mean, which the bias of a folded
    /// normalisation takes away again after it was rounded: the errors stay, the signal shrinks by
    /// its standard deviation to its root mean square, for a normal distribution cut at 0
    /// sqrt(1 / (1 - 1 / pi)) = 1.21. Operators that come one after the other add their errors
    /// independently, again a square root; activations, normalisations and residual sums hand
    /// on errors about as they hand on the signal. What is small compared with the rest of its
    /// tensor is a difference of large terms and errs as those do: hence a bound relative to the
    /// tensor's root mean square, not to the element.
    ///
    /// Where results are stored in as few bits, an operand was rounded when it was stored and is not
    /// once more: the count stays. What is stored and then summed or normalised before a product takes
    /// it is rounded once more than is counted: in a transformer's layer twice, beside ten times for its
    /// five products, which leaves 5.5 of the six standard deviations. Depthwise convolutions, counted
    /// with two operands, then have one.
    ///
    /// A softmax at the end is not covered: it amplifies relative errors by the size of its
    /// inputs.
    pub fn of_rounding(significant_bits: u8, operands: u8, depth: usize) -> Tolerance {
        let mean_inverse_square = 3.0 / (8.0 * std::f64::consts::LN_2);
        let one = (-f64::from(significant_bits)).exp2() * (mean_inverse_square / 3.0).sqrt();
        let mean = (1.0 / (1.0 - std::f64::consts::FRAC_1_PI)).sqrt();
        let of_rms = DEVIATIONS * one * mean * (f64::from(operands) * depth as f64).sqrt();
        Tolerance { of_rms, ..Tolerance::default() }
    }
}

/// The most operators made of products on any path through the graph.
pub fn product_depth(graph: &Graph) -> usize {
    let mut depth = vec![0usize; graph.values.len()];
    for node in &graph.nodes {
        let before = node.inputs.iter().flatten().map(|v| depth[v.index()]).max().unwrap_or(0);
        for value in node.outputs.iter().flatten() {
            depth[value.index()] = before + node.op.product_depth();
        }
    }
    graph.outputs.iter().map(|v| depth[v.index()]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{Shapes, passes::optimize, specialize},
        zoo,
    };

    #[test]
    fn grows_with_the_square_root_of_the_depth() {
        let of = |bits, operands, depth| Tolerance::of_rounding(bits, operands, depth).of_rms;
        assert!((of(8, 2, 1) - 6.0 * 2.35e-3 * 1.21).abs() < 1e-4);
        assert!((of(8, 2, 25) / of(8, 2, 1) - 5.0).abs() < 1e-9);
        assert!((of(8, 2, 9) / of(11, 2, 9) - 8.0).abs() < 1e-9);
        assert_eq!(of(8, 2, 0), 0.0);
    }

    #[test]
    fn depth_is_the_longest_path() {
        let depth = |name| {
            let model = zoo::build(name).unwrap();
            product_depth(&optimize(specialize(&model, &Shapes::new()).unwrap().graph))
        };
        assert_eq!(depth("resnet18"), 21, "18, and 3 shortcuts that take in the residual sum");
        assert_eq!(depth("mobilenet_v2"), 53);
    }
}
