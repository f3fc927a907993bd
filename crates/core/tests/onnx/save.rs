//! What is written can be read back: the same model, the same weights, the same results.

use std::{collections::BTreeMap, fs, sync::Arc};

use sparoa_core::{
    ir::{Model, Shapes, specialize},
    onnx::{self, LoadOptions, SaveOptions, Saveable, proto::ModelProto},
    tensor::Tensor,
};
use sparoa_kernels::pool::Pool;

use super::{
    build::{encode, floats, graph, model, node, subgraph, value},
    interpret::run,
};

fn small() -> Model {
    let nodes = vec![node("Add", &["x", "w"], &["a"]), node("Relu", &["a"], &["y"])];
    let mut g = graph(nodes, &["x"], &["y"]);
    let large: Vec<f32> = (0..1024u16).map(f32::from).collect();
    g.input[0] = value("x", onnx::proto::DataType::Float, &[-1, 1024]);
    g.initializer = vec![floats("w", &[1024], &large)];
    onnx::load_bytes(encode(&model(g)), None, &LoadOptions::default()).unwrap()
}

fn results(model: &Model) -> Vec<Tensor> {
    let x = Tensor::from_slice([1, 1024], &[-5f32; 1024]);
    run(model, &[x], false, &Pool::new(1)).unwrap()
}

#[test]
fn models_and_graphs_come_back() {
    let model = small();
    let graph = specialize(&model, &Shapes::new()).unwrap().graph;
    for what in [Saveable::Model(&model), Saveable::Graph(&graph)] {
        let bytes = onnx::to_bytes(what, &SaveOptions::default()).unwrap();
        let back = onnx::load_bytes(bytes, None, &LoadOptions::default()).unwrap();
        assert_eq!(back.constants[0].1, model.constants[0].1);
        assert_eq!(back.nodes.len(), 2);
        assert_eq!(back.nodes[1].name, model.nodes[1].name);
        assert_eq!(results(&back), results(&model));
    }
}

#[test]
fn outputs_are_typed_and_the_batch_stays_free() {
    use onnx::proto::{DimensionValue, type_proto};
    use prost::Message;
    let mut model = small();
    model.inputs[0].dims.as_mut().unwrap()[0] = sparoa_core::ir::Dim::Symbol("batch".into());
    let bytes = onnx::to_bytes(&model, &SaveOptions::default()).unwrap();
    let proto = ModelProto::decode(bytes.as_slice()).unwrap();
    let ty = proto.graph.unwrap().output.remove(0).r#type.unwrap().value.unwrap();
    let type_proto::Value::TensorType(ty) = ty else { panic!("must be a tensor") };
    let dims: Vec<_> = ty.shape.unwrap().dim.into_iter().map(|d| d.value.unwrap()).collect();
    assert_eq!(dims, [DimensionValue::Param("batch".into()), DimensionValue::Value(1024)]);
}

#[test]
fn large_weights_go_to_a_data_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = small();
    let options = SaveOptions { max_inline_bytes: 1000, ..SaveOptions::default() };
    // Twice: existing files are replaced, also when the model is mapped from them.
    onnx::save(&model, &path, &options).unwrap();
    let back = onnx::load(&path, &LoadOptions::default()).unwrap();
    onnx::save(&back, &path, &options).unwrap();
    let again = onnx::load(&path, &LoadOptions::default()).unwrap();
    assert_eq!(results(&again), results(&model));
    assert_eq!(fs::metadata(folder.path().join("m.onnx.data")).unwrap().len(), 4096);
    assert!(fs::metadata(&path).unwrap().len() < 1000);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    let nowhere = folder.path().join("none/m.onnx");
    let error = onnx::save(&model, &nowhere, &options).unwrap_err().to_string();
    assert!(error.contains("none/m.onnx"), "{error}");
}

#[test]
fn constants_of_a_file_get_other_values() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("m.onnx"), folder.path().join("other/m.onnx"));
    fs::create_dir(other.parent().unwrap()).unwrap();
    let external = SaveOptions { max_inline_bytes: 1000, ..SaveOptions::default() };
    let model = small();
    onnx::save(&model, &path, &external).unwrap();
    let tensor = Arc::new(Tensor::from_slice([1024], &[7f32; 1024]));
    let given = |name: &str| BTreeMap::from([(name.to_owned(), tensor.clone())]);

    // Nothing to change: the data comes along, into the file.
    onnx::rewrite(&path, &other, &BTreeMap::new(), &SaveOptions::default()).unwrap();
    let same = onnx::load(&other, &LoadOptions::default()).unwrap();
    assert_eq!(results(&same), results(&model));
    assert_eq!(fs::read_dir(other.parent().unwrap()).unwrap().count(), 1);

    // In place, over the file that it is mapped from.
    onnx::rewrite(&path, &path, &given("w"), &external).unwrap();
    let changed = onnx::load(&path, &LoadOptions::default()).unwrap();
    assert_eq!(changed.constants[0].1, tensor);
    assert_eq!(results(&changed)[0], Tensor::from_slice([1, 1024], &[2f32; 1024]));
    assert_eq!(changed.nodes[1].name, model.nodes[1].name);

    let error = onnx::rewrite(&path, &other, &given("v"), &external).unwrap_err().to_string();
    assert!(error.contains("no constants named v"), "{error}");
}

#[test]
fn metadata_is_written() {
    use prost::Message;
    let model = small();
    let pairs = vec![("sparoa.device".to_owned(), "gpu".to_owned())];
    let options = SaveOptions {
        node_metadata: [(model.nodes[1].name.clone(), pairs.clone())].into(),
        metadata: pairs,
        ..SaveOptions::default()
    };
    let bytes = onnx::to_bytes(&model, &options).unwrap();
    let proto = ModelProto::decode(bytes.as_slice()).unwrap();
    assert_eq!(proto.metadata_props[0].value(), "gpu");
    let nodes = proto.graph.unwrap().node;
    assert!(nodes[0].metadata_props.is_empty());
    assert_eq!(nodes[1].metadata_props[0].key(), "sparoa.device");
}

#[test]
fn subgraphs_come_back_with_their_captures() {
    let branch = |op| graph(vec![node(op, &["x", "w"], &["z"])], &[], &["z"]);
    let mut choice = node("If", &["c"], &["y"]);
    choice.attribute =
        vec![subgraph("then_branch", branch("Add")), subgraph("else_branch", branch("Mul"))];
    let mut g = graph(vec![choice], &["x"], &["y"]);
    g.input.push(value("c", onnx::proto::DataType::Bool, &[]));
    g.initializer = vec![floats("w", &[2], &[3.0, 4.0])];
    let first = onnx::load_bytes(encode(&model(g)), None, &LoadOptions::default()).unwrap();
    let bytes = onnx::to_bytes(&first, &SaveOptions::default()).unwrap();
    let back = onnx::load_bytes(bytes, None, &LoadOptions::default()).unwrap();
    for (c, want) in [(true, [4f32, 6.0]), (false, [3.0, 8.0])] {
        let inputs = [Tensor::from_slice([2], &[1f32, 2.0]), Tensor::from_bools([], &[c])];
        let got = run(&back, &inputs, false, &Pool::new(1)).unwrap();
        assert_eq!(got, [Tensor::from_slice([2], &want)]);
    }
}
