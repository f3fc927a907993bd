//! What the importer makes of small files: order, names, functions, subgraphs, and errors that
//! say where and why.

use sparoa_core::{
    ir::{Dim, Model},
    onnx::{
        self, LoadError, LoadErrorKind, LoadOptions,
        proto::{DataType, ModelProto, TensorProto, TypeProto, type_proto},
    },
    tensor::Tensor,
};
use sparoa_kernels::pool::Pool;

use super::{
    build::{
        encode, entry, floats, function, graph, int, ints, model, node, opset, subgraph, value,
    },
    interpret::run,
};

fn load(proto: &ModelProto) -> Result<Model, LoadError> {
    onnx::load_bytes(encode(proto), None, &LoadOptions::default())
}

fn refused(proto: &ModelProto) -> String {
    load(proto).expect_err("must be refused").to_string()
}

/// Runs a model on one input of two elements.
fn outputs(proto: &ModelProto, x: [f32; 2]) -> Vec<Tensor> {
    run(&load(proto).unwrap(), &[Tensor::from_slice([2], &x)], false, &Pool::new(1)).unwrap()
}

fn pair(a: f32, b: f32) -> Tensor {
    Tensor::from_slice([2], &[a, b])
}

#[test]
fn nodes_are_sorted_and_named() {
    let nodes = vec![
        node("Neg", &["b"], &["y"]),
        node("Add", &["a", "x"], &["b"]),
        node("Relu", &["x"], &["a"]),
    ];
    let proto = model(graph(nodes, &["x"], &["y"]));
    let names: Vec<_> = load(&proto).unwrap().nodes.into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["Relu_2", "Add_1", "Neg_0"]);
    assert_eq!(outputs(&proto, [-1.0, 2.0]), [pair(1.0, -4.0)]);
}

#[test]
fn initialisers_that_are_also_inputs_are_constants() {
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])], &["x", "w"], &["y"]);
    g.initializer = vec![
        floats("w", &[2], &[1.0, 2.0]),
        TensorProto {
            // Never read, so its type does not matter.
            name: Some("unused".into()),
            data_type: Some(DataType::String.into()),
            ..Default::default()
        },
    ];
    let proto = model(g);
    assert_eq!(load(&proto).unwrap().inputs.len(), 1);
    assert_eq!(outputs(&proto, [0.0, 0.0]), [pair(1.0, 2.0)]);
}

#[test]
fn free_dimensions_stay_free() {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])], &[], &["y"]);
    g.input = vec![value("x", DataType::Float, &[-1, 3])];
    let dims = load(&model(g)).unwrap().inputs.remove(0).dims;
    assert_eq!(dims, Some(vec![Dim::Unknown, Dim::Fixed(3)]));
}

#[test]
fn constants_become_tensors() {
    let mut constant = node("Constant", &[], &["c"]);
    constant.attribute = vec![subgraph("value", graph(vec![], &[], &[]))];
    let proto = |c: &_| {
        model(graph(vec![Clone::clone(c), node("Add", &["x", "c"], &["y"])], &["x"], &["y"]))
    };
    assert!(refused(&proto(&constant)).contains("'value'"));
    constant.attribute[0].g = None;
    constant.attribute[0].t = Some(Box::new(floats("", &[2], &[1.0, 2.0])));
    constant.attribute[0].r#type = None;
    assert_eq!(outputs(&proto(&constant), [0.0, 1.0]), [pair(1.0, 3.0)]);
    constant.attribute = vec![];
    assert!(refused(&proto(&constant)).contains("exactly one value"));
}

#[test]
fn every_missing_operator_is_named() {
    let mut microsoft = node("FancyGelu", &["b"], &["y"]);
    microsoft.domain = Some("com.microsoft".into());
    microsoft.name = Some("fancy".into());
    let nodes = vec![node("Reluu", &["x"], &["a"]), node("Reluu", &["a"], &["b"]), microsoft];
    let error = load(&model(graph(nodes, &["x"], &["y"]))).unwrap_err();
    let LoadErrorKind::MissingOperators(missing) = &*error.kind else { panic!("{error}") };
    assert_eq!((missing.len(), missing[0].count, missing[0].first.as_str()), (2, 2, "Reluu_0"));
    assert!(missing[0].nearest.contains(&"Relu"));
    let text = error.to_string();
    assert!(text.contains("com.microsoft::FancyGelu (1 node 'fancy'"), "{text}");
}

#[test]
fn opsets_are_checked() {
    let with = |imports| {
        let g = graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]);
        ModelProto { opset_import: imports, ..model(g) }
    };
    for version in [9, 17, 22, 23, 28] {
        assert!(load(&with(vec![opset("", version)])).is_ok(), "opset {version}");
    }
    assert!(load(&with(vec![opset("ai.onnx", 17)])).is_ok());
    assert!(refused(&with(vec![opset("", 8)])).contains("version_converter"));
    assert!(refused(&with(vec![opset("", i64::MAX)])).contains("newer"));
    assert!(refused(&with(vec![opset("", -1)])).contains("older"));
    assert!(refused(&with(vec![])).contains("imports no opset"));
}

#[test]
fn malformed_graphs_are_refused_by_name() {
    let g = |nodes| model(graph(nodes, &["x"], &["y"]));
    let cases = [
        (
            g(vec![
                node("Add", &["x", "b"], &["a"]),
                node("Relu", &["a"], &["b"]),
                node("Neg", &["b"], &["y"]),
            ]),
            "cycle",
        ),
        (g(vec![node("Relu", &["nowhere"], &["y"])]), "value 'nowhere' is not defined"),
        (g(vec![node("Relu", &["x"], &["z"])]), "value 'y' is not defined"),
        (
            g(vec![node("Relu", &["x"], &["y"]), node("Neg", &["x"], &["y"])]),
            "'y' is defined twice",
        ),
        (g(vec![node("Relu", &["x"], &["x"])]), "'x' is defined twice"),
        (g(vec![node("Relu", &["x", "x"], &["y"])]), "'Relu_0' (Relu): has 2 inputs, must have 1"),
        (g(vec![node("Relu", &[], &["y"])]), "has 0 inputs"),
        (g(vec![node("Relu", &["x"], &["y", "z"])]), "has 2 outputs"),
    ];
    for (proto, why) in cases {
        let text = refused(&proto);
        assert!(text.contains(why), "{why}: {text}");
    }
    let mut relu = node("Relu", &["x"], &["y"]);
    relu.attribute = vec![int("slope", 1)];
    assert!(refused(&g(vec![relu.clone()])).contains("'Relu_0' (Relu): attribute 'slope'"));
    relu.attribute = vec![int("slope", 1), int("slope", 1)];
    assert!(refused(&g(vec![relu])).contains("given twice"));
}

#[test]
fn other_types_than_tensors_are_refused() {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]);
    g.input[0].r#type = Some(TypeProto {
        value: Some(type_proto::Value::SequenceType(Default::default())),
        denotation: None,
    });
    assert!(refused(&model(g.clone())).contains("'x': is a sequence"));
    g.input[0] = value("x", DataType::Bfloat16, &[2]);
    assert!(refused(&model(g.clone())).contains("bfloat16 is not supported"));
    g.input[0] = value("x", DataType::Float, &[i64::MAX, 2]);
    assert!(refused(&model(g)).contains("max_tensor_bytes"));
}

#[test]
fn functions_are_inlined() {
    // outer(a, b) = inner(a) + b; inner(v) = -v, and passes its input through.
    let mut call = node("outer", &["x", "x"], &["y", "z"]);
    call.domain = Some("local".into());
    call.name = Some("call".into());
    let mut nested = node("inner", &["a"], &["t", "copy"]);
    nested.domain = Some("local".into());
    let mut proto = model(graph(vec![call], &["x"], &["y", "z"]));
    proto.opset_import.push(opset("local", 1));
    proto.functions = vec![
        function(
            "outer",
            &["a", "b"],
            &["sum", "copy"],
            vec![nested, node("Add", &["t", "b"], &["sum"])],
        ),
        function("inner", &["v"], &["n", "v"], vec![node("Neg", &["v"], &["n"])]),
    ];
    assert_eq!(outputs(&proto, [1.0, 2.0]), [pair(0.0, 0.0), pair(1.0, 2.0)]);
    let names: Vec<_> = load(&proto).unwrap().nodes.into_iter().map(|n| n.name).collect();
    assert!(names.contains(&"call/inner_0/Neg_0".to_owned()), "{names:?}");

    // A function that calls itself ends at the depth limit.
    let mut recursive = node("inner", &["v"], &["n"]);
    recursive.domain = Some("local".into());
    proto.functions[1].node = vec![recursive];
    assert!(refused(&proto).contains("max_depth"));
}

#[test]
fn function_attributes_come_from_the_call_or_the_default() {
    let mut body = node("ReduceSum", &["v", "axes"], &["s"]);
    let mut keep = int("keepdims", 0);
    keep.i = None;
    keep.ref_attr_name = Some("keep".into());
    body.attribute = vec![keep];
    let mut constant = node("Constant", &[], &["axes"]);
    constant.attribute = vec![int("value_ints", 0)];
    constant.attribute[0].r#type = None;
    constant.attribute[0].i = None;
    constant.attribute[0].ints = vec![0];
    let mut call = node("total", &["x"], &["y"]);
    call.domain = Some("local".into());
    let mut proto = model(graph(vec![call], &["x"], &["y"]));
    proto.functions = vec![function("total", &["v"], &["s"], vec![constant, body])];
    proto.functions[0].attribute_proto = vec![int("keep", 0)];
    assert_eq!(outputs(&proto, [1.0, 2.0]), [Tensor::scalar(3f32)]);
    proto.graph.as_mut().unwrap().node[0].attribute = vec![int("keep", 1)];
    assert_eq!(outputs(&proto, [1.0, 2.0]), [Tensor::from_slice([1], &[3f32])]);
    // Neither given nor a default: the operator's own default (1).
    proto.graph.as_mut().unwrap().node[0].attribute.clear();
    proto.functions[0].attribute_proto.clear();
    assert_eq!(outputs(&proto, [1.0, 2.0]), [Tensor::from_slice([1], &[3f32])]);
}

/// `y = cond ? x + w : -late`, where `w` is an outer initialiser and `late` is computed by a
/// node that comes after the `If` in the file.
fn branching() -> ModelProto {
    let mut then = graph(vec![node("Add", &["x", "w"], &["then_y"])], &[], &["then_y"]);
    then.name = Some("then".into());
    let mut otherwise = graph(vec![node("Neg", &["late"], &["else_y"])], &[], &["else_y"]);
    otherwise.name = Some("else".into());
    let mut choice = node("If", &["cond"], &["y"]);
    choice.attribute = vec![subgraph("then_branch", then), subgraph("else_branch", otherwise)];
    let mut g = graph(vec![choice, node("Relu", &["x"], &["late"])], &["x"], &["y"]);
    g.input.push(value("cond", DataType::Bool, &[]));
    g.initializer = vec![floats("w", &[2], &[1.0, 1.0])];
    model(g)
}

#[test]
fn subgraphs_capture_outer_values() {
    let loaded = load(&branching()).unwrap();
    let choice = loaded.nodes.iter().find(|n| n.op.op_type() == "If").unwrap();
    // The condition, then x, w and late.
    assert_eq!(choice.inputs.len(), 4);
    for (cond, want) in [(true, pair(0.0, 3.0)), (false, pair(0.0, -2.0))] {
        let inputs = [pair(-1.0, 2.0), Tensor::from_bools([], &[cond])];
        let got = run(&loaded, &inputs, false, &Pool::new(1)).unwrap();
        let got = got[0].as_slice::<f32>().unwrap();
        assert_eq!(got, want.as_slice::<f32>().unwrap());
    }
}

#[test]
fn a_capture_that_exists_nowhere_is_named_with_its_reader() {
    let mut proto = branching();
    proto.graph.as_mut().unwrap().node.truncate(1);
    assert_eq!(
        refused(&proto),
        "model: node 'Neg_0' (Neg): value 'late' is not defined: no input, initialiser or node \
         has that name"
    );
}

#[test]
fn limits_hold() {
    let proto = branching();
    let with = |options: LoadOptions| {
        onnx::load_bytes(encode(&proto), None, &options).map(|_| ()).map_err(|e| e.to_string())
    };
    let default = LoadOptions::default;
    assert!(with(LoadOptions { max_nodes: 3, ..default() }).unwrap_err().contains("max_nodes"));
    assert!(with(LoadOptions { max_depth: 0, ..default() }).unwrap_err().contains("max_depth"));
    let small = LoadOptions { max_tensor_bytes: 4, ..default() };
    assert!(with(small).unwrap_err().contains("max_tensor_bytes"));
    assert!(with(LoadOptions { max_nodes: 4, max_depth: 1, ..default() }).is_ok());
}

#[test]
fn text_files_and_empty_files_are_no_models() {
    let load = |bytes: &'static [u8]| {
        onnx::load_bytes(bytes, None, &LoadOptions::default()).unwrap_err().to_string()
    };
    assert!(load(b"").contains("no graph"));
    assert!(load(b"not a model").contains("not an ONNX model"));
    assert!(load(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
}

#[test]
fn annotations_keep_the_model() {
    let mut proto = branching();
    proto.graph.as_mut().unwrap().node[1].metadata_props = vec![entry("k", "old")];
    let pairs = |v: &str| vec![("k".to_owned(), v.to_owned())];
    let metadata = [("Relu_1".to_owned(), pairs("new")), ("If_0/Neg_0".to_owned(), pairs("inner"))];
    let annotated = onnx::annotate(encode(&proto), &metadata.into()).unwrap();
    let g = proto.graph.as_mut().unwrap();
    g.node[1].metadata_props = vec![entry("k", "new")];
    let branch = g.node[0].attribute[1].g.as_mut().unwrap();
    branch.node[0].metadata_props = vec![entry("k", "inner")];
    assert_eq!(annotated, encode(&proto));
}

#[test]
fn int_initialisers_feed_shapes() {
    let mut g = graph(vec![node("Reshape", &["x", "shape"], &["y"])], &["x"], &["y"]);
    g.initializer = vec![ints("shape", &[2], &[2, -1])];
    assert_eq!(outputs(&model(g), [1.0, 2.0])[0].shape(), [2, 1]);
}
