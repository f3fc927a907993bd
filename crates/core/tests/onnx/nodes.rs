//! Conformance: the ONNX backend node tests, generated from the installed `onnx` package. Every
//! case passes, or is in `nodes.txt` as unsupported; nothing in that list may pass.
//!
//! ONNX_NODES=test_conv runs the cases of that name and prints each outcome (with --nocapture).
//! ONNX_NODES_BLESS=1 writes `nodes.txt` anew; look at what it changes.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use sparoa_core::{
    onnx::{self, LoadErrorKind, LoadOptions, proto},
    ops::OpError,
    tensor::Tensor,
};
use sparoa_kernels::pool::Pool;

use super::{
    interpret::{difference, run},
    python,
};

#[derive(Debug, PartialEq)]
enum Outcome {
    Pass,
    Unsupported(String),
    Fail(String),
}

/// The cases' own tolerances are those of ONNX's reference; ours are at least these.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-5;

#[test]
fn conformance() {
    if !python::available("onnx, numpy") {
        return;
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx-node-cases");
    if !root.join("cases.txt").exists() {
        fs::create_dir_all(&root).unwrap();
        python::run("node_cases.py", &[&root]);
    }
    let version = fs::read_to_string(root.join("version.txt")).unwrap();
    let cases = fs::read_to_string(root.join("cases.txt")).unwrap();
    let filter = std::env::var("ONNX_NODES").ok();
    let pool = Pool::new(1);
    let mut outcomes = BTreeMap::new();
    for line in cases.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (name, rtol, atol) = (fields[0], fields[1], fields[2]);
        if filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
            continue;
        }
        let tolerance =
            (rtol.parse::<f64>().unwrap().max(RTOL), atol.parse::<f64>().unwrap().max(ATOL));
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&root.join(name), tolerance, &pool)));
        let outcome = outcome.unwrap_or_else(|_| Outcome::Fail("panicked".to_owned()));
        if filter.is_some() {
            println!("{name}: {outcome:?}");
        }
        outcomes.insert(name.to_owned(), outcome);
    }
    if filter.is_none() && std::env::var_os("ONNX_NODES_BLESS").is_some() {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx/nodes.txt");
        fs::write(list, blessed(&outcomes, version.trim())).unwrap();
    } else {
        judge(&outcomes, version.trim(), filter.is_none());
    }
}

/// Cases whose expected outputs ONNX Runtime does not compute either: with align_corners and
/// scales that do not divide, it (as PyTorch) takes the output's whole length, the reference the
/// fractional one. Exporters mean the former.
const AS_ONNX_RUNTIME: [&str; 2] = [
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
];

/// Compares outcomes with the committed list.
fn judge(outcomes: &BTreeMap<String, Outcome>, version: &str, complete: bool) {
    let list = Expected::parse(include_str!("nodes.txt"));
    let count = |f: fn(&Outcome) -> bool| outcomes.values().filter(|o| f(o)).count();
    println!(
        "ONNX {version} node tests: {} pass, {} fail, {} unsupported",
        count(|o| *o == Outcome::Pass),
        count(|o| matches!(o, Outcome::Fail(_))),
        count(|o| matches!(o, Outcome::Unsupported(_))),
    );
    let mut problems = Vec::new();
    for (name, outcome) in outcomes {
        match (outcome, list.matches(name)) {
            (Outcome::Fail(_), _) if AS_ONNX_RUNTIME.contains(&name.as_str()) => {}
            (Outcome::Pass, _) if AS_ONNX_RUNTIME.contains(&name.as_str()) => {
                problems.push(format!("{name} passes: take it out of AS_ONNX_RUNTIME"));
            }
            (Outcome::Fail(why), _) => problems.push(format!("{name} fails: {why}")),
            (Outcome::Unsupported(why), None) if list.version == version => {
                problems.push(format!("{name} is unsupported and not in nodes.txt: {why}"));
            }
            (Outcome::Pass, Some(pattern)) => {
                problems.push(format!(
                    "{name} passes: take '{pattern}' out of nodes.txt (ONNX_NODES_BLESS=1 does)"
                ));
            }
            _ => {}
        }
    }
    if complete && list.version == version {
        let stale = list.patterns.iter().filter(|p| !outcomes.keys().any(|n| matches(p, n)));
        problems.extend(stale.map(|p| format!("nodes.txt: '{p}' names no case")));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// The list that fits these outcomes, with the shortest patterns that cover no other case.
fn blessed(outcomes: &BTreeMap<String, Outcome>, version: &str) -> String {
    let mut text = format!(
        "# Node tests of the onnx package that SparOA does not support, and why. See nodes.rs.\n\
         version {version}\n"
    );
    let mut last = String::new();
    for (name, outcome) in outcomes {
        let Outcome::Unsupported(why) = outcome else { continue };
        if !last.is_empty() && matches(&last, name) {
            continue;
        }
        let words = name.match_indices('_').map(|(at, _)| at).skip(1).chain([name.len()]);
        let pattern = words.map(|end| format!("{}*", &name[..end])).find(|pattern| {
            let covered = outcomes.iter().filter(|(n, _)| matches(pattern, n));
            let supported = covered.clone().any(|(_, o)| !matches!(o, Outcome::Unsupported(_)));
            !supported && covered.count() > 1
        });
        last = pattern.unwrap_or_else(|| name.clone());
        let why = why.strip_prefix("model: ").unwrap_or(why);
        let why = why.split([';', '[']).next().unwrap_or(why);
        let why = why.split(" (supported").next().unwrap_or(why);
        let why = why.split(" (1 node").next().unwrap_or(why).trim();
        let why: String = why.chars().take(100).collect();
        text.push_str(&format!("{last} # {}\n", why.replace('#', "")));
    }
    text
}

/// `nodes.txt`: patterns (`*` at the end stands for anything) of unsupported cases.
struct Expected<'a> {
    /// Version of the `onnx` package that the list was made with. With another one, new cases
    /// may be unsupported without being listed.
    version: &'a str,
    patterns: Vec<&'a str>,
}

impl<'a> Expected<'a> {
    fn parse(text: &'a str) -> Expected<'a> {
        let version = text.lines().find_map(|l| l.strip_prefix("version ")).unwrap();
        let lines = text.lines().map(|l| l.split('#').next().unwrap().trim());
        let patterns = lines.filter(|l| !l.is_empty() && !l.starts_with("version ")).collect();
        Expected { version, patterns }
    }

    fn matches(&self, name: &str) -> Option<&'a str> {
        self.patterns.iter().copied().find(|p| matches(p, name))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn case(folder: &Path, tolerance: (f64, f64), pool: &Pool) -> Outcome {
    let model = fs::read(folder.join("model.onnx")).unwrap();
    let values = |prefix: &str| -> Result<Vec<Tensor>, String> {
        (0..)
            .map(|i| folder.join(format!("data/{prefix}_{i}.pb")))
            .take_while(|path| path.exists())
            .map(|path| onnx::tensor_from_bytes(fs::read(path).unwrap()).map_err(|e| e.to_string()))
            .collect()
    };
    check(&model, || Ok((values("input")?, values("output")?)), tolerance, pool)
}

/// Runs a model as imported and as optimised. The values are only read once it has loaded: what
/// cannot be loaded may have values that cannot be read.
fn check(
    bytes: &[u8],
    values: impl FnOnce() -> Result<(Vec<Tensor>, Vec<Tensor>), String>,
    (rtol, atol): (f64, f64),
    pool: &Pool,
) -> Outcome {
    let model = match onnx::load_bytes(bytes.to_vec(), None, &LoadOptions::default()) {
        Ok(model) => model,
        Err(e) => {
            return match &*e.kind {
                LoadErrorKind::MissingOperators(_)
                | LoadErrorKind::Opset { .. }
                | LoadErrorKind::Type { .. }
                | LoadErrorKind::Attribute { .. }
                | LoadErrorKind::Tensor { .. }
                | LoadErrorKind::Operator { source: OpError::Unsupported(_), .. } => {
                    Outcome::Unsupported(e.to_string())
                }
                _ => Outcome::Fail(e.to_string()),
            };
        }
    };
    let (inputs, wanted) = match values() {
        Ok(values) => values,
        Err(e) => return Outcome::Fail(e),
    };
    for optimized in [false, true] {
        let label = if optimized { "optimised: " } else { "" };
        let outputs = match run(&model, &inputs, optimized, pool) {
            Ok(outputs) => outputs,
            Err(e) if e.is_unsupported() => return Outcome::Unsupported(format!("{label}{e}")),
            Err(e) => return Outcome::Fail(format!("{label}{e}")),
        };
        if outputs.len() != wanted.len() {
            let (got, want) = (outputs.len(), wanted.len());
            return Outcome::Fail(format!("{label}{got} outputs, must be {want}"));
        }
        for (i, (got, want)) in outputs.iter().zip(&wanted).enumerate() {
            if let Some(what) = difference(got, want, rtol, atol) {
                return Outcome::Fail(format!("{label}output {i}: {what}"));
            }
        }
    }
    Outcome::Pass
}

/// The harness must be able to say "unsupported" and "fail".
#[test]
fn negative_control() {
    use prost::Message;
    let value = |name: &str| proto::ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(proto::TypeProto {
            value: Some(proto::type_proto::Value::TensorType(proto::type_proto::Tensor {
                elem_type: Some(proto::DataType::Float.into()),
                shape: Some(proto::TensorShapeProto {
                    dim: vec![proto::Dimension {
                        value: Some(proto::DimensionValue::Value(2)),
                        denotation: None,
                    }],
                }),
            })),
            denotation: None,
        }),
        ..Default::default()
    };
    let model = |op_type: &str| {
        proto::ModelProto {
            opset_import: vec![proto::OperatorSetIdProto { domain: None, version: Some(17) }],
            graph: Some(proto::GraphProto {
                node: vec![proto::NodeProto {
                    op_type: Some(op_type.into()),
                    input: vec!["x".into()],
                    output: vec!["y".into()],
                    ..Default::default()
                }],
                input: vec![value("x")],
                output: vec![value("y")],
                ..Default::default()
            }),
            ..Default::default()
        }
        .encode_to_vec()
    };
    let pool = Pool::new(1);
    let run = |op_type: &str, want: f32| {
        let x = Tensor::from_slice([2], &[-1f32, 2.0]);
        let y = Tensor::from_slice([2], &[0f32, want]);
        check(&model(op_type), || Ok((vec![x], vec![y])), (RTOL, ATOL), &pool)
    };
    let Outcome::Unsupported(why) = run("Relux", 2.0) else { panic!("must be unsupported") };
    assert!(why.contains("Relux (1 node") && why.contains("Relu"), "{why}");
    assert_eq!(run("Relu", 2.0), Outcome::Pass);
    assert!(matches!(run("Relu", 3.0), Outcome::Fail(_)));
}
