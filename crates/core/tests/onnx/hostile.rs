//! Damaged files: whatever the bytes, loading, specialising and running end in a value or an
//! error, never in a panic.

use proptest::prelude::*;
use sparoa_core::{
    ir::{Dim, Shapes, specialize},
    onnx::{
        self, LoadOptions,
        proto::{DataType, ModelProto},
    },
    tensor::{Tensor, TensorType},
};
use sparoa_kernels::pool::Pool;

use super::{
    build::{encode, floats, function, graph, int, ints, model, node, opset, subgraph, value},
    interpret::{RunError, run},
};

/// Models that between them use most of the importer: typed and raw data, functions, subgraphs,
/// shape arithmetic, convolution, reductions.
fn seeds() -> Vec<Vec<u8>> {
    let mut convolution = graph(
        vec![
            node("Conv", &["x", "w", "b"], &["c"]),
            node("Relu", &["c"], &["r"]),
            node("MaxPool", &["r"], &["p"]),
            node("Shape", &["p"], &["s"]),
            node("Gather", &["s", "zero"], &["n"]),
            node("Concat", &["n", "rest"], &["shape"]),
            node("Reshape", &["p", "shape"], &["flat"]),
            node("MatMul", &["flat", "m"], &["mm"]),
            node("Softmax", &["mm"], &["y"]),
        ],
        &[],
        &["y"],
    );
    convolution.input = vec![value("x", DataType::Float, &[-1, 2, 4, 4])];
    convolution.initializer = vec![
        floats("w", &[3, 2, 3, 3], &[0.5; 54]),
        floats("b", &[3], &[0.1, 0.2, 0.3]),
        ints("zero", &[1], &[0]),
        ints("rest", &[1], &[-1]),
        floats("m", &[3, 2], &[0.25; 6]),
    ];
    let mut window = int("kernel_shape", 0);
    window.r#type = Some(7);
    window.i = None;
    window.ints = vec![2, 2];
    convolution.node[2].attribute = vec![window];
    convolution.node[5].attribute = vec![int("axis", 0)];

    let mut choice = node("If", &["c"], &["y"]);
    let branch = |op| graph(vec![node(op, &["x", "w"], &["z"])], &[], &["z"]);
    choice.attribute =
        vec![subgraph("then_branch", branch("Add")), subgraph("else_branch", branch("Mul"))];
    let mut branching = graph(vec![choice], &["x"], &["y"]);
    branching.input.push(value("c", DataType::Bool, &[]));
    branching.initializer = vec![floats("w", &[2], &[1.0, 2.0])];

    let mut call = node("f", &["x"], &["y"]);
    call.domain = Some("local".into());
    let body = vec![
        node("Slice", &["v", "from", "to"], &["t"]),
        node("Expand", &["t", "size"], &["e"]),
        node("ReduceMean", &["e"], &["n"]),
    ];
    let mut calling = graph(vec![call], &["x"], &["y"]);
    calling.output = vec![];
    let mut function = function("f", &["v"], &["n"], body);
    for (name, value) in [("from", 0), ("to", 1), ("size", 3)] {
        let mut constant = node("Constant", &[], &[name]);
        constant.attribute = vec![int("value_ints", 0)];
        constant.attribute[0].r#type = Some(7);
        constant.attribute[0].i = None;
        constant.attribute[0].ints = vec![value];
        function.node.insert(0, constant);
    }
    let mut calling = model(calling);
    calling.functions = vec![function];
    calling.opset_import.push(opset("local", 1));
    vec![encode(&model(convolution)), encode(&model(branching)), encode(&calling)]
}

/// Loads, specialises and, if all tensors are small, runs. Returns how far it came.
fn survive(bytes: Vec<u8>) -> &'static str {
    let options = LoadOptions { max_tensor_bytes: 1 << 20, ..LoadOptions::default() };
    let Ok(model) = onnx::load_bytes(bytes, None, &options) else { return "refused" };
    let small = |dims: &[usize]| dims.iter().all(|d| *d <= 64) && dims.len() <= 6;
    let mut inputs = Vec::new();
    for spec in &model.inputs {
        let dims = spec.dims.iter().flatten();
        let shape: Vec<usize> = dims.map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).collect();
        if !small(&shape) {
            return "large";
        }
        inputs.push(Tensor::zeros(TensorType::new(spec.dtype, shape)));
    }
    // Symbolic dimensions that disagree are an error like any other.
    let shapes: Shapes = model
        .inputs
        .iter()
        .zip(&inputs)
        .map(|(spec, t)| (spec.name.clone(), t.shape().to_vec()))
        .collect();
    let Ok(special) = specialize(&model, &shapes) else { return "not specialised" };
    if special.graph.values.iter().any(|v| v.ty.bytes() > 1 << 22) {
        return "large";
    }
    match run(&model, &inputs, true, &Pool::new(1)) {
        Ok(_) => "ran",
        Err(RunError::Specialize(_)) => "not specialised",
        Err(RunError::Node { .. }) => "not run",
    }
}

#[test]
fn the_seeds_are_sound() {
    for (i, seed) in seeds().into_iter().enumerate() {
        assert_eq!(survive(seed), "ran", "seed {i}");
    }
}

#[test]
fn truncated_files() {
    for seed in seeds() {
        for length in 0..seed.len() {
            survive(seed[..length].to_vec());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn changed_bytes(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = seeds().swap_remove(which);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survive(bytes);
    }

    #[test]
    fn flipped_bits(which in 0usize..3, at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut bytes = seeds().swap_remove(which);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        survive(bytes);
    }

    #[test]
    fn changed_integers(
        which in 0usize..3,
        at in any::<prop::sample::Index>(),
        value in prop_oneof![Just(-1), Just(i64::MIN), Just(i64::MAX), Just(1 << 33), -9i64..9],
    ) {
        use prost::Message;
        let mut proto = ModelProto::decode(seeds().swap_remove(which).as_slice()).unwrap();
        let mut integers = integers(&mut proto);
        let at = at.index(integers.len());
        *integers[at] = value;
        survive(encode(&proto));
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        survive(bytes);
    }
}

/// Every dimension, index and integer attribute of the main graph and of the functions.
fn integers(proto: &mut ModelProto) -> Vec<&mut i64> {
    use onnx::proto::{DimensionValue, type_proto::Value};
    let graph = proto.graph.as_mut().unwrap();
    let mut all = Vec::new();
    for tensor in &mut graph.initializer {
        all.extend(&mut tensor.dims);
        all.extend(&mut tensor.int64_data);
    }
    for ty in graph.input.iter_mut().filter_map(|v| v.r#type.as_mut()?.value.as_mut()) {
        let Value::TensorType(tensor) = ty else { continue };
        for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
            if let Some(DimensionValue::Value(n)) = &mut dim.value {
                all.push(n);
            }
        }
    }
    let bodies = proto.functions.iter_mut().flat_map(|f| &mut f.node);
    for attribute in graph.node.iter_mut().chain(bodies).flat_map(|n| &mut n.attribute) {
        all.extend(&mut attribute.ints);
        all.extend(&mut attribute.i);
    }
    all.extend(proto.opset_import.iter_mut().filter_map(|o| o.version.as_mut()));
    all
}
