//! Random small graphs: optimisation leaves every output where it was. The graphs reuse values,
//! share weights, and have outputs in the middle.

use proptest::prelude::*;

use super::{
    optimize,
    testing::{Build, compare},
};
use crate::{
    ir::{Graph, ModelValueId},
    ops::AttributeValue,
    tensor::Tensor,
};

/// What to append, and the choices it makes.
type Step = (u8, usize, usize);

/// A graph on [1, 4, 6, 6] maps; every step reads earlier values.
fn maps(steps: &[Step]) -> Graph {
    let mut b = Build::new();
    let x = b.input(&[1, 4, 6, 6]);
    let y = b.input(&[1, 4, 6, 6]);
    let shared = b.weights(&[4, 4, 3, 3]);
    let mut values = vec![x, y];
    let mut outputs = Vec::new();
    for &(kind, i, j) in steps {
        let (p, q) = (values[i % values.len()], values[j % values.len()]);
        values.push(map_step(&mut b, kind, p, q, shared));
        if kind % 5 == 0 {
            outputs.extend(values.last().copied());
        }
    }
    outputs.extend(values.last().copied());
    outputs.dedup();
    b.graph(&outputs)
}

fn map_step(
    b: &mut Build,
    kind: u8,
    p: ModelValueId,
    q: ModelValueId,
    shared: ModelValueId,
) -> ModelValueId {
    match kind % 16 {
        0 => b.conv(p, [4, 4], 1),
        1 => {
            let pads = [("pads", AttributeValue::Ints(vec![1; 4]))];
            b.node("Conv", &[p, shared], &pads)
        }
        2 => {
            let [gamma, beta, mean] = [0, 1, 2].map(|_| b.weights(&[4]));
            let variance = b.constant(Tensor::from_slice([4], &[0.5f32, 1.0, 2.0, 1.5]));
            b.op("BatchNormalization", &[p, gamma, beta, mean, variance])
        }
        3 => b.op("Relu", &[p]),
        4 => b.op("Add", &[p, q]),
        5 => {
            let gate = b.op("Sigmoid", &[p]);
            b.op("Mul", &[p, gate])
        }
        6 => {
            let c = b.weights(&[4, 1, 1]);
            b.op("Mul", &[c, p])
        }
        7 => {
            let pool = b.op("GlobalAveragePool", &[p]);
            b.op("Mul", &[q, pool])
        }
        8 => {
            let y = b.transpose(p, &[0, 2, 3, 1]);
            let y = b.op("Tanh", &[y]);
            b.transpose(y, &[0, 3, 1, 2])
        }
        9 => {
            let y = b.reshape(p, &[1, 2, 2, 36]);
            let y = b.transpose(y, &[0, 2, 1, 3]);
            b.reshape(y, &[1, 4, 6, 6])
        }
        10 => {
            let both = b.node("Concat", &[p, q], &[("axis", AttributeValue::Int(1))]);
            b.conv(both, [8, 4], 1)
        }
        11 => {
            let w = b.weights(&[6, 6]);
            b.op("MatMul", &[p, w])
        }
        12 => {
            let y = b.transpose(q, &[0, 1, 3, 2]);
            let s = b.op("MatMul", &[p, y]);
            let s = b.node("Softmax", &[s], &[("axis", AttributeValue::Int(-1))]);
            b.op("MatMul", &[s, q])
        }
        13 => {
            let axes = b.ints(&[-1]);
            let mean = b.op("ReduceMean", &[p, axes]);
            b.op("Sub", &[p, mean])
        }
        14 => {
            let (zero, one) = (b.scalar(0.0), b.scalar(1.0));
            let y = b.op("Add", &[p, zero]);
            b.op("Clip", &[y, zero, one])
        }
        _ => {
            let row = b.weights(&[6]);
            b.op("Sub", &[p, row])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn optimisation_moves_nothing(
        steps in proptest::collection::vec((any::<u8>(), 0usize..8, 0usize..8), 1..10)
    ) {
        let graph = maps(&steps);
        compare(&graph, &optimize(graph.clone()), 1e-3);
    }
}
