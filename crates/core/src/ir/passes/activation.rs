//! Activation functions in all the ways in which exporters write them.

use std::sync::Arc;

use sparoa_kernels::Activation;

use super::{
    editor::Editor,
    pattern::{self, near},
};
use crate::{
    ir::{NodeId, ValueId},
    ops::elementwise::{Elementwise, Expr},
};

/// An activation found in the graph.
#[derive(Debug)]
pub(super) struct Found {
    /// Its argument.
    pub(super) x: ValueId,
    /// The function.
    pub(super) activation: Activation,
    /// The nodes that compute it, besides the last.
    pub(super) inner: Vec<NodeId>,
}

/// The activation whose last node is `root`, its inner values read by nobody else.
pub(super) fn find(e: &Editor, root: NodeId) -> Option<Found> {
    let found = simple(e, root).or_else(|| written_out(e, root))?;
    let whole: Vec<NodeId> = found.inner.iter().copied().chain([root]).collect();
    let closed = found
        .inner
        .iter()
        .all(|id| e.node(*id).outputs.iter().flatten().all(|v| e.used_only_by(*v, &whole)));
    (closed && e.shape(found.x) == e.shape(e.output(root)?)).then_some(found)
}

/// One node.
fn simple(e: &Editor, root: NodeId) -> Option<Found> {
    let found = |x, activation| Some(Found { x, activation, inner: Vec::new() });
    let (x, activation) = pattern::activation(e, root)?;
    found(x, activation)
}

/// Several nodes: a product with a gate, or a bounded line.
fn written_out(e: &Editor, root: NodeId) -> Option<Found> {
    // An argument may itself be a product: take no more apart than needed.
    (1..=4).find_map(|depth| in_product(e, root, depth))
}

/// A product taken apart `depth` deep.
fn in_product(e: &Editor, root: NodeId, depth: usize) -> Option<Found> {
    let output = e.output(root)?;
    let mut inner = Vec::new();
    let product = pattern::product(e, output, depth, None, &mut inner);
    let c = product.coefficient;
    let (x, activation) = match product.factors[..] {
        // c * clip(a x + b, low, high)
        [factor] => {
            let gate = gate(e, factor, None, &mut inner)?;
            match gate.kind {
                Gate::Clip { a, b, low, high } if c * low == 0.0 && near(c * high, 1.0) => {
                    (gate.x, Activation::HardSigmoid { alpha: c * a, beta: c * b })
                }
                _ => return None,
            }
        }
        [p, q] => gated(e, c, p, q, &mut inner).or_else(|| gated(e, c, q, p, &mut inner))?,
        _ => return None,
    };
    inner.retain(|id| *id != root);
    inner.sort();
    inner.dedup();
    Some(Found { x, activation, inner })
}

/// c * x * gate(x)
fn gated(
    e: &Editor,
    c: f32,
    x: ValueId,
    factor: ValueId,
    inner: &mut Vec<NodeId>,
) -> Option<(ValueId, Activation)> {
    let mut nodes = Vec::new();
    let gate = gate(e, factor, Some(x), &mut nodes).filter(|g| g.x == x)?;
    let activation = match gate.kind {
        Gate::Clip { a, b, low, high } => {
            let hard_swish =
                near(c * a, 1.0 / 6.0) && near(c * b, 0.5) && low == 0.0 && near(c * high, 1.0);
            hard_swish.then_some(Activation::HardSwish)?
        }
        Gate::Sigmoid if near(c, 1.0) => Activation::Silu,
        Gate::TanhSoftplus if near(c, 1.0) => Activation::Mish,
        // c * x * (p + q * erf(x / sqrt 2)), both halves one half.
        Gate::Erf { p, q } if near(c * p, 0.5) && near(c * q, 0.5) => Activation::Gelu,
        Gate::Tanh { p, q } if near(c * p, 0.5) && near(c * q, 0.5) => Activation::GeluTanh,
        _ => return None,
    };
    inner.extend(nodes);
    Some((x, activation))
}

/// A gate: what multiplies x.
struct Gated {
    x: ValueId,
    kind: Gate,
}

enum Gate {
    /// clip(a x + b, low, high)
    Clip { a: f32, b: f32, low: f32, high: f32 },
    /// sigmoid(x)
    Sigmoid,
    /// tanh(softplus(x))
    TanhSoftplus,
    /// p + q erf(x / sqrt 2)
    Erf { p: f32, q: f32 },
    /// p + q tanh(sqrt(2/pi) (x + 0.044715 x^3))
    Tanh { p: f32, q: f32 },
}

/// Reads a gate; of `x`, if that is known.
fn gate(e: &Editor, value: ValueId, x: Option<ValueId>, nodes: &mut Vec<NodeId>) -> Option<Gated> {
    let known = x;
    let line = line(e, value, None, nodes);
    let id = e.producer(line.x)?;
    if let Some(x) = pattern::unary(e, id, "Erf") {
        nodes.push(id);
        let inner = self::line(e, x, known, nodes);
        return (near(inner.a, std::f32::consts::FRAC_1_SQRT_2) && inner.b == 0.0)
            .then_some(Gated { x: inner.x, kind: Gate::Erf { p: line.b, q: line.a } });
    }
    let (x, activation) = pattern::activation(e, id)?;
    nodes.push(id);
    let whole = line.a == 1.0 && line.b == 0.0;
    match activation {
        Activation::Sigmoid if whole => Some(Gated { x, kind: Gate::Sigmoid }),
        Activation::HardSigmoid { alpha, beta } if whole => {
            Some(Gated { x, kind: Gate::Clip { a: alpha, b: beta, low: 0.0, high: 1.0 } })
        }
        Activation::Clip { min, max } if line.a > 0.0 && line.b == 0.0 => {
            let inside = self::line(e, x, known, nodes);
            let (a, b) = (line.a * inside.a, line.a * inside.b);
            let kind = Gate::Clip { a, b, low: line.a * min, high: line.a * max };
            Some(Gated { x: inside.x, kind })
        }
        Activation::Tanh => {
            if let Some((x, Activation::Softplus)) =
                e.producer(x).and_then(|id| pattern::activation(e, id))
                && whole
            {
                nodes.extend(e.producer(e.input(id, 0)?));
                return Some(Gated { x, kind: Gate::TanhSoftplus });
            }
            let x = cubic(e, x, known?, nodes)?;
            Some(Gated { x, kind: Gate::Tanh { p: line.b, q: line.a } })
        }
        _ => None,
    }
}

/// a x + b
struct Line {
    a: f32,
    b: f32,
    x: ValueId,
}

/// The line that makes `value`, with a = 1 and b = 0 if it is none; no deeper than `stop`.
fn line(e: &Editor, value: ValueId, stop: Option<ValueId>, nodes: &mut Vec<NodeId>) -> Line {
    let mut line = Line { a: 1.0, b: 0.0, x: value };
    for _ in 0..3 {
        if Some(line.x) == stop {
            break;
        }
        let Some(id) = e.producer(line.x) else { break };
        let shape = e.shape(line.x);
        let second = pattern::binary(e, id, pattern::name(e, id))
            .filter(|(a, _)| e.shape(*a) == shape)
            .and_then(|(a, b)| Some((a, pattern::scalar(e, b)?)));
        if let Some((x, s)) = pattern::with_scalar(e, id, "Add") {
            (line.b, line.x) = (line.b + line.a * s, x);
        } else if let Some((x, s)) = pattern::with_scalar(e, id, "Mul") {
            (line.a, line.x) = (line.a * s, x);
        } else if let (Some((x, s)), "Sub") = (second, pattern::name(e, id)) {
            (line.b, line.x) = (line.b - line.a * s, x);
        } else if let (Some((x, s)), "Div") = (second, pattern::name(e, id)) {
            (line.a, line.x) = (line.a / s, x);
        } else {
            break;
        }
        nodes.push(id);
    }
    line
}

/// The x of sqrt(2/pi) * (x + 0.044715 x^3), or of sqrt(2/pi) * x * (1 + 0.044715 x^2), which
/// should be `known`.
fn cubic(e: &Editor, value: ValueId, known: ValueId, nodes: &mut Vec<NodeId>) -> Option<ValueId> {
    const ROOT: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    let outer = pattern::product(e, value, 2, Some(known), nodes);
    if !near(outer.coefficient, ROOT) {
        return None;
    }
    // c x^n as (c, x, n)
    let monomial = |value: ValueId, nodes: &mut Vec<NodeId>| -> Option<(f32, ValueId, f32)> {
        let p = pattern::product(e, value, 3, Some(known), nodes);
        let mut whole: Option<(ValueId, f32)> = None;
        for &factor in &p.factors {
            let power = e.producer(factor).and_then(|id| Some((id, pattern::power(e, id)?)));
            let (x, n) = match power {
                Some((id, power)) => {
                    nodes.push(id);
                    power
                }
                None => (factor, 1.0),
            };
            match &mut whole {
                None => whole = Some((x, n)),
                Some((y, m)) if *y == x => *m += n,
                Some(_) => return None,
            }
        }
        let (x, n) = whole?;
        Some((p.coefficient, x, n))
    };
    match outer.factors[..] {
        [sum] => {
            let id = e.producer(sum)?;
            let (a, b) = pattern::binary(e, id, "Add")?;
            nodes.push(id);
            for (x, cube) in [(a, b), (b, a)] {
                let mut inside = Vec::new();
                if let Some((c, y, n)) = monomial(cube, &mut inside)
                    && near(c, CUBIC)
                    && n == 3.0
                    && y == x
                {
                    nodes.extend(inside);
                    return Some(x);
                }
            }
            None
        }
        [a, b] => [(a, b), (b, a)].into_iter().find_map(|(x, sum)| {
            let mut inside = Vec::new();
            let l = line(e, sum, None, &mut inside);
            let (c, y, n) = monomial(l.x, &mut inside)?;
            let fits = near(l.a * c, CUBIC) && near(l.b, 1.0) && n == 2.0 && y == x;
            fits.then(|| {
                nodes.extend(inside);
                x
            })
        }),
        _ => None,
    }
}

/// Replaces activations that several nodes write out by one operator each.
pub(super) fn run(e: &mut Editor) {
    let ids: Vec<NodeId> = e.ids().collect();
    for id in ids.into_iter().rev() {
        if e.get(id).is_none() {
            continue;
        }
        if let Some(found) = find(e, id).filter(|f| !f.inner.is_empty()) {
            let expr = Expr::activation(found.activation);
            let op = Arc::new(Elementwise::new(expr));
            e.fuse(id, &found.inner, id, op, vec![Some(found.x)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{
        ModelValueId,
        passes::{
            cse,
            testing::{Build, check, summary},
        },
    };

    /// One spelling: the result of x.
    type Spelling = fn(&mut Build, ModelValueId) -> ModelValueId;

    /// That all spellings of x are recognised as `activation`.
    fn recognised(activation: Activation, spellings: &[Spelling]) {
        for (i, spelling) in spellings.iter().enumerate() {
            let mut b = Build::new();
            let (x, w) = (b.input(&[4, 16]), b.scalar(4.0));
            // A product as the argument must not confuse the search.
            let x = b.op("Mul", &[x, w]);
            let y = spelling(&mut b, x);
            let after = check(&b.graph(&[y]), &[cse::run, run], 2e-4);
            assert_eq!(after.nodes.len(), 2, "spelling {i} of {activation:?}: {after}");
            let op = after.nodes[1].op.downcast::<Elementwise>().unwrap();
            assert_eq!(format!("{op:?}"), format!("Elementwise({activation:?}(x0))"));
        }
    }

    fn half_gate(b: &mut Build, x: ModelValueId, root: f32) -> ModelValueId {
        let root = b.scalar(root);
        let y = b.op("Div", &[x, root]);
        let (y, one) = (b.op("Erf", &[y]), b.scalar(1.0));
        b.op("Add", &[y, one])
    }

    #[test]
    fn gelu_in_the_exporters_spellings() {
        recognised(
            Activation::Gelu,
            &[
                |b, x| {
                    let (gate, half) = (half_gate(b, x, std::f32::consts::SQRT_2), b.scalar(0.5));
                    let y = b.op("Mul", &[x, gate]);
                    b.op("Mul", &[y, half])
                },
                |b, x| {
                    let (gate, half) = (half_gate(b, x, std::f32::consts::SQRT_2), b.scalar(0.5));
                    let gate = b.op("Mul", &[half, gate]);
                    b.op("Mul", &[x, gate])
                },
                |b, x| {
                    let half = b.scalar(0.5);
                    let y = b.op("Mul", &[x, half]);
                    let gate = half_gate(b, x, std::f32::consts::SQRT_2);
                    b.op("Mul", &[y, gate])
                },
                |b, x| {
                    let (root, half) = (b.scalar(std::f32::consts::FRAC_1_SQRT_2), b.scalar(0.5));
                    let y = b.op("Mul", &[root, x]);
                    let y = b.op("Erf", &[y]);
                    let y = b.op("Mul", &[y, half]);
                    let y = b.op("Add", &[half, y]);
                    b.op("Mul", &[y, x])
                },
            ],
        );
    }

    #[test]
    fn gelu_by_tanh() {
        fn finish(b: &mut Build, x: ModelValueId, inner: ModelValueId) -> ModelValueId {
            let (one, half) = (b.scalar(1.0), b.scalar(0.5));
            let y = b.op("Tanh", &[inner]);
            let y = b.op("Add", &[y, one]);
            let x = b.op("Mul", &[x, half]);
            b.op("Mul", &[x, y])
        }
        recognised(
            Activation::GeluTanh,
            &[
                |b, x| {
                    let (three, c, root) =
                        (b.scalar(3.0), b.scalar(0.044_715), b.scalar(0.797_884_6));
                    let y = b.op("Pow", &[x, three]);
                    let y = b.op("Mul", &[y, c]);
                    let y = b.op("Add", &[x, y]);
                    let y = b.op("Mul", &[y, root]);
                    finish(b, x, y)
                },
                |b, x| {
                    let (one, c, root) =
                        (b.scalar(1.0), b.scalar(0.044_715), b.scalar(0.797_884_6));
                    let y = b.op("Mul", &[x, x]);
                    let y = b.op("Mul", &[y, c]);
                    let y = b.op("Add", &[one, y]);
                    let root = b.op("Mul", &[x, root]);
                    let y = b.op("Mul", &[root, y]);
                    finish(b, x, y)
                },
            ],
        );
    }

    #[test]
    fn gates() {
        recognised(
            Activation::Silu,
            &[|b, x| {
                let gate = b.op("Sigmoid", &[x]);
                b.op("Mul", &[gate, x])
            }],
        );
        recognised(
            Activation::Mish,
            &[|b, x| {
                let gate = b.op("Softplus", &[x]);
                let gate = b.op("Tanh", &[gate]);
                b.op("Mul", &[x, gate])
            }],
        );
        fn clipped(b: &mut Build, x: ModelValueId) -> ModelValueId {
            let (three, zero, six) = (b.scalar(3.0), b.scalar(0.0), b.scalar(6.0));
            let y = b.op("Add", &[x, three]);
            b.op("Clip", &[y, zero, six])
        }
        recognised(
            Activation::HardSwish,
            &[
                |b, x| {
                    let (gate, six) = (clipped(b, x), b.scalar(6.0));
                    let y = b.op("Mul", &[x, gate]);
                    b.op("Div", &[y, six])
                },
                |b, x| {
                    let (gate, six) = (clipped(b, x), b.scalar(6.0));
                    let gate = b.op("Div", &[gate, six]);
                    b.op("Mul", &[x, gate])
                },
                |b, x| {
                    let attributes = [("alpha", 1.0 / 6.0), ("beta", 0.5)]
                        .map(|(k, v)| (k, crate::ops::AttributeValue::Float(v)));
                    let gate = b.node("HardSigmoid", &[x], &attributes);
                    b.op("Mul", &[x, gate])
                },
            ],
        );
    }

    #[test]
    fn a_gate_wanted_elsewhere_stays() {
        let mut b = Build::new();
        let x = b.input(&[4]);
        let gate = b.op("Sigmoid", &[x]);
        let y = b.op("Mul", &[x, gate]);
        let after = check(&b.graph(&[y, gate]), &[run], 0.0);
        assert_eq!(summary(&after), "Mul 1, Sigmoid 1");
    }
}
