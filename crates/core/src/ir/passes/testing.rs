//! For the passes' tests: an interpreter, small graphs, and the check that nothing moves.

use std::collections::BTreeMap;

use rand_pcg::{
    Pcg64Mcg,
    rand_core::{Rng, SeedableRng},
};
use sparoa_kernels::pool::Pool;

use super::{editor::Editor, pattern};
use crate::{
    ir::{Dim, Graph, Model, ModelBuilder, ModelValueId, Shapes, ValueId, specialize},
    ops::{self, AttributeValue},
    tensor::{DType, Tensor, TensorType},
};

/// Pseudo-random contents, between -1 and 1 for floats, 0 to 3 for integers.
pub(super) fn random(ty: &TensorType, seed: u64) -> Tensor {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut unit = || (rng.next_u64() >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
    let n = ty.len();
    let shape = ty.shape.clone();
    match ty.dtype {
        DType::F32 => Tensor::from_slice(shape, &(0..n).map(|_| unit()).collect::<Vec<f32>>()),
        DType::F16 => {
            let data: Vec<half::f16> = (0..n).map(|_| half::f16::from_f32(unit())).collect();
            Tensor::from_slice(shape, &data)
        }
        DType::I64 => {
            let data: Vec<i64> = (0..n).map(|_| (unit().abs() * 3.0) as i64).collect();
            Tensor::from_slice(shape, &data)
        }
        DType::I32 => {
            let data: Vec<i32> = (0..n).map(|_| (unit().abs() * 3.0) as i32).collect();
            Tensor::from_slice(shape, &data)
        }
        _ => Tensor::zeros(ty.clone()),
    }
}

/// Runs a graph node by node.
pub(super) fn interpret(graph: &Graph, inputs: &[Tensor], pool: &Pool) -> Vec<Tensor> {
    let mut values: Vec<Option<Tensor>> =
        graph.values.iter().map(|v| v.constant.as_deref().cloned()).collect();
    for (id, tensor) in graph.inputs.iter().zip(inputs) {
        assert_eq!(*tensor.ty(), graph.value(*id).ty);
        values[id.index()] = Some(tensor.clone());
    }
    let mut last_use = vec![0; values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().flatten().for_each(|v| last_use[v.index()] = i);
    }
    for output in &graph.outputs {
        last_use[output.index()] = usize::MAX;
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let inputs: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|v| v.and_then(|v| values[v.index()].as_ref())).collect();
        let results = ops::evaluate(&*node.op, &inputs, pool)
            .unwrap_or_else(|e| panic!("{} ({:?}): {e}", node.name, node.op));
        for (output, result) in node.outputs.iter().zip(results) {
            if let Some(output) = output {
                values[output.index()] = Some(result);
            }
        }
        for input in node.inputs.iter().flatten() {
            if last_use[input.index()] == i {
                values[input.index()] = None;
            }
        }
    }
    graph.outputs.iter().map(|v| values[v.index()].clone().unwrap()).collect()
}

/// Largest difference of two results, relative to the magnitude of the first.
pub(super) fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.ty(), b.ty());
    let wide = |t: &Tensor| match t.as_slice::<half::f16>() {
        Some(halves) => Some(halves.iter().map(|h| h.to_f32()).collect()),
        None => t.as_slice::<f32>().map(<[f32]>::to_vec),
    };
    let (Some(a), Some(b)) = (wide(a), wide(b)) else {
        return if a == b { 0.0 } else { f32::INFINITY };
    };
    let magnitude = a.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0.0f32, |m, (x, y)| {
        if x.is_nan() && y.is_nan() { m } else { m.max((x - y).abs() / magnitude) }
    })
}

/// Random inputs of a graph.
pub(super) fn inputs_of(graph: &Graph) -> Vec<Tensor> {
    let types = graph.inputs.iter().map(|v| graph.value(*v).ty.clone());
    types.enumerate().map(|(i, ty)| random(&ty, i as u64 + 1)).collect()
}

/// Applies `passes` to a graph and checks that it stays valid and its outputs do not move.
pub(super) fn check(graph: &Graph, passes: &[fn(&mut Editor)], tolerance: f32) -> Graph {
    let mut editor = Editor::new(graph.clone());
    for pass in passes {
        editor.tidy();
        pass(&mut editor);
    }
    let after = editor.finish();
    compare(graph, &after, tolerance);
    after
}

/// Checks that two graphs compute the same.
pub(super) fn compare(before: &Graph, after: &Graph, tolerance: f32) {
    if let Err(e) = after.verify() {
        panic!("{e}\n{after}");
    }
    let names = |g: &Graph, ids: &[ValueId]| -> Vec<String> {
        ids.iter().map(|v| g.value(*v).name.clone()).collect()
    };
    assert_eq!(names(before, &before.inputs), names(after, &after.inputs));
    assert_eq!(names(before, &before.outputs), names(after, &after.outputs));
    let (inputs, pool) = (inputs_of(before), Pool::new(2));
    let expected = interpret(before, &inputs, &pool);
    let got = interpret(after, &inputs, &pool);
    for (i, (a, b)) in expected.iter().zip(&got).enumerate() {
        let d = distance(a, b);
        assert!(d <= tolerance, "output {i} moved by {d}\n{before}\n{after}");
    }
}

/// A model made concrete.
pub(super) fn graph_of(model: &Model) -> Graph {
    specialize(model, &Shapes::new()).unwrap().graph
}

/// How many nodes of each operator a graph has.
pub(super) fn counts(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(node.op.op_type()).or_default() += 1;
    }
    counts
}

/// `counts` without views, as text: `Conv 20, MaxPool 1`.
pub(super) fn summary(graph: &Graph) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in graph.nodes.iter().filter(|n| !n.op.is_view()) {
        *counts.entry(node.op.op_type()).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(op, n)| format!("{op} {n}")).collect();
    parts.join(", ")
}

/// Builds small graphs for tests.
pub(super) struct Build {
    model: ModelBuilder,
    count: usize,
}

impl Build {
    pub(super) fn new() -> Build {
        Build { model: ModelBuilder::new("test"), count: 0 }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.count += 1;
        format!("{prefix}{}", self.count)
    }

    /// An f32 input.
    pub(super) fn input(&mut self, shape: &[usize]) -> ModelValueId {
        self.input_of(DType::F32, shape)
    }

    /// An input.
    pub(super) fn input_of(&mut self, dtype: DType, shape: &[usize]) -> ModelValueId {
        let name = self.name("x");
        let dims: Vec<Dim> = shape.iter().map(|&d| Dim::Fixed(d)).collect();
        self.model.input(name, dtype, dims)
    }

    /// A constant.
    pub(super) fn constant(&mut self, tensor: Tensor) -> ModelValueId {
        let name = self.name("c");
        self.model.constant(name, tensor)
    }

    /// A constant of random f32s.
    pub(super) fn weights(&mut self, shape: &[usize]) -> ModelValueId {
        let tensor = random(&TensorType::f32(shape), 100 + self.count as u64);
        self.constant(tensor)
    }

    /// A scalar constant.
    pub(super) fn scalar(&mut self, value: f32) -> ModelValueId {
        self.constant(Tensor::scalar(value))
    }

    /// A constant of integers.
    pub(super) fn ints(&mut self, values: &[i64]) -> ModelValueId {
        self.constant(Tensor::from_slice([values.len()], values))
    }

    /// A node without attributes.
    pub(super) fn op(&mut self, op_type: &str, inputs: &[ModelValueId]) -> ModelValueId {
        self.node(op_type, inputs, &[])
    }

    /// A node.
    pub(super) fn node(
        &mut self,
        op_type: &str,
        inputs: &[ModelValueId],
        attributes: &[(&str, AttributeValue)],
    ) -> ModelValueId {
        let name = self.name(op_type);
        let op = pattern::make("", op_type, attributes).unwrap();
        self.model.node(name, op, inputs)
    }

    /// A Transpose.
    pub(super) fn transpose(&mut self, x: ModelValueId, perm: &[i64]) -> ModelValueId {
        self.node("Transpose", &[x], &[("perm", AttributeValue::Ints(perm.to_vec()))])
    }

    /// A Reshape.
    pub(super) fn reshape(&mut self, x: ModelValueId, dims: &[i64]) -> ModelValueId {
        let dims = self.ints(dims);
        self.op("Reshape", &[x, dims])
    }

    /// A convolution of `channels[0]` to `channels[1]` with a square kernel that keeps the size.
    pub(super) fn conv(
        &mut self,
        x: ModelValueId,
        channels: [usize; 2],
        kernel: usize,
    ) -> ModelValueId {
        let w = self.weights(&[channels[1], channels[0], kernel, kernel]);
        let pads = AttributeValue::Ints(vec![kernel as i64 / 2; 4]);
        self.node("Conv", &[x, w], &[("pads", pads)])
    }

    /// The graph with these outputs.
    pub(super) fn graph(mut self, outputs: &[ModelValueId]) -> Graph {
        for output in outputs {
            self.model.output(*output);
        }
        graph_of(&self.model.finish())
    }
}
